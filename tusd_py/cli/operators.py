"""Commands by the operators' API of a running server (`--server URL`)."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from tusd_py.cli.output import (
    CommandFailed,
    format_time,
    write_problem,
    write_record,
)
from tusd_py.cli.unix_http import UnixConnection
from tusd_py.cli.upload_rows import Row, Wanted
from tusd_py.web.admin import links

_API = "/admin/api/v1"
_TIMEOUT_SECONDS = 60.0
_MARK = {"X-Tusd-Admin": "1"}
_ORDERS = ("newest", "oldest")
_TIMES = ("created", "changed", "finished", "expires")
_NOT_PRINTED = ("id", "problem", "timeline", "events", "path", "fingerprint", "revoked")

Document = dict[str, Any]
"""A document of the API, as its OpenAPI document says."""


class Refused(CommandFailed):
    """The server refused a request."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the server refuses: {detail}")
        self.status = status
        self.detail = detail


class OperatorClient:
    """Requests to the API at a URL. Each raises CommandFailed. headers: that say who asks."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url
        self.headers = dict(headers or {})

    def ask(self, method: str, path: str, body: Document | None = None) -> Document:
        """Send a request and return the document of the response."""
        return self.exchange(method, path, body)[0]

    def exchange(
        self, method: str, path: str, body: Document | None = None
    ) -> tuple[Document, http.client.HTTPMessage]:
        """Send a request and return the document of the response, and its header fields."""
        headers = {**self.headers, **_MARK}
        content = None
        if body is not None:
            content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection, prefix = self._connection()
        try:
            connection.request(method, prefix + _API + path, content, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as problem:
            raise CommandFailed(f"{self._url} cannot be reached: {problem}") from problem
        finally:
            connection.close()
        try:
            document: Document = json.loads(text)
        except ValueError:
            raise CommandFailed(f"{self._url} is not an operators' API (--admin)") from None
        if response.status != 200:
            raise Refused(response.status, str(document.get("detail", response.reason)))
        return document, response.headers

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        if self._url.startswith("unix:"):
            return UnixConnection(self._url.removeprefix("unix:"), timeout=_TIMEOUT_SECONDS), ""
        try:
            parts = urlsplit(self._url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        if parts.scheme not in ("http", "https") or not host:
            raise CommandFailed(
                f'--server "{self._url}": give a URL, such as "http://127.0.0.1:8081", or unix:PATH'
            )
        prefix = parts.path.rstrip("/")
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS), prefix
        return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS), prefix


def connect(url: str, token_file: str | None, state_dir: Path) -> OperatorClient:
    """Return a client that is let in: by a token or, on this machine, by what a server wrote into its state directory.

    Raises CommandFailed.
    """
    if token_file is not None:
        try:
            token = Path(token_file).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as problem:
            raise CommandFailed(f"--token-file {token_file}: cannot be read: {problem}") from None
        if not token.isascii() or not token.isprintable() or not token:
            raise CommandFailed(f"--token-file {token_file}: has no token")
        return OperatorClient(url, {"Authorization": f"Bearer {token}"})
    try:
        door = links.find(state_dir)
    except OSError as problem:
        raise CommandFailed(f"{state_dir} cannot be read: {problem}") from None
    if door is None:
        raise CommandFailed(
            f"no server with operators runs with the state directory {state_dir} (--upload-dir, --state-dir), and no "
            "--token-file was given"
        )
    client = OperatorClient(url)
    code = links.make_code(door.key, links.this_user())
    _, headers = client.exchange("POST", "/session", {"code": code})
    client.headers["Cookie"] = headers.get("Set-Cookie", "").partition(";")[0]
    return client


def read_page(client: OperatorClient, wanted: Wanted) -> tuple[list[Row], str | None]:
    """Return a page of the list, and what the next page follows, if there is one. Raises CommandFailed."""
    if wanted.sort not in _ORDERS:
        raise CommandFailed(
            f"--sort {wanted.sort} does not go with --server; give newest or oldest"
        )
    # The API knows unfinished uploads only as such.
    state = {None: "all", "uploading": "unfinished", "waiting": "unfinished"}.get(
        wanted.state, wanted.state
    )
    found: list[Row] = []
    following: str | None = wanted.after
    while following is not None and len(found) < wanted.limit:
        query = {
            "limit": min(500, wanted.limit - len(found)),
            "state": state,
            "order": wanted.sort,
            "q": wanted.search,
            "owner": wanted.owner or "",
            "after": following,
        }
        given = {name: value for name, value in query.items() if value}
        page = client.ask("GET", f"/uploads?{urlencode(given)}")
        found += filter(wanted.has, map(_row, page["uploads"]))
        following = page["next"]
        if not page["is_whole"]:
            write_problem("the list is being built; some uploads may be missing")
    return found, following


def show(client: OperatorClient, ids: Sequence[str], *, as_json: bool) -> int:
    """Print everything about uploads."""
    missing = shown = 0
    for upload_id in ids:
        try:
            found = client.ask("GET", f"/uploads/{quote(upload_id)}")
        except Refused as problem:
            missing += 1
            write_problem(f"{json.dumps(upload_id)}: {problem.detail}")
            continue
        write_record(_document(found), as_json=as_json, is_first=not shown)
        shown += 1
    return 1 if missing else 0


def remove(client: OperatorClient, ids: Sequence[str]) -> int:
    """Remove uploads, after ending requests that write to them."""
    failures = 0
    for upload_id in ids:
        try:
            client.ask("POST", "/actions/remove", {"upload": upload_id})
        except Refused as problem:
            failures += 1
            write_problem(f"{json.dumps(upload_id)}: {problem.detail}")
    return 1 if failures else 0


def _document(row: Document) -> dict[str, object]:
    """An upload as the command prints it."""
    found: dict[str, object] = {"upload": row["id"]}
    for name, value in row.items():
        if name not in _NOT_PRINTED:
            is_time = name in _TIMES and value is not None
            found[name] = format_time(value) if is_time else value
    return found


def _row(row: Document) -> Row:
    return Row(
        row["id"],
        row["state"],
        row["offset"],
        row["size"],
        row["created"],
        row["changed"],
        row["owner"],
        row["name"] or "",
        _document(row),
    )
