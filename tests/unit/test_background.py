"""Background tasks: none fails silently, and permanent ones are restarted."""

from __future__ import annotations

import ast
import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.server import ROOT
from tusd_py import background
from tusd_py.background import keep_running, spawn
from tusd_py.locks.redis import RedisLocks
from tusd_py.redis import RedisClient
from tusd_py.telemetry.prometheus import Metrics

GUARD = 60.0

AWAITED = {
    # file: the functions in it whose tasks are awaited by whoever needs what they do, so that a failure is raised there
    "tusd_py/background.py": {"keep_running", "spawn"},
    "tusd_py/maintenance/remote.py": {"_line"},
    "tusd_py/process/sidecars.py": {"stop"},
    "tusd_py/web/http/direct_body.py": {"_took"},
    # It answers its own failures.
    "tusd_py/web/http/protocol.py": {"_start"},
    "tusd_py/web/http/tls.py": {"_shake_hands"},
    "tusd_py/storage/file/store.py": {"check"},
    "tusd_py/storage/s3/aiobotocore_store.py": {"_wait_for_slot"},
    "tusd_py/storage/s3/completion.py": {"complete"},
    "tusd_py/storage/s3/joining.py": {"assemble"},
    "tusd_py/storage/s3/trial.py": {"_to_its_end"},
    "tusd_py/storage/s3/writer.py": {"_send", "_take"},
    "tusd_py/web/admin/actions.py": {"_sweep"},
    "tusd_py/web/health.py": {"_problem"},
    "tusd_py/web/download.py": {"send_file"},
    "tusd_py/compat/engines.py": {"get"},
}


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def guarded() -> None:
        async with asyncio.timeout(GUARD):
            await work()

    asyncio.run(guarded())


@pytest.mark.parametrize(
    "problem", [ValueError("odd"), RecursionError(), OSError(5, "I/O error"), KeyError("x")]
)
def test_a_task_that_fails_is_logged_counted_and_started_again(
    caplog: pytest.LogCaptureFixture, problem: Exception
) -> None:
    before = background.failures["a test"]
    runs: list[int] = []

    async def fail_twice() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise problem

    async def work() -> None:
        await keep_running(fail_twice, "a test")

    with caplog.at_level(logging.ERROR):
        run(work)
    assert len(runs) == 3
    assert background.failures["a test"] == before + 2
    assert caplog.text.count("failed and is started again") == 2
    assert type(problem).__name__ in caplog.text
    exposed = Metrics().render(None)[0].decode()
    assert f'tusd_background_failures_total{{task="a test"}} {before + 2}.0' in exposed


def test_a_task_that_is_cancelled_ends() -> None:
    async def work() -> None:
        task = keep_running(asyncio.Event().wait, "a test")  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work)


def test_work_that_is_done_once_is_logged_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    before = background.failures["once"]

    async def fail() -> None:
        raise RecursionError

    async def work() -> None:
        tasks: set[asyncio.Task[None]] = set()
        task = spawn(fail(), "once", tasks)
        assert tasks == {task}
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert not tasks

    with caplog.at_level(logging.ERROR):
        run(work)
    assert "once failed" in caplog.text
    assert background.failures["once"] == before + 1


def test_leases_are_renewed_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example of a permanent task: without it leases would be lost one by one."""
    rounds = 0
    again = asyncio.Event()

    async def keep(_self: RedisLocks) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise AttributeError("unforeseen")
        again.set()

    async def listen(_self: RedisLocks) -> None: ...

    monkeypatch.setattr(RedisLocks, "_keep", keep)
    monkeypatch.setattr(RedisLocks, "_listen", listen)

    async def work() -> None:
        locks = RedisLocks(RedisClient("redis://127.0.0.1:1/0", prefix="x", timeout=1.0), lease=1.0)
        locks._start()
        await again.wait()

    run(work)


def test_nothing_else_makes_tasks_that_nobody_awaits() -> None:
    found: dict[str, set[str]] = {}
    for tree in ("tusd_py", "hooks", "workers"):
        for path in (ROOT / tree).rglob("*.py"):
            makers = _makers(path)
            if makers:
                found[str(path.relative_to(ROOT))] = makers
    unknown = {
        path: makers - AWAITED.get(path, set())
        for path, makers in found.items()
        if makers - AWAITED.get(path, set())
    }
    assert not unknown, "use tusd_py.background, or say above who awaits these"


def _makers(path: Path) -> set[str]:
    """The functions of a file that make tasks."""
    makers = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and _name(call.func) in (
                    "create_task",
                    "ensure_future",
                ):
                    makers.add(node.name)
    return makers


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
