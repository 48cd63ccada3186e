"""Our router beyond tuspyserver's: its start and end, refusals, and crashes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request, Response
from tuspyserver.storage import TusStorage
from tuspyserver.storage.local import LocalFileStorage

from tests.clients.conftest import MakeSource
from tests.clients.content import sha256_of_file
from tests.compat import http
from tests.compat.apps import AppProcess, path_in
from tests.compat.directories import THEIR_APP, begin, sending
from tests.compat.test_router import METADATA, RECORDING
from tests.support.server import WITHOUT_DIRECT_BODIES, environment
from tests.support.waiting import wait_until
from tusd_py.compat.engines import open_engines
from tusd_py.compat.tuspyserver import TusRouter, create_tus_router
from tusd_py.storage.base import Upload
from tusd_py.storage.file.store import FileStore

RESUMABLE = {"Tus-Resumable": "1.0.0"}
BYTES = {**RESUMABLE, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUSD_DUPLICATES", raising=False)


def application(*routers: TusRouter) -> FastAPI:
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    return app


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def created(client: httpx.AsyncClient, length: int, path: str = "/files/") -> str:
    answer = await client.post(path, headers={**RESUMABLE, "Upload-Length": str(length)})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


async def sent(
    client: httpx.AsyncClient,
    url: str,
    content: bytes,
    offset: int = 0,
    fields: Mapping[str, str] | None = None,
) -> httpx.Response:
    headers = {**BYTES, "Upload-Offset": str(offset), **(fields or {})}
    return await client.patch(url, headers=headers, content=content)


# Beginning and ending


def store_threads() -> set[threading.Thread]:
    """The threads of all stores of this process, including those of earlier tests that are not garbage-collected yet."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("tusd-store")}


def test_the_end_of_the_loop_ends_what_requests_began(tmp_path: Path) -> None:
    """Nobody runs a lifespan here. The second run would not get a directory that the first still holds."""
    before = store_threads()
    app = application(create_tus_router(files_dir=tmp_path / "uploads"))

    async def use() -> None:
        async with client_of(app) as client:
            url = await created(client, 5)
            assert (await sent(client, url, b"hello")).status_code == 204

    asyncio.run(use())
    asyncio.run(use())
    assert not store_threads() - before


def test_each_request_may_have_a_loop_of_its_own(tmp_path: Path) -> None:
    """This happens with test clients that are not used as context managers."""
    app = application(create_tus_router(files_dir=tmp_path / "uploads"))

    async def create() -> str:
        async with client_of(app) as client:
            return await created(client, 2)

    async def send(url: str, offset: int, content: bytes) -> None:
        async with client_of(app) as client:
            assert (await sent(client, url, content, offset)).status_code == 204

    url = asyncio.run(create())
    for offset, content in enumerate((b"h", b"i")):
        asyncio.run(send(url, offset, content))
    assert path_in(tmp_path / "uploads", url).read_bytes() == b"hi"


async def test_the_lifespan_of_the_application_ends_it(tmp_path: Path) -> None:
    before = store_threads()
    for _ in range(2):
        app = application(create_tus_router(files_dir=tmp_path / "uploads"))
        async with app.router.lifespan_context(app), client_of(app) as client:
            await created(client, 2)
        assert not store_threads() - before


def with_directory_of_each_user(root: Path) -> FastAPI:
    """An application that stores uploads in a directory below `root` named by the field X-User."""

    def place(request: Request) -> Callable[[dict[str, str]], dict[str, str]]:
        user = request.headers["x-user"]
        return lambda _metadata: {"files_dir": str(root / user)}

    return application(create_tus_router(files_dir=root, file_dep=place))


async def test_directories_that_nobody_uses_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tusd_py.compat.engines.MOST_READY", 2)
    app = with_directory_of_each_user(tmp_path)
    async with client_of(app) as client:
        urls = {}
        for user in "abcd":
            headers = {**RESUMABLE, "Upload-Length": "2", "X-User": user}
            urls[user] = (await client.post("/files/", headers=headers)).headers["location"]
        for user, url in urls.items():
            assert (await sent(client, url, b"hi", fields={"X-User": user})).status_code == 204
            assert path_in(tmp_path / user, url).read_bytes() == b"hi"
        stranger = await client.head(urls["a"], headers={**RESUMABLE, "X-User": "b"})
        assert stranger.status_code == 404
        # Nor are they for whoever sweeps the directory above.
        assert [upload_id async for upload_id in FileStore(tmp_path).ids()] == []
    await open_engines.stop()


async def test_requests_that_end_at_once_let_directories_go_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store_threads()
    monkeypatch.setattr("tusd_py.compat.engines.MOST_READY", 2)
    app = with_directory_of_each_user(tmp_path)
    async with client_of(app) as client:

        async def store(user: str) -> None:
            headers = {**RESUMABLE, "Upload-Length": "2", "X-User": user}
            answer = await client.post("/files/", headers=headers)
            assert answer.status_code == 201, answer.text
            url = answer.headers["location"]
            assert (await sent(client, url, b"hi", fields={"X-User": user})).status_code == 204
            assert path_in(tmp_path / user, url).read_bytes() == b"hi"

        for _ in range(5):
            await asyncio.gather(*(store(user) for user in "abcdefgh"))
    await open_engines.stop()
    assert not store_threads() - before


async def test_routers_that_share_a_directory_have_limits_of_their_own(tmp_path: Path) -> None:
    routers = [
        create_tus_router("small", tmp_path, max_size=10),
        create_tus_router("large", tmp_path, max_size=20),
    ]
    async with client_of(application(*routers)) as client:
        for prefix, most in (("small", 10), ("large", 20)):
            options = await client.options(f"/{prefix}/")
            assert options.headers["tus-max-size"] == str(most)
            assert "concatenation-unfinished" not in options.headers["tus-extension"]
            too_long = {**RESUMABLE, "Upload-Length": str(most + 1)}
            assert (await client.post(f"/{prefix}/", headers=too_long)).status_code == 413
            deferred = {**RESUMABLE, "Upload-Defer-Length": "1"}
            url = (await client.post(f"/{prefix}/", headers=deferred)).headers["location"]
            declared = await sent(client, url, b"", fields={"Upload-Length": str(most + 1)})
            assert declared.status_code == 413
            assert (
                await sent(client, url, b"x", fields={"Upload-Length": str(most)})
            ).status_code == 204
    await open_engines.stop()


# Refusals


async def test_bytes_of_those_who_may_not_are_not_kept(tmp_path: Path) -> None:
    def allowed(request: Request, response: Response) -> None:
        if request.method == "PATCH" and "authorization" not in request.headers:
            raise HTTPException(401, "who are you?")
        response.headers["X-Allowed"] = "yes"

    app = application(create_tus_router(files_dir=tmp_path, auth=allowed))
    async with client_of(app) as client:
        url = await created(client, 5)
        refused = await sent(client, url, b"hello")
        assert (refused.status_code, refused.json()) == (401, {"detail": "who are you?"})
        # Whoever sends a body all the same need not be listened to.
        assert refused.headers["connection"] == "close"
        assert path_in(tmp_path, url).stat().st_size == 0
        let_in = await sent(client, url, b"hello", fields={"Authorization": "me"})
        assert (let_in.status_code, let_in.headers["x-allowed"]) == (204, "yes")
    await open_engines.stop()


async def test_routes_that_the_application_adds_are_its_own(tmp_path: Path) -> None:
    """As with tuspyserver, `auth` guards the routes of uploads alone."""

    def allowed() -> None:
        raise HTTPException(401)

    router = create_tus_router(files_dir=tmp_path, auth=allowed)

    @router.get("/public/status")
    async def status() -> str:
        return "fine"

    async with client_of(application(router)) as client:
        assert (await client.get("/files/public/status")).status_code == 200
        refused = await client.post("/files/", headers={**RESUMABLE, "Upload-Length": "5"})
        assert refused.status_code == 401
    await open_engines.stop()


async def test_hooks_hear_of_no_request_that_is_wrong_in_itself(tmp_path: Path) -> None:
    heard: list[object] = []
    router = create_tus_router(
        files_dir=tmp_path, max_size=10, pre_create_hook=lambda *all_: heard.append(all_)
    )
    async with client_of(application(router)) as client:
        for headers, status in (
            ({"Upload-Length": "5"}, 412),
            ({**RESUMABLE, "Upload-Length": "x"}, 400),
            ({**RESUMABLE, "Upload-Length": "11"}, 413),
            ({**RESUMABLE, "Upload-Length": "5", "Upload-Metadata": "a ???"}, 400),
            ({**RESUMABLE, "Upload-Length": "5", "Upload-Defer-Length": "2"}, 400),
        ):
            answer = await client.post("/files/", headers=headers)
            assert answer.status_code == status, headers
            assert answer.headers["tus-resumable"] == "1.0.0"
    assert heard == []
    await open_engines.stop()


async def test_a_final_of_unfinished_parts_is_refused(tmp_path: Path) -> None:
    router = create_tus_router(files_dir=tmp_path)
    async with client_of(application(router)) as client:
        headers = {**RESUMABLE, "Upload-Length": "5", "Upload-Concat": "partial"}
        part = (await client.post("/files/", headers=headers)).headers["location"]
        final = {**RESUMABLE, "Upload-Concat": f"final;{part}"}
        assert (await client.post("/files/", headers=final)).status_code == 400
        assert (await sent(client, part, b"hello")).status_code == 204
        assert (await client.post("/files/", headers=final)).status_code == 201
    await open_engines.stop()


async def test_a_part_that_is_listed_thousands_of_times_is_looked_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = FileStore.load

    async def counted(store: FileStore, upload_id: str) -> Upload:
        loaded.append(upload_id)
        return await load(store, upload_id)

    router = create_tus_router(files_dir=tmp_path)
    async with client_of(application(router)) as client:
        headers = {**RESUMABLE, "Upload-Length": "5", "Upload-Concat": "partial"}
        part = (await client.post("/files/", headers=headers)).headers["location"]
        await sent(client, part, b"hello")
        monkeypatch.setattr(FileStore, "load", counted)
        final = {**RESUMABLE, "Upload-Concat": "final;" + " ".join([part] * 5_000)}
        answer = await client.post("/files/", headers=final)
    assert answer.status_code == 201
    assert loaded.count(part.rpartition("/")[2]) < 20
    await open_engines.stop()


@pytest.mark.parametrize("uid", ["../x", "a/b", "", ".hidden", "x.info"])
async def test_ids_that_cannot_be_are_refused(uid: str, tmp_path: Path) -> None:
    router = create_tus_router(
        files_dir=tmp_path / "uploads", file_dep=lambda: lambda _metadata: {"uid": uid}
    )
    async with client_of(application(router)) as client:
        answer = await client.post("/files/", headers={**RESUMABLE, "Upload-Length": "1"})
        assert (answer.status_code, answer.json()) == (400, {"detail": "Invalid upload ID"})
    assert [entry.name for entry in tmp_path.iterdir()] in ([], ["uploads"])


class Elsewhere(TusStorage):
    """A storage of somebody's own that is no directory."""

    create = exists = size = append = flush = finalize = read = delete = None  # type: ignore[assignment]
    read_info = write_info = list_uids = location = lock = None  # type: ignore[assignment]


async def test_of_a_storage_its_directory_is_taken(tmp_path: Path) -> None:
    storage = LocalFileStorage(str(tmp_path / "theirs"))
    app = application(create_tus_router(storage=storage))
    async with app.router.lifespan_context(app), client_of(app) as client:
        assert path_in(tmp_path / "theirs", await created(client, 1)).exists()
    with pytest.raises(TypeError, match="storage=Elsewhere is not taken: this router keeps"):
        create_tus_router(storage=Elsewhere())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"max_size": 0}, "more than 0"),
        ({"days_to_keep": 0}, "more than 0"),
        ({"settings": {"durability": "perhaps"}}, 'durability "perhaps": give none'),
        ({"settings": {"durabilty": "none"}}, "did you mean durability"),
    ],
)
def test_what_cannot_be_is_said_at_once(given: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        create_tus_router(**given)  # type: ignore[arg-type]


async def test_a_plain_hook_holds_nobody_up(tmp_path: Path) -> None:
    asked, let_go = threading.Event(), threading.Event()

    def before(_metadata: dict[str, str], _info: dict[str, object]) -> None:
        asked.set()
        assert let_go.wait(60)

    router = create_tus_router(files_dir=tmp_path, pre_create_hook=before)
    async with client_of(application(router)) as client:
        creation = asyncio.create_task(created(client, 5))
        assert await asyncio.to_thread(asked.wait, 60)
        assert (await client.options("/files/")).status_code == 204
        assert not creation.done()
        let_go.set()
        await creation
    await open_engines.stop()


def test_a_stale_connection_does_not_hold_up_its_own_client(tmp_path: Path) -> None:
    with AppProcess(tmp_path / "app", THEIR_APP) as app:
        url = begin(f"{app.url}/files/", 1_000)
        file = path_in(app.directory / "uploads", url)
        with sending(url, 0, 1_000, bytes(300)):
            wait_until(lambda: file.stat().st_size == 300, "the first bytes", 60)
            assert http.head(url).headers["upload-offset"] == "300"
            assert http.patch(url, 300, bytes(700)).status_code == 204
        assert file.stat().st_size == 1_000


async def test_what_our_server_can_do_besides_is_a_setting(tmp_path: Path) -> None:
    heard: list[str] = []
    router = create_tus_router(
        files_dir=tmp_path,
        pre_create_hook=lambda metadata, _info: heard.append(metadata["filename"]),
        settings={"duplicates": "on", "duplicates_pending_grace": "10m", "redis_timeout": "10s"},
    )
    async with client_of(application(router)) as client:
        headers = {**RESUMABLE, "Upload-Length": "5", "Upload-Metadata": "filename YQ=="}
        assert (await client.post("/files/", headers=headers)).status_code == 201
        again = await client.post("/files/", headers=headers)
        assert (again.status_code, again.json()["state"]) == (409, "pending")
        forced = await client.post("/files/", headers={**headers, "Upload-Force": "true"})
        assert forced.status_code == 201
    assert heard == ["a", "a", "a"]
    await open_engines.stop()


# After a crash


async def test_the_hook_is_called_for_what_a_crash_left_complete(tmp_path: Path) -> None:
    """The last byte was written and the server died: the client asks, and never sends anything again."""
    told: list[tuple[str, dict[str, str]]] = []
    here = threading.Event()

    def complete(path: str, metadata: dict[str, str]) -> None:
        told.append((path, metadata))
        here.set()

    router = create_tus_router(files_dir=tmp_path, on_upload_complete=complete)
    async with client_of(application(router)) as client:
        headers = {**RESUMABLE, "Upload-Length": "5", "Upload-Metadata": "filename YQ=="}
        url = (await client.post("/files/", headers=headers)).headers["location"]
        file = path_in(tmp_path, url)
        file.write_bytes(b"hello")
        head = await client.head(url, headers=RESUMABLE)
        assert head.headers["upload-offset"] == "5"
        assert await asyncio.to_thread(here.wait, 60)
        await client.head(url, headers=RESUMABLE)
    await open_engines.stop()
    assert told == [(str(file), {"filename": "a"})]


async def test_the_hook_is_called_for_what_came_with_the_creation(tmp_path: Path) -> None:
    told: list[str] = []
    router = create_tus_router(
        files_dir=tmp_path, on_upload_complete=lambda path, _metadata: told.append(path)
    )
    async with client_of(application(router)) as client:
        headers = {**BYTES, "Upload-Length": "5"}
        answer = await client.post("/files/", headers=headers, content=b"hello")
        assert answer.status_code == 201
        file = path_in(tmp_path, answer.headers["location"])
        assert told == [str(file)]
        # A hook may take the file away.
        file.unlink()
    await open_engines.stop()
    assert told == [str(file)]


def test_a_killed_application_goes_on_where_it_stood(
    tmp_path: Path, make_source: MakeSource
) -> None:
    source = make_source(20_000_000)
    content = source.path.read_bytes()
    code = RECORDING + (
        "app.include_router(create_tus_router(files_dir='uploads',"
        " on_upload_complete=lambda path, metadata: tell('complete', path)))\n"
    )
    with AppProcess(tmp_path / "app", code) as app:
        url = http.create(f"{app.url}/files/", len(content), METADATA).headers["location"]
        file = path_in(app.directory / "uploads", url)
        going_on = threading.Event()

        def body() -> object:
            yield content[:7_000_000]
            going_on.wait(60)
            raise httpx.WriteError("the server is gone")

        def send() -> None:
            headers = {**BYTES, "Upload-Offset": "0", "Content-Length": str(len(content))}
            with pytest.raises(httpx.HTTPError):
                httpx.patch(url, headers=headers, content=body(), timeout=60)  # type: ignore[arg-type]

        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: file.stat().st_size == 7_000_000, "the first bytes", 60)
        app.kill9()
        going_on.set()
        sender.join()
        app.start()
        offset = int(http.head(url).headers["upload-offset"])
        assert offset == 7_000_000
        assert http.patch(url, offset, content[offset:]).status_code == 204
        app.wait_for("^complete")
    assert sha256_of_file(file) == source.sha256


def test_several_processes_serve_one_application(tmp_path: Path, make_source: MakeSource) -> None:
    """As `uvicorn --workers` starts them: each request may reach another one."""
    source = make_source(2_000_000)
    content = source.path.read_bytes()
    code = RECORDING + (
        "import os\n"
        "app.include_router(create_tus_router(files_dir='uploads',"
        " pre_create_hook=lambda *_: tell('created', os.getpid())))\n"
    )
    with AppProcess(tmp_path / "app", code, "ours", "--workers", "3") as app:
        for _ in range(12):
            url = http.create(f"{app.url}/files/", len(content), METADATA).headers["location"]
            for offset in range(0, len(content), 500_000):
                piece = content[offset : offset + 500_000]
                assert http.patch(url, offset, piece).status_code == 204
            assert sha256_of_file(path_in(app.directory / "uploads", url)) == source.sha256

        def have_several_answered() -> bool:
            # Who is asked is up to the system, which asks only those that have started.
            http.create(f"{app.url}/files/", 1, METADATA)
            return len(set(app.told("created"))) > 1

        wait_until(have_several_answered, "another process to answer", 60)
        [said] = [line for line in app.lines if "this process sweeps" in line]
        assert "its own Redis" in said


@pytest.mark.parametrize("module", ["tusd_py.compat.tuspyserver", "tusd_hooks.tuspyserver"])
def test_without_fastapi_it_is_said_what_is_missing(module: str) -> None:
    code = f"import sys; sys.modules['fastapi'] = None; import {module}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert "FastAPI: pip install 'tusd-py[" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(WITHOUT_DIRECT_BODIES, reason="this run takes the other way")
def test_large_bodies_go_straight_into_their_files(tmp_path: Path, make_source: MakeSource) -> None:
    """With our protocol class they bypass everything between the socket and the engine."""
    source = make_source(30_000_000)
    code = RECORDING + (
        "from tusd_py.web.http.direct_body import Transfer\n"
        "begin = Transfer.begin\n"
        "def noted(self):\n"
        "    app.state.direct = True\n"
        "    return begin(self)\n"
        "Transfer.begin = noted\n"
        "app.include_router(create_tus_router(files_dir='uploads'))\n"
        "@app.get('/direct')\n"
        "def direct() -> bool:\n"
        "    return getattr(app.state, 'direct', False)\n"
    )
    flags = ("--http", "tusd_py:UploadProtocol")
    with AppProcess(tmp_path / "app", code, "ours", *flags) as app:
        url = http.create(f"{app.url}/files/", source.size, METADATA).headers["location"]
        assert http.patch(url, 0, source.path.read_bytes()).status_code == 204
        assert httpx.get(f"{app.url}/direct").json() is True
    assert sha256_of_file(path_in(tmp_path / "app" / "uploads", url)) == source.sha256
