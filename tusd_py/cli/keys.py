"""`tusd-py keys`: generates a secret for signing tokens."""

from __future__ import annotations

import re

from tusd_py.auth.keys.secrets import new_secret
from tusd_py.cli.options import Value, action, option, subcommand
from tusd_py.cli.output import write_line

ABOUT = """\
Print a new secret, for --jwt-secret-file or TUSD_JWT_SECRET of the server and for the issuer of access tokens.

To rotate secrets without an interruption, give each line of the file a name (--kid). Add the new secret below the old one on
all servers; then move it above and have the issuer sign with it; remove the old one when the last tokens and
--upload-token-grace have expired.
"""


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError("give at most 64 letters, digits and characters of ._-")
    return text


@subcommand("new [--kid NAME]", ABOUT, settings=None)
@action("new")
@option(
    "--kid",
    "Name (key id) to print in front of the secret.",
    section="Output",
    type=Value("NAME", _name),
)
def command(action: str, kid: str | None) -> int:
    """Print a secret and return the exit code."""
    write_line(f"{kid} {new_secret()}" if kid else new_secret())
    return 0
