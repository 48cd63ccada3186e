"""docs/settings.md, generated from the model; a test compares the file with it."""

from __future__ import annotations

from collections.abc import Sequence

from tusd_py.settings.reference import Setting

_INTRODUCTION = """\
# Settings

<!-- Written by `tusd-py config --markdown`; the texts are in tusd_py/settings/model.py. -->

`tusd-py serve` needs none of them. Each can be given in three places, and the first one decides:

1. the command line: `--max-size 10GB` or `--max-size=10GB`,
2. the environment: `TUSD_MAX_SIZE=10GB`; a variable that is empty counts as not set. A secret may be in a file that a variable
   with `_FILE` at its end names: `TUSD_REDIS_URL_FILE=/run/secrets/redis-url`,
3. a TOML file that `--config FILE` or `TUSD_CONFIG` names: `max_size = "10GB"`.

`tusd-py config`, with the same options, prints what is in force and where each value comes from.
An invalid value is reported with its source, and the exit code is 2.

- **Sizes** are in bytes, or have a unit: `kB`, `MB`, `GB`, `TB` count in thousands, as do `k`, `M`,
  `G`, `T` alone; `KiB`, `MiB`, `GiB`, `TiB` in 1024s. In the file, a number without quotes is in
  bytes.
- **Durations** are in seconds, or have units: `500ms`, `90s`, `20m`, `12h`, `7d`, `1h30m`. In the
  file, a number without quotes is seconds.
- **Permissions** are octal: `0750`. In the file they stand in quotes.
- **Yes or no**: `--disable-download` is `--disable-download=true`. In the file, `true` and `false`
  have no quotes.
- **Lists** have commas between their items; their flags may also be repeated. In the file they are
  lists: `behind_proxy = ["10.0.0.0/8"]`.
- **Relative paths** start in the directory in which the server is started.

In the file, a name that is not a setting is an error. In the environment it is a warning, because
container platforms put names of their own there. Kubernetes tells every container about a service
called `tusd` by `TUSD_PORT=tcp://10.0.0.7:80`, `TUSD_SERVICE_HOST` and others: such a `TUSD_PORT`
is ignored with a warning, the others without one. To set the port by `TUSD_PORT` there, call the
service otherwise or set `enableServiceLinks: false`.
"""

_EXAMPLE = """\
## A file

```toml
host = "0.0.0.0"
behind_proxy = ["10.0.0.0/8"]
upload_dir = "/srv/uploads"
max_size = "50GB"
disk_reserve = "10GiB"
expire_after = "14d"
cors_allow_origin = 'https://([a-z]+\\.)?example\\.org'
log_format = "json"
```
"""


def markdown(settings: Sequence[Setting]) -> str:
    """Generate the page."""
    groups = dict.fromkeys(setting.group for setting in settings)
    tables = [
        _table(group, [setting for setting in settings if setting.group == group])
        for group in groups
    ]
    return "\n".join([_INTRODUCTION, *tables, _EXAMPLE])


def _table(group: str, settings: Sequence[Setting]) -> str:
    rows = [
        (f"`{each.flag}`", f"`{each.environment}`", _code(each.default), _cell(each.description))
        for each in settings
    ]
    head = [("flag", "environment", "default", "meaning"), ("---",) * 4]
    lines = [f"| {' | '.join(row)} |" for row in head + rows]
    return "\n".join([f"## {group}", "", *lines, ""])


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
