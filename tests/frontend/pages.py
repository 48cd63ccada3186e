"""Pages in headless Chromium that upload: Debian's browser, driven by playwright, and a web server for the pages."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from playwright.sync_api import BrowserContext, Page, Request, Response, expect

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT = 60_000
"""Milliseconds that a page is waited for at most: browsers are slow on busy machines."""
expect.set_options(timeout=WAIT)


class _Quiet(SimpleHTTPRequestHandler):
    def __init__(
        self, *args: Any, answers: Mapping[str, Callable[[], str]], directory: str
    ) -> None:
        self._answers = answers
        super().__init__(*args, directory=directory)

    def do_GET(self) -> None:
        answer = self._answers.get(self.path)
        if answer is None:
            super().do_GET()
            return
        body = answer().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Site:
    """A web server of its own for a directory: another origin than the upload server's.

    answers: what it says at some paths instead of a file's content.
    """

    def __init__(self, directory: Path) -> None:
        self.answers: dict[str, Callable[[], str]] = {}
        handler = partial(_Quiet, answers=self.answers, directory=str(directory))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class UploadPage:
    """`page.html` with a manager. Events are those that its script pushes on `seen`."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers: list[tuple[str, int]] = []
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._asked)
        page.on("response", self._answered)

    @property
    def context(self) -> BrowserContext:
        return self.page.context

    def open(self, **options: object) -> None:
        """Loads the page (again) and makes its manager; `options` as `page.html` says."""
        self.page.goto(self.url)
        self.page.wait_for_function("window.ready")
        self.page.evaluate("options => window.manage(options)", options)

    def choose(self, *files: Path) -> None:
        """Select files, as a user does in the file dialogue."""
        self.page.set_input_files("#file", [str(file) for file in files])

    def add(self, *files: Path, **metadata: str) -> None:
        """Chooses files and uploads them."""
        self.choose(*files)
        self.page.evaluate("metadata => window.add(metadata)", metadata)

    def all(self, name: str, call: str) -> None:
        """Calls a method of every upload whose file has this name, and does not wait for what it does."""
        self.page.evaluate(
            """([name, call]) => {
              for (const upload of window.manager.uploads) if (upload.name === name) void upload[call]()
            }""",
            [name, call],
        )

    def wait(self, condition: str, argument: object = None) -> None:
        """Waits until an expression of JavaScript holds; it fails with what was seen."""
        try:
            self.page.wait_for_function(condition, arg=argument)
        except Exception as problem:
            told = [event for event in self.seen() if event["event"] != "progress"]
            story = "\n".join(json.dumps(event) for event in told[-40:])
            raise AssertionError(
                f"{condition}\n{story}\n{self.answers[-20:]}\n{self.errors}"
            ) from problem

    def wait_answered(self, condition: Callable[[Sequence[tuple[str, int]]], bool]) -> None:
        """Waits until it holds for the answers: the browser tells of them on another way than the page."""
        deadline = monotonic() + WAIT / 1000
        while not condition(self.answers):
            assert monotonic() < deadline, self.answers
            self.page.wait_for_timeout(10)

    def wait_left(self) -> None:
        """Waits until one upload can be gone on with: that a page before this one is gone is known a little later."""
        self.wait("() => manager.resumable().then((left) => left.length === 1)")

    def wait_state(self, state: str, *, count: int = 1) -> None:
        """Waits until uploads have come to be `state` so often."""
        self.wait(
            "([state, count]) => seen.filter((each) => each.event === state).length >= count",
            [state, count],
        )

    def wait_sent(self, share: float) -> None:
        """Waits until this share of some upload was sent."""
        self.wait(
            "share => seen.some((each) => each.event === 'progress' && each.sent > share * each.total)",
            share,
        )

    def seen(self) -> list[dict[str, Any]]:
        """The events of the page since it was loaded."""
        found: list[dict[str, Any]] = self.page.evaluate("window.seen")
        return found

    def states(self) -> list[str]:
        """The states that uploads came to be in, in this order."""
        return [event["event"] for event in self.seen() if event["event"] != "progress"]

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return self.page.evaluate(expression)

    def urls(self) -> dict[str, str]:
        """The URLs of uploads by name."""
        found: dict[str, str] = self.page.evaluate(
            "Object.fromEntries(manager.uploads.map((upload) => [upload.name, upload.url]))"
        )
        return found

    def methods(self) -> Sequence[str]:
        """Of the requests to the upload server, in their order, without preflights."""
        return [method for method, _ in self.requests]

    def offsets(self) -> list[int]:
        """The offsets of the PATCH requests, in order."""
        return [
            int(headers["upload-offset"]) for method, headers in self.requests if method == "PATCH"
        ]

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(self.url.rpartition("/")[0]) and request.method != "OPTIONS":
            self.requests.append((request.method, request.headers))

    def _answered(self, response: Response) -> None:
        if not response.url.startswith(self.url.rpartition("/")[0]):
            self.answers.append((response.request.method, response.status))


MakePage = Callable[[], UploadPage]
