"""Who is let in to the operators' API: the matrix of people and requests, and what pages of other sites can do."""

from __future__ import annotations

import http.client
import json
import stat
import time
from collections.abc import Callable

import pytest

from tests.admin.conftest import ADMIN
from tests.admin.operator import API, MARK, Answer, Operator, address_of, code_of, link_of, new_code
from tests.auth.people import SECRET, access, bearer, upload_token
from tests.conftest import MakeServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of

REQUESTS: dict[str, Callable[[Operator, str], Answer]] = {
    "page": lambda operator, _upload: operator.ask("GET", f"{API}/uploads"),
    "one": lambda operator, upload: operator.ask("GET", f"{API}/uploads/{upload}"),
    "stream": lambda operator, _upload: operator.ask("HEAD", f"{API}/stream"),
    "described": lambda operator, _upload: operator.ask("GET", f"{API}/openapi.json"),
    "settings": lambda operator, _upload: operator.ask("GET", f"{API}/settings"),
    "act": lambda operator, upload: operator.ask(
        "POST", f"{API}/actions/end-request", headers=MARK, body={"upload": upload}
    ),
}
"""Requests of the API."""


def _stale(server: ServerProcess) -> dict[str, str]:
    signed_in = Operator(address_of(server)).sign_in(new_code(server))
    answer = signed_in.ask("DELETE", f"{API}/session", headers=MARK)
    assert answer.status == 204
    return signed_in.headers


def _session(server: ServerProcess) -> dict[str, str]:
    return Operator(address_of(server)).sign_in(new_code(server)).headers


PEOPLE: dict[str, tuple[Callable[[ServerProcess, str], dict[str, str]], int]] = {
    "nobody": (lambda _server, _upload: {}, 401),
    "owner": (lambda _server, _upload: bearer(access()), 403),
    "upload token": (lambda _server, upload: bearer(upload_token(upload)), 403),
    "admin": (lambda _server, _upload: bearer(access("root", "uploads:admin")), 200),
    "expired admin": (
        lambda _server, _upload: bearer(access("root", "uploads:admin", exp=int(time.time()) - 60)),
        401,
    ),
    "session": (lambda server, _upload: _session(server), 200),
    "stale session": (lambda server, _upload: _stale(server), 401),
    "invented session": (lambda _server, _upload: {"Cookie": "tusd_admin=invented"}, 401),
    "forged header": (lambda _server, _upload: {"X-Operator": "mallory"}, 401),
    "wrong origin": (
        lambda server, _upload: {**_session(server), "Origin": "https://evil.example"},
        403,
    ),
    "same address, other port": (
        lambda server, _upload: {**_session(server), "Origin": f"http://127.0.0.1:{server.port}"},
        403,
    ),
    "origin null": (lambda server, _upload: {**_session(server), "Origin": "null"}, 403),
    "other site": (
        lambda server, _upload: {**_session(server), "Sec-Fetch-Site": "cross-site"},
        403,
    ),
    "same site": (lambda server, _upload: {**_session(server), "Sec-Fetch-Site": "same-site"}, 403),
    "foreign host": (
        lambda _server, _upload: {
            **bearer(access("root", "uploads:admin")),
            "Host": "evil.example",
        },
        421,
    ),
    "other address as host": (
        lambda _server, _upload: {**bearer(access("root", "uploads:admin")), "Host": "10.1.2.3"},
        421,
    ),
    "own name as host": (
        lambda _server, _upload: {
            **bearer(access("root", "uploads:admin")),
            "Host": "ops.example.org",
            "Origin": "https://ops.example.org",
        },
        200,
    ),
}
"""Header fields of each, and the status of every response to them."""


@pytest.fixture(scope="module")
def upload_id(guarded: ServerProcess) -> str:
    created = Tus(guarded).create(5, headers=bearer(access()))
    return id_of(path_of(created["Location"]))


@pytest.mark.parametrize("person", PEOPLE)
def test_the_matrix(person: str, guarded: ServerProcess, upload_id: str) -> None:
    headers, status = PEOPLE[person]
    operator = Operator(address_of(guarded), headers(guarded, upload_id))
    found = {name: request(operator, upload_id) for name, request in REQUESTS.items()}
    assert {name: answer.status for name, answer in found.items()} == dict.fromkeys(
        REQUESTS, status
    )
    if status != 200:
        assert all(upload_id.encode() not in answer.content for answer in found.values())
        refused = found["page"]
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.document["status"] == status
    assert not any("access-control-allow-origin" in answer.headers for answer in found.values())


@pytest.mark.parametrize("missing", ["mark", "content type"])
def test_what_a_form_of_another_page_can_send_changes_nothing(
    missing: str, guarded: ServerProcess, root: Operator, upload_id: str
) -> None:
    """A form, or a script without a preflight, can send neither the header field nor the media type."""
    body = json.dumps({"upload": upload_id}).encode()
    headers = {
        "mark": {"Content-Type": "application/json"},
        "content type": {**MARK, "Content-Type": "text/plain"},
    }[missing]
    answer = root.ask("POST", f"{API}/actions/remove", headers=headers, body=body)
    assert answer.status == {"mark": 403, "content type": 415}[missing]
    assert Tus(guarded).head(f"/files/{upload_id}", bearer(access())).status == 200


def test_a_preflight_of_another_page_is_not_answered(root: Operator) -> None:
    asked = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-tusd-admin",
    }
    answer = root.ask("OPTIONS", f"{API}/actions/remove", headers=asked)
    assert answer.status == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# One-time links


def test_a_link_counts_once(guarded: ServerProcess) -> None:
    link = link_of(guarded)
    assert link.startswith(f"http://127.0.0.1:{address_of(guarded)[1]}/#")
    nobody = Operator(address_of(guarded))
    session = nobody.sign_in(code_of(link))
    assert session.get("/session")["via"] == "link"
    again = nobody.ask("POST", f"{API}/session", headers=MARK, body={"code": code_of(link)})
    assert (again.status, again.document["code"]) == (403, "ERR_LINK_USED")


def test_a_link_with_another_signature_does_not_count(guarded: ServerProcess) -> None:
    code = new_code(guarded)
    payload, _, signature = code.partition(".")
    nobody = Operator(address_of(guarded))
    for bad in (payload, f"{payload}.", f"{payload}.{signature[::-1]}", f"x{code}", ".", "é"):
        answer = nobody.ask("POST", f"{API}/session", headers=MARK, body={"code": bad})
        assert answer.status == 403, bad


def test_a_session_is_a_strict_cookie_that_no_script_reads(guarded: ServerProcess) -> None:
    body = {"code": new_code(guarded)}
    answer = Operator(address_of(guarded)).ask("POST", f"{API}/session", headers=MARK, body=body)
    parts = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")}
    assert {"httponly", "samesite=strict", "path=/"} <= parts


def test_secrets_of_links_and_sessions_are_not_logged(guarded: ServerProcess) -> None:
    code = new_code(guarded)
    session = Operator(address_of(guarded)).sign_in(code)
    session.get("/overview")
    cookie = session.headers["Cookie"].partition("=")[2]
    assert code not in guarded.log()
    assert cookie not in guarded.log()


def test_only_the_user_of_the_server_can_make_a_link(guarded: ServerProcess) -> None:
    found = list(guarded.upload_dir.rglob("admin.json"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in found] == [0o600]


def test_a_token_makes_a_session_that_ends_with_the_token(guarded: ServerProcess) -> None:
    headers = bearer(access("carol", "uploads:admin"))
    nobody = Operator(address_of(guarded))
    answer = nobody.ask("POST", f"{API}/session", headers={**MARK, **headers})
    assert answer.status == 200
    cookie = answer.headers["set-cookie"].partition(";")[0]
    session = Operator(nobody.address, {"Cookie": cookie})
    assert session.get("/session") | {"version": ""} == answer.document | {"version": ""}
    assert session.get("/session")["operator"] == "carol"
    root = Operator(nobody.address, bearer(access("root", "uploads:admin")))
    root.act("revoke-owner", owner="carol")
    refused = session.read("/overview")
    assert (refused.status, refused.document["code"]) == (401, "ERR_SESSION_ENDED")


def test_a_token_of_an_owner_makes_no_session(guarded: ServerProcess) -> None:
    nobody = Operator(address_of(guarded))
    answer = nobody.ask("POST", f"{API}/session", headers={**MARK, **bearer(access())})
    assert (answer.status, "set-cookie" in answer.headers) == (403, False)


# The header field of an authenticating proxy


def _from(source: str, server: ServerProcess, headers: dict[str, str]) -> Answer:
    """A GET of the session by a peer with this address."""
    connection = http.client.HTTPConnection(
        *address_of(server), timeout=60, source_address=(source, 0)
    )
    try:
        connection.request("GET", f"{API}/session", headers=headers)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def test_the_name_that_a_trusted_proxy_sends_counts(guarded: ServerProcess) -> None:
    answer = _from("127.0.0.2", guarded, {"X-Operator": "alice"})
    assert (answer.status, answer.document["operator"]) == (200, "alice")
    assert answer.document["via"] == "header"
    assert _from("127.0.0.3", guarded, {"X-Operator": "alice"}).status == 401
    assert _from("127.0.0.2", guarded, {"X-Operator": ""}).status == 401


# The start


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--admin", "0.0.0.0:0"), "can be reached from other machines"),
        (("--admin", "8081"), "give an address and a port"),
        ((*ADMIN, "--admin-user-header", "X-User"), "needs --behind-proxy"),
        (
            (*ADMIN, "--admin-user-header", "X-User", "--behind-proxy", "*"),
            "lets everybody be an operator",
        ),
    ],
)
def test_an_open_door_is_refused_at_the_start(
    flags: tuple[str, ...], told: str, make_server: MakeServer
) -> None:
    process = make_server(*flags, launch=True)
    assert process.wait() == 2
    assert told in process.log()


def test_elsewhere_than_on_loopback_only_tokens_count(make_server: MakeServer) -> None:
    server = make_server("--admin", "0.0.0.0:0", "--auth", "jwt", env={"TUSD_JWT_SECRET": SECRET})
    found = server.wait_for_line(r"Operators' page at http://localhost:(\d+)/")
    operator = Operator(("127.0.0.1", int(found[1])))
    link = operator.ask("POST", f"{API}/session", headers=MARK, body={"code": new_code(server)})
    assert link.status == 403
    admin = Operator(operator.address, bearer(access("root", "uploads:admin")))
    assert admin.get("/session")["via"] == "token"


def test_it_is_off_by_default(make_server: MakeServer) -> None:
    server = make_server()
    assert Tus(server).request("GET", f"{API}/overview").status == 404
    assert not list(server.upload_dir.rglob("admin.json"))
