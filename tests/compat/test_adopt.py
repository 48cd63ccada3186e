"""Uploads of other servers are taken over: by the command, and by a server at the first request for each."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

from tests.compat import http
from tests.compat.apps import AppProcess, path_in
from tests.compat.directories import (
    METADATA,
    THEIR_APP,
    Begun,
    begin,
    in_days,
    killed_tusd,
    killed_tuspyserver,
    snapshot,
    write_as_tuspyserver,
)
from tests.conftest import MakeServer
from tests.storage.test_file_store import write_as_tusd
from tests.support import commands
from tests.support.server import environment
from tests.support.tus import Tus, path_of
from tests.support.waiting import wait_until
from tusd_py.cli import main
from tusd_py.locks.base import UNFENCED
from tusd_py.storage.file.store import FileStore

CUT_OFF, COMPLETE, DEFERRED, PARTIAL, FINAL, EMPTY = (letter * 32 for letter in "abcdef")
LOCK = ".tusd-py/server.lock"
"""It says who was here last."""
CONTENT = os.urandom(3_000_000)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tusd_py", "adopt", *arguments]


def adopt(directory: Path, *flags: str, origin: str | None = "tuspyserver") -> tuple[int, str]:
    """Runs the command; its exit code, and what it printed."""
    whose = [] if origin is None else ["--from", origin]
    done = commands.run("adopt", str(directory), *whose, *flags)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def owner_of(directory: Path, upload_id: str) -> str:
    document = json.loads((directory / f"{upload_id}.info").read_bytes())
    return "ours" if "TusdPy" in document else "theirs"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """All kinds of uploads of tuspyserver's, written by hand."""
    directory = tmp_path / "theirs"
    write_as_tuspyserver(directory, CUT_OFF, b"hello ###", size=11, offset=6, upload_chunk_size=6)
    write_as_tuspyserver(directory, COMPLETE, b"complete")
    write_as_tuspyserver(directory, DEFERRED, b"abc", size=None, defer_length=True, metadata={})
    write_as_tuspyserver(directory, PARTIAL, b"part", is_partial=True, metadata={})
    write_as_tuspyserver(
        directory, FINAL, b"partpart", is_final=True, partial_uploads=["1" * 32, "2" * 32]
    )
    write_as_tuspyserver(directory, EMPTY, b"")
    (directory / ".locks").mkdir()
    (directory / ".locks" / f"{CUT_OFF}.lock").write_text("4711")
    return directory


@pytest.mark.parametrize("way", ["command", "served"])
def test_uploads_of_tuspyserver_stand_where_they_stood_and_go_on(
    way: str, directory: Path, make_server: MakeServer
) -> None:
    if way == "command":
        code, text = adopt(directory)
        assert code == 0
        assert text == (
            "6 uploads seen: 6 taken over, 4 of them finished and 2 unfinished (3 unacknowledged bytes cut off); "
            "0 ours already; 0 left alone\n"
        )
    tus = Tus(make_server(upload_dir=directory))
    expected = {
        CUT_OFF: ("6", "11"),
        COMPLETE: ("8", "8"),
        DEFERRED: ("3", None),
        PARTIAL: ("4", "4"),
        FINAL: ("8", "8"),
        EMPTY: ("0", "0"),
    }
    heads = {name: tus.head(tus.collection + name) for name in expected}
    seen = {name: (h["Upload-Offset"], h.get("Upload-Length")) for name, h in heads.items()}
    assert seen == expected
    assert heads[CUT_OFF]["Upload-Metadata"] == http.encoded(METADATA)
    assert heads[DEFERRED]["Upload-Defer-Length"] == "1"
    assert heads[PARTIAL]["Upload-Concat"] == "partial"
    assert heads[FINAL]["Upload-Concat"].startswith("final;")
    # Whoever asks for the offset may count on it: what is behind is gone.
    assert (directory / CUT_OFF).read_bytes() == b"hello "

    assert tus.patch(tus.collection + CUT_OFF, 6, b"world").status == 204
    assert tus.get(tus.collection + CUT_OFF).body == b"hello world"
    assert tus.patch(tus.collection + DEFERRED, 3, b"de", {"Upload-Length": "5"}).status == 204
    assert tus.get(tus.collection + DEFERRED).body == b"abcde"
    assert tus.get(tus.collection + COMPLETE).body == b"complete"
    assert tus.get(tus.collection + FINAL).body == b"partpart"
    joined = tus.create(headers={"Upload-Concat": f"final;{tus.collection}{PARTIAL}"})
    assert tus.get(path_of(joined["Location"])).body == b"part"
    assert tus.delete(tus.collection + COMPLETE).status == 204
    assert not (directory / COMPLETE).exists()
    assert owner_of(directory, CUT_OFF) == owner_of(directory, DEFERRED) == "ours"


@pytest.mark.parametrize("way", ["command", "served"])
def test_they_expire_when_they_would_have_expired(
    way: str, tmp_path: Path, make_server: MakeServer
) -> None:
    directory = tmp_path / "theirs"
    soon = in_days(1.5)
    write_as_tuspyserver(directory, CUT_OFF, b"hello", size=11, expires=soon)
    write_as_tuspyserver(directory, DEFERRED, b"hello", size=11, expires=in_days(-1))
    write_as_tuspyserver(directory, PARTIAL, b"hello", size=11, expires=None)
    write_as_tuspyserver(directory, COMPLETE, b"complete", expires=in_days(-1))
    # The sweep at the start finds it due: its last byte is not of this very moment.
    long_ago = time.time() - 3 * 86400
    os.utime(directory / DEFERRED, (long_ago, long_ago))
    if way == "command":
        assert adopt(directory)[0] == 0
    tus = Tus(make_server("--expire-after", "7d", upload_dir=directory))
    head = tus.head(tus.collection + CUT_OFF)
    expected = parsedate_to_datetime(soon).timestamp()
    assert abs(parsedate_to_datetime(head["Upload-Expires"]).timestamp() - expected) <= 1
    assert "Upload-Expires" in tus.head(tus.collection + PARTIAL)
    # What is finished is nobody's to remove.
    assert tus.get(tus.collection + COMPLETE).body == b"complete"
    # No request for it before: a sweep skips an upload that a request has locked.
    wait_until(lambda: not (directory / DEFERRED).exists(), "the sweep", 60)
    assert tus.request("HEAD", tus.collection + DEFERRED).status == 410


def untrusted(directory: Path) -> dict[str, str]:
    """Uploads that contradict themselves, and what is to be said of each."""
    start = os.urandom(5_000)
    uploads: dict[str, tuple[bytes, dict[str, object], str]] = {
        "1": (b"short", {"size": 20, "offset": 6}, "counts 6 bytes, but there are only 5"),
        "2": (b"finished and more", {"size": 8, "offset": 8}, "9 bytes too many"),
        "3": (b"too many", {"size": 5, "offset": 8}, "8 bytes, but its length is 5"),
        "4": (b"ab", {"metadata": {"two words": "x"}}, "keys that tus 1.0.0 does not allow"),
        "5": (
            b"part",
            {"size": 8, "offset": 0, "is_final": True, "partial_uploads": ["1" * 32]},
            "not joined to the end",
        ),
        # A request began at 1,000, was cut off after 700 and repeated: its beginning stands there twice.
        "6": (
            start[:1_700] + start[1_000:4_000],
            {"size": 5_000, "offset": 4_000, "upload_chunk_size": 3_000},
            "displaced",
        ),
        "7": (b"ab", {"size": "many"}, "makes no sense: 'many' is no number of bytes"),
    }
    for letter, (data, changes, _) in uploads.items():
        write_as_tuspyserver(directory, letter * 32, data, **changes)
    (directory / ("8" * 32)).write_bytes(b"lost")
    (directory / ("9" * 32)).write_bytes(b"torn")
    (directory / f"{'9' * 32}.info").write_bytes(b'{"metadata": {')
    write_as_tusd(directory, "0" * 32, b"tusd's")
    reasons = {letter * 32: reason for letter, (_, _, reason) in uploads.items()}
    return reasons | {
        "8" * 32: "bytes, but no record",
        "9" * 32: "not one of an upload",
        "0" * 32: "adopt it with --from tusd",
    }


def test_what_cannot_be_trusted_is_listed_and_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    reasons = untrusted(directory)
    before = snapshot(directory)
    code, text = adopt(directory)
    lines = dict(
        line.removeprefix("left alone: ").split(": ", 1)
        for line in text.splitlines()
        if line.startswith("left alone")
    )
    assert code == 1
    assert lines.keys() == reasons.keys()
    for upload_id, reason in reasons.items():
        assert reason in lines[upload_id], lines[upload_id]
    assert text.splitlines()[-1].endswith("; 0 ours already; 10 left alone")
    after = {k: v for k, v in snapshot(directory).items() if not k.startswith(".tusd-py")}
    assert after == before


def test_what_cannot_be_trusted_is_not_served(tmp_path: Path, make_server: MakeServer) -> None:
    directory = tmp_path / "theirs"
    untrusted(directory)
    before = snapshot(directory)
    server = make_server(upload_dir=directory)
    tus = Tus(server)
    for letter in "1234567":
        # A client that is told this begins anew.
        assert tus.request("HEAD", tus.collection + letter * 32).status == 404, letter
    server.wait_for_line("not served: 1{32}: its record counts 6 bytes")
    assert server.terminate() == 0
    after = {k: v for k, v in snapshot(directory).items() if not k.startswith(".tusd-py")}
    assert after == before


def test_bytes_that_repeat_by_nature_are_taken(tmp_path: Path) -> None:
    """A file of zeros looks the same wherever its last request began."""
    write_as_tuspyserver(
        tmp_path / "theirs",
        CUT_OFF,
        bytes(4_000),
        size=9_000,
        offset=3_000,
        upload_chunk_size=3_000,
    )
    assert adopt(tmp_path / "theirs")[0] == 0
    assert (tmp_path / "theirs" / CUT_OFF).read_bytes() == bytes(3_000)


def test_a_dry_run_changes_nothing(directory: Path) -> None:
    before = snapshot(directory)
    code, text = adopt(directory, "--dry-run")
    assert code == 0
    assert (
        "6 would be taken over, 4 of them finished and 2 unfinished (3 unacknowledged bytes" in text
    )
    assert snapshot(directory) == before
    assert not (directory / ".tusd-py").exists()


def test_the_second_time_nothing_happens(directory: Path) -> None:
    assert adopt(directory)[0] == 0
    before = snapshot(directory)
    code, text = adopt(directory, "--json")
    assert code == 0
    summary = json.loads(text)
    assert (summary["seen"], summary["done_before"], summary["finished"]) == (6, 6, 0)
    after = snapshot(directory)
    assert {**after, LOCK: before[LOCK]} == before


KILLED = """
import os, signal, sys

left = int(sys.argv[1])

def dying(name):
    real = getattr(os, name)
    def step(*arguments, **further):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **further)
    setattr(os, name, step)

for name in ("write", "ftruncate", "fsync", "fdatasync", "rename"):
    dying(name)

from tusd_py.cli import main

sys.exit(main(["adopt", sys.argv[2], "--from", "tuspyserver"]))
"""


def test_killed_at_any_step_it_can_be_run_again(tmp_path: Path) -> None:
    directory = tmp_path / "theirs"
    contents = {CUT_OFF: os.urandom(100), DEFERRED: os.urandom(100)}
    for upload_id, content in contents.items():
        write_as_tuspyserver(
            directory, upload_id, content, size=200, offset=50, upload_chunk_size=50
        )
    origin = tmp_path / "origin"
    shutil.copytree(directory, origin)
    seen: set[tuple[str, int]] = set()
    for steps in itertools.count():
        # Half of the runs find what the one before has left, half find it as it was.
        if steps % 2:
            shutil.rmtree(directory)
            shutil.copytree(origin, directory)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(steps), str(directory)],
            env=environment(),
            capture_output=True,
            check=False,
        )
        for upload_id, content in contents.items():
            # Whoever's it is by now, the bytes that were confirmed are there, and ours has no others.
            size = (directory / upload_id).stat().st_size
            assert (directory / upload_id).read_bytes()[:50] == content[:50]
            seen.add((owner_of(directory, upload_id), size))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert seen == {("theirs", 100), ("theirs", 50), ("ours", 50)}


def test_a_record_is_replaced_by_one_that_is_on_disk(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[tuple[str, str]] = []
    fsync, fdatasync, rename, truncate = os.fsync, os.fdatasync, os.rename, os.ftruncate

    def name_of(descriptor: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).split(".")[0]

    def note_fsync(descriptor: int) -> None:
        steps.append(("sync", name_of(descriptor)))
        fsync(descriptor)

    def note_rename(source: str, target: str) -> None:
        steps.append(("rename", os.path.basename(target).split(".")[0]))
        rename(source, target)

    def note_truncate(descriptor: int, length: int) -> None:
        steps.append(("cut", name_of(descriptor)))
        truncate(descriptor, length)

    def note_fdatasync(descriptor: int) -> None:
        steps.append(("sync", name_of(descriptor)))
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr("tusd_py.storage.file.fsync.sync_data", note_fdatasync)
    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(os, "ftruncate", note_truncate)
    assert main(["adopt", str(directory), "--from", "tuspyserver"]) == 0
    capsys.readouterr()
    mine = [step for step, name in steps if name in (CUT_OFF, "theirs")]
    begin = mine.index("cut")
    # The cut file, its new record, the rename, and at last the directory.
    assert mine[begin : begin + 6] == ["cut", "sync", "sync", "sync", "rename", "sync"]


def test_an_upload_in_use_is_left_alone(directory: Path) -> None:
    with (directory / ".locks" / f"{CUT_OFF}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, text = adopt(directory)
        assert (code, owner_of(directory, CUT_OFF)) == (1, "theirs")
        assert f"left alone: {CUT_OFF}: tuspyserver is still using it" in text
    assert adopt(directory)[0] == 0
    assert owner_of(directory, CUT_OFF) == "ours"


def test_a_directory_that_is_served_needs_no_command(
    directory: Path, make_server: MakeServer
) -> None:
    make_server(upload_dir=directory)
    code, text = adopt(directory)
    assert code == 1
    assert "is being served by another process" in text


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        ([], "give the directory"),
        ([str(tmp_path)], "--from: give the server"),
        ([str(tmp_path), "--from", "tuspyservr"], "did you mean tuspyserver?"),
        ([str(tmp_path / "none"), "--from", "tusd"], "is no directory"),
        ([str(tmp_path), "--to", "tusd"], "tusd reads ours"),
        ([str(tmp_path), "--to", "tuspyserver", "--from", "tusd"], "not both"),
    ):
        assert main(["adopt", *arguments]) == 2
        assert reason in capsys.readouterr().err


def test_a_person_sees_how_far_it_has_come(directory: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(str(directory), "--from", "tuspyserver"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:
        # That is how a terminal ends.
        assert process.wait() == 0
    finally:
        os.close(ours)
    assert b"\r[" + b"." * 30 + b"] 0/6" in seen
    assert b"\r[" + b"#" * 30 + b"] 6/6" in seen
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read().startswith("6 uploads seen: 6 taken over")


def test_uploads_of_tusd_are_taken_over(tmp_path: Path) -> None:
    directory = tmp_path / "tusd"
    write_as_tusd(directory, CUT_OFF, b"hello ", Size=11)
    write_as_tusd(directory, COMPLETE, b"complete")
    write_as_tusd(directory, PARTIAL, b"part", IsPartial=True)
    write_as_tusd(directory, FINAL, b"partpart", IsFinal=True, PartialUploads=[PARTIAL, PARTIAL])
    write_as_tusd(directory, DEFERRED, b"part", Size=8, IsFinal=True, PartialUploads=[PARTIAL])
    write_as_tusd(directory, EMPTY, b"too many", Size=5)
    (directory / f"{COMPLETE}.lock").write_text("4711")
    code, text = adopt(directory, origin="tusd")
    assert code == 1
    assert f"left alone: {DEFERRED}: its parts were not joined to the end" in text
    assert f"left alone: {EMPTY}: it has 8 bytes, but its length is 5" in text
    assert "6 uploads seen: 4 taken over, 3 of them finished and 1 unfinished;" in text
    info = json.loads((directory / f"{COMPLETE}.info").read_bytes())
    assert info["MetaData"] == {"filename": "x.txt", "note": "café"}
    assert info["TusdPy"]["FinishedAt"] > 0


# And back


def test_what_is_ours_is_given_back(directory: Path, make_server: MakeServer) -> None:
    """To the real one, which goes on with it; and once more the other way."""
    server = make_server(upload_dir=directory)
    tus = Tus(server)
    assert tus.patch(tus.collection + CUT_OFF, 6, b"wor").status == 204
    joined = tus.create(headers={"Upload-Concat": f"final;{tus.collection}{PARTIAL}"})
    odd = tus.create(5, headers={"Upload-Metadata": "raw /w=="})
    waiting = tus.create(4, headers={"Upload-Concat": "partial"})
    final = tus.create(headers={"Upload-Concat": f"final;{waiting['Location']}"})
    assert server.terminate() == 0

    before = snapshot(directory)
    code, text = adopt(directory, "--to", "tuspyserver", "--dry-run", origin=None)
    assert (code, "would be given back" in text) == (1, True)
    assert {**snapshot(directory), LOCK: before[LOCK]} == before
    code, text = adopt(directory, "--to", "tuspyserver", origin=None)
    names = {
        kind: answer["Location"].rpartition("/")[2]
        for kind, answer in (
            ("joined", joined),
            ("odd", odd),
            ("waiting", waiting),
            ("final", final),
        )
    }
    assert f"left alone: {names['odd']}: its metadata is no text" in text
    assert f"left alone: {names['final']}: it waits for its parts" in text
    assert code == 1
    assert json.loads((directory / f"{COMPLETE}.info").read_bytes()).keys() >= {"offset", "expires"}

    (directory.parent / "app").mkdir()
    directory.rename(directory.parent / "app" / "uploads")
    directory = directory.parent / "app" / "uploads"
    with AppProcess(directory.parent, THEIR_APP, "theirs") as app:
        collection = f"{app.url}/files/"
        head = http.head(collection + CUT_OFF)
        assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("9", "11")
        assert "upload-expires" not in head.headers
        assert http.patch(collection + CUT_OFF, 9, b"ld").status_code == 204
        assert (directory / CUT_OFF).read_bytes() == b"hello world"
        assert http.head(collection + COMPLETE).headers["upload-offset"] == "8"
        part = {"Upload-Concat": "partial"}
        assert http.head(collection + PARTIAL).headers["upload-concat"] == part["Upload-Concat"]
        assert http.patch(collection + names["waiting"], 0, b"part").status_code == 204
    code, text = adopt(directory)
    assert (code, "1 unfinished" in text) == (0, True), text


# The servers themselves


@pytest.mark.parametrize("way", ["command", "served", "router"])
def test_an_upload_that_tuspyserver_was_killed_in_goes_on(
    way: str, tmp_path: Path, make_server: MakeServer
) -> None:
    begun = killed_tuspyserver(tmp_path / "app", CONTENT, confirmed=1_000_000, lost=700_000)
    assert (begun.directory / begun.upload_id).stat().st_size == 1_700_000
    assert (begun.directory / ".locks" / f"{begun.upload_id}.lock").exists()
    if way == "command":
        code, text = adopt(begun.directory)
        assert (code, "(700000 unacknowledged bytes" in text) == (0, True), text
    if way == "router":
        with AppProcess(tmp_path / "app", THEIR_APP, "ours") as app:
            check_resumed(f"{app.url}/files/", begun)
    else:
        check_resumed(make_server(upload_dir=begun.directory).url, begun)


def check_resumed(collection: str, begun: Begun) -> None:
    """The client asks, goes on, and what is there in the end is what it sent."""
    url = collection + begun.upload_id
    head = http.head(url)
    assert head.headers["upload-offset"] == str(begun.offset)
    assert head.headers["upload-metadata"] == http.encoded(METADATA)
    assert http.patch(url, begun.offset, CONTENT[begun.offset :]).status_code == 204
    stored = (begun.directory / begun.upload_id).read_bytes()
    assert hashlib.sha256(stored).digest() == hashlib.sha256(CONTENT).digest()


@pytest.mark.parametrize("way", ["command", "served"])
def test_whatever_tuspyserver_makes_is_taken_over(
    way: str, tmp_path: Path, make_server: MakeServer
) -> None:
    directory = tmp_path / "app" / "uploads"
    with AppProcess(tmp_path / "app", THEIR_APP, "theirs") as app:
        collection = f"{app.url}/files/"
        parts = [begin(collection, 4, {"Upload-Concat": "partial"}) for _ in range(3)]
        for url in parts:
            assert http.patch(url, 0, b"part").status_code == 204
        joined = {"Tus-Resumable": "1.0.0", "Upload-Concat": "final;" + " ".join(parts[:2])}
        joined["Upload-Metadata"] = http.encoded(METADATA)
        final = httpx.post(collection, headers=joined).headers["location"]
        finished, begun = begin(collection, 5), begin(collection, 5)
        assert http.patch(finished, 0, b"hello").status_code == 204
        assert http.patch(begun, 0, b"he").status_code == 204
        deferred = http.create(collection, None, METADATA, {"Upload-Defer-Length": "1"})
        assert http.patch(deferred.headers["location"], 0, b"hel").status_code == 204
        app.kill9()
        app.start()
    names = {
        path_in(directory, url).name: expected
        for url, expected in (
            (final, ("8", "8", "final;")),
            (parts[2], ("4", "4", "partial")),
            (finished, ("5", "5", "")),
            (begun, ("2", "5", "")),
            (deferred.headers["location"], ("3", None, "")),
        )
    }
    if way == "command":
        code, text = adopt(directory)
        assert (code, text.startswith("5 uploads seen: 5 taken over, 3")) == (0, True), text
    tus = Tus(make_server(upload_dir=directory))
    for name, (offset, length, concat) in names.items():
        head = tus.head(tus.collection + name)
        assert (head["Upload-Offset"], head.get("Upload-Length")) == (offset, length)
        assert (head.get("Upload-Concat") or "").startswith(concat)
        assert head["Upload-Metadata"] == http.encoded(METADATA)
    assert tus.get(tus.collection + path_in(directory, final).name).body == b"partpart"
    begun_path = tus.collection + path_in(directory, begun).name
    assert tus.patch(begun_path, 2, b"llo").status == 204
    assert tus.get(begun_path).body == b"hello"


def test_an_upload_that_tuspyserver_has_displaced_is_left_alone(tmp_path: Path) -> None:
    """After a kill it appended bytes that it already had; the result must not be served."""
    begun = killed_tuspyserver(
        tmp_path / "app", CONTENT, confirmed=1_000_000, lost=700_000, resumed=1_500_000
    )
    before = snapshot(begun.directory)
    code, text = adopt(begun.directory)
    assert (code, "displaced" in text) == (1, True), text
    after = snapshot(begun.directory)
    assert {name: after[name] for name in before if ".lock" not in name} == {
        name: kept for name, kept in before.items() if ".lock" not in name
    }


@pytest.mark.parametrize("way", ["command", "served"])
@pytest.mark.parametrize("maker", ["by hand", *(["tusd"] if "TUSD_BIN" in os.environ else [])])
def test_an_upload_that_tusd_was_killed_in_goes_on(
    maker: str, way: str, tmp_path: Path, make_server: MakeServer
) -> None:
    if maker == "tusd":
        begun = killed_tusd(tmp_path / "tusd", CONTENT, confirmed=1_000_000, lost=700_000)
    else:
        begun = Begun(tmp_path / "tusd", CUT_OFF, 1_700_000)
        write_as_tusd(
            begun.directory, CUT_OFF, CONTENT[:1_700_000], Size=len(CONTENT), MetaData=METADATA
        )
    if way == "command":
        code, text = adopt(begun.directory, origin="tusd")
        assert (code, "1 taken over, 0 of them finished and 1 unfinished" in text) == (0, True), (
            text
        )
    check_resumed(make_server(upload_dir=begun.directory).url, begun)


async def test_what_is_taken_over_was_looked_at_under_the_lock(directory: Path) -> None:
    """A server that still runs has changed the record since it was read."""
    store = FileStore(directory)
    store.open()
    upload = await store.load(CUT_OFF)
    write_as_tuspyserver(directory, CUT_OFF, b"hello wo", size=11, offset=8)
    with pytest.raises(Exception, match="still running"):
        await store.adopt(upload, fence=UNFENCED)
    assert (directory / CUT_OFF).read_bytes() == b"hello wo"
    store.close()
