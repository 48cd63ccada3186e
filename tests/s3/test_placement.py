"""Where hooks place uploads in a bucket, and what they are told of where uploads are."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import botocore.session
import pytest
from botocore.exceptions import ClientError

from tests.conftest import MakeServer
from tests.s3.servers import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, S3Server
from tests.s3.test_server import Servers
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until

ELSEWHERE = "tests-elsewhere"
BODY = bytes(range(256)) * 4
LARGE = BODY * 6144

HOOK = """
import json
from tusd_py import Changes, Placement

def pre_create(event):
    wanted = {key: value.decode() for key, value in event.upload.metadata.items()}
    id = wanted.pop("id", None)
    return Changes(id=id, placement=Placement(**wanted) if wanted else None)
"""
TELL = """#!/bin/sh
cat > "$(dirname "$0")/told.json.new" && mv "$(dirname "$0")/told.json.new" "$(dirname "$0")/told.json"
"""

Start = Callable[..., Tus]


@pytest.fixture
def objects(seaweedfs: S3Server) -> Callable[..., bytes | None]:
    """Reads an object, or None."""
    session = botocore.session.Session()
    session.set_credentials(ACCESS_KEY, SECRET_KEY)
    client = session.create_client("s3", endpoint_url=seaweedfs.endpoint, region_name=REGION)

    def read(key: str, bucket: str = BUCKET) -> bytes | None:
        try:
            return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        except ClientError:
            return None

    return read


@pytest.fixture
def start(make_server: MakeServer, seaweedfs: S3Server, prefix: str, tmp_path: Path) -> Start:
    with suppress(ClientError):
        seaweedfs.make_bucket(ELSEWHERE)
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)

    def begin(*flags: str) -> Tus:
        servers = Servers(make_server, seaweedfs.endpoint, f"{prefix}own/")
        return Tus(servers("--hook", str(hook), *flags))

    return begin


def placed(tus: Tus, **wanted: str) -> str:
    return tus.new(len(BODY), headers={"Upload-Metadata": metadata(**wanted)})


def test_hooks_are_told_bucket_and_key(
    start: Start, objects: Callable[..., bytes | None], prefix: str, tmp_path: Path
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "pre-finish").write_text(TELL)
    (hooks / "pre-finish").chmod(0o755)
    flags = ("--hooks-dir", str(hooks), "--hooks-enabled-events", "pre-finish")
    allowed = ("--s3-allowed-locations", f"{ELSEWHERE}/{prefix}")
    tus = Tus(start(*flags, *allowed).server)
    for wanted, bucket, key in (
        ({"id": "plain"}, BUCKET, f"{prefix}own/plain"),
        ({"key": f"{prefix}own/a/b"}, BUCKET, f"{prefix}own/a/b"),
        ({"bucket": ELSEWHERE, "key": f"{prefix}c"}, ELSEWHERE, f"{prefix}c"),
    ):
        path = placed(tus, **wanted)
        assert tus.patch(path, 0, BODY).status == 204
        told = json.loads((hooks / "told.json").read_text())["Event"]["Upload"]["Storage"]
        assert told == {"Bucket": bucket, "Key": key, "Type": "s3store"}
        assert list(told) == sorted(told)
        assert objects(key, bucket) == BODY
        record = json.loads(objects(f"{prefix}own/{id_of(path)}.info") or b"")
        assert record["Storage"] == told


def test_a_placed_upload_lives_where_it_was_placed(
    start: Start, objects: Callable[..., bytes | None], prefix: str
) -> None:
    tus = start("--s3-allowed-locations", f"{ELSEWHERE}/{prefix}, {BUCKET}/{prefix}cold/")
    far = {"bucket": ELSEWHERE, "prefix": f"{prefix}tenant/"}
    path = tus.new(len(LARGE), headers={"Upload-Metadata": metadata(**far)})
    key = f"{prefix}tenant/{id_of(path)}"
    # Parts, a tail, and a server that knows nothing yet.
    assert tus.patch(path, 0, LARGE[:-100]).status == 204
    again = start("--s3-allowed-locations", ELSEWHERE)
    assert again.offset(path) == len(LARGE) - 100
    assert again.patch(path, len(LARGE) - 100, LARGE[-100:]).status == 204
    assert objects(key, ELSEWHERE) == LARGE
    assert objects(key) is None
    # The first server takes itself for the only one, as it shares no Redis, and still has it unfinished.
    assert again.get(path).body == LARGE
    part = tus.new(
        len(BODY), headers={"Upload-Concat": "partial", "Upload-Metadata": metadata(**far)}
    )
    tus.patch(part, 0, BODY)
    other = tus.new(
        len(LARGE), headers={"Upload-Concat": "partial", "Upload-Metadata": metadata(**far)}
    )
    tus.patch(other, 0, LARGE)
    joined = tus.create(headers={"Upload-Concat": f"final;{other} {part}"})
    assert (
        tus.get(joined["Location"].partition("/files/")[1] + id_of(joined["Location"])).body
        == LARGE + BODY
    )
    cold = placed(tus, prefix=f"{prefix}cold/")
    tus.patch(cold, 0, BODY)
    assert objects(f"{prefix}cold/{id_of(cold)}") == BODY
    assert tus.delete(path).status == 204
    assert objects(key, ELSEWHERE) is None


def test_a_place_that_is_not_allowed_is_refused(start: Start, prefix: str) -> None:
    tus = start("--s3-allowed-locations", f"{ELSEWHERE}/{prefix}")
    for wanted in (
        {"bucket": ELSEWHERE, "key": "x"},
        {"bucket": ELSEWHERE, "prefix": f"{prefix}../"},
        {"key": f"{prefix}own/../x"},
        {"key": f"{prefix}other/x"},
        {"key": f"{prefix}own/.tusd-py/x"},
        {"key": f"{prefix}own/x.info"},
        {"bucket": "not/one", "key": f"{prefix}x"},
    ):
        response = tus.create(3, headers={"Upload-Metadata": metadata(**wanted)})
        assert response.status == 500, wanted
        assert prefix not in response.text
    said = "a pre-create hook chose a place that cannot be used: s3://"
    wait_until(lambda: tus.server.log().count(said) == 7, "all refusals to be logged")


def test_a_place_belongs_to_one_upload(start: Start, prefix: str) -> None:
    """Also before its object is there: the second would replace the first."""
    tus = start()
    key = f"{prefix}own/study"
    first = placed(tus, key=key)
    assert tus.create(3, headers={"Upload-Metadata": metadata(key=key)}).status == 409
    # By its id, too.
    assert tus.create(3, headers={"Upload-Metadata": metadata(id="study")}).status == 409
    assert tus.patch(first, 0, BODY).status == 204
    assert tus.create(3, headers={"Upload-Metadata": metadata(key=key)}).status == 409
    assert tus.get(first).body == BODY
    assert tus.delete(first).status == 204
    second = placed(tus, key=key)
    assert tus.patch(second, 0, bytes(len(BODY))).status == 204
    assert tus.get(second).body == bytes(len(BODY))
    plain = placed(tus, id="plain")
    assert (
        tus.create(3, headers={"Upload-Metadata": metadata(key=f"{prefix}own/plain")}).status == 409
    )
    assert tus.delete(plain).status == 204


def test_files_have_no_buckets(make_server: MakeServer, tmp_path: Path) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    tus = Tus(make_server("--hook", str(hook)))
    assert tus.create(3, headers={"Upload-Metadata": metadata(bucket="b")}).status == 500
    wait_until(lambda: "uploads are in a directory" in tus.server.log(), "it to be logged")
