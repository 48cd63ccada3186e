"""Settings from the arguments of a command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from unittest.mock import patch

import click

from tusd_py.cli.app import sentence
from tusd_py.cli.options import read_settings, subcommand
from tusd_py.settings.load import Loaded, SettingsError


@subcommand("[options]", "Takes all settings.")
def _command() -> int:
    return 0


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Settings as a command with these arguments has them in this environment. Raises SettingsError for wrong arguments too."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("TUSD_")}
    with patch.dict(os.environ, {**others, **environ}, clear=True):
        try:
            with _command.make_context("tusd-py", list(argv)):
                return read_settings()
        except click.UsageError as error:
            raise SettingsError(sentence(error, list(argv))) from None
