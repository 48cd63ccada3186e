"""`tusd-py uploads`: listing and removing, with the server running and stopped."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.server import environment
from tests.support.tus import Tus, id_of, metadata
from tests.workers.commands import command, documents, of


def test_states_offsets_and_sizes(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    finished = tus.finished(b"hello", {"Upload-Metadata": metadata(filename="a\nb")})
    begun = tus.new(10)
    tus.patch(begun, 0, b"abc")
    deferred = tus.new(None)
    part = tus.finished(b"part", {"Upload-Concat": "partial"})
    found = {str(each["upload"]): each for each in documents("uploads", "list", *of(server))}
    seen = {name: (each["state"], each["offset"], each["size"]) for name, each in found.items()}
    assert seen == {
        id_of(finished): ("finished", 5, 5),
        id_of(begun): ("uploading", 3, 10),
        id_of(deferred): ("uploading", 0, None),
        id_of(part): ("part", 4, 4),
    }
    assert found[id_of(finished)]["expires"] is None
    assert found[id_of(begun)]["expires"] is not None
    [shown] = documents("uploads", "show", id_of(finished), *of(server))
    assert shown["metadata"] == {"filename": "a\nb"}
    text = command("uploads", "show", id_of(finished), *of(server)).stdout
    assert f"upload      {id_of(finished)}\n" in text
    table = command("uploads", "list", *of(server)).stdout.splitlines()
    assert table[0].split() == ["UPLOAD", "STATE", "DONE", "SIZE", "AGE", "OWNER", "NAME"]
    # The newest first; in a pipe nothing is cut or coloured.
    assert [line.split()[0] for line in table[1:]] == [
        id_of(path) for path in (part, deferred, begun, finished)
    ]
    assert table[3].split()[1:5] == ["uploading", "30%", "10", "B"]
    assert table[4].endswith("  a\\nb")
    assert "\x1b" not in "".join(table)
    for flags, expected in (
        (("--state", "unfinished"), [deferred, begun]),
        (("--state", "part"), [part]),
        (("--sort", "oldest", "--limit", "2"), [finished, begun]),
        (("--sort", "size"), [begun, finished, part, deferred]),
        (("--owner", "somebody"), []),
        (("--after", id_of(begun)), [finished]),
    ):
        listed = [each["upload"] for each in documents("uploads", "list", *flags, *of(server))]
        assert listed == [id_of(path) for path in expected], flags
    coloured = command("uploads", "list", "--color", "always", *of(server)).stdout
    assert "\x1b[32mfinished\x1b[m" in coloured
    gone = command("uploads", "list", "--after", "none", *of(server))
    assert (gone.returncode, "no such upload" in gone.stderr) == (1, True)


@pytest.mark.parametrize("sort", ["newest", "id"])
def test_pages_lead_to_every_upload_once(make_server: MakeServer, sort: str) -> None:
    server = make_server()
    tus = Tus(server)
    ids = [id_of(tus.new(1)) for _ in range(5)]
    ids = sorted(ids) if sort == "id" else ids[::-1]
    server.terminate()
    seen: list[str] = []
    after: tuple[str, ...] = ()
    for _ in range(3):
        flags = ("--sort", sort, "--limit", "2", *after)
        page = documents("uploads", "list", *flags, *of(server))
        seen += [str(each["upload"]) for each in page]
        after = ("--after", seen[-1])
    assert seen == ids
    told = command("uploads", "list", "--sort", sort, "--limit", "2", *of(server)).stderr
    assert told == f"tusd-py uploads: continue with --after {ids[1]}\n"


class Terminal:
    """A command on a terminal of 80 by 24 characters."""

    def __init__(self, *words: str) -> None:
        self.shown = ""
        # A character may come in two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {
            key: value for key, value in environment().items() if key not in ("COLUMNS", "LINES")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tusd_py", *words],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**env, "TERM": "xterm"},
        )
        os.close(side)

    def read_until(self, text: str) -> None:
        while text not in self.shown:
            assert select.select([self._main], [], [], 50)[0], self.shown
            self.shown += self._decoder.decode(os.read(self._main, 65_536))

    def press(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def end(self) -> int:
        # What is written last would otherwise keep it from ending.
        with suppress(OSError):
            while more := os.read(self._main, 65_536):
                self.shown += self._decoder.decode(more)
        os.close(self._main)
        return self.process.wait(50)


def test_watch_shows_the_list_as_it_changes_until_q_is_pressed(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(1_000_000, headers={"Upload-Metadata": metadata(filename="long" * 30)})
    terminal = Terminal("uploads", "watch", *of(server))
    terminal.read_until("0%")
    assert "1 uploading" in terminal.shown
    tus.patch(path, 0, bytes(500_000))
    terminal.read_until("50%")
    assert "\x1b[36muploading\x1b[m" in terminal.shown
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", terminal.shown)
    assert max(map(len, plain.splitlines())) <= 80 * 2
    assert "longlong" in plain
    terminal.press(b"q")
    assert terminal.end() == 0
    # The terminal is as it was: the cursor is shown, and the screen of before.
    assert terminal.shown.endswith("\x1b[?25h\x1b[?1049l")
    assert "needs a terminal" in command("uploads", "watch", *of(server)).stderr


@pytest.mark.parametrize("running", [True, False])
def test_rm_removes_and_leaves_a_tombstone(make_server: MakeServer, running: bool) -> None:
    server = make_server()
    tus = Tus(server)
    path, kept = tus.finished(b"hello"), tus.new(10)
    if not running:
        server.terminate()
    done = command("uploads", "rm", id_of(path), "none", *of(server))
    assert done.returncode == 1
    assert done.stderr == 'tusd-py uploads: "none": there is no such upload\n'
    assert not server.data_file(id_of(path)).exists()
    if not running:
        server.restart()
    assert tus.head(path).status == 410
    assert tus.offset(kept) == 0
    again = command("uploads", "rm", id_of(path), *of(server))
    assert (again.returncode, "gone already" in again.stderr) == (1, True)
    assert command("uploads", "show", id_of(path), *of(server)).returncode == 1


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("damage", ["garbage", "link", "pipe"])
def test_rm_removes_what_has_no_readable_record_once_it_is_told_to(
    make_server: MakeServer, tmp_path: Path, running: bool, damage: str
) -> None:
    server = make_server()
    tus = Tus(server)
    path, kept = tus.finished(b"hello"), tus.new(10)
    if not running:
        server.terminate()
    record, elsewhere = server.info_file(id_of(path)), tmp_path / "elsewhere"
    elsewhere.write_text("not ours")
    record.unlink()
    if damage == "garbage":
        record.write_text('{"ID": 5')
    elif damage == "link":
        record.symlink_to(elsewhere)
    else:
        os.mkfifo(record)
    done = command("uploads", "rm", id_of(path), *of(server))
    assert (done.returncode, "its record cannot be read" in done.stderr) == (1, True)
    assert "--unreadable" in done.stderr
    assert server.data_file(id_of(path)).read_bytes() == b"hello"
    done = command("uploads", "rm", "--unreadable", id_of(path), *of(server))
    assert (done.returncode, done.stderr) == (0, "") if running else done.returncode == 0
    assert not os.path.lexists(record)
    assert not server.data_file(id_of(path)).exists()
    assert elsewhere.read_text() == "not ours"
    if not running:
        server.restart()
    assert tus.head(path).status in (404, 410)
    assert tus.offset(kept) == 0


def test_rm_spares_an_upload_that_is_being_written_to(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.new(10)
    with tus.begin_patch(path, 0, 10, b"abc") as patch:
        patch.wait_stored()
        done = command("uploads", "rm", id_of(path), *of(server))
        assert (done.returncode, "a client is writing to it" in done.stderr) == (1, True)
    assert server.data_file(id_of(path)).exists()


def test_rm_with_the_locks_in_the_redis_of_the_operator(
    make_server: MakeServer, tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_REDIS_URL": redis.url}
        server = make_server(env=env)
        tus = Tus(server)
        path, busy = tus.new(10), tus.new(10)
        with tus.begin_patch(busy, 0, 10, b"abc") as patch:
            patch.wait_stored()
            done = command("uploads", "rm", id_of(path), id_of(busy), *of(server), env=env)
        assert done.returncode == 1
        assert done.stderr.startswith(f'tusd-py uploads: "{id_of(busy)}": a client')
        assert tus.head(path).status == 410
        server.terminate()


def test_a_directory_that_is_none_stays_so(tmp_path: Path) -> None:
    directory = ("--upload-dir", str(tmp_path / "none"))
    for words in (
        ("uploads", "list"),
        ("uploads", "show", "a"),
        ("uploads", "rm", "a"),
        ("sweep",),
    ):
        done = command(*words, *directory)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is no directory" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "no action was given; give list, watch, show or rm"),
        (("lst",), '"lst" is no action; give list, watch, show or rm; did you mean list?'),
        (("list", "x"), 'unexpected argument "x"; list lists all'),
        (("rm",), "give ids of uploads to rm"),
        (("list", "--limit", "0"), '--limit "0": give a whole number'),
    ],
)
def test_mistakes(words: tuple[str, ...], problem: str) -> None:
    done = command("uploads", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
