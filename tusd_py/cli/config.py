"""`tusd-py config`: prints the effective settings and where each comes from, or their documentation."""

from __future__ import annotations

import sys

import click

from tusd_py.cli.options import SERVER, option, read_settings, subcommand
from tusd_py.cli.output import write_json, write_problem, write_rows
from tusd_py.settings import reference_page
from tusd_py.settings.load import Loaded
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import catalogue

ABOUT = """\
Print every setting that tusd-py serve would use with the same options, environment and file, and
the source of its value. Secrets are hidden.
"""


@subcommand("[--json | --markdown] [options of serve]", ABOUT, settings=SERVER)
@option("--json", "Print JSON, with sizes in bytes and durations in seconds.", section="Output")
@option("--markdown", "Print the documentation of all settings as Markdown.", section="Output")
def command(json: bool, markdown: bool) -> int:
    """Print the settings and return the exit code."""
    if json and markdown:
        raise click.UsageError("--json and --markdown exclude each other")
    if markdown:
        sys.stdout.write(reference_page.markdown(catalogue(Settings)))
        return 0
    loaded = read_settings()
    for warning in loaded.warnings:
        write_problem(f"warning: {warning}")
    if json:
        write_json(as_document(loaded), indent=2)
    else:
        # One long value, such as a list of proxies, must not push the other origins off the screen.
        write_rows(as_rows(loaded), wide=40)
    return 0


def as_document(loaded: Loaded) -> dict[str, object]:
    """Describe the settings as {"port": {"value": 8080, "origin": "default"}, ...}."""
    return {
        setting.name: {
            "value": setting.as_json(getattr(loaded.settings, setting.name)),
            "origin": loaded.origins[setting.name],
        }
        for setting in catalogue(type(loaded.settings))
    }


def as_rows(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Describe the settings as rows of name, value and origin."""
    return [
        (
            setting.name,
            setting.show(getattr(loaded.settings, setting.name)) or "-",
            loaded.origins[setting.name],
        )
        for setting in catalogue(type(loaded.settings))
    ]
