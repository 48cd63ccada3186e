"""A hook file for tests: the server kills itself right before or after it does one thing to a file.

`DIE_AT` in the environment names the method and the moment, such as `FinishedFiles.link:after`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import wraps
from typing import Any

from tusd_py.storage.file import finished, record_writer


def _dying(method: Callable[..., object], moment: str) -> Callable[..., object]:
    @wraps(method)
    def call(*args: Any, **options: Any) -> object:
        if moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        method(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    return call


if where := os.environ.get("DIE_AT"):
    _path, _, _moment = where.partition(":")
    _class, _, _name = _path.partition(".")
    _owner = getattr(finished, _class, None) or getattr(record_writer, _class)
    setattr(_owner, _name, _dying(getattr(_owner, _name), _moment))


def post_create(_event: object) -> None:
    """Nothing: a hook file needs a function."""
