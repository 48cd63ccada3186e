"""Names of finished uploads in the operator's directory (--finished-dir)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until
from tests.support.wire import ConnectionEnded
from tusd_py.settings.model import Settings
from tusd_py.storage.base import UploadInfo, is_valid_id
from tusd_py.storage.finished_names import FinishedNames

BODY = b"hello"
HOOK = """
import json, os
def tell(event):
    view = event.upload
    path = os.path.exists(view.path) and os.stat(view.path).st_size
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps([event.type, view.id, view.path, path]) + "\\n")
post_finish = pre_finish = post_terminate = tell
"""
TEMPLATE = "{metadata.study}/{filename}"
ID = "0123456789abcdef0123456789abcdef"


# --- names ----------------------------------------------------------------------------------------


def names(template: str, longest: int = 4000, **values: str | bytes) -> list[str]:
    owner = str(values.pop("owner", ""))
    pairs = {
        key: value.encode() if isinstance(value, str) else value for key, value in values.items()
    }
    info = UploadInfo(id=ID, length=5, metadata=pairs, owner=owner, created_at=1_700_000_000.0)
    return list(FinishedNames(template, longest=longest).of(info))


def test_a_template_is_filled_in() -> None:
    template = "{date}/{owner}/{metadata.study}-x/{filename}"
    found = names(template, filename="scan.nii.gz", study="S 1", owner="alice")
    assert found[:2] == [
        "2023-11-14/alice/S 1-x/scan.nii.gz",
        "2023-11-14/alice/S 1-x/scan (1).nii.gz",
    ]
    assert found[-1] == f"2023-11-14/alice/S 1-x/scan ({ID}).nii.gz"
    assert names("{id}")[0] == ID
    assert names("{filename}", name="b.txt")[0] == "b.txt"
    assert names("{filename}")[0] == ID


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\fakepath\\a.txt", "a.txt"),
        ("..", "_"),
        (".hidden", "hidden"),
        ("a\x00\nb\u202egpj.exe", "a__b_gpj.exe"),
        ("x.info", "x.info_"),
        ("nul.txt", "_nul.txt"),
        ("100%: a|b?.txt", "100__ a_b_.txt"),
        ("क\u200dष.txt", "क\u200dष.txt"),
        (b"\xff\xfe.bin", "\ufffd\ufffd.bin"),
    ],
)
def test_a_name_stays_in_its_directory(given: str | bytes, name: str) -> None:
    assert names("in/{filename}", filename=given)[0] == f"in/{name}"
    assert all(each.count("/") == 1 for each in names("in/{metadata.x}", x=given))


@pytest.mark.parametrize("longest", [200, 4000])
def test_long_names_are_cut_and_keep_their_ending(longest: int) -> None:
    for value in ("é" * 500 + ".dcm", "a." + "b" * 300, "日" * 90):
        for name in names("{metadata.a}/{owner}/{filename}", longest, filename=value, a=value):
            assert len(name.encode()) <= longest
            assert max(len(part.encode()) for part in name.split("/")) <= 255
            assert is_valid_id(name) or longest > 200
    assert names("{filename}", filename="é" * 500 + ".dcm")[0].endswith("é.dcm")
    assert names("{filename}", filename="é" * 20_000 + ".dcm")[0].endswith("é.dcm")


def test_no_two_owners_share_a_directory() -> None:
    owners = ["", "_", "a/b", "a_b", "a\\b", ".a_b", "a_b ", "a%b", "A" * 300, "A" * 301, "con"]
    found = {names("{owner}/x", owner=owner)[0] for owner in owners}
    assert len(found) == len(owners)
    forged = names("{owner}/x", owner="a/b")[0].removesuffix("/x")
    assert names("{owner}/x", owner=forged)[0] not in found


# --- files ----------------------------------------------------------------------------------------


class Room:
    """A server that names finished files, and tells what its hooks were told."""

    def __init__(self, server: ServerProcess, told: Path) -> None:
        self.server = server
        self.tus = Tus(server)
        self.finished = server.upload_dir / "finished"
        self._told = told

    def upload(self, name: str, body: bytes = BODY, **more: str) -> str:
        """The id of a finished upload."""
        header = {"Upload-Metadata": metadata(filename=name, **more)}
        return id_of(self.tus.finished(body, headers=header))

    def told(self, event: str, upload_id: str) -> tuple[str, int]:
        """The path that a hook was told, and the size that the file had then."""

        def found() -> list[tuple[str, int]]:
            lines = self._told.read_text().splitlines() if self._told.exists() else []
            return [
                (p, s)
                for kind, u, p, s in map(json.loads, lines)
                if (kind, u) == (event, upload_id)
            ]

        wait_until(lambda: bool(found()), f"{event} of {upload_id}")
        assert len(found()) == 1
        return found()[0]

    def names(self, directory: str) -> set[str]:
        with suppress(FileNotFoundError):
            return set(os.listdir(self.finished / directory))
        return set()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    directory = tmp_path_factory.mktemp("room")
    hook = directory / "hook.py"
    hook.write_text(HOOK)
    with ServerProcess(
        directory / "uploads",
        *("--finished-dir", TEMPLATE, "--hook", str(hook)),
        env={"TOLD": str(directory / "told")},
    ) as server:
        yield Room(server, directory / "told")


def test_a_finished_file_gets_its_name_before_anybody_is_told(room: Room) -> None:
    upload_id = room.upload("scan.dcm", study="one")
    path = room.finished / "one" / "scan.dcm"
    assert room.told("post-finish", upload_id) == (str(path), len(BODY))
    assert room.told("pre-finish", upload_id)[0] == str(room.server.data_file(upload_id))
    assert path.read_bytes() == BODY
    # No second copy, and the upload is what it was.
    assert path.samefile(room.server.data_file(upload_id))
    assert room.tus.get(f"/files/{upload_id}").body == BODY
    assert room.tus.offset(f"/files/{upload_id}") == len(BODY)


def test_a_name_that_is_taken_gets_a_number_and_nothing_is_overwritten(room: Room) -> None:
    bodies = [b"%d" % number for number in range(12)]
    ids = [room.upload("a.txt", body, study="same") for body in bodies]
    wanted = ["a.txt", *(f"a ({n}).txt" for n in range(1, 10)), *(f"a ({i}).txt" for i in ids[10:])]
    assert room.names("same") == set(wanted)
    assert [(room.finished / "same" / name).read_bytes() for name in wanted] == bodies


def test_what_others_put_into_the_directory_stays(room: Room) -> None:
    theirs = room.finished / "theirs"
    theirs.mkdir(parents=True)
    (theirs / "a.txt").mkdir()
    (theirs / "a (1).txt").symlink_to("/etc/passwd")
    upload_id = room.upload("a.txt", study="theirs")
    assert room.told("post-finish", upload_id)[0] == str(theirs / "a (2).txt")
    # A link is no way out.
    elsewhere = room.finished.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (room.finished / "away").symlink_to(elsewhere)
    path = room.tus.new(5, headers={"Upload-Metadata": metadata(filename="b", study="away")})
    assert room.tus.patch(path, 0, BODY).status == 500
    assert not list(elsewhere.iterdir())
    (room.finished / "away").unlink()
    assert room.tus.head(path).status == 200
    assert room.names("away") == {"b"}


def test_empty_uploads_and_finals_get_names_and_parts_do_not(room: Room) -> None:
    path = room.tus.new(0, headers={"Upload-Metadata": metadata(filename="none", study="joined")})
    assert (room.finished / "joined" / "none").stat().st_size == 0
    header = {"Upload-Concat": "partial", "Upload-Metadata": metadata(filename="p", study="joined")}
    parts = [room.tus.finished(each, headers=header) for each in (b"hel", b"lo")]
    more = {"Upload-Metadata": metadata(filename="whole", study="joined")}
    final = room.tus.create(headers={"Upload-Concat": f"final;{' '.join(parts)}", **more})
    assert final.status == 201
    assert room.names("joined") == {"none", "whole"}
    assert (room.finished / "joined" / "whole").read_bytes() == BODY
    assert room.tus.offset(path) == 0


def test_the_file_outlives_its_upload_and_its_directory_holds_no_uploads(room: Room) -> None:
    upload_id = room.upload("kept", study="kept")
    # What a record would be called, were it one.
    record = room.server.info_file(upload_id).read_text()
    forged = room.upload("forged.info", record.encode(), study="kept")
    assert room.tus.get("/files/finished/kept/forged").status == 404
    assert room.tus.get("/files/finished/kept/kept").status == 404
    assert room.tus.delete(f"/files/{upload_id}").status == 204
    assert room.tus.head(f"/files/{upload_id}").status == 410
    assert room.told("post-terminate", upload_id)[0] == str(room.finished / "kept" / "kept")
    assert room.names("kept") == {"kept", "forged.info_"}
    assert (room.finished / "kept" / "kept").read_bytes() == BODY
    assert room.tus.get(f"/files/{forged}").body == record.encode()


def test_a_file_goes_with_its_upload_if_the_operator_says_so(
    make_server: MakeServer, tmp_path: Path
) -> None:
    finished = tmp_path / "out" / "put"
    flags = ("--finished-dir", f"{finished}/{TEMPLATE}", "--finished-files", "remove")
    server = make_server(*flags)
    room = Room(server, tmp_path / "told")
    room.finished = finished
    gone, moved = (room.upload(name, study=name) for name in ("a", "b"))
    # What has another name by now is its new owner's.
    (finished / "b" / "b").rename(finished / "b-2")
    (finished / "b" / "b").write_bytes(b"mine")
    for upload_id in (gone, moved):
        assert room.tus.delete(f"/files/{upload_id}").status == 204
        assert not server.data_file(upload_id).exists()
    assert not (finished / "a").exists()
    assert (finished / "b" / "b").read_bytes() == b"mine"
    assert (finished / "b-2").read_bytes() == BODY


STEPS = {
    "RecordWriter.replace:after": "the record has the name, and there is no file",
    "FinishedFiles.link:after": "the file is there, and the upload is not finished",
    "RecordWriter.mark_finished:after": "the upload is finished, and nobody was told",
}


def test_a_server_that_is_killed_at_any_step_gives_one_name(tmp_path: Path) -> None:
    hook = Path(__file__).with_name("dying_hook.py")
    server = ServerProcess(
        tmp_path / "uploads", "--finished-dir", "{filename}", "--hook", str(hook)
    )
    finished = server.upload_dir / "finished"
    finished.mkdir(parents=True)
    for step, state in STEPS.items():
        # The name is taken at first, and free once the finish is repeated.
        (finished / "a").write_bytes(b"theirs")
        server.env["DIE_AT"] = step
        with server:
            tus = Tus(server)
            path = tus.new(5, headers={"Upload-Metadata": metadata(filename="a")})
            with pytest.raises(ConnectionEnded):
                tus.patch(path, 0, BODY)
            server.wait()
        (finished / "a").unlink()
        del server.env["DIE_AT"]
        with server:
            assert tus.offset(path) == 5, state
            assert tus.get(path).body == BODY
        data = server.data_file(id_of(path))
        names = [each.name for each in finished.iterdir() if each.is_file()]
        assert names == ["a (1)"], state
        assert (finished / "a (1)").samefile(data)
        (finished / "a (1)").unlink()


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{user}/{filename}", r"{user} is no placeholder"),
        ("{filename}/../x", "begin with a dot"),
        ("{filename", "brace"),
        ("/srv", "must not mix with uploads"),
        ("/srv/uploads", "must not mix with uploads"),
        ("/srv/uploads/.tusd-py/x", "must not mix"),
    ],
)
def test_a_directory_that_cannot_work_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Settings(upload_dir="/srv/uploads", finished_dir=template)
    with pytest.raises(ValueError, match="finished_dir"):
        Settings(s3_bucket="uploads", finished_dir="/srv/{filename}")


def test_the_directory_ends_before_the_first_placeholder() -> None:
    found = {
        text: str(Settings(upload_dir="/srv/uploads", finished_dir=text).finished_base)
        for text in ("{owner}/x", "/srv/in", "/srv/in/{owner}", "/srv/in/a-{owner}/x")
    }
    assert list(found.values()) == ["/srv/uploads/finished", "/srv/in", "/srv/in", "/srv/in"]


def test_another_file_system_is_refused_at_the_start(make_server: MakeServer) -> None:
    server = make_server("--finished-dir", "/dev/shm/tusd-py-tests/{filename}", launch=True)
    assert server.wait() != 0
    assert "another file system" in server.log()
    assert "Traceback" not in server.log()
