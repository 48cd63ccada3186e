"""Uploads of a client that resumes by itself, as URLSession does, over connections that are cut and servers that are killed."""

from __future__ import annotations

import random

import pytest

from tests.conftest import MakeServer
from tests.ietf.url_session import VERSIONS, UrlSession, attempt
from tests.support.faults import FaultProxy
from tests.support.ietf import Ietf
from tests.support.server import ServerProcess
from tests.support.tus import path_of

DATA = bytes(range(256)) * 8000


@pytest.mark.parametrize("version", VERSIONS)
def test_R22_R24_cut_at_random(server: ServerProcess, version: int) -> None:
    dice = random.Random(version)
    with FaultProxy(server.address) as proxy:
        resumed = [attempt(server, proxy, dice, version) for _ in range(10)]
    assert sum(resumed) >= 4


@pytest.mark.parametrize("end", ["kill9", "terminate"])
def test_R24_a_server_that_is_replaced_in_the_middle(make_server: MakeServer, end: str) -> None:
    """A server that stops closes the connection: a final response that says to come later would be the end."""
    server = make_server()
    session = UrlSession(Ietf(server, 6), server.address)

    def replace(sent: int) -> None:
        if sent >= len(DATA) // 2 and not replaced:
            assert session.path
            replaced.append(sent)
            getattr(server, end)()
            server.restart()

    replaced: list[int] = []
    session.on_piece = replace
    response = session.upload(DATA)
    assert response.status == 201
    assert session.losses == 1
    assert Ietf(server, 6).stored(session.path) == DATA


def test_R24_a_body_that_stops_coming_ends_with_a_close(make_server: MakeServer) -> None:
    ietf = Ietf(make_server("--network-timeout", "3s"), 6)
    with ietf.begin_creation(len(DATA), DATA[:1000]) as connection:
        interim = connection.read_any()
        path = path_of(interim["Location"])
        assert connection.ended()
    assert ietf.append(path, ietf.offset(path), DATA[1000:], complete=True).status == 201
    assert ietf.stored(path) == DATA
