"""Hooks in Python inside a real server: arguments, decisions, and failures."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until
from tests.support.wire import head_bytes
from tusd_py import Changes, Placement, Reject, Stop

PRELUDE = """
    import os
    from pathlib import Path
    from tusd_py.events.model import Changes, Event, HookResponse, Reject, Stop

    LOG = Path(os.environ["HOOK_LOG"])

    def note(*words):
        with LOG.open("a") as file:
            file.write(" ".join(map(str, words)) + "\\n")
"""


class Hooked:
    """A server with hooks that are written in the test, and what they wrote down."""

    def __init__(self, tus: Tus, log: Path) -> None:
        self.tus = tus
        self._log = log

    def notes(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def wait_for(self, note: str) -> None:
        wait_until(lambda: note in self.notes(), f"{note!r} among {self.notes()}", 30)

    def nothing_stored(self) -> bool:
        return not list(self.tus.server.upload_dir.glob("[!.]*"))

    def metric(self, sample: str) -> float:
        page = self.tus.request("GET", "/metrics").text
        found = re.search(rf"^{re.escape(sample)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0


MakeHooked = Callable[..., Hooked]


@pytest.fixture
def hooked(make_server: MakeServer, tmp_path: Path) -> MakeHooked:
    """`hooked(code, code, …, flags=…)`: a server with these hooks, in this order."""

    def make(*codes: str, flags: tuple[str, ...] = ()) -> Hooked:
        given: list[str] = []
        for number, code in enumerate(codes):
            file = tmp_path / f"hooks{number}.py"
            file.write_text(textwrap.dedent(PRELUDE) + textwrap.dedent(code))
            given += ["--hook", str(file)]
        log = tmp_path / "hooks.log"
        return Hooked(Tus(make_server(*given, *flags, env={"HOOK_LOG": str(log)})), log)

    return make


def test_the_first_refusal_wins_and_those_before_it_give_back_what_they_took(
    hooked: MakeHooked,
) -> None:
    first = """
        def pre_create(event):
            note("reserve", event.upload.id, event.id)

        def create_failed(event):
            note("release", event.upload.id, event.id)
    """
    second = """
        async def pre_create(event):
            raise Reject(402, "pay first", {"X-Price": "1"})
    """
    third = """
        def pre_create(event):
            note("never asked")
    """
    server = hooked(first, second, third)
    refused = server.tus.create(5)
    assert refused.status == 402
    assert refused["X-Price"] == "1"
    assert refused.text == "ERR_UPLOAD_REJECTED: pay first\n"
    reserved, released = server.notes()
    assert released == reserved.replace("reserve", "release")
    assert server.nothing_stored()


def test_what_was_taken_is_given_back_when_the_id_is_in_use(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            return Changes(id="study")

        def create_failed(event):
            note("release")
        """
    )
    assert path_of(server.tus.create(5)["Location"]) == "/files/study"
    assert server.tus.create(5).code == "ERR_UPLOAD_EXISTS"
    assert server.notes() == ["release"]
    assert server.tus.patch("/files/study", 0, b"first").status == 204


def test_a_path_that_is_taken_is_not_called_an_id_that_is(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            return Changes(storage_path="scans/one")
        """
    )
    path = path_of(server.tus.create(5)["Location"])
    refused = server.tus.create(5)
    assert (refused.status, refused.code) == (409, "ERR_PATH_EXISTS")
    assert server.tus.patch(path, 0, b"first").status == 204


def test_an_upload_may_get_an_id_with_directories_and_other_metadata(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            return Changes(id="2026/11/" + event.upload.id, metadata={"study": b"\\xff\\x00 1"})
        """,
        """
        def pre_create(event):
            note(event.upload.id.count("/"), event.upload.metadata)
        """,
    )
    path = server.tus.new(5, headers={"Upload-Metadata": "filename YQ=="})
    assert path.startswith("/files/2026/11/")
    assert server.notes() == ["2 {'study': b'\\xff\\x00 1'}"]
    assert server.tus.head(path)["Upload-Metadata"] == "study /wAgMQ=="
    assert server.tus.patch(path, 0, b"hello").status == 204
    assert server.tus.get(path).body == b"hello"
    assert server.tus.delete(path).status == 204
    wait_until(server.nothing_stored, "the directories to go with their upload")


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/cron.d/x", "a/../../b", ".tusd-py/new/x", "a\\0b", "x.info", ""]
)
@pytest.mark.parametrize("field", ["id", "storage_path"])
def test_no_hook_leads_out_of_the_upload_directory(
    hooked: MakeHooked, field: str, path: str
) -> None:
    server = hooked(
        f"""
        def pre_create(event):
            return Changes({field}={path!r})
        """
    )
    refused = server.tus.create(5)
    assert refused.status == 500
    assert server.nothing_stored()
    server.tus.server.wait_for_line("cannot name an upload")


def test_no_hook_chooses_a_time_with_which_a_record_cannot_be_read_again(
    hooked: MakeHooked,
) -> None:
    server = hooked(
        """
        import decimal, math

        def pre_create(event):
            field, value = event.upload.metadata["keep"].decode().split(" ", 1)
            return Changes(**{field: eval(value)})
        """
    )
    tus = server.tus
    kept: list[str] = []
    for field in ("expire_after", "retain"):
        for value in ("math.nan", "math.inf", "-1.0", "1e300", "10**400", "'5'"):
            created = tus.create(5, headers={"Upload-Metadata": metadata(keep=f"{field} {value}")})
            assert created.status == 500, (field, value)
        for value in ("0", "86_400", "1e15", "decimal.Decimal('86400.5')", "True"):
            headers = {"Upload-Metadata": metadata(keep=f"{field} {value}")}
            kept.append(tus.new(1 << 20, headers=headers))
    assert len(tus.data_files()) == len(kept)
    tus.server.kill9()
    tus.server.restart()
    for path in kept:
        # One of them is kept for a second.
        assert tus.head(path).status in (200, 410)


def test_bytes_may_lie_elsewhere_in_the_directory_also_after_a_restart(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            return Changes(storage_path="cold/" + event.upload.id)
        """
    )
    tus = server.tus
    path = tus.new(10)
    assert tus.patch(path, 0, b"hello").status == 204
    assert (tus.server.upload_dir / "cold" / id_of(path)).read_bytes() == b"hello"
    tus.server.kill9()
    tus.server.restart()
    assert tus.offset(path) == 5
    assert tus.patch(path, 5, b"world").status == 204
    assert tus.get(path).body == b"helloworld"
    assert tus.delete(path).status == 204
    assert not (tus.server.upload_dir / "cold" / id_of(path)).exists()


def test_a_hook_shapes_the_responses_of_success(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            return Changes(response=HookResponse(headers={"X-Created": "yes", "Location": "nowhere"}))

        def pre_finish(event):
            return Changes(response=HookResponse(status=200, headers={"X-Case": "4711"}, body="thanks"))

        def pre_terminate(event):
            return Changes(response=HookResponse(headers={"X-Gone": "yes"}))
        """
    )
    created = server.tus.create(5)
    assert (created.status, created["X-Created"]) == (201, "yes")
    path = path_of(created["Location"])
    assert path.startswith("/files/")
    finished = server.tus.patch(path, 0, b"hello")
    assert (finished.status, finished["X-Case"], finished.text) == (200, "4711", "thanks")
    assert finished["Upload-Offset"] == "5"
    assert server.tus.delete(path)["X-Gone"] == "yes"


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ({"headers": {"X-Case": "4711\r\nSet-Cookie: stolen=1"}}, "X-Case cannot have the value"),
        ({"headers": {"X-Case: 1\r\nSet-Cookie": "a"}}, "is not the name of a header field"),
        ({"headers": {"Set Cookie": "a"}}, "is not the name of a header field"),
        ({"headers": {"X-Case": 4711}}, "X-Case cannot have the value 4711"),
        ({"status": 99}, "99 is not the status of a response"),
        ({"status": 600}, "600 is not the status of a response"),
        ({"status": "403"}, "must be a whole number"),
        ({"body": b"done"}, "must be text"),
        ({"headers": [("X-Case", "1")]}, "must be names and texts"),
    ],
)
@pytest.mark.parametrize(
    "how", ["return Changes(response=HookResponse(**{}))", "raise Reject(**{})"]
)
def test_what_no_response_can_be_is_a_failure_of_the_hook(
    hooked: MakeHooked, how: str, response: dict[str, object], reason: str
) -> None:
    server = hooked(
        f"""
        def pre_create(event):
            {how.format(repr(response))}
        """
    )
    refused = server.tus.create(5)
    assert (refused.status, refused.code) == (500, "ERR_INTERNAL_SERVER_ERROR")
    assert "Set-Cookie" not in refused
    assert not server.tus.data_files()
    server.tus.server.wait_for_line(f"the pre-create hook tusd_hook_hooks0 failed.*{reason}")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("id=7", "id of Changes must be text .str., not int .7."),
        ("metadata={'a': 'b'}", "metadata of Changes must be names .str. and values .bytes."),
        ("metadata='a b'", "metadata of Changes must be names and values .dict., not str"),
        ("storage_path=Path('a')", "storage_path of Changes must be text"),
        ("placement='a'", "placement of Changes must be a Placement"),
        ("expire_after='7d'", "expire_after of Changes must be seconds"),
        ("retain='7d'", "retain of Changes must be seconds"),
        ("quota_bytes='1GB'", "quota_bytes of Changes must be a whole number"),
        ("quota_uploads=1.5", "quota_uploads of Changes must be a whole number"),
        ("response='done'", "response of Changes must be a HookResponse"),
    ],
)
def test_changes_of_a_wrong_type_are_refused_where_a_hook_makes_them(
    changes: str, reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        eval(f"Changes({changes})", {"Changes": Changes, "Path": Path})


@pytest.mark.parametrize("kind", [Reject, Stop])
def test_refusals_of_a_wrong_type_are_refused_where_a_hook_makes_them(
    kind: type[Reject | Stop],
) -> None:
    with pytest.raises(TypeError, match=f"the body of a {kind.__name__} must be text .str.,"):
        kind(403, b"x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prefix of Placement must be text"):
        Placement(prefix=7)  # type: ignore[arg-type]


def test_a_finish_whose_hook_answers_with_bytes_is_tried_again(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_finish(event):
            is_mended = "x-mended" in event.request.headers
            return Changes(response=HookResponse(status=200, body="done" if is_mended else b"done"))
        """
    )
    tus = server.tus
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello").status == 500
    tus.server.wait_for_line(
        "the pre-finish hook tusd_hook_hooks0 failed for upload .*must be text"
    )
    # The server itself may have tried again meanwhile.
    assert server.metric('tusd_hook_errors_total{hooktype="pre-finish"}') >= 1
    assert tus.get(path).status == 404
    assert tus.patch(path, 5, b"", {"X-Mended": "1"}).text == "done"


def test_a_request_that_creates_and_finishes_has_what_both_hooks_say(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            fields = {"X-Mine": "1", "X-Both": "create"}
            return Changes(response=HookResponse(202, fields, "created"))

        def pre_finish(event):
            return Changes(response=HookResponse(headers={"X-Fin": "2", "x-both": "finish"}))
        """
    )
    done = server.tus.create(5, body=b"hello")
    assert (done.status, done.text) == (202, "created")
    assert (done["X-Mine"], done["X-Fin"], done.all("X-Both")) == ("1", "2", ["finish"])


def test_where_a_response_ends_is_not_for_hooks_to_say(hooked: MakeHooked) -> None:
    server = hooked(
        """
        FRAMING = {"Content-Length": "3", "Transfer-Encoding": "chunked", "X-Case": "4711"}

        def pre_create(event):
            if "x-refuse" in event.request.headers:
                raise Reject(418, "refused", FRAMING)
            return Changes(response=HookResponse(headers=FRAMING, body="welcome"))
        """
    )
    created = server.tus.create(5)
    assert (created.status, created.text, created["X-Case"]) == (201, "welcome", "4711")
    assert (created.all("Content-Length"), created.all("Transfer-Encoding")) == (["7"], [])
    refused = server.tus.create(5, headers={"X-Refuse": "yes"})
    assert (refused.status, refused["X-Case"]) == (418, "4711")
    assert refused.all("Content-Length") == [str(len(refused.body))]


def test_a_hook_may_end_the_connection(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            return Changes(response=HookResponse(headers={"Connection": event.request.headers["x-how"]}))
        """
    )
    for how, closes in (("close", True), ("x-odd, close", True), ("x-odd", False)):
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "X-How": how}
        with server.tus.connect() as connection:
            created = connection.request("POST", "/files/", headers)
            assert (created.status, created["Connection"]) == (201, how)
            if closes:
                assert connection.ended()
            else:
                assert connection.request("POST", "/files/", headers).status == 201


@pytest.mark.parametrize(
    "failure", ["raise ValueError('secret of the house')", "import time; time.sleep(30)"]
)
def test_a_hook_that_fails_is_a_500_and_no_upload_is_left(hooked: MakeHooked, failure: str) -> None:
    server = hooked(
        f"""
        async def pre_create(event):
            {failure.replace("import time; time.sleep", "import asyncio; await asyncio.sleep")}
        """,
        flags=("--hooks-timeout", "300ms"),
    )
    refused = server.tus.create(5)
    assert refused.status == 500
    assert "secret" not in refused.text
    assert server.nothing_stored()
    server.tus.server.wait_for_line("pre-create hook")
    assert server.metric('tusd_hook_errors_total{hooktype="pre-create"}') == 1


def test_a_failed_finish_is_made_up_for_when_the_last_request_is_repeated(
    hooked: MakeHooked,
) -> None:
    server = hooked(
        """
        tried = []

        def pre_finish(event):
            tried.append(event)
            if len(tried) == 1:
                raise Reject(503, "the archive is away")

        def post_finish(event):
            note("finished", event.upload.offset)
        """
    )
    tus = server.tus
    # It would finish the upload.
    tus.server.wait_for_first_sweep()
    path = tus.new(5)
    assert tus.patch(path, 0, b"hello").status == 503
    assert tus.get(path).status == 404
    assert tus.patch(path, 5, b"").status == 204
    server.wait_for("finished 5")
    assert tus.get(path).body == b"hello"
    assert tus.patch(path, 5, b"").status == 204
    assert server.notes() == ["finished 5"]


def test_every_access_can_be_refused_before_a_byte_is_read(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_access(event):
            note(event.request.method)
            if event.request.headers.get("x-key") != "right":
                raise Reject(403, "not yours")
        """
    )
    tus = server.tus
    path = tus.new(10)
    key = {"X-Key": "right"}
    assert tus.patch(path, 0, b"hello").status == 403
    assert tus.stored(path) == b""
    assert tus.head(path).status == 403
    assert tus.delete(path).status == 403
    with tus.begin_patch(path, 0, 10, b"hello", headers=key) as running:
        running.wait_stored()
        # A stranger does not get the holder to let go either.
        assert tus.head(path).status == 403
        assert tus.patch(path, 5, b"x").status == 403
        running.send(b"world")
        assert running.response().status == 204
    assert tus.get(path).status == 403
    assert tus.get(path, key).body == b"helloworld"
    assert tus.delete(path, key).status == 204
    assert set(server.notes()) == {"PATCH", "HEAD", "DELETE", "GET"}


def test_a_running_upload_can_be_stopped(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def post_receive(event):
            if event.upload.offset >= 1000:
                raise Stop(402, "quota used up", {"X-Quota": "1000"})
        """,
        flags=("--progress-hooks-interval", "1ms"),
    )
    tus = server.tus
    path = tus.new(1_000_000)
    with tus.begin_patch(path, 0, 1_000_000, b"x" * 2000) as running:
        running.wait_stored()
        # It may have been stopped already.
        with suppress(BrokenPipeError, ConnectionResetError):
            running.send(b"y")
        stopped = running.response()
        assert (stopped.status, stopped.code, stopped["X-Quota"]) == (
            402,
            "ERR_UPLOAD_STOPPED",
            "1000",
        )
    assert 2000 <= tus.offset(path) <= 2001


def test_an_upload_may_have_a_time_of_its_own_and_its_end_is_announced(hooked: MakeHooked) -> None:
    server = hooked(
        """
        def pre_create(event):
            return Changes(expire_after=0.2)

        def post_expire(event):
            note("expired", event.upload.id)
        """,
        flags=("--sweep-interval", "100ms"),
    )
    path = server.tus.new(5)
    server.wait_for(f"expired {id_of(path)}")
    assert server.tus.head(path).status == 410


def test_events_of_one_upload_are_told_in_order(hooked: MakeHooked) -> None:
    server = hooked(
        """
        import asyncio

        async def post_create(event):
            await asyncio.sleep(0.2)
            note("created", event.upload.id)

        async def post_finish(event):
            note("finished", event.upload.id)

        async def post_terminate(event):
            note("terminated", event.upload.id)
        """
    )
    path = server.tus.finished(b"x")
    server.tus.delete(path)
    upload = id_of(path)
    server.wait_for(f"terminated {upload}")
    assert server.notes() == [f"{what} {upload}" for what in ("created", "finished", "terminated")]


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("nowhere.to.be.found:Hook", "cannot be loaded"),
        ("missing.py", "cannot be loaded"),
        ("json:dumps", "has none of the functions"),
    ],
)
def test_a_hook_that_cannot_be_had_is_said_at_start(
    make_server: MakeServer, hook: str, said: str
) -> None:
    server = make_server("--hook", hook, launch=True)
    assert server.wait() == 2
    assert said in server.log()
    assert hook in server.log()


def test_a_hook_that_cannot_start_is_said_in_a_sentence(
    make_server: MakeServer, tmp_path: Path
) -> None:
    hook = tmp_path / "picky.py"
    hook.write_text(
        "def start(context):\n    raise ValueError('the archive is not mounted')\n"
        "def post_finish(event): ...\n"
    )
    server = make_server("--hook", str(hook), launch=True)
    assert server.wait() == 2
    assert "the archive is not mounted" in server.log()
    assert "Traceback" not in server.log()


class TestBackgroundHooksThatHang:
    """They hold up neither those that requests wait for nor the memory of the server."""

    HANGING = """
        import time

        def pre_create(event):
            pass

        def post_create(event):
            while not LOG.with_name("go").exists():
                time.sleep(0.01)
            note("told", event.upload.id)
    """
    FLAGS = ("--hooks-delivery", "server")

    def test_requests_have_threads_of_their_own(self, hooked: MakeHooked, tmp_path: Path) -> None:
        server = hooked(self.HANGING, flags=(*self.FLAGS, "--hooks-timeout", "10s"))
        created = [server.tus.create(5) for _ in range(80)]
        assert {response.status for response in created} == {201}
        (tmp_path / "go").touch()
        server.wait_for(f"told {id_of(path_of(created[-1]['Location']))}")

    @pytest.mark.parametrize("kind", ["large metadata", "many fields"])
    def test_what_waits_for_them_is_bounded(
        self, hooked: MakeHooked, tmp_path: Path, kind: str
    ) -> None:
        server = hooked(self.HANGING, flags=self.FLAGS)
        extra = {
            "large metadata": {"Upload-Metadata": metadata(filename=b"x" * 40_000)},
            "many fields": {f"X-{number}": "y" for number in range(4_000)},
        }[kind]
        path = server.tus.new(5)
        fields = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", **extra}
        creation = head_bytes("POST", server.tus.collection, fields, "localhost")
        before = server.tus.server.memory()
        sent = 0
        with server.tus.connect() as connection:
            response = server.tus.create(5, on=connection)
            while response.status == 201 and sent < 1_000:
                connection.send(creation)
                response = connection.read_response("POST")
                sent += 1
        assert (response.status, response.code) == (503, "ERR_UNAVAILABLE")
        assert response["Retry-After"]
        assert server.tus.server.memory() - before < 128 << 20
        # What adds no event goes on.
        assert server.tus.offset(path) == 0
        (tmp_path / "go").touch()
        wait_until(lambda: server.tus.create(5).status == 201, "creations are taken again")
        assert server.tus.patch(path, 0, b"hello").status == 204
