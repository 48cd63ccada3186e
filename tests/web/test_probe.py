"""A uvicorn that is not what it was: found out at the start, before any client's body comes in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.server import WITHOUT_DIRECT_BODIES, ServerProcess, environment
from tests.support.tus import Tus
from tusd_py.process.probe import what_works

CHANGED = """
from tusd_py.web.http.protocol import {kind}

def changed(*_arguments):
    raise AttributeError("another version of uvicorn")

{kind}.{name} = changed
"""


def changed(tmp_path: Path, kind: str, name: str) -> dict[str, str]:
    """The environment of a server for which a part of uvicorn has changed."""
    (tmp_path / "sitecustomize.py").write_text(CHANGED.format(kind=kind, name=name))
    paths = [str(tmp_path), environment()["PYTHONPATH"]]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def test_with_this_uvicorn_both_ways_work() -> None:
    assert what_works() == "direct"


@pytest.mark.skipif(WITHOUT_DIRECT_BODIES, reason="this run takes the other way")
def test_bodies_take_the_slower_way(make_server: MakeServer, tmp_path: Path) -> None:
    env = changed(tmp_path, "UploadProtocol", "end_transfer")
    tus = Tus(make_server(env=env))
    assert "Bodies cannot go straight into files" in tus.server.log()
    data = os.urandom(3_000_000)
    assert tus.get(tus.finished(data)).body == data
    page = tus.get("/metrics").body.decode()
    assert 'tusd_bodies_total{way="stream"} 1.0' in page
    assert 'tusd_bodies_total{way="direct"} 0.0' in page


def test_a_body_that_would_be_mixed_up_is_found_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It waits for bytes that never come.
    monkeypatch.setattr("tusd_py.process.probe._TIMEOUT", 5.0)
    monkeypatch.setattr(
        "tusd_py.web.http.protocol.Transfer.get_buffer",
        lambda self, _hint: memoryview(bytearray(1024)),
    )
    assert what_works() == "stream"


@pytest.mark.parametrize(
    ("kind", "name"), [("UploadProtocol", "on_headers_complete"), ("_Cycle", "respond")]
)
def test_where_nothing_works_the_server_does_not_start(
    kind: str, name: str, tmp_path: Path
) -> None:
    env = changed(tmp_path, kind, name)
    (tmp_path / "uploads").mkdir()
    server = ServerProcess(tmp_path / "uploads", env=env).launch()
    assert server.wait() == 2
    assert "it does not work with uvicorn" in server.log()
