"""The signature of a call, verified with the code of docs/hooks.md in Python and Node, on calls of a real server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.docs.blocks import blocks
from tests.hooks.conftest import QUICK
from tests.hooks.endpoint import Call, Endpoint, Reply
from tests.support.requirements import require_program
from tests.support.server import ServerProcess
from tests.support.tus import Tus, metadata

SECRET = "a secret of more than 16 characters, with ü"
Verify = Callable[[str, str, bytes, float], bool]


def in_python(_directory: Path) -> Verify:
    (code,) = (block for block in blocks("docs/hooks.md", "python") if "def is_genuine" in block)
    names: dict[str, Verify] = {}
    exec(code, names)
    return names["is_genuine"]


def in_node(directory: Path) -> Verify:
    node = require_program("node", "nodejs")
    (code,) = (block for block in blocks("docs/hooks.md", "js") if "isGenuine" in block)
    script = directory / "verify.mjs"
    script.write_text(
        code
        + "import { readFileSync } from 'node:fs';\n"
        + "const [secret, header, tolerance] = process.argv.slice(2);\n"
        + "console.log(isGenuine(secret, header, readFileSync(0), Number(tolerance)));\n"
    )

    def verify(secret: str, header: str, body: bytes, tolerance: float) -> bool:
        done = subprocess.run(
            [node, str(script), secret, header, str(tolerance)],
            input=body,
            capture_output=True,
            check=True,
        )
        return {b"true\n": True, b"false\n": False}[done.stdout]

    return verify


@pytest.fixture(params=[in_python, in_node], ids=["python", "node"])
def verify(request: pytest.FixtureRequest, tmp_path: Path) -> Verify:
    make: Callable[[Path], Verify] = request.param
    return make(tmp_path)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The calls of one creation, of which the first attempt failed."""
    directory = tmp_path_factory.mktemp("server") / "uploads"
    with Endpoint() as endpoint:
        endpoint.script("pre-create", Reply(status=500), Reply())
        flags = ("--hooks-http", endpoint.url, "--hooks-enabled-events", "pre-create", *QUICK)
        with ServerProcess(directory, *flags, env={"TUSD_HOOKS_HTTP_SECRET": SECRET}) as server:
            Tus(server).new(5, headers={"Upload-Metadata": metadata(filename="ä€.txt")})
            assert SECRET[:8] not in server.log()
        return endpoint.calls


def test_every_attempt_is_signed(calls: list[Call], verify: Verify) -> None:
    assert len(calls) == 2
    for call in calls:
        assert verify(SECRET, call.headers["hook-signature"], call.raw, 300)


def test_what_was_changed_or_made_by_others_is_not_genuine(
    calls: list[Call], verify: Verify
) -> None:
    header, body = calls[0].headers["hook-signature"], calls[0].raw
    made_at, digits = header.split(",")
    assert not verify(SECRET, header, body + b" ", 300)
    assert not verify(SECRET, header, body.replace(b"pre-create", b"pre-finish"), 300)
    assert not verify("another secret", header, body, 300)
    assert not verify(SECRET, f"t={int(made_at[2:]) + 1},{digits}", body, 300)
    for broken in ("", "t=1", digits, f"t=now,{digits}", made_at, f"{made_at},v1=", "t,v1"):
        assert not verify(SECRET, broken, body, 300)


def test_what_is_old_is_not_genuine(calls: list[Call], verify: Verify) -> None:
    assert not verify(SECRET, calls[0].headers["hook-signature"], calls[0].raw, -1)


def test_without_a_secret_nothing_is_signed(make_server: MakeServer) -> None:
    with Endpoint() as endpoint:
        Tus(make_server("--hooks-http", endpoint.url)).new(5)
        (call,) = endpoint.of("pre-create")
    assert "hook-signature" not in call.headers
    assert call.headers["hook-event-id"]
