"""`tusd-py check-s3`: what the bucket can do, and what follows for the settings."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from dataclasses import asdict

from tusd_py.cli.options import INSTANCE, option, read_settings, subcommand
from tusd_py.cli.output import CommandFailed, write_json, write_problem, write_row
from tusd_py.settings.model import Settings

ABOUT = """\
Try out what the bucket can do, and say what follows. Give it the same options as the server.

It stores a few objects under the prefixes that are set, 10 MB in all, and removes them again. The exit code is 1 if uploads
cannot work or would not be safe, and 2 if the bucket cannot be used at all.
"""

_S3 = ("s3_bucket", "s3_endpoint", "s3_region")
_WIDTHS = (26, 8, 0)


@subcommand("[options of serve]", ABOUT, settings=(*INSTANCE, *_S3))
@option("--json", "Print a JSON object a line.", section="Output", name="as_json")
def command(as_json: bool) -> int:
    """Print what was found and return the exit code."""
    settings = read_settings().settings
    if not settings.s3_bucket:
        raise CommandFailed("give a bucket: --s3-bucket NAME")
    return asyncio.run(_check(settings, as_json=as_json))


async def _check(settings: Settings, *, as_json: bool) -> int:
    # Need an extra, and load a large library.
    from tusd_py.service.bucket import bucket_of  # noqa: PLC0415
    from tusd_py.storage.s3.layout import Layout  # noqa: PLC0415
    from tusd_py.storage.s3.object_store import ObjectStoreError  # noqa: PLC0415
    from tusd_py.storage.s3.requests import ObjectStore  # noqa: PLC0415
    from tusd_py.storage.s3.trial import Trial  # noqa: PLC0415

    layout = Layout(settings.s3_object_prefix, settings.s3_info_prefix)
    code = 0
    async with ObjectStore(bucket_of(settings)) as objects:
        try:
            # Closed while the client is open, also after an error of the output: the trial then removes its objects.
            async with aclosing(Trial(objects, layout).run()) as trial:
                async for found in trial:
                    if as_json:
                        write_json(asdict(found))
                    else:
                        write_row((found.subject, found.outcome, found.text), _WIDTHS)
                    sys.stdout.flush()
                    code = max(code, int(found.outcome == "problem"))
        except ObjectStoreError as problem:
            write_problem(str(problem))
            return 2
    return code
