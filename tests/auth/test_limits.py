"""Limits in an access token: the size of uploads, and the number of unfinished ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.auth.people import access, bearer
from tests.support.tus import Tus, path_of

SMALL = bearer(access("small", max_upload_size=10))


@pytest.mark.parametrize(
    ("length", "body", "headers", "status"),
    [
        (10, None, {}, 201),
        (11, None, {}, 413),
        (None, b"01234567890", {"Upload-Defer-Length": "1"}, 413),
        (None, b"0123456789", {"Upload-Defer-Length": "1"}, 201),
    ],
)
def test_no_upload_is_larger_than_the_token_allows(
    tus: Tus, length: int | None, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    assert tus.create(length, body=body, headers={**SMALL, **headers}).status == status


def test_the_size_is_remembered_while_the_length_is_unknown(tus: Tus) -> None:
    path = tus.new(None, headers=SMALL)
    larger = bearer(access("small"))
    assert tus.patch(path, 0, b"0" * 11, larger).status == 413
    assert tus.patch(path, 0, b"0" * 5, larger).status == 204
    assert tus.patch(path, 5, b"0", {**larger, "Upload-Length": "11"}).status == 413
    assert tus.patch(path, 5, b"0" * 5, {**larger, "Upload-Length": "10"}).status == 204


def test_parts_do_not_make_it_larger(tus: Tus) -> None:
    partial = {**SMALL, "Upload-Concat": "partial"}
    parts = [tus.create(6, body=b"012345", headers=partial) for _ in range(2)]
    urls = " ".join(part["Location"] for part in parts)
    tokens = {"Upload-Token": ", ".join(part["Upload-Token"] for part in parts)}
    for headers in (SMALL, tokens, bearer(access("small"))):
        assert tus.create(headers={**headers, "Upload-Concat": f"final;{urls}"}).status == 413


def test_only_so_many_uploads_may_be_unfinished(tus: Tus) -> None:
    three = bearer(access("three", max_open_uploads=3))
    paths = [tus.new(5, headers=three) for _ in range(3)]
    refused = tus.create(5, headers=three)
    assert (refused.status, refused.code) == (429, "ERR_TOO_MANY_UPLOADS")
    # Finished, removed: both make room, at once.
    assert tus.patch(paths[0], 0, b"12345", three).status == 204
    assert tus.create(5, headers=three).status == 201
    assert tus.create(5, headers=three).status == 429
    assert tus.delete(paths[1], three).status == 204
    assert tus.create(5, headers=three).status == 201
    assert tus.create(5, headers=three).status == 429
    assert tus.create(5, headers=bearer(access("four", max_open_uploads=3))).status == 201


def test_creations_that_fail_do_not_count(tus: Tus) -> None:
    one = bearer(access("one", max_open_uploads=1))
    for _ in range(3):
        assert tus.create(5, headers={**one, "Upload-Metadata": "a a a"}).status == 400
        assert tus.create(5, body=b"123456", headers=one).status == 413
        assert tus.create(headers={**one, "Upload-Concat": "final;/files/none"}).status == 404
    assert tus.create(5, headers=one).status == 201


def test_those_that_finish_at_once_never_fill_it(tus: Tus) -> None:
    one = bearer(access("quick", max_open_uploads=1))
    for _ in range(5):
        assert tus.create(5, body=b"12345", headers=one).status == 201


def test_of_many_creations_at_once_no_more_come_about(tus: Tus) -> None:
    five = bearer(access("many", max_open_uploads=5))
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: tus.create(5, headers=five).status, range(20)))
    assert sorted(found) == [201] * 5 + [429] * 15


def test_the_owner_is_recorded(tus: Tus) -> None:
    path = path_of(tus.create(5, headers=SMALL)["Location"])
    ours = tus.info(path)["TusdPy"]
    assert isinstance(ours, dict)
    assert (ours["Owner"], ours["MaxSize"]) == ("small", 10)
