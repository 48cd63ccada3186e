"""tus 1.0.0, expiration: T24, and T7 for expired uploads."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response

IMF_FIXDATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d "
    r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)


def expires(response: Response) -> datetime:
    """``Upload-Expires``, which has to be an IMF-fixdate (RFC 9110, 5.6.7)."""
    value = response["Upload-Expires"]
    assert IMF_FIXDATE.fullmatch(value), value
    return datetime.strptime(value, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC)


def about(moment: datetime, expected: datetime) -> bool:
    return abs(moment - expected) < timedelta(minutes=1)


def test_T24_creation_patch_and_head_tell_when_the_upload_expires(tus: Tus) -> None:
    in_a_week = datetime.now(UTC) + timedelta(days=7)
    created = tus.create(10)
    path = path_of(created["Location"])
    assert about(expires(created), in_a_week)
    assert about(expires(tus.patch(path, 0, b"hello")), in_a_week)
    assert about(expires(tus.head(path)), in_a_week)


def test_T24_the_time_is_the_one_that_is_set(make_server: MakeServer) -> None:
    tus = Tus(make_server("--expire-after", "2h"))
    assert about(expires(tus.create(10)), datetime.now(UTC) + timedelta(hours=2))


def test_T24_the_time_counts_from_the_last_byte(tus: Tus) -> None:
    created = tus.create(1_000_000)
    path = path_of(created["Location"])
    offset = 0

    def later_than_at_creation() -> bool:
        nonlocal offset
        response = tus.patch(path, offset, b"x")
        offset += 1
        return min(expires(response), expires(tus.head(path))) > expires(created)

    wait_until(later_than_at_creation, "a second to pass")


def test_T24_a_creation_with_upload_tells_it_too(tus: Tus) -> None:
    response = tus.create(10, body=b"hello")
    assert about(expires(response), datetime.now(UTC) + timedelta(days=7))


def test_T24_a_finished_upload_does_not_expire(tus: Tus) -> None:
    path = tus.finished(b"hello")
    assert "Upload-Expires" not in tus.head(path)


def test_T24_without_expiry_there_is_no_header(make_server: MakeServer) -> None:
    tus = Tus(make_server("--expire-after", "0"))
    created = tus.create(10)
    path = path_of(created["Location"])
    assert "Upload-Expires" not in created
    assert "Upload-Expires" not in tus.patch(path, 0, b"hello")
    assert "Upload-Expires" not in tus.head(path)
    assert "expiration" not in tus.options().items("Tus-Extension")


@pytest.mark.parametrize("length", [10, None])
def test_T7_an_expired_upload_is_gone(make_server: MakeServer, length: int | None) -> None:
    server = make_server("--expire-after", "1s", "--sweep-interval", "100ms")
    tus = Tus(server)
    path = tus.new(length)
    # In one request, as nothing is to expire between two.
    finished = tus.new(5, body=b"hello")
    wait_until(lambda: id_of(path) not in server.uploads(), "the sweep", 30)
    head = tus.head(path)
    assert head.status == 410
    assert "Upload-Offset" not in head
    assert tus.patch(path, 0, b"hello").status == 410
    if server.bucket is None:
        assert not server.info_file(id_of(path)).exists()
    assert tus.get(finished).body == b"hello"


def test_T7_an_expired_upload_is_gone_before_the_sweep_has_come(make_server: MakeServer) -> None:
    tus = Tus(make_server("--expire-after", "1s", "--sweep-interval", "1h"))
    path = tus.new(10)
    wait_until(lambda: tus.head(path).status == 410, "expiry", 30)
    assert tus.patch(path, 0, b"hello").status == 410
    assert tus.get(path).status == 404


def test_T24_bytes_put_the_expiry_off(make_server: MakeServer) -> None:
    tus = Tus(make_server("--expire-after", "5s", "--sweep-interval", "100ms"))
    # The one that is fed is the older one: it outlives the other by its bytes alone.
    fed = tus.new(1_000_000)
    idle = tus.new(10)
    fed_bytes = 0

    def feed_until_the_idle_one_is_gone() -> bool:
        nonlocal fed_bytes
        assert tus.patch(fed, fed_bytes, b"x").status == 204
        fed_bytes += 1
        return tus.head(idle).status == 410

    wait_until(feed_until_the_idle_one_is_gone, "expiry", 30)
    assert tus.offset(fed) == fed_bytes
