"""The file store as an operator sees it: tusd's layout, crashes, a full disk, wrong permissions."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.events import Recorder
from tests.support.privileges import OBEYING_PERMISSIONS
from tests.support.server import ServerProcess
from tests.support.tus import Tus, checksum, id_of, metadata, path_of
from tests.support.waiting import wait_until

BODY = bytes(range(256)) * 8_000  # 2 MB

TUSD_KEYS = [
    "ID",
    "Size",
    "SizeIsDeferred",
    "Offset",
    "MetaData",
    "IsPartial",
    "IsFinal",
    "PartialUploads",
    "Storage",
]


def assert_tusd_reads(info: dict[str, object], upload_id: str, directory: Path) -> None:
    """Check what tusd's decoder expects: keys, their order, and types."""
    assert list(info)[: len(TUSD_KEYS)] == TUSD_KEYS
    assert info["ID"] == upload_id
    assert type(info["Size"]) is int
    assert type(info["Offset"]) is int
    assert all(type(info[key]) is bool for key in ("SizeIsDeferred", "IsPartial", "IsFinal"))
    meta = info["MetaData"]
    assert meta is None or isinstance(meta, dict)
    assert all(isinstance(value, str) for value in (meta or {}).values())
    parts = info["PartialUploads"]
    assert parts is None or (isinstance(parts, list) and all(isinstance(p, str) for p in parts))
    assert info["Storage"] == {
        "InfoPath": str(directory / f"{upload_id}.info"),
        "Path": str(directory / upload_id),
        "Type": "filestore",
    }
    assert list(info["Storage"]) == ["InfoPath", "Path", "Type"]


# -- what we write -----------------------------------------------------------------------------


def test_an_upload_is_two_files_as_tusd_writes_them(tus: Tus) -> None:
    path = tus.new(11, headers={"Upload-Metadata": metadata(filename="a b.txt", empty="")})
    tus.patch(path, 0, b"hello ")
    info = tus.info(path)
    assert_tusd_reads(info, id_of(path), tus.server.upload_dir)
    assert (info["Size"], info["SizeIsDeferred"]) == (11, False)
    assert info["MetaData"] == {"filename": "a b.txt", "empty": ""}
    assert tus.stored(path) == b"hello "


def test_a_deferred_length_as_tusd_writes_it(tus: Tus) -> None:
    path = tus.new(None)
    info = tus.info(path)
    assert_tusd_reads(info, id_of(path), tus.server.upload_dir)
    assert (info["Size"], info["SizeIsDeferred"]) == (0, True)
    tus.patch(path, 0, b"hello", {"Upload-Length": "9"})
    info = tus.info(path)
    assert_tusd_reads(info, id_of(path), tus.server.upload_dir)
    assert (info["Size"], info["SizeIsDeferred"]) == (9, False)


def test_partials_and_finals_as_tusd_writes_them(tus: Tus) -> None:
    partial = tus.finished(b"hello", {"Upload-Concat": "partial"})
    final = path_of(tus.create(headers={"Upload-Concat": f"final;{partial} {partial}"})["Location"])
    assert_tusd_reads(tus.info(partial), id_of(partial), tus.server.upload_dir)
    info = tus.info(final)
    assert_tusd_reads(info, id_of(final), tus.server.upload_dir)
    assert tus.info(partial)["IsPartial"] is True
    assert (info["IsFinal"], info["IsPartial"], info["Size"]) == (True, False, 10)
    assert info["PartialUploads"] == [id_of(partial)] * 2
    assert tus.stored(final) == b"hellohello"


def test_metadata_that_is_no_text_is_still_readable_for_tusd(tus: Tus) -> None:
    path = tus.new(1, headers={"Upload-Metadata": metadata(name=b"\xff\xfe", other="\u6f22")})
    info = tus.info(path)
    assert_tusd_reads(info, id_of(path), tus.server.upload_dir)
    assert isinstance(info["MetaData"], dict)
    assert info["MetaData"]["other"] == "\u6f22"


def test_everything_lies_under_the_upload_directory(
    make_server: MakeServer, tmp_path: Path
) -> None:
    tus = Tus(make_server())
    path = tus.finished(BODY)
    tus.delete(tus.new(5))
    assert [entry.name for entry in tmp_path.iterdir()] == [tus.server.upload_dir.name]
    names = {entry.name for entry in tus.server.upload_dir.iterdir()}
    assert names == {id_of(path), f"{id_of(path)}.info", ".tusd-py"}


def test_files_have_the_permissions_that_are_set(make_server: MakeServer) -> None:
    tus = Tus(make_server("--file-perms", "600", "--dir-perms", "700"))
    path = tus.finished(b"hello")
    for file in (tus.server.data_file(id_of(path)), tus.server.info_file(id_of(path))):
        assert file.stat().st_mode & 0o777 == 0o600
    assert tus.server.upload_dir.stat().st_mode & 0o777 == 0o700


def test_the_record_is_replaced_never_rewritten(tus: Tus) -> None:
    path = tus.new(None)
    file = tus.server.info_file(id_of(path))
    with file.open() as before:
        assert tus.patch(path, 0, b"hello", {"Upload-Length": "5"}).status == 204
        # An open file still has the whole old record.
        assert json.load(before)["SizeIsDeferred"] is True
    assert json.loads(file.read_text())["SizeIsDeferred"] is False


# -- what tusd wrote ---------------------------------------------------------------------------

IN_FLIGHT = "a" * 32
COMPLETE = "b" * 32
DEFERRED = "c" * 32
PARTIAL = "d" * 32
FINAL = "e" * 32
OLD = "f" * 32


def write_as_tusd(directory: Path, upload_id: str, data: bytes, **changes: object) -> None:
    """Write an upload as tusd does: ``Offset`` is that of the creation."""
    info = {
        "ID": upload_id,
        "Size": len(data),
        "SizeIsDeferred": False,
        "Offset": 0,
        "MetaData": {"filename": "x.txt", "note": "caf\u00e9"},
        "IsPartial": False,
        "IsFinal": False,
        "PartialUploads": None,
        "Storage": {
            "InfoPath": str(directory / f"{upload_id}.info"),
            "Path": str(directory / upload_id),
            "Type": "filestore",
        },
        **changes,
    }
    directory.mkdir(exist_ok=True)
    (directory / upload_id).write_bytes(data)
    (directory / f"{upload_id}.info").write_text(json.dumps(info, separators=(",", ":")))


@pytest.fixture
def tusd_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "taken-over"
    write_as_tusd(directory, IN_FLIGHT, b"hello ", Size=11)
    write_as_tusd(directory, COMPLETE, b"complete")
    write_as_tusd(directory, DEFERRED, b"abc", Size=0, SizeIsDeferred=True, MetaData=None)
    write_as_tusd(directory, PARTIAL, b"part", IsPartial=True, MetaData={})
    write_as_tusd(directory, FINAL, b"partpart", IsFinal=True, PartialUploads=[PARTIAL, PARTIAL])
    write_as_tusd(directory, OLD, b"ol", Size=3, Storage=None)
    return directory


def test_uploads_of_tusd_stand_where_they_stood(
    make_server: MakeServer, tusd_directory: Path
) -> None:
    tus = Tus(make_server(upload_dir=tusd_directory))
    expected = {
        IN_FLIGHT: ("6", "11"),
        COMPLETE: ("8", "8"),
        DEFERRED: ("3", None),
        PARTIAL: ("4", "4"),
        FINAL: ("8", "8"),
        OLD: ("2", "3"),
    }
    heads = {name: tus.head(tus.collection + name) for name in expected}
    seen = {name: (h["Upload-Offset"], h.get("Upload-Length")) for name, h in heads.items()}
    assert seen == expected
    assert heads[DEFERRED]["Upload-Defer-Length"] == "1"
    assert heads[PARTIAL]["Upload-Concat"] == "partial"
    assert heads[FINAL]["Upload-Concat"].startswith("final;")
    assert heads[IN_FLIGHT]["Upload-Metadata"] == "filename eC50eHQ=,note Y2Fmw6k="
    assert "Upload-Metadata" not in heads[DEFERRED]


def test_uploads_of_tusd_go_on(make_server: MakeServer, tusd_directory: Path) -> None:
    tus = Tus(make_server(upload_dir=tusd_directory))
    in_flight, deferred = tus.collection + IN_FLIGHT, tus.collection + DEFERRED
    assert tus.patch(in_flight, 6, b"world").status == 204
    assert tus.get(in_flight).body == b"hello world"
    assert tus.patch(deferred, 3, b"de", {"Upload-Length": "5"}).status == 204
    assert tus.get(deferred).body == b"abcde"
    assert tus.get(tus.collection + COMPLETE).body == b"complete"
    assert tus.get(tus.collection + FINAL).body == b"partpart"
    joined = tus.create(headers={"Upload-Concat": f"final;{tus.collection}{PARTIAL}"})
    assert tus.get(path_of(joined["Location"])).body == b"part"
    for name in (IN_FLIGHT, DEFERRED):
        assert_tusd_reads(tus.info(tus.collection + name), name, tusd_directory)
    assert tus.delete(tus.collection + OLD).status == 204


def test_what_tusd_had_finished_is_not_finished_again(
    make_server: MakeServer, tusd_directory: Path, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    flags = (*recorder.flags, "--sweep-interval", "50ms")
    tus = Tus(make_server(*flags, upload_dir=tusd_directory, env=recorder.env))
    complete = tus.collection + COMPLETE
    assert tus.head(complete).status == 200
    assert tus.patch(complete, 8, b"").status == 204
    assert tus.patch(tus.collection + IN_FLIGHT, 6, b"world").status == 204
    recorder.wait_for("post-finish", IN_FLIGHT)
    assert recorder.types(COMPLETE) == []
    assert recorder.types(FINAL) == []


def test_a_moved_directory_still_works(make_server: MakeServer, tusd_directory: Path) -> None:
    moved = tusd_directory.rename(tusd_directory.with_name("moved"))
    tus = Tus(make_server(upload_dir=moved))
    assert tus.patch(tus.collection + IN_FLIGHT, 6, b"world").status == 204
    assert tus.get(tus.collection + IN_FLIGHT).body == b"hello world"
    assert not tusd_directory.exists()


def test_a_record_cannot_point_outside_of_the_directory(
    make_server: MakeServer, tusd_directory: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret!!")
    storage = {"Path": str(secret), "InfoPath": "", "Type": "filestore"}
    write_as_tusd(tusd_directory, COMPLETE, b"complete", Storage=storage)
    tus = Tus(make_server(upload_dir=tusd_directory))
    assert b"secret" not in tus.get(tus.collection + COMPLETE).body
    tus.delete(tus.collection + COMPLETE)
    assert secret.read_bytes() == b"secret!!"


# -- crashes -----------------------------------------------------------------------------------


NOTES = ("state.lock", "removal-settings")


def remains(server: ServerProcess) -> list[str]:
    """Return the server's own files, without its id, lock, tombstones and the marks of this mount and the last sweep."""
    state = server.upload_dir / ".tusd-py"
    return [
        str(file.relative_to(state))
        for file in state.rglob("*")
        if (file.is_file() or file.is_symlink())
        and file.name not in {*NOTES, "server.lock", "session", "swept", "id"}
        and "gone" not in file.parts
    ]


def test_a_kill_in_the_middle_of_a_verified_chunk_leaves_nothing(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(len(BODY))
    tus.patch(path, 0, BODY[:1000])
    headers = {"Upload-Checksum": checksum(BODY[1000:])}
    with tus.begin_patch(path, 1000, len(BODY) - 1000, BODY[1000:1_600_000], headers) as patch:
        patch.wait_stored_in_part()
        server.kill9()
    server.restart()
    assert tus.offset(path) == 1000
    assert tus.patch(path, 1000, BODY[1000:], headers).status == 204
    assert tus.get(path).body == BODY
    assert remains(server) == []


def former_marker(server: ServerProcess, path: str) -> Path:
    """The marker that earlier versions made of an upload."""
    return server.upload_dir / ".tusd-py" / "chunks" / id_of(path)


def test_no_byte_counts_behind_an_invalid_marker(make_server: MakeServer) -> None:
    """A power cut could leave such a marker in earlier versions: it does not tell which bytes were verified."""
    server = make_server()
    tus = Tus(server)
    contents = {tus.new(10): content for content in (b"", b"\0", b"10\0\0", b"-1", b"9" * 30)}
    for path in contents:
        tus.patch(path, 0, b"wrong")
    server.kill9()
    for path, content in contents.items():
        former_marker(server, path).write_bytes(content)
    server.restart()
    for path in contents:
        assert tus.offset(path) == 0
        assert tus.patch(path, 5, b"world").status == 409
        assert tus.patch(path, 0, b"helloworld").status == 204
        assert tus.get(path).body == b"helloworld"
        assert not former_marker(server, path).exists()


def test_a_chunk_that_the_version_before_was_verifying_does_not_count(
    make_server: MakeServer,
) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(10)
    tus.patch(path, 0, b"hello+?")
    server.kill9()
    marker = former_marker(server, path)
    marker.write_bytes(b"5")
    server.restart()
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, b"world").status == 204
    assert tus.get(path).body == b"helloworld"
    assert not marker.exists()


def test_what_a_killed_server_left_half_done_is_removed(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.finished(b"hello")
    server.kill9()
    stray = server.upload_dir / ".tusd-py" / "new" / f"{id_of(path)}.99999.7"
    stray.write_bytes(b"half a record")
    server.restart()
    wait_until(lambda: not stray.exists(), "the stray file's removal")
    assert tus.get(path).body == b"hello"


def test_an_upload_whose_last_byte_came_before_a_kill_is_finished_later(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    recorder.hold_pre_finish()
    server = make_server(*recorder.flags, env=recorder.env)
    tus = Tus(server)
    path = tus.new(5)
    with tus.begin_patch(path, 0, 5, b"hello"):
        recorder.wait_for("pre-finish", id_of(path))
        server.kill9()
    recorder.hold.unlink()
    server.restart()
    assert tus.offset(path) == 5
    recorder.wait_for("post-finish", id_of(path))
    assert tus.get(path).body == b"hello"


# -- no room -----------------------------------------------------------------------------------


def limit_file_size(server: ServerProcess, size: int) -> None:
    """Limit the server's files to ``size`` bytes, which looks like a full disk to it."""
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, hard))


def test_a_disk_that_becomes_full_keeps_what_it_has(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(len(BODY))
    limit_file_size(server, 1_000_000)
    response = tus.patch(path, 0, BODY)
    assert (response.status, response.code) == (507, "ERR_INSUFFICIENT_STORAGE")
    offset = tus.offset(path)
    assert offset == len(tus.stored(path)) == 1_000_000
    limit_file_size(server, resource.RLIM_INFINITY)
    assert tus.patch(path, offset, BODY[offset:]).status == 204
    assert tus.get(path).body == BODY


def test_a_disk_that_becomes_full_during_a_chunked_body(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(len(BODY))
    limit_file_size(server, 100_000)
    with tus.begin_patch(path, 0, None) as patch:
        patch.send(BODY[:150_000])
        assert patch.response().status == 507
    assert tus.offset(path) == 100_000
    assert tus.stored(path) == BODY[:100_000]


def test_a_disk_that_becomes_full_during_a_verified_chunk(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(len(BODY))
    tus.patch(path, 0, BODY[:10])
    limit_file_size(server, 1_000_000)
    headers = {"Upload-Checksum": checksum(BODY[10:])}
    assert tus.patch(path, 10, BODY[10:], headers).status == 507
    assert tus.offset(path) == 10
    assert tus.stored(path) == BODY[:10]
    limit_file_size(server, resource.RLIM_INFINITY)
    assert tus.patch(path, 10, BODY[10:], headers).status == 204


def test_a_verified_chunk_on_a_full_disk_costs_no_byte(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(10)
    tus.patch(path, 0, b"hello")
    limit_file_size(server, 0)
    headers = {"Upload-Checksum": checksum(b"world")}
    assert tus.patch(path, 5, b"world", headers).status == 507
    limit_file_size(server, resource.RLIM_INFINITY)
    assert tus.offset(path) == 5
    assert tus.stored(path) == b"hello"
    assert tus.patch(path, 5, b"world", headers).status == 204
    assert remains(server) == []


def test_a_full_disk_takes_no_new_upload_and_no_trace_of_it(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    limit_file_size(server, 0)
    assert tus.create(5).status == 507
    limit_file_size(server, resource.RLIM_INFINITY)
    assert tus.data_files() == []
    assert remains(server) == []
    assert not list(server.upload_dir.glob("*.info"))


def test_a_join_that_does_not_fit_leaves_nothing(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    part = tus.finished(BODY, {"Upload-Concat": "partial"})
    before = tus.data_files()
    limit_file_size(server, len(BODY) + 100_000)
    final = tus.create(headers={"Upload-Concat": f"final;{part} {part}"})
    assert final.status == 507
    assert tus.data_files() == before
    assert remains(server) == []


def test_a_reserve_is_kept_free(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(5)
    assert server.terminate() == 0
    reserving = Tus(make_server("--disk-reserve", "1000TB", upload_dir=server.upload_dir))
    assert reserving.create(5).status == 507
    response = reserving.patch(path, 0, b"hello")
    assert (response.status, response.code) == (507, "ERR_INSUFFICIENT_STORAGE")
    assert reserving.stored(path) == b""
    assert reserving.data_files() == [id_of(path)]
    assert reserving.head(path)["Upload-Offset"] == "0"


# -- errors of the system ----------------------------------------------------------------------

SYSTEMS_WORDS = ("errno", "permission", "denied", "directory", "uploads-", "traceback")


def assert_500_without_the_systems_text(status: int, text: str) -> None:
    assert status == 500
    assert text.startswith("ERR_INTERNAL_SERVER_ERROR")
    assert not [word for word in SYSTEMS_WORDS if word in text.lower()]


def test_a_permission_error_is_a_500_that_only_the_log_explains(make_server: MakeServer) -> None:
    server = make_server(prefix=OBEYING_PERMISSIONS)
    tus = Tus(server)
    path = tus.new(5)
    server.data_file(id_of(path)).chmod(0o000)
    response = tus.patch(path, 0, b"hello")
    assert_500_without_the_systems_text(response.status, response.text)
    server.wait_for_line("Permission denied")
    server.data_file(id_of(path)).chmod(0o600)
    assert tus.patch(path, 0, b"hello").status == 204


def test_a_directory_that_became_read_only_is_a_500(make_server: MakeServer) -> None:
    server = make_server(prefix=OBEYING_PERMISSIONS)
    tus = Tus(server)
    server.upload_dir.chmod(0o500)
    try:
        response = tus.create(5)
    finally:
        server.upload_dir.chmod(0o700)
    assert_500_without_the_systems_text(response.status, response.text)
    assert tus.create(5).status == 201


def test_a_broken_record_fails_requests_of_that_upload_alone(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path, other = tus.new(5), tus.new(5)
    server.info_file(id_of(path)).write_text("{")
    # T39: not 5xx, as clients would send the whole file anew.
    assert tus.head(path).status == 423
    response = tus.patch(path, 0, b"hello")
    assert_500_without_the_systems_text(response.status, response.text)
    assert tus.patch(other, 0, b"hello").status == 204


def test_a_data_file_that_is_a_link_is_not_followed(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(5)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    data = server.data_file(id_of(path))
    data.unlink()
    data.symlink_to(elsewhere)
    tus.patch(path, 0, b"hello")
    assert elsewhere.read_bytes() == b""


# -- starts that cannot be ---------------------------------------------------------------------


def test_a_file_in_the_place_of_the_directory(make_server: MakeServer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    server = make_server(upload_dir=file, launch=True)
    assert server.wait() == 2
    assert str(file) in server.log()
    assert "Traceback" not in server.log()


def test_a_directory_that_cannot_be_made(make_server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = make_server("--upload-dir", str(tmp_path / "file" / "uploads"), launch=True)
    assert server.wait() == 2
    assert str(tmp_path / "file") in server.log()
    assert "Traceback" not in server.log()


def test_a_directory_that_cannot_be_written_to(make_server: MakeServer, tmp_path: Path) -> None:
    directory = tmp_path / "read-only"
    directory.mkdir(mode=0o500)
    server = make_server(upload_dir=directory, prefix=OBEYING_PERMISSIONS, launch=True)
    assert server.wait() == 2
    assert str(directory) in server.log()
    assert "Traceback" not in server.log()


def test_a_second_server_on_a_directory_says_who_holds_it(make_server: MakeServer) -> None:
    first = make_server()
    second = make_server(upload_dir=first.upload_dir, launch=True)
    assert second.wait() == 2
    assert str(first.upload_dir) in second.log()
    assert str(first.pid) in second.log()
    assert "Traceback" not in second.log()
    assert Tus(first).create(5).status == 201
