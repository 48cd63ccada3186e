"""What users meet of each setting besides its value: flag, environment variable, group, syntax, default.

Derived from the model for the command line, the environment, help and documentation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel, Field, SecretStr
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from tusd_py.settings.suggestion import one_of
from tusd_py.settings.types import Written

ENVIRONMENT_PREFIX = "TUSD_"
HIDDEN = "********"

_BOOL = Written(
    "true|false",
    "give true or false",
    text=lambda value: "true" if value else "false",
    bare="true",
)


def setting(
    default: object,
    description: str,
    *,
    group: str | None = None,
    flag: str | None = None,
    shown_default: str | None = None,
) -> Any:
    """Declare a setting: a field of the model.

    Args:
        default: its default, or a function that makes it from the values of earlier settings.
        description: sentences for help and documentation.
        group: heading in help and documentation, for this setting and those below it; None to stay under the one above.
        flag: its flag, if that is not its name.
        shown_default: the default in words, if it depends on other settings.
    """
    extra: JsonDict = {"group": group, "flag": flag, "shown_default": shown_default}
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra)
    return Field(default, description=description, json_schema_extra=extra)


@dataclass(frozen=True)
class Setting:
    """One setting as the user meets it."""

    name: str
    flag: str
    environment: str
    group: str
    description: str
    written: Written
    default: str
    """The default as the user would write it; "" if there is none."""
    expected: str
    """What to give instead of a wrong value."""
    many: bool
    """Whether it is a list: its flag may be repeated."""
    secret: bool

    def show(self, value: object) -> str:
        """Format a value as the user would write it; secrets are hidden, and None is ""."""
        if value is None:
            return ""
        if self.secret:
            return HIDDEN
        hide = self.written.shown or str
        if isinstance(value, tuple):
            return ",".join(hide(self.written.text(item)) for item in value)
        return hide(self.written.text(value))

    def text(self, value: object) -> str:
        """Format a value as text that gives the same value again, including what is secret."""
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        items = value if isinstance(value, tuple) else (value,)
        return ",".join(map(self.written.text, items))

    def as_json(self, value: object) -> bool | int | float | str | list[str] | None:
        """Convert a value for JSON: sizes in bytes, durations in seconds; secrets are hidden."""
        if value is None or (isinstance(value, bool | int | float) and not self.written.quoted):
            return value
        if isinstance(value, tuple) and not self.secret:
            return [self.show((item,)) for item in value]
        return self.show(value)


@cache
def catalogue(model: type[BaseModel]) -> tuple[Setting, ...]:
    """Describe all settings of a model, in its order."""
    settings = []
    group = "Other"
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        group = str(extra.get("group") or group)
        settings.append(_setting(name, field, extra, group))
    return tuple(settings)


def _setting(name: str, field: FieldInfo, extra: JsonDict, group: str) -> Setting:
    written = _written(field)
    described = Setting(
        name=name,
        flag=str(extra.get("flag") or "--" + name.replace("_", "-")),
        environment=ENVIRONMENT_PREFIX + name.upper(),
        group=group,
        description=field.description or "",
        written=written,
        default=str(extra.get("shown_default") or ""),
        expected=_expected(field, written),
        many=get_origin(field.annotation) is tuple,
        secret=field.annotation is SecretStr or SecretStr in get_args(field.annotation),
    )
    if described.default or described.secret or field.is_required() or field.default_factory:
        return described
    return replace(described, default=described.show(field.default))


def _words(field: FieldInfo) -> tuple[str, ...]:
    """The words that are allowed for a setting, or for the items of its list; empty if others are."""
    annotation: object = field.annotation
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        annotation = get_args(item)[0] if get_origin(item) is Annotated else item
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _written(field: FieldInfo) -> Written:
    for extra in reversed(field.metadata):
        if isinstance(extra, Written):
            return extra
    if field.annotation is bool:
        return _BOOL
    many = get_origin(field.annotation) is tuple
    return Written("|".join(_words(field)) or "TEXT") if not many else Written("NAMES")


def _expected(field: FieldInfo, written: Written) -> str:
    words = _words(field)
    if words and get_origin(field.annotation) is tuple:
        return f"give one or more of {', '.join(words)}"
    if words:
        return f"give {one_of(words)}"
    if written.expected:
        return written.expected
    if get_origin(field.annotation) is tuple:
        return f"give {written.noun}, with commas between them"
    bounds = {type(extra): extra for extra in field.metadata}
    match bounds.get(Ge), bounds.get(Gt), bounds.get(Le), bounds.get(MinLen):
        case Ge(ge=low), _, Le(le=high), _:
            return f"give {written.noun} from {written.text(low)} to {written.text(high)}"
        case _, Gt(gt=low), Le(le=high), _:
            return f"give {written.noun} greater than {written.text(low)}, at most {written.text(high)}"
        case _, _, _, MinLen(min_length=least):
            return f"give at least {least} characters"
    return f"give a value of the form {written.metavar}"
