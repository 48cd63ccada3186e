"""The examples of examples/ as their pages in docs/ show and run them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.blocks import blocks
from tests.support import ports
from tests.support.application import UVICORN, Application
from tests.support.requirements import require_program
from tests.support.server import ROOT, environment
from tests.support.tus import Tus, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection

EXAMPLES = ROOT / "examples"


class Example(Application):
    """One of the examples, copied; its file is `module`."""

    def __init__(self, directory: Path, name: str, module: str = "example", *flags: str) -> None:
        shutil.copytree(EXAMPLES / name, directory, dirs_exist_ok=True)
        program = tuple(part.replace("example:", f"{module}:") for part in UVICORN)
        super().__init__(directory, None, *flags, program=program)


@pytest.mark.parametrize("name", sorted(each.parent.name for each in EXAMPLES.glob("*/*.py")))
def test_the_page_shows_the_example(name: str) -> None:
    page = f"docs/with-{name}.md"
    for language in ("python", "nginx"):
        shown = blocks(page, language)
        suffix = {"python": "*.py", "nginx": "*.conf"}[language]
        files = {each.read_text() for each in (EXAMPLES / name).glob(suffix)}
        assert files <= set(shown)


def _sign_in(server: Application, path: str, form: str = "") -> dict[str, str]:
    """Sign in as on the page; the cookie of the session."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    with Connection(server.address) as connection:
        response = connection.request("POST", path, headers, form.encode())
    assert response.status == 200, response
    (cookie,) = [value for value in response.all("Set-Cookie") if value.startswith("session")]
    return {"Cookie": cookie.partition(";")[0]}


def _upload_as(server: Application, alice: dict[str, str], bob: dict[str, str]) -> str:
    """An upload of alice's, of which bob learns nothing; its path."""
    tus = Tus(server)
    assert tus.create(5, body=b"hello").status == 401
    created = tus.create(5, body=b"hel", headers=alice)
    assert created["Location"].startswith(server.url)
    path = path_of(created["Location"])
    assert tus.head(path, bob).status == 404
    assert tus.patch(path, 3, b"lo", alice).status == 204
    assert tus.get(path, alice).body == b"hello"
    return path


def test_fastapi(tmp_path: Path) -> None:
    with Example(tmp_path, "fastapi") as server:
        alice, bob = (_sign_in(server, f"/login?user={name}") for name in ("alice", "bob"))
        path = _upload_as(server, alice, bob)
        tus = Tus(server)
        finished = f'["{path.rpartition("/")[2]}"]'
        wait_until(lambda: tus.get("/finished", alice).text == finished, "the hook")
        assert tus.get("/finished", bob).text == "[]"
        assert tus.get("/finished").status == 401
        assert "tusd_uploads_finished 1.0" in tus.get("/metrics").text
        assert tus.get("/uploads/readyz").status == 200


def test_starlette(tmp_path: Path) -> None:
    with Example(tmp_path, "starlette") as server:
        _upload_as(server, *(_sign_in(server, f"/login?user={name}") for name in ("alice", "bob")))


def test_django(tmp_path: Path) -> None:
    server = Example(tmp_path, "django")
    environ = environment({"DJANGO_SUPERUSER_PASSWORD": "secret"})
    users = [
        ("createsuperuser", "--noinput", "--username", name, "--email", f"{name}@example.org")
        for name in ("alice", "bob")
    ]
    for arguments in [("migrate",), *users]:
        subprocess.run(
            [sys.executable, "example.py", *arguments],
            cwd=tmp_path,
            env=environ,
            check=True,
            capture_output=True,
        )
    with server:
        people = (
            _sign_in(server, "/login", f"user={name}&password=secret") for name in ("alice", "bob")
        )
        _upload_as(server, *people)


def test_django_in_a_project_of_its_own(tmp_path: Path) -> None:
    """As the page says: its first lines, and the example from behind `django.setup()` on."""
    start, shown = blocks("docs/with-django.md", "python")
    rest = shown.partition("django.setup()\n")[2].partition("\nif __name__")[0]
    rest = re.sub(r"def sign_in.*?^urlpatterns[^\n]*", "", rest, flags=re.DOTALL | re.MULTILINE)
    django = (sys.executable, "-m", "django", "startproject", "project", str(tmp_path))
    subprocess.run(django, check=True, capture_output=True)
    (tmp_path / "project" / "asgi.py").write_text(start + rest)
    subprocess.run(
        [sys.executable, "manage.py", "migrate"], cwd=tmp_path, check=True, capture_output=True
    )
    program = tuple(part.replace("example:", "project.asgi:") for part in UVICORN)
    with Application(tmp_path, None, program=program) as server:
        assert Tus(server).create(5, body=b"hello").status == 401


@pytest.fixture
def flask(tmp_path: Path) -> Iterator[Application]:
    """The website, the uploads and the proxy before them; at the proxy's port."""
    nginx = require_program("nginx", "nginx-light")
    with ExitStack() as stack:
        # All before the first one starts: each copies the modules anew.
        uploads = Example(tmp_path, "flask", "uploads", "--http", "tusd_py:UploadProtocol")
        website, proxy = Example(tmp_path, "flask", "website"), Example(tmp_path, "flask")
        website.program = ("-m", "gunicorn", "website:app", "--bind", "127.0.0.1:{port}")
        website.started = re.compile("Booting worker")
        stack.enter_context(uploads)
        stack.enter_context(website)
        proxy.port = stack.enter_context(ports.reserve()).getsockname()[1]
        config = (tmp_path / "nginx.conf").read_text()
        for port, server in ((8080, proxy), (5000, website), (8000, uploads)):
            config = config.replace(f"127.0.0.1:{port};", f"127.0.0.1:{server.port};")
        (tmp_path / "nginx.conf").write_text(config)
        process = subprocess.Popen([nginx, "-p", str(tmp_path), "-c", "nginx.conf"])
        try:
            wait_until(lambda: ports.is_open(proxy.port), "nginx")
            proxy.url = f"{proxy.origin}/files/"
            yield proxy
        finally:
            process.terminate()
            process.wait(30)


def test_flask(flask: Application) -> None:
    _upload_as(flask, *(_sign_in(flask, "/login", f"user={name}") for name in ("alice", "bob")))
