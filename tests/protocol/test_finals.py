"""Finals beyond joining: the life of parts, repeated creations, the limit of copied bytes."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.bucket import files_only
from tests.support.events import Recorder
from tests.support.files import files_below
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response

PARTIAL = {"Upload-Concat": "partial"}
DAY = 86_400.0


def join(tus: Tus, *parts: str, **headers: str) -> Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return tus.create(headers={"Upload-Concat": f"final;{' '.join(parts)}", **given})


def age(server: ServerProcess, path: str, days: float) -> None:
    """Makes an upload look as if its last byte had come so many days ago."""
    then = time.time() - days * DAY
    record = server.info_file(id_of(path))
    text = re.sub(r'"CreatedAt":[0-9.]+', f'"CreatedAt":{then!r}', record.read_text())
    record.write_text(text)
    data = server.data_file(id_of(path))
    if data.exists():
        os.utime(data, (then, then))


# -- how long parts live -------------------------------------------------------------------------


@files_only("sets the times of files")
def test_a_complete_part_lives_as_long_as_a_final_that_lists_it(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    old, young = tus.finished(b"hello ", PARTIAL), tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, old, young)["Location"])
    for path in (old, final):
        age(server, path, 8)
    age(server, young, 6)
    heads = {path: tus.head(path) for path in (old, young, final)}
    assert {head.status for head in heads.values()} == {200}
    assert len({head["Upload-Expires"] for head in heads.values()}) == 1
    # The sweep sees it alike.
    server.terminate()
    server.restart()
    tus.new(1)
    assert tus.patch(young, 0, b"world").status == 204
    wait_until(lambda: tus.head(final).get("Upload-Offset") == "11", "the final")
    assert tus.get(final).body == b"hello world"


@files_only("sets the times of files")
def test_an_unfinished_part_lives_as_long_as_a_final_that_grows(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    waiting, growing = tus.new(5, headers=PARTIAL), tus.new(9, headers=PARTIAL)
    final = path_of(join(tus, waiting, growing)["Location"])
    for path in (waiting, growing, final):
        age(server, path, 6.9)
    before = tus.head(final)["Upload-Expires"]
    assert tus.patch(growing, 0, b"abc").status == 204
    after = {tus.head(path)["Upload-Expires"] for path in (waiting, growing, final)}
    assert len(after) == 1
    assert after != {before}
    age(server, waiting, 8)
    assert tus.patch(waiting, 0, b"hello").status == 204


@files_only("sets the times of files")
def test_all_go_together_when_all_is_abandoned(make_server: MakeServer) -> None:
    server = make_server()
    tus = Tus(server)
    complete, begun = tus.finished(b"hello ", PARTIAL), tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, complete, begun)["Location"])
    alone = tus.finished(b"alone", PARTIAL)
    everything = (complete, begun, final, alone)
    for path in everything:
        age(server, path, 8)
    assert [tus.head(path).status for path in everything] == [410] * 4
    server.terminate()
    server.restart()
    wait_until(lambda: not server.uploads(), "the sweep")
    awaiting = server.upload_dir / ".tusd-py" / "awaiting"
    wait_until(lambda: not files_below(awaiting), "the claims")


def test_a_final_whose_part_was_removed_is_gone(tus: Tus) -> None:
    part, other = tus.new(5, headers=PARTIAL), tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, part, other)["Location"])
    assert tus.delete(part).status == 204
    assert tus.head(final).status == 410
    assert join(tus, part, other, Upload_Metadata="a").status == 404
    assert tus.delete(final).status == 204


@pytest.mark.parametrize("joined_by", ["head", "creation"])
def test_a_part_that_may_still_lose_its_last_request_is_not_joined(
    tus: Tus, joined_by: str
) -> None:
    """All its bytes are there, and then the request turns out to bring more than the part has room for."""
    part = tus.new(10, headers=PARTIAL)
    final = path_of(join(tus, part)["Location"]) if joined_by == "head" else ""
    with tus.begin_patch(part, 0, None, b"0123456789") as patch:
        patch.wait_stored()
        if joined_by == "creation":
            final = path_of(join(tus, part)["Location"])
        assert "Upload-Offset" not in tus.head(final)
        patch.send(b"x")
        assert patch.response().status == 413
    assert tus.patch(part, 0, b"abcdefghij").status == 204
    wait_until(lambda: tus.head(final).get("Upload-Offset") == "10", "the final")
    assert tus.get(final).body == tus.get(part).body == b"abcdefghij"


@files_only("writes a data file")
def test_a_part_whose_finish_was_cut_off_is_finished_by_its_final(
    make_server: MakeServer,
) -> None:
    server = make_server()
    tus = Tus(server)
    part = tus.new(5, headers=PARTIAL)
    # As after a crash between its last byte and its finish.
    server.data_file(id_of(part)).write_bytes(b"hello")
    final = path_of(join(tus, part)["Location"])
    # The first sweep of the server may be finishing the part at this moment, and then has the final joined.
    wait_until(lambda: tus.head(final).get("Upload-Offset") == "5", "the final")
    assert tus.get(final).body == tus.get(part).body == b"hello"


@files_only("moves a record away")
def test_a_final_whose_part_cannot_be_found_tells_what_is_known(tus: Tus) -> None:
    part = tus.new(5, headers=PARTIAL)
    final = path_of(join(tus, part)["Location"])
    file = tus.server.info_file(id_of(part))
    moved = file.rename(file.with_name("elsewhere"))
    head = tus.head(final)
    assert (head.status, "Upload-Offset" in head) == (200, False)
    moved.rename(file)
    assert tus.patch(part, 0, b"hello").status == 204
    wait_until(lambda: tus.head(final).get("Upload-Offset") == "5", "the final")


# -- creations that are repeated -----------------------------------------------------------------


def test_the_creation_of_a_final_can_be_repeated(make_server: MakeServer, tmp_path: Path) -> None:
    """Joined and announced once, though everything is checked for duplicates."""
    recorder = Recorder(tmp_path)
    with RedisServer(tmp_path / "redis") as redis:
        env = {**recorder.env, "TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url}
        server = make_server(*recorder.flags, "--hooks-delivery", "server", env=env)
        tus = Tus(server)
        parts = [tus.finished(b"hello ", PARTIAL), tus.new(5, headers=PARTIAL)]
        told = {"Upload_Metadata": metadata(study="4711")}
        first = join(tus, *parts, **told)
        repeats = [join(tus, *parts, **told)]
        tus.patch(parts[1], 0, b"world")
        final = path_of(first["Location"])
        wait_until(lambda: tus.head(final).get("Upload-Offset") == "11", "the final")
        repeats.append(join(tus, *parts, **told))
        for part in parts:
            assert tus.delete(part).status == 204
        server.kill9()
        server.restart()
        repeats.append(join(tus, *parts, **told))
        assert [again.status for again in repeats] == [201] * 3
        assert {path_of(again["Location"]) for again in repeats} == {final}
        assert all("Upload-Expires" in again for again in repeats[:1])
        types = recorder.types(id_of(final))
        assert {kind: types.count(kind) for kind in set(types) if kind.startswith("post")} == {
            "post-create": 1,
            "post-finish": 1,
        }


def test_two_creations_of_a_final_at_once_are_one(make_server: MakeServer, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_DUPLICATES": "on", "TUSD_REDIS_URL": redis.url}
        servers = [Tus(make_server(env=env, upload_dir=shared)) for _ in range(2)]
        tus = servers[0]
        for number in range(5):
            parts = [tus.finished(b"x" * 300_000, PARTIAL) for _ in range(3)]
            told = metadata(study=str(number))

            def create(which: int, parts: list[str] = parts, told: str = told) -> Response:
                return join(servers[which % 2], *parts, Upload_Metadata=told)

            with ThreadPoolExecutor(6) as threads:
                answers = list(threads.map(create, range(6)))
            assert {answer.status for answer in answers} == {201}
            assert len({id_of(path_of(answer["Location"])) for answer in answers}) == 1


def test_other_parts_order_or_metadata_make_another_final(tus: Tus) -> None:
    a, b = tus.finished(b"a", PARTIAL), tus.finished(b"b", PARTIAL)
    made = [
        join(tus, a, b),
        join(tus, b, a),
        join(tus, a, b, b),
        join(tus, a, b, Upload_Metadata=metadata(x="1")),
        join(tus, a, b, Upload_Metadata=metadata(x="2")),
    ]
    assert len({path_of(each["Location"]) for each in made}) == 5
    # The order of keys says nothing.
    one = join(tus, a, Upload_Metadata=metadata(x="1", y="2"))
    other = join(tus, a, Upload_Metadata=metadata(y="2", x="1"))
    assert one["Location"] == other["Location"]


def test_a_final_that_was_removed_is_created_anew(tus: Tus) -> None:
    part = tus.finished(b"hello", PARTIAL)
    first = path_of(join(tus, part)["Location"])
    assert tus.delete(first).status == 204
    second = path_of(join(tus, part)["Location"])
    assert second != first
    assert tus.get(second).body == b"hello"


def test_a_hook_that_refuses_refuses_repeats_too(make_server: MakeServer, tmp_path: Path) -> None:
    hook = tmp_path / "guard.py"
    hook.write_text(
        "from tusd_py.events.model import Reject\n"
        "def pre_create(event):\n"
        "    if 'x-guest' in event.request.headers:\n"
        "        raise Reject(403, 'no')\n"
    )
    tus = Tus(make_server("--hook", str(hook)))
    part = tus.finished(b"hello", PARTIAL)
    assert join(tus, part).status == 201
    refused = join(tus, part, X_Guest="1")
    assert (refused.status, "Location" in refused) == (403, False)


# -- what a request may have copied --------------------------------------------------------------


def test_what_repeated_parts_add_is_bounded(make_server: MakeServer) -> None:
    tus = Tus(make_server("--max-concat-repeats", "20B"))
    part, other = tus.finished(b"0123456789", PARTIAL), tus.finished(b"abcde", PARTIAL)
    before = tus.data_files()
    refused = join(tus, *[part] * 4)
    assert (refused.status, refused.code) == (413, "ERR_MAX_SIZE_EXCEEDED")
    assert join(tus, part, part, other, other, other, part).status == 413
    assert tus.data_files() == before
    final = path_of(join(tus, part, part, other, part)["Location"])
    assert len(tus.get(final).body) == 35
    late = tus.new(None, headers=PARTIAL)
    waiting = path_of(join(tus, *[late] * 4)["Location"])
    tus.patch(late, 0, b"0123456789", {"Upload-Length": "10"})
    assert tus.head(waiting).status == 413


def test_a_hundred_finals_may_wait_for_one_part(tus: Tus) -> None:
    """Each request for the part looks at all of them."""
    part = path_of(tus.create(5, headers=PARTIAL)["Location"])
    first = join(tus, part, Upload_Metadata=metadata(n="0"))
    for number in range(1, 100):
        assert join(tus, part, Upload_Metadata=metadata(n=str(number))).status == 201
    other = tus.finished(b"x", PARTIAL)
    refused = join(tus, other, part, Upload_Metadata=metadata(n="more"))
    assert (refused.status, refused.code) == (400, "ERR_INVALID_CONCAT")
    assert "100" in refused.text
    # One of these can still be asked for, given up and replaced.
    assert join(tus, part, Upload_Metadata=metadata(n="0"))["Location"] == first["Location"]
    assert tus.delete(path_of(first["Location"])).status == 204
    assert join(tus, part, Upload_Metadata=metadata(n="more")).status == 201
    assert tus.patch(part, 0, b"hello").status == 204
    wait_until(lambda: join(tus, part).status == 201, "nothing waits for the part")


def test_of_finals_with_many_parts_fewer_may_wait_for_one(tus: Tus) -> None:
    part = path_of(tus.create(1, headers=PARTIAL)["Location"])
    for number in range(4):
        assert join(tus, *[part] * 5_000, Upload_Metadata=metadata(n=str(number))).status == 201
    refused = join(tus, *[part] * 5_000, Upload_Metadata=metadata(n="more"))
    assert (refused.status, refused.code) == (400, "ERR_INVALID_CONCAT")
    assert join(tus, *[part] * 100, Upload_Metadata=metadata(n="short")).status == 201


def test_by_default_one_part_cannot_be_named_for_gigabytes(tus: Tus) -> None:
    part = tus.finished(b"x" * (1 << 20), PARTIAL)
    assert join(tus, *[part] * 1026).status == 413


# -- parts that go when joined -------------------------------------------------------------------

REMOVING = ("--remove-parts-when-joined", "--hooks-delivery", "server")


def test_parts_are_removed_when_the_last_final_is_finished(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hook = tmp_path / "record.py"
    notes = tmp_path / "notes"
    notes.touch()
    hook.write_text(
        "def post_expire(event):\n"
        f"    with open({str(notes)!r}, 'a') as file: file.write(event.upload.id + '\\n')\n"
    )
    server = make_server(*REMOVING, "--hook", str(hook))
    tus = Tus(server)
    a, b, late = (
        tus.finished(b"a", PARTIAL),
        tus.finished(b"b", PARTIAL),
        tus.new(1, headers=PARTIAL),
    )
    waiting = path_of(join(tus, a, late)["Location"])
    first = path_of(join(tus, a, b, a)["Location"])
    assert tus.get(first).body == b"aba"
    wait_until(lambda: tus.head(b).status == 410, "the removal")
    assert tus.head(a).status == 200
    assert tus.patch(late, 0, b"c").status == 204
    wait_until(lambda: tus.head(waiting).get("Upload-Offset") == "2", "the final")
    wait_until(lambda: set(server.uploads()) == {id_of(first), id_of(waiting)}, "the removals")
    assert tus.get(waiting).body == b"ac"
    assert join(tus, a).status == 404
    # Whose answer was lost can ask again all the same.
    assert path_of(join(tus, a, b, a)["Location"]) == first
    wait_until(lambda: len(notes.read_text().split()) >= 3, "the events")
    assert sorted(notes.read_text().split()) == sorted(map(id_of, (a, b, late)))


def test_parts_of_a_final_that_died_before_their_removal_go_later(
    make_server: MakeServer, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    server = make_server(*REMOVING, *recorder.flags, env=recorder.env)
    tus = Tus(server)
    part = tus.finished(b"hello", PARTIAL)
    recorder.hold_pre_finish()
    with tus.connect() as connection:
        value = {"Upload-Concat": f"final;{part}", "Tus-Resumable": "1.0.0", "Content-Length": "0"}
        connection.send_head("POST", tus.collection, value)
        wait_until(lambda: any(e.type == "pre-finish" for e in recorder.events()), "the hook")
        # Joined and not finished: the part has to stay.
        assert tus.head(part).status == 200
        server.kill9()
    recorder.hold.unlink()
    server.restart()
    wait_until(lambda: id_of(part) not in server.uploads(), "the sweep")
    final = server.uploads()[0]
    assert tus.get(tus.collection + final).body == b"hello"


def test_parts_stay_as_a_rule(tus: Tus) -> None:
    part = tus.finished(b"hello", PARTIAL)
    final = path_of(join(tus, part)["Location"])
    assert tus.get(final).status == 200
    assert tus.head(part).status == 200
    assert tus.info(final)["IsFinal"]


@files_only("looks for keys of finals in their directory")
@pytest.mark.parametrize("size", [0, 1])
def test_a_final_that_fails_leaves_no_key(make_server: MakeServer, size: int) -> None:
    server = make_server("--max-size", "10B")
    tus = Tus(server)
    part = tus.finished(b"x" * (6 + size), PARTIAL)
    assert join(tus, part, part).status == 413
    assert list((server.upload_dir / ".tusd-py" / "finals").iterdir()) == []
