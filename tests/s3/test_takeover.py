"""Uploads that tusd has left in a bucket: served, gone on with, expired, and taken over by the command."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import botocore.session
import pytest
from botocore.exceptions import ClientError

from tests.conftest import MakeServer
from tests.s3.conftest import Opened
from tests.s3.servers import ACCESS_KEY, BUCKET, ENVIRONMENT, REGION, SECRET_KEY, S3Server
from tests.s3.test_server import Servers
from tests.support import commands, ports
from tests.support.tus import Tus, checksum, metadata
from tests.support.waiting import wait_until
from tusd_py.locks.base import UNFENCED, LeaseLost

MIB = 1024 * 1024
BODY = random.Random(8).randbytes(24 * MIB + 77)


class Left:
    """A prefix of the bucket as tusd leaves it."""

    def __init__(self, server: S3Server, prefix: str, state_dir: Path) -> None:
        self.prefix = prefix
        self._endpoint = server.endpoint
        self._state_dir = state_dir
        session = botocore.session.Session()
        session.set_credentials(ACCESS_KEY, SECRET_KEY)
        self.client = session.create_client("s3", endpoint_url=server.endpoint, region_name=REGION)

    def begin(self, name: str, size: int | None, **more: object) -> str:
        """A new upload; its id."""
        begun = self.client.create_multipart_upload(
            Bucket=BUCKET, Key=self.prefix + name, Metadata={"filename": "a?.txt"}
        )
        upload_id = f"{name}+{begun['UploadId']}"
        document = {
            "ID": upload_id,
            "Size": size or 0,
            "SizeIsDeferred": size is None,
            "Offset": 0,
            "MetaData": {"filename": "ä.txt"},
            "IsPartial": False,
            "IsFinal": False,
            "PartialUploads": None,
            "Storage": {"Bucket": BUCKET, "Key": self.prefix + name, "Type": "s3store"},
        }
        self.put(f"{name}.info", json.dumps({**document, **more}).encode())
        return upload_id

    def put(self, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self.prefix + name, Body=content)

    def parts(self, upload_id: str, parts: Mapping[int, bytes]) -> None:
        name, _, multipart = upload_id.rpartition("+")
        for number, data in parts.items():
            self.client.upload_part(
                Bucket=BUCKET,
                Key=self.prefix + name,
                UploadId=multipart,
                PartNumber=number,
                Body=data,
            )

    def finished(self, name: str, data: bytes) -> str:
        upload_id = self.begin(name, len(data))
        self.client.abort_multipart_upload(
            Bucket=BUCKET, Key=self.prefix + name, UploadId=upload_id.rpartition("+")[2]
        )
        self.put(name, data)
        return upload_id

    def names(self) -> dict[str, str]:
        """All objects, and their etags."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=self.prefix
        )
        return {
            each["Key"][len(self.prefix) :]: each["ETag"]
            for page in pages
            for each in page.get("Contents", ())
        }

    def read(self, name: str) -> bytes | None:
        try:
            found = self.client.get_object(Bucket=BUCKET, Key=self.prefix + name)
        except ClientError:
            return None
        return bytes(found["Body"].read())

    def pending(self) -> int:
        """Multipart uploads that are neither complete nor aborted."""
        found = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.prefix)
        return len(found.get("Uploads", ()))

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command of ours on it; its exit code, and what it printed."""
        bucket = ("--s3-bucket", BUCKET, "--s3-endpoint", self._endpoint)
        prefixes = ("--s3-object-prefix", self.prefix, "--s3-info-prefix", self.prefix)
        env = {**ENVIRONMENT, "TUSD_STATE_DIR": str(self._state_dir)}
        done = commands.run(*arguments, *bucket, *prefixes, env=env)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout


@pytest.fixture
def left(seaweedfs: S3Server, prefix: str, tmp_path: Path) -> Left:
    return Left(seaweedfs, prefix, tmp_path / "state")


@pytest.fixture
def start(make_server: MakeServer, seaweedfs: S3Server, prefix: str) -> Servers:
    return Servers(make_server, seaweedfs.endpoint, prefix)


def go_on(tus: Tus, path: str, offset: int, data: bytes) -> None:
    """Send the rest in two requests, the second with a checksum."""
    middle = (offset + len(data)) // 2
    assert tus.patch(path, offset, data[offset:middle]).status == 204
    assert tus.offset(path) == middle
    headers = {"Upload-Checksum": checksum(data[middle:])}
    assert tus.patch(path, middle, data[middle:], headers).status == 204


def test_finished_uploads_are_served_and_nothing_changes(left: Left, start: Servers) -> None:
    upload_id = left.finished("one", b"hello")
    before = left.names()
    tus = Tus(start())
    path = tus.collection + upload_id
    found = tus.get(path)
    assert (found.status, found.body) == (200, b"hello")
    assert "%C3%A4.txt" in found["Content-Disposition"]
    head = tus.head(path)
    assert (head["Upload-Offset"], head["Upload-Length"]) == ("5", "5")
    assert head["Upload-Metadata"] == metadata(filename="ä.txt")
    assert {name: etag for name, etag in left.names().items() if ".tusd-py/" not in name} == before
    # The object's name alone, which may be no secret, is no id.
    assert tus.get(tus.collection + "one").status == 404
    assert tus.get(tus.collection + "one+another").status == 404
    assert tus.delete(path).status == 204
    assert tus.head(path).status == 410
    assert [name for name in left.names() if ".tusd-py/" not in name] == []


CASES: dict[str, tuple[dict[int, tuple[int, int]], tuple[int, int] | None, int]] = {
    "unequal": ({1: (0, 6), 2: (6, 11)}, (11, 12), 12),
    "equal": ({1: (0, 8), 2: (8, 16)}, None, 16),
    # Behind a gap: tusd would count them.
    "gap": ({1: (0, 5), 3: (11, 16)}, (16, 17), 5),
    "gap-of-one-size": ({1: (0, 5), 3: (10, 15), 4: (15, 20)}, None, 5),
    "no-first": ({2: (5, 10)}, None, 0),
    "tail": ({}, (0, 1), 1),
    "nothing": ({}, None, 0),
    "all-parts": ({1: (0, 14), 2: (14, 17)}, None, 17),
    "all-with-tail": ({1: (0, 14)}, (14, 17), 17),
}
"""Parts, tail and the offset that is true, in MiB."""
LENGTH = 17 * MIB


@pytest.mark.parametrize("deferred", [False, True])
def test_unfinished_uploads_go_on(left: Left, start: Servers, deferred: bool) -> None:
    data = BODY[:LENGTH]
    ids: dict[str, str] = {}
    for name, (parts, tail, _) in CASES.items():
        ids[name] = left.begin(name, None if deferred else LENGTH)
        pieces = {number: data[a * MIB : b * MIB] for number, (a, b) in parts.items()}
        left.parts(ids[name], pieces)
        if tail is not None:
            left.put(f"{name}.part", data[tail[0] * MIB : tail[1] * MIB])
    tus = Tus(start())
    offsets = {name: case[2] * MIB for name, case in CASES.items()}
    for name, offset in offsets.items():
        path = tus.collection + ids[name]
        assert tus.offset(path) == offset, name
        if offset == LENGTH and not deferred:
            continue
        # Made ours, but for what HEAD has finished: with a length, or with a few bytes.
        few = b"" if deferred else data[offset : offset + 1000]
        length = {"Upload-Length": str(LENGTH)} if deferred else {}
        assert tus.patch(path, offset, few, length).status == 204, name
        offsets[name] = offset + len(few)
    # Another server finds all of it in the bucket.
    again = Tus(start())
    for name, offset in offsets.items():
        path = again.collection + ids[name]
        assert again.offset(path) == offset, name
        if offset < LENGTH:
            go_on(again, path, offset, data)
        assert again.get(path).body == data, name
        assert left.read(name) == data, name
    assert {name for name in left.names() if ".tusd-py/" not in name} == {
        *ids,
        *(f"{upload_id}.info" for upload_id in ids.values()),
    }
    assert left.pending() == 0


def test_the_sweep_removes_what_tusd_left_to_expire(left: Left) -> None:
    upload_id = left.begin("one", 100)
    left.parts(upload_id, {1: b"some"})
    left.put("one.part", b"more")
    kept = left.finished("two", b"hello")
    time.sleep(1.1)
    code, text = left.command("sweep", "--expire-after", "1s", "--force")
    assert (code, "2 uploads seen: 1 removed" in text) == (0, True), text
    assert {name for name in left.names() if ".tusd-py/" not in name} == {"two", "two.info"}
    assert left.pending() == 0
    code, text = left.command("uploads", "list", "--json")
    assert [json.loads(line)["upload"] for line in text.splitlines()] == [kept]


def test_the_command_takes_all_over_and_says_what_it_found(left: Left) -> None:
    finished = left.finished("a-finished", b"hello")
    gap = left.begin("b-gap", 30 * MIB)
    left.parts(gap, {1: BODY[: 5 * MIB], 3: BODY[: 5 * MIB], 4: b"x"})
    small = left.begin("c-small", 10)
    left.put("c-small.part", b"abc")
    lost = left.begin("d-lost", 10)
    left.client.abort_multipart_upload(
        Bucket=BUCKET, Key=f"{left.prefix}d-lost", UploadId=lost.rpartition("+")[2]
    )
    short = left.finished("e-short", b"hell")
    left.put("e-short.info", left.read("e-short.info").replace(b'"Size": 4', b'"Size": 5'))  # type: ignore[union-attr]
    final = left.begin("f-final", 10, IsFinal=True, PartialUploads=["x+1", "y+2"])
    elsewhere = left.begin("g-elsewhere", 1, Storage={"Bucket": BUCKET, "Key": "other/g"})
    left.put("h-broken.info", b'{"ID": "h-broken+1", "Size": "many"}')
    before = left.names()
    said = {
        finished: ("finished", 5, ""),
        gap: ("unfinished", 5 * MIB, "part 2 is missing"),
        small: ("unfinished", 3, ""),
        lost: ("left alone", None, "its multipart upload is gone, and there is no object"),
        short: ("left alone", None, "has 4 bytes instead of 5"),
        final: ("left alone", None, "join them again"),
        elsewhere: ("left alone", None, "its bytes are at"),
        "h-broken+1": ("left alone", None, "not a record of an upload"),
    }
    for flags in (["--dry-run"], []):
        assert left.names() == before
        code, text = left.command("adopt", "--from", "tusd", "--json", *flags)
        *rows, summary = [json.loads(line) for line in text.splitlines()]
        assert code == 1
        assert {row["upload"]: (row["state"], row["offset"]) for row in rows} == {
            upload: wanted[:2] for upload, wanted in said.items()
        }
        assert all(said[row["upload"]][2] in row["note"] for row in rows)
        assert summary == {
            "dry_run": bool(flags),
            "seen": 8,
            "finished": 1,
            "unfinished": 2,
            "bytes": 5 * MIB + 3,
            "ours": 0,
            "left_alone": 5,
        }
    after = left.names()
    assert {f"{upload}.info" for upload in (finished, gap, small)} < set(after)
    untouched = [name for name in before if name[0] in "defgh"]
    assert [after[name] for name in untouched] == [before[name] for name in untouched]
    code, text = left.command("adopt", "--from", "tusd")
    lines = text.splitlines()
    assert lines[0].split() == ["UPLOAD", "STATE", "OFFSET", "SIZE", "NOTE"]
    assert lines[-1] == (
        "8 uploads seen: 0 taken over, 0 of them finished and 0 unfinished (0 bytes); 3 ours already; 5 left alone"
    )
    code, text = left.command("uploads", "show", small, "--json")
    assert (code, json.loads(text)["offset"]) == (0, 3)


def test_tails_whose_place_is_unknown_can_be_left_out(left: Left) -> None:
    upload_id = left.begin("one", 30 * MIB)
    left.parts(upload_id, {1: BODY[: 5 * MIB]})
    left.put("one.part", b"tail")
    code, text = left.command("adopt", "--from", "tusd", "--without-tails", "--json")
    assert (code, json.loads(text.splitlines()[0])["offset"]) == (0, 5 * MIB)
    assert left.read("one.part") is None
    code, text = left.command("uploads", "show", upload_id, "--json")
    assert json.loads(text)["offset"] == 5 * MIB


async def test_a_tail_that_tusd_replaces_meanwhile_is_not_taken_over(
    left: Left, opened: Opened
) -> None:
    """Shorter, as long or longer: another process is at work, which is no fault of the store."""
    for name, later in (("a", b"ta"), ("b", b"liat"), ("c", b"a longer tail")):
        upload_id = left.begin(name, 100)
        left.put(f"{name}.part", b"tail")
        takeover = opened().takeover()
        found = await takeover.find(upload_id)
        assert found is not None
        left.put(f"{name}.part", later)
        with pytest.raises(LeaseLost):
            await takeover.adopt(found, UNFENCED)
        assert left.read(f"{name}.part") == later


def _tusd() -> str | None:
    binaries = Path(os.environ.get("GOBIN") or Path.home() / "go" / "bin")
    return (
        os.environ.get("TUSD_BIN")
        or shutil.which("tusd")
        or shutil.which("tusd", path=str(binaries))
    )


@pytest.mark.skipif(_tusd() is None, reason="tusd is not installed (TUSD_BIN)")
def test_uploads_that_a_killed_tusd_began_go_on(
    left: Left, start: Servers, seaweedfs: S3Server, tmp_path: Path
) -> None:
    holder = ports.reserve()
    port = holder.getsockname()[1]
    flags = ["-s3-bucket", BUCKET, "-s3-endpoint", seaweedfs.endpoint, "-s3-part-size", "5242880"]
    flags += [
        "-s3-object-prefix",
        left.prefix.rstrip("/"),
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
    ]
    with (tmp_path / "tusd.log").open("wb") as log:
        process = subprocess.Popen(
            [str(_tusd()), *flags],
            env={**os.environ, **ENVIRONMENT, "AWS_REGION": REGION},
            stdout=log,
            stderr=log,
        )
    try:
        # Its log says that it listens before it does.
        wait_until(lambda: ports.is_open(port), "tusd to start")
        holder.close()

        class Theirs:
            address = ("127.0.0.1", port)
            base_path = "/files/"

        theirs = Tus(Theirs())  # type: ignore[arg-type]
        done = theirs.finished(BODY)
        chunked = theirs.new(len(BODY))
        at = 0
        for size in (6 * MIB, 1000, 7 * MIB + 3):
            assert theirs.patch(chunked, at, BODY[at : at + size]).status == 204
            at += size
        cut = theirs.new(len(BODY))
        with theirs.begin_patch(cut, 0, len(BODY), BODY[: 12 * MIB]):
            wait_until(lambda: left.pending() >= 2, "parts to be stored")
            process.send_signal(signal.SIGKILL)
            process.wait(60)
    finally:
        process.kill()
        process.wait(60)
    tus = Tus(start())
    assert tus.get(done).body == BODY
    assert tus.offset(chunked) == at
    go_on(tus, chunked, at, BODY)
    assert tus.get(chunked).body == BODY
    offset = tus.offset(cut)
    assert offset <= 12 * MIB
    go_on(tus, cut, offset, BODY)
    assert tus.get(cut).body == BODY
    code, text = left.command("adopt", "--from", "tusd")
    assert (code, text.splitlines()[-1].startswith("3 uploads seen: 1 taken over, 1 of them")) == (
        0,
        True,
    ), text
    assert tus.get(done).body == BODY
    assert left.pending() == 0
