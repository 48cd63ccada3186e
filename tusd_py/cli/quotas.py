"""`tusd-py quotas`: prints how many bytes the uploads of each owner take."""

from __future__ import annotations

import asyncio

from tusd_py.auth.byte_quota import ByteQuotas, Reserved
from tusd_py.cli.instance import instance_redis
from tusd_py.cli.options import option, quiet_settings, subcommand
from tusd_py.cli.output import Listing, format_bytes, format_share, printable, write_problem
from tusd_py.service.backends import connected_redis
from tusd_py.settings.model import Settings

ABOUT = """\
Print the owners of uploads with the bytes that these take, the most first, where there are quotas (--quota-bytes, or tokens or
hooks with a quota). Unfinished uploads count with their length. Give it the same options as the server.
"""

_COLUMNS = {"OWNER": 32, "UPLOADS": 8, "BYTES": 10, "QUOTA": 10, "USED": 5}


@subcommand(
    "[--json] [options of serve]",
    ABOUT,
    settings=("config", "upload_dir", "redis_url", "quota_bytes"),
)
@option("--json", "Print one JSON object per line.", section="Output", name="as_json")
def command(as_json: bool) -> int:
    """Print the owners and return the exit code."""
    settings = quiet_settings("error")
    with instance_redis(settings) as url:
        owners, is_whole = asyncio.run(_owners(settings, url))
    quota = settings.quota_bytes
    listing: Listing[Reserved] = Listing(
        _COLUMNS,
        cells=lambda each: (
            printable(each.owner) or "-",
            str(each.uploads),
            format_bytes(each.bytes),
            format_bytes(quota) if quota else "-",
            format_share(each.bytes, quota) if quota else "-",
        ),
        document=lambda each: {
            "owner": each.owner,
            "uploads": each.uploads,
            "bytes": each.bytes,
            "quota": quota or None,
        },
        as_json=as_json,
    )
    for owner in owners:
        listing.write(owner)
    if not is_whole:
        write_problem("the bytes are being counted; some uploads may be missing")
    return 0


async def _owners(settings: Settings, url: str) -> tuple[list[Reserved], bool]:
    async with connected_redis(settings, url) as redis:
        quotas = ByteQuotas(redis, limit=0)
        is_whole = await quotas.want()
        return await quotas.owners(), is_whole
