"""An id that a hook gives to another owner's upload in the middle of a request tells the first owner nothing."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.auth.conftest import FLAGS
from tests.auth.people import SECRET, access, bearer
from tests.conftest import MakeServer
from tests.support.tus import Tus, metadata
from tests.support.waiting import wait_until
from tests.support.wire import Response

HOOK = """
import asyncio
from pathlib import Path
from tusd_py import Changes

HERE = Path(__file__).parent

def pre_create(event):
    return Changes(id="the-same")

async def pre_access(event):
    if event.request.method == "HEAD":
        (HERE / "asked").touch()
        while (HERE / "held").exists():
            await asyncio.sleep(0.005)
"""


def test_a_head_that_waited_is_checked_again(make_server: MakeServer, tmp_path: Path) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK)
    tus = Tus(make_server(*FLAGS, "--hook", str(hook), env={"TUSD_JWT_SECRET": SECRET}))
    alice, bob = (bearer(access(owner)) for owner in ("alice", "bob"))
    path = tus.new(10, headers=alice)
    held = tmp_path / "held"
    held.touch()
    answers: list[Response] = []
    asking = threading.Thread(target=lambda: answers.append(tus.head(path, alice)))
    asking.start()
    wait_until((tmp_path / "asked").exists, "the hook to be called")
    assert tus.delete(path, alice).status == 204
    assert tus.new(77, headers={**bob, "Upload-Metadata": metadata(patient="Bob")}) == path
    held.unlink()
    asking.join(60)
    [answer] = answers
    assert answer.status == 404
    assert "Upload-Length" not in answer
    assert "Upload-Metadata" not in answer
    assert tus.head(path, bob)["Upload-Length"] == "77"
