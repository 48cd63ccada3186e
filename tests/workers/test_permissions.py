"""A Redis user with exactly the permissions that docs/state.md lists, and one with fewer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.delivery.test_processes import SLOW, finish, wait_for_type
from tests.hooks.endpoint import Endpoint
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.tus import Tus
from tests.support.waiting import wait_until
from tests.workers.commands import command, of
from tusd_py.redis import Keys, permissions

PAGE = Path(__file__).parents[2] / "docs" / "state.md"


def rule() -> list[str]:
    """The rule in the documentation."""
    found = re.search(r"^ACL SETUSER tusd (.*)$", PAGE.read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", tcp=True) as server:
        yield server


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as running:
        yield running


class Restricted:
    """A server, a worker and a scheduler with a restricted user."""

    def __init__(
        self, make_server: MakeServer, endpoint: Endpoint, redis: RedisServer, *more: str
    ) -> None:
        redis.command("ACL", "SETUSER", "tusd", *rule(), ">word", *more)
        redis.command("ACL", "LOG", "RESET")
        self.env = {
            "TUSD_REDIS_URL": f"redis://tusd:word@127.0.0.1:{redis.port}/0",
            "TUSD_DUPLICATES": "on",
            "TUSD_HOOKS_HTTP": endpoint.url,
            "TUSD_HOOKS_ENABLED_EVENTS": "post-create,post-finish,post-terminate",
        }
        quota = ("--quota-bytes", "1GB")
        self.server = make_server("--sweep-interval", "1h", *quota, env=self.env)
        where = (*of(self.server), "--sweep-interval", "1s")
        self.jobs = [Job(name, *where, env=self.env) for name in ("worker", "scheduler")]

    def close(self) -> list[str]:
        """End the jobs and return their output."""
        return [job.end()[1] for job in self.jobs]


def test_the_page_lists_every_command_that_is_needed() -> None:
    listed = {word[1:].upper() for word in rule() if word.startswith("+")}
    assert listed == permissions.commands(Keys()) | {"INFO", "SELECT"}


def test_the_user_of_the_page_is_enough(
    make_server: MakeServer, endpoint: Endpoint, redis: RedisServer
) -> None:
    house = Restricted(make_server, endpoint, redis)
    tus = Tus(house.server)
    # More than is left, and then nothing of its owner.
    large = tus.new(900_000_000)
    assert tus.create(900_000_000).status == 413
    assert tus.delete(large).status == 204
    first = finish(tus, {"Upload-Metadata": "filename YQ=="})
    wait_for_type(endpoint, first, "post-finish")
    assert tus.create(5, headers={"Upload-Metadata": "filename YQ=="}).status == 409
    path = tus.new(10)
    assert tus.patch(path, 0, b"hello").status == 204
    tus.delete(path)
    wait_for_type(endpoint, path, "post-terminate")
    swept = "tusd:{registry}:sweeps"
    wait_until(lambda: redis.command("HEXISTS", swept, "due") == 1, "a sweep by a worker", SLOW)
    status = command("status", *of(house.server), "--sweep-interval", "1s", env=house.env)
    assert "may not" not in status.stdout + status.stderr
    said = house.close()
    house.server.terminate()
    assert not any("NOPERM" in text for text in [*said, house.server.log()])
    # Older jobs are looked for where their keys would be, and what is refused there is no harm.
    entries = redis.client.acl_log()
    assert all(str(entry["object"]).startswith("rq:") for entry in entries), entries


@pytest.mark.parametrize(
    "lacks", ["-blpop", "-publish", "-zremrangebyrank", "-rename", "-script|load"]
)
def test_what_a_user_lacks_is_said_once_by_all(
    make_server: MakeServer, endpoint: Endpoint, redis: RedisServer, lacks: str
) -> None:
    house = Restricted(make_server, endpoint, redis, lacks)
    finish(Tus(house.server))
    wanted = f"command={lacks[1:].upper()}"
    house.server.wait_for_line(wanted, SLOW)
    status = command("status", *of(house.server), env=house.env)
    assert f"may not run {lacks[1:].upper()}" in status.stdout
    assert status.returncode == 1
    key = "tusd:{registry}:scheduler"
    wait_until(lambda: redis.command("EXISTS", key) == 1, "the scheduler", SLOW)
    wait_until(lambda: b"worker" in b"".join(names(redis)), "the worker", SLOW)
    for text in house.close():
        assert text.count(wanted) == 1, text
        assert "NOPERM" in text
        assert "Traceback" not in text
    house.server.terminate()
    assert house.server.log().count(wanted) == 1


def names(redis: RedisServer) -> list[bytes]:
    found = redis.command("KEYS", "tusd:rq:worker*")
    assert isinstance(found, list)
    return found


def test_keys_of_others_are_said_too(
    make_server: MakeServer, endpoint: Endpoint, redis: RedisServer
) -> None:
    """The prefix of the page, but another one in the settings."""
    redis.command("ACL", "SETUSER", "tusd", *rule(), ">word")
    url = f"redis://tusd:word@127.0.0.1:{redis.port}/0"
    env = {"TUSD_REDIS_URL": url, "TUSD_REDIS_PREFIX": "other:", "TUSD_DUPLICATES": "on"}
    server = make_server(env=env)
    server.wait_for_line("NOPERM", SLOW)
    status = command("status", *of(server), env=env)
    assert (status.returncode, "NOPERM GET" in status.stderr) == (1, True), status.stderr
