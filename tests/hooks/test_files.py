"""Hooks as executables with a real server: shell scripts in a directory, named after events."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvloop

from tests.docs.blocks import blocks
from tests.hooks.conftest import ALL_EVENTS
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tusd_hooks.files import FileHooks, read_parts
from tusd_py.events.model import (
    Changes,
    Event,
    EventType,
    HookContext,
    HookFailed,
    RequestView,
    UploadView,
)
from tusd_py.settings.model import Settings
from tusd_py.telemetry.counters import Counters

ALL = ("--hooks-enabled-events", ALL_EVENTS)


class Scripts:
    """The hooks' directory, beside which the scripts leave what they have to tell."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "hooks"
        self.notes = root / "notes"
        self.directory.mkdir()
        self.notes.mkdir()

    def write(self, name: str, code: str, mode: int = 0o755, first: str = "#!/bin/sh\n") -> Path:
        """A script; ``$NOTES`` is where it may write."""
        path = self.directory / name
        path.write_text(f"{first}{code}\n".replace("$NOTES", str(self.notes)))
        path.chmod(mode)
        return path

    def answer(self, name: str, answer: object) -> None:
        """A script that answers and nothing else."""
        self.write(name, f"cat <<'END'\n{json.dumps(answer)}\nEND")

    def clear(self) -> None:
        """Remove all scripts and notes."""
        for path in (*self.directory.iterdir(), *self.notes.iterdir()):
            path.unlink()

    def note(self, name: str) -> str:
        """Wait for the first line that a script writes; its output."""
        path = self.notes / name
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), name, 30)
        return path.read_text()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scripts, ServerProcess]]:
    root = tmp_path_factory.mktemp("server")
    scripts = Scripts(root)
    flags = ("--hooks-dir", str(scripts.directory), *ALL)
    env = {"TUSD_HOOKS_HTTP_SECRET": "not for scripts to see", "FOR_SCRIPTS": "yes"}
    with ServerProcess(root / "uploads", *flags, env=env) as process:
        yield scripts, process


@pytest.fixture
def scripts(shared: tuple[Scripts, ServerProcess]) -> Scripts:
    shared[0].clear()
    return shared[0]


@pytest.fixture
def tus(shared: tuple[Scripts, ServerProcess]) -> Tus:
    """A client of the module's server, which has all events enabled."""
    return Tus(shared[1])


def logged(tus: Tus, pattern: str) -> None:
    """Wait until the server has logged a line that matches, in this test."""
    server = tus.server
    since = len(server.lines) - len(server.lines_since_mark())
    server.wait_for_line(pattern, timeout=30, since=since)


def most_memory(tus: Tus) -> int:
    """The most bytes of memory that the server has had in use so far."""
    status = Path(f"/proc/{tus.server.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def names(tus: Tus) -> list[str]:
    return sorted(path.name for path in tus.server.upload_dir.iterdir())


# --- what an executable is told -------------------------------------------------------------------


def test_the_event_is_on_standard_input_and_in_the_environment(scripts: Scripts, tus: Tus) -> None:
    for name in ("pre-create", "post-finish"):
        scripts.write(
            name,
            f'cat > $NOTES/{name}.json; echo "id=$TUS_ID size=$TUS_SIZE offset=$TUS_OFFSET'
            f' for=$FOR_SCRIPTS secret=$TUSD_HOOKS_HTTP_SECRET in=$PWD" > $NOTES/{name}; cat',
        )
    path = tus.finished(b"hello", {"Upload-Metadata": metadata(filename="a.txt")})
    place = scripts.directory
    assert scripts.note("pre-create") == f"id= size=5 offset=0 for=yes secret= in={place}\n"
    finished = f"id={id_of(path)} size=5 offset=5 for=yes secret= in={place}\n"
    assert scripts.note("post-finish") == finished
    created = json.loads((scripts.notes / "pre-create.json").read_text())
    assert created["Type"] == "pre-create"
    assert created["Event"]["Upload"]["MetaData"] == {"filename": "a.txt"}
    document = json.loads((scripts.notes / "post-finish.json").read_text())
    assert document["Event"]["Upload"]["Storage"]["Path"] == str(tus.server.data_file(id_of(path)))


def test_the_example_of_the_documentation(scripts: Scripts, tus: Tus) -> None:
    (code,) = (block for block in blocks("docs/hooks.md", "sh") if "DIR/post-finish" in block)
    scripts.write("post-finish", code, first="")
    path = tus.finished(b"hello")
    logged(tus, f"post-finish hook .*: upload {id_of(path)} has 5 bytes")


def test_each_event_runs_its_own_file(scripts: Scripts, tus: Tus) -> None:
    for name in ALL_EVENTS.split(","):
        scripts.write(name, f"echo {name} >> $NOTES/all")
    path = tus.finished(b"hello")
    tus.head(path)
    assert tus.delete(path).status == 204
    expected = [
        *("pre-create", "post-create", "pre-access", "post-receive", "pre-finish", "post-finish"),
        *("pre-access", "pre-access", "pre-terminate", "post-terminate"),
    ]
    wait_until(lambda: scripts.note("all").endswith("post-terminate\n"), "all events")
    # A post- event may be told while the next request is already under way.
    assert sorted(scripts.note("all").split()) == sorted(expected)


def test_an_input_that_nobody_reads_is_no_failure(scripts: Scripts, tus: Tus) -> None:
    scripts.write("pre-create", "exec 0<&-\nexit 0")
    large = {"Upload-Metadata": metadata(x="y" * 40_000)}
    for _ in range(5):
        assert tus.create(5, headers=large).status == 201


# --- what its answer can do -----------------------------------------------------------------------


def test_a_creation_is_rejected_with_status_headers_and_body(scripts: Scripts, tus: Tus) -> None:
    details = {"StatusCode": 422, "Body": "no", "Header": {"X-Reason": "project"}}
    scripts.answer("pre-create", {"RejectUpload": True, "HTTPResponse": details})
    before = names(tus)
    response = tus.create(5)
    assert (response.status, response.text, response["X-Reason"]) == (422, "no", "project")
    assert names(tus) == before


def test_id_metadata_and_storage_path_are_set(scripts: Scripts, tus: Tus) -> None:
    changes = {
        "ID": "from-a-script/1",
        "MetaData": {"a": "b"},
        "Storage": {"Path": "./elsewhere/1"},
    }
    scripts.answer("pre-create", {"ChangeFileInfo": changes})
    path = tus.finished(b"hello")
    assert path == "/files/from-a-script/1"
    assert tus.head(path)["Upload-Metadata"] == "a Yg=="
    assert (tus.server.upload_dir / "elsewhere/1").read_bytes() == b"hello"


def test_a_storage_path_that_leads_out_is_a_failure(scripts: Scripts, tus: Tus) -> None:
    root = tus.server.upload_dir
    scripts.answer("pre-create", {"ChangeFileInfo": {"Storage": {"Path": "../out"}}})
    before = names(tus)
    assert tus.create(5).status == 500
    assert names(tus) == before
    assert not (root.parent / "out").exists()


def test_no_output_lets_it_pass(scripts: Scripts, tus: Tus) -> None:
    scripts.write("pre-create", "echo")
    assert tus.create(5).status == 201


def test_the_response_to_the_last_bytes_is_shaped(scripts: Scripts, tus: Tus) -> None:
    scripts.answer("pre-finish", {"HTTPResponse": {"StatusCode": 200, "Body": "study 7"}})
    path = tus.new(5)
    response = tus.patch(path, 0, b"hello")
    assert (response.status, response.text) == (200, "study 7")


def test_termination_and_access_are_rejected(scripts: Scripts, tus: Tus) -> None:
    path = tus.new(5)
    scripts.answer("pre-terminate", {"RejectTermination": True})
    response = tus.delete(path)
    assert (response.status, response.code) == (400, "ERR_UPLOAD_TERMINATION_REJECTED")
    scripts.answer("pre-access", {"RejectAccess": True, "HTTPResponse": {"StatusCode": 401}})
    assert tus.head(path).status == 401
    assert tus.patch(path, 0, b"hello").status == 401
    scripts.clear()
    assert tus.offset(path) == 0


# --- failures -------------------------------------------------------------------------------------


def test_an_exit_code_is_a_failure(scripts: Scripts, tus: Tus) -> None:
    scripts.write("pre-create", 'echo "what went wrong" >&2; echo "half an answer"; exit 3')
    before = names(tus)
    response = tus.create(5)
    assert (response.status, response.code) == (500, "ERR_INTERNAL_SERVER_ERROR")
    assert names(tus) == before
    logged(tus, "pre-create: ended with exit code 3: .*half an answer")
    logged(tus, "INFO .*pre-create hook of upload .*: what went wrong")
    assert not any("Traceback" in line for line in tus.server.lines_since_mark())


def test_a_failure_after_the_fact_is_only_logged(scripts: Scripts, tus: Tus) -> None:
    scripts.write("post-finish", "kill -SEGV $$")
    path = tus.finished(b"hello")
    logged(tus, f"post-finish: was ended by signal {signal.SIGSEGV:d}")
    assert tus.get(path).body == b"hello"


@pytest.mark.parametrize("output", ["<html>", '{"RejectUpload": 1}', '{"HTTPResponse": []}'])
def test_a_malformed_answer_is_a_failure(scripts: Scripts, tus: Tus, output: str) -> None:
    scripts.write("pre-create", f"echo '{output}'")
    assert tus.create(5).status == 500
    logged(tus, "pre-create: .*(the answer is not JSON|must be)")


def test_what_else_executables_write_is_ignored(scripts: Scripts, tus: Tus) -> None:
    scripts.write("post-finish", "head -c 10000000 /dev/zero; echo done > $NOTES/done")
    tus.finished(b"hello")
    scripts.note("done")


def test_a_large_answer_is_a_failure(scripts: Scripts, tus: Tus) -> None:
    scripts.write("pre-create", "head -c 50000000 /dev/zero")
    before = most_memory(tus)
    assert tus.create(5).status == 500
    logged(tus, "the answer is larger than 65536 bytes")
    assert most_memory(tus) - before < 20_000_000


def test_a_file_that_cannot_be_executed_is_a_failure(scripts: Scripts, tus: Tus) -> None:
    scripts.write("pre-create", "exit 0", mode=0o644)
    assert tus.create(5).status == 500
    logged(tus, r"pre-create: cannot be executed \(chmod \+x\)")


def test_a_missing_interpreter_is_a_failure(scripts: Scripts, tus: Tus) -> None:
    scripts.write("pre-create", "", first="#!/nowhere/interpreter\n")
    assert tus.create(5).status == 500
    logged(tus, "pre-create: the interpreter that its first line names does not exist")


def test_a_script_without_a_first_line_is_a_failure(scripts: Scripts, tus: Tus) -> None:
    scripts.write("pre-create", "exit 0", first="")
    assert tus.create(5).status == 500
    logged(tus, "pre-create: is not a program")


def test_what_takes_too_long_is_ended_with_all_that_it_started(scripts: Scripts, tus: Tus) -> None:
    quick = ServerProcess(
        tus.server.upload_dir.parent / "quick",
        *("--hooks-dir", str(scripts.directory), "--hooks-timeout", "3s"),
    )
    scripts.write("pre-create", "sleep 600 & echo $! $$ > $NOTES/pids; wait")
    with quick:
        assert Tus(quick).create(5).status == 500
        quick.wait_for_line("pre-create hook .* failed .*: it took longer than 3 s")
        assert names(Tus(quick)) == [".tusd-py"]
        for pid in map(int, scripts.note("pids").split()):
            wait_until(lambda pid=pid: not is_alive(pid), f"the end of {pid}")  # type: ignore[misc]


def test_what_was_left_in_the_background_lives_on_and_is_heard(scripts: Scripts, tus: Tus) -> None:
    os.mkfifo(scripts.notes / "go")
    scripts.write(
        "pre-create",
        "(read line < $NOTES/go; echo heard $line >&2) > /dev/null & echo $! > $NOTES/pid",
    )
    assert tus.create(5).status == 201
    (scripts.notes / "go").write_text("you\n")
    logged(tus, "pre-create hook of upload .*: heard you")


def test_standard_error_is_logged_line_by_line(scripts: Scripts, tus: Tus) -> None:
    scripts.write(
        "pre-create",
        r"""printf 'one\n\ntwo \033[31m\nthree' >&2; head -c 10000 /dev/zero | tr '\0' z >&2""",
    )
    assert tus.create(5).status == 201
    logged(tus, "pre-create hook .*: one$")
    logged(tus, r"pre-create hook .*: two \\x1b\[31m$")
    logged(tus, "pre-create hook .*: threez+$")


def test_a_slow_hook_holds_up_nobody_else(scripts: Scripts, tus: Tus) -> None:
    os.mkfifo(scripts.notes / "go")
    # Only the creation of 7 bytes waits.
    scripts.write("pre-create", 'if [ "$TUS_SIZE" = 7 ]; then read line < $NOTES/go; fi')
    with tus.connect() as connection:
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "7", "Content-Length": "0"}
        connection.send_head("POST", tus.collection, headers)
        tus.finished(b"hello")
        (scripts.notes / "go").write_text("\n")
        response = connection.read_response("POST")
    assert response.status == 201
    assert path_of(response["Location"])


# --- on the event loop of the standard library, where the server above has uvloop's ---------------


async def started(scripts: Scripts) -> FileHooks:
    async def nothing(_: str) -> None:
        return None

    settings = Settings(hooks_dir=scripts.directory, upload_dir=scripts.notes)
    hooks = FileHooks()
    await hooks.start(HookContext(settings, None, nothing, Counters()))
    return hooks


CREATION = Event(EventType.PRE_CREATE, UploadView("x", 5, 0, {}), RequestView())


async def test_an_answer_and_a_failure(scripts: Scripts) -> None:
    hooks = await started(scripts)
    assert await hooks.handle(CREATION) is None
    scripts.answer("pre-create", {"ChangeFileInfo": {"ID": "mine"}})
    assert await hooks.handle(CREATION) == Changes(id="mine")
    scripts.write("pre-create", "exec >&-; exit 4")
    with pytest.raises(HookFailed, match="exit code 4"):
        await hooks.handle(CREATION)
    await hooks.stop()


async def test_hooks_that_are_started_again_have_the_events_of_then(scripts: Scripts) -> None:
    async def nothing(_: str) -> None:
        return None

    hooks = FileHooks()
    for events in (["pre-create"], ["post-finish"], ["pre-create", "post-finish"]):
        settings = Settings(
            hooks_dir=scripts.directory, upload_dir=scripts.notes, hooks_enabled_events=events
        )
        await hooks.start(HookContext(settings, None, nothing, Counters()))
        assert hasattr(hooks, "pre_create") == ("pre-create" in events)
        assert hasattr(hooks, "post_finish") == ("post-finish" in events)
        await hooks.stop()


def test_an_output_is_closed_once() -> None:
    """A second close would be of a file that another thread has opened since: bytes of an upload, for instance."""
    ended = threading.Event()

    def open_and_close() -> None:
        while not ended.is_set():
            os.close(os.open(os.devnull, os.O_RDONLY))

    async def read_pipes() -> None:
        for _ in range(2000):
            out, to = os.pipe()
            os.close(to)
            assert [part async for part in read_parts(os.fdopen(out, "rb", buffering=0), 1)] == []

    with ThreadPoolExecutor(4) as threads:
        opening = [threads.submit(open_and_close) for _ in range(4)]
        try:
            uvloop.run(read_pipes())
        finally:
            ended.set()
    for each in opening:
        each.result()


async def test_a_call_that_is_given_up_leaves_nothing_behind(scripts: Scripts) -> None:
    hooks = await started(scripts)
    # The script itself has ended; who keeps its output open has not.
    scripts.write("pre-create", "sleep 600 & echo $! $$ > $NOTES/pids")
    call = asyncio.create_task(hooks.handle(CREATION))
    note = await asyncio.to_thread(scripts.note, "pids")
    pid, script = map(int, note.split())
    await asyncio.to_thread(wait_until, lambda: not is_alive(script), f"the end of {script}")
    assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    wait_until(lambda: not is_alive(pid), f"the end of {pid}")
    await hooks.stop()


# --- starting -------------------------------------------------------------------------------------


def test_what_will_not_be_run_is_told_at_start(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    scripts.write("pre-create", "", mode=0o644)
    scripts.write("post-create.sh", "")
    scripts.write("pre-finish", "")
    scripts.write("post-finish", "")
    flags = ("--hooks-dir", str(scripts.directory))
    with ServerProcess(tmp_path / "uploads", *flags) as server:
        server.wait_for_line(r"WARN .*pre-create cannot be executed \(chmod \+x\)")
        server.wait_for_line(r"WARN .*post-create\.sh will not be run: hooks have no ending")
        server.wait_for_line("WARN .*pre-finish will not be run: --hooks-enabled-events does not")
        server.wait_for_line("INFO .*hooks as executables .*events=post-finish")
        assert not any("post-finish" in line for line in server.lines if "WARN" in line)


def test_a_directory_without_hooks_is_told_at_start(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    with ServerProcess(tmp_path / "uploads", "--hooks-dir", str(scripts.directory)) as server:
        server.wait_for_line("WARN .*has no file that is named after an enabled event")
        assert Tus(server).create(5).status == 201


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "uploads", "--hooks-dir", str(tmp_path / "nowhere"))
    assert server.launch().wait() == 2
    assert "there is no such directory" in server.log()
    server.close()


def is_alive(pid: int) -> bool:
    """True if a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_not_too_many_run_in_the_background(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    scripts.write(
        "post-create", "while [ ! -e $NOTES/go ]; do sleep 0.1; done; echo >>$NOTES/ended"
    )
    flags = ("--hooks-dir", str(scripts.directory), "--hooks-delivery", "server")
    with ServerProcess(tmp_path / "uploads", *flags) as server:
        tus = Tus(server)
        for _ in range(60):
            tus.new(5)
        assert tus.options().status == 204
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(children) <= 34
        (scripts.notes / "go").touch()
        ended = scripts.notes / "ended"
        wait_until(lambda: ended.exists() and ended.read_text().count("\n") == 60, "all of them")
