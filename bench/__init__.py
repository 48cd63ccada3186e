"""The benchmark: this server beside its peers and beside a bare copy loop, on one machine, in one run.

`python -m bench --help` says what it does. It is no part of what is installed, and needs nothing but Python and Linux; the
peers bring their own needs (see `servers.py`).
"""
