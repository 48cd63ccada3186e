"""Waiting until a client's connections have stalled as planned."""

from __future__ import annotations

from tests.support.faults import FaultProxy, Link
from tests.support.waiting import wait_until


def stalled_links(proxy: FaultProxy, count: int = 1) -> list[Link]:
    """The connections that stall, as soon as there are `count` of them."""

    def stalled() -> list[Link]:
        return [link for link in list(proxy.links) if link.stalled.is_set()]

    wait_until(lambda: len(stalled()) >= count, f"{count} stalled connections")
    return stalled()
