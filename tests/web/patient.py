"""Runs `tusd-py` with slow bodies accumulating in their sockets for an hour, so that only a request takes them earlier."""

from __future__ import annotations

import sys

from tusd_py.cli import main
from tusd_py.web.http import direct_body as transfer

if __name__ == "__main__":
    transfer._GATHER = 3600.0
    # What follows is how it would have been run otherwise: python -m tusd_py serve ...
    sys.exit(main(sys.argv[4:]))
