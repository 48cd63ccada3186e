"""The operator's commands on uploads in a bucket, while the server runs and after it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.s3.servers import ENVIRONMENT, S3Server
from tests.s3.test_server import Servers
from tests.support import commands
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until


def run(server: ServerProcess, *arguments: str) -> tuple[int, str]:
    """Run a command with the server's options; its exit code and its output. Nothing is said beside that."""
    place = ("--upload-dir", str(server.upload_dir))
    done = commands.run(*arguments, *place, *server.flags, env=ENVIRONMENT)
    assert done.stderr == ""
    return done.returncode, done.stdout


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.timeout(120)
def test_commands_see_and_change_what_is_in_the_bucket(
    make_server: MakeServer, seaweedfs: S3Server, prefix: str, tmp_path: Path
) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text("def post_finish(event):\n    raise RuntimeError('not today')\n")
    servers = Servers(make_server, seaweedfs.endpoint, prefix)
    flags = ("--hook", str(hook), "--hooks-delivery-attempts", "1", "--jobs", "on")
    server = servers(*flags, "--duplicates", "on")
    tus = Tus(server)
    named = {"Upload-Metadata": metadata(study="7")}
    finished, unfinished = id_of(tus.finished(b"hello", named)), id_of(tus.new(9))
    assert tus.patch(tus.collection + unfinished, 0, b"some").status == 204
    wait_until(lambda: "event given up" in server.log(), "the delivery to fail", timeout=60)
    event: dict[str, object] = {}
    for is_running in (True, False):
        if not is_running:
            server.terminate()
        code, text = run(server, "uploads", "list", "--json")
        states = {each["upload"]: (each["state"], each["offset"]) for each in documents(text)}
        assert states == {finished: ("finished", 5), unfinished: ("uploading", 4)}
        code, text = run(server, "uploads", "show", finished, "--json")
        assert (code, json.loads(text)["metadata"]) == (0, {"study": "7"})
        [event] = documents(run(server, "events", "failed", "--json")[1])
        assert (event["upload"], event["type"]) == (finished, "post-finish")
        code, text = run(server, "status", "--json")
        status = json.loads(text)
        assert (status["events"]["failed"], status["registry"]["known"]) == (1, 1)
        [known] = documents(run(server, "duplicates", "list", "--json")[1])
        assert known["upload"] == finished
        code, text = run(server, "sweep", "--json")
        assert (code, json.loads(text)["seen"]) == (0, 2)
    assert run(server, "events", "replay", finished)[1].startswith("1 event to be delivered")
    [waiting] = documents(run(server, "events", "list", "--json")[1])
    assert waiting["id"] == event["id"]
    assert run(server, "uploads", "rm", unfinished)[0] == 0
    code, text = run(server, "uploads", "list", "--json")
    assert [each["upload"] for each in documents(text)] == [finished]
