"""`tusd-py duplicates`: listing and forgetting, with the server running and stopped."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support import commands
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until


def command(*words: str, redis_url: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {"TUSD_REDIS_URL": redis_url} if redis_url else {}
    return commands.run("duplicates", *words, env=env)


def listed(*words: str, redis_url: str | None = None) -> list[dict[str, str]]:
    done = command("list", "--json", *words, redis_url=redis_url)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(server: ServerProcess) -> tuple[str, str]:
    """The flags by which the command finds what a server remembers."""
    return "--upload-dir", str(server.upload_dir)


def study(number: int) -> dict[str, str]:
    return {"Upload-Metadata": metadata(study=str(number))}


def wait_for_record(server: ServerProcess, state: str) -> dict[str, str]:
    wait_until(lambda: [each["state"] for each in listed(*of(server))] == [state], state)
    [record] = listed(*of(server))
    return record


def test_list_show_and_forget(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    path = tus.finished(b"x" * 10, headers=study(17))
    record = wait_for_record(server, "complete")
    assert record["upload"] == id_of(path)
    assert record["owner"] == ""
    created, completed, expires = (
        datetime.strptime(record[name], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        for name in ("created", "completed", "expires")
    )
    assert created <= completed <= datetime.now(UTC)
    assert (expires - completed).days == 30

    for name in (record["upload"], record["fingerprint"]):
        done = command("show", *of(server), name)
        assert (done.returncode, done.stderr) == (0, "")
        head, row = done.stdout.splitlines()
        assert head.split() == ["FINGERPRINT", "STATE", "UPLOAD", "OWNER", "SINCE", "UNTIL"]
        assert row.split() == [
            record["fingerprint"],
            "complete",
            record["upload"],
            "-",
            record["completed"],
            record["expires"],
        ]

    assert tus.create(10, headers=study(17)).status == 409
    done = command("forget", record["upload"], *of(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert record["upload"] in done.stdout
    assert listed(*of(server)) == []
    assert tus.create(10, headers=study(17)).status == 201
    assert tus.get(path).body == b"x" * 10


@pytest.mark.parametrize("end", ["terminate", "kill9"])
def test_it_works_while_the_server_is_stopped(make_server: MakeServer, end: str) -> None:
    server = make_server()
    tus = Tus(server)
    tus.finished(b"x" * 10, headers=study(17))
    record = wait_for_record(server, "complete")
    if end == "terminate":
        server.terminate()
    else:
        server.kill9()
    assert listed(*of(server)) == [record]
    assert command("forget", record["fingerprint"], *of(server)).returncode == 0
    assert listed(*of(server)) == []
    server.restart()
    tus.new(10, headers=study(17))


def test_by_an_id_only_that_upload_is_forgotten(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    first = tus.finished(b"x" * 10, headers=study(17))
    second = tus.new(10, headers=study(17) | {"Upload-Force": "true"})
    done = command("forget", id_of(second), *of(server))
    assert done.returncode == 0
    assert [each["upload"] for each in listed(*of(server))] == [id_of(first)]


def test_in_the_redis_of_the_operator(make_server: MakeServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", password="se cr/et?") as redis:
        for prefix in ("a:", "b:"):
            server = make_server(
                env={"TUSD_REDIS_URL": redis.url, "TUSD_REDIS_PREFIX": prefix},
            )
            Tus(server).new(10, headers=study(17))
            server.terminate()
        [record] = listed("--redis-prefix", "a:", redis_url=redis.url)
        assert (
            command(
                "forget", record["upload"], "--redis-prefix", "b:", redis_url=redis.url
            ).returncode
            == 1
        )
        assert len(listed("--redis-prefix", "b:", redis_url=redis.url)) == 1


def test_pages_and_a_limit(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        for number in range(1500):
            document = {
                "upload": f"u{number}",
                "owner": "me \u009b \n",
                "final": False,
                "state": "pending",
                "token": str(number),
                "created": 1_764_000_000_000,
                "completed": None,
                "expires": 4_000_000_000_000,
            }
            redis.command("SET", f"tusd:duplicate:{{{number:064x}}}", json.dumps([document]))
        assert {each["upload"] for each in listed(redis_url=redis.url)} == {
            f"u{number}" for number in range(1500)
        }
        assert len(listed("--limit", "7", redis_url=redis.url)) == 7
        done = command("list", "--limit", "1", redis_url=redis.url)
        assert len(done.stdout.splitlines()) == 2
        assert all(
            character.isprintable() for line in done.stdout.splitlines() for character in line
        )
        found = command("show", "u1499", "u3", redis_url=redis.url)
        assert len(found.stdout.splitlines()) == 3


def test_what_is_not_remembered(make_server: MakeServer) -> None:
    server = make_server()
    for words in (("show", "nothing"), ("forget", "5" * 64)):
        done = command(*words, *of(server))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f'tusd-py duplicates: no fingerprint is stored for "{words[1]}"\n'


def test_a_directory_that_is_no_instance(tmp_path: Path) -> None:
    done = command("list", "--upload-dir", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "there is no Redis in" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_redis_that_is_away(tmp_path: Path) -> None:
    url = f"unix://:secret@{tmp_path}/none.sock"
    done = command("list", redis_url=url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Redis is away" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "no action was given; give list, show or forget"),
        (("lst",), '"lst" is no action; give list, show or forget; did you mean list?'),
        (("list", "x"), 'unexpected argument "x"'),
        (("show",), "give fingerprints or upload ids to show"),
        (("forget", "--json"), "give fingerprints or upload ids to forget"),
        (("list", "--limit", "many"), '--limit "many": give a whole number'),
        (("list", "--redis-url", "http://x"), "--redis-url"),
    ],
)
def test_mistakes(words: tuple[str, ...], problem: str) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr


def test_help() -> None:
    done = command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: tusd-py duplicates list | show NAME... | forget NAME...")
    assert "--redis-url" in done.stdout
