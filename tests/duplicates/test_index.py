"""The duplicate index: one of any number of concurrent reservations wins, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from tests.duplicates.uploads import backdate
from tests.support.redis import RedisServer
from tests.support.waiting import wait_until
from tusd_py.redis import RedisClient, RedisUnavailable
from tusd_py.redis.duplicate_index import CAPACITY, Claim, DuplicateIndex, Record

PRINT = "5" * 64
OTHER = "6" * 64
LASTS = 1000.0

_tokens = itertools.count()


def claim(upload: str, *, owner: str = "", is_final: bool = False) -> Claim:
    return Claim(upload, owner, is_final, f"token-{next(_tokens)}")


def told(records: list[Record]) -> list[tuple[str, str]]:
    return [(record.claim.upload, record.state) for record in records]


async def test_the_first_gets_it_and_the_others_are_told_who(index: DuplicateIndex) -> None:
    first = claim("a", owner="me", is_final=True)
    assert await index.reserve(PRINT, first, lasts=LASTS) is None
    holder = await index.reserve(PRINT, claim("b"), lasts=LASTS)
    assert holder is not None
    assert holder.record.claim == first
    assert holder.record.state == "pending"
    assert holder.record.completed is None
    assert 0 <= holder.age < 100
    assert await index.reserve(OTHER, claim("c"), lasts=LASTS) is None


async def test_of_many_at_once_one_gets_it(index: DuplicateIndex) -> None:
    asked = [index.reserve(PRINT, claim(f"u{n}"), lasts=LASTS) for n in range(200)]
    answers = await asyncio.gather(*asked)
    assert answers.count(None) == 1
    winners = {answer.record.claim.upload for answer in answers if answer is not None}
    assert winners == {f"u{answers.index(None)}"}


async def test_times_are_those_of_the_server(index: DuplicateIndex) -> None:
    before = time.time() - 0.01
    mine = claim("a")
    await index.reserve(PRINT, mine, lasts=LASTS)
    await index.complete(PRINT, mine, lasts=5 * LASTS)
    [record] = await index.records(PRINT)
    assert before <= record.created <= (record.completed or 0) <= time.time() + 0.01
    assert record.expires == pytest.approx((record.completed or 0) + 5 * LASTS)


async def test_a_reservation_ends_by_itself(index: DuplicateIndex, redis: RedisServer) -> None:
    await index.reserve(OTHER, claim("a"), lasts=LASTS)
    left = int(str(redis.command("PTTL", f"tusd:duplicate:{{{OTHER}}}")))
    assert (LASTS - 100) * 1000 < left <= LASTS * 1000
    await index.reserve(PRINT, claim("a"), lasts=0.05)
    key = f"tusd:duplicate:{{{PRINT}}}"
    wait_until(lambda: redis.command("EXISTS", key) == 0, "the reservation's end")
    assert await index.records(PRINT) == []
    assert await index.reserve(PRINT, claim("b"), lasts=LASTS) is None


async def test_of_several_each_ends_by_itself(index: DuplicateIndex) -> None:
    await index.complete(PRINT, claim("a"), lasts=LASTS)
    await index.reserve(PRINT, claim("b"), lasts=0.05, force=True)
    async with asyncio.timeout(60):
        while (holder := await index.reserve(PRINT, claim("c"), lasts=LASTS)) is None or (
            holder.record.claim.upload == "b"
        ):
            assert holder is not None
    assert holder.record.claim.upload == "a"
    assert told(await index.records(PRINT)) == [("a", "complete")]


async def test_what_is_complete_lasts_from_its_first_completion(
    index: DuplicateIndex, redis: RedisServer
) -> None:
    mine = claim("a")
    await index.reserve(PRINT, mine, lasts=LASTS)
    await index.complete(PRINT, mine, lasts=5 * LASTS)
    [first] = await index.records(PRINT)
    await index.complete(PRINT, claim("a"), lasts=50 * LASTS)
    assert await index.records(PRINT) == [first]
    seconds = int(str(redis.command("TTL", f"tusd:duplicate:{{{PRINT}}}")))
    assert LASTS < seconds <= 5 * LASTS


async def test_an_upload_that_never_reserved_is_complete_beside_the_others(
    index: DuplicateIndex,
) -> None:
    await index.complete(PRINT, claim("a"), lasts=LASTS)
    await index.complete(PRINT, claim("b"), lasts=LASTS)
    assert told(await index.records(PRINT)) == [("a", "complete"), ("b", "complete")]


async def test_whoever_insists_has_it_too_and_last(index: DuplicateIndex) -> None:
    await index.complete(PRINT, claim("a"), lasts=LASTS)
    forced = claim("b")
    assert await index.reserve(PRINT, forced, lasts=LASTS, force=True) is None
    holder = await index.reserve(PRINT, claim("c"), lasts=LASTS)
    assert holder is not None
    assert holder.record.claim == forced
    assert told(await index.records(PRINT)) == [("a", "complete"), ("b", "pending")]


async def test_releasing_removes_ones_own_and_nothing_else(index: DuplicateIndex) -> None:
    await index.complete(PRINT, claim("a"), lasts=LASTS)
    await index.reserve(PRINT, claim("b"), lasts=LASTS, force=True)
    assert not await index.release(PRINT, "c")
    assert await index.release(PRINT, "b")
    assert told(await index.records(PRINT)) == [("a", "complete")]
    assert await index.release(PRINT, "a")
    assert await index.records(PRINT) == []


async def test_an_attempt_that_failed_does_not_release_the_upload_that_has_its_id(
    index: DuplicateIndex, redis: RedisServer
) -> None:
    await index.complete(PRINT, claim("a"), lasts=LASTS)
    again = claim("a")
    await index.reserve(PRINT, again, lasts=LASTS, force=True)
    assert await index.release(PRINT, "a", token=again.token)
    assert told(await index.records(PRINT)) == [("a", "complete")]


async def test_the_last_release_leaves_no_key(index: DuplicateIndex, redis: RedisServer) -> None:
    await index.reserve(PRINT, claim("a"), lasts=LASTS)
    await index.release(PRINT, "a")
    assert redis.command("EXISTS", f"tusd:duplicate:{{{PRINT}}}") == 0


async def test_what_is_gone_is_taken_over_only_by_who_saw_it(index: DuplicateIndex) -> None:
    gone = claim("a")
    await index.reserve(PRINT, gone, lasts=LASTS)
    seen = await index.records(PRINT)
    taker, late = claim("b"), claim("c")
    assert await index.reserve(PRINT, taker, lasts=LASTS, gone=seen) is None
    holder = await index.reserve(PRINT, late, lasts=LASTS, gone=seen)
    assert holder is not None
    assert holder.record.claim == taker
    assert told(await index.records(PRINT)) == [("b", "pending")]


async def test_what_was_completed_in_between_is_not_taken_over(index: DuplicateIndex) -> None:
    mine = claim("a")
    await index.reserve(PRINT, mine, lasts=LASTS)
    seen = await index.records(PRINT)
    await index.complete(PRINT, mine, lasts=LASTS)
    holder = await index.reserve(PRINT, claim("b"), lasts=LASTS, gone=seen)
    assert holder is not None
    assert holder.record.state == "complete"


async def test_what_was_confirmed_in_between_is_not_taken_over(
    index: DuplicateIndex, redis: RedisServer
) -> None:
    mine = claim("a")
    await index.reserve(PRINT, mine, lasts=LASTS)
    backdate(redis, 20)
    seen = await index.records(PRINT)
    assert await index.confirm(PRINT, mine)
    holder = await index.reserve(PRINT, claim("b"), lasts=LASTS, gone=seen)
    assert holder is not None
    assert holder.record.claim == mine
    assert holder.age < 20
    assert await index.reserve(PRINT, claim("b"), lasts=LASTS, gone=[holder.record]) is None
    assert not await index.confirm(PRINT, mine)
    assert told(await index.records(PRINT)) == [("b", "pending")]


async def test_behind_what_is_gone_the_next_is_found(index: DuplicateIndex) -> None:
    await index.complete(PRINT, claim("a"), lasts=LASTS)
    gone = claim("b")
    await index.reserve(PRINT, gone, lasts=LASTS, force=True)
    _, seen = await index.records(PRINT)
    holder = await index.reserve(PRINT, claim("c"), lasts=LASTS, gone=[seen])
    assert holder is not None
    assert holder.record.claim.upload == "a"


async def test_what_is_passed_stays_and_is_not_in_the_way(index: DuplicateIndex) -> None:
    one, two = claim("a"), claim("b")
    await index.reserve(PRINT, one, lasts=LASTS)
    assert await index.reserve(PRINT, two, lasts=LASTS, passed={one.token}) is None
    assert told(await index.records(PRINT)) == [("a", "pending"), ("b", "pending")]


async def test_an_upload_that_is_ending_is_pending_again(index: DuplicateIndex) -> None:
    mine = claim("a")
    await index.complete(PRINT, mine, lasts=LASTS)
    await index.end(PRINT, "a")
    await index.end(PRINT, "b")
    assert told(await index.records(PRINT)) == [("a", "ending")]
    seen = await index.records(PRINT)
    assert await index.reserve(PRINT, claim("c"), lasts=LASTS, gone=seen) is None
    assert told(await index.records(PRINT)) == [("c", "pending")]


async def test_the_list_has_an_end_and_keeps_what_is_complete(index: DuplicateIndex) -> None:
    await index.complete(PRINT, claim("first"), lasts=LASTS)
    for number in range(3 * CAPACITY):
        await index.reserve(PRINT, claim(f"u{number}"), lasts=LASTS, force=True)
    records = told(await index.records(PRINT))
    assert len(records) == CAPACITY
    assert records[0] == ("first", "complete")
    assert records[-1] == (f"u{3 * CAPACITY - 1}", "pending")


async def test_odd_text_comes_back_as_it_was(index: DuplicateIndex) -> None:
    odd = Claim('2026/ä "x" \\', "nobody \ud800 \u2028 胸\0", False, "t")
    await index.reserve(PRINT, odd, lasts=LASTS)
    holder = await index.reserve(PRINT, claim("b"), lasts=LASTS)
    assert holder is not None
    assert holder.record.claim == odd


async def test_a_scan_finds_all_of_this_prefix_and_nothing_else(
    redis_client: RedisClient, redis: RedisServer
) -> None:
    odd = RedisClient(redis.url, prefix="a[b]*?:", timeout=20)
    await odd.start()
    other = DuplicateIndex(odd)
    index = DuplicateIndex(redis_client)
    expected = {f"{number:064x}": f"u{number}" for number in range(1200)}
    await asyncio.gather(
        *(index.reserve(name, claim(upload), lasts=LASTS) for name, upload in expected.items())
    )
    await other.reserve(PRINT, claim("other"), lasts=LASTS)
    redis.command("SET", "tusd:lock:{x}", "1")
    found = [pair async for pair in index.scan()]
    assert {name: record.claim.upload for name, [record] in found} == expected
    assert [(name, told(records)) async for name, records in other.scan()] == [
        (PRINT, [("other", "pending")])
    ]
    await odd.stop()


async def test_each_change_is_one_script(index: DuplicateIndex, redis: RedisServer) -> None:
    mine = claim("a")
    steps = (
        lambda: index.reserve(PRINT, mine, lasts=LASTS),
        lambda: index.complete(PRINT, mine, lasts=LASTS),
        lambda: index.end(PRINT, "a"),
        lambda: index.release(PRINT, "a"),
    )
    for step in steps:
        await step()  # Redis has the script by now
    for step in steps:
        with redis.monitor() as seen:
            await step()
        assert [command.split()[0] for command in seen] == ["EVALSHA"]


async def test_a_redis_that_is_away_is_said_so(tmp_path: Path) -> None:
    redis_client = RedisClient(f"unix://{tmp_path}/none.sock")
    await redis_client.start()
    index = DuplicateIndex(redis_client)
    for step in (
        index.reserve(PRINT, claim("a"), lasts=LASTS),
        index.complete(PRINT, claim("a"), lasts=LASTS),
        index.end(PRINT, "a"),
        index.release(PRINT, "a"),
        index.records(PRINT),
    ):
        with pytest.raises(RedisUnavailable):
            await step
    await redis_client.stop()


async def test_a_value_that_somebody_else_wrote_is_an_error_and_stays(
    index: DuplicateIndex, redis: RedisServer
) -> None:
    key = f"tusd:duplicate:{{{PRINT}}}"
    redis.command("SET", key, "nonsense")
    with pytest.raises(RedisUnavailable):
        await index.reserve(PRINT, claim("a"), lasts=LASTS)
    assert redis.command("GET", key) == b"nonsense"
