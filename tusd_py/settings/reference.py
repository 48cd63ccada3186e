"""What there is to know about each setting besides its value: flag, environment variable, group,
kind, default.

Made from the model, for whoever reads or shows settings: the command line, the environment, help
and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import get_args

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from tusd_py.settings.kinds import Kind

ENVIRONMENT_PREFIX = "TUSD_"
HIDDEN = "********"

_TEXT = Kind("TEXT", lambda value: value)


@dataclass(frozen=True)
class Shown:
    """Put on a field by `Annotated`: how it is presented where its name, kind and default do not
    say it.
    """

    group: str
    flag: str | None = None
    """The flag, where it is not the field's name."""
    default: str | None = None
    """The default in words, where it depends on other settings."""


@dataclass(frozen=True)
class Setting:
    """One setting as the user meets it."""

    name: str
    flag: str
    environment: str
    group: str
    description: str
    kind: Kind
    default: str
    """The default as the user would write it; "" where it is nothing."""
    secret: bool

    def show(self, value: object) -> str:
        """The value as the user would write it; secrets are hidden, and nothing is ""."""
        if value is None:
            return ""
        return HIDDEN if self.secret or isinstance(value, SecretStr) else self.kind.show(value)

    def as_json(self, value: object) -> bool | int | float | str | list[str] | None:
        """The value for JSON: sizes in bytes, durations in seconds; secrets are hidden."""
        if value is None or (isinstance(value, bool | int | float) and not self.kind.quoted):
            return value
        if isinstance(value, tuple) and not self.secret:
            return [self.kind.show((item,)) for item in value]
        return self.show(value)


def catalogue(model: type[BaseModel]) -> tuple[Setting, ...]:
    """All settings of a model in its order."""
    return tuple(_setting(name, field) for name, field in model.model_fields.items())


def _setting(name: str, field: FieldInfo) -> Setting:
    shown = next((extra for extra in field.metadata if isinstance(extra, Shown)), Shown("Other"))
    kind = next((extra for extra in field.metadata if isinstance(extra, Kind)), _TEXT)
    secret = _is_secret(field.annotation)
    default = shown.default
    if default is None:
        default = (
            "" if secret or field.default is None or field.is_required() else _show(kind, field)
        )
    return Setting(
        name=name,
        flag=shown.flag or "--" + name.replace("_", "-"),
        environment=ENVIRONMENT_PREFIX + name.upper(),
        group=shown.group,
        description=field.description or "",
        kind=kind,
        default=default,
        secret=secret,
    )


def _show(kind: Kind, field: FieldInfo) -> str:
    default: object = field.default
    if isinstance(default, PurePath) and not default.is_absolute():
        return f"./{default}"
    return kind.show(default)


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))
