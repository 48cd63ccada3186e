"""What subcommands are made of: their help, their options, and the flags of all settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem

from tusd_py.settings.load import CONFIG_FLAG, CONFIG_VARIABLE, Loaded, load
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import Setting, catalogue
from tusd_py.settings.suggestion import one_of, suggestion

MAX_WIDTH = 100
SERVER = (
    "config", "host", "port", "base_path", "behind_proxy", "tls_certificate", "tls_key",
    "upload_dir", "max_size", "expire_after", "hooks", "auth", "redis_url",
)  # fmt: skip
"""Settings in the short help of `serve`."""
INSTANCE = ("config", "upload_dir", "state_dir", "redis_url")
"""Settings in the short help of the other commands."""

_GIVEN = "tusd_py.given"
_ALL = "tusd_py.all"
_COLUMN = 30
"""Widest flags beside which their meaning stands; wider ones have it below."""
_HELP = ("-h", "--help", "--help-all")

Run = TypeVar("Run", bound=Callable[..., int])


# --- help -----------------------------------------------------------------------------------------


class _Formatter(click.HelpFormatter):
    def getvalue(self) -> str:
        return super().getvalue().replace("\u2011", "-").replace("\u00a0", " ")


def _unbreakable(text: str) -> str:
    """Let lines not break in flags."""
    return text.replace("-", "\u2011")


class Context(click.Context):
    """A click context with our help."""

    command: Command
    formatter_class = _Formatter


class Option(click.Option):
    """A flag under a heading of the help; `note` is text in brackets behind its meaning."""

    def __init__(self, *arguments: Any, section: str, note: str = "", **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.section = section
        self.note = note

    def row(self) -> tuple[str, str]:
        """The option in help."""
        note = f" [{self.note}]" if self.note else ""
        return f"{self.opts[0]} {self.metavar or ''}".rstrip(), _unbreakable(f"{self.help}{note}")


class Command(click.Command):
    """A subcommand.

    usage: its arguments in the first line of help. short: names of the options in short help; None for all.
    """

    context_class = Context
    allow_extra_args = True
    usage = ""
    short: tuple[str, ...] | None = None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing and (asked := [each for each in args if each in _HELP]):
            # Help is given even if the rest is wrong.
            after = args[args.index(asked[0]) + 1 :]
            ctx.meta[_ALL] = "--help-all" in asked or after[:1] == ["all"]
            click.echo(self.get_help(ctx))
            ctx.exit()
        # A flag may have one dash, as in tusd's documentation.
        flags = self.flags()
        doubled = [f"-{each}" if f"-{each}".split("=")[0] in flags else each for each in args]
        try:
            super().parse_args(ctx, doubled)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        if ctx.args and not ctx.resilient_parsing:
            raise click.UsageError(f'unexpected argument "{ctx.args[0]}"', ctx)
        return ctx.args

    def flags(self) -> set[str]:
        """All flags of the command."""
        return {flag for param in self.params for flag in param.opts if flag.startswith("--")}

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, self.usage)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.params if isinstance(param, Option)]
        shown = [each for each in options if ctx.meta.get(_ALL) or self._is_short(each)]
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in shown:
            sections.setdefault(option.section, []).append(option.row())
        usual = ("-h, --help [all]", "Show the usual options, or all.")
        plain = ("-h, --help", "Show this help.")
        sections["General"] = [*sections.pop("General", []), plain if self.short is None else usual]
        # A terminal too narrow for two columns gets the meaning below the flag.
        column = _COLUMN if formatter.width > 2 * _COLUMN else 4
        width = min(column, max(len(name) for rows in sections.values() for name, _ in rows))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows], column)
        if more := len(options) - len(shown):
            formatter.write(f"\nThere are {more} more: {ctx.command_path} --help all\n")

    def _is_short(self, option: Option) -> bool:
        return self.short is None or option.expose_value or option.name in self.short


# --- values ---------------------------------------------------------------------------------------

if TYPE_CHECKING:
    _ParamType = click.ParamType[object]
else:
    # Generic since click 8.4.
    _ParamType = click.ParamType


class Value(_ParamType):
    """The value of a flag or an argument.

    Args:
        name: placeholder in help, such as SIZE, or words separated by "|".
        parse: converts the text; raises ValueError with what to give instead.
    """

    def __init__(self, name: str, parse: Callable[[str], object] = str) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        flag = param.opts[0] if isinstance(param, click.Option) else ""
        written = f"{flag} {json.dumps(value)}: " if flag else ""
        if flag and isinstance(ctx, Context) and value in ctx.command.flags():
            raise click.BadOptionUsage(flag, "", ctx)
        try:
            return self._parse(value)
        except ValueError as problem:
            raise click.UsageError(f"{written}{problem}", ctx) from None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        kind = {"DIR": "dir", "FILE": "file", "PATH": "file"}.get(self.name)
        if kind is not None:
            return [CompletionItem(incomplete, type=kind)]
        words = self.name.split("|") if "|" in self.name else []
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def whole(minimum: int, maximum: int) -> Value:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not minimum <= int(text) <= maximum:
            raise ValueError(f"give a whole number from {minimum} to {maximum}")
        return int(text)

    return Value("NUMBER", parse)


def one_word(*words: str, ask: str = "give") -> Value:
    """One of some words. ask: what is written before them if it is none of them."""

    def check(text: str) -> str:
        if text not in words:
            raise ValueError(f"{ask} {one_of(words)}{suggestion(text, words)}")
        return text

    return Value("|".join(words), check)


# --- decorators -----------------------------------------------------------------------------------


def subcommand(
    usage: str, about: str, *, settings: tuple[str, ...] | None = INSTANCE
) -> Callable[[Run], Command]:
    """Make a function a subcommand.

    Args:
        usage: its arguments, for the first line of help.
        about: text of its help, in paragraphs.
        settings: names of the settings in short help; None if the command does not take settings.
    """

    def decorate(function: Run) -> Command:
        made = click.command(
            cls=Command,
            help=_unbreakable(about),
            add_help_option=False,
            context_settings={"max_content_width": MAX_WIDTH + 2},
        )(function)
        made.usage = usage
        if settings is not None:
            made.short = settings
            made.params += _setting_options()
        return made

    return decorate


def option(
    flag: str,
    meaning: str,
    *,
    section: str,
    type: Value | None = None,
    name: str | None = None,
    note: str = "",
    many: bool = False,
) -> Callable[[Run], Run]:
    """Add a flag to a subcommand; without a type it takes no value.

    Args:
        flag: such as "--limit".
        meaning: sentences for help.
        section: heading in help.
        type: its value.
        name: name of the function's parameter, if that is not the flag's.
        note: text in brackets behind the meaning.
        many: whether it may be repeated.
    """
    return click.option(
        flag,
        name or flag[2:].replace("-", "_"),
        cls=Option,
        help=meaning,
        section=section,
        note=note,
        # click takes False for a flag whose value may be left out.
        is_flag=True if type is None else None,
        type=type,
        metavar=type.name if type else None,
        multiple=many,
    )


coloured = option(
    "--color",
    "Colours: on a terminal (auto) unless NO_COLOR is set, always or never.",
    section="Output",
    type=one_word("auto", "always", "never"),
)


def action(*names: str) -> Callable[[Run], Run]:
    """Add the first argument of a subcommand: what to do."""

    def check(text: str) -> str:
        if text in names:
            return text
        given = f'"{text}" is no action' if text else "no action was given"
        raise ValueError(f"{given}; give {one_of(names)}{suggestion(text, names)}")

    return click.argument("action", type=Value("|".join(names), check), default="")


def _setting_options() -> list[click.Parameter]:
    config = Option(
        [CONFIG_FLAG],
        section="General",
        type=Value("FILE"),
        metavar="FILE",
        help="Read settings from this TOML file.",
        note=CONFIG_VARIABLE,
        expose_value=False,
        callback=_remember,
    )
    return [config, *(_setting_option(setting) for setting in catalogue(Settings))]


def _setting_option(setting: Setting) -> Option:
    bare = setting.written.bare
    # A switch needs neither its default nor a placeholder.
    is_switch = bare == "true" and setting.default == "false"
    default = f"default {setting.default}" if setting.default and not is_switch else ""
    metavar = setting.written.metavar
    return Option(
        [setting.flag, setting.name],
        section=setting.group,
        type=Value(metavar),
        metavar="" if is_switch else f"[{metavar}]" if bare else metavar,
        multiple=setting.many,
        help=setting.description,
        note=", ".join(filter(None, (default, setting.environment))),
        expose_value=False,
        callback=_remember,
        **({"is_flag": False, "flag_value": bare} if bare else {}),
    )


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value not in (None, ()):
        ctx.meta.setdefault(_GIVEN, {})[param.name] = value


def quiet_settings(level: Literal["warning", "error"]) -> Settings:
    """Load the settings of a command that reports what fails in a line of its own, and log only what is so severe.

    Raises SettingsError.
    """
    # Other commands do without it.
    from tusd_py import logs  # noqa: PLC0415

    settings = read_settings().settings
    logs.configure(settings.log_format, level)
    return settings


def read_settings() -> Loaded:
    """Load the settings of the running command. Raises SettingsError."""
    given: dict[str, Any] = dict(click.get_current_context().meta.get(_GIVEN, {}))
    config: str | None = given.pop("config", None)
    return load(os.environ, flags=given, config=config)
