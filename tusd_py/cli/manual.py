"""`tusd-py manual`: prints the manual page, made from the commands and their options."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from tusd_py.cli.options import Command, Option, subcommand
from tusd_py.cli.output import write_line

ABOUT = """\
Print the manual page in the format of man(1). Installed packages bring it along: man tusd-py.
"""

_INTRODUCTION = """\
A resumable upload server: tus 1.0.0 with every extension, and Resumable Uploads for HTTP. Without options it serves uploads at
http://127.0.0.1:8080/files/ and stores them in ./data."""
_EXIT = {
    "0": "Success.",
    "1": "The command failed, something was not found, or there is a problem. A line on standard error says which.",
    "2": "A wrong option or setting, or a missing permission.",
}


@subcommand("", ABOUT, settings=None)
def command() -> int:
    """Print the page and return the exit code."""
    for line in page():
        write_line(line)
    return 0


def page() -> Iterator[str]:
    """Yield the lines of the manual page."""
    # The group imports this module.
    from tusd_py.cli.app import COMMANDS  # noqa: PLC0415

    yield from (".TH TUSD-PY 1", ".SH NAME", r"tusd\-py \- resumable upload server")
    yield from (".SH SYNOPSIS", r".B tusd\-py", ".I COMMAND", "[options]")
    yield from (".SH DESCRIPTION", _text(_INTRODUCTION), ".SH COMMANDS")
    for name, summary in COMMANDS.items():
        yield from (".TP", f".B {_text(name)}", _text(summary))
    for name in COMMANDS:
        made: Command = import_module(f"tusd_py.cli.{name.replace('-', '_')}").command
        yield from _section(name, made)
    yield ".SH SETTINGS"
    yield _text(
        "Commands that work on uploads take the settings of serve as options, as environment variables (TUSD_...), and from a "
        "TOML file (--config). tusd-py serve --help all lists them, tusd-py config prints those in effect."
    )
    yield ".SH EXIT STATUS"
    for code, meaning in _EXIT.items():
        yield from (".TP", f".B {code}", _text(meaning))


def _section(name: str, made: Command) -> Iterator[str]:
    yield f".SH {_text(name.upper())}"
    yield _text(f"tusd-py {name} {made.usage}".strip())
    for paragraph in (made.help or "").strip().split("\n\n"):
        yield from (".PP", _text(paragraph))
    # Settings are many, and explained elsewhere.
    usual = made.short or () if name == "serve" else ()
    for option in made.params:
        if isinstance(option, Option) and (option.expose_value or option.name in usual):
            flag, meaning = option.row()
            yield from (".TP", f".B {_text(flag)}", _text(meaning))


def _text(text: str) -> str:
    """Plain text in roff."""
    plain = text.replace("\u2011", "-").replace("\u00a0", " ")
    escaped = plain.replace("\\", r"\(rs").replace("-", r"\-").replace('"', r"\(dq")
    # A dot or a quote at the beginning of a line would be a request.
    return "\n".join(
        f"\\&{line}" if line[:1] in (".", "'") else line for line in escaped.split("\n")
    )
