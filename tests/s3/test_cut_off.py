"""A server that cannot reach Redis takes its locks for held; Redis has given them to another server meanwhile."""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path

from tests.conftest import MakeServer
from tests.s3.proxies import FaultProxy
from tests.s3.servers import S3Server
from tests.s3.test_redis_away import new
from tests.s3.test_server import Servers
from tests.support import faults
from tests.support.redis import RedisServer
from tests.support.tus import Tus
from tests.support.waiting import wait_until

PART = 5 * 1024 * 1024
WHOLE = random.Random(9).randbytes(2 * PART + 1000)


def test_a_server_that_is_cut_off_does_not_abort_what_the_next_holder_stored(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str, tmp_path: Path
) -> None:
    """It was about to begin the parts of an upload that another server had before."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path / "redis", tcp=True))
        proxy = stack.enter_context(FaultProxy(seaweedfs.address))
        link = faults.FaultProxy(("127.0.0.1", redis.port))
        lease = ("--lock-lease", "2s", "--redis-timeout", "300ms")
        with link:
            url = redis.url.replace(f":{redis.port}", f":{link.port}")
            a = Tus(Servers(make_server, proxy.endpoint, prefix)("--redis-url", url, *lease))
            b = Tus(
                Servers(make_server, seaweedfs.endpoint, prefix)("--redis-url", redis.url, *lease)
            )
            path = new(b, len(WHOLE))
            hold = stack.enter_context(proxy.hold("ListMultipartUploads", ""))
            running = stack.enter_context(a.begin_patch(path, 0, len(WHOLE), WHOLE[: PART + 10]))
            hold.wait()
        # Its connections to Redis end here, and it gets no new one.
        size = PART + 100

        def takes_over() -> bool:
            return b.patch(path, 0, WHOLE[:size]).status == 204

        wait_until(takes_over, "the end of the lease in Redis")
        listed = proxy.requests["ListMultipartUploads"]
        hold.release()
        running.send(WHOLE[PART + 10 :])
        assert running.response().status != 204
        assert proxy.requests["ListMultipartUploads"] > listed
        assert b.offset(path) == size
        assert b.patch(path, size, WHOLE[size:]).status == 204
        assert b.get(path).body == WHOLE
