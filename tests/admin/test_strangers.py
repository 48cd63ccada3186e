"""What strangers and forged requests cost the operators' API: silent connections, cursors and numbers that are none."""

from __future__ import annotations

import base64
import json
import socket
import time
from contextlib import ExitStack
from urllib.parse import quote

import pytest

from tests.admin.conftest import ADMIN
from tests.admin.operator import API, MARK, Operator, address_of, new_code
from tests.conftest import MakeServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection, head_bytes

GUARD = 60
MANY = 320
"""Connections: more than are accepted."""
NAN, ENDLESS = '["x", NaN]', '["x", 1e999]'


def _cursor(text: str) -> str:
    return quote(base64.urlsafe_b64encode(text.encode()).decode())


FORGED = {
    "a limit behind zeros": "/uploads?limit=0000001009999",
    "a limit of thousands of digits": f"/uploads?limit=000000100{'9' * 5000}",
    "a limit in other digits": f"/events?limit={quote('٣')}",
    "a time of hundreds of digits": f"/uploads?after={_cursor(json.dumps(['x', 10**400]))}",
    "no time": f"/uploads?state=expired&after={_cursor(NAN)}",
    "a time without end": f"/uploads?after={_cursor(ENDLESS)}",
    "half a character": f"/uploads?after={_cursor(json.dumps([chr(0xD800), 1.0]))}",
    "deep brackets": f"/uploads?q=a&after={_cursor('[' * 9000)}",
    "a scan in other digits": f"/duplicates?after={quote('٣')}",
    "a scan too large": "/duplicates?after=18446744073709551616",
    "a scan of thousands of digits": f"/duplicates?after={'9' * 5000}",
    "owners in other digits": f"/owners?after={quote('٣')}",
}
"""Each must be refused as what it is: not as a failure of the server or of Redis, nor taken for something else."""


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_number_or_cursor_is_refused(forged: str, operator: Operator) -> None:
    answer = operator.ask("GET", API + FORGED[forged])
    assert (answer.status, answer.document["code"]) == (400, "ERR_BAD_REQUEST")


@pytest.mark.parametrize("pump", ["\\101", '\\"', "\\\\", "a", "=", ";", "; ", '"', "tusd_admin=;"])
@pytest.mark.parametrize("beginning", ["", 'tusd_admin="', "tusd_admin="])
def test_a_cookie_is_read_in_linear_time(beginning: str, pump: str, watched: ServerProcess) -> None:
    """Also before anybody is authenticated. Some took 17 s, in which no upload was served."""
    nobody = Operator(address_of(watched))
    cookie = beginning + pump * (60_000 // len(pump)) + '"'
    for method, path in (("GET", "/uploads"), ("DELETE", "/session")):
        before = watched.processor_seconds()
        answer = nobody.ask(method, API + path, headers={**MARK, "Cookie": cookie})
        assert answer.status == (401 if method == "GET" else 204)
        assert watched.processor_seconds() - before < 1.5


def test_the_session_is_found_among_other_cookies(operator: Operator) -> None:
    ours = operator.headers["Cookie"]
    for cookies in (
        f"a=b;{ours}",
        f'x="\\"; {ours} ; y',
        f"tusd_admin=other; {ours}",
        f"{ours}; a",
    ):
        found = Operator(operator.address, {"Cookie": cookies})
        assert found.read("/session").status == 200, cookies


def test_a_search_for_an_id_comes_to_an_end_one_at_a_time(
    watched: ServerProcess, operator: Operator
) -> None:
    upload = id_of(path_of(Tus(watched).create(5)["Location"]))
    found: list[str] = []
    page = operator.get("/uploads", q=upload, limit=1)
    for _ in range(3):
        found += [row["id"] for row in page["uploads"]]
        if page["next"] is None:
            break
        page = operator.get("/uploads", q=upload, limit=1, after=page["next"])
    assert (found, page["next"]) == ([upload], None)


def test_connections_that_say_nothing_keep_nobody_out(make_server: MakeServer) -> None:
    server = make_server(*ADMIN, env={"TUSD_NETWORK_TIMEOUT": "1s"})
    address = address_of(server)
    operator = Operator(address).sign_in(new_code(server))
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address, GUARD)) for _ in range(MANY)]
        for each in idle[:5]:
            each.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        # Each ends by the server's own doing, the first ones as well as those that were too many.
        for each in idle:
            each.settimeout(GUARD)
            with pytest.raises((ConnectionResetError, EOFError)):
                _read_to_the_end(each)
        wait_until(lambda: operator.read("/session").status == 200, "an operator is let in")


@pytest.mark.parametrize("trickles", [False, True], ids=["stops", "trickles"])
def test_bodies_that_do_not_come_keep_nobody_out(make_server: MakeServer, trickles: bool) -> None:
    """Anybody may send one, as a link's code comes in a body; no operator was let in beside them."""
    server = make_server(*ADMIN, env={"TUSD_NETWORK_TIMEOUT": "1m" if trickles else "1s"})
    address = address_of(server)
    fields = {**MARK, "Content-Type": "application/json", "Content-Length": "1000"}
    head = head_bytes("POST", f"{API}/session", fields, "127.0.0.1")
    with ExitStack() as stack:
        slow = [stack.enter_context(Connection(address)) for _ in range(MANY if trickles else 20)]
        for each in slow:
            each.send(head + b"{")
        last = time.monotonic() + 8
        while trickles and time.monotonic() < last:
            time.sleep(1)
            for each in slow[:10]:
                each.send(b" ")
        for each in slow[:10]:
            refused = each.read_response("POST")
            assert (refused.status, refused["Connection"]) == (408, "close")
            assert b"ERR_READ_TIMEOUT" in refused.body
        operator = Operator(address)
        wait_until(lambda: operator.ask("GET", "/").status == 200, "an operator is let in")
    assert "Traceback" not in server.log()


def _read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass
    raise EOFError
