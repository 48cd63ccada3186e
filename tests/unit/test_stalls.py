"""Whether a client still takes what it is sent."""

from __future__ import annotations

import asyncio

import pytest

from tusd_py.web.http.stalls import StallWatch


class Buffer(asyncio.Transport):
    """A transport without a socket."""

    size = 1000

    def get_write_buffer_size(self) -> int:
        return self.size


class Clock:
    """Seconds, as the test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("grows", [0, 27])
def test_a_client_that_takes_nothing_is_stalled(grows: int) -> None:
    """Also if more is to be sent all the time, as by TLS to a client that changes its keys."""
    clock, buffer = Clock(), Buffer()
    watch = StallWatch(clock, buffer, None, 60.0)
    while clock.now < 59.0:
        clock.now += 1.0
        buffer.size += grows
        assert not watch.is_stalled()
    clock.now += 1.0
    assert watch.is_stalled()


def test_a_client_that_takes_a_byte_now_and_then_is_not_stalled() -> None:
    clock, buffer = Clock(), Buffer()
    watch = StallWatch(clock, buffer, None, 60.0)
    for _ in range(10):
        clock.now += 59.0
        # More is written, too: what counts is that it gets less in between.
        buffer.size += 5000
        assert not watch.is_stalled()
        buffer.size -= 1
        assert not watch.is_stalled()
    clock.now += 60.0
    assert watch.is_stalled()
