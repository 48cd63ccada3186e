"""The contract of every store that joins uploads."""

from __future__ import annotations

import pytest

from tests.contracts.places import Place
from tests.support.store import append, content_of
from tusd_py.locks.base import UNFENCED, HeldFence, LeaseLost
from tusd_py.storage.base import Joiner, Store, Upload, UploadInfo, UploadNotFound

CREATED = 1_700_000_000.0


def lost() -> HeldFence:
    """The fence of a lock that was lost."""
    return HeldFence(lambda: False)


async def part(store: Store, name: str, data: bytes) -> Upload:
    info = UploadInfo(name, len(data), is_partial=True, created_at=CREATED)
    upload = await append(store, await store.create(info), data)
    await store.finish(upload.info._replace(finished_at=CREATED), sync=True, fence=UNFENCED)
    return await store.load(name)


async def final(store: Store, *parts: Upload) -> UploadInfo:
    """A final whose length is recorded, as before a join."""
    info = UploadInfo(
        "f",
        sum(each.offset for each in parts),
        is_final=True,
        parts=tuple(each.id for each in parts),
        created_at=CREATED,
    )
    return (await store.create(info)).info


async def test_a_final_has_the_bytes_of_its_parts_in_order(
    store: Store, joiner: Joiner, other: Store
) -> None:
    large = bytes(range(256)) * 4096
    a, b = await part(store, "a", b"first"), await part(store, "2026/b", large)
    empty = await part(store, "empty", b"")
    info = await final(store, b, a, empty, b, a)
    assert not (await other.load("f")).joined
    await joiner.join(info, [b, a, empty, b, a], fence=UNFENCED)
    found = await other.load("f")
    assert (found.joined, found.complete, found.offset) == (True, True, 2 * (5 + len(large)))
    await other.finish(found.info._replace(finished_at=CREATED), sync=True, fence=UNFENCED)
    whole = large + b"first"
    assert await content_of(other, await other.load("f")) == whole + whole
    assert await content_of(other, await other.load("a")) == b"first"


async def test_a_final_of_nothing_is_empty(store: Store, joiner: Joiner) -> None:
    empty = await part(store, "empty", b"")
    await joiner.join(await final(store, empty), [empty], fence=UNFENCED)
    found = await store.load("f")
    assert (found.complete, found.offset) == (True, 0)


async def test_without_the_lock_nothing_is_joined(
    store: Store, joiner: Joiner, place: Place
) -> None:
    a = await part(store, "a", b"first")
    info = await final(store, a)
    before = place.contents()
    with pytest.raises(LeaseLost):
        await joiner.join(info, [a], fence=lambda: HeldFence(lambda: False))
    assert place.contents() == before


async def test_a_part_that_is_gone_is_not_found(store: Store, joiner: Joiner, place: Place) -> None:
    a, b = await part(store, "a", b"first"), await part(store, "b", b"second")
    info = await final(store, a, b)
    await store.remove("b", fence=UNFENCED)
    before = place.contents()
    with pytest.raises(UploadNotFound):
        await joiner.join(info, [a, b], fence=UNFENCED)
    assert place.contents() == before
    assert not (await store.load("f")).joined


async def test_finals_that_wait_are_found_by_their_parts(
    store: Store, joiner: Joiner, other: Store
) -> None:
    elsewhere = other.joiner
    assert elsewhere is not None
    for name in ("a", "2026/b"):
        await part(store, name, b"x")
    for name in ("f", "2026/f"):
        await store.create(UploadInfo(name, None, is_final=True, parts=("a", "2026/b")))
    assert await elsewhere.finals_awaiting("a") == []
    await joiner.await_parts(["a", "2026/b"], "f")
    await joiner.await_parts(["a"], "2026/f")
    await joiner.await_parts(["a"], "f")
    await store.tidy(tombstone_ttl=0)
    assert sorted(await elsewhere.finals_awaiting("a")) == ["2026/f", "f"]
    assert await elsewhere.finals_awaiting("2026/b") == ["f"]
    await elsewhere.forget_awaiting(["a", "2026/b"], "f")
    await elsewhere.forget_awaiting(["a", "2026/b"], "f")
    assert await joiner.finals_awaiting("a") == ["2026/f"]
    assert await joiner.finals_awaiting("2026/b") == []


async def test_the_final_of_a_request_is_recalled(
    store: Store, joiner: Joiner, other: Store
) -> None:
    elsewhere = other.joiner
    assert elsewhere is not None
    await store.create(UploadInfo("2026/f", None, is_final=True, parts=("a",)))
    key = "0123456789abcdef" * 4
    assert await elsewhere.recall_final(key) is None
    await joiner.remember_final(key, "f", fence=UNFENCED)
    await joiner.remember_final(key, "2026/f", fence=UNFENCED)
    await store.tidy(tombstone_ttl=0)
    assert await elsewhere.recall_final(key) == "2026/f"
    # Another creation's does not count.
    await elsewhere.forget_final(key, "f", fence=UNFENCED)
    assert await joiner.recall_final(key) == "2026/f"
    with pytest.raises(LeaseLost):
        await joiner.remember_final(key, "f", fence=lost)
    with pytest.raises(LeaseLost):
        await elsewhere.forget_final(key, "2026/f", fence=lost)
    assert await joiner.recall_final(key) == "2026/f"
    for _ in range(2):
        await elsewhere.forget_final(key, "2026/f", fence=UNFENCED)
    assert await joiner.recall_final(key) is None
