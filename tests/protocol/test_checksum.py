"""tus 1.0.0, checksum and checksum-trailer: T25 to T28."""

from __future__ import annotations

import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.conftest import MakeServer
from tests.support.bucket import files_only
from tests.support.tus import OCTETS, OpenPatch, Tus, checksum, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response, chunk, last_chunk
from tusd_py.storage.file.buffers import SLOW_FILL_SECONDS

ALGORITHMS = ["sha1", "sha256", "sha512", "md5", "crc32", "crc32c"]
BODY = bytes(range(256)) * 8_000  # 2 MB
MIB = 1024 * 1024

sizes = pytest.mark.parametrize("size", [11, len(BODY)])


# -- T25 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_T25_a_right_checksum_on_patch(tus: Tus, algorithm: str) -> None:
    path = tus.new(22)
    for offset, data in ((0, b"hello world"), (11, b"HELLO WORLD")):
        headers = {"Upload-Checksum": checksum(data, algorithm)}
        response = tus.patch(path, offset, data, headers)
        assert (response.status, response["Upload-Offset"]) == (204, str(offset + 11))
    assert tus.get(path).body == b"hello worldHELLO WORLD"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_T25_a_right_checksum_on_post(tus: Tus, algorithm: str) -> None:
    headers = {"Upload-Checksum": checksum(b"hello", algorithm)}
    response = tus.create(5, body=b"hello", headers=headers)
    assert (response.status, response["Upload-Offset"]) == (201, "5")
    assert tus.get(path_of(response["Location"])).body == b"hello"


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "crc32"])
def test_T25_a_right_checksum_of_a_large_body(tus: Tus, algorithm: str) -> None:
    path = tus.new(len(BODY))
    response = tus.patch(path, 0, BODY, {"Upload-Checksum": checksum(BODY, algorithm)})
    assert (response.status, response["Upload-Offset"]) == (204, str(len(BODY)))
    assert tus.stored(path) == BODY


def large(seed: int, size: int = 24_000_001) -> bytes:
    """More than what is hashed in one go."""
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", "md5", "crc32"])
def test_T25_T26_checksums_of_bodies_that_are_hashed_beside(tus: Tus, algorithm: str) -> None:
    data = large(1)
    path = tus.new(len(data) + 5)
    tus.patch(path, 0, b"first")
    for wrong in (data[:-1] + b"?", b"?" + data[1:]):
        headers = {"Upload-Checksum": checksum(wrong, algorithm)}
        assert tus.patch(path, 5, data, headers).status == 460
        assert tus.stored(path) == b"first"
    assert tus.patch(path, 5, data, {"Upload-Checksum": checksum(data, algorithm)}).status == 204
    assert tus.stored(path) == b"first" + data


def test_T25_T26_checksums_of_many_bodies_at_once(tus: Tus) -> None:
    """None gets another's bytes into its checksum, and a wrong one is told from those beside it."""
    data = [large(seed) for seed in range(8)]
    paths = [tus.new(len(one)) for one in data]

    def send(number: int) -> int:
        of = data[number] if number % 4 else data[number - 1]
        headers = {"Upload-Checksum": checksum(of, "sha256")}
        return tus.patch(paths[number], 0, data[number], headers).status

    with ThreadPoolExecutor(len(data)) as clients:
        assert list(clients.map(send, range(len(data)))) == [460, 204, 204, 204] * 2
    for number, path in enumerate(paths):
        assert tus.stored(path) == (data[number] if number % 4 else b"")


@pytest.mark.parametrize("size", [100_000, MIB - 1, MIB, MIB + 1])
@pytest.mark.parametrize("flags", [(), ("--disable-direct-bodies",)], ids=["direct", "stream"])
def test_T25_T26_chunks_that_just_fit_into_memory_and_that_do_not(
    make_server: MakeServer, flags: tuple[str, ...], size: int
) -> None:
    tus = Tus(make_server(*flags))
    data = large(2, 2 * size)
    path = tus.new(len(data))
    for offset in (0, size):
        chunk_of = data[offset : offset + size]
        wrong = {"Upload-Checksum": checksum(chunk_of[:-1] + b"?", "sha256")}
        assert tus.patch(path, offset, chunk_of, wrong).status == 460
        assert tus.stored(path) == data[:offset]
        right = {"Upload-Checksum": checksum(chunk_of, "sha256")}
        assert tus.patch(path, offset, chunk_of, right).status == 204
    assert tus.stored(path) == data


@files_only("looks at the times of files")
@pytest.mark.parametrize("size", [1000, 500_000, MIB])
def test_T26_nothing_is_written_of_a_wrong_chunk_that_fits_into_memory(tus: Tus, size: int) -> None:
    data, wrong = large(3, size), {"Upload-Checksum": checksum(b"another")}
    directory = tus.server.upload_dir / ".tusd-py" / "chunks"

    def was_quick() -> bool:
        path = tus.new(size)
        written = tus.server.data_file(id_of(path)), directory
        before = [place.stat().st_mtime_ns for place in written]
        began = time.monotonic()
        assert tus.patch(path, 0, data, wrong).status == 460
        # One that takes longer has no claim to memory.
        is_quick = time.monotonic() - began < SLOW_FILL_SECONDS
        assert not is_quick or [place.stat().st_mtime_ns for place in written] == before
        return is_quick

    wait_until(was_quick, "a chunk that comes in within a second")


def test_T25_clients_that_stand_still_do_not_keep_the_others_from_memory(tus: Tus) -> None:
    """Sixty of them hold all that there is; each still gets its chunk verified in the end."""
    data = large(4, MIB)
    headers = {"Upload-Checksum": checksum(data, "sha256")}
    with ExitStack() as stack:
        stalled = [
            stack.enter_context(tus.begin_patch(tus.new(MIB), 0, MIB, data[:700_000], headers))
            for _ in range(60)
        ]
        path = tus.new(2 * MIB)
        assert tus.patch(path, 0, data, headers).status == 204
        other = {"Upload-Checksum": checksum(data[::-1], "sha256")}
        assert tus.patch(path, MIB, data, other).status == 460
        assert tus.patch(path, MIB, data, headers).status == 204
        assert tus.stored(path) == data + data
        for patch in stalled:
            patch.send(data[700_000:])
        assert [patch.response().status for patch in stalled] == [204] * 60
        for patch in stalled:
            assert tus.stored(patch.path) == data


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="asked of the system")
def test_T25_T26_checksums_on_one_processor(make_server: MakeServer) -> None:
    one = min(os.sched_getaffinity(0))
    script = (
        f"import os, sys; os.sched_setaffinity(0, [{one}]); os.execv(sys.argv[1], sys.argv[1:])"
    )
    tus = Tus(make_server(prefix=(sys.executable, "-c", script)))
    data = large(1)
    path = tus.new(len(data))
    wrong = {"Upload-Checksum": checksum(data[:-1] + b"?", "sha256")}
    assert tus.patch(path, 0, data, wrong).status == 460
    assert tus.offset(path) == 0
    assert tus.patch(path, 0, data, {"Upload-Checksum": checksum(data, "sha256")}).status == 204
    assert tus.stored(path) == data


def test_T25_a_right_checksum_of_nothing(tus: Tus) -> None:
    path = tus.new(5)
    response = tus.patch(path, 0, b"", {"Upload-Checksum": checksum(b"")})
    assert (response.status, response["Upload-Offset"]) == (204, "0")


# -- T26 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_T26_a_wrong_checksum_discards_the_chunk(tus: Tus, algorithm: str) -> None:
    path = tus.new(16)
    tus.patch(path, 0, b"first")
    headers = {"Upload-Checksum": checksum(b"hello World", algorithm)}
    response = tus.patch(path, 5, b"hello world", headers)
    assert response.status == 460
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"first"
    good = {"Upload-Checksum": checksum(b"hello world", algorithm)}
    assert tus.patch(path, 5, b"hello world", good).status == 204
    assert tus.stored(path) == b"firsthello world"


def test_T26_a_wrong_checksum_discards_a_large_chunk(tus: Tus) -> None:
    path = tus.new(len(BODY) + 5)
    tus.patch(path, 0, b"first")
    response = tus.patch(path, 5, BODY, {"Upload-Checksum": checksum(BODY[:-1])})
    assert response.status == 460
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"first"


def test_T26_a_wrong_checksum_does_not_finish_the_upload(tus: Tus) -> None:
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello", {"Upload-Checksum": checksum(b"x")}).status == 460
    assert tus.get(path).status == 404


@pytest.mark.parametrize(
    "value",
    [
        "md4 AAAA",
        "SHA1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        "sha1",
        "sha1 ",
        "sha1 !!!!",
        "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00",
        "sha1 AAAA",
        "sha1  qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00= x",
        "",
        "qvTGHdzF6KLavt4PO0gs2a6pQ00=",
        "__class__ AAAA",
        "shake_128 AAAA",
    ],
)
def test_T26_an_unknown_or_malformed_checksum_stores_nothing(tus: Tus, value: str) -> None:
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello", {"Upload-Checksum": value}).status == 400
    assert tus.stored(path) == b""
    assert tus.offset(path) == 0


@pytest.mark.parametrize("sent", [5_000, 1_500_000])
def test_T26_unverified_bytes_do_not_count_after_a_crash(
    make_server: MakeServer, sent: int
) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(len(BODY) + 5)
    tus.patch(path, 0, b"first")
    headers = {"Upload-Checksum": checksum(BODY)}
    with tus.begin_patch(path, 5, len(BODY), BODY[:sent], headers) as patch:
        patch.wait_stored_in_part()
        server.kill9()
    server.restart()
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, BODY, headers).status == 204
    assert tus.stored(path) == b"first" + BODY


def test_T26_plain_bytes_count_after_a_crash_beside_a_verified_chunk(
    make_server: MakeServer,
) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(len(BODY))
    tus.patch(path, 0, BODY[:1000], {"Upload-Checksum": checksum(BODY[:1000])})
    with tus.begin_patch(path, 1000, len(BODY) - 1000, BODY[1000:5000]) as patch:
        patch.wait_stored()
        server.kill9()
    server.restart()
    assert tus.offset(path) == 5000


# -- T27 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [5, 5_000, 1_500_000])
def test_T27_a_cut_chunk_with_a_checksum_is_discarded(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY) + 5)
    tus.patch(path, 0, b"first")
    headers = {"Upload-Checksum": checksum(BODY)}
    with tus.begin_patch(path, 5, len(BODY), BODY[:sent], headers) as patch:
        patch.connection.half_close()
        patch.connection.read_to_end()
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"first"
    assert tus.patch(path, 5, BODY, headers).status == 204


@pytest.mark.parametrize("sent", [5, 5_000, 1_500_000])
def test_T27_a_reset_chunk_with_a_checksum_is_discarded(tus: Tus, sent: int) -> None:
    path = tus.new(len(BODY) + 5)
    tus.patch(path, 0, b"first")
    headers = {"Upload-Checksum": checksum(BODY)}
    with tus.begin_patch(path, 5, len(BODY), BODY[:sent], headers) as patch:
        patch.connection.reset()
    assert tus.offset(path) == 5
    wait_until(lambda: tus.stored(path) == b"first", "the chunk's end")


def test_T27_a_newcomer_finds_nothing_of_an_unverified_chunk(tus: Tus) -> None:
    path = tus.new(len(BODY) + 5)
    tus.patch(path, 0, b"first")
    headers = {"Upload-Checksum": checksum(BODY)}
    with tus.begin_patch(path, 5, len(BODY), BODY[:5000], headers) as patch:
        patch.wait_stored()
        assert tus.offset(path) == 5
    assert tus.stored(path) == b"first"


# -- T28 ---------------------------------------------------------------------------------------


def begin_with_trailer(tus: Tus, path: str, offset: int) -> OpenPatch:
    return tus.begin_patch(path, offset, None, headers={"Trailer": "Upload-Checksum"})


def patch_with_trailer(
    tus: Tus, path: str, offset: int, data: bytes, trailer: str | None
) -> Response:
    with begin_with_trailer(tus, path, offset) as patch:
        for start in range(0, len(data), 700_001):
            patch.connection.send(chunk(data[start : start + 700_001]))
        patch.connection.send(last_chunk({"Upload-Checksum": trailer} if trailer else {}))
        return patch.response()


@sizes
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_T28_a_right_trailer(tus: Tus, algorithm: str, size: int) -> None:
    data = BODY[: min(size, 100_000)] if algorithm == "crc32c" else BODY[:size]
    path = tus.new(len(data))
    response = patch_with_trailer(tus, path, 0, data, checksum(data, algorithm))
    assert (response.status, response["Upload-Offset"]) == (204, str(len(data)))
    assert tus.get(path).body == data


@sizes
def test_T28_a_wrong_trailer_discards_the_chunk(tus: Tus, size: int) -> None:
    path = tus.new(size + 5)
    tus.patch(path, 0, b"first")
    response = patch_with_trailer(tus, path, 5, BODY[:size], checksum(b"other"))
    assert response.status == 460
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"first"
    response = patch_with_trailer(tus, path, 5, BODY[:size], checksum(BODY[:size]))
    assert response.status == 204


@pytest.mark.parametrize("value", ["md4 AAAA", "sha1", "sha1 !!!!", None])
def test_T28_an_unknown_malformed_or_missing_trailer_discards_the_chunk(
    tus: Tus, value: str | None
) -> None:
    path = tus.new(16)
    tus.patch(path, 0, b"first")
    assert patch_with_trailer(tus, path, 5, b"hello world", value).status == 400
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"first"


@sizes
def test_T28_a_cut_before_the_trailer_discards_the_chunk(tus: Tus, size: int) -> None:
    path = tus.new(size + 5)
    tus.patch(path, 0, b"first")
    with begin_with_trailer(tus, path, 5) as patch:
        patch.connection.send(chunk(BODY[:size]) + b"0\r\n")
        patch.connection.half_close()
        patch.connection.read_to_end()
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"first"


@sizes
def test_T28_a_crash_before_the_trailer_discards_the_chunk(
    make_server: MakeServer, size: int
) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(size + 5)
    tus.patch(path, 0, b"first")
    with begin_with_trailer(tus, path, 5) as patch:
        patch.send(BODY[:size])
        patch.wait_stored_in_part()
        server.kill9()
    server.restart()
    assert tus.offset(path) == 5


def test_T28_a_trailer_on_a_creation(make_server: MakeServer) -> None:
    tus = Tus(make_server())
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": "5",
        "Content-Type": OCTETS,
        "Transfer-Encoding": "chunked",
        "Trailer": "Upload-Checksum",
    }
    responses = []
    for data in (b"hello", b"other"):
        with tus.connect() as connection:
            connection.send_head("POST", tus.collection, headers)
            trailer = {"Upload-Checksum": checksum(data)}
            connection.send(chunk(b"hello") + last_chunk(trailer))
            responses.append(connection.read_response("POST"))
    assert [response.status for response in responses] == [201, 460]
    first = path_of(responses[0]["Location"])
    assert tus.stored(first) == b"hello"
    others = [name for name in tus.data_files() if name != id_of(first)]
    assert all(tus.server.data_file(name).stat().st_size == 0 for name in others)


def test_T28_the_trailers_name_may_be_one_of_several_in_any_case(tus: Tus) -> None:
    path = tus.new(5)
    headers = {"Trailer": "Expires, upload-CHECKSUM"}
    with tus.begin_patch(path, 0, None, b"hello", headers) as patch:
        patch.connection.send_last_chunk(
            {"Expires": "never", "UPLOAD-checksum": checksum(b"other")}
        )
        assert patch.response().status == 460
    assert tus.offset(path) == 0


def test_T28_the_connection_goes_on_after_a_trailer(tus: Tus) -> None:
    path = tus.new(5)
    with begin_with_trailer(tus, path, 0) as patch:
        patch.send(b"hello")
        patch.connection.send_last_chunk({"Upload-Checksum": checksum(b"hello")})
        assert patch.response().status == 204
        assert patch.connection.request("HEAD", path)["Upload-Offset"] == "5"
