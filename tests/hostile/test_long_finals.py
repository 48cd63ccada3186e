"""Finals of many parts: as many absolute URLs as `--max-concat-parts` allows, with bounded memory for anyone else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, head_bytes
from tusd_py.settings.model import Settings

DEFAULT_PARTS = int(Settings.model_fields["max_concat_parts"].default)
HOST = "uploads-of-a-long-name.department.example.org"
UNHURRIED = ("--network-timeout", "10m")


def final_of(urls: list[str]) -> dict[str, str]:
    return {
        "Tus-Resumable": "1.0.0",
        "Content-Length": "0",
        "Upload-Concat": "final;" + " ".join(urls),
    }


@contextmanager
def waits(tus: Tus) -> Iterator[list[float]]:
    """How long small requests wait meanwhile, in seconds."""
    found: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            assert tus.options().status == 204
            found.append(time.monotonic() - began)
            done.wait(0.005)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield found
    finally:
        done.set()
        asking.join()


@pytest.mark.parametrize("behind", ["", "/app"])
def test_as_many_absolute_urls_as_are_allowed_by_default(tus: Tus, behind: str) -> None:
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    url = f"https://{HOST}:8443{behind}{part}"
    created = tus.create(headers=final_of([url] * DEFAULT_PARTS))
    assert created.status == 201
    assert tus.get(path_of(created["Location"])).body == b"x" * DEFAULT_PARTS


def test_one_more_is_refused_with_the_limit(tus: Tus) -> None:
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    refused = tus.create(headers=final_of([part] * (DEFAULT_PARTS + 1)))
    assert (refused.status, refused.code) == (400, "ERR_INVALID_CONCAT")
    assert str(DEFAULT_PARTS) in refused.text


@pytest.mark.parametrize("parts", [1, 40, 2000])
def test_the_bound_follows_the_setting(make_server: MakeServer, parts: int) -> None:
    server = make_server("--max-concat-parts", str(parts), "--max-header-size", "2KiB")
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    url = f"https://{HOST}:8443/app{part}"
    assert tus.create(headers=final_of([url] * parts)).status == 201
    assert tus.create(headers=final_of([url] * (parts + 1))).status in (400, 431)
    padded = final_of([url] * parts) | {"X-Padding": "x" * 3000}
    assert tus.create(headers=padded).status == 431


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("POST", "X-Padding"),
        ("POST", "Upload-Metadata"),
        ("PATCH", "Upload-Concat"),
        ("HEAD", "Upload-Concat"),
        ("GET", "Upload-Concat"),
    ],
)
def test_other_long_heads_are_refused(tus: Tus, method: str, name: str) -> None:
    with tus.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(
                head_bytes(method, tus.collection, {name: "x" * 1_000_000}, "localhost")
            )
        refused = connection.read_response(method)
    assert refused.status == 431


def test_a_list_without_end_is_refused(tus: Tus) -> None:
    with tus.connect() as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(b"POST /files/ HTTP/1.1\r\nHost: a\r\nUpload-Concat: final;")
            for _ in range(64):
                connection.send(b"/files/x " * 7000)
        assert connection.read_response("POST").status == 431


@pytest.mark.parametrize("first", ["", "Upload-Concat: final;/a\r\n"])
def test_thousands_of_lists_are_refused_before_they_are_counted(
    make_server: MakeServer, first: str
) -> None:
    """Each of them would be counted with all before it, once the other fields take what they may: minutes for 1 MiB."""
    server = make_server(*UNHURRIED)
    fields = f"Host: a\r\n{first}" + "x: y\r\n" * 10_800
    lists = "Upload-Concat: f\r\n" * 20_000
    before = server.processor_seconds()
    with Connection(server.address) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.send(f"POST /files/ HTTP/1.1\r\n{fields}{lists}\r\n".encode())
        assert connection.read_response("POST").status == 431
    assert server.processor_seconds() - before < 2


def test_strangers_have_a_few_long_heads_together(make_server: MakeServer) -> None:
    """However many begin one, and they are free again when these have gone."""
    server = make_server(*UNHURRIED)
    tus = Tus(server)
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    whole = final_of([part] * DEFAULT_PARTS)
    begun = head_bytes("POST", tus.collection, whole, "localhost")[:300_000]
    before = server.memory()
    with ExitStack() as open_ones:
        for _ in range(300):
            connection = open_ones.enter_context(Connection(server.address))
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(begun)
        refused = tus.create(headers=whole)
        assert (refused.status, refused.code) == (503, "ERR_UNAVAILABLE")
        assert refused["Retry-After"]
        # An ordinary final is joined beside them.
        assert tus.create(headers=final_of([part] * 100)).status == 201
        assert server.memory() - before < 64 * 1024**2
    # The server learns that they have gone when it reads their sockets.
    wait_until(lambda: tus.create(headers=whole).status == 201, "a long head is taken again")


def test_a_part_that_is_spelled_in_thousands_of_ways_does_not_stop_the_server(tus: Tus) -> None:
    """Each of them may be the URL of eight uploads; all were looked up at one go."""
    part = tus.finished(b"x", {"Upload-Concat": "partial"})
    around = "/files/a" * 6
    urls = [f"/files/{number:x}{around}{part}" for number in range(9_990)]
    with waits(tus) as waited:
        created = tus.create(headers=final_of(urls))
        assert created.status == 201
    assert max(waited) < 0.5
    assert tus.get(path_of(created["Location"])).body == b"x" * len(urls)


def test_look_ups_of_parts_are_bounded(make_server: MakeServer, tmp_path: Path) -> None:
    """Ids with slashes, as hooks may choose them, have parts of themselves as further readings."""
    hook = tmp_path / "ids.py"
    hook.write_text(
        "from tusd_py import Changes\n"
        "def pre_create(event):\n"
        "    if event.upload.is_partial:\n"
        "        return Changes(id=event.request.headers['x-id'])\n"
    )
    tus = Tus(make_server("--hook", str(hook)))
    parts = {
        "/files/".join(f"{letter}{number}" for letter in "abcdefg"): str(number % 10).encode()
        for number in range(20)
    }
    for part_id, data in parts.items():
        tus.finished(data, {"Upload-Concat": "partial", "X-Id": part_id})
    plain = tus.create(headers=final_of([f"/files/{each}" for each in parts]))
    assert tus.get(path_of(plain["Location"])).body == b"".join(parts.values())
    behind = [f"/files/app/files/{each}" for each in parts]
    assert tus.create(headers=final_of(behind[:10])).status == 201
    refused = tus.create(headers=final_of(behind))
    assert (refused.status, refused.code) == (400, "ERR_INVALID_CONCAT")
