"""What a test needs of the machine: a developer's machine may lack it, CI may not."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin"
"""With the directories where Debian has servers and tools for disks, which the PATH of many users lacks."""


def refuse(reason: str) -> NoReturn:
    """Skips the calling test; where CI is set fails it, as nobody reads the list of skipped tests there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def require_program(name: str, package: str = "") -> str:
    """The path of a program. package: of Debian and Ubuntu, where its name is another one."""
    found = shutil.which(name, path=PATH)
    if found is None:
        refuse(f"{name} is missing (Debian, Ubuntu: apt install {package or name})")
    return found
