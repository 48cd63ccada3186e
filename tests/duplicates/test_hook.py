"""The duplicate hook: refusals, offers to resume, and its memory through all events of an upload."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from tests.duplicates.uploads import LENGTH, STUDY, House, backdate, eventually, problem, remembered
from tests.support.redis import RedisServer
from tusd_hooks.duplicates import Duplicates
from tusd_py.events.model import Event, EventType, Progress, Reject
from tusd_py.redis import RedisClient
from tusd_py.settings.model import Settings

DAY = 86_400.0

MakeHouse = Callable[..., Awaitable[House]]


class Impatient(Duplicates):
    """Tells Redis what it missed soon after."""

    retry_interval = 0.05


@pytest.fixture
async def make_house(redis_client: RedisClient) -> AsyncIterator[MakeHouse]:
    """`make_house(**settings)`: a started hook. Several share the Redis client, and `there` if it is passed on."""
    async with AsyncExitStack() as houses:

        async def make(*, of: RedisClient | None = None, **settings: object) -> House:
            house = House(Impatient(), of or redis_client, Settings.model_validate(settings))
            await house.start()
            houses.push_async_callback(house.hook.stop)
            return house

        yield make


@pytest.fixture
async def house(make_house: MakeHouse) -> House:
    return await make_house()


async def refused(asking: Awaitable[object]) -> Reject:
    with pytest.raises(Reject) as caught:
        await asking
    return caught.value


# What is a duplicate


async def test_a_finished_upload_is_in_the_way(house: House, redis: RedisServer) -> None:
    first = await house.create()
    await house.finish(first)
    refusal = await refused(house.create())
    assert refusal.status == 409
    told = problem(refusal)
    assert told.pop("detail")
    assert len(str(told.pop("fingerprint"))) == 64
    assert told == {
        "type": "urn:tusd-py:problem:duplicate-upload",
        "title": "Conflict",
        "status": 409,
        "code": "ERR_DUPLICATE_UPLOAD",
        "state": "complete",
        "force": "header Upload-Force: true, or metadata force_upload with the value true",
    }
    assert "Location" not in refusal.headers
    assert first not in refusal.body
    assert house.asked == []
    assert remembered(redis) == [(first, "complete")]


async def test_what_is_new_passes(house: House) -> None:
    await house.create()
    await house.create({"study": b"18", "filename": b"a.dcm"})
    await house.create(length=LENGTH + 1)
    await house.create(owner="somebody")
    await house.create({"Study": b"17", "filename": b"a.dcm"})
    assert house.counters.duplicates == {"new": 5}


async def test_the_order_of_the_metadata_does_not_matter(house: House) -> None:
    await house.create()
    assert (await refused(house.create(dict(sorted(STUDY.items()))))).status == 409


@pytest.mark.parametrize("value", [b"\xff\xfe\0", b"x" * 100_000], ids=["binary", "large"])
async def test_odd_metadata(house: House, value: bytes) -> None:
    await house.create({"study": value})
    assert (await refused(house.create({"study": value}))).status == 409
    await house.create({"study": value + b"x"})


async def test_an_upload_without_metadata_is_not_checked(house: House, redis: RedisServer) -> None:
    with redis.monitor() as seen:
        for _ in range(2):
            upload = await house.create({})
            await house.finish(upload)
            await house.terminate(upload)
            await house.create({"force_upload": b"false"})
    assert seen == []


async def test_parts_are_not_checked_and_their_final_is(house: House) -> None:
    for _ in range(2):
        await house.ask(is_partial=True)
    final = await house.create(is_final=True)
    await house.finish(final)
    assert problem(await refused(house.create(is_final=True)))["state"] == "complete"


async def test_a_final_of_unknown_length_is_remembered_when_it_is_joined(
    house: House, redis: RedisServer
) -> None:
    one = await house.create(length=None, is_final=True)
    two = await house.create(length=None, is_final=True)
    assert remembered(redis) == []
    await house.finish(one)
    assert (await refused(house.create())).status == 409
    await house.finish(two)
    assert sorted(remembered(redis)) == sorted([(one, "complete"), (two, "complete")])


async def test_an_upload_of_deferred_length_is_remembered_when_it_is_finished(
    house: House,
) -> None:
    upload = await house.create(length=None)
    await house.create(length=None)
    await house.finish(upload)
    assert problem(await refused(house.create()))["state"] == "complete"
    await house.terminate(upload)
    await house.create()


async def test_zero_length(house: House) -> None:
    upload = await house.create(length=0)
    await house.finish(upload, length=0)
    assert (await refused(house.create(length=0))).status == 409


async def test_chosen_keys(make_house: MakeHouse) -> None:
    house = await make_house(duplicate_keys=("study",))
    await house.create({"study": b"17", "filename": b"a"})
    assert (await refused(house.create({"study": b"17", "filename": b"b"}))).status == 409
    await house.create({"filename": b"a"})
    await house.create({"filename": b"a"})


async def test_a_fingerprint_of_the_clients_own(make_house: MakeHouse) -> None:
    house = await make_house(duplicate_fingerprint_key="sha256")
    await house.create({"sha256": b"abc", "filename": b"a"})
    assert (await refused(house.create({"sha256": b"abc"}))).status == 409
    await house.create({"sha256": b"abd"})


# What the client is told


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "metadata and length"),
        ({"duplicate_keys": ("study", "series")}, "series, study and length"),
        ({"duplicate_fingerprint_key": "study"}, "study and length"),
    ],
)
async def test_the_refusal_names_what_was_compared(
    make_house: MakeHouse, settings: dict[str, object], said: str
) -> None:
    house = await make_house(**settings)

    async def told(owner: str) -> str:
        return str(problem(await refused(house.create({"study": b"17"}, owner=owner)))["detail"])

    first = await house.create({"study": b"17"}, owner="me")
    await house.create({"study": b"17"})
    assert (await told("")).startswith(f"an upload with the same {said} is being sent")
    assert (await told("me")).startswith(f"an unfinished upload with the same {said} exists; ")
    await house.finish(first)
    assert (await told("me")).startswith(f"an upload with the same {said} was finished on ")


async def test_ones_own_unfinished_upload_is_offered(house: House) -> None:
    first = await house.create(owner="me", upload_id="2026/a b")
    house.there[first] = (40, False)
    refusal = await refused(house.create(owner="me"))
    assert refusal.status == 409
    assert refusal.headers["Location"] == "https://host/files/2026/a%20b"
    assert refusal.headers["Upload-Offset"] == "40"
    told = problem(refusal)
    assert told["state"] == "pending"
    assert (told["location"], told["offset"]) == (refusal.headers["Location"], 40)


async def test_where_nobody_is_authenticated_no_url_is_told(house: House) -> None:
    first = await house.create()
    refusal = await refused(house.create())
    assert problem(refusal)["state"] == "pending"
    assert {"Location", "Upload-Offset"}.isdisjoint(refusal.headers)
    assert first not in refusal.body


async def test_a_wider_scope_tells_no_url_of_others(make_house: MakeHouse) -> None:
    house = await make_house(duplicate_scope="server")
    first = await house.create(owner="me")
    refusal = await refused(house.create(owner="you"))
    assert problem(refusal)["state"] == "pending"
    assert "Location" not in refusal.headers
    assert first not in refusal.body
    assert "Location" in (await refused(house.create(owner="me"))).headers


async def test_a_final_is_not_offered_because_it_takes_no_bytes(house: House) -> None:
    first = await house.create(owner="me", is_final=True)
    house.idle[first] = DAY
    refusal = await refused(house.create(owner="me"))
    assert problem(refusal)["state"] == "pending"
    assert "Location" not in refusal.headers


# The client of an unfinished upload is gone


async def test_while_it_is_being_sent_a_duplicate_is_asked_to_come_later(
    house: House, redis: RedisServer
) -> None:
    first = await house.create()
    house.idle[first] = 3.5
    backdate(redis, 60)
    refusal = await refused(house.create())
    assert (refusal.status, refusal.headers["Retry-After"]) == (409, "2")
    assert "is being sent" in str(problem(refusal)["detail"])


@pytest.mark.parametrize(
    "idle", [6.0, 6 * DAY, -3600.0], ids=["a moment", "days", "clock set back"]
)
async def test_once_its_client_is_gone_it_can_be_uploaded_anew(
    house: House, redis: RedisServer, idle: float
) -> None:
    first = await house.create()
    house.idle[first] = idle
    backdate(redis, abs(idle))
    second = await house.create()
    assert first in house.there
    # From now on the second one has the fingerprint.
    assert problem(await refused(house.create()))["state"] == "pending"
    await house.finish(second)
    assert problem(await refused(house.create()))["state"] == "complete"
    await house.finish(first)
    assert problem(await refused(house.create()))["state"] == "complete"


@pytest.mark.parametrize("idle", [3600.0, -3600.0], ids=["ahead", "behind"])
async def test_one_that_was_just_created_is_in_the_way_whatever_the_clocks_of_servers_say(
    house: House, redis: RedisServer, idle: float
) -> None:
    """The upload was created by another server, whose clock differs."""
    first = await house.create()
    house.idle[first] = idle
    backdate(redis, 2)
    for _ in range(3):
        refusal = await refused(house.create())
        assert (refusal.status, refusal.headers["Retry-After"]) == (409, "3")


@pytest.mark.parametrize("owner", ["", "me"])
async def test_one_that_another_process_receives_is_in_the_way(
    house: House, redis: RedisServer, owner: str
) -> None:
    first = await house.create(owner=owner)
    house.idle[first] = 60.0
    backdate(redis, 60)
    house.held_elsewhere.add(first)
    refusal = await refused(house.create(owner=owner))
    assert (refusal.status, refusal.headers["Retry-After"]) == (409, "5")
    house.held_elsewhere.clear()
    if owner:
        assert "Retry-After" not in (await refused(house.create(owner=owner))).headers
    else:
        await house.create(owner=owner)


async def test_its_owner_is_told_where_to_resume_it_instead(
    house: House, redis: RedisServer
) -> None:
    first = await house.create(owner="me")
    house.idle[first] = DAY
    backdate(redis, DAY)
    refusal = await refused(house.create(owner="me"))
    assert refusal.headers["Location"] == f"https://host/files/{first}"
    assert "Retry-After" not in refusal.headers


async def test_one_of_somebody_else_is_in_nobodys_way_for_long(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    house = await make_house(duplicate_scope="server")
    first = await house.create(owner="me")
    house.idle[first] = 6.0
    backdate(redis, 6)
    await house.create(owner="you")


async def test_how_long_it_counts_as_being_sent_can_be_set(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    house = await make_house(duplicates_pending_grace="1m")
    first = await house.create()
    house.idle[first] = 50.0
    backdate(redis, 61)
    assert int((await refused(house.create())).headers["Retry-After"]) <= 10
    house.idle[first] = 61.0
    await house.create()


async def test_of_many_at_once_one_takes_its_place(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    houses = [await make_house() for _ in range(3)]
    first = await houses[0].create()
    backdate(redis, 60)
    for each in houses:
        each.there = houses[0].there
        each.idle = {first: 60.0}

    async def create(house: House) -> str | None:
        try:
            event = await house.ask()
        except Reject:
            return None
        await asyncio.sleep(0)
        house.there[event.upload.id] = (0, False)
        return event.upload.id

    results = await asyncio.gather(*(create(houses[number % 3]) for number in range(200)))
    assert sum(result is not None for result in results) == 1


# Insisting


@pytest.mark.parametrize("how", ["metadata", "header"])
async def test_force(house: House, redis: RedisServer, how: str) -> None:
    first = await house.create()
    await house.finish(first)
    forced = (
        await house.create({**STUDY, "force_upload": b"true"})
        if how == "metadata"
        else await house.create(header="true")
    )
    assert remembered(redis) == [(first, "complete"), (forced, "pending")]
    assert house.counters.duplicates == {"new": 1, "forced": 1}
    assert problem(await refused(house.create()))["state"] == "pending"
    await house.finish(forced)
    assert remembered(redis) == [(first, "complete"), (forced, "complete")]


async def test_a_forced_upload_that_goes_leaves_the_earlier_one(house: House) -> None:
    first = await house.create()
    await house.finish(first)
    await house.terminate(await house.create(header="true"))
    assert problem(await refused(house.create()))["state"] == "complete"
    await house.terminate(first)
    await house.create()


@pytest.mark.parametrize("how", ["metadata", "header"])
async def test_force_false_changes_nothing(house: House, how: str) -> None:
    metadata = {**STUDY, "force_upload": b"false"} if how == "metadata" else STUDY
    header = "false" if how == "header" else None
    await house.create(metadata, header=header)
    assert (await refused(house.create(metadata, header=header))).status == 409


@pytest.mark.parametrize("word", ["", "TRUE", "yes", "1", "true ", "\xff", "?1"])
async def test_a_force_that_is_neither_true_nor_false(
    house: House, redis: RedisServer, word: str
) -> None:
    asking = (
        house.ask({**STUDY, "force_upload": word.encode("latin-1")}),
        house.ask(header=word),
        house.ask({"force_upload": word.encode("latin-1")}, is_partial=True),
    )
    for each in asking:
        refusal = await refused(each)
        assert refusal.status == 400
        told = problem(refusal)
        assert told["code"] == "ERR_INVALID_FORCE"
        assert "must be true or false" in str(told["detail"])
    assert remembered(redis) == []


# The life of an upload


async def test_termination_and_expiry_release(house: House, redis: RedisServer) -> None:
    await house.terminate(await house.create())
    await house.expire(await house.create())
    upload = await house.create()
    await house.finish(upload)
    await house.terminate(upload)
    assert remembered(redis) == []


async def test_a_creation_that_failed_releases(house: House, redis: RedisServer) -> None:
    event = await house.ask()
    await house.hook.create_failed(event)
    assert remembered(redis) == []


async def test_a_creation_that_failed_does_not_release_the_upload_that_has_its_id(
    house: House, redis: RedisServer
) -> None:
    upload = await house.create(upload_id="study-17")
    await house.finish(upload)
    event = await house.ask(upload_id="study-17", header="true")
    await house.hook.create_failed(event)
    assert remembered(redis) == [("study-17", "complete")]


async def test_a_finish_that_was_not_told_is_told_by_the_end_of_the_retention(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    house = await make_house(duplicate_window=2 * DAY, expire_after=7 * DAY)
    upload = await house.create()
    house.views[upload] = replace(house.views[upload], offset=LENGTH, finished_at=time.time() - DAY)
    await house.expire(upload)
    assert remembered(redis) == [(upload, "complete")]
    # From its finish on.
    [key] = redis.client.keys("tusd:duplicate:*")
    assert DAY - 60 < redis.client.ttl(key) <= DAY
    assert problem(await refused(house.create()))["state"] == "complete"


async def test_what_was_finished_before_the_window_is_not_remembered_anew(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    house = await make_house(duplicate_window=2 * DAY)
    upload = await house.create()
    await house.finish(upload)
    redis.command("FLUSHALL")
    house.views[upload] = replace(house.views[upload], finished_at=time.time() - 3 * DAY)
    await house.expire(upload)
    assert remembered(redis) == []


async def test_an_upload_whose_finish_was_refused_is_released(
    house: House, redis: RedisServer
) -> None:
    upload = await house.create()
    house.views[upload] = replace(house.views[upload], offset=LENGTH)
    await house.expire(upload)
    assert remembered(redis) == []


async def test_post_finish_may_be_told_again(house: House, redis: RedisServer) -> None:
    upload = await house.create()
    event = await house.finish(upload)
    await house.hook.post_finish(event)
    assert remembered(redis) == [(upload, "complete")]


async def test_how_long_it_is_remembered(make_house: MakeHouse, redis: RedisServer) -> None:
    house = await make_house(duplicate_window=2 * DAY, expire_after=7 * DAY)
    upload = await house.create()
    [key] = redis.client.keys("tusd:duplicate:*")
    assert 7 * DAY < redis.client.ttl(key) <= 8 * DAY
    await house.finish(upload)
    assert DAY < redis.client.ttl(key) <= 2 * DAY


async def test_an_upload_that_never_expires_is_remembered_for_the_window(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    house = await make_house(duplicate_window=9 * DAY, expire_after=0)
    await house.create()
    [key] = redis.client.keys("tusd:duplicate:*")
    assert 8 * DAY < redis.client.ttl(key) <= 9 * DAY


async def test_a_directory_that_was_moved_away_by_its_owner_is_still_known(house: House) -> None:
    """Finished uploads are taken out of the upload directory, and that is when duplicates matter most."""
    upload = await house.create()
    await house.finish(upload)
    del house.there[upload]
    assert problem(await refused(house.create()))["state"] == "complete"


# The truth


async def test_an_upload_that_is_gone_gives_way(house: House, redis: RedisServer) -> None:
    first = await house.create()
    del house.there[first]
    backdate(redis, 60)
    second = await house.create()
    assert remembered(redis) == [(second, "pending")]


async def test_post_finish_told_once_more_takes_nothing_back_from_who_was_removed(
    house: House, redis: RedisServer
) -> None:
    first = await house.create()
    event = await house.finish(first)
    await house.terminate(first)
    await house.hook.post_finish(replace(event, attempt=2))
    assert remembered(redis) == []
    second = await house.create()
    assert remembered(redis) == [(second, "pending")]


async def test_post_finish_behind_a_slow_hook_takes_nothing_back_from_who_was_removed(
    house: House, redis: RedisServer
) -> None:
    """The operator's own hooks are called first, and may take an hour."""
    removed, retained, moved = [await house.create({"study": name}) for name in (b"a", b"b", b"c")]
    for each in (removed, retained, moved):
        house.has_finished(each)
    await house.terminate(removed)
    await house.expire(retained)
    del house.there[moved]
    for each in (removed, retained, moved):
        await house.hook.post_finish(house.event(EventType.POST_FINISH, each))
    assert sorted(remembered(redis)) == sorted([(retained, "complete"), (moved, "complete")])


async def test_an_upload_that_was_finished_unnoticed_is_complete(
    house: House, redis: RedisServer
) -> None:
    first = await house.create()
    house.there[first] = (LENGTH, True)
    assert problem(await refused(house.create()))["state"] == "complete"
    assert remembered(redis) == [(first, "complete")]


async def test_an_upload_that_cannot_be_read_is_in_the_way_and_can_be_forced(house: House) -> None:
    house.unreadable.add(await house.create(owner="me"))
    refusal = await refused(house.create(owner="me"))
    assert problem(refusal)["state"] == "pending"
    assert "Location" not in refusal.headers
    await house.create(owner="me", header="true")


async def test_a_termination_that_nobody_could_be_told_of_gives_way(house: House) -> None:
    """The process died, or Redis went away, between the removal and the release."""
    first = await house.create()
    event = await house.finish(first)
    await house.hook.pre_terminate(event)
    del house.there[first]
    await house.create()


async def test_a_termination_that_did_not_happen_changes_nothing(
    house: House, redis: RedisServer
) -> None:
    first = await house.create()
    event = await house.finish(first)
    await house.hook.pre_terminate(event)
    assert problem(await refused(house.create()))["state"] == "complete"
    assert remembered(redis) == [(first, "complete")]


async def test_a_creation_under_way_is_waited_for(house: House) -> None:
    event = await house.ask(owner="me")

    async def appear() -> None:
        house.there[event.upload.id] = (7, False)

    refusal, _ = await asyncio.gather(refused(house.create(owner="me")), appear())
    assert refusal.headers["Upload-Offset"] == "7"


async def test_a_creation_under_way_that_fails_gives_way(house: House) -> None:
    event = await house.ask()
    created, _ = await asyncio.gather(house.create(), house.hook.create_failed(event))
    assert created in house.there


async def test_a_creation_that_takes_its_time_is_not_taken_over(house: House) -> None:
    await house.ask(owner="me")
    refusal = await refused(house.create(owner="me"))
    assert problem(refusal)["state"] == "pending"
    assert "Location" not in refusal.headers


class Appearing(House):
    """Its first upload comes into being while somebody looks for it in vain."""

    slow: Event | None = None

    async def progress_of(self, upload_id: str) -> Progress | None:
        slow, self.slow = self.slow, None
        found = await super().progress_of(upload_id)
        if slow is not None:
            self.there[slow.upload.id] = (0, False)
            await self.hook.confirm_create(slow)
        return found


async def test_a_creation_that_takes_very_long_gives_way_to_who_came_meanwhile(
    house: House, redis: RedisServer
) -> None:
    slow = await house.ask()
    backdate(redis, 20)
    second = await house.create()
    refusal = await refused(house.hook.confirm_create(slow))
    assert problem(refusal)["state"] == "pending"
    await house.hook.create_failed(slow)
    assert remembered(redis) == [(second, "pending")]


async def test_a_creation_that_takes_very_long_keeps_its_place_if_nobody_came(
    redis_client: RedisClient, redis: RedisServer
) -> None:
    house = Appearing(Impatient(), redis_client, Settings())
    await house.start()
    slow = house.slow = await house.ask()
    backdate(redis, 20)
    refusal = await refused(house.create())
    assert refusal.headers["Retry-After"] == "5"
    assert remembered(redis) == [(slow.upload.id, "pending")]
    await house.hook.stop()


async def test_a_reservation_that_was_lost_meanwhile_is_made_again(
    house: House, redis: RedisServer
) -> None:
    slow = await house.ask()
    redis.command("FLUSHALL")
    await house.hook.confirm_create(slow)
    assert remembered(redis) == [(slow.upload.id, "pending")]


@pytest.mark.parametrize("when_away", ["allow", "refuse"])
async def test_while_redis_is_away_a_slow_creation_is_treated_like_others(
    make_house: MakeHouse,
    own_redis: RedisServer,
    own_redis_client: RedisClient,
    when_away: str,
) -> None:
    house = await make_house(of=own_redis_client, duplicates_when_unavailable=when_away)
    slow = await house.ask()
    own_redis.stop()
    if when_away == "allow":
        await house.hook.confirm_create(slow)
    else:
        assert (await refused(house.hook.confirm_create(slow))).status == 503


async def test_of_many_at_once_one_is_created(make_house: MakeHouse) -> None:
    """Over several processes that share a storage, where creating takes a moment."""
    houses = [await make_house() for _ in range(3)]
    for each in houses:
        each.there = houses[0].there

    async def create(house: House) -> str | Reject:
        try:
            event = await house.ask(owner="me")
        except Reject as refusal:
            return refusal
        await asyncio.sleep(0)
        house.there[event.upload.id] = (0, False)
        return event.upload.id

    results = await asyncio.gather(*(create(houses[number % 3]) for number in range(200)))
    [winner] = [result for result in results if isinstance(result, str)]
    locations = {result.headers["Location"] for result in results if isinstance(result, Reject)}
    assert locations == {f"https://host/files/{winner}"}


# duplicates = finished


async def test_finished_lets_pending_ones_pass(make_house: MakeHouse) -> None:
    house = await make_house(duplicates="finished")
    uploads = [await house.create() for _ in range(12)]
    assert house.counters.duplicates == {"new": 12}
    await house.finish(uploads[3])
    assert problem(await refused(house.create()))["state"] == "complete"
    await house.terminate(uploads[3])
    await house.create()


async def test_finished_sees_what_was_finished_a_moment_ago(make_house: MakeHouse) -> None:
    house = await make_house(duplicates="finished")
    first, _ = await house.create(), await house.create()
    house.there[first] = (LENGTH, True)
    assert problem(await refused(house.create()))["state"] == "complete"


# Redis away


@pytest.fixture
async def own_redis_client(own_redis: RedisServer) -> AsyncIterator[RedisClient]:
    """The way to a Redis that this test may stop."""
    redis_client = RedisClient(own_redis.url, timeout=20.0)
    await redis_client.start()
    yield redis_client
    await redis_client.stop()


async def back(redis_client: RedisClient) -> None:
    await eventually(lambda: redis_client.available, "Redis to be back")


async def test_while_redis_is_away_uploads_pass_unchecked(
    make_house: MakeHouse,
    own_redis: RedisServer,
    own_redis_client: RedisClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = await make_house(of=own_redis_client)
    await house.create()
    caplog.set_level(logging.INFO, "tusd_hooks")
    own_redis.stop()
    for _ in range(3):
        await house.create()
    assert house.counters.duplicates == {"new": 1, "unchecked": 3}
    own_redis.start()
    await back(own_redis_client)
    assert (await refused(house.create())).status == 409
    said = [record for record in caplog.records if record.name.startswith("tusd_hooks")]
    names = ["duplicates unknown", "duplicates known again", "duplicate refused"]
    assert [record.msg for record in said] == names
    assert vars(said[1])["fields"]["unchecked"] == 3


async def test_while_redis_is_away_uploads_may_be_refused(
    make_house: MakeHouse, own_redis: RedisServer, own_redis_client: RedisClient
) -> None:
    house = await make_house(of=own_redis_client, duplicates_when_unavailable="refuse")
    own_redis.stop()
    refusal = await refused(house.create())
    assert refusal.status == 503
    assert refusal.headers["Retry-After"] == "5"
    assert problem(refusal)["code"] == "ERR_DUPLICATES_UNAVAILABLE"
    await house.create({})
    assert house.counters.duplicates == {"unavailable": 1}
    own_redis.start()
    await back(own_redis_client)
    await house.create()


async def test_a_redis_that_was_slow_keeps_no_reservation_of_what_was_refused(
    make_house: MakeHouse, own_redis: RedisServer, own_redis_client: RedisClient
) -> None:
    house = await make_house(of=own_redis_client, duplicates_when_unavailable="refuse")
    await house.create({"study": b"0"})
    own_redis_client.timeout = 1.0
    own_redis.pause()
    assert (await refused(house.create())).status == 503
    own_redis_client.timeout = 20.0
    own_redis.resume()
    await back(own_redis_client)
    await eventually(lambda: len(remembered(own_redis)) == 1, "the release")
    await house.create()


async def test_refusals_leave_nothing_to_be_told(
    make_house: MakeHouse,
    own_redis: RedisServer,
    own_redis_client: RedisClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clients that try again and again shall not crowd out what Redis has to be told."""
    house = await make_house(of=own_redis_client, duplicates_when_unavailable="refuse")
    own_redis.stop()
    for _ in range(20):
        assert (await refused(house.create())).status == 503
    await house.hook.stop()
    # Of the first one nobody knew that Redis was away.
    assert "1 changes of the duplicate index are lost" in caplog.text


async def test_a_finished_upload_is_in_the_way_even_if_redis_goes_at_that_moment(
    own_redis: RedisServer, own_redis_client: RedisClient
) -> None:
    class Going(House):
        async def progress_of(self, upload_id: str) -> Progress | None:
            own_redis.stop()
            return Progress(LENGTH, True, 0.0)

    house = Going(Impatient(), own_redis_client, Settings())
    await house.start()
    await house.create()
    assert problem(await refused(house.create()))["state"] == "complete"
    await house.hook.stop()


async def test_what_redis_missed_it_is_told_later_and_in_order(
    make_house: MakeHouse, own_redis: RedisServer, own_redis_client: RedisClient
) -> None:
    house = await make_house(of=own_redis_client)
    finished, removed, both, gone = [
        await house.create({"study": name}) for name in (b"a", b"b", b"c", b"d")
    ]
    await house.finish(gone)
    own_redis.stop()
    await house.finish(finished)
    await house.terminate(removed)
    await house.finish(both)
    await house.terminate(both)
    await house.terminate(gone)
    own_redis.start()
    await back(own_redis_client)
    await eventually(lambda: remembered(own_redis) == [(finished, "complete")], "all changes")


async def test_what_happens_after_an_outage_comes_after_what_happened_in_it(
    make_house: MakeHouse, own_redis: RedisServer, own_redis_client: RedisClient
) -> None:
    house = await make_house(of=own_redis_client)
    house.hook.retry_interval = 3600.0
    await house.start()
    upload = await house.create()
    own_redis.stop()
    await house.finish(upload)
    own_redis.start()
    await back(own_redis_client)
    await house.terminate(upload)
    assert remembered(own_redis) == [(upload, "pending")]
    other = await house.create({"study": b"18"})
    await eventually(lambda: remembered(own_redis) == [(other, "pending")], "all changes")


async def test_at_the_end_it_is_tried_once_more(
    make_house: MakeHouse, own_redis: RedisServer, own_redis_client: RedisClient
) -> None:
    house = await make_house(of=own_redis_client)
    house.hook.retry_interval = 3600.0
    await house.start()
    upload = await house.create()
    own_redis.stop()
    await house.terminate(upload)
    own_redis.start()
    await back(own_redis_client)
    await house.hook.stop()
    assert remembered(own_redis) == []


async def test_what_can_never_be_told_is_said(
    make_house: MakeHouse,
    own_redis: RedisServer,
    own_redis_client: RedisClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = await make_house(of=own_redis_client)
    upload = await house.create()
    own_redis.stop()
    await house.terminate(upload)
    await house.hook.stop()
    assert "2 changes of the duplicate index are lost" in caplog.text


async def test_after_an_outage_the_truth_heals_what_was_never_told(
    make_house: MakeHouse, redis: RedisServer, own_redis: RedisServer, own_redis_client: RedisClient
) -> None:
    house = await make_house(of=own_redis_client)
    finished, removed = await house.create(), await house.create({"study": b"18"})
    own_redis.stop()
    await house.finish(finished)
    await house.terminate(removed)
    await house.hook.stop()
    own_redis.start()
    await back(own_redis_client)
    successor = await make_house(of=own_redis_client)
    successor.there = house.there
    backdate(own_redis, 60)
    assert problem(await refused(successor.create()))["state"] == "complete"
    await successor.create({"study": b"18"})


async def test_without_any_redis_nothing_is_checked(make_house: MakeHouse) -> None:
    house = House(Duplicates(), None, Settings())
    await house.start()
    await house.finish(await house.create())
    await house.create()
    assert house.counters.duplicates == {"unchecked": 2}
    await house.hook.stop()


# What it costs


async def test_one_script_a_creation_and_one_a_finish(house: House, redis: RedisServer) -> None:
    await house.finish(await house.create({"study": b"warm"}))
    with redis.monitor() as seen:
        await house.finish(await house.create())
    assert [command.split()[0] for command in seen] == ["EVALSHA", "EVALSHA"]
