"""Loads settings from a dict, the command line, the environment and a TOML file, with the source of each value.

The first source that has a setting decides, in this order. The model alone defines and validates settings. pydantic-settings
is not used, because every error must name the argument, the flag, the variable or the key that the user wrote.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tusd_py.settings.model import Settings
from tusd_py.settings.reference import ENVIRONMENT_PREFIX, HIDDEN, Setting, catalogue
from tusd_py.settings.suggestion import suggestion

CONFIG_FLAG = "--config"
CONFIG_VARIABLE = "TUSD_CONFIG"

_FILE_SUFFIX = "_FILE"
"""Of the variable that names the file with a secret."""
_SHOWN = 200
"""Characters of a wrong value that are shown."""

# Variables that Kubernetes and Docker links set in containers beside a service called "tusd" (or
# "tusd-…"). Some have names of our settings: TUSD_PORT=tcp://10.0.0.7:80.
_PLATFORM_NAME = re.compile(
    r"TUSD_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO|START|END))?)"
)
_FROM_PLATFORM = (
    "the container platform set it for a service of this name; "
    "call the service otherwise (Kubernetes: or set enableServiceLinks: false)"
)
_PLATFORM_PORT = re.compile(r"(tcp|udp|sctp)://\S+")


class SettingsError(ValueError):
    """Invalid settings. Each problem names the setting as the user gave it, its value and what would be valid."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Loaded:
    """Effective settings."""

    settings: Settings
    origins: dict[str, str]
    """For each setting: "argument port", "flag --port", "environment TUSD_PORT", "file /etc/tusd.toml" or "default"."""
    warnings: tuple[str, ...]
    """Probable but harmless mistakes."""


@dataclass(frozen=True)
class _Given:
    """A value as the user gave it."""

    value: object
    origin: str
    label: str
    """What the user wrote to give it: "port", "--port", "TUSD_PORT", "/etc/tusd.toml:port"."""


def load(
    environ: Mapping[str, str],
    *,
    flags: Mapping[str, object] | None = None,
    config: str | None = None,
    arguments: Mapping[str, object] | None = None,
    model: type[Settings] = Settings,
) -> Loaded:
    """Load settings from all sources.

    Args:
        environ: the environment.
        flags: values of flags by the name of the setting; tuples for flags that may be repeated.
        config: value of the flag --config.
        arguments: values by the name of the setting, from an application.
        model: the model of settings.

    Raises:
        SettingsError: a value, a name or the file is wrong.
    """
    settings = {setting.name: setting for setting in catalogue(model)}
    given = {
        **_from_file(settings, config, environ),
        **_from_environment(settings, environ),
        **_from_flags(settings, flags or {}),
        **_from_arguments(settings, arguments or {}),
    }
    try:
        checked = model.model_validate({name: each.value for name, each in given.items()})
    except ValidationError as error:
        raise SettingsError(*dict.fromkeys(_problems(error, settings, given))) from None
    origins = {name: given[name].origin if name in given else "default" for name in settings}
    return Loaded(checked, origins, tuple(_warnings(settings.values(), environ)))


# --- the sources ----------------------------------------------------------------------------------


def _from_arguments(
    settings: Mapping[str, Setting], arguments: Mapping[str, object]
) -> dict[str, _Given]:
    # By their names or, with underscores, by their flags.
    known = {each.flag[2:].replace("-", "_"): each.name for each in settings.values()}
    known |= {name: name for name in settings}
    if unknown := sorted(arguments.keys() - known.keys()):
        raise SettingsError(
            *(f"{name}: unknown setting{suggestion(name, known)}" for name in unknown)
        )
    return {
        known[name]: _Given(value, f"argument {name}", name) for name, value in arguments.items()
    }


def _from_flags(settings: Mapping[str, Setting], flags: Mapping[str, object]) -> dict[str, _Given]:
    given = {}
    for name, value in flags.items():
        flag = settings[name].flag
        text = ",".join(value) if isinstance(value, tuple) else value
        given[name] = _Given(text, f"flag {flag}", flag)
    return given


def _from_environment(
    settings: Mapping[str, Setting], environ: Mapping[str, str]
) -> dict[str, _Given]:
    """Read the environment. Empty variables count as not set, because Compose files pass on variables without a value."""
    known = {setting.environment for setting in settings.values()}
    given = {}
    for setting in settings.values():
        name = setting.environment
        file = name + _FILE_SUFFIX
        if setting.secret and file not in known and environ.get(file):
            if environ.get(name):
                raise SettingsError(f"{file} and {name} are both set; set one of them")
            secret = _read_secret(environ[file], file)
            given[setting.name] = _Given(secret, f"environment {file}", file)
        elif environ.get(name) and not _is_from_platform(name, environ[name]):
            given[setting.name] = _Given(environ[name], f"environment {name}", name)
    return given


def _read_secret(name: str, variable: str) -> str:
    """Return the content of a file with one secret, without the line break at its end."""
    label = f"{variable} {_quote(name)}"
    secret = _read_text(Path(name), label, "utf-8").rstrip("\r\n")
    if not secret:
        raise SettingsError(f"{label}: the file is empty")
    return secret


def _from_file(
    settings: Mapping[str, Setting], flag: str | None, environ: Mapping[str, str]
) -> dict[str, _Given]:
    label, name = (
        (CONFIG_FLAG, flag) if flag is not None else (CONFIG_VARIABLE, environ.get(CONFIG_VARIABLE))
    )
    if not name:
        return {}
    path = Path(name).expanduser().absolute()
    given: dict[str, _Given] = {}
    problems = []
    for key, value in _read_toml(path, f"{label} {_quote(name)}").items():
        setting = settings.get(key.replace("-", "_"))
        place = f"{path}:{key}"
        if setting is None:
            problems.append(f"{place}: unknown setting{suggestion(key, settings)}")
        elif setting.name in given:
            problems.append(f"{place}: given twice, as {given[setting.name].label} too")
        elif setting.written.quoted and not isinstance(value, str):
            problems.append(f"{place}: give it in quotes, such as {_quote(setting.default)}")
        else:
            given[setting.name] = _Given(value, f"file {path}", place)
    if problems:
        raise SettingsError(*problems)
    return given


def _read_toml(path: Path, label: str) -> dict[str, object]:
    try:
        # utf-8-sig skips a byte order mark, which editors on Windows write.
        return tomllib.loads(_read_text(path, label, "utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{label}: is not TOML: {error}") from None


def _read_text(path: Path, label: str, encoding: str) -> str:
    try:
        return path.read_text(encoding)
    except OSError as error:
        raise SettingsError(f"{label}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{label}: is not a text file in UTF-8") from None


# --- errors and warnings --------------------------------------------------------------------------


def _problems(
    error: ValidationError, settings: Mapping[str, Setting], given: Mapping[str, _Given]
) -> Iterator[str]:
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":
            continue  # a default made from another setting, about which there is a problem already
        if details["type"] == "conflict":
            sentence: str = details["ctx"]["sentence"]
            yield sentence.format(**{name: _wrote(each, given) for name, each in settings.items()})
            continue
        setting = settings[str(details["loc"][0])]
        if setting.name not in given:
            yield f"{setting.flag} (or {setting.environment}) must be given"
            continue
        reason = details["ctx"]["error"] if details["type"] == "value_error" else setting.expected
        yield f"{_wrote(setting, given)}: {reason}"


def _wrote(setting: Setting, given: Mapping[str, _Given]) -> str:
    """Return how the user gave a setting, such as --port "80x", or its flag if it was not given."""
    if setting.name not in given:
        return f"{setting.flag} {_quote(setting.default)}" if setting.default else setting.flag
    found = given[setting.name]
    return f"{found.label} {HIDDEN if setting.secret else _quote(found.value)}"


def _quote(value: object) -> str:
    """Format a value on one line, in printable ASCII, truncated."""
    text = json.dumps(value, default=str).replace("\x7f", "\\u007f")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _warnings(settings: Iterable[Setting], environ: Mapping[str, str]) -> Iterator[str]:
    known = {setting.environment for setting in settings} | {CONFIG_VARIABLE}
    known |= {setting.environment + _FILE_SUFFIX for setting in settings if setting.secret}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if _is_from_platform(name, environ[name]):
            if name in known:
                yield f"{name} {_quote(environ[name])} is ignored: {_FROM_PLATFORM}"
        elif name not in known:
            yield f"{name} is not a setting and is ignored{suggestion(name, known)}"


def _is_from_platform(name: str, value: str) -> bool:
    if _PLATFORM_NAME.fullmatch(name):
        return True
    return name.endswith("_PORT") and _PLATFORM_PORT.fullmatch(value) is not None
