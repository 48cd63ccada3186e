"""Digest fields (RFC 9530): of a request's body, and of a whole upload."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.support.ietf import PROBLEMS, Ietf, announced
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of

LARGE = b"0123456789abcdef" * 200_000
"""More than what is kept in memory until it is verified."""


@pytest.fixture(params=[9, None], ids=str)
def ietf(request: pytest.FixtureRequest, server: ServerProcess) -> Ietf:
    version: int | None = request.param
    return Ietf(server, version)


def digest(data: bytes, algorithm: str = "sha-256") -> str:
    made = hashlib.new(algorithm.replace("-", ""), data).digest()
    return f"{algorithm}=:{base64.b64encode(made).decode()}:"


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("data", [b"hello", LARGE], ids=["small", "large"])
def test_R21_content_digest(ietf: Ietf, data: bytes, algorithm: str) -> None:
    path = ietf.new(2 * len(data))
    wrong = ietf.append(path, 0, data, headers={"Content-Digest": digest(data + b"!", algorithm)})
    assert wrong.status == 400
    assert wrong.text.count(PROBLEMS + "digest-mismatched-values") == 1
    assert not ietf.is_complete(wrong)
    assert ietf.offset(path) == 0
    right = ietf.append(path, 0, data, headers={"Content-Digest": digest(data, algorithm)})
    assert right["Upload-Offset"] == str(len(data))
    assert right.interim == ()
    assert ietf.stored(path) == data


def test_R21_content_digest_of_a_creation(ietf: Ietf) -> None:
    assert ietf.create(LARGE, headers={"Content-Digest": digest(LARGE)}).status == 201
    before = ietf.server.uploads()
    wrong = ietf.create(LARGE, headers={"Content-Digest": digest(b"")})
    assert wrong.status == 400
    assert ietf.server.uploads() == before
    empty = ietf.create(b"", headers={"Content-Digest": digest(b"")})
    assert empty.status == 201
    assert ietf.create(b"", headers={"Content-Digest": digest(b"x")}).status == 400


@pytest.mark.parametrize("right", [True, False])
def test_R21_content_digest_as_a_trailer(ietf: Ietf, *, right: bool) -> None:
    path = ietf.new(5)
    with ietf.connect() as connection:
        fields = {"Transfer-Encoding": "chunked", "Trailer": "Content-Digest"}
        connection.send_head("PATCH", path, ietf.append_headers(0, True, fields))
        connection.send_chunk(b"hello")
        connection.send_last_chunk({"Content-Digest": digest(b"hello" if right else b"jello")})
        response = connection.read_response("PATCH")
    assert response.status == (201 if right else 400)
    assert ietf.offset(path) == (5 if right else 0)


def test_R21_a_cut_body_with_a_digest_counts_for_nothing(ietf: Ietf) -> None:
    """And no byte of it is acknowledged before."""
    path = ietf.new(len(LARGE))
    with ietf.connect() as connection:
        fields = {"Content-Length": str(len(LARGE)), "Content-Digest": digest(LARGE)}
        connection.send_head("PATCH", path, ietf.append_headers(0, True, fields))
        connection.send(LARGE[: len(LARGE) // 2])
        assert connection.silent_for(0.7)
    assert ietf.offset(path) == 0


@pytest.mark.parametrize("value", ["sha-256=:AAAA:", "sha-256", "sha-256=5", "=", "a b"])
@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
def test_R21_digests_that_are_none(server: ServerProcess, name: str, value: str) -> None:
    response = Ietf(server, 9).create(b"hello", headers={name: value})
    assert response.status == 400
    assert "ERR_INVALID_DIGEST" in response.text
    assert not response.interim


def test_R21_digests_of_other_algorithms_are_ignored(ietf: Ietf) -> None:
    other = {"Content-Digest": "md5=:AAAA:", "Repr-Digest": "crc32c=:AAAA:"}
    assert ietf.create(b"hello", headers=other).status == 201
    both = {"Content-Digest": f"md5=:AAAA:, {digest(b'hello')}"}
    assert ietf.create(b"hello", headers=both).status == 201


def test_R21_repr_digest_of_an_upload_in_pieces(ietf: Ietf) -> None:
    whole = b"hello world"
    path = ietf.new(len(whole), b"hello", {"Repr-Digest": digest(whole, "sha-512")})
    done = ietf.append(path, 5, b" world", complete=True)
    assert done.status == 201
    assert ietf.stored(path) == whole
    wrong = ietf.new(len(whole), b"hello", {"Repr-Digest": digest(whole)})
    failed = ietf.append(wrong, 5, b"!world", complete=True)
    assert failed.status == 400
    assert failed.text.count(PROBLEMS + "digest-mismatched-values") == 1
    assert ietf.head(wrong).status == 410
    assert id_of(wrong) not in ietf.server.uploads()


def test_R21_repr_digest_with_the_append_that_completes_an_upload(ietf: Ietf) -> None:
    whole = b"hello world"
    path = ietf.new(len(whole), b"hello")
    fields = {"Repr-Digest": digest(whole, "sha-512")}
    assert ietf.append(path, 5, b" world", complete=True, headers=fields).status == 201
    assert ietf.stored(path) == whole
    # It may be repeated, with the same digest.
    assert ietf.append(path, 11, b"", complete=True, headers=fields).status == 201
    other = ietf.append(path, 11, b"", complete=True, headers={"Repr-Digest": digest(b"")})
    assert (other.status, "ERR_INVALID_DIGEST" in other.text) == (400, True)
    wrong = ietf.new(len(whole), b"hello")
    failed = ietf.append(wrong, 5, b"!world", complete=True, headers=fields)
    assert failed.status == 400
    assert failed.text.count(PROBLEMS + "digest-mismatched-values") == 1
    assert ietf.head(wrong).status == 410


def test_R21_an_append_cannot_announce_another_repr_digest(ietf: Ietf) -> None:
    whole = b"hello world"
    path = ietf.new(len(whole), b"hello", {"Repr-Digest": digest(whole)})
    for other in (digest(b"hello!world"), digest(whole, "sha-512")):
        refused = ietf.append(path, 5, b"!world", complete=True, headers={"Repr-Digest": other})
        assert (refused.status, "ERR_INVALID_DIGEST" in refused.text) == (400, True)
    both = f"{digest(whole)}, {digest(b'hello!world', 'sha-512')}"
    wrong_too = ietf.new(len(whole), b"hello", {"Repr-Digest": both})
    fields = {"Repr-Digest": digest(whole, "sha-512")}
    assert ietf.append(wrong_too, 5, b" world", complete=True, headers=fields).status == 400
    assert ietf.offset(path) == 5
    same = {"Repr-Digest": digest(whole)}
    assert ietf.append(path, 5, b" world", complete=True, headers=same).status == 201


def test_R21_the_digest_that_was_announced_is_found_among_several(ietf: Ietf) -> None:
    whole = b"hello world"
    path = ietf.new(len(whole), b"hello", {"Repr-Digest": digest(whole, "sha-512")})
    both = {"Repr-Digest": f"{digest(whole)}, {digest(whole, 'sha-512')}"}
    for offset, rest in ((5, b" world"), (11, b"")):
        assert ietf.append(path, offset, rest, complete=True, headers=both).status == 201
    assert ietf.stored(path) == whole


def test_R21_repr_digest_of_an_append_that_is_cut_counts_for_the_rest(ietf: Ietf) -> None:
    path = ietf.new(len(LARGE))
    fields = {"Content-Length": str(len(LARGE)), "Repr-Digest": digest(LARGE)}
    with ietf.connect() as connection:
        connection.send_head("PATCH", path, ietf.append_headers(0, True, fields))
        connection.send(LARGE[:500_000])
        ietf.wait_stored(path, 500_000)
    assert ietf.offset(path) == 500_000
    wrong = LARGE[500_000:-1] + b"!"
    assert ietf.append(path, 500_000, wrong, complete=True).status == 400
    assert ietf.head(path).status == 410


def test_R21_repr_digest_of_an_upload_that_tus_completes(ietf: Ietf, tus: Tus) -> None:
    path = ietf.new(10, b"hello", {"Repr-Digest": digest(b"helloworld")})
    assert tus.patch(path, 5, b"world").status == 204
    wrong = ietf.new(10, b"hello", {"Repr-Digest": digest(b"helloworld")})
    assert tus.patch(wrong, 5, b"w0rld").status == 400
    assert tus.head(wrong).status == 410


def test_R21_repr_digest_of_an_upload_in_one_request(server: ServerProcess) -> None:
    """Unlike a body with a digest of its own, one that is cut is kept, and its URL is told."""
    ietf = Ietf(server, 9)
    with ietf.begin_creation(
        len(LARGE), LARGE[:1_000_000], headers={"Repr-Digest": digest(LARGE)}
    ) as connection:
        path = path_of(announced(connection)["Location"])
        ietf.wait_stored(path, 1_000_000)
    assert ietf.offset(path) == 1_000_000
    assert ietf.append(path, 1_000_000, LARGE[1_000_000:], complete=True).status == 201
    before = server.uploads()
    assert ietf.create(LARGE, headers={"Repr-Digest": digest(b"")}).status == 400
    assert server.uploads() == before


@pytest.mark.parametrize(
    ("wanted", "algorithm"),
    [
        ("sha-256=1", "sha-256"),
        ("sha-512=10, sha-256=3", "sha-512"),
        ("md5=10, sha-512=1", "sha-512"),
        ("sha-256=0", None),
        ("md5=10", None),
        ("?!", None),
    ],
)
def test_R21_the_digest_that_a_client_wants(
    server: ServerProcess, wanted: str, algorithm: str | None
) -> None:
    ietf = Ietf(server, 9)
    expected = None if algorithm is None else digest(b"hello world", algorithm)
    at_once = ietf.create(b"hello world", headers={"Want-Repr-Digest": wanted})
    assert at_once.get("Repr-Digest") == expected
    path = ietf.new(11, b"hello", {"Want-Repr-Digest": wanted})
    part = ietf.append(path, 5, b" ")
    assert "Repr-Digest" not in part
    assert ietf.append(path, 6, b"world", complete=True).get("Repr-Digest") == expected
