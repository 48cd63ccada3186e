"""HEAD during temporary failures: 423 with Retry-After, so that clients do not send the whole file again."""

from __future__ import annotations

import time
from http import HTTPStatus
from pathlib import Path

import jwt
import pytest

from tests.auth.people import bearer, claims
from tests.auth.test_verify import KEYS
from tests.conftest import MakeServer
from tests.support.bucket import files_only
from tests.support.events import Recorder
from tests.support.redis import RedisServer
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response
from tusd_py.protocol import errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.redis import Keys


def is_to_be_repeated(response: Response) -> bool:
    """True if a client waits and asks again."""
    return response.status == 423 and int(response["Retry-After"]) > 0


def hook_file(directory: Path, event: str) -> tuple[Path, Path]:
    """A hook for `event` that does what stands in a file: nothing, `raise …`. Returns both."""
    steering = directory / "steering"
    steering.write_text("")
    code = directory / "steered_hook.py"
    code.write_text(
        "from pathlib import Path\n"
        "from tusd_py.events.model import Reject\n"
        f"def {event}(event):\n"
        f"    exec(Path({str(steering)!r}).read_text())\n"
    )
    return code, steering


@files_only("takes a directory away")
def test_T39_an_id_in_a_directory_whose_volume_is_away(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """Nobody can tell whether there is such an upload; one in a directory that never was there is unknown."""
    hook = tmp_path / "volumes.py"
    hook.write_text(
        "from tusd_py import Changes\n"
        "def pre_create(event):\n"
        "    return Changes(id='volume/' + event.upload.id)\n"
    )
    server = make_server("--hook", str(hook))
    tus = Tus(server)
    path = tus.new(10)
    assert tus.patch(path, 0, b"hello").status == 204
    volume, aside = server.upload_dir / "volume", tmp_path / "aside"
    # No record is in the memory of the new process, and the place of the volume is empty.
    server.terminate()
    volume.rename(aside)
    volume.mkdir()
    server.restart()
    assert is_to_be_repeated(tus.head(path))
    for refused in (tus.patch(path, 5, b"world"), tus.delete(path), tus.get(path)):
        assert (refused.status, int(refused["Retry-After"]) > 0) == (503, True)
    assert tus.head("/files/elsewhere/x").status == 404
    volume.rmdir()
    aside.rename(volume)
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, b"world").status == 204


FAILURES = ["raise RuntimeError('down')", "raise Reject(503, 'later')", "raise Reject(500)"]


@pytest.mark.parametrize("failure", FAILURES)
def test_T39_a_pre_access_hook_that_fails(
    make_server: MakeServer, tmp_path: Path, failure: str
) -> None:
    code, steering = hook_file(tmp_path, "pre_access")
    tus = Tus(make_server("--hook", str(code)))
    path = tus.new(10)
    tus.patch(path, 0, b"hello")
    steering.write_text(failure)
    assert is_to_be_repeated(tus.head(path))
    steering.write_text("")
    assert tus.offset(path) == 5


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429])
def test_a_refusal_that_a_hook_means_stays(
    make_server: MakeServer, tmp_path: Path, status: int
) -> None:
    code, steering = hook_file(tmp_path, "pre_access")
    tus = Tus(make_server("--hook", str(code)))
    path = tus.new(10)
    steering.write_text(f"raise Reject({status}, 'no', {{'Retry-After': '7'}})")
    answer = tus.head(path)
    assert (answer.status, answer["Retry-After"]) == (status, "7")


def test_T39_a_hook_says_when_to_come_back(make_server: MakeServer, tmp_path: Path) -> None:
    code, steering = hook_file(tmp_path, "pre_access")
    tus = Tus(make_server("--hook", str(code)))
    path = tus.new(10)
    steering.write_text("raise Reject(502, 'no', {'retry-after': '77', 'Content-Type': 'a/b'})")
    answer = tus.head(path)
    assert (answer.status, answer["Retry-After"]) == (423, "77")


@pytest.mark.parametrize("failure", FAILURES)
def test_T39_a_pre_finish_hook_that_fails(
    make_server: MakeServer, tmp_path: Path, failure: str
) -> None:
    code, steering = hook_file(tmp_path, "pre_finish")
    tus = Tus(make_server("--hook", str(code)))
    path = tus.new(5)
    steering.write_text(failure)
    assert tus.patch(path, 0, b"hello").status in {500, 503}
    assert is_to_be_repeated(tus.head(path))
    steering.write_text("raise Reject(422, 'a virus')")
    assert tus.head(path).status == 422
    steering.write_text("")
    assert tus.offset(path) == 5
    assert tus.get(path).body == b"hello"


@files_only("takes a directory away")
def test_T39_a_store_that_fails_while_a_final_is_joined(tus: Tus) -> None:
    part = tus.new(5, headers={"Upload-Concat": "partial"})
    created = tus.create(headers={"Upload-Concat": f"final;{part}"})
    final = path_of(created["Location"])
    new = tus.server.upload_dir / ".tusd-py" / "new"
    moved = new.rename(new.with_name("new-elsewhere"))
    new.write_bytes(b"no directory")
    try:
        assert tus.patch(part, 0, b"hello").status == 204
        assert is_to_be_repeated(tus.head(final))
    finally:
        new.unlink()
        moved.rename(new)
    wait_until(lambda: tus.head(final).get("Upload-Offset") == "5", "the final")
    assert tus.get(final).body == b"hello"


def test_T39_keys_that_cannot_be_had(make_server: MakeServer) -> None:
    tus = Tus(make_server("--auth", "jwt", "--jwt-jwks", "http://127.0.0.1:1/keys"))
    key = KEYS["ES256"][0]
    token = bearer(jwt.encode(claims(), key, "ES256", headers={"kid": "k1"}))
    assert tus.create(5, headers=token).status == 503
    assert is_to_be_repeated(tus.head(f"{tus.collection}{'0' * 32}", token))


REFUSALS = {
    name: row
    for name, row in vars(errors).items()
    if isinstance(row, errors.Refusal | errors.RefusalWith)
}


def refuse(row: errors.Refusal | errors.RefusalWith[int]) -> ProtocolError:
    return row() if isinstance(row, errors.Refusal) else row(5)


@pytest.mark.parametrize("name", REFUSALS)
def test_T39_no_refusal_of_ours_reaches_a_head_as_5xx(name: str) -> None:
    problem = refuse(REFUSALS[name])
    answer = errors.answer_to_head(problem)
    may_pass = problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and name != "damaged"
    if may_pass or name == "interrupted":
        assert (answer.status, "Retry-After" in answer.headers) == (423, True)
        assert answer.headers["Retry-After"] == problem.headers.get("Retry-After", "5")
        assert answer.code == problem.code
    else:
        assert answer is problem


def test_the_table_of_refusals_is_found() -> None:
    assert {"interrupted", "damaged", "insufficient_storage"} <= REFUSALS.keys()


def test_what_is_complete_and_not_finished_is_due_soon(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """Killed in the middle of the finish: the due-index has it for the next sweep, not for the end of its expiry."""
    recorder = Recorder(tmp_path)
    with RedisServer(tmp_path / "redis") as redis:
        server = make_server(*recorder.flags, env={**recorder.env, "TUSD_REDIS_URL": redis.url})
        tus = Tus(server)
        path = tus.new(5)
        recorder.hold_pre_finish()
        key = Keys("tusd:").registry

        def is_due_soon() -> bool:
            score = redis.command("ZSCORE", key, id_of(path))
            return isinstance(score, float) and score < time.time() + 120

        wait_until(lambda: redis.command("ZSCORE", key, id_of(path)) is not None, "the index")
        assert not is_due_soon()
        with tus.begin_patch(path, 0, 5, b"hello"):
            recorder.wait_for("pre-finish", id_of(path))
            wait_until(is_due_soon, "the index")
            server.kill9()
