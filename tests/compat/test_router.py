"""Our router behaves like tuspyserver's: the same applications, the same clients, the same hooks."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

from tests.clients.conftest import MakeSource, RunTusJs
from tests.clients.content import sha256_of_file
from tests.clients.tuspy import uploader_of
from tests.compat import http
from tests.compat.apps import ROUTERS, AppProcess, Router, path_in, readme_block
from tests.support.waiting import wait_until

# tuspy leaves the file it reads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

METADATA = {"filename": "Röntgen 肺.dcm", "filetype": "application/dicom"}

RECORDING = """
import json, sys
from typing import Callable
from fastapi import Depends, FastAPI, HTTPException, Request
from tuspyserver import create_tus_router

def tell(word, *values):
    # In one piece: others, in threads and in processes, tell something at the same time.
    print(f"{word} {json.dumps(values)}\\n", end="", flush=True)

app = FastAPI()

@app.get("/hello")
def hello() -> str:
    return "hello"
"""


@pytest.fixture(params=ROUTERS)
def router(request: pytest.FixtureRequest) -> Router:
    """Theirs, then ours."""
    chosen: Router = request.param
    return chosen


# Their README's examples


def test_the_example_of_a_basic_setup(
    router: Router, tmp_path: Path, make_source: MakeSource
) -> None:
    source = make_source(3_000_000)
    code = readme_block("def log_upload(file_path: str", "CORSMiddleware")
    with AppProcess(tmp_path / "app", code, router, env={"PYTHONUNBUFFERED": "1"}) as app:
        uploader = uploader_of(
            f"{app.url}/files/", source.path, chunk_size=1_000_000, metadata=METADATA
        )
        uploader.upload()
        assert uploader.get_offset() == source.size
        file = path_in(app.directory / "uploads", uploader.url)
        app.wait_for("Upload complete")
        for said in (str(file), str(METADATA)):
            app.wait_for(f"^{re.escape(said)}$")
        preflight = httpx.options(
            f"{app.url}/files/",
            headers={"Origin": "http://page", "Access-Control-Request-Method": "PATCH"},
        )
        assert preflight.status_code == 200
        answer = http.head(uploader.url, {"Origin": "http://page"})
        assert "Upload-Offset" in answer.headers["access-control-expose-headers"]
    assert sha256_of_file(file) == source.sha256


def test_the_example_of_a_hook_before_creation(router: Router, tmp_path: Path) -> None:
    code = (
        RECORDING
        + readme_block("def validate_upload(metadata: dict")
        + "\napp.include_router(tus_router)\n"
    )
    with AppProcess(tmp_path / "app", code, router) as app:
        collection = f"{app.url}/files/"
        refused = http.create(collection, 10, {"name": "x"})
        assert (refused.status_code, refused.json()) == (400, {"detail": "Filename is required"})
        assert http.create(collection, 100_000_001, {"filename": "x"}).status_code == 413
        wrong = http.create(collection, 10, {"filename": "x", "filetype": "text/html"})
        assert wrong.json() == {"detail": "File type not allowed"}
        assert not list(app.directory.glob("uploads/*"))
        right = http.create(collection, 10, {"filename": "x", "filetype": "image/png"})
        assert right.status_code == 201


DEPENDENCIES = """
import json
from fastapi import Header, HTTPException

class User:
    def __init__(self, name):
        self.id = name
        self.can_upload = name != "guest"
        self.upload_limit = 1 if name == "limited" else 100

class Database:
    async def log_upload(self, user, metadata):
        print("logged", json.dumps([user, metadata]), flush=True)
    async def log_upload_attempt(self, user, metadata, info):
        print("attempt", json.dumps([user, metadata, info["size"], info["defer_length"]]), flush=True)
    async def get_user_uploads(self, user):
        return ["one"]

async def get_db():
    print("opened", flush=True)
    yield Database()
    print("closed", flush=True)

def get_current_user(authorization: str = Header()):
    return User(authorization)
"""


def test_the_examples_of_dependencies(router: Router, tmp_path: Path) -> None:
    after = readme_block("def log_user_upload(").replace("create_api_router", "after_router")
    before = readme_block("def validate_user_upload(")
    code = (
        RECORDING
        + "async def process_file(path): tell('processed', path)\n"
        + "def after_router(upload_complete_dep):\n"
        + "    return create_tus_router('after', files_dir='uploads', upload_complete_dep=upload_complete_dep)\n"
        + after
        + before.replace(
            "create_tus_router(\n", "create_tus_router(\n        'before', 'uploads',\n"
        )
    )
    directory = tmp_path / "app"
    (directory / "your_app").mkdir(parents=True)
    (directory / "your_app" / "dependencies.py").write_text(DEPENDENCIES)
    with AppProcess(directory, code, router) as app:
        ann = {"Authorization": "ann"}
        created = http.create(f"{app.url}/after/", 4, METADATA, ann)
        url = created.headers["location"]
        assert http.patch(url, 0, b"ab", ann).status_code == 204
        assert app.told("logged") == []
        assert http.patch(url, 2, b"cd", ann).status_code == 204
        app.wait_for("^processed")
        assert [json.loads(line) for line in app.told("logged")] == [["ann", METADATA]]
        path = str(path_in(directory / "uploads", url))
        assert [json.loads(line) for line in app.told("processed")] == [[path]]
        # What a dependency has opened is open while the hook runs.
        last = next(at for at, line in enumerate(app.lines) if line.startswith("processed"))
        app.wait_for("^closed", last)

        before_url = f"{app.url}/before/"
        assert http.create(before_url, 4, METADATA, {"Authorization": "guest"}).status_code == 403
        assert http.create(before_url, 4, METADATA, {"Authorization": "limited"}).status_code == 429
        assert http.create(before_url, 4, METADATA, ann).status_code == 201
        app.wait_for("^attempt")
        assert [json.loads(line) for line in app.told("attempt")] == [["ann", METADATA, 4, False]]
        # FastAPI's own answer to a dependency that lacks something.
        assert http.create(before_url, 4, METADATA).status_code == 422


def test_the_example_of_a_schedule(tmp_path: Path) -> None:
    """Ours alone: what it calls is not in their release."""
    package = tmp_path / "app" / "apscheduler" / "schedulers"
    package.mkdir(parents=True)
    (package / "background.py").write_text(
        """
import threading

class BackgroundScheduler:
    def add_job(self, job, trigger, hour):
        self.job = job
    def start(self):
        thread = threading.Thread(target=self.job)
        thread.start()
        thread.join()
        print("cleaned", flush=True)
"""
    )
    example = readme_block("remove_expired_files", "apscheduler").replace(
        "days_to_keep = 23", "days_to_keep=0.00001, files_dir='uploads'"
    )
    setup, marker, schedule = example.partition("scheduler = ")
    assert marker
    code = (
        RECORDING
        + setup
        + "app.include_router(tus_router)\n"
        + '@app.get("/clean")\ndef clean():\n    scheduler = '
        + schedule.replace("\n", "\n    ")
        + "\n"
    )
    with AppProcess(tmp_path / "app", code) as app:
        url = http.create(f"{app.url}/files/", 5, {}).headers["location"]
        assert http.patch(url, 0, b"he").status_code in (204, 410)
        file = path_in(app.directory / "uploads", url)
        assert file.exists()
        deadline = 0.00001 * 86_400
        assert deadline < 1
        wait_until(lambda: http.head(url).status_code == 410, "the upload to expire")
        assert httpx.get(f"{app.url}/clean", timeout=60).status_code == 200
        assert not file.exists()


# Clients


def test_tus_js_client_pauses_and_resumes(
    router: Router, tmp_path: Path, make_source: MakeSource, run_tus_js: RunTusJs
) -> None:
    source = make_source(2_000_000)
    code = RECORDING + "app.include_router(create_tus_router(files_dir='uploads'))\n"
    with AppProcess(tmp_path / "app", code, router) as app:
        job = {
            "source": {"kind": "file", "path": str(source.path)},
            "options": {
                "endpoint": f"{app.url}/files/",
                "chunkSize": 500_000,
                "retryDelays": [0, 100, 500],
                "metadata": METADATA,
            },
            "urlStorage": str(tmp_path / "urls.json"),
        }
        first = run_tus_js({**job, "holdAt": 1_000_000})  # type: ignore[typeddict-item]
        first.wait_for("held")
        first.tell("abort")
        first.finish()
        second = run_tus_js({**job, "resume": True})  # type: ignore[typeddict-item]
        url = second.succeed()
        assert second.requests()[0] == ("HEAD", 200)
        assert sum(method == "PATCH" for method, _ in second.requests()) == 2
    assert sha256_of_file(path_in(tmp_path / "app" / "uploads", url)) == source.sha256


def test_tus_js_client_sends_parts_at_the_same_time(
    router: Router, tmp_path: Path, make_source: MakeSource, run_tus_js: RunTusJs
) -> None:
    source = make_source(1_000_000)
    code = RECORDING + (
        "app.include_router(create_tus_router(files_dir='uploads',"
        " on_upload_complete=lambda path, metadata: tell('complete', metadata)))\n"
    )
    with AppProcess(tmp_path / "app", code, router) as app:
        client = run_tus_js(
            {
                "source": {"kind": "file", "path": str(source.path)},
                "options": {
                    "endpoint": f"{app.url}/files/",
                    "parallelUploads": 2,
                    "metadata": METADATA,
                    "metadataForPartialUploads": {"part": "yes"},
                },
            }
        )
        url = client.succeed()
        wait_until(lambda: len(app.told("complete")) == 3, "the parts and the whole", 60)
        told = [json.loads(line)[0] for line in app.told("complete")]
        # They are uploads of their own: which of them is told of first is not said.
        assert sorted(told, key=str) == sorted(
            [{"part": "yes"}, {"part": "yes"}, METADATA], key=str
        )
    assert sha256_of_file(path_in(tmp_path / "app" / "uploads", url)) == source.sha256


# Hooks: the same arguments at the same moments

HOOKS = """
import asyncio

{kind}def before(metadata, info):
    tell("before", metadata, sorted(info), info["size"], info["defer_length"])
    if metadata.get("filename") == "refused":
        raise HTTPException(status_code=451, detail={{"why": "law"}}, headers={{"X-Why": "law"}})

{kind}def place(metadata):
    tell("place", metadata)
    return {{"files_dir": "uploads/kept", "uid": metadata["uid"]}} if "uid" in metadata else {{"files_dir": "uploads/kept"}}

{kind}def after(path, metadata):
    tell("after", path, metadata)
    if metadata.get("filename") == "infected":
        raise HTTPException(status_code=422, detail="infected")

async def allowed(request: Request):
    tell("allowed", request.method)
    if request.headers.get("x-banned"):
        raise HTTPException(status_code=401, detail="banned")

app.include_router(create_tus_router(
    prefix="/up/", files_dir="uploads/usual", auth=allowed, {way}, tags=["Mine"]
), prefix="/api")
"""
PLAIN = "on_upload_complete=after, pre_create_hook=before, file_dep=lambda: place"
INJECTED = (
    "upload_complete_dep=lambda: after, pre_create_dep=lambda: before, file_dep=lambda: place"
)


@pytest.mark.parametrize("kind", ["", "async "], ids=["sync", "async"])
@pytest.mark.parametrize("way", [PLAIN, INJECTED], ids=["plain", "injected"])
def test_hooks_are_called_with_the_same_at_the_same_moments(
    router: Router, kind: str, way: str, tmp_path: Path
) -> None:
    code = RECORDING + HOOKS.format(kind=kind, way=way)
    with AppProcess(tmp_path / "app", code, router) as app:
        kept = app.directory / "uploads" / "kept"
        created = http.create(f"{app.url}/api/up/", 5, {**METADATA, "uid": "study-1"})
        assert created.status_code == 201
        url = created.headers["location"]
        assert url == f"{app.url}/api/up/study-1"
        assert http.head(url).headers["upload-offset"] == "0"
        assert http.patch(url, 0, b"he").status_code == 204
        assert http.patch(url, 2, b"llo").status_code == 204
        assert (kept / "study-1").read_bytes() == b"hello"
        assert http.head(url).headers["upload-length"] == "5"

        everything = {**METADATA, "uid": "study-1"}
        # Theirs asks for the place of every upload twice, the first time before it asks who is there.
        steps = [line for line in app.steps("HEAD", 2) if line != "place [{}]"]
        assert steps == [
            'allowed ["POST"]',
            f"before {json.dumps([everything, ['defer_length', 'expires', 'size'], 5, False])}",
            f"place {json.dumps([everything])}",
            'allowed ["HEAD"]',
            'allowed ["PATCH"]',
            'allowed ["PATCH"]',
            f"after {json.dumps([str(kept / 'study-1'), everything])}",
            'allowed ["HEAD"]',
        ]
        # Nothing but its creation makes an empty one complete.
        empty = http.create(f"{app.url}/api/up/", 0, METADATA).headers["location"]
        app.wait_for(re.escape(f"after {json.dumps([str(path_in(kept, empty)), METADATA])}"))
        deferred = http.create(f"{app.url}/api/up/", None, METADATA, {"Upload-Defer-Length": "1"})
        assert deferred.status_code == 201
        expected = [METADATA, ["defer_length", "expires", "size"], None, True]
        app.wait_for(re.escape(f"before {json.dumps(expected)}"))
        refused = http.create(f"{app.url}/api/up", 5, {"filename": "refused"})
        assert (refused.status_code, refused.headers["x-why"]) == (451, "law")
        assert refused.json() == {"detail": {"why": "law"}}
        infected = http.create(f"{app.url}/api/up/", 1, {"filename": "infected", "filetype": "a"})
        answer = http.patch(infected.headers["location"], 0, b"x")
        assert (answer.status_code, answer.json()) == (422, {"detail": "infected"})
        assert http.head(infected.headers["location"]).headers["upload-offset"] == "1"

        banned = http.create(f"{app.url}/api/up/", 5, METADATA, {"X-Banned": "1"})
        assert (banned.status_code, banned.json()) == (401, {"detail": "banned"})
        assert http.delete(empty, {"X-Banned": "1"}).status_code == 401
        assert http.delete(empty).status_code == 204
        assert not path_in(kept, empty).exists()
        document = httpx.get(f"{app.url}/openapi.json").json()
        assert document["paths"]["/api/up/"]["post"]["tags"] == ["Mine"]
        assert httpx.get(f"{app.url}/docs").status_code == 200
        assert httpx.get(f"{app.url}/hello").json() == "hello"


# Where it stands

MOUNTED = """
from contextlib import asynccontextmanager

@asynccontextmanager
async def lifespan(_app):
    tell("began")
    yield
    tell("ended")

app = FastAPI(lifespan=lifespan, root_path="{root_path}")
{lines}
"""
PLACES = {
    "alone": ("app.include_router(create_tus_router(files_dir='uploads'))", "/files/"),
    "prefix": (
        "app.include_router(create_tus_router('/in/here/', files_dir='uploads'), prefix='/v1')",
        "/v1/in/here/",
    ),
    "router": (
        """
from fastapi import APIRouter
outer = APIRouter(prefix='/outer')
outer.include_router(create_tus_router(files_dir='uploads'))
app.include_router(outer)
""",
        "/outer/files/",
    ),
    "sub": (
        """
sub = FastAPI()
sub.include_router(create_tus_router(files_dir='uploads'))
app.mount('/sub', sub)
""",
        "/sub/files/",
    ),
}


def check_use(base: str, collection: str, headers: dict[str, str] | None = None) -> None:
    """Creates and sends an upload by the URLs that are told, which have to begin with `base`."""
    created = http.create(f"{base}{collection}", 5, METADATA, headers)
    url = created.headers["location"]
    assert url.startswith(f"{base}{collection}"), url
    assert http.patch(url, 0, b"hello", headers).headers["upload-offset"] == "5"
    # Old proxies let nothing else through.
    fields = {"Tus-Resumable": "1.0.0", "X-HTTP-Method-Override": "DELETE", **(headers or {})}
    assert httpx.post(url, headers=fields).status_code == 204
    assert http.head(url).status_code == http.patch(url, 5, b"").status_code == 404


@pytest.mark.parametrize("place", PLACES)
def test_it_can_be_mounted_anywhere(router: Router, place: str, tmp_path: Path) -> None:
    lines, collection = PLACES[place]
    code = RECORDING + MOUNTED.format(lines=lines, root_path="")
    app = AppProcess(tmp_path / "app", code, router).start()
    check_use(app.url, collection)
    assert app.end(signal.SIGTERM) in (0, -signal.SIGTERM)
    # The application's own lifespan is as it was, and nothing complains at the end.
    assert app.told("began") == app.told("ended") == ["[]"]
    assert not [line for line in app.lines if "Error" in line or "Traceback" in line]
    # The directory was let go: the next one gets it.
    with app:
        check_use(app.url, collection)


@pytest.mark.parametrize("place", PLACES)
def test_behind_a_proxy_urls_are_the_clients(router: Router, place: str, tmp_path: Path) -> None:
    lines, collection = PLACES[place]
    code = RECORDING + MOUNTED.format(lines=lines, root_path="")
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "uploads.example"}
    with AppProcess(tmp_path / "app", code, router) as app:
        created = http.create(f"{app.url}{collection}", 5, METADATA, forwarded)
        assert created.headers["location"].startswith(f"https://uploads.example{collection}")


def test_a_prefix_that_a_proxy_takes_off_is_in_the_urls(router: Router, tmp_path: Path) -> None:
    lines, _ = PLACES["alone"]
    code = RECORDING + MOUNTED.format(lines=lines, root_path="/behind")
    with AppProcess(tmp_path / "app", code, router) as app:
        created = http.create(f"{app.url}/files/", 5, METADATA)
        assert created.headers["location"].startswith(f"{app.url}/behind/files/")


@pytest.mark.parametrize("length", ["9" * 5000, "\u00b2", "-1", "1" * 20])
def test_a_length_that_is_no_number_fails_nothing(length: str, tmp_path: Path) -> None:
    code = (
        "from fastapi import FastAPI\n"
        "from tuspyserver import create_tus_router\n"
        "app = FastAPI()\n"
        "app.include_router(create_tus_router(files_dir='./uploads'))\n"
    )
    with AppProcess(tmp_path / "app", code, "ours") as app:
        created = http.create(f"{app.url}/files/", 10)
        answer = httpx.patch(
            created.headers["Location"],
            headers={
                b"Tus-Resumable": b"1.0.0",
                b"Upload-Offset": b"0",
                b"Content-Type": b"application/offset+octet-stream",
                b"Upload-Length": length.encode("latin-1"),
            },
            content=b"x",
        )
        assert answer.status_code == 400
