"""The probes, mounted as routes and called without a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from tusd_py.web.health import Health


def client(health: Health) -> httpx.AsyncClient:
    routes = [Route("/healthz", health.healthz), Route("/readyz", health.readyz)]
    transport = httpx.ASGITransport(Starlette(routes=routes))
    return httpx.AsyncClient(transport=transport, base_url="http://server")


def answers(value: str | None) -> Callable[[], Awaitable[str | None]]:
    async def check() -> str | None:
        return value

    return check


async def test_whoever_answers_is_alive() -> None:
    async with client(Health({"store": answers("broken")})) as http:
        response = await http.get("/healthz")
        assert (response.status_code, response.text) == (200, "ok\n")
        assert response.headers["cache-control"] == "no-store"
        assert (await http.head("/healthz")).status_code == 200
        assert (await http.post("/healthz")).status_code == 405


async def test_ready_where_every_check_is_well() -> None:
    async with client(Health({"store": answers(None), "state": answers(None)})) as http:
        response = await http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"ready": True, "checks": {"store": "ok", "state": "ok"}}
    assert response.headers["cache-control"] == "no-store"


async def test_without_checks_it_is_ready() -> None:
    async with client(Health({})) as http:
        assert (await http.get("/readyz")).json() == {"ready": True, "checks": {}}


async def test_not_ready_names_the_check_and_tells_the_log_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    checks = {"store": answers("/srv/secret: read-only"), "state": answers(None)}
    async with client(Health(checks)) as http:
        response = await http.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "checks": {"store": "failed", "state": "ok"}}
    assert "secret" not in response.text
    assert "/srv/secret: read-only" in caplog.text


async def test_a_check_that_raises_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> str | None:
        raise RuntimeError("unforeseen")

    async with client(Health({"store": check})) as http:
        assert (await http.get("/readyz")).json()["checks"] == {"store": "failed"}
    assert "RuntimeError: unforeseen" in caplog.text


async def test_the_log_gets_only_what_is_new(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tusd_py")
    problem: list[str | None] = ["disk full"]

    async def check() -> str | None:
        return problem[0]

    async with client(Health({"store": check})) as http:
        for _ in range(3):
            assert (await http.get("/readyz")).status_code == 503
        problem[0] = None
        for _ in range(3):
            assert (await http.get("/readyz")).status_code == 200
    assert [
        (record.levelname, record.getMessage().partition(":")[0])
        for record in caplog.records
        if record.name == "tusd_py.web.health"
    ] == [("ERROR", "not ready"), ("INFO", "ready again")]


async def test_a_check_that_hangs_fails_in_time_and_is_not_started_twice() -> None:
    started, proceed = 0, asyncio.Event()

    async def check() -> str | None:
        nonlocal started
        started += 1
        await proceed.wait()
        return None

    health = Health({"store": check}, timeout=0.05)
    async with client(health) as http:
        responses = await asyncio.gather(*(http.get("/readyz") for _ in range(5)))
        responses.append(await http.get("/readyz"))
        assert [response.status_code for response in responses] == [503] * 6
        assert started == 1
        health._timeout = 60.0
        proceed.set()
        assert (await http.get("/readyz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        assert started >= 2


async def test_checks_run_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def check() -> str | None:
        await both.wait()
        return None

    async with client(Health({"store": check, "state": check})) as http:
        assert (await http.get("/readyz")).status_code == 200


async def test_a_probe_that_is_cancelled_leaves_the_check_to_the_others() -> None:
    proceed = asyncio.Event()

    async def check() -> str | None:
        await proceed.wait()
        return None

    async with client(Health({"store": check})) as http:
        first, second = (asyncio.create_task(http.get("/readyz")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        proceed.set()
        assert (await second).status_code == 200
