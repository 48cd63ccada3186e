"""The list of uploads: filters, order, pages, search; what it costs; how it is corrected and built anew."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin.conftest import ADMIN
from tests.admin.operator import API, Document, Operator, address_of, new_code
from tests.auth.people import SECRET, access, bearer
from tests.conftest import MakeServer
from tests.support.redis import RedisServer
from tests.support.server import PROGRAM, ServerProcess, environment
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until

NAMES = ("patient-0041.zip", "patient-0042.zip", "Überblick.pdf")


def create(
    server: ServerProcess, name: str, length: int, body: bytes = b"", owner: str = ""
) -> str:
    headers = {
        "Upload-Metadata": metadata(filename=name),
        **(bearer(access(owner)) if owner else {}),
    }
    created = Tus(server).create(length, body=body or None, headers=headers)
    assert created.status == 201, created
    return id_of(path_of(created["Location"]))


def wait_listed(operator: Operator, count: int) -> Document:
    """Wait until the list has so many uploads; changes are sent once a second."""
    wait_until(lambda: operator.get("/uploads")["total"] == count, f"{count} uploads in the list")
    return operator.get("/uploads", limit=500)


@pytest.fixture(scope="module")
def known(watched: ServerProcess, operator: Operator) -> dict[str, str]:
    """Three finished uploads and an unfinished one, by name, the oldest first."""
    found = {name: create(watched, name, 5, b"hello") for name in NAMES}
    found["unfinished"] = create(watched, "unfinished", 50, b"hello")
    wait_listed(operator, 4)
    return found


def ids(page: Document) -> list[str]:
    return [row["id"] for row in page["uploads"]]


def test_the_newest_come_first(operator: Operator, known: dict[str, str]) -> None:
    page = operator.get("/uploads")
    assert ids(page) == list(reversed(known.values()))
    assert ids(operator.get("/uploads", order="oldest")) == list(known.values())
    row = page["uploads"][0]
    assert (row["state"], row["offset"], row["size"]) == ("uploading", 5, 50)
    assert row["expires"] > time.time() + 6 * 86_400


def test_states_are_told_apart(operator: Operator, known: dict[str, str]) -> None:
    assert ids(operator.get("/uploads", state="unfinished")) == [known["unfinished"]]
    finished = operator.get("/uploads", state="finished")
    assert (len(ids(finished)), finished["total"]) == (3, 3)
    assert operator.get("/uploads", state="part")["total"] == 0
    assert operator.get("/uploads", state="expired")["uploads"] == []


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_have_every_upload_once(
    order: str, operator: Operator, known: dict[str, str]
) -> None:
    found: list[str] = []
    after = ""
    for _ in range(3):
        page = operator.get("/uploads", order=order, limit=2, after=after)
        found += ids(page)
        if page["next"] is None:
            break
        after = page["next"]
    assert found == ids(operator.get("/uploads", order=order, limit=100))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("patient", ["patient-0041.zip", "patient-0042.zip"]),
        ("0042", ["patient-0042.zip"]),
        ("überb", ["Überblick.pdf"]),
        ("tient", []),
        ("zip", []),
    ],
)
def test_a_search_by_name(
    text: str, names: list[str], operator: Operator, known: dict[str, str]
) -> None:
    page = operator.get("/uploads", q=text)
    assert sorted(ids(page)) == sorted(known[name] for name in names)


def test_a_search_by_id_and_in_a_state(operator: Operator, known: dict[str, str]) -> None:
    wanted = known["patient-0041.zip"]
    assert ids(operator.get("/uploads", q=wanted[:9])) == [wanted]
    assert ids(operator.get("/uploads", q=wanted)) == [wanted]
    assert ids(operator.get("/uploads", q=wanted, state="unfinished")) == []


def test_pages_of_a_search(operator: Operator, known: dict[str, str]) -> None:
    first = operator.get("/uploads", q="patient", limit=1)
    second = operator.get("/uploads", q="patient", limit=1, after=first["next"])
    assert {*ids(first), *ids(second)} == {
        known["patient-0041.zip"],
        known["patient-0042.zip"],
    }


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"after": "x"}, "cursor"),
        ({"after": "WzFd", "q": "patient"}, "cursor"),
        ({"limit": "0"}, "limit"),
        ({"limit": "501"}, "limit"),
        ({"state": "gone"}, "state must be one of"),
        ({"q": "x" * 2000}, "q is too long"),
    ],
)
def test_what_cannot_be_asked(query: dict[str, str], told: str, operator: Operator) -> None:
    answer = operator.read("/uploads", **query)
    assert answer.status == 400
    assert told in answer.document["detail"]


def test_one_upload(operator: Operator, known: dict[str, str]) -> None:
    found = operator.get(f"/uploads/{known['patient-0042.zip']}")
    assert found["metadata"] == {"filename": "patient-0042.zip"}
    assert [moment["what"] for moment in found["timeline"]] == ["created", "byte", "finished"]
    assert found["path"].endswith(found["id"])
    [remembered] = operator.get("/duplicates", q=found["id"])["fingerprints"]
    assert remembered["fingerprint"] == found["fingerprint"]
    assert operator.get("/duplicates", q=found["fingerprint"])["fingerprints"] == [remembered]


@pytest.mark.parametrize("upload_id", ["a" * 32, "..%2fetc", ".tusd-py", "a b"])
def test_an_unknown_upload(upload_id: str, operator: Operator) -> None:
    answer = operator.read(f"/uploads/{upload_id}")
    assert (answer.status, answer.document["code"]) == (404, "ERR_UPLOAD_NOT_FOUND")


def test_its_bytes(watched: ServerProcess, operator: Operator, known: dict[str, str]) -> None:
    answer = operator.read(f"/content/{known['patient-0042.zip']}")
    assert (answer.status, answer.content) == (200, b"hello")
    assert 'attachment; filename="patient-0042.zip"' in answer.headers["content-disposition"]
    assert "sandbox" in answer.headers["content-security-policy"]
    assert operator.read(f"/content/{known['unfinished']}").status == 404
    watched.wait_for_line(r"operator action.*action=download by=tester")


def test_a_head_of_the_content_reads_nothing(watched: ServerProcess, operator: Operator) -> None:
    path = Tus(watched).finished(b"x" * 8_000_000)

    def read() -> int:
        counts = Path(f"/proc/{watched.pid}/io").read_text()
        return int(counts.splitlines()[0].removeprefix("rchar: "))

    before = read()
    answer = operator.ask("HEAD", f"{API}/content/{id_of(path)}")
    assert (answer.status, answer.headers["content-length"]) == (200, "8000000")
    assert read() - before < 4_000_000
    done = [each["detail"] for each in operator.get("/actions")["actions"]]
    assert not [detail for detail in done if id_of(path) in detail]


def test_names_and_metadata_only_if_they_are_to_be_shown(
    guarded: ServerProcess, root: Operator
) -> None:
    upload_id = create(guarded, "secret-name.zip", 5, b"hello", owner="alice")
    wait_listed(root, 1)
    [row] = root.get("/uploads")["uploads"]
    assert (row["name"], row["owner"]) == (None, "alice")
    assert root.get(f"/uploads/{upload_id}")["metadata"] is None
    assert root.get("/uploads", q="secret")["uploads"] == []
    refused = root.read(f"/content/{upload_id}")
    assert (refused.status, refused.document["code"]) == (403, "ERR_NOT_SHOWN")
    assert ids(root.get("/uploads", q="ali")) == ids(root.get("/uploads", owner="alice"))
    assert root.get("/uploads", owner="ali")["uploads"] == []
    create(guarded, "other", 9, owner="bob")
    wait_until(lambda: root.get("/owners")["total"] == 2, "two owners")
    page = root.get("/owners")
    assert (page["quota_bytes"], page["quota_uploads"]) == (10**15, None)
    found = {each.pop("owner"): each for each in page["owners"]}
    assert found == {
        "alice": {"uploads": 1, "open": 0, "bytes": 5, "counted": 5, "revoked": None},
        "bob": {"uploads": 1, "open": 1, "bytes": 0, "counted": 9, "revoked": None},
    }


# The list is never the truth


@pytest.fixture
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_with_redis_emptied_the_list_is_built_anew(
    redis: RedisServer, make_server: MakeServer
) -> None:
    server = make_server(*ADMIN, env={"TUSD_REDIS_URL": redis.url})
    operator = Operator(address_of(server)).sign_in(new_code(server))
    known = {create(server, f"n{number}", 5, b"hello") for number in range(3)}
    wait_listed(operator, 3)
    redis.command("FLUSHALL")
    wait_until(lambda: operator.get("/uploads")["is_whole"], "the list to be whole")
    assert set(ids(wait_listed(operator, 3))) == known
    # Of an upload that is not in the storage: the list says so until somebody looks.
    key = "tusd:{registry}:list:all"
    redis.command("ZADD", key, time.time(), "f" * 32)
    assert set(ids(operator.get("/uploads"))) == known
    assert operator.get("/uploads")["total"] == 3
    redis.stop()
    wait_until(lambda: operator.read("/uploads").status == 503, "Redis to be away")
    assert operator.read("/uploads").document["code"] == "ERR_INDEX_UNAVAILABLE"
    assert operator.get(f"/uploads/{known.pop()}")["offset"] == 5
    assert operator.get("/overview")["redis"] == "away"
    redis.restart()
    wait_until(lambda: operator.read("/uploads").status == 200, "Redis to be back")


def test_owners_say_whether_all_bytes_count_for_quotas(
    redis: RedisServer, make_server: MakeServer
) -> None:
    env = {"TUSD_REDIS_URL": redis.url}
    server = make_server(*ADMIN, "--quota-bytes", "10GB", env=env)
    operator = Operator(address_of(server)).sign_in(new_code(server))
    wait_until(lambda: not operator.get("/owners")["is_counting"], "all bytes to be counted")

    def is_counting_anew() -> bool:
        # Again, in case the server has been quicker than the request.
        redis.command("SET", "tusd:{quotas}:wanted", "building")
        return bool(operator.get("/owners")["is_counting"])

    wait_until(is_counting_anew, "the page to say so")
    wait_until(lambda: not operator.get("/owners")["is_counting"], "all bytes to be counted again")


def test_uploads_of_all_servers_are_listed_also_of_those_without_operators(
    redis: RedisServer, make_server: MakeServer
) -> None:
    env = {"TUSD_REDIS_URL": redis.url}
    server = make_server(*ADMIN, env=env)
    other = make_server(env=env, upload_dir=server.upload_dir)
    operator = Operator(address_of(server)).sign_in(new_code(server))
    wait_until(lambda: operator.get("/uploads")["is_whole"], "the list to be whole")
    unfinished = create(other, "there", 50)
    with Tus(other).connect() as connection:
        connection.send_head(
            "PATCH",
            f"/files/{unfinished}",
            {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": "0",
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": "50",
            },
        )
        connection.send(b"hello")
        wait_listed(operator, 1)
        wait_until(lambda: operator.get("/live")["total"] == 1, "the other server to tell")
        [body] = operator.get("/live")["bodies"]
        assert (body["id"], body["size"]) == (unfinished, 50)
        assert body["server"].endswith(f"/{other.pid}")
        operator.act("end-request", upload=unfinished)
        assert connection.read_response("PATCH").status == 409
    # By a process that is no server.
    command = (*PROGRAM, "uploads", "rm", unfinished, "--upload-dir", str(server.upload_dir))
    subprocess.run([*command, *other.flags], check=True, timeout=60, env=environment({**other.env}))
    wait_until(lambda: operator.get("/overview")["known"] == 0, "the list to lack it")
    assert Tus(other).head(f"/files/{unfinished}").status == 410


def test_a_page_costs_what_it_shows(redis: RedisServer, make_server: MakeServer) -> None:
    server = make_server(*ADMIN, env={"TUSD_REDIS_URL": redis.url})
    operator = Operator(address_of(server)).sign_in(new_code(server))
    for number in range(5):
        create(server, f"n{number}", 5, b"hello")
    wait_listed(operator, 5)
    wait_until(lambda: operator.get("/uploads")["is_whole"], "the list to be whole")
    # As many others, older ones, of which none is shown.
    fill = "for i = 1, 100000 do redis.call('ZADD', KEYS[1], i, 'old' .. i) end"
    redis.command("EVAL", fill, "1", "tusd:{registry}:list:all")
    with redis.monitor() as commands:
        page = operator.get("/uploads", limit=5)
    assert page["total"] == 100_005
    assert len(ids(page)) == 5
    asked = [line for line in commands if "list:" in line]
    assert len(asked) < 12, asked


def test_who_may_see_all_with_a_secret(make_server: MakeServer) -> None:
    """A page is loaded with the token alone, as `tusd-py uploads --server` does."""
    server = make_server(*ADMIN, "--auth", "jwt", env={"TUSD_JWT_SECRET": SECRET})
    root = Operator(address_of(server), bearer(access("root", "uploads:admin")))
    create(server, "n", 5, b"hello", owner="alice")
    assert len(wait_listed(root, 1)["uploads"]) == 1
