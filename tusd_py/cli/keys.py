"""`tusd-py keys`: make a secret for tokens."""

from __future__ import annotations

import argparse
import re
import sys

from tusd_py.auth.keys.secrets import new_secret
from tusd_py.settings.commandline import Parser, UsageError

USAGE = "new [--kid NAME]"
ABOUT = """\
Print a new secret, for --jwt-secret-file or TUSD_JWT_SECRET of the server and for whoever issues access tokens.

To change secrets without a break, give each line of the file a name (--kid). Put the new one below the old one on all \
servers; then above it, and let the issuer sign with it; take the old one away when the last tokens, and \
--upload-token-grace, have run out.
"""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def add_arguments(parser: Parser) -> None:
    """What to do, and the name of the key."""
    parser.add_argument("action", nargs="?", default="")
    parser.option("--kid", "Name of the secret, in front of it.", section="Output", metavar="NAME")


def run(arguments: argparse.Namespace) -> int:
    """Print it; returns the exit code."""
    if arguments.action != "new":
        raise UsageError("give new")
    kid: str = getattr(arguments, "kid", "")
    if kid and not _NAME.fullmatch(kid):
        raise UsageError("--kid: give at most 64 letters, digits and signs of ._-")
    sys.stdout.write(f"{kid} {new_secret()}\n".lstrip())
    return 0
