"""An operator without a browser: requests to the operators' API, whose responses are checked against its OpenAPI document."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode

import jsonschema

from tests.support.server import PROGRAM, ServerProcess, environment
from tusd_py.web.admin import links

API = "/admin/api/v1"
MARK = {"X-Tusd-Admin": "1"}
_URL = re.compile(r"Operators' page at http://([0-9.]+):(\d+)/")

Document = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A response of the API."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def document(self) -> Document:
        found: Document = json.loads(self.content)
        return found


def address_of(server: ServerProcess) -> tuple[str, int]:
    """Where the server serves operators."""
    found = server.wait_for_line(_URL.pattern)
    return found[1], int(found[2])


def link_of(server: ServerProcess, *flags: str) -> str:
    """The link that `tusd-py dashboard` prints."""
    command = [*PROGRAM, "dashboard", "--upload-dir", str(server.upload_dir), *flags]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def code_of(link: str) -> str:
    return link.partition("#")[2]


def new_code(server: ServerProcess) -> str:
    """The code of a link, made as the command makes it, which takes longer."""
    door = links.find(server.upload_dir / ".tusd-py")
    assert door is not None
    return links.make_code(door.key, "tester")


class Operator:
    """Sends requests with these header fields."""

    def __init__(
        self, address: tuple[str, int], headers: Mapping[str, str] | None = None, prefix: str = ""
    ) -> None:
        self.address = address
        self.headers = dict(headers or {})
        self.prefix = prefix

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Document | bytes | None = None,
    ) -> Answer:
        """Any request; nothing is checked."""
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        sent = {**self.headers, **(headers or {})}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, self.prefix + path, body=body, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def sign_in(self, code: str) -> Operator:
        """An operator with a session of this link's code."""
        answer = self.ask("POST", f"{API}/session", headers=MARK, body={"code": code})
        assert answer.status == 200, answer.content
        cookie = answer.headers["set-cookie"].partition(";")[0]
        return Operator(self.address, {**self.headers, "Cookie": cookie}, self.prefix)

    # -- requests whose responses are checked --------------------------------------------------

    def get(self, path: str, **query: str | int) -> Document:
        """The document of a path, such as "/uploads"; it must be there."""
        answer = self.read(path, **query)
        assert answer.status == 200, answer.content
        return answer.document

    def read(self, path: str, **query: str | int) -> Answer:
        """A GET, refused or not."""
        target = API + quote(path) + (f"?{urlencode(query)}" if query else "")
        return self.checked("get", path, self.ask("GET", target))

    def act(self, name: str, **order: object) -> Document:
        """Carry out an action, which must succeed."""
        answer = self.order(name, **order)
        assert answer.status == 200, answer.content
        return answer.document

    def order(self, name: str, **order: object) -> Answer:
        """Order an action, refused or not."""
        path = f"/actions/{name}"
        answer = self.ask("POST", API + path, headers=MARK, body=order)
        return self.checked("post", path, answer)

    @cached_property
    def described(self) -> Document:
        """The OpenAPI document."""
        answer = self.ask("GET", f"{API}/openapi.json")
        assert answer.status == 200, answer.content
        return answer.document

    def checked(self, method: str, path: str, answer: Answer) -> Answer:
        """Check that a response is what the OpenAPI document says."""
        paths = self.described["paths"]
        [name] = [
            each for each in paths if re.fullmatch(each.replace("{id}", ".+"), path) is not None
        ]
        responses = paths[name][method]["responses"]
        content = responses["200" if answer.status == 200 else "default"]["content"]
        [(media_type, described)] = content.items()
        assert answer.headers["content-type"].partition(";")[0] == media_type
        if "schema" in described:
            schema = {**described["schema"], "components": self.described["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer.document)
        return answer
