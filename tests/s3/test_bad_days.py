"""Bad days of a bucket and its servers: it asks to slow down for long, the spool's disk is full, clocks differ."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from uuid import uuid4

import pytest

from tests.durability.small_disk import SmallDisk
from tests.durability.volume import require_mounts
from tests.s3.conftest import shared
from tests.s3.proxies import Answer, Exchange, FaultProxy, RulesProxy, error
from tests.s3.servers import BUCKET, ENVIRONMENT
from tests.support.forked import ForkedServer
from tests.support.server import PROGRAM, environment
from tests.support.tus import checksum
from tests.support.waiting import wait_until
from tests.support.wire import Response

MIB = 1 << 20
PART = 5 * MIB
BODY = random.Random(6).randbytes(2 * PART + 1000)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def flags_for(endpoint: str, *flags: str) -> tuple[str, ...]:
    prefix = f"{uuid4().hex}/"
    return (
        *("--s3-bucket", BUCKET, "--s3-endpoint", endpoint, "--s3-part-size", "5MiB"),
        *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix, *flags),
    )


def started(stack: ExitStack, directory: Path, *flags: str) -> ForkedServer:
    server = ForkedServer(directory / "server", *flags, env=ENVIRONMENT)
    stack.callback(server.kill9)
    server.wait_until_up()
    return server


# -- a store that asks to slow down for long -------------------------------------------------------


def test_uploads_go_on_after_a_store_asked_to_slow_down_for_several_rounds(
    stack: ExitStack, tmp_path: Path
) -> None:
    """Each round is a request whose repeats are used up: the client is told to come again, and loses nothing."""
    proxy = stack.enter_context(FaultProxy(shared("seaweedfs").address))
    server = started(stack, tmp_path, *flags_for(proxy.endpoint, "--s3-retry-time", "100ms"))
    tus = server.client()
    large, verified, small = tus.new(len(BODY)), tus.new(len(BODY)), tus.new(1000)
    assert tus.patch(large, 0, BODY[: PART + 10]).status == 204
    proxy.inject(seed=1, rate=1.0, kinds=["slow-down"])
    before = proxy.injected.total()
    for _ in range(3):
        refused = [
            tus.patch(large, PART + 10, BODY[PART + 10 :]),
            tus.patch(verified, 0, BODY, {"Upload-Checksum": checksum(BODY)}),
            tus.patch(small, 0, BODY[:1000]),
            tus.create(5),
        ]
        assert [told_to_come_again(each) for each in refused] == [True] * 4, refused
        head = tus.head(large)
        assert (head.status, "Retry-After" in head) == (423, True)
    assert proxy.injected.total() - before > 3 * 5, "no request was repeated"
    proxy.inject(seed=1, rate=0.0)
    for path, data in ((large, BODY), (verified, BODY), (small, BODY[:1000])):
        offset = tus.offset(path)
        # All that was acknowledged; more may be there.
        assert offset >= (PART + 10 if path == large else 0)
        if offset < len(data):
            assert tus.patch(path, offset, data[offset:]).status == 204
        assert tus.get(path).body == data


def told_to_come_again(response: Response) -> bool:
    """Whether it is a 503 that says when, in words of our own."""
    if (response.status, response.code) != (503, "ERR_UNAVAILABLE"):
        return False
    return "Retry-After" in response and "SlowDown" not in response.text


# -- the spool's disk is full ----------------------------------------------------------------------


def test_a_full_spool_refuses_requests_with_a_checksum_until_there_is_room(
    stack: ExitStack, tmp_path: Path
) -> None:
    require_mounts(tmp_path)
    disk = SmallDisk(tmp_path, "tmpfs")
    stack.enter_context(disk.mounted())
    flags = flags_for(shared("seaweedfs").endpoint, "--s3-spool-dir", str(disk.root))
    tus = started(stack, tmp_path, *flags).client()
    path = tus.new(len(BODY))
    assert tus.patch(path, 0, BODY[:10]).status == 204
    rest = BODY[10:]
    headers = {"Upload-Checksum": checksum(rest)}
    # Room for some of it.
    (disk.root / "filler-1").write_bytes(bytes(17 * MIB))
    refused = tus.patch(path, 10, rest, headers)
    assert (refused.status, refused.code) == (507, "ERR_INSUFFICIENT_STORAGE")
    assert "Retry-After" in refused
    # Others go on: what has no checksum, or fits into memory.
    other = tus.finished(BODY)
    assert tus.get(other).body == BODY
    assert tus.offset(path) == 10
    small = BODY[10:1000]
    assert tus.patch(path, 10, small, {"Upload-Checksum": checksum(small)}).status == 204
    disk.empty()
    rest = BODY[1000:]
    assert tus.patch(path, 1000, rest, {"Upload-Checksum": checksum(rest)}).status == 204
    assert tus.get(path).body == BODY
    assert list(disk.root.iterdir()) == []


# -- clocks that differ ----------------------------------------------------------------------------

_SKEW = timedelta(minutes=40)


def skewed(_proxy: RulesProxy, _exchange: Exchange) -> Answer:
    """A store whose clock is ahead, and that refuses signatures which are too old."""
    refusal = error(403, "RequestTimeTooSkewed", "The difference between the times is too large.")
    refusal.headers["Date"] = format_datetime(datetime.now(UTC) + _SKEW, usegmt=True)
    return refusal


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("check-s3",)])
def test_a_clock_that_is_wrong_is_named_with_what_to_do(
    stack: ExitStack, tmp_path: Path, command: tuple[str, ...]
) -> None:
    proxy = stack.enter_context(RulesProxy(shared("seaweedfs").address, skewed))
    directory = ("--upload-dir", str(tmp_path / "uploads")) if command[0] == "serve" else ()
    done = subprocess.run(
        [*PROGRAM, *command, *directory, *flags_for(proxy.endpoint)],
        env=environment(ENVIRONMENT),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = [line for line in done.stderr.splitlines() if "RequestTimeTooSkewed" in line]
    behind = re.search(r"this machine's clock is (\d+) seconds behind the store's", line)
    assert behind is not None, line
    assert abs(int(behind[1]) - _SKEW.total_seconds()) < 60
    assert "NTP" in line


def test_a_clock_that_goes_wrong_costs_no_byte(stack: ExitStack, tmp_path: Path) -> None:
    rules: list[object] = []
    proxy = RulesProxy(shared("seaweedfs").address)
    proxy.rules = rules  # type: ignore[assignment]
    stack.enter_context(proxy)
    server = started(stack, tmp_path, *flags_for(proxy.endpoint, "--s3-retry-time", "300ms"))
    tus = server.client()
    path = tus.new(len(BODY))
    assert tus.patch(path, 0, BODY[: PART + 10]).status == 204
    rules.append(skewed)
    refused = tus.patch(path, PART + 10, BODY[PART + 10 :])
    assert (refused.status, refused.code) == (503, "ERR_UNAVAILABLE")
    assert tus.head(path).status == 423
    wait_until(lambda: "clock is" in server.log(), "the log to name the clock")
    rules.clear()
    offset = tus.offset(path)
    assert offset >= PART + 10
    assert tus.patch(path, offset, BODY[offset:]).status == 204
    assert tus.get(path).body == BODY
