"""`python -m tusd_py` is the command `tusd-py`."""

from tusd_py.cli import main

raise SystemExit(main())
