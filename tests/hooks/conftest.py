"""Servers that send their events to an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import MakeServer
from tests.hooks.endpoint import Endpoint, closed_port
from tests.support.server import ServerProcess
from tests.support.tus import Tus

ALL_EVENTS = (
    "pre-create,post-create,post-receive,pre-finish,post-finish,"
    "pre-terminate,post-terminate,pre-access,post-expire"
)
QUICK = ("--hooks-http-backoff", "10ms")
"""Flags with which tests of failures need not wait a second between two tries."""

MakeTus = Callable[..., Tus]


@pytest.fixture(scope="module")
def shared_endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


@pytest.fixture(scope="module")
def shared_server(
    tmp_path_factory: pytest.TempPathFactory, shared_endpoint: Endpoint
) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server") / "uploads"
    with ServerProcess(directory, "--hooks-http", shared_endpoint.url, *QUICK) as process:
        yield process


@pytest.fixture
def endpoint(shared_endpoint: Endpoint) -> Iterator[Endpoint]:
    """An endpoint of the test's own, so that servers of other tests cannot call it; it records what the shared server tells."""
    with Endpoint() as running, shared_endpoint.passing_on_to(running):
        yield running


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URL of an endpoint that is down."""
    with closed_port() as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def hooked(make_server: MakeServer, endpoint: Endpoint, request: pytest.FixtureRequest) -> MakeTus:
    """``hooked(*flags, env=…)``: a client of a new server that sends its events to ``endpoint``.

    Without flags it is one server for all tests of a module. An event of an upload of the test before may still come in.
    """

    def make(*flags: str, **options: dict[str, str]) -> Tus:
        if not flags and not options:
            return Tus(request.getfixturevalue("shared_server"))
        return Tus(make_server("--hooks-http", endpoint.url, *QUICK, *flags, **options))

    return make
