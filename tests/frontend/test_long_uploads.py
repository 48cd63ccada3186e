"""Uploads that outlast their tokens, over a connection that breaks, to a server that is killed: none fails."""

from __future__ import annotations

import time

import pytest

from tests.auth.people import access
from tests.clients.content import sha256_of_file
from tests.frontend.conftest import MakeSource, RunManaged
from tests.frontend.managed import ManagedUploads
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until

TTL = 2.0
"""Seconds that an upload token of `short_lived` is good for."""
SLOW = 90_000
"""Bytes a second of each connection."""
SIZE = 900_000
"""Bytes. So many that no upload is over before the line is cut, and before the server is killed."""
DEAD = Plan(up=Way(cut_after=0, cut="rst"))


def stored(server: ServerProcess) -> int:
    """Bytes that all uploads have together."""
    return sum(server.data_file(name).stat().st_size for name in Tus(server).data_files())


@pytest.mark.timeout(300)
def test_not_one_of_fifty_fails(
    short_lived: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    count = 50
    sources = {f"{name}.bin": make_source(SIZE + name, f"{name}.bin") for name in range(count)}
    first = Plan(up=Way(rate=SLOW, cut_after=250_000, cut="rst"))
    with FaultProxy(short_lived.address, default=first) as proxy:
        run = managed(
            {
                "files": [str(source.path) for source in sources.values()],
                "accessTokens": [access()],
                "options": {
                    "endpoint": proxy.url(),
                    "concurrency": count,
                    "retry": {"min": 100, "max": 1_000},
                },
            }
        )
        # Each has a new token on the way, while its bytes go.
        run.wait_for("renewed", lambda event: event["status"] == 200, count=2 * count, timeout=60)
        proxy.default = DEAD
        wait_until(lambda: len(waiting(run)) == count, "all connections to be cut", 60)
        # The line is cut for longer than any token lives.
        wait_for_gap(TTL)
        proxy.default = Plan(up=Way(rate=SLOW))
        before = stored(short_lived)
        wait_until(lambda: stored(short_lived) > before + count * 50_000, "uploads to go on", 60)
        short_lived.kill9()
        wait_for_gap(TTL)
        short_lived.restart()
        urls = run.succeed(timeout=120)
    assert len(urls) == count
    assert "failed" not in run.states()
    assert len(set(urls.values())) == count
    # By the upload tokens alone, also by those that had run out: the access token never had to help. A 409 is for those that
    # were just finished.
    assert {event["status"] for event in run.all("renewed")} <= {200, 409}
    for name, url in urls.items():
        file = short_lived.data_file(id_of(path_of(url)))
        assert sha256_of_file(file) == sources[name].sha256, name
    # No upload was begun a second time.
    assert len(Tus(short_lived).data_files()) == count


def waiting(run: ManagedUploads) -> set[str]:
    """The names of those that had to wait before they could go on."""
    return {event["name"] for event in run.all("state") if event["waitingFor"] == "retry"}


def wait_for_gap(seconds: float) -> None:
    """Lets more time pass than `seconds`: the gap itself is what is tested."""
    time.sleep(seconds + 0.5)
