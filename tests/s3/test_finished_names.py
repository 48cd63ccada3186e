"""Keys of objects by a template of the operator's (--finished-dir)."""

from __future__ import annotations

from collections.abc import Callable

from tests.conftest import MakeServer
from tests.s3.servers import S3Server
from tests.s3.test_placement import objects
from tests.s3.test_server import Servers
from tests.support.tus import Tus, metadata

__all__ = ["objects"]


def test_in_a_bucket_the_template_gives_the_key(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str, objects: Callable[..., bytes | None]
) -> None:
    servers = Servers(make_server, seaweedfs.endpoint, prefix)
    tus = Tus(servers("--finished-dir", "in/{metadata.study}/{filename}"))
    header = {"Upload-Metadata": metadata(filename="a.txt", study="s/1")}
    # Both are unfinished at first.
    first, second = (tus.new(5, headers=header) for _ in range(2))
    assert tus.patch(second, 0, b"two..").status == 204
    assert tus.patch(first, 0, b"one..").status == 204
    assert objects(f"{prefix}in/s_1/a.txt") == b"one.."
    assert objects(f"{prefix}in/s_1/a (1).txt") == b"two.."
    assert tus.get(second).body == b"two.."
    assert tus.delete(first).status == 204
    assert tus.head(first).status == 410
    assert objects(f"{prefix}in/s_1/a.txt") == b"one.."
    # An object that outlived its upload is not overwritten.
    third = tus.finished(b"three", headers=header)
    assert objects(f"{prefix}in/s_1/a (2).txt") == b"three"
    unfinished = tus.new(5, headers=header)
    assert tus.delete(unfinished).status == 204
    assert tus.get(third).body == b"three"
