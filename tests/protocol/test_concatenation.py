"""tus 1.0.0, concatenation and concatenation-unfinished: T31 to T37."""

from __future__ import annotations

import select
from collections.abc import Callable
from functools import partial as partial_function
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response

PARTIAL = {"Upload-Concat": "partial"}


def partial(tus: Tus, data: bytes) -> str:
    return tus.finished(data, PARTIAL)


def join(tus: Tus, *parts: str, headers: dict[str, str] | None = None) -> Response:
    value = f"final;{' '.join(parts)}"
    return tus.create(headers={"Upload-Concat": value, **(headers or {})})


# -- T31 ---------------------------------------------------------------------------------------


def test_T31_a_partial_is_made_filled_and_known_as_one(tus: Tus) -> None:
    path = tus.new(5, headers=PARTIAL)
    assert tus.head(path)["Upload-Concat"] == "partial"
    assert tus.patch(path, 0, b"hello").status == 204
    head = tus.head(path)
    assert (head["Upload-Concat"], head["Upload-Offset"]) == ("partial", "5")
    assert tus.info(path)["IsPartial"] is True


def test_T31_finish_hooks_do_not_run_for_partials(make_server: MakeServer, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    parts = [partial(tus, b"hello "), partial(tus, b"")]
    final = path_of(join(tus, *parts)["Location"])
    recorder.wait_for("post-finish", id_of(final))
    for part in parts:
        assert not [kind for kind in recorder.types(id_of(part)) if kind.endswith("finish")]
    assert recorder.types(id_of(final)).count("post-finish") == 1
    assert recorder.types(id_of(final)).count("pre-finish") == 1


def test_T31_a_partial_may_begin_with_its_creation(tus: Tus) -> None:
    response = tus.create(5, body=b"hello", headers=PARTIAL)
    assert (response.status, response["Upload-Offset"]) == (201, "5")
    assert tus.head(path_of(response["Location"]))["Upload-Concat"] == "partial"


def test_T31_a_partial_may_defer_its_length(tus: Tus) -> None:
    path = tus.new(None, headers=PARTIAL)
    tus.patch(path, 0, b"hello", {"Upload-Length": "5"})
    final = path_of(join(tus, path)["Location"])
    assert tus.get(final).body == b"hello"


# -- T32 ---------------------------------------------------------------------------------------


def absolute(tus: Tus, path: str) -> str:
    return f"http://127.0.0.1:{tus.server.port}{path}"


def relative(tus: Tus, path: str) -> str:
    return path


@pytest.mark.parametrize("url", [absolute, relative])
def test_T32_a_final_is_its_parts_in_order(tus: Tus, url: Callable[[Tus, str], str]) -> None:
    first, second = partial(tus, b"hello "), partial(tus, b"world")
    response = join(tus, url(tus, second), url(tus, first), url(tus, second))
    assert response.status == 201
    final = path_of(response["Location"])
    head = tus.head(final)
    assert (head["Upload-Length"], head["Upload-Offset"]) == ("16", "16")
    assert tus.get(final).body == b"worldhello world"
    assert tus.stored(first) == b"hello "


def test_T32_large_and_empty_parts(tus: Tus) -> None:
    large = bytes(range(256)) * 20_000
    parts = [partial(tus, data) for data in (b"", large, b"", b"end")]
    final = path_of(join(tus, *parts)["Location"])
    assert tus.get(final).body == large + b"end"


def test_T32_of_empty_parts_alone(tus: Tus) -> None:
    final = path_of(join(tus, partial(tus, b""))["Location"])
    head = tus.head(final)
    assert (head["Upload-Length"], head["Upload-Offset"]) == ("0", "0")
    assert tus.get(final).status == 200


def test_T32_the_final_outlives_its_parts_and_the_server(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    parts = [partial(tus, b"hello "), partial(tus, b"world")]
    final = path_of(join(tus, *parts)["Location"])
    for part in parts:
        assert tus.delete(part).status == 204
    server.kill9()
    server.restart()
    assert tus.get(final).body == b"hello world"
    assert tus.head(final)["Upload-Offset"] == "11"


def test_T32_an_unknown_part_is_404(tus: Tus) -> None:
    part = partial(tus, b"hello")
    before = tus.data_files()
    for unknown in (tus.collection + "0" * 32, "/elsewhere/" + id_of(part), "/"):
        assert join(tus, part, unknown).status == 404, unknown
    assert tus.data_files() == before


@pytest.mark.parametrize("prefix", ["../", "%2e%2e/", ".tusd-py/", ""])
def test_T32_a_part_cannot_name_other_files(tus: Tus, prefix: str) -> None:
    part = partial(tus, b"hello")
    before = tus.data_files()
    wrong = f"{tus.collection}{prefix}{id_of(part)}.info"
    assert join(tus, part, wrong).status == 404
    assert tus.data_files() == before


def test_T32_a_terminated_part_is_refused(tus: Tus) -> None:
    part = partial(tus, b"hello")
    tus.delete(part)
    assert join(tus, part).status in {404, 410}


def test_T32_a_part_that_is_no_partial_is_400(tus: Tus) -> None:
    part = partial(tus, b"hello")
    final = path_of(join(tus, part)["Location"])
    whole = tus.finished(b"hello")
    before = tus.data_files()
    for other in (whole, final):
        assert join(tus, part, other).status == 400
    assert tus.data_files() == before


@pytest.mark.parametrize(
    "value", ["final", "final;", "final; ", "Final;/files/x", "part", "partial;", "partial; /x"]
)
def test_T32_a_malformed_concat_is_400(tus: Tus, value: str) -> None:
    before = tus.data_files()
    assert tus.create(headers={"Upload-Concat": value}).status == 400
    assert tus.create(5, headers={"Upload-Concat": value}).status == 400
    assert tus.data_files() == before


def test_T32_the_maximum_holds_for_finals(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-size", "10"))
    part = partial(tus, b"123456")
    assert join(tus, part, part).status == 413
    assert join(tus, part).status == 201


def test_T32_the_number_of_parts_has_a_limit(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-concat-parts", "3"))
    part = partial(tus, b"x")
    assert 400 <= join(tus, *[part] * 4).status < 500
    assert join(tus, *[part] * 3).status == 201


# -- T33 ---------------------------------------------------------------------------------------


def test_T33_patch_of_a_final_is_refused(tus: Tus) -> None:
    joined = path_of(join(tus, partial(tus, b"hello"))["Location"])
    pending = path_of(join(tus, tus.new(5, headers=PARTIAL))["Location"])
    assert tus.patch(joined, 5, b"x").status == 403
    assert tus.patch(joined, 5, b"").status == 403
    assert tus.patch(pending, 0, b"hello").status == 403
    assert tus.get(joined).body == b"hello"


# -- T34 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [absolute, relative])
def test_T34_head_echoes_what_was_sent(tus: Tus, url: Callable[[Tus, str], str]) -> None:
    parts = [url(tus, partial(tus, b"a")), url(tus, partial(tus, b"b"))]
    final = path_of(join(tus, *parts)["Location"])
    assert tus.head(final)["Upload-Concat"] == f"final;{parts[0]} {parts[1]}"


def test_T34_an_upload_that_is_neither_has_no_such_header(tus: Tus) -> None:
    assert "Upload-Concat" not in tus.head(tus.new(5))


def test_T34_a_pending_final_has_a_length_once_it_can_be_computed(tus: Tus) -> None:
    known, deferred = tus.new(5, headers=PARTIAL), tus.new(None, headers=PARTIAL)
    final = path_of(join(tus, known, deferred)["Location"])
    head = tus.head(final)
    assert head.status == 200
    assert "Upload-Length" not in head
    assert "Upload-Offset" not in head
    tus.patch(deferred, 0, b"x", {"Upload-Length": "3"})
    head = tus.head(final)
    assert head["Upload-Length"] == "8"
    assert "Upload-Offset" not in head


# -- T35 ---------------------------------------------------------------------------------------


def test_T35_a_final_has_its_own_metadata_only(tus: Tus) -> None:
    theirs = {**PARTIAL, "Upload-Metadata": metadata(filename="part.bin")}
    part = tus.finished(b"hello", theirs)
    bare = path_of(join(tus, part)["Location"])
    assert "Upload-Metadata" not in tus.head(bare)
    own = metadata(filename="whole.bin")
    named = path_of(join(tus, part, headers={"Upload-Metadata": own})["Location"])
    assert tus.head(named)["Upload-Metadata"] == own


@pytest.mark.parametrize("length", [5, 6])
def test_T35_a_length_on_a_final_is_refused(tus: Tus, length: int) -> None:
    part = partial(tus, b"hello")
    before = tus.data_files()
    assert join(tus, part, headers={"Upload-Length": str(length)}).status == 400
    assert join(tus, part, headers={"Upload-Defer-Length": "1"}).status == 400
    assert tus.data_files() == before


# -- T36 ---------------------------------------------------------------------------------------


def joined(tus: Tus, path: str) -> bool:
    return "Upload-Offset" in tus.head(path)


def test_T36_a_final_completes_with_its_last_part(make_server: MakeServer, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    tus = Tus(make_server(*recorder.flags, env=recorder.env))
    first, second = tus.new(6, headers=PARTIAL), tus.new(5, headers=PARTIAL)
    response = join(tus, first, second, first)
    assert response.status == 201
    final = path_of(response["Location"])
    assert tus.get(final).status == 404
    tus.patch(second, 0, b"world")
    tus.patch(first, 0, b"hel")
    assert not joined(tus, final)
    tus.patch(first, 3, b"lo ")
    # Nobody asks for the final meanwhile: it completes by itself.
    recorder.wait_for("post-finish", id_of(final))
    head = tus.head(final)
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("17", "17")
    assert tus.get(final).body == b"hello worldhello "


def test_T36_several_finals_wait_for_one_part(tus: Tus) -> None:
    part, done = tus.new(5, headers=PARTIAL), partial(tus, b"!")
    finals = [
        path_of(join(tus, *parts)["Location"]) for parts in ([part], [part, done], [done, part])
    ]
    tus.patch(part, 0, b"hello")
    for final, expected in zip(finals, (b"hello", b"hello!", b"!hello"), strict=True):
        wait_until(partial_function(joined, tus, final), "the join")
        assert tus.get(final).body == expected


def test_T36_a_final_waits_across_a_crash(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    parts = [partial(tus, b"hello "), tus.new(5, headers=PARTIAL)]
    final = path_of(join(tus, *parts)["Location"])
    server.kill9()
    server.restart()
    assert tus.head(final)["Upload-Length"] == "11"
    assert not joined(tus, final)
    tus.patch(parts[1], 0, b"world")
    wait_until(lambda: joined(tus, final), "the join")
    assert tus.get(final).body == b"hello world"


def test_T36_a_pending_final_can_be_terminated(tus: Tus) -> None:
    part = tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, part)["Location"])
    assert tus.delete(final).status == 204
    assert tus.patch(part, 0, b"hello").status == 204
    assert tus.head(final).status == 410


# -- T37 ---------------------------------------------------------------------------------------


def test_T37_a_join_does_not_stop_the_server(make_server: MakeServer) -> None:
    tus = Tus(make_server("--durability", "none"))
    block = bytes(1 << 20) * 64
    part = partial(tus, block)
    other = tus.finished(b"hello")
    memory = tus.server.memory()
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Concat": f"final;{' '.join([part] * 8)}",
        "Content-Length": "0",
    }

    def answered_during_a_join() -> int:
        answered = 0
        with tus.connect() as connection:
            connection.send_head("POST", tus.collection, headers)
            while not select.select([connection.sock], [], [], 0)[0]:
                assert tus.offset(other) == 5
                answered += 1
            final = path_of(connection.read_response("POST")["Location"])
        assert tus.head(final)["Upload-Offset"] == str(8 * len(block))
        assert tus.server.memory() - memory < 32 << 20
        assert tus.delete(final).status == 204
        return answered

    # A join in the event loop would let one or two through; it takes as long as many. Where other programs keep us from
    # asking while it lasts, one join says nothing.
    wait_until(lambda: answered_during_a_join() > 10, "answers during a join", 30)
