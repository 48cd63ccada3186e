"""Every action of the operators' API, and that it is logged with who did it."""

from __future__ import annotations

import time

import pytest

from tests.admin.conftest import ADMIN
from tests.admin.operator import Operator, address_of, new_code
from tests.auth.people import access, bearer
from tests.conftest import MakeServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Connection

FAILS = """
async def post_finish(event):
    raise RuntimeError("the archive is full")
"""


def begin(server: ServerProcess, headers: dict[str, str] | None = None) -> tuple[str, Connection]:
    """An upload, and a connection on which its body stands still after five bytes."""
    created = Tus(server).create(50, headers=headers)
    upload_id = id_of(path_of(created["Location"]))
    connection = Tus(server).connect()
    connection.send_head(
        "PATCH",
        f"/files/{upload_id}",
        {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": "0",
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": "50",
            **(headers or {}),
        },
    )
    connection.send(b"hello")
    wait_until(lambda: len(server.stored(upload_id)) == 5, "bytes to be stored")
    return upload_id, connection


def finish(server: ServerProcess, name: str) -> str:
    created = Tus(server).create(
        5, body=b"hello", headers={"Upload-Metadata": metadata(filename=name)}
    )
    return id_of(path_of(created["Location"]))


def test_a_running_body_is_shown_and_its_request_ended(
    watched: ServerProcess, operator: Operator
) -> None:
    upload_id, connection = begin(watched, {"Upload-Metadata": metadata(filename="running.bin")})
    with connection:
        wait_until(
            lambda: [each["offset"] for each in operator.get("/live")["bodies"]] == [5],
            "the body to be shown",
        )
        [body] = operator.get("/live")["bodies"]
        assert (body["id"], body["name"], body["size"]) == (upload_id, "running.bin", 50)
        assert body["client"].startswith("127.0.0.1:")
        assert operator.get("/overview")["receiving"] == 1
        operator.act("end-request", upload=upload_id)
        assert connection.read_response("PATCH").status == 409
    assert Tus(watched).head(f"/files/{upload_id}")["Upload-Offset"] == "5"
    watched.wait_for_line(rf"operator action  action=end-request by=tester via=link.*{upload_id}")
    last = operator.get("/actions")["actions"][0]
    assert (last["operator"], last["name"]) == ("tester", "end-request")


def test_an_upload_is_removed_also_while_its_client_sends(
    watched: ServerProcess, operator: Operator
) -> None:
    upload_id, connection = begin(watched)
    with connection:
        operator.act("remove", upload=upload_id)
        assert connection.read_response("PATCH").status == 409
    assert Tus(watched).head(f"/files/{upload_id}").status == 410
    assert operator.order("remove", upload=upload_id).status == 410
    watched.wait_for_line(rf"action=remove by=tester.*{upload_id}.*removed")


def test_an_upload_is_kept_longer(make_server: MakeServer) -> None:
    server = make_server(*ADMIN, "--expire-after", "1h", "--retain-finished", "1h")
    operator = Operator(address_of(server)).sign_in(new_code(server))
    unfinished, finished = path_of(Tus(server).create(50)["Location"]), finish(server, "n")
    for upload_id in (id_of(unfinished), finished):
        before = operator.get(f"/uploads/{upload_id}")["expires"]
        operator.act("extend", upload=upload_id, seconds=86_400)
        after = operator.get(f"/uploads/{upload_id}")["expires"]
        assert before < time.time() + 3700 < time.time() + 86_000 < after
        # Shorter than it is kept already changes nothing.
        operator.act("extend", upload=upload_id, seconds=60)
        assert operator.get(f"/uploads/{upload_id}")["expires"] == after
    assert "Upload-Expires" in Tus(server).head(unfinished)
    upload_id, connection = begin(server)
    with connection:
        refused = operator.order("extend", upload=upload_id, seconds=86_400)
        assert (refused.status, refused.document["code"]) == (409, "ERR_NOT_OFFERED")


def test_a_fingerprint_is_forgotten(watched: ServerProcess, operator: Operator) -> None:
    upload_id = finish(watched, "twice.zip")
    again = {"Upload-Metadata": metadata(filename="twice.zip")}
    assert Tus(watched).create(5, body=b"hello", headers=again).status == 409
    fingerprint = operator.get(f"/uploads/{upload_id}")["fingerprint"]
    done = operator.act("forget-fingerprint", fingerprint=fingerprint, upload=upload_id)
    assert done["count"] == 1
    assert Tus(watched).create(5, body=b"hello", headers=again).status == 201


def test_tokens_of_an_upload_and_of_an_owner_are_revoked(
    guarded: ServerProcess, root: Operator
) -> None:
    token = bearer(access("dora"))
    upload_id, connection = begin(guarded, token)
    with connection:
        root.act("revoke-upload", upload=upload_id)
        assert connection.read_response("PATCH").status == 403
    assert root.get(f"/uploads/{upload_id}")["revoked"]
    assert Tus(guarded).create(5, headers=token).status == 201
    root.act("revoke-owner", owner="dora")
    assert Tus(guarded).create(5, headers=token).status == 401
    guarded.wait_for_line(r"action=revoke-owner by=root via=token")


def test_without_tokens_nothing_is_revoked(operator: Operator) -> None:
    answer = operator.order("revoke-owner", owner="dora")
    assert (answer.status, answer.document["code"]) == (409, "ERR_NOT_OFFERED")


def test_failed_events_are_replayed_and_dropped(make_server: MakeServer, tmp_path: object) -> None:
    hook = f"{tmp_path}/hook.py"
    with open(hook, "w", encoding="utf-8") as file:
        file.write(FAILS)
    server = make_server(
        *ADMIN,
        *("--hook", hook, "--hooks-delivery-attempts", "1"),
        env={"TUSD_JOBS": "on"},
    )
    operator = Operator(address_of(server)).sign_in(new_code(server))
    first, second = finish(server, "a"), finish(server, "b")

    def failed() -> int:
        return len(operator.get("/events", box="failed")["events"])

    wait_until(lambda: failed() == 2, "both events to fail")
    [event] = operator.get(f"/uploads/{first}")["events"]
    assert (event["box"], event["type"], event["attempts"]) == ("failed", "post-finish", 1)
    assert "the archive is full" in event["problem"]
    codes = [each["code"] for each in operator.get("/overview")["problems"]]
    wait_until(
        lambda: "failed-events" in [each["code"] for each in operator.get("/overview")["problems"]],
        f"the problem to be told, not {codes}",
    )
    assert operator.act("replay-events", events=[event["id"]])["count"] == 1
    wait_until(lambda: failed() == 2, "it to fail again")
    assert operator.act("drop-events", upload=second)["count"] == 1
    assert operator.act("drop-events", every=True)["count"] == 1
    assert failed() == 0
    assert operator.order("drop-events").status == 400
    assert operator.get("/jobs")["workers"]


def test_a_sweep_after_a_dry_run(make_server: MakeServer) -> None:
    server = make_server(*ADMIN, "--expire-after", "1s")
    operator = Operator(address_of(server)).sign_in(new_code(server))
    kept = finish(server, "kept")
    for number in range(3):
        finish(server, f"more{number}")
    path = path_of(Tus(server).create(50)["Location"])

    def expired() -> list[str]:
        return [row["id"] for row in operator.get("/uploads", state="expired")["uploads"]]

    # Listed a moment after it is stored.
    wait_until(lambda: expired() == [id_of(path)], "the upload to expire")
    assert operator.act("sweep", kind="all", dry_run=True)["count"] == 1
    assert operator.act("sweep", kind="due", dry_run=False)["count"] == 1
    assert Tus(server).head(path).status == 410
    assert Tus(server).head(f"/files/{kept}").status == 200
    assert operator.get("/jobs")["sweeps"][0]["expired"] == 1


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("remove", {}),
        ("remove", {"upload": ""}),
        ("remove", {"upload": "a", "force": True}),
        ("extend", {"upload": "a", "seconds": -1}),
        ("forget-fingerprint", {"fingerprint": "x", "upload": "a"}),
        ("sweep", {"kind": "none"}),
    ],
)
def test_an_order_that_makes_no_sense(
    name: str, order: dict[str, object], operator: Operator
) -> None:
    answer = operator.order(name, **order)
    assert (answer.status, answer.document["code"]) == (400, "ERR_BAD_REQUEST")
