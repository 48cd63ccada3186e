"""`tusd-py config`: prints the effective settings and where each comes from, or their documentation."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable

from tusd_py.settings.commandline import Parser, UsageError
from tusd_py.settings.load import Loaded, add_flags, load_arguments
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import Setting, catalogue
from tusd_py.settings.reference_page import markdown

USAGE = "[--json | --markdown] [options of serve]"
ABOUT = """\
Print every setting that tusd-py serve would use with the same options, environment and file, and
the source of its value. Secrets are hidden.
"""


def add_arguments(parser: Parser) -> None:
    """Declare the output formats and all settings."""
    for flag, meaning in (
        ("--json", "Print JSON, with sizes in bytes and durations in seconds."),
        ("--markdown", "Print the documentation of all settings as Markdown."),
    ):
        parser.option(flag, meaning, section="Output", action="store_true")
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the settings and return the exit code."""
    ways = vars(arguments)
    if "json" in ways and "markdown" in ways:
        raise UsageError("--json and --markdown exclude each other")
    if "markdown" in ways:
        sys.stdout.write(markdown(catalogue(Settings)))
        return 0
    loaded = load_arguments(arguments, os.environ)
    for warning in loaded.warnings:
        sys.stderr.write(f"tusd-py config: warning: {warning}\n")
    sys.stdout.write(as_json(loaded) if "json" in ways else as_table(loaded))
    sys.stdout.flush()
    return 0


def as_json(loaded: Loaded) -> str:
    """Format as {"port": {"value": 8080, "origin": "default"}, ...}."""
    values = {
        setting.name: {
            "value": setting.as_json(_value(loaded, setting)),
            "origin": loaded.origins[setting.name],
        }
        for setting in _settings(loaded)
    }
    return json.dumps(values, indent=2) + "\n"


def as_table(loaded: Loaded) -> str:
    """Format as columns: name, value, origin."""
    rows = [
        (setting.name, setting.show(_value(loaded, setting)) or "-", loaded.origins[setting.name])
        for setting in _settings(loaded)
    ]
    first = max(len(name) for name, _, _ in rows)
    # One long value, such as a list of proxies, must not push the other origins off the screen.
    second = max(len(value) for _, value, _ in rows if len(value) <= 40)
    return "".join(f"{name:{first}}  {value:{second}}  {origin}\n" for name, value, origin in rows)


def _settings(loaded: Loaded) -> Iterable[Setting]:
    return catalogue(type(loaded.settings))


def _value(loaded: Loaded, setting: Setting) -> object:
    value: object = getattr(loaded.settings, setting.name)
    return value
