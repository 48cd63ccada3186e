"""Delivery of one upload's events: content, order, repeats, and final failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tusd_py.events import failed, outbox_record
from tusd_py.events.hooks import Hooks
from tusd_py.events.model import DELIVERED, Event, EventType, Reject, RequestView
from tusd_py.events.outbox_record import OutboxRecord, id_of
from tusd_py.events.publisher import EventPublisher
from tusd_py.locks.base import UNFENCED
from tusd_py.storage.base import Removed, Upload, UploadGone, UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_workers.delivery import Delivery, Outcome, RetryPolicy

REQUEST = RequestView("PATCH", "/files/x", "10.0.0.1:1", {"authorization": "hush"}, "http://h/")
CREATE, FINISH = EventType.POST_CREATE, EventType.POST_FINISH
TERMINATE, EXPIRE = EventType.POST_TERMINATE, EventType.POST_EXPIRE


class Hook:
    """Remembers what it is told; `failures`: what is raised next, one a call."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.failures: list[Exception] = []

    async def handle(self, event: Event) -> None:
        self.told.append(event)
        if self.failures:
            raise self.failures.pop(0)

    post_create = post_finish = post_terminate = post_expire = handle

    @property
    def types(self) -> list[tuple[str, int]]:
        return [(event.type.value, event.attempt) for event in self.told]


@dataclass
class Post:
    """A store, what is announced in it, and a worker that delivers it. now: seconds."""

    store: FileStore
    hooks: dict[str, Hook] = field(default_factory=lambda: {"a": Hook()})
    now: float = 1e9

    def __post_init__(self) -> None:
        self.outbox = self.store.outbox
        both = Hooks(self.hooks.values(), delivered=self.hooks)
        self.publisher = EventPublisher(both, self.outbox)
        self.delivery = self.worker(self.hooks)

    def worker(self, hooks: dict[str, Hook]) -> Delivery:
        told = Hooks(hooks.values(), delivered=hooks)
        retries = RetryPolicy(3, 10.0)
        return Delivery(self.store, self.outbox, told, retries, clock=lambda: self.now)

    @property
    def hook(self) -> Hook:
        return self.hooks["a"]

    async def upload(self, upload_id: str = "x", created_at: float = 5.25) -> Upload:
        upload = await self.store.create(UploadInfo(upload_id, 0, created_at=created_at))
        await self.publisher.record(CREATE, upload, REQUEST, UNFENCED)
        return upload

    async def finish(self, upload: Upload) -> Upload:
        finished = upload.with_info(finished_at=6.0)
        await self.publisher.record(FINISH, finished, REQUEST, UNFENCED)
        await self.store.finish(finished.info, sync=False, fence=UNFENCED)
        return finished

    async def remove(self, upload: Upload, event_type: EventType = TERMINATE) -> None:
        fences = {upload.id: UNFENCED}
        await self.publisher.withdraw_stale(upload, UNFENCED)
        assert not await self.publisher.record_removals(event_type, [upload], REQUEST, fences)
        await self.store.remove(upload.id, fence=UNFENCED)

    async def deliver(self, upload_id: str = "x") -> Outcome:
        return await self.delivery.deliver(upload_id, lambda: True)

    async def waiting(self) -> list[str]:
        events = [outbox_record.parse(kept.content) async for kept in self.outbox.every("waiting")]
        return [record.event.type.value for record in events]

    async def failed(self) -> list[OutboxRecord]:
        return [outbox_record.parse(kept.content) async for kept in self.outbox.every("failed")]


@pytest.fixture
def make_post(tmp_path: Path) -> Callable[..., Post]:
    def make(*hooks: str) -> Post:
        store = FileStore(tmp_path / "uploads")
        store.open()
        return Post(store, {name: Hook() for name in hooks or ("a",)})

    return make


@pytest.fixture
def post(make_post: Callable[..., Post]) -> Post:
    return make_post()


async def test_a_life_is_told_in_order_without_secrets(post: Post) -> None:
    await post.remove(await post.finish(await post.upload()))
    assert await post.deliver() == Outcome(None, frozenset())
    assert post.hook.types == [("post-create", 1), ("post-finish", 1), ("post-terminate", 1)]
    assert post.hook.told[1].upload.id == "x"
    assert post.hook.told[1].request.headers == {}
    assert await post.waiting() == []
    assert post.delivery.counts == {"delivered": 3}


async def test_what_fails_is_tried_again_later_and_holds_up_what_comes_after(post: Post) -> None:
    await post.finish(await post.upload())
    post.hook.failures = [ValueError("no"), Reject(503, "busy")]
    first = (await post.deliver()).next
    assert first is not None
    assert 8 <= first - post.now <= 12
    assert post.hook.types == [("post-create", 1)]
    # Too early: nothing is done.
    assert (await post.deliver()).next == first
    post.now = first
    second = (await post.deliver()).next
    assert second is not None
    assert 24 <= second - post.now <= 36
    post.now = second
    assert (await post.deliver()).next is None
    assert post.hook.types == [*(("post-create", n) for n in (1, 2, 3)), ("post-finish", 1)]
    assert len({event.id for event in post.hook.told[:3]}) == 1


async def test_an_event_does_not_wait_for_a_time_of_a_clock_that_was_set_back(post: Post) -> None:
    await post.upload()
    post.hook.failures = [ValueError("no")]
    post.now += 9 * 86_400
    assert (await post.deliver()).next is not None
    post.now -= 9 * 86_400
    assert (await post.deliver()).next is None
    assert post.hook.types == [("post-create", 1), ("post-create", 2)]


async def test_what_fails_too_often_is_given_up_and_the_next_one_told(post: Post) -> None:
    await post.finish(await post.upload())
    post.hook.failures = [ValueError("no")] * 3
    while (later := (await post.deliver()).next) is not None:
        post.now = later
    assert post.hook.types == [*(("post-create", n) for n in (1, 2, 3)), ("post-finish", 1)]
    [failed] = await post.failed()
    assert (failed.event.type, failed.attempts, failed.hooks) == (CREATE, 3, ("a",))
    assert "ValueError('no')" in failed.problem
    assert post.delivery.counts == {"failed": 3, "given up": 1, "delivered": 1}


async def test_an_attempt_in_which_a_worker_dies_counts(post: Post) -> None:
    await post.upload()

    class Death(BaseException):
        pass

    post.hook.failures = [Death()] * 3  # type: ignore[list-item]
    for _ in range(3):
        with pytest.raises(Death):
            await post.deliver()
    assert [attempt for _, attempt in post.hook.types] == [1, 2, 3]
    await post.deliver()
    assert len(post.hook.told) == 3
    [failed] = await post.failed()
    assert failed.problem == "a worker died in it"


async def test_only_the_hook_that_failed_is_told_again(make_post: Callable[..., Post]) -> None:
    post = make_post("a", "b", "c")
    await post.upload()
    post.hooks["b"].failures = [ValueError("no")]
    later = (await post.deliver()).next
    assert later is not None
    post.now = later
    assert (await post.deliver()).next is None
    assert {name: len(hook.told) for name, hook in post.hooks.items()} == {"a": 1, "b": 2, "c": 1}


async def test_a_worker_without_the_hook_gives_nothing_away(post: Post) -> None:
    await post.upload()
    stranger = post.worker({"other": Hook()})
    assert (await stranger.deliver("x", lambda: True)).next is not None
    [record] = [outbox_record.parse(kept.content) for kept in await post.outbox.of("x")]
    assert (record.hooks, record.attempts) == (("a",), 1)
    assert "same options" in record.problem


async def test_a_finish_that_did_not_come_about_is_not_told(post: Post) -> None:
    upload = await post.upload()
    finished = upload.with_info(finished_at=6.0)
    # The server is killed between the two.
    await post.publisher.record(FINISH, finished, REQUEST, UNFENCED)
    outcome = await post.deliver()
    assert post.hook.types == [("post-create", 1)]
    assert outcome.next is None
    assert not await post.delivery.has_news("x", outcome.passed_over)
    [record] = await post.outbox.of("x")
    # It comes about later, with the same id.
    await post.finish(upload)
    assert await post.waiting() == ["post-finish"]
    await post.deliver()
    assert [event.id for event in post.hook.told[1:]] == [record.event_id]


async def test_a_creation_is_told_also_where_nothing_is_left_of_its_upload(post: Post) -> None:
    upload = await post.upload()
    await post.store.remove(upload.id, fence=UNFENCED, keep_tombstone=False)
    outcome = await post.deliver()
    assert (post.hook.types, len(outcome.passed_over)) == ([("post-create", 1)], 0)
    # Its id is used again.
    await post.upload(created_at=7.5)
    await post.deliver()
    assert post.hook.types == [("post-create", 1)] * 2
    assert await post.waiting() == []


@pytest.mark.parametrize("has_tombstone", [True, False])
async def test_a_creation_is_told_after_the_removal(post: Post, *, has_tombstone: bool) -> None:
    upload = await post.upload()
    fences = {upload.id: UNFENCED}
    if not has_tombstone:
        await post.publisher.record_removals(TERMINATE, [upload], REQUEST, fences)
    await post.store.remove(upload.id, fence=UNFENCED, keep_tombstone=has_tombstone)
    await post.deliver()
    assert post.hook.types[0] == ("post-create", 1)
    assert await post.waiting() == []


@pytest.mark.parametrize("is_replayed", [True, False])
async def test_what_was_told_once_needs_no_other_trace(post: Post, *, is_replayed: bool) -> None:
    """Its upload goes between two attempts, or before an operator has it told again."""
    upload = await post.upload()
    post.hook.failures = [ValueError("no")] * (3 if is_replayed else 1)
    while (later := (await post.deliver()).next) is not None and post.hook.failures:
        post.now = later
    await post.store.remove(upload.id, fence=UNFENCED, keep_tombstone=False)
    if is_replayed:
        [kept] = [kept async for kept in post.outbox.every("failed")]
        await failed.replay(post.outbox, kept)
    post.now += 1000
    await post.deliver()
    assert post.hook.types[-1] == ("post-create", 1 if is_replayed else 2)
    assert await post.waiting() == []


def gone(post: Post, removed: Removed | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store tells this of a removed upload."""

    async def load(_upload_id: str) -> Upload:
        raise UploadGone("it was removed", removed)

    monkeypatch.setattr(post.store, "load", load)


@pytest.mark.parametrize(
    ("removed", "told"),
    [
        (None, [CREATE, FINISH, TERMINATE, EXPIRE]),
        (Removed(7.5, False, "0a"), [CREATE, FINISH, TERMINATE, EXPIRE]),
        (Removed(5.25, False, "terminate"), [CREATE, TERMINATE]),
        (Removed(5.25, True, "expire"), [CREATE, FINISH, EXPIRE]),
        (Removed(5.25, True, ""), [CREATE, FINISH, TERMINATE, EXPIRE]),
    ],
    ids=["nothing", "another upload", "terminated", "expired", "by the operator"],
)
@pytest.mark.parametrize("event_type", [CREATE, FINISH, TERMINATE, EXPIRE])
async def test_a_tombstone_tells_what_has_happened(
    post: Post,
    monkeypatch: pytest.MonkeyPatch,
    removed: Removed | None,
    told: list[EventType],
    event_type: EventType,
) -> None:
    """An event that is stored late, after the removal, is alone in the outbox."""
    info = UploadInfo("x", 0, created_at=5.25)
    await post.publisher.record(event_type, Upload(info, 0, 5.25), REQUEST, UNFENCED)
    ids = {"terminate": id_of(TERMINATE, info), "expire": id_of(EXPIRE, info)}
    if removed is not None:
        removed = replace(removed, event_id=ids.get(removed.event_id, removed.event_id))
    gone(post, removed, monkeypatch)
    outcome = await post.deliver()
    assert [event.type for event in post.hook.told] == ([event_type] if event_type in told else [])
    assert len(outcome.passed_over) == (event_type not in told)


@pytest.mark.parametrize("event_type", [TERMINATE, EXPIRE])
async def test_a_finish_that_never_came_about_goes_with_the_upload(
    post: Post, event_type: EventType
) -> None:
    upload = await post.upload()
    await post.publisher.record(FINISH, upload, REQUEST, UNFENCED)
    await post.remove(upload, event_type)
    await post.deliver()
    assert [kind for kind, _ in post.hook.types] == ["post-create", event_type.value]
    assert await post.waiting() == []


async def test_a_removal_that_did_not_come_about_is_not_told(post: Post) -> None:
    upload = await post.upload()
    await post.publisher.record(TERMINATE, upload, REQUEST, UNFENCED)
    finished = await post.finish(upload)
    await post.deliver()
    assert post.hook.types == [("post-create", 1), ("post-finish", 1)]
    # It goes another way in the end: only that is told.
    await post.remove(finished, EXPIRE)
    await post.deliver()
    assert post.hook.types[2:] == [("post-expire", 1)]


async def test_what_has_not_happened_stays_however_long_that_takes(post: Post) -> None:
    """A worker has no locks: whoever recorded it may be about to make it happen."""
    upload = await post.upload()
    finished = upload.with_info(finished_at=6.0)
    await post.publisher.record(FINISH, finished, REQUEST, UNFENCED)
    [_, kept] = await post.outbox.of("x")
    post.now = kept.kept_at + 10 * 86_400
    assert await post.deliver() == Outcome(None, frozenset({kept.event_id}))
    await post.store.finish(finished.info, sync=False, fence=UNFENCED)
    await post.deliver()
    assert post.hook.types == [("post-create", 1), ("post-finish", 1)]


async def test_an_id_that_is_used_again_is_another_upload(post: Post) -> None:
    first = await post.upload(created_at=5.25)
    await post.remove(await post.finish(first))
    await post.upload(created_at=7.5)
    await post.deliver()
    assert [kind for kind, _ in post.hook.types] == [
        "post-create",
        "post-finish",
        "post-terminate",
        "post-create",
    ]
    assert len({event.id for event in post.hook.told}) == 4


async def test_what_was_withdrawn_while_it_was_looked_at_is_not_told(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await post.upload()
    await post.deliver()
    await post.publisher.record(FINISH, upload, REQUEST, UNFENCED)
    load = post.store.load

    async def load_later(upload_id: str) -> Upload:
        """The upload is removed after the outbox was read and before the upload is looked at."""
        monkeypatch.setattr(post.store, "load", load)
        await post.remove(upload)
        return await load(upload_id)

    monkeypatch.setattr(post.store, "load", load_later)
    outcome = await post.deliver()
    assert [kind for kind, _ in post.hook.types] == ["post-create"]
    assert await post.delivery.has_news("x", outcome.passed_over)


async def test_what_cannot_be_read_is_given_up(post: Post) -> None:
    upload = await post.upload()
    await post.outbox.keep("x", "0a", b"{", fence=UNFENCED)
    await post.finish(upload)
    assert (await post.deliver()).next is None
    assert post.hook.types == [("post-create", 1), ("post-finish", 1)]
    [failed] = [kept async for kept in post.outbox.every("failed")]
    assert (failed.event_id, failed.content) == ("0a", b"{")


async def test_what_a_power_cut_left_empty_was_never_there(post: Post) -> None:
    await post.upload()
    await post.outbox.keep("x", "0a", b"", fence=UNFENCED)
    outcome = await post.deliver()
    assert outcome == Outcome(None, frozenset(("0a",)))
    counts = await post.outbox.counts()
    assert (counts.waiting, counts.failed) == (1, 0)


async def test_without_the_turn_nothing_more_is_told(post: Post) -> None:
    await post.finish(await post.upload())
    answers = iter([True, False])
    outcome = await post.delivery.deliver("x", lambda: next(answers))
    assert post.hook.types == [("post-create", 1)]
    assert outcome.next is not None
    assert await post.waiting() == ["post-finish"]


async def test_nothing_is_kept_that_nobody_wants(tmp_path: Path) -> None:
    class Listener:
        def post_finish(self, event: Event) -> None: ...

        def wants_event(self, event_type: EventType) -> bool:
            return self.wants

        wants = True

    listener = Listener()
    store = FileStore(tmp_path / "uploads")
    store.open()
    publisher = EventPublisher(Hooks([listener], delivered={"a": listener}), store.outbox)
    upload = await store.create(UploadInfo("x", 0, created_at=1.0))
    for event_type in DELIVERED - {FINISH}:
        await publisher.record(event_type, upload, REQUEST, UNFENCED)
    listener.wants = False
    await publisher.record(FINISH, upload, REQUEST, UNFENCED)
    assert not Path(store.root, ".tusd-py", "outbox").exists()
    listener.wants = True
    await publisher.record(FINISH, upload, REQUEST, UNFENCED)
    assert len(await store.outbox.of("x")) == 1


def test_pauses_grow_threefold_to_an_hour_and_differ() -> None:
    retries = RetryPolicy(10, 10.0)
    for attempts in range(1, 100):
        pauses = {retries.pause(attempts) for _ in range(20)}
        expected = min(10.0 * 3 ** min(attempts - 1, 20), 3600.0)
        assert len(pauses) > 1
        assert all(0.8 * expected <= pause <= 1.2 * expected for pause in pauses)
    assert RetryPolicy(10, 7200.0).pause(1) > 3600
    assert replace(retries, first=0.001).pause(1) < 0.01
