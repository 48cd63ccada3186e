"""What a test needs of the machine: a developer's machine may lack it, CI may not."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian has servers; the PATH of many users lacks it."""


def refuse(reason: str) -> NoReturn:
    """Skips the test that asks; fails it where CI is set, as nobody reads there that a test was skipped."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def require_program(name: str, package: str = "") -> str:
    """The path of a program. package: of Debian and Ubuntu, where its name is another one."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:{_SYSTEM}")
    if found is None:
        refuse(f"{name} is missing (Debian, Ubuntu: apt install {package or name})")
    return found
