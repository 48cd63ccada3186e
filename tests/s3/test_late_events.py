"""Events that a bucket stores late, after their server has lost the lock or got no response: none is delivered falsely."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hooks.endpoint import Endpoint
from tests.s3.conftest import Opened, shared
from tests.s3.contents import Contents
from tests.s3.proxies import Answer, Exchange, FaultProxy, HttpProxy, error
from tests.s3.servers import BUCKET, ENVIRONMENT, S3Server
from tests.s3.test_races import Lease, before_put
from tests.s3.test_store import created, finished
from tests.support.forked import ForkedServer
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.store import append
from tests.support.tus import Tus, id_of
from tests.support.waiting import wait_until
from tusd_py.locks.base import UNFENCED, LeaseLost
from tusd_py.storage.base import Removed, StorageError, UploadGone
from tusd_py.storage.s3.object_store import ObjectKind, Properties
from tusd_py.storage.s3.store import S3Store

SLOW = 60.0


class Servers:
    """Servers of one prefix, each with a way of its own to the bucket, and a worker for their events."""

    def __init__(
        self, directory: Path, prefix: str, redis: RedisServer, endpoint: Endpoint
    ) -> None:
        self.contents = Contents(shared("seaweedfs"), prefix)
        self.endpoint = endpoint
        self._directory = directory
        self._flags = (
            *("--s3-bucket", BUCKET, "--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
            *("--redis-url", redis.url, "--lock-lease", "2s", "--redis-timeout", "10s"),
            *("--hooks-http", endpoint.url, "--hooks-http-retry", "1"),
            *("--hooks-enabled-events", "post-create,post-finish,post-terminate"),
        )
        self._running: list[ForkedServer] = []
        self._jobs: list[Job] = []

    def serve(self, name: str, bucket: str, *flags: str) -> ForkedServer:
        """A server. bucket: the URL at which it finds the bucket."""
        self._running.append(
            ForkedServer(
                self._directory / name,
                *self._flags,
                *("--s3-endpoint", bucket, *flags),
                env=ENVIRONMENT,
            )
        )
        self._running[-1].wait_until_up()
        return self._running[-1]

    def work(self) -> None:
        """Start a worker; it begins with the events that are in the outbox, and delivers those that follow after them."""
        where = ("--upload-dir", str(self._directory / "worker"))
        bucket = ("--s3-endpoint", shared("seaweedfs").endpoint)
        queue = ("--queue", "delivery")
        self._jobs.append(Job("worker", *where, *queue, *self._flags, *bucket, env=ENVIRONMENT))
        self._jobs[-1].wait_for_lines("working")

    def types(self, path: str) -> list[str]:
        """The types of the events of an upload that were delivered."""
        return [call.type for call in self.endpoint.calls if call.upload["ID"] == id_of(path)]

    def close(self) -> None:
        for job in self._jobs:
            job.close()
        for server in self._running:
            server.kill9()


@pytest.fixture
def servers(tmp_path: Path, prefix: str) -> Iterator[Servers]:
    with RedisServer(tmp_path / "redis") as redis, Endpoint() as endpoint:
        servers = Servers(tmp_path, prefix, redis, endpoint)
        try:
            yield servers
        finally:
            servers.close()


@pytest.fixture
def proxy(seaweedfs: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.address) as proxy:
        yield proxy


def barrier(servers: Servers, tus: Tus) -> None:
    """Wait until the worker has met all events that there were before."""
    path = tus.finished(b"later")
    wait_until(lambda: "post-finish" in servers.types(path), "the events of another upload", SLOW)


def test_a_finish_that_is_stored_after_the_removal_is_not_delivered(
    servers: Servers, proxy: FaultProxy
) -> None:
    """Its server stood still after it had checked the lock, and another one has removed the upload."""
    late = servers.serve("late", proxy.endpoint)
    other = servers.serve("other", shared("seaweedfs").endpoint).client()
    path = late.client().new(5)
    event = rf"\.tusd-py/outbox/{id_of(path)}/"

    def finish() -> None:
        with suppress(OSError):
            late.client().patch(path, 0, b"hello")

    with ThreadPoolExecutor(1) as pool:
        with proxy.hold("PutObject", event, late=True) as hold:
            request = pool.submit(finish)
            hold.wait()
            late.stop()
            wait_until(lambda: other.delete(path).status == 204, "the removal", SLOW)
            assert servers.contents.events(id_of(path)) == ["post-create", "post-terminate"]
        stored = lambda: "post-finish" in servers.contents.events(id_of(path))  # noqa: E731
        wait_until(stored, "the event", SLOW)
        servers.work()
        barrier(servers, other)
        late.resume()
        request.result()
    barrier(servers, other)
    assert servers.types(path) == ["post-create", "post-terminate"]


class LosesEvents(HttpProxy):
    """Stores events, and answers that it did not."""

    async def handle(self, exchange: Exchange) -> Answer:
        answer = await self.forward(exchange)
        is_event = exchange.method == "PUT" and ".tusd-py/outbox/" in exchange.key
        return error(500, "InternalError") if is_event else answer


def test_the_event_of_a_creation_that_was_taken_back_is_not_delivered(
    servers: Servers, seaweedfs: S3Server
) -> None:
    with LosesEvents(seaweedfs.address) as proxy:
        failing = servers.serve("failing", proxy.endpoint, "--s3-retry-time", "100ms").client()
        assert failing.create(5).status == 503
        assert proxy.requests_about(".tusd-py/outbox/")["PutObject"] > 0
        assert servers.contents.keys(below=".tusd-py/outbox/") == set()
    other = servers.serve("other", seaweedfs.endpoint).client()
    servers.work()
    barrier(servers, other)
    assert len(servers.endpoint.of("post-create")) == 1


# -- tombstones ----------------------------------------------------------------------------------


async def told(store: S3Store) -> Removed | None:
    """What the tombstone of the upload tells."""
    with pytest.raises(UploadGone) as gone:
        await store.load("x")
    return gone.value.removed


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize("many", [False, True])
async def test_a_tombstone_tells_how_the_upload_was(
    opened: Opened, *, is_finished: bool, many: bool
) -> None:
    store = opened()
    upload = await append(store, await created(store, 5), b"hello")
    if is_finished:
        upload = await finished(store, upload)
    if many:
        fences, ids = {"x": UNFENCED}, {"x": "0a"}
        assert await store.remove_each([upload], fences=fences, event_ids=ids) == [True]
    else:
        await store.remove("x", fence=UNFENCED, event_id="0a")
    assert await told(opened()) == Removed(upload.info.created_at, is_finished, "0a")


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"\xff"])
async def test_a_tombstone_of_the_version_before_tells_nothing(
    opened: Opened, content: bytes
) -> None:
    store = opened()
    key = store.layout.state("gone", "x")
    await store.objects.put(key, content, Properties(), kind=ObjectKind.RECORD)
    assert await told(store) is None


async def test_a_tombstone_that_is_stored_late_does_not_replace_that_of_the_removal(
    opened: Opened,
) -> None:
    """Its server stood still before it stored it, and the upload was finished and then removed by others."""
    late, other, lease = opened(), opened(), Lease()
    await append(late, await created(late, 5), b"hello")

    async def go_on() -> None:
        lease.is_lost = True
        await finished(other, await other.load("x"))
        await other.remove("x", fence=UNFENCED, event_id="0b")

    before_put(late, "gone/x", go_on)
    with pytest.raises(LeaseLost):
        await late.remove("x", fence=lease, event_id="0a")
    removed = await told(opened())
    assert removed is not None
    assert (removed.finished, removed.event_id) == (True, "0b")


async def test_a_tombstone_of_an_interrupted_removal_is_replaced(opened: Opened) -> None:
    store = opened()
    upload = await append(store, await created(store, 5), b"hello")
    delete = store.objects.delete_if

    async def die(key: str, look: object) -> bool:
        raise StorageError("killed")

    store.objects.delete_if = die  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        await store.remove("x", fence=UNFENCED, event_id="0a")
    store.objects.delete_if = delete  # type: ignore[method-assign]
    await finished(store, await store.load("x"))
    await store.remove("x", fence=UNFENCED, event_id="0b")
    assert await told(opened()) == Removed(upload.info.created_at, True, "0b")
