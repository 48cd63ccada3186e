"""UploadManager under Node against a server process: uploads, and their behaviour on failures."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.auth.people import SECRET, access, bearer
from tests.clients.content import MIB, SourceFile, sha256_of_file
from tests.clients.stalls import stalled_links
from tests.conftest import MakeServer
from tests.frontend.conftest import MakeSource, RunManaged
from tests.frontend.managed import Job, ManagedUploads, Options
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.redis import RedisServer
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until

SOON: dict[str, int] = {"min": 50, "max": 400}
STALLING = Plan(up=Way(stall_after=MIB))
HEADS = MIB // 16


def job(source: SourceFile, endpoint: str, **options: object) -> Job:
    """One upload; `options` are the manager's."""
    merged = {"endpoint": endpoint, "retry": SOON, **options}
    return {
        "files": [str(source.path)],
        "accessTokens": [access()],
        "options": Options(**merged),  # type: ignore[typeddict-item]
    }


def assert_stored(server: ServerProcess, url: str, source: SourceFile) -> None:
    assert sha256_of_file(server.data_file(id_of(path_of(url)))) == source.sha256


def begun(
    managed: RunManaged, server: ServerProcess, proxy: FaultProxy, what: Job
) -> tuple[ManagedUploads, str]:
    """A run whose upload stands still in the middle, and the upload's id; what comes next passes the proxy untouched."""
    before = set(Tus(server).data_files())

    def has_some(upload_id: str) -> bool:
        # All but the requests' heads, which have come this way, too.
        return server.data_file(upload_id).stat().st_size >= MIB - HEADS

    run = managed(what)
    stalled_links(proxy)
    wait_until(
        lambda: any(map(has_some, set(Tus(server).data_files()) - before)),
        "all that came to be stored",
        60,
    )
    [upload_id] = set(Tus(server).data_files()) - before
    proxy.heal()
    return run, upload_id


def test_an_upload(guarded: ServerProcess, managed: RunManaged, make_source: MakeSource) -> None:
    source = make_source(1_500_000)
    with FaultProxy(guarded.address, default=Plan(up=Way(delay=0.1))) as proxy:
        run = managed(job(source, proxy.url()))
        [url] = run.succeed().values()
    assert run.states() == ["queued", "uploading", "completed"]
    assert_stored(guarded, url, source)
    told = run.all("progress")
    sent = [event["sent"] for event in told]
    assert sent == sorted(sent)
    assert (sent[-1], told[-1]["total"]) == (source.size, source.size)
    rates = [event["bytesPerSecond"] for event in told[:-1] if event["bytesPerSecond"] is not None]
    # Bytes a second, and not a millisecond or a minute; how many is up to the machine.
    assert 5_000 < rates[-1] < 50_000_000
    assert Tus(guarded).info(path_of(url))["MetaData"] == {"filename": "source.bin"}


def test_a_server_without_tokens(
    server: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(3 * MIB)
    what = job(source, server.url, chunkSize=MIB)
    what["accessTokens"] = []
    [url] = managed(what).succeed().values()
    assert_stored(server, url, source)


def test_an_empty_file(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(0)
    [url] = managed(job(source, guarded.url)).succeed().values()
    assert_stored(guarded, url, source)


def test_pause_and_resume(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        run, _ = begun(managed, guarded, proxy, job(source, proxy.url()))
        run.tell("pause")
        run.wait_state("paused")
        run.tell("resume")
        [url] = run.succeed().values()
        sent = sum(link.up_bytes for link in proxy.links)
    assert run.states() == ["queued", "uploading", "paused", "queued", "uploading", "completed"]
    assert_stored(guarded, url, source)
    assert sent < source.size + MIB // 2, "bytes that had arrived were sent again"


def test_a_pause_ends_the_request(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(8 * MIB)
    with FaultProxy(guarded.address, default=Plan(up=Way(rate=1_000_000))) as proxy:
        run = managed(job(source, proxy.url()))
        run.wait_for("progress", lambda event: event["sent"] > MIB // 2)
        run.tell("pause")
        run.wait_state("paused")
        link = proxy.link(0)
        link.wait("closed")
        assert link.up_bytes < source.size


def test_a_new_process_goes_on_where_the_last_one_was_killed(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(source, proxy.url())
        what["store"] = str(tmp_path / "uploads.json")
        run, upload_id = begun(managed, guarded, proxy, what)
        run.kill()
        idle = managed({**what, "files": []})
        idle.tell("list")
        [left] = idle.wait_for("listed")["uploads"]
        stranger = managed(
            {**job(source, proxy.url(), namespace="bob"), "store": what["store"], "files": []}
        )
        stranger.tell("list")
        assert stranger.wait_for("listed")["uploads"] == []
        assert (left["name"], left["size"]) == (source.path.name, source.size)
        assert left["url"].endswith(upload_id)
        [url] = managed(what).succeed().values()
        sent = sum(link.up_bytes for link in proxy.links)
        idle.tell("list")
        assert idle.wait_for("listed", count=2)["uploads"] == []
    assert url == left["url"]
    assert_stored(guarded, url, source)
    assert sent < source.size + MIB // 2, "bytes that had arrived were sent again"


def test_what_the_server_removed_in_the_meantime_begins_anew(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(source, proxy.url())
        what["store"] = str(tmp_path / "uploads.json")
        run, upload_id = begun(managed, guarded, proxy, what)
        run.kill()
        path = f"{guarded.base_path}{upload_id}"
        assert Tus(guarded).delete(path, bearer(access())).status == 204
        [url] = managed(what).succeed().values()
    assert id_of(path_of(url)) != upload_id
    assert_stored(guarded, url, source)
    assert json.loads((tmp_path / "uploads.json").read_text()) == []


def test_another_file_of_the_same_name_is_not_joined_to_the_first(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(source, proxy.url())
        what["store"] = str(tmp_path / "uploads.json")
        run, upload_id = begun(managed, guarded, proxy, what)
        run.kill()
        changed = source.path.read_bytes()
        source.path.write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
        [url] = managed(what).succeed().values()
    assert id_of(path_of(url)) != upload_id
    assert guarded.data_file(id_of(path_of(url))).read_bytes() == source.path.read_bytes()


def test_cancelling_removes_it_at_the_server(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource, tmp_path: Path
) -> None:
    store = tmp_path / "uploads.json"
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(make_source(4 * MIB), proxy.url())
        run, upload_id = begun(managed, guarded, proxy, {**what, "store": str(store), "stay": True})
        run.tell("cancel")
        assert run.wait_for("cancelled")["removed"] is True
    assert run.states()[-1] == "cancelled"
    assert upload_id not in Tus(guarded).data_files()
    path = f"{guarded.base_path}{upload_id}"
    assert Tus(guarded).head(path, bearer(access("root", "uploads:admin"))).status == 410
    assert json.loads(store.read_text()) == []


def test_what_is_cancelled_while_the_server_is_away_is_removed_by_the_next_process(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource, tmp_path: Path
) -> None:
    store = tmp_path / "uploads.json"
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(make_source(4 * MIB), proxy.url())
        what["store"] = str(store)
        run, upload_id = begun(managed, guarded, proxy, {**what, "stay": True})
        proxy.default = Plan(up=Way(cut_after=0, cut="rst"))
        run.tell("cancel")
        run.wait_state("cancelled")
        wait_until(lambda: json.loads(store.read_text())[0]["cancelled"], "it to be noted", 60)
        run.kill()
        proxy.heal()
        idle = managed({**what, "files": []})
        wait_until(lambda: upload_id not in Tus(guarded).data_files(), "it to be removed", 60)
        wait_until(lambda: json.loads(store.read_text()) == [], "it to be forgotten", 60)
        idle.tell("list")
        assert idle.wait_for("listed")["uploads"] == []


def test_what_an_earlier_process_left_can_be_discarded(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource, tmp_path: Path
) -> None:
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(make_source(4 * MIB), proxy.url())
        what["store"] = str(tmp_path / "uploads.json")
        run, upload_id = begun(managed, guarded, proxy, what)
        run.kill()
        idle = managed({**what, "files": []})
        idle.tell("discard")
        assert idle.wait_for("cancelled")["removed"] is True
    assert upload_id not in Tus(guarded).data_files()
    assert json.loads((tmp_path / "uploads.json").read_text()) == []


def test_only_so_many_run_at_a_time(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    sources = {f"{name}.bin": make_source(100_000 + name, f"{name}.bin") for name in range(6)}
    with FaultProxy(guarded.address, default=Plan(up=Way(rate=500_000))) as proxy:
        what = job(sources["0.bin"], proxy.url(), concurrency=2)
        run = managed({**what, "files": [str(source.path) for source in sources.values()]})
        urls = run.succeed()
    now: set[str] = set()
    most = 0
    for event in run.all("state"):
        (now.add if event["state"] == "uploading" else now.discard)(event["name"])
        most = max(most, len(now))
    assert most == 2
    for name, url in urls.items():
        assert_stored(guarded, url, sources[name])


# -- duplicates ------------------------------------------------------------------------------------


def earlier(server: ServerProcess, source: SourceFile, count: int) -> str:
    """The path of an upload of the same, made by somebody else's client, that has `count` bytes."""
    tus = Tus(server)
    headers = {**bearer(access()), "Upload-Metadata": metadata(filename=source.path.name)}
    path = tus.new(source.size, headers=headers)
    if count:
        assert tus.patch(path, 0, source.path.read_bytes()[:count], bearer(access())).status == 204
    return path


def test_a_duplicate_is_resumed(
    checking: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(MIB, "resumed.bin")
    path = earlier(checking, source, 1000)
    run = managed({**job(source, checking.url), "answer": "resume"})
    [url] = run.succeed().values()
    [asked] = run.all("asked")
    assert asked["duplicate"] == {
        "state": "pending",
        "canResume": True,
        "location": url,
        "offset": 1000,
        "detail": asked["duplicate"]["detail"],
        "fingerprint": asked["duplicate"]["fingerprint"],
    }
    assert path_of(url) == path
    assert run.states() == ["queued", "uploading", "asking", "uploading", "completed"]
    # It has an upload token of its own, so that it does not end with the access token.
    assert [event["status"] for event in run.all("renewed")] == [200]
    assert_stored(checking, url, source)


def test_a_duplicate_is_forced(
    checking: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(MIB, "forced.bin")
    path = earlier(checking, source, source.size)
    run = managed({**job(source, checking.url), "answer": "force"})
    [url] = run.succeed().values()
    [asked] = run.all("asked")
    assert (asked["duplicate"]["state"], asked["duplicate"]["canResume"]) == ("complete", False)
    assert path_of(url) != path
    assert_stored(checking, url, source)


@pytest.mark.parametrize("answer", ["give-up", None])
def test_a_duplicate_is_left(
    checking: ServerProcess, managed: RunManaged, make_source: MakeSource, answer: str | None
) -> None:
    source = make_source(1000, f"{answer}.bin")
    earlier(checking, source, source.size)
    before = Tus(checking).data_files()
    what = job(source, checking.url)
    if answer == "give-up":
        what["answer"] = "give-up"
    run = managed(what)
    [end] = run.finish().values()
    assert (end["state"], end["error"]["kind"]) == ("failed", "duplicate")
    assert (end["error"]["status"], end["error"]["code"]) == (409, "ERR_DUPLICATE_UPLOAD")
    assert len(run.all("asked")) == (answer is not None)
    assert Tus(checking).data_files() == before


def test_nobody_is_asked_about_what_a_lost_answer_made(
    checking: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(MIB, "lost.bin")
    before = set(Tus(checking).data_files())
    with FaultProxy(checking.address) as proxy:
        proxy.plan(Plan(down=Way(cut_after=10, cut="rst")))
        run = managed({**job(source, proxy.url()), "answer": "give-up"})
        [url] = run.succeed().values()
    assert run.all("asked") == []
    assert set(Tus(checking).data_files()) - before == {id_of(path_of(url))}
    assert_stored(checking, url, source)


def test_pausing_during_the_creation_makes_no_duplicate(
    checking: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    """The answer to a creation is waited for, as it has the URL."""
    source = make_source(MIB, "paused.bin")
    before = len(Tus(checking).data_files())
    with FaultProxy(checking.address) as proxy:
        proxy.plan(Plan(down=Way(stall_after=0)))
        run = managed({**job(source, proxy.url()), "answer": "give-up"})
        wait_until(lambda: len(Tus(checking).data_files()) == before + 1, "the creation", 60)
        run.tell("pause")
        run.wait_state("paused")
        proxy.link(0).release()
        run.tell("resume")
        [url] = run.succeed().values()
    assert run.all("asked") == []
    assert_stored(checking, url, source)


# -- tokens ----------------------------------------------------------------------------------------


def test_a_401_is_met_with_a_new_token_and_the_upload_goes_on(
    make_server: MakeServer, managed: RunManaged, make_source: MakeSource
) -> None:
    """Everything that its owner had is void; the page gets another access token, and by it an upload token."""
    # The other token is from after the revocation, whenever that comes.
    server = make_server("--auth", "jwt", "--jwt-leeway", "10m", env={"TUSD_JWT_SECRET": SECRET})
    source = make_source(4 * MIB)
    with FaultProxy(server.address, default=STALLING) as proxy:
        what = job(source, proxy.url())
        what["accessTokens"] = [access("dave"), access("dave", iat=int(time.time()) + 300)]
        run, upload_id = begun(managed, server, proxy, what)
        body = json.dumps({"owner": "dave"}).encode()
        admin = bearer(access("root", "uploads:admin"))
        assert Tus(server).request("POST", "/auth/revoke", admin, body).status == 204
        [url] = run.succeed().values()
    assert id_of(path_of(url)) == upload_id
    # By the upload token, by the access token, by the other one.
    assert [event["status"] for event in run.all("renewed")] == [401, 401, 200]
    assert len(run.all("access")) == 1
    assert_stored(server, url, source)


def test_beyond_the_grace_period_the_access_token_renews_it(
    make_server: MakeServer, managed: RunManaged, make_source: MakeSource
) -> None:
    flags = ("--auth", "jwt", "--upload-token-ttl", "1s", "--upload-token-grace", "0")
    server = make_server(*flags, env={"TUSD_JWT_SECRET": SECRET})
    source = make_source(4 * MIB)
    with FaultProxy(server.address, default=STALLING) as proxy:
        run, upload_id = begun(managed, server, proxy, job(source, proxy.url()))
        run.wait_for("renewed", lambda event: event["status"] == 200)
        run.tell("pause")
        run.wait_state("paused")
        path = f"{server.base_path}{'0' * 32}"

        def has_run_out() -> bool:
            # The last one, also of a renewal that was under way when it was paused.
            tokens = [event["token"] for event in run.all("renewed") if event["status"] == 200]
            return Tus(server).head(path, bearer(tokens[-1])).status == 401

        wait_until(has_run_out, "it to run out", 60)
        before = len(run.all("renewed"))
        run.tell("resume")
        [url] = run.succeed().values()
    assert id_of(path_of(url)) == upload_id
    assert [event["status"] for event in run.all("renewed")][before : before + 2] == [401, 200]
    assert_stored(server, url, source)


def test_a_refused_access_token_is_final_once_there_is_no_other(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    what = job(make_source(1000), guarded.url)
    what["accessTokens"] = [access(exp=1)]
    run = managed(what)
    [end] = run.finish().values()
    assert (end["error"]["kind"], end["error"]["status"]) == ("unauthorized", 401)
    assert end["error"]["code"] == "ERR_INVALID_TOKEN"
    assert 1 <= len(run.all("access")) <= 5


def test_a_revoked_upload_ends_with_the_servers_code(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(make_source(4 * MIB), proxy.url())
        run, upload_id = begun(managed, guarded, proxy, what)
        body = json.dumps({"upload_id": upload_id}).encode()
        answer = Tus(guarded).request("POST", "/auth/revoke", bearer(access()), body)
        assert answer.status == 204
        [end] = run.finish().values()
    assert (end["state"], end["error"]["kind"]) == ("failed", "forbidden")
    assert end["error"]["code"] == "ERR_UPLOAD_REVOKED"


# -- what is in the way ----------------------------------------------------------------------------


def test_what_the_server_will_never_take_is_not_tried_again(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    what = job(make_source(1001), guarded.url)
    what["accessTokens"] = [access(max_upload_size=1000)]
    run = managed(what)
    [end] = run.finish().values()
    assert run.states() == ["queued", "uploading", "failed"]
    assert (end["error"]["kind"], end["error"]["status"]) == ("too-large", 413)
    assert end["error"]["code"] == "ERR_MAX_SIZE_EXCEEDED"


@pytest.mark.parametrize("anew", [False, True])
def test_an_upload_that_is_gone(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource, anew: bool
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(source, proxy.url(), restartWhenGone=anew)
        run, upload_id = begun(managed, guarded, proxy, what)
        path = f"{guarded.base_path}{upload_id}"
        assert Tus(guarded).delete(path, bearer(access())).status == 204
        [end] = run.finish().values()
    if anew:
        assert end["state"] == "completed"
        assert_stored(guarded, end["url"], source)
    else:
        assert (end["state"], end["error"]["kind"]) == ("failed", "gone")


def test_an_upload_that_is_gone_begins_anew_when_it_is_told_to(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        what = job(source, proxy.url())
        run, upload_id = begun(managed, guarded, proxy, {**what, "stay": True})
        path = f"{guarded.base_path}{upload_id}"
        assert Tus(guarded).delete(path, bearer(access())).status == 204
        run.wait_state("failed")
        run.tell("restart")
        url = run.wait_state("completed")["url"]
    assert id_of(path_of(url)) != upload_id
    assert_stored(guarded, url, source)


def test_a_file_that_was_changed_meanwhile_is_not_mixed(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        run, _ = begun(managed, guarded, proxy, job(source, proxy.url()))
        run.tell("pause")
        run.wait_state("paused")
        source.path.write_bytes(b"something else")
        run.tell("resume")
        [end] = run.finish().values()
    assert (end["state"], end["error"]["kind"]) == ("failed", "source")


def test_a_connection_that_is_dead_is_left(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(20 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        run, _ = begun(managed, guarded, proxy, job(source, proxy.url(), stallTimeout=1_500))
        [url] = run.succeed().values()
    assert "waiting" in run.states()
    assert_stored(guarded, url, source)


def test_failures_count_in_a_row_as_long_as_nothing_more_arrives(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=Plan(up=Way(cut_after=500_000))) as proxy:
        run = managed({**job(source, proxy.url()), "attempts": 3})
        [url] = run.succeed().values()
        assert sum(link.cut.is_set() for link in proxy.links) > 5
    assert_stored(guarded, url, source)


def test_it_is_given_up_when_that_is_wanted(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    with FaultProxy(guarded.address, default=Plan(up=Way(cut_after=0, cut="rst"))) as proxy:
        run = managed({**job(make_source(1000), proxy.url()), "attempts": 3})
        [end] = run.finish().values()
    assert (end["state"], end["error"]["kind"]) == ("failed", "network")
    assert run.states().count("waiting") == 2


def test_without_a_network_nothing_is_tried(
    guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    """A connection that the system keeps although there is no network is left at once."""
    source = make_source(4 * MIB)
    with FaultProxy(guarded.address, default=STALLING) as proxy:
        hour = {"min": 3_600_000, "max": 3_600_000}
        run, _ = begun(managed, guarded, proxy, job(source, proxy.url(), retry=hour))
        run.tell("offline")
        assert run.wait_state("waiting")["waitingFor"] == "network"
        before = len(proxy.links)
        run.tell("pause")
        run.tell("resume")
        run.wait_state("waiting", count=2)
        assert len(proxy.links) == before
        run.tell("online")
        [url] = run.succeed().values()
    assert_stored(guarded, url, source)


def test_a_server_that_is_away_is_waited_for(
    own_guarded: ServerProcess, managed: RunManaged, make_source: MakeSource
) -> None:
    source = make_source(4 * MIB)
    with FaultProxy(own_guarded.address, default=STALLING) as proxy:
        run, _ = begun(managed, own_guarded, proxy, job(source, proxy.url()))
        own_guarded.kill9()
        waiting = run.wait_state("waiting", count=5)
        assert (waiting["waitingFor"], waiting["error"]["kind"]) == ("retry", "network")
        own_guarded.restart()
        [url] = run.succeed().values()
    assert_stored(own_guarded, url, source)


def test_while_redis_is_away_uploads_wait_or_go_on(
    make_server: MakeServer, managed: RunManaged, make_source: MakeSource, tmp_path: Path
) -> None:
    """A server that answers HEAD with 423 until it knows what was revoked, so that nobody sends the whole file anew."""
    source = make_source(4 * MIB)
    with RedisServer(tmp_path / "redis") as redis:
        env = {"TUSD_JWT_SECRET": SECRET, "TUSD_REDIS_URL": redis.url}
        server = make_server("--auth", "jwt", env=env)
        with FaultProxy(server.address, default=STALLING) as proxy:
            run, _ = begun(managed, server, proxy, job(source, proxy.url()))
            server.kill9()
            redis.kill9()
            server.restart()
            unavailable = run.wait_for(
                "state", lambda event: (event["error"] or {}).get("status") == 423
            )
            assert unavailable["error"]["kind"] == "network"
            redis.start()
            [url] = run.succeed().values()
    assert_stored(server, url, source)
