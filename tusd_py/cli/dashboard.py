"""`tusd-py dashboard`: prints a one-time link to the operators' page of a running server."""

from __future__ import annotations

import click

from tusd_py.cli.options import Value, option, read_settings, subcommand
from tusd_py.cli.output import CommandFailed, write_line

ABOUT = """\
Print a link to the operators' page of the server that runs with the same options, with --admin. It is good for five minutes and
for one browser. Its secret is behind the "#", which browsers send to no server.

Only a user who may read the state directory can make one. For a server on another machine, run the command there, forward the
port (ssh -L 8081:127.0.0.1:8081 HOST, or ssh -L 8081:/run/admin.sock HOST for a Unix socket), and open the link here.
"""


def _web_address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError('give a URL, such as "https://admin.example.org/"')
    return text.rstrip("/") + "/"


@subcommand("[--url URL] [options of serve]", ABOUT)
@option(
    "--url",
    "Where browsers reach the page, if that is not the server's own address.",
    section="Link",
    type=Value("URL", _web_address),
)
def command(url: str | None) -> int:
    """Print the link and return the exit code."""
    settings = read_settings().settings

    # Imported here, so that a wrong flag is reported without it.
    from tusd_py.web.admin import links  # noqa: PLC0415

    door = links.find(settings.state_dir)
    if door is None:
        raise CommandFailed(
            f"no server with an operators' page runs with the state directory {settings.state_dir} (--upload-dir, "
            "--state-dir); start it with --admin 127.0.0.1:8081"
        )
    place = url or door.url
    if not place:
        raise click.UsageError("the page is part of an application; give its address with --url")
    if place.startswith("unix:"):
        # No browser connects to a socket.
        place = "http://localhost:8081/"
    write_line(f"{place}#{links.make_code(door.key, links.this_user())}")
    return 0
