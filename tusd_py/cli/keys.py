"""`tusd-py keys`: generates a secret for signing tokens."""

from __future__ import annotations

import argparse
import re
import sys

from tusd_py.auth.keys.secrets import new_secret
from tusd_py.settings.commandline import Parser, UsageError

USAGE = "new [--kid NAME]"
ABOUT = """\
Print a new secret, for --jwt-secret-file or TUSD_JWT_SECRET of the server and for the issuer of access tokens.

To rotate secrets without an interruption, give each line of the file a name (--kid). Add the new secret below the old one on \
all servers; then move it above and have the issuer sign with it; remove the old one when the last tokens and \
--upload-token-grace have expired.
"""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def add_arguments(parser: Parser) -> None:
    """Declare the action and the name of the secret."""
    parser.add_argument("action", nargs="?", default="")
    parser.option(
        "--kid", "Name (key id) to print in front of the secret.", section="Output", metavar="NAME"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a secret and return the exit code."""
    if arguments.action != "new":
        raise UsageError("give new")
    kid: str = getattr(arguments, "kid", "")
    if kid and not _NAME.fullmatch(kid):
        raise UsageError("--kid: give at most 64 letters, digits and characters of ._-")
    sys.stdout.write(f"{kid} {new_secret()}\n".lstrip())
    return 0
