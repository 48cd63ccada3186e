"""What a bucket cannot take is refused when it is announced, not when its last byte is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.s3.conftest import shared
from tests.s3.servers import BUCKET, ENVIRONMENT
from tests.support.forked import ForkedServer
from tests.support.tus import Tus, metadata, path_of
from tests.support.waiting import wait_until
from tusd_py import Settings
from tusd_py.uploads.policy import UploadPolicy

MIB = 1 << 20
GIB = 1 << 30
MOST = 600 * MIB
"""Largest object of the store."""
UNKNOWN = 500 * MIB
"""Bytes in a hundred parts of the least size."""
LONG = f"{'é' * 100}/" * 4 + "x" * 20 + "/"
"""A prefix that leaves little room."""
HOOK = """
from tusd_py import Changes

def pre_create(event):
    id = event.upload.metadata.get("id")
    return Changes(id=id.decode()) if id else None
"""


class Started:
    """Servers that are shared by the tests of this module."""

    def __init__(self, directory: pytest.TempPathFactory, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self._prefix = f"{uuid4().hex}/"

    def __call__(self, name: str, *flags: str) -> ForkedServer:
        directory = self._directory.mktemp(name)
        bucket = ("--s3-bucket", BUCKET, "--s3-endpoint", shared("seaweedfs").endpoint)
        prefixes = ("--s3-object-prefix", self._prefix, "--s3-info-prefix", self._prefix)
        every = (*bucket, *prefixes, "--s3-part-size", "5MiB", *flags)
        server = ForkedServer(directory / "server", *every, env=ENVIRONMENT)
        self._stack.callback(server.kill9)
        server.wait_until_up()
        return server


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with ExitStack() as stack:
        yield Started(tmp_path_factory, stack)


@pytest.fixture(scope="module")
def tus(started: Started) -> Tus:
    """Of a server with small limits."""
    few = ("--s3-max-parts", "100", "--s3-equal-parts")
    return started("small", "--s3-max-object-size", str(MOST), "--max-size", "1TB", *few).client()


@pytest.fixture(scope="module")
def few_parts(started: Started) -> Tus:
    """Of a server that may use a hundred parts, for objects of any size."""
    return started("few", "--s3-max-parts", "100", "--s3-max-object-size", "5TB").client()


def lengths(most: int) -> tuple[dict[str, str], ...]:
    return tuple({"Upload-Length": str(length)} for length in (most + 1, 10**13, 10**18))


def test_a_length_that_no_object_can_have_is_refused_at_creation(tus: Tus) -> None:
    assert tus.options()["Tus-Max-Size"] == str(MOST)
    for headers in lengths(MOST):
        for kind in ({}, {"Upload-Concat": "partial"}):
            refused = tus.create(headers={**headers, **kind})
            assert (refused.status, refused.code) == (413, "ERR_MAX_SIZE_EXCEEDED")
            assert f"at most {MOST} bytes are accepted" in refused.text
    assert tus.create(MOST).status == 201
    deferred = tus.new(None)
    for headers in lengths(MOST):
        refused = tus.patch(deferred, 0, b"x", headers)
        assert (refused.status, refused.code) == (413, "ERR_MAX_SIZE_EXCEEDED")
    assert tus.patch(deferred, 0, b"x", {"Upload-Length": str(UNKNOWN)}).status == 204


def test_a_final_that_no_object_can_hold_is_refused_at_its_creation(tus: Tus) -> None:
    """Also while its parts have no bytes yet, and when the last of their lengths becomes known."""
    partial = {"Upload-Concat": "partial"}
    half = tus.new(MOST // 2, headers=partial)
    more = tus.new(MOST // 2 + 1, headers=partial)
    refused = tus.create(headers={"Upload-Concat": f"final;{half} {more}"})
    assert (refused.status, refused.code) == (413, "ERR_MAX_SIZE_EXCEEDED")
    later = tus.new(None, headers=partial)
    created = tus.create(headers={"Upload-Concat": f"final;{half} {later}"})
    assert created.status == 201
    declared = {"Upload-Length": str(MOST // 2 + 1)}
    assert tus.patch(later, 0, b"x", declared).status == 204
    assert tus.head(path_of(created["Location"])).status == 413


def test_the_smaller_limit_counts_and_that_of_the_parts_too(few_parts: Tus) -> None:
    assert UploadPolicy(max_size=1000).within(MOST).max_size == 1000
    assert UploadPolicy(max_size=1000).within(None).max_size == 1000
    assert UploadPolicy().within(MOST).max_size == MOST
    # A hundred parts of 5 GiB; an object might be larger.
    most = 100 * 5 * GIB
    assert few_parts.options()["Tus-Max-Size"] == str(most)
    assert few_parts.create(most).status == 201
    assert few_parts.create(most + 1).status == 413


def test_more_than_the_parts_of_an_unknown_length_can_hold_is_refused_before_it_is_sent(
    tus: Tus,
) -> None:
    path = tus.new(None)
    said = f"at most {UNKNOWN} bytes are accepted of an upload created without a length"
    refused = tus.patch(path, 0, b"x", {"Upload-Length": str(UNKNOWN + 1)})
    assert (refused.status, refused.code) == (413, "ERR_MAX_SIZE_EXCEEDED")
    assert said in refused.text
    # A body that says how long it is, for an upload that does not.
    with tus.begin_patch(path, 0, UNKNOWN + 1, b"") as patch:
        refused = patch.response()
    assert (refused.status, said in refused.text) == (413, True)
    assert tus.offset(path) == 0
    assert tus.create(UNKNOWN + 1).status == 201
    assert tus.patch(path, 0, b"x", {"Upload-Length": str(UNKNOWN)}).status == 204


def test_parts_of_an_unknown_length_grow_where_a_store_takes_few(few_parts: Tus, tus: Tus) -> None:
    """Ten parts of 5 MiB, then larger ones; another server that was told of other limits goes on with them."""
    path = few_parts.new(None)
    body = bytes(range(256)) * (52 * MIB // 256)
    assert few_parts.patch(path, 0, body).status == 204
    assert tus.offset(path) == len(body)
    end = {"Upload-Length": str(len(body) + 5)}
    assert tus.patch(path, len(body), b"hello", end).status == 204
    assert tus.get(path, {"Range": "bytes=54525900-"}).body == body[54525900:] + b"hello"


def test_an_id_that_makes_a_key_too_long_is_refused_at_creation(
    started: Started, tmp_path: Path
) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    prefixes = ("--s3-object-prefix", LONG, "--s3-info-prefix", LONG)
    server = started("long", "--hook", str(hook), *prefixes)
    tus = server.client()
    assert tus.create(3).status == 201
    assert tus.create(3, headers={"Upload-Metadata": metadata(id="ü" * 60)}).status == 201
    for too_long in ("ü" * 100, "a/" * 99 + "b"):
        refused = tus.create(3, headers={"Upload-Metadata": metadata(id=too_long)})
        assert (refused.status, refused.code) == (500, "ERR_INTERNAL_SERVER_ERROR")
        assert "é" not in refused.text
    said = "bytes, more than the 1024 that a bucket takes"
    wait_until(lambda: server.log().count(said) == 2, "both refusals to be logged")


def test_a_prefix_that_leaves_no_room_for_an_id_is_refused_at_the_start() -> None:
    longest, longer = "é" * 450, "é" * 451
    Settings(s3_bucket="uploads", s3_object_prefix=longest, s3_info_prefix=longest)
    with pytest.raises(ValueError, match="give at most 900 bytes"):
        Settings(s3_bucket="uploads", s3_object_prefix=longer)
    with pytest.raises(ValueError, match="give at most 900 bytes"):
        Settings(s3_bucket="uploads", s3_info_prefix=longer)
