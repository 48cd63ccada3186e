"""The contract of every outbox: events stay in order until they are delivered or marked as failed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tusd_py.locks.base import UNFENCED
from tusd_py.storage import base
from tusd_py.storage.base import KeptEvent, Outbox, Store

IDS = ("0a1b", "2026/11/scan-1.dcm", "a.000001-b", "ä" * 100)


def ids(events: list[KeptEvent]) -> list[str]:
    return [event.event_id for event in events]


def set_clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """Set the time by which sequences begin."""
    monkeypatch.setattr(base, "time", SimpleNamespace(time=lambda: now))


@pytest.mark.parametrize("upload_id", IDS)
@pytest.mark.parametrize("sync", [False, True])
async def test_events_of_an_upload_are_kept_in_order(
    outbox: Outbox, upload_id: str, sync: bool
) -> None:
    for event_id in ("c0", "a0", "b0"):
        await outbox.keep(upload_id, event_id, event_id.encode(), sync=sync, fence=UNFENCED)
        await outbox.keep(f"{upload_id}x", "d0", b"of another one", fence=UNFENCED)
    found = await outbox.of(upload_id)
    assert ids(found) == ["c0", "a0", "b0"]
    assert [event.content for event in found] == [b"c0", b"a0", b"b0"]
    assert {event.upload_id for event in found} == {upload_id}
    await outbox.forget(found[0])
    await outbox.forget(found[0])
    await outbox.keep(upload_id, "e0", b"", fence=UNFENCED)
    assert ids(await outbox.of(upload_id)) == ["a0", "b0", "e0"]


async def test_one_that_is_kept_again_goes_to_the_end_under_another_name(outbox: Outbox) -> None:
    for event_id in ("a0", "b0"):
        await outbox.keep("x", event_id, b"", fence=UNFENCED)
    before = await outbox.of("x")
    await outbox.keep("x", "a0", b"", fence=UNFENCED)
    found = await outbox.of("x")
    assert ids(found) == ["b0", "a0"]
    assert found[1].sequence == before[1].sequence + 1


async def test_what_a_stalled_process_removes_is_not_the_event_that_was_kept_later(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was about to remove the first one when others did; an hour later the same event is kept again."""
    await outbox.keep("x", "a0", b"1", fence=UNFENCED)
    [first] = await outbox.of("x")
    await outbox.forget(first)
    set_clock(monkeypatch, first.kept_at + 3600)
    await outbox.keep("x", "a0", b"2", fence=UNFENCED)
    await outbox.forget(first)
    assert [event.content for event in await outbox.of("x")] == [b"2"]


async def test_sequences_end_within_their_digits(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, 500_000 * 3400 - 1)
    await outbox.keep("x", "a0", b"1", fence=UNFENCED)
    await outbox.keep("x", "b0", b"2", fence=UNFENCED)
    assert [event.sequence for event in await outbox.of("x")] == [499_999, 500_000]


async def test_events_can_be_made_durable_together(outbox: Outbox) -> None:
    for upload_id in ("a", "2026/b", "c", "d"):
        await outbox.keep(upload_id, "e1", b"{}", fence=UNFENCED)
    await outbox.sync(["a"])
    await outbox.sync(["a", "2026/b", "c", "d", "without events"])
    assert [kept.event_id for kept in await outbox.of("2026/b")] == ["e1"]


async def test_what_is_changed_keeps_its_place_and_its_age(outbox: Outbox) -> None:
    await outbox.keep("x", "a0", b"1", fence=UNFENCED)
    await outbox.keep("x", "b0", b"1", fence=UNFENCED)
    [first, second] = await outbox.of("x")
    await outbox.replace(first, b"2")
    [changed, other] = await outbox.of("x")
    assert (changed.content, changed.kept_at) == (b"2", first.kept_at)
    assert other == second


async def test_what_is_given_up_can_come_back(outbox: Outbox) -> None:
    await outbox.keep("x", "a0", b"1", fence=UNFENCED)
    await outbox.keep("x", "b0", b"1", fence=UNFENCED)
    await outbox.mark_failed((await outbox.of("x"))[0], b"why")
    assert ids(await outbox.of("x")) == ["b0"]
    [failed] = [event async for event in outbox.every("failed")]
    assert (failed.event_id, failed.content) == ("a0", b"why")
    counts = await outbox.counts()
    assert (counts.waiting, counts.failed) == (1, 1)
    await outbox.replay(failed, b"again")
    assert ids(await outbox.of("x")) == ["b0", "a0"]
    assert [event async for event in outbox.every("failed")] == []
    assert (await outbox.counts()).failed == 0


async def test_all_that_waits_is_found(outbox: Outbox) -> None:
    assert (await outbox.counts()).oldest is None
    for upload_id in IDS:
        await outbox.keep(upload_id, "a0", b"1", fence=UNFENCED)
        await outbox.keep(upload_id, "b0", b"2", fence=UNFENCED)
    assert sorted([each async for some in outbox.uploads() for each in some]) == sorted(IDS)
    found = [(event.upload_id, event.event_id) async for event in outbox.every("waiting")]
    assert len(found) == 2 * len(IDS)
    assert all(first[0] == second[0] for first, second in zip(found[::2], found[1::2], strict=True))
    oldest = (await outbox.counts()).oldest
    assert oldest == min([event.kept_at async for event in outbox.every("waiting")])


async def test_another_process_finds_what_is_kept(outbox: Outbox, other: Store) -> None:
    await outbox.keep("x", "a0", b"1", sync=True, fence=UNFENCED)
    await outbox.keep("x", "b0", b"2", sync=True, fence=UNFENCED)
    found = await other.outbox.of("x")
    assert found == await outbox.of("x")
    await other.outbox.forget(found[0])
    assert ids(await outbox.of("x")) == ["b0"]
    assert (await outbox.counts(exact=True)).waiting == 1
