"""Finished uploads are kept for a time and then removed, if the operator configures it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.tus import Tus, id_of, metadata
from tests.workers.commands import command, documents, of
from tests.workers.test_registry import Clock
from tests.workers.test_sweep_command import swept_server
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import Event, RequestView
from tusd_py.locks.memory import MemoryLocks
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import RedisClient
from tusd_py.redis.due_index import DueIndex, DueIndexWriter
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.due_marks import DueMarks
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep import Sweep

DAY = 86_400.0


class House:
    """Uploads with a clock of their own, and a registry. expired: those of which that was told."""

    def __init__(self, directory: Path, registry: DueIndex, policy: UploadPolicy) -> None:
        self.clock = Clock()
        self.registry = registry
        self.writer = DueIndexWriter(registry)
        self.expired: list[str] = []
        self.store = FileStore(directory)
        self.store.open()
        self.policy = policy
        self.uploads = self.ruled(policy)

    def ruled(self, policy: UploadPolicy) -> Uploads:
        return Uploads(
            self.store,
            MemoryLocks(),
            policy=policy,
            hooks=Hooks([self]),
            due_marks=DueMarks(self.writer, names=False),
            clock=self.clock,
        )

    async def post_expire(self, event: Event) -> None:
        self.expired.append(event.upload.id)

    async def new(self, name: str, *, whole: bool = True, **changes: object) -> None:
        """An upload whose last byte came now; finished as the server does it, if it has all of them."""
        info = UploadInfo(id=name, length=2, created_at=self.clock.now, **changes)  # type: ignore[arg-type]
        await self.store.create(info)
        path = Path(self.store.data_path(info))
        path.write_bytes(b"ab" if whole else b"a")
        os.utime(path, (self.clock.now, self.clock.now))
        if whole:
            assert await self.uploads.recover_interrupted(name)

    async def swept_due(self) -> list[str]:
        """The uploads that a sweep of due uploads removes."""
        await self.writer.flush()
        self.expired.clear()
        await Sweep(self.uploads, self.registry).check_due()
        await self.uploads.hooks.drain()
        return sorted(self.expired)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[DueIndex]:
    with RedisServer(tmp_path / "redis") as redis:
        redis_client = RedisClient(redis.url, timeout=30.0)
        await redis_client.start()
        made = DueIndex(redis_client)
        await made.mark_whole(await made.data_mark())
        yield made
        await redis_client.stop()


@pytest.fixture
async def house(tmp_path: Path, registry: DueIndex) -> AsyncIterator[House]:
    made = House(tmp_path / "uploads", registry, UploadPolicy(retain_finished=30 * DAY))
    yield made
    made.store.close()


async def test_time_counts_from_the_finish_and_each_may_have_its_own(house: House) -> None:
    await house.new("usual")
    await house.new("short", retain=DAY)
    await house.new("for-ever", retain=0.0)
    await house.new("part", is_partial=True, retain=DAY)
    house.clock.now += 3 * DAY
    assert await house.swept_due() == ["short"]
    await house.new("later")
    # Parts are of no use by themselves: they expire as what is unfinished does.
    house.clock.now += 5 * DAY
    assert await house.swept_due() == ["part"]
    house.clock.now += 22.5 * DAY
    assert await house.swept_due() == ["usual"]
    house.clock.now += 3 * DAY
    assert await house.swept_due() == ["later"]
    assert [each async for each in house.store.ids()] == ["for-ever"]


async def test_one_whose_time_is_over_is_gone_for_clients_before_the_sweep(house: House) -> None:
    await house.new("a")
    _, reader = await house.uploads.open_download("a", RequestView())
    reader.close()
    house.clock.now += 31 * DAY
    for ask, status in ((house.uploads.inspect, 410), (house.uploads.open_download, 404)):
        with pytest.raises(ProtocolError) as refused:
            await ask("a", RequestView())
        assert refused.value.status == status


async def test_a_retention_that_is_changed_holds_for_what_is_there(house: House) -> None:
    await house.new("a")
    never = house.ruled(UploadPolicy())
    house.clock.now += 40 * DAY
    report = await Sweep(never, house.registry).check_all()
    assert (report.seen, report.expired) == (1, 0)
    assert (await house.registry.counts(house.clock.now)).known == 0
    report = await Sweep(house.uploads, house.registry).check_all()
    assert (report.seen, report.expired) == (1, 1)


async def test_finished_uploads_are_kept_unless_told(house: House) -> None:
    house.uploads = house.ruled(UploadPolicy())
    await house.new("a")
    await house.new("b", retain=DAY)
    house.clock.now += 4000 * DAY
    report = await Sweep(house.uploads, house.registry).check_all()
    assert (report.seen, report.expired) == (2, 1)


def finish_before(server_dir: Path, upload_id: str, seconds: float) -> None:
    """Lets an upload have been finished so long ago."""
    import json

    path = server_dir / f"{upload_id}.info"
    document = json.loads(path.read_text())
    document["TusdPy"]["FinishedAt"] -= seconds
    path.write_text(json.dumps(document))


def test_with_a_server_it_leaves_a_tombstone_and_stays_known_as_a_duplicate(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hook = tmp_path / "mine.py"
    hook.write_text(
        "from tusd_py.events.model import Changes\n"
        "def pre_create(event):\n"
        "    return Changes(retain=0) if b'keep' in event.upload.metadata.values() else None\n"
    )
    server = swept_server(
        *(make_server, tmp_path / "uploads", "--retain-finished", "30d", "--hook", str(hook)),
        env={"TUSD_DUPLICATES": "on"},
    )
    tus = Tus(server)
    study = {"Upload-Metadata": metadata(study="1")}
    path = tus.finished(b"hello", study)
    kept = tus.finished(b"hello", {"Upload-Metadata": metadata(study="keep")})
    head = tus.head(path)
    assert head.status == 200
    assert head.get("upload-expires") is None
    for each in (path, kept):
        finish_before(server.upload_dir, id_of(each), 31 * DAY)
    [listed] = documents("uploads", "show", id_of(path), "--retain-finished", "30d", *of(server))
    assert listed["state"] == "expired"
    done = command("sweep", *of(server))
    assert done.stdout.startswith("2 uploads seen: 1 removed"), done.stderr
    assert not server.data_file(id_of(path)).exists()
    assert tus.head(path).status == 410
    assert tus.get(kept).body == b"hello"
    again = tus.create(5, headers=study)
    assert (again.status, "was finished on" in again.body.decode()) == (409, True)
