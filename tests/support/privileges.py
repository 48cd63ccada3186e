"""File permissions that also apply to a server started as root.

Run as a program: ``python privileges.py COMMAND…`` executes the command as somebody for whom
permission bits count. Takes from root the capabilities to pass them over; for anybody else there is
nothing to take.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

OBEYING_PERMISSIONS = (sys.executable, str(Path(__file__).resolve()))
"""The prefix of a command."""

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2


def main(command: list[str]) -> None:
    """Drop the capabilities and become ``command``."""
    libc = ctypes.CDLL(None)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
