"""Taking over from a killed server of version 0.1.0: uploads, events, jobs, schedules, tokens and indexes.

`0.1.0/` has what was left, and tells how it was made.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from tests.auth.people import ALL, SECRET, access, bearer
from tests.conftest import MakeServer
from tests.hooks.endpoint import Endpoint
from tests.support.files import files_below
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.server import PROGRAM, ServerProcess, environment
from tests.support.tus import Tus, id_of, metadata
from tests.support.waiting import wait_until
from tests.takeover.kept import Fixture, Kept, content

FIXTURE = Fixture(Path(__file__).with_name("0.1.0"))
ALONE = Fixture(Path(__file__).with_name("0.1.0") / "alone")
UPLOADS = FIXTURE.uploads()
AGE = 26 * 3600.0
"""Seconds for which nothing ran: everything scheduled is overdue, no upload of the default has expired."""
RESUMED = (
    *("plain", "begun", "interrupted", "deferred", "elsewhere", "verified", "unknown"),
    *("third part", "fourth part"),
)
"""Uploads that one test sends to their ends; the others are left for the tests that name them."""
ANNOUNCED = ("announced", "removed", "first part", "second part", "joined", "failed", "retried")
"""Uploads whose creation was delivered before."""
WAITING = {
    *((name, "post-create") for name in UPLOADS if name not in ANNOUNCED),
    *((name, "post-finish") for name in ("unannounced", "empty", "retried")),
    ("removed and unannounced", "post-terminate"),
}
"""Events that were left in the outbox."""
EVENTS = ("post-create", "post-finish", "post-terminate", "post-expire")
OLD_QUEUES = ("rq:queue:tusd-delivery", "rq:queue:tusd-expiry")
OLD_SCHEDULED = "rq:scheduler:scheduled_jobs"
SLOW = 60.0
"""Seconds for what several processes do in turn."""


@dataclass(frozen=True)
class Taken:
    """An instance of today on what was left."""

    server: ServerProcess
    redis: RedisServer | None
    endpoint: Endpoint
    tus: Tus

    def outbox(self, box: str = "outbox") -> list[Path]:
        return files_below(self.server.upload_dir / ".tusd-py" / box)

    def resume(self, upload: Kept) -> None:
        """Send the rest of an upload, as its client does with its upload token."""
        length = 3000 if upload.length is None else upload.length
        offset = self.offset(upload)
        headers = bearer(upload.token)
        if upload.length is None:
            headers["Upload-Length"] = str(length)
        rest = content(upload.name, length)[offset:]
        response = self.tus.patch(upload.path, offset, rest, headers=headers)
        assert (response.status, response["Upload-Offset"]) == (204, str(length)), upload.name

    def offset(self, upload: Kept) -> int:
        response = self.tus.head(upload.path, headers=bearer(upload.token))
        assert response.status == 200, (upload.name, response)
        return int(response["Upload-Offset"])

    def download(self, upload: Kept) -> bytes:
        response = self.tus.get(upload.path, headers=bearer(access(upload.owner)))
        assert response.status == 200, (upload.name, response)
        return response.body

    def create_again(self, upload: Kept, **claims: object) -> int:
        """The status of another creation with the same metadata and length."""
        headers = {
            **bearer(access(upload.owner, ALL, **claims)),
            "Upload-Metadata": metadata(filename=upload.name),
        }
        return self.tus.create(upload.length, headers=headers).status

    def delivered(self) -> set[tuple[str, str]]:
        """Names of uploads with the types of the events that were delivered."""
        names = {id_of(upload.path): upload.name for upload in UPLOADS.values()}
        return {
            (names[call.upload["ID"]], call.type)
            for call in self.endpoint.of(*EVENTS)
            if call.upload["ID"] in names
        }


def settings(redis: RedisServer | None, endpoint: Endpoint) -> dict[str, str]:
    """The environment of an instance; its server runs its own Redis, worker and scheduler if there is no `redis`."""
    return {
        **({"TUSD_JOBS": "auto"} if redis is None else {"TUSD_REDIS_URL": redis.url}),
        "TUSD_REDIS_TIMEOUT": "10s",
        "TUSD_AUTH": "jwt",
        "TUSD_JWT_SECRET": SECRET,
        "TUSD_DUPLICATES": "on",
        "TUSD_HOOKS_HTTP": endpoint.url,
        "TUSD_HOOKS_HTTP_TIMEOUT": "30s",
        "TUSD_HOOKS_ENABLED_EVENTS": ",".join(EVENTS),
    }


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    """A server, a worker and a scheduler on what was left a day ago."""
    place = tmp_path_factory.mktemp("taken")
    root = place / "uploads"
    with RedisServer(place / "redis") as redis, Endpoint() as endpoint:
        FIXTURE.lay_out(root, redis.client, AGE)
        env = settings(redis, endpoint)
        jobs: list[Job] = []
        with ServerProcess(root, "--sweep-interval", "1h", env=env) as server:
            for name in ("worker", "scheduler"):
                flags = ("--upload-dir", str(root), "--sweep-interval", "1s")
                jobs.append(Job(name, *flags, env=env))
            try:
                yield Taken(server, redis, endpoint, Tus(server))
            finally:
                for job in jobs:
                    job.close()


def test_unfinished_uploads_go_on_with_their_tokens_and_get_the_right_bytes(taken: Taken) -> None:
    for name in RESUMED:
        upload = UPLOADS[name]
        # Without its content, a marker does not tell how many bytes were verified.
        expected = 0 if name == "unknown" else upload.offset
        assert taken.offset(upload) == expected, name
        if upload.offset != upload.length:
            taken.resume(upload)
        whole = content(name, upload.length or 3000)
        assert taken.download(upload) == whole, name
    elsewhere = taken.server.upload_dir / "studies" / "elsewhere.bin"
    assert elsewhere.read_bytes() == content("elsewhere", 3000)
    pending = UPLOADS["pending"]

    def is_joined() -> bool:
        return taken.tus.head(pending.path, bearer(pending.token)).get("Upload-Offset") == "6000"

    wait_until(is_joined, "the final whose last part has come", SLOW)
    joined = content("third part", 3000) + content("fourth part", 3000)
    assert taken.download(pending) == joined


def test_finished_uploads_are_served(taken: Taken) -> None:
    for name in ("announced", "failed", "retried", "unannounced", "first part", "second part"):
        assert taken.download(UPLOADS[name]) == content(name, 3000), name
    joined = content("first part", 3000) + content("second part", 3000)
    assert taken.download(UPLOADS["joined"]) == joined


def test_events_that_were_left_are_delivered_and_no_others_again(taken: Taken) -> None:
    wait_until(lambda: taken.delivered() >= WAITING, "the events that were left", SLOW)
    wait_until(lambda: taken.outbox() == [], "an empty outbox", SLOW)
    again = {each for each in taken.delivered() if each[0] in ANNOUNCED} - WAITING
    assert again <= {("failed", "post-finish")}


def test_an_event_that_had_failed_is_delivered_on_request(taken: Taken) -> None:
    failed = UPLOADS["failed"]
    [kept] = taken.outbox("outbox-failed")
    assert id_of(failed.path) in kept.name
    flags = ("--upload-dir", str(taken.server.upload_dir))
    command = [*PROGRAM, "events", "replay", id_of(failed.path), *flags]
    env = environment(settings(taken.redis, taken.endpoint))
    subprocess.run(command, env=env, check=True, timeout=SLOW)
    wait_until(lambda: ("failed", "post-finish") in taken.delivered(), "its delivery", SLOW)
    wait_until(lambda: taken.outbox("outbox-failed") == [], "an empty outbox", SLOW)


def test_duplicates_are_refused(taken: Taken) -> None:
    for name in ("announced", "unannounced", "reserved"):
        assert taken.create_again(UPLOADS[name]) == 409, name
    reserved = UPLOADS["reserved"]
    taken.resume(reserved)
    assert taken.create_again(reserved) == 409
    assert taken.create_again(UPLOADS["removed"]) == 201


def test_removed_uploads_are_gone(taken: Taken) -> None:
    for name in ("removed", "removed and unannounced"):
        upload = UPLOADS[name]
        assert taken.tus.head(upload.path, headers=bearer(upload.token)).status == 410, name


def test_open_uploads_count(taken: Taken) -> None:
    first = UPLOADS["first of two"]
    third = Kept("third of two", "", "bob", 3000, 0, "")
    assert taken.create_again(third, max_open_uploads=2) == 429
    taken.resume(first)
    assert taken.create_again(third, max_open_uploads=2) == 201


def test_revocations_count(taken: Taken) -> None:
    revoked, mallorys = UPLOADS["revoked"], UPLOADS["of a revoked owner"]
    for upload in (revoked, mallorys):
        rest = content(upload.name, 3000)[1000:]
        response = taken.tus.patch(upload.path, 1000, rest, headers=bearer(upload.token))
        assert response.status == 401, (upload.name, response)
    rest = content("revoked", 3000)[1000:]
    assert taken.tus.patch(revoked.path, 1000, rest, headers=bearer(access())).status == 403


def test_upload_tokens_are_renewed(taken: Taken) -> None:
    upload = UPLOADS["second of two"]
    path = "/auth/refresh-upload-token"
    response = taken.tus.request("POST", path, {**bearer(upload.token), "Content-Length": "0"})
    assert response.status == 200, response
    renewed = json.loads(response.body)["upload_token"]
    assert taken.tus.head(upload.path, headers=bearer(renewed)).status == 200


def test_an_upload_that_has_expired_is_removed(taken: Taken) -> None:
    upload = UPLOADS["expiring"]
    wait_until(lambda: (upload.name, "post-expire") in taken.delivered(), "its removal", SLOW)
    assert taken.tus.head(upload.path, headers=bearer(upload.token)).status == 410


def test_nothing_is_left_in_the_old_queues(taken: Taken) -> None:
    assert taken.redis is not None
    client = taken.redis.client

    def left() -> list[bytes]:
        patterns = ("rq:job:*", *OLD_QUEUES, OLD_SCHEDULED)
        return [key for each in patterns for key in cast("list[bytes]", client.keys(each))]

    wait_until(lambda: not left(), "empty queues", SLOW)
    assert client.keys("tusd:rq:refused*") == []


def test_a_killed_server_is_replaced_at_once(make_server: MakeServer, tmp_path: Path) -> None:
    """Its locks have not expired yet, and bodies of requests are incomplete."""
    with RedisServer(tmp_path / "redis") as redis, Endpoint() as endpoint:
        FIXTURE.lay_out(tmp_path / "uploads", redis.client, age=0.0)
        env = settings(redis, endpoint)
        server = make_server(env=env, upload_dir=tmp_path / "uploads")
        taken = Taken(server, redis, endpoint, Tus(server))
        for name in ("interrupted", "verified"):
            # The lease runs out while the client is waiting for the lock.
            assert redis.client.pexpire(f"tusd:lock:{{{id_of(UPLOADS[name].path)}}}", 200)
            taken.resume(UPLOADS[name])
            assert taken.tus.stored(UPLOADS[name].path) == content(name, 60_000), name


def test_the_directory_alone_is_taken_over(make_server: MakeServer, tmp_path: Path) -> None:
    """Without the old Redis, indexes are lost, but no upload and no event."""
    with RedisServer(tmp_path / "redis") as lost, Endpoint() as endpoint:
        FIXTURE.lay_out(tmp_path / "uploads", lost.client, AGE)
        server = make_server(env=settings(None, endpoint), upload_dir=tmp_path / "uploads")
        taken = Taken(server, None, endpoint, Tus(server))
        for name in ("plain", "verified"):
            upload = UPLOADS[name]
            taken.resume(upload)
            assert taken.download(upload) == content(name, upload.length or 0), name
        removed = UPLOADS["removed"]
        assert taken.tus.head(removed.path, headers=bearer(removed.token)).status == 410
        wait_until(lambda: taken.delivered() >= WAITING, "the events that were left", SLOW)
        assert server.terminate() == 0


def test_an_instance_with_its_own_redis_is_taken_over(
    make_server: MakeServer, tmp_path: Path
) -> None:
    uploads = ALONE.uploads()
    with Endpoint() as endpoint:
        ALONE.lay_out(tmp_path / "uploads", None, AGE)
        server = make_server(env=settings(None, endpoint), upload_dir=tmp_path / "uploads")
        taken = Taken(server, None, endpoint, Tus(server))
        assert taken.create_again(uploads["announced"]) == 409
        taken.resume(uploads["plain"])
        assert taken.download(uploads["plain"]) == content("plain", 300_000)
        finished = {id_of(uploads[name].path) for name in ("retried", "plain")}
        endpoint.wait_for("post-finish", 2)
        assert {call.upload["ID"] for call in endpoint.of("post-finish")} == finished
        assert server.terminate() == 0
        assert "embedded redis emptied" not in server.log()
