"""Our duplicate check, token check and expiry with the router of the installed tuspyserver."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import jwt
import pytest
from fastapi import APIRouter, FastAPI, Request
from tuspyserver import create_tus_router

from tests.compat import http
from tests.compat.apps import THEIRS, AppProcess, path_in
from tests.compat.directories import (
    METADATA,
    THEIR_APP,
    begin,
    in_days,
    snapshot,
    write_as_tuspyserver,
)
from tests.conftest import MakeServer
from tests.support.waiting import wait_until
from tusd_hooks import duplicates as native
from tusd_hooks.tuspyserver import DuplicateCheck, Problem, TokenCheck, expire

RESUMABLE = {"Tus-Resumable": "1.0.0"}
BYTES = {**RESUMABLE, "Content-Type": "application/offset+octet-stream"}
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUSD_DUPLICATES", "TUSD_AUTH", "TUSD_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    # A client does not count as gone where a busy machine holds up the test.
    monkeypatch.setenv("TUSD_DUPLICATES_PENDING_GRACE", "10m")


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client


async def post(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    fields = {
        **RESUMABLE,
        "Upload-Length": "5",
        "Upload-Metadata": http.encoded(METADATA),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return await client.post("/files/", headers=fields)


async def patch(client: httpx.AsyncClient, url: str, offset: int, content: bytes) -> None:
    headers = {**BYTES, "Upload-Offset": str(offset)}
    assert (await client.patch(url, headers=headers, content=content)).status_code == 204


# Duplicates

APP = f"""
from fastapi import FastAPI
{THEIRS}
from tusd_hooks.tuspyserver import DuplicateCheck

# On a busy machine the last of two hundred comes later than the grace within which an unfinished upload refuses duplicates.
duplicates = DuplicateCheck("uploads", settings={{"duplicates_pending_grace": "10m"}})
app = FastAPI()
app.include_router(create_tus_router(files_dir="uploads", %s))
"""
INJECTED = (
    "pre_create_dep=duplicates.pre_create_dep, upload_complete_dep=duplicates.upload_complete_dep, "
    "file_dep=duplicates.file_dep"
)
PLAIN = (
    "pre_create_hook=duplicates.pre_create_hook, on_upload_complete=duplicates.on_upload_complete"
)


@pytest.mark.parametrize("way", [INJECTED, PLAIN], ids=["injected", "plain"])
async def test_of_two_hundred_creations_of_one_study_one_succeeds(way: str, tmp_path: Path) -> None:
    with AppProcess(tmp_path / "app", APP % way, "theirs") as app:
        async with httpx.AsyncClient(timeout=120, base_url=app.url) as client:
            answers = await asyncio.gather(*(post(client) for _ in range(200)))
            statuses = Counter(answer.status_code for answer in answers)
            assert statuses == {201: 1, 409: 199}
            (created,) = (answer for answer in answers if answer.status_code == 201)
            await patch(client, created.headers["location"], 0, b"hello")
            late = await post(client)
            assert (late.status_code, document_of(late)["state"]) == (409, "complete")
    names = [path.name for path in (tmp_path / "app" / "uploads").glob("*.info")]
    assert len(names) == 1


def router_of(**parameters: object) -> APIRouter:
    """Theirs; its annotations know of no dependency that takes anything, and of no async hook."""
    router: APIRouter = create_tus_router(**parameters)  # type: ignore[arg-type]
    return router


def document_of(answer: httpx.Response) -> dict[str, object]:
    """Problem details: as they are, or where FastAPI puts what a hook raises that knows no request."""
    document: dict[str, object] = answer.json()
    detail = document.get("detail")
    return detail if isinstance(detail, dict) else document


async def test_the_refusal_is_the_one_that_our_server_sends(
    tmp_path: Path, make_server: MakeServer
) -> None:
    server = make_server(env={"TUSD_DUPLICATES": "on", "TUSD_DUPLICATES_PENDING_GRACE": "10m"})
    headers = {"Upload-Metadata": http.encoded(METADATA), "Upload-Length": "5", **RESUMABLE}
    async with httpx.AsyncClient(timeout=60) as client:
        assert (await client.post(server.url, headers=headers)).status_code == 201
        ours = await client.post(server.url, headers=headers)
    check = DuplicateCheck(tmp_path / "theirs")
    async with client_of(application(check)) as client:
        assert (await post(client)).status_code == 201
        theirs = await post(client)
    assert theirs.status_code == ours.status_code == 409
    assert theirs.headers["content-type"] == ours.headers["content-type"]
    assert theirs.headers["content-type"] == "application/problem+json"
    assert theirs.json() == ours.json()
    await check.stop()


def application(check: DuplicateCheck) -> FastAPI:
    async def somebody(request: Request) -> None:
        request.state.upload_owner = request.headers.get("x-user", "")

    app = FastAPI()
    app.include_router(
        router_of(
            files_dir=check._directory,
            auth=somebody,
            pre_create_dep=check.pre_create_dep,
            upload_complete_dep=check.upload_complete_dep,
            file_dep=check.file_dep,
        )
    )
    return app


async def test_whoever_began_an_upload_is_told_where_to_go_on(tmp_path: Path) -> None:
    check = DuplicateCheck(tmp_path)
    async with client_of(application(check)) as client:
        created = await post(client, x_user="ann")
        url = created.headers["location"]
        await patch(client, url, 0, b"he")
        again = await post(client, x_user="ann")
        assert (again.status_code, again.headers["location"]) == (409, url)
        assert (again.headers["upload-offset"], again.json()["state"]) == ("2", "pending")
        # To others it is another upload; whoever insists gets one more.
        assert (await post(client, x_user="bob")).status_code == 201
        assert (await post(client, x_user="ann", upload_force="true")).status_code == 201
        assert (await post(client, x_user="ann", upload_force="perhaps")).status_code == 400
        forced = METADATA | {"force_upload": "true"}
        headers = {**RESUMABLE, "Upload-Length": "5", "Upload-Metadata": http.encoded(forced)}
        assert (await client.post("/files/", headers=headers)).status_code == 201
    await check.stop()


@pytest.mark.parametrize("complete", [False, True])
async def test_who_removes_an_upload_may_send_it_again(complete: bool, tmp_path: Path) -> None:
    check = DuplicateCheck(tmp_path)
    async with client_of(application(check)) as client:
        url = (await post(client)).headers["location"]
        await patch(client, url, 0, b"hello" if complete else b"he")
        assert (await post(client)).status_code == 409
        refused = await client.delete(f"{url}x", headers=RESUMABLE)
        assert refused.status_code == 404
        assert (await post(client)).status_code == 409
        assert (await client.delete(url, headers=RESUMABLE)).status_code == 204
        assert (await post(client)).status_code == 201
    await check.stop()


@pytest.mark.parametrize("knows_ids", [True, False])
async def test_what_has_expired_may_be_sent_again(
    knows_ids: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = DuplicateCheck(tmp_path)
    plain = FastAPI()
    plain.include_router(
        router_of(
            files_dir=str(tmp_path),
            pre_create_hook=check.pre_create_hook,
            on_upload_complete=check.on_upload_complete,
        )
    )
    # A creation is under way no longer than that.
    monkeypatch.setattr(native, "_CREATION_GRACE", 0.0)
    async with client_of(application(check) if knows_ids else plain) as client:
        url = (await post(client)).headers["location"]
        await patch(client, url, 0, b"he")
        assert (await post(client)).status_code == 409
        assert expire(tmp_path, clock=lambda: time.time() + 6 * 86_400).removed
        assert (await post(client)).status_code == 201
    await check.stop()


async def test_the_hook_of_the_application_is_called_behind_ours(tmp_path: Path) -> None:
    told: list[tuple[str, dict[str, str]]] = []

    async def mine(path: str, metadata: dict[str, str]) -> None:
        told.append((path, metadata))
        Path(path).unlink()

    check = DuplicateCheck(tmp_path, on_upload_complete=mine)
    async with client_of(application(check)) as client:
        url = (await post(client)).headers["location"]
        await patch(client, url, 0, b"hello")
        assert told == [(str(path_in(tmp_path, url)), METADATA)]
        # What was taken away was here all the same.
        late = await post(client)
        assert (late.status_code, late.json()["state"]) == (409, "complete")
    await check.stop()


async def test_parts_are_not_compared(tmp_path: Path) -> None:
    check = DuplicateCheck(tmp_path)
    async with client_of(application(check)) as client:
        for _ in range(2):
            assert (await post(client, upload_concat="partial")).status_code == 201
    await check.stop()


async def test_operators_choose_what_counts(tmp_path: Path) -> None:
    check = DuplicateCheck(tmp_path, settings={"duplicate_keys": "filetype"})
    async with client_of(application(check)) as client:
        assert (await post(client)).status_code == 201
        other = http.encoded({**METADATA, "filename": "another"})
        assert (await post(client, upload_metadata=other)).status_code == 409
    await check.stop()
    with pytest.raises(ValueError, match='duplicate_window "soon": give seconds'):
        DuplicateCheck(tmp_path, settings={"duplicate_window": "soon"})


def test_the_end_of_the_loop_ends_the_check(tmp_path: Path) -> None:
    """Nobody calls `stop`; what was begun would keep its Valkey running."""
    check = DuplicateCheck(tmp_path)

    async def use(status: int) -> None:
        async with client_of(application(check)) as client:
            assert (await post(client)).status_code == status

    asyncio.run(use(201))
    asyncio.run(use(409))
    sockets = list((tmp_path / ".tusd-py").rglob("*.sock"))
    assert not sockets


def test_a_refusal_says_what_it_is(tmp_path: Path) -> None:
    async def refused() -> Problem:
        check = DuplicateCheck(tmp_path)
        info: dict[str, object] = {"size": 5, "defer_length": False, "expires": ""}
        await check.pre_create_hook(dict(METADATA), info)
        with pytest.raises(Problem) as problem:
            await check.pre_create_hook(dict(METADATA), info)
        await check.stop()
        return problem.value

    problem = asyncio.run(refused())
    assert problem.status_code == 409
    assert json.loads(problem.body) == problem.detail


# Tokens


def token(**claims: object) -> dict[str, str]:
    body = {"sub": "ann", "iat": time.time(), "exp": time.time() + 600, **claims}
    return {"Authorization": f"Bearer {jwt.encode(body, SECRET, algorithm='HS256')}"}


async def test_tokens_are_asked_for(tmp_path: Path) -> None:
    check = TokenCheck({"jwt_secret": SECRET})
    owners: list[str] = []

    def before(request: Request) -> object:
        owners.append(request.state.upload_owner)
        return lambda *_: None

    app = FastAPI()
    app.include_router(router_of(files_dir=str(tmp_path), auth=check.auth, pre_create_dep=before))
    async with client_of(app) as client:
        assert (await client.options("/files/")).status_code == 204
        anonymous = await post(client)
        assert anonymous.status_code == 401
        assert anonymous.headers["www-authenticate"] == 'Bearer realm="uploads"'
        for bad in (token(exp=time.time() - 600), {"Authorization": "Bearer x.y.z"}):
            assert (await post(client, **bad)).status_code == 401
        scope = "uploads:create"
        reader = await post(client, **token(scope="uploads:read"))
        assert reader.status_code == 403
        assert 'scope="uploads:create"' in reader.headers["www-authenticate"]
        created = await post(client, **token(scope=scope))
        assert (created.status_code, owners) == (201, ["ann"])
        url = created.headers["location"]
        for scopes, status in ((scope, 200), ("uploads:read", 200), ("uploads:delete", 403)):
            head = await client.head(url, headers={**RESUMABLE, **token(scope=scopes)})
            assert head.status_code == status, scopes
        for scopes, status in ((scope, 403), ("uploads:admin", 204)):
            headers = {**RESUMABLE, **token(scope=scopes), "X-HTTP-Method-Override": "DELETE"}
            assert (await client.post(url, headers=headers)).status_code == status, scopes
    with pytest.raises(ValueError, match="--auth jwt needs one of"):
        TokenCheck({})
    with pytest.raises(ValueError, match="nobody is asked"):
        TokenCheck({"auth": "none"})


# Expiry

LATER = 6 * 86_400.0


def later() -> float:
    return time.time() + LATER


def test_what_the_router_left_expires(tmp_path: Path) -> None:
    directory = tmp_path / "app" / "uploads"
    with AppProcess(tmp_path / "app", THEIR_APP, "theirs") as app:
        collection = f"{app.url}/files/"
        finished, begun = begin(collection, 5), begin(collection, 5)
        part = begin(collection, 4, {"Upload-Concat": "partial"})
        assert http.patch(finished, 0, b"hello").status_code == 204
        assert http.patch(part, 0, b"part").status_code == 204
        assert expire(directory).removed == []
        before = snapshot(directory)
        report = expire(directory, dry_run=True, clock=later)
        due = {str(path_in(directory, url)) for url in (begun, part)}
        assert (report.seen, set(report.removed)) == (3, due)
        assert snapshot(directory) == before

        going_on = threading.Event()

        def body() -> Iterator[bytes]:
            yield b"he"
            going_on.wait(60)
            yield b"l"

        with ThreadPoolExecutor() as clients:
            headers = {**BYTES, "Upload-Offset": "0", "Content-Length": "3"}
            sent = clients.submit(httpx.patch, begun, headers=headers, content=body(), timeout=60)
            wait_until(lambda: path_in(directory, begun).stat().st_size == 2, "bytes", 60)
            # The router holds the lock of what it is writing to.
            report = expire(directory, clock=later)
            assert (report.in_use, len(report.removed)) == (1, 1)
            assert path_in(directory, begun).exists()
            going_on.set()
            assert sent.result().status_code == 204
        assert set(expire(directory, clock=later).removed) == {str(path_in(directory, begun))}
        assert http.head(begun).status_code == 404
        assert http.patch(begun, 2, b"llo").status_code == 404
        assert http.head(finished).status_code == 200
        assert {path.name for path in directory.iterdir()} == {
            ".locks",
            path_in(directory, finished).name,
            f"{path_in(directory, finished).name}.info",
        }
        assert len(expire(directory, finished=True, clock=later).removed) == 1
        assert {path.name for path in directory.iterdir()} == {".locks"}


def test_most_of_what_there_is_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "user"
    for number in range(25):
        write_as_tuspyserver(directory, f"{number:032x}", b"he", size=5, expires=in_days(1))
    report = expire(tmp_path, clock=later)
    assert (report.removed, report.held) == ([], 25)
    assert "25 of 25" in report.held_because
    assert "sweep held" in [record.msg for record in caplog.records]
    assert len(list(directory.glob("*.info"))) == 25
    assert len(expire(tmp_path, clock=later, dry_run=True).removed) == 25
    # It goes on by itself a day later, or at once if the operator says so.
    assert len(expire(tmp_path, clock=lambda: later() + 90_000.0).removed) == 25
    for number in range(25):
        write_as_tuspyserver(directory, f"{number:032x}", b"he", size=5, expires=in_days(1))
    assert len(expire(tmp_path, clock=later, force=True).removed) == 25


@pytest.mark.parametrize("days", [400, -400])
def test_a_clock_that_is_far_from_the_last_sweeps_removes_nothing(
    tmp_path: Path, days: int
) -> None:
    old = {"size": 5, "created_at": "2020-01-01 00:00:00.000", "expires": in_days(-500)}
    write_as_tuspyserver(tmp_path, "a" * 32, b"he", **old)
    write_as_tuspyserver(tmp_path, "b" * 32, b"he", size=5, expires=in_days(5))
    assert len(expire(tmp_path).removed) == 1
    write_as_tuspyserver(tmp_path, "a" * 32, b"he", **old)
    report = expire(tmp_path, clock=lambda: time.time() + days * 86_400.0)
    assert (report.removed, report.held) == ([], 2 if days > 0 else 1)
    assert len(expire(tmp_path).removed) == 1
    assert (tmp_path / ("b" * 32)).exists()


def test_what_is_not_understood_is_passed_over(tmp_path: Path) -> None:
    directory = tmp_path / "user"
    write_as_tuspyserver(directory, "a" * 32, b"he", size=5, expires=in_days(-1))
    write_as_tuspyserver(directory, "b" * 32, b"he", size=5, expires="some day")
    write_as_tuspyserver(directory, "c" * 32, b"he", size=5, expires=None)
    # Killed between the bytes and the record.
    write_as_tuspyserver(directory, "d" * 32, b"he", size=5, expires=in_days(-1))
    (directory / ("d" * 32)).unlink()
    (directory / f"{'e' * 32}.info").write_text("{")
    report = expire(tmp_path)
    assert sorted(Path(path).name[0] for path in report.removed) == ["a", "d"]
    assert (report.seen, report.not_understood) == (5, 2)
    assert not list(directory.glob("a*"))
    assert not list(directory.glob("d*"))


def test_workers_expire_it(tmp_path: Path, make_server: MakeServer) -> None:
    """Beside the embedded Redis of a server, which runs a worker and a scheduler."""
    directory = tmp_path / "theirs"
    write_as_tuspyserver(directory, "a" * 32, b"he", size=5, expires=in_days(-1))
    write_as_tuspyserver(directory, "b" * 32, b"he", size=5, expires=in_days(1))
    make_server(
        "--tuspyserver-dirs",
        str(directory),
        "--sweep-interval",
        "1s",
        env={"TUSD_DUPLICATES": "on", "TUSD_JOBS": "on"},
    )
    wait_until(lambda: not (directory / ("a" * 32)).exists(), "the job", 90)
    assert (directory / ("b" * 32)).exists()
