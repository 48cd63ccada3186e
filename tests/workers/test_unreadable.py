"""An unreadable file or directory does not stop sweeps, listings, the start or takeovers of the rest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.files import files_below
from tests.support.privileges import OBEYING_PERMISSIONS
from tests.support.server import ServerProcess
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tests.workers.commands import command, documents, of
from tests.workers.test_metrics import samples
from tests.workers.test_sweep_command import abandon
from tusd_py.compat.directory import expire

DEEP = "[" * 100_000 + "]" * 100_000


def record(**changes: object) -> str:
    """A record of an upload of 5 bytes, with other values in some places."""
    ours: dict[str, object] = {"CreatedAt": 1.0, "Owner": "", "FinishedAt": 0.0}
    ours |= {"ExpireAfter": None, "Retain": None, "MaxSize": None}
    document: dict[str, object] = {"ID": "x", "Size": 5, "MetaData": {}, "TusdPy": ours}
    for key, value in changes.items():
        (ours if key in ours or key == "Metadata" else document)[key] = value
    return json.dumps(document)


RECORDS = {
    "text-expiry": record(ExpireAfter="never"),
    "list-retain": record(Retain=[1]),
    "object-owner": record(Owner={}),
    "number-metadata": record(Metadata=5),
    "not-a-time": record(CreatedAt=float("nan")),
    "far-future": record(CreatedAt=1e300),
    "negative-size": record(Size=-1),
    "huge-size": record(Size=10**30),
    "infinite-size": record(Size=float("inf")),
    "text-maximum": record(MaxSize="1"),
    "parts-number": record(PartialUploads=7),
    "ours-is-a-list": '{"ID":"x","Size":5,"TusdPy":[1]}',
    "a-list": "[]",
    "a-number": "5",
    "no-json": "{",
    "not-text": "\x00\x01",
    "too-deep": DEEP,
    "deep-value": '{"ID":"x","Size":5,"TusdPy":' + DEEP + "}",
}
"""By name of the upload, records of which each alone has ended a sweep or might."""


def litter(directory: Path) -> int:
    """Puts everything into the directory that cannot be read; how many things that are."""
    for name, text in RECORDS.items():
        (directory / name).write_bytes(b"hello")
        (directory / f"{name}.info").write_text(text, encoding="latin-1")
    (directory / "no-utf8-inside.info").write_bytes(b'{"ID":"\xff","Size":5}')
    os.mkfifo(directory / "pipe.info")
    os.symlink("/dev/zero", directory / "link.info")
    os.symlink(directory, directory / "loop")
    (directory / "directory.info").mkdir()
    with (directory / "sparse.info").open("wb") as file:
        file.truncate(1 << 40)
    (directory / "another-users" / "below").mkdir(parents=True)
    (directory / "another-users" / "below").chmod(0)
    Path(os.fsdecode(os.fsencode(directory) + b"/no-utf8-\xff.info")).write_text(record())
    Path(os.fsdecode(os.fsencode(directory) + b"/no-utf8-\xfe")).mkdir()
    locked = directory / "lost+found"
    locked.mkdir()
    locked.chmod(0)
    return len(RECORDS) + 8


@pytest.fixture
def littered(tmp_path: Path) -> Iterator[Callable[[Path], int]]:
    """`litter`, and directories that pytest can remove in the end."""
    mine: list[Path] = []

    def make(directory: Path) -> int:
        mine.append(directory)
        return litter(directory)

    yield make
    for directory in mine:
        for locked in ("lost+found", "another-users/below"):
            (directory / locked).chmod(0o700)


def swept(server: ServerProcess, data: Path) -> None:
    wait_until(lambda: not data.exists(), "the sweep of the server")


def test_the_sweep_at_the_start_removes_the_rest(
    make_server: MakeServer, littered: Callable[[Path], int]
) -> None:
    server = make_server("--log-format", "json", prefix=OBEYING_PERMISSIONS)
    tus = Tus(server)
    gone, kept, finished = tus.new(10), tus.new(10), tus.finished(b"hello")
    server.wait_for_first_sweep()
    gone_id = abandon(server, gone)
    server.terminate()
    litter_count = littered(server.upload_dir)
    server.restart()
    swept(server, server.data_file(gone_id))
    assert tus.head(gone).status == 410
    assert tus.offset(kept) == 0
    assert tus.get(finished).body == b"hello"
    # Nothing of it was touched, and each was named.
    for name in ("the sweep skipped", "lost\\+found", "another-users/below"):
        server.wait_for_line(name)
    names = "\n".join(server.lines)
    for name in RECORDS:
        assert server.data_file(name).read_bytes() == b"hello"
        # A request for it fails alone.
        assert tus.get(f"{server.base_path}{name}").status == 500
        assert 0 < names.count("the sweep skipped") <= 20
    assert "lost+found" in names
    assert "another-users/below" in names

    def passed_over() -> float:
        found = samples(tus.get("/metrics").body.decode())
        return sum(
            value for name, value in found.items() if name.startswith("tusd_passed_over_total")
        )

    wait_until(lambda: passed_over() >= litter_count, "the count of what was passed over")
    assert server.running


@pytest.mark.parametrize("running", [True, False])
def test_the_command_removes_the_rest(
    make_server: MakeServer, littered: Callable[[Path], int], running: bool
) -> None:
    server = make_server(prefix=OBEYING_PERMISSIONS)
    tus = Tus(server)
    server.wait_for_first_sweep()
    gone_id = abandon(server, tus.new(10))
    count = littered(server.upload_dir)
    if not running:
        server.terminate()
    done = command("sweep", "--json", *of(server))
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["expired"] == 1, done.stderr
    # Root can read the directories, where the command runs as root and does it itself.
    assert summary["failed"] + summary["skipped"] >= count - 2
    assert not server.data_file(gone_id).exists()


def test_a_list_has_the_rest(make_server: MakeServer, littered: Callable[[Path], int]) -> None:
    server = make_server()
    tus = Tus(server)
    ids = {tus.new(10).rsplit("/", 1)[1] for _ in range(3)}
    littered(server.upload_dir)
    listed = documents("uploads", "list", *of(server))
    assert {str(each["upload"]) for each in listed} == ids
    done = command("uploads", "list", "--limit", "1", *of(server))
    assert "no-utf8-\\xff.info is skipped" in done.stderr
    shown = command("uploads", "show", "too-deep", min(ids), *of(server))
    assert shown.returncode == 1
    assert "too-deep" in shown.stderr
    assert min(ids) in shown.stdout


def test_taking_over_goes_on(tmp_path: Path, littered: Callable[[Path], int]) -> None:
    directory = tmp_path / "uploads"
    directory.mkdir()
    littered(directory)
    (directory / "theirs").write_bytes(b"hello")
    (directory / "theirs.info").write_text(
        json.dumps({"ID": "theirs", "Size": 5, "MetaData": {"filename": "a"}})
    )
    done = command("adopt", str(directory), "--from", "tusd", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["finished"] == 1, done.stderr
    left = {line["upload"] for line in lines[:-1]}
    assert {"too-deep", "pipe", "link", "sparse", "no-utf8-\\xff.info"} <= left
    back = command("adopt", str(directory), "--to", "tuspyserver", "--json")
    assert json.loads(back.stdout.splitlines()[-1])["finished"] == 1, back.stderr


def test_the_sweep_of_a_routers_directory_goes_on(
    tmp_path: Path, littered: Callable[[Path], int]
) -> None:
    directory = tmp_path / "uploads"
    directory.mkdir()
    littered(directory)
    (directory / "theirs").write_bytes(b"hel")
    (directory / "theirs.info").write_text(
        json.dumps(
            {
                "metadata": {},
                "size": 5,
                "offset": 3,
                "created_at": "2020-01-01 00:00:00",
                "expires": "Thu, 02 Jan 2020 00:00:00 GMT",
            }
        )
    )
    report = expire(directory)
    assert report.removed == [str(directory / "theirs")]
    assert report.not_understood >= len(RECORDS)


EVENTS = {
    "wrong-attempts": '"attempts": "x"',
    "wrong-time": '"not_before": "soon"',
    "endless-time": '"not_before": Infinity',
    "wrong-hooks": '"hooks": [1]',
}


def test_an_outbox_with_unreadable_events_delivers_the_rest(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hooks = tmp_path / "hooks.py"
    told = tmp_path / "told"
    hooks.write_text(
        "def post_finish(event):\n"
        f"    with open({str(told)!r}, 'a') as file:\n"
        "        file.write(event.upload.id + '\\n')\n"
    )
    flags = ("--hook", str(hooks), "--hooks-delivery", "workers")
    server = make_server(*flags, env={"TUSD_JOBS": "off"})
    tus = Tus(server)
    paths = [tus.finished(b"hello") for _ in range(4)]
    server.terminate()
    outbox = server.upload_dir / ".tusd-py" / "outbox"
    waiting = files_below(outbox)
    assert waiting
    shard = waiting[0].parent
    name = waiting[0].name.rsplit("-", 1)[0]
    for number, text in enumerate(EVENTS.values()):
        document = waiting[0].read_text()
        key = text.partition(":")[0]
        at = document.index(key)
        end = min(at for at in (document.find(',"', at), document.find("}", at)) if at > 0)
        broken = document[:at] + text + document[end:]
        (shard / f"{name[:-6]}{900000 + number}-{number:032x}").write_text(broken)
    (shard / f"{name[:-6]}900100-{100:032x}").write_text(DEEP)
    os.mkfifo(shard / f"{name[:-6]}900101-{101:032x}")
    Path(os.fsdecode(os.fsencode(shard) + b"/\xff.000001-00")).write_text("{}")
    (outbox / "not-a-shard").mkdir()
    server.env["TUSD_JOBS"] = "on"
    server.restart()

    def all_told() -> bool:
        ids = {path.rsplit("/", 1)[1] for path in paths}
        return told.exists() and ids <= set(told.read_text().split())

    wait_until(all_told, "the events of the others")
    wait_until(
        lambda: len(files_below(server.upload_dir / ".tusd-py" / "outbox-failed")) == 5,
        "those that cannot be read to be given up",
    )
    listed = command("events", "failed", *of(server))
    assert "it cannot be read" in listed.stdout + listed.stderr
