"""What has to be true in the end, when nothing fails any more."""

from __future__ import annotations

from dataclasses import dataclass

from tests.soak.clients import Clients
from tests.soak.installation import Installation, descriptors, memory
from tests.soak.model import Model, Violation
from tests.support.forked import ForkedServer
from tests.support.tus import id_of
from tests.support.waiting import wait_until

MORE_DESCRIPTORS = 16
MORE_BYTES = 64 << 20
"""By how much a server that was never killed may have grown."""
_SECONDS = 180.0


@dataclass(frozen=True)
class Size:
    """Of a server: open descriptors, and bytes of memory of its own."""

    descriptors: int
    memory: int

    @classmethod
    def of(cls, server: ForkedServer) -> Size:
        return cls(descriptors(server), memory(server))


def check_all(site: Installation, model: Model, clients: Clients, before: Size) -> Size:
    """Everything, in the order in which it can be seen. Returns the size of the witness. Raises AssertionError."""
    clients.check_kept(_SECONDS)
    assert not clients.failures, "\n".join(clients.failures)
    # Everything unfinished expires: what clients abandoned, and what they never knew of. The events of a finish that a kill
    # prevented wait for that, too.
    site.sweep_later()
    _wait_for_events(site)
    assert not site.endpoint.failures, site.endpoint.failures
    model.check_events()
    _check_leftovers(site, model, clients)
    return _check_size(site, before)


def _wait_for_events(site: Installation) -> None:
    """However many there are, as long as they become fewer."""
    while waiting := site.store.waiting_events():
        try:
            _wait_for_any(site, waiting)
        except AssertionError:
            raise Violation(f"never delivered: {sorted(waiting)[:10]}") from None


def _wait_for_any(site: Installation, waiting: set[str]) -> None:
    """Wait until one of these events is delivered."""
    wait_until(lambda: not waiting <= site.store.waiting_events(), "a delivery", 60, interval=1.0)


def _check_leftovers(site: Installation, model: Model, clients: Clients) -> None:
    """Nothing is stored but what clients kept, and what was finished without their knowing."""
    kept = {id_of(mine.path) for client in clients.all for mine in client.kept}
    unseen = model.left_finishes(kept)

    def left() -> set[str]:
        found = site.store.leftovers(kept)
        return {name for name in found if name.removesuffix(".info") not in unseen}

    try:
        wait_until(lambda: not left(), "the removal of leftovers", 30, interval=1.0)
    except AssertionError:
        raise Violation(f"left behind or missing: {sorted(left())[:10]}") from None


def _check_size(site: Installation, before: Size) -> Size:
    """The first server, which was never killed, is as large as it was."""
    try:
        wait_until(
            lambda: descriptors(site.witness) <= before.descriptors + MORE_DESCRIPTORS,
            "the end of connections",
        )
    except AssertionError:
        raise Violation(
            f"{descriptors(site.witness)} descriptors are open, and were {before.descriptors}"
        ) from None
    after = Size.of(site.witness)
    if after.memory > before.memory + MORE_BYTES:
        raise Violation(f"{after.memory >> 20} MiB of memory, and were {before.memory >> 20}")
    return after
