"""Log lines: format, protection against forgery, and cost."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tusd_py import logs

ROOT = Path(__file__).parents[2]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

log = logging.getLogger("tusd_py.test")
anything = st.text(st.characters(), max_size=400) | st.binary() | st.integers() | st.floats()

shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""For tests that empty the captured output themselves."""


class Captured:
    """Lines logged since the last call."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def text(self) -> str:
        return self._capture.readouterr().err

    def line(self) -> str:
        text = self.text()
        assert text.count("\n") == 1, text
        assert text.endswith("\n")
        return text[:-1]

    def entry(self) -> dict[str, object]:
        entry = json.loads(self.line())
        assert isinstance(entry, dict)
        return entry


@pytest.fixture
def output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Captured]:
    """Standard error of this test; what `configure` changes is undone after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for name in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, True)
    yield Captured(capsys)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in ("uvicorn", "uvicorn.access", "asyncio"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def configure(form: Literal["text", "json"], level: str = "info") -> None:
    """`logs.configure`, with nobody else listening: pytest's handler takes fewer kinds of text."""
    logs.configure(form, level)
    root = logging.getLogger()
    root.handlers[:] = [each for each in root.handlers if isinstance(each, logs.StderrHandler)]


def request() -> None:
    logs.event(
        log,
        logging.INFO,
        "request",
        method="PATCH",
        path="/files/1f",
        status=204,
        bytes=1048576,
        duration=0.123,
        complete=True,
        upload=None,
        request_id="a1",
    )


def test_a_line_of_text_has_time_level_name_and_fields(output: Captured) -> None:
    configure("text")
    request()
    assert re.fullmatch(
        TIME + r" INFO  request  method=PATCH path=/files/1f status=204 bytes=1048576 "
        r"duration=0\.123 complete=true request_id=a1",
        output.line(),
    )


def test_a_line_of_json_has_the_same(output: Captured) -> None:
    configure("json")
    request()
    entry = output.entry()
    assert re.fullmatch(TIME, str(entry.pop("time")))
    assert entry == {
        "level": "info",
        "event": "request",
        "method": "PATCH",
        "path": "/files/1f",
        "status": 204,
        "bytes": 1048576,
        "duration": 0.123,
        "complete": True,
        "request_id": "a1",
    }


def test_a_message_stands_in_place_of_name_and_fields_in_text(output: Captured) -> None:
    url = "http://127.0.0.1:43121/files/"
    for form in ("text", "json"):
        configure("text" if form == "text" else "json")
        logs.event(log, logging.INFO, "listening", message=f"Uploads at {url}", url=url)
        if form == "text":
            assert re.fullmatch(TIME + rf" INFO  Uploads at {url}", output.line())
        else:
            entry = output.entry()
            assert list(entry) == ["time", "level", "event", "url", "message"]
            assert (entry["event"], entry["url"]) == ("listening", url)
            assert entry["message"] == f"Uploads at {url}"


def test_an_event_without_fields_is_its_name(output: Captured) -> None:
    configure("text")
    logs.event(log, logging.ERROR, "stopped", upload=None)
    assert re.fullmatch(TIME + " ERROR stopped", output.line())


def test_values_that_could_be_mistaken_are_quoted(output: Captured) -> None:
    configure("text")
    logs.event(log, logging.INFO, "x", a="b c", d="e=f", g='h"i', j="", k=b"l\xff", m=Path("/n"))
    assert output.line().endswith(r' INFO  x  a="b c" d="e=f" g="h\"i" j="" k="l\\xff" m=/n')


def test_fields_that_the_line_itself_has_get_another_name(output: Captured) -> None:
    configure("json")
    logs.event(log, logging.INFO, "x", level="high", time=1, event="y", logger="z", name="n")
    entry = output.entry()
    assert (entry["level"], entry["event"]) == ("info", "x")
    assert (entry["level_"], entry["time_"], entry["event_"]) == ("high", 1, "y")


def test_the_standard_library_way_gives_the_same(output: Captured) -> None:
    configure("text")
    log.info("request %d", 1, extra={"fields": {"status": 204}})
    assert re.fullmatch(TIME + " INFO  request 1  status=204", output.line())


def test_plain_messages_name_their_logger(output: Captured) -> None:
    configure("text")
    logging.getLogger("some.library").warning("%s is odd\n%s", "it", "2026 INFO  forged")
    assert re.fullmatch(
        TIME + r" WARN  some\.library  it is odd\\n2026 INFO  forged", output.line()
    )
    configure("json")
    logging.getLogger("some.library").warning("odd")
    assert output.entry() | {"time": ""} == {
        "time": "",
        "level": "warning",
        "event": "log",
        "logger": "some.library",
        "message": "odd",
    }


def test_events_below_the_level_are_not_written(output: Captured) -> None:
    configure("text", "warning")
    request()
    assert output.text() == ""


def test_configuring_again_replaces(output: Captured) -> None:
    logs.configure("text", "info")
    logs.configure("json", "debug")
    logs.event(log, logging.DEBUG, "x")
    assert output.entry()["event"] == "x"


def test_warnings_of_python_are_logged(output: Captured) -> None:
    configure("text")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("odd\nthing", UserWarning, stacklevel=1)
    assert "UserWarning: odd\\nthing" in output.line()


# --- T19 ------------------------------------------------------------------------------------------


HOSTILE = (
    "a\n2026-11-22T19:43:01.123Z INFO  forged",
    "a\r\x1b[2Jb",
    "a\u202egpj.exe",
    "a\x7fb\x85c\u2028d\u2029e\x00f\x1cg",
    "a\ud800b",
    '","level":"error","x":"',
    "a\\nb",
    "caf\u00e9 \u05d0\u05d1",
)


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
@pytest.mark.parametrize("form", ["text", "json"])
def test_T19_nothing_in_a_value_can_forge_a_line_or_talk_to_a_terminal(
    form: Literal["text", "json"], value: str, output: Captured
) -> None:
    configure(form)
    log.info("x", extra={"fields": {"field": value, value: 1}})
    logs.event(log, logging.INFO, value)
    logs.event(log, logging.INFO, "x", message=value)
    log.info("%s", value)
    lines = output.text().split("\n")
    assert len(lines) == 5
    assert all(line.isascii() and line.isprintable() for line in lines)
    if form == "json":
        entry = json.loads(lines[0])
        assert entry["field"] == value
        assert entry["level"] == "info"


@shared
@given(key=st.text(max_size=20), value=anything)
def test_T19_every_field_gives_one_printable_line_of_text(
    key: str, value: str | bytes | float, output: Captured
) -> None:
    configure("text")
    log.info("x", extra={"fields": {"first": 1, f"k{key}": value, "last": 2}})
    line = output.line()
    assert line.isascii()
    assert line.isprintable()
    fields = re.sub(r'"(?:[^"\\]|\\.)*"', "Q", line.split("  ", 2)[2])
    assert re.fullmatch(r"first=1 [^ =\"]+=[^ =\"]+ last=2", fields)


@shared
@given(value=anything)
@example(value=float("inf"))
@example(value=float("nan"))
def test_T19_every_field_gives_one_json_object(
    value: str | bytes | float, output: Captured
) -> None:
    configure("json")
    logs.event(log, logging.INFO, "x", field=value, last=2)
    line = output.line()
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line, parse_constant=pytest.fail)
    assert list(entry) == ["time", "level", "event", "field", "last"]
    if isinstance(value, str) and len(value) <= logs.VALUE_LIMIT:
        assert entry["field"] == value


@pytest.mark.parametrize("form", ["text", "json"])
def test_long_values_are_cut_and_their_length_told(
    form: Literal["text", "json"], output: Captured
) -> None:
    configure(form)
    logs.event(log, logging.INFO, "x", field="y" * 100_000)
    line = output.line()
    assert "y" * 256 + "...(100000 characters)" in line
    assert len(line) < 400
    logs.event(log, logging.INFO, "x", message="y" * 100_000)
    assert len(output.line()) < 4300


# --- exceptions -----------------------------------------------------------------------------------


def fail(text: str) -> None:
    raise OSError(text)


def test_a_traceback_is_readable_in_text_and_cannot_forge_a_line(output: Captured) -> None:
    configure("text")
    try:
        fail("first\n2026-11-22T19:43:01.123Z INFO  forged\x1b[2J")
    except OSError:
        logs.event(log, logging.ERROR, "request failed", exc_info=True, upload="1f")
    first, *rest = output.text().splitlines()
    assert re.fullmatch(TIME + " ERROR request failed  upload=1f", first)
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == r"    2026-11-22T19:43:01.123Z INFO  forged\x1b[2J"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_traceback_is_one_field_in_json(output: Captured) -> None:
    configure("json")
    with pytest.raises(OSError, match="first") as caught:
        fail("first\nsecond")
    logs.event(log, logging.ERROR, "request failed", exc_info=caught.value)
    entry = output.entry()
    assert str(entry["exception"]).startswith("Traceback (most recent call last):\n")
    assert str(entry["exception"]).endswith("OSError: first\nsecond")


def test_outside_of_an_exception_there_is_no_traceback(output: Captured) -> None:
    configure("text")
    logs.event(log, logging.ERROR, "x", exc_info=True)
    assert re.fullmatch(TIME + " ERROR x", output.line())


def test_the_end_of_a_very_long_traceback_is_kept(output: Captured) -> None:
    configure("json")
    logs.event(log, logging.ERROR, "x", exc_info=ValueError("y" * 100_000 + " the end"))
    exception = str(output.entry()["exception"])
    assert exception.endswith("y the end")
    assert len(exception) < 33_000


# --- writing harms nobody -------------------------------------------------------------------------


class Unspeakable:
    """Something whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no\ntext")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_cannot_be_formatted_raises_nothing(
    form: Literal["text", "json"], output: Captured
) -> None:
    configure(form)
    logs.event(log, logging.INFO, "x", field=Unspeakable())
    assert "a log entry could not be written" in output.line()
    log.info("%d", "not a number")
    assert "a log entry could not be written" in output.line()


def test_a_closed_stream_raises_nothing(output: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    configure("text")
    sys.stderr.close()
    request()


def test_lines_that_could_not_be_written_are_counted_once_it_works_again(
    output: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("text")

    def full(text: str) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(stream, "write", full)
        request()
        request()
    request()
    dropped, line = stream.getvalue().splitlines()
    assert dropped.endswith(" WARN  log lines dropped  count=2")
    assert " INFO  request  " in line


def child(
    code: str, stderr: int, *, close_stderr: bool = False
) -> subprocess.CompletedProcess[str]:
    prepare = "import logging, sys\nfrom tusd_py import logs\nlog = logging.getLogger('x')\n"
    command = [sys.executable, "-c", prepare + textwrap.dedent(code)]
    if close_stderr:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )


def test_a_process_without_standard_error_goes_on() -> None:
    code = """
        logs.configure("text", "info")
        logs.event(log, logging.INFO, "x")
        print("goes on", sys.stderr)
    """
    done = child(code, subprocess.DEVNULL, close_stderr=True)
    assert (done.returncode, done.stdout) == (0, "goes on None\n")


def test_a_reader_that_went_away_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = """
        logs.configure("text", "info")
        for _ in range(1000):
            logs.event(log, logging.INFO, "x", field="y" * 200)
        print("goes on")
    """
    done = child(code, writer)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


def test_a_reader_that_does_not_read_delays_the_process_once() -> None:
    reader, writer = os.pipe()
    code = """
        import time
        logs.configure("text", "info")
        begin = time.monotonic()
        for n in range(2000):
            logs.event(log, logging.INFO, "x", n=n, field="y" * 200)
        print(time.monotonic() - begin)
    """
    done = child(code, writer)
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = stream.read().splitlines()
    assert done.returncode == 0
    # 2,000 waits of 50 ms would be 100 s.
    assert float(done.stdout) < 50
    # What fitted into the pipe is whole and in order.
    assert 100 < len(lines) < 2000
    assert [int(line.split("n=")[1].split()[0]) for line in lines] == list(range(len(lines)))


def test_after_a_reader_that_paused_lines_are_whole_and_the_lost_ones_counted() -> None:
    code = """
        import os
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        logs.configure("json", "info")
        for n in range(2000):
            logs.event(log, logging.INFO, "x", n=n, field="y" * 200)
        received = os.read(reader, 1 << 20)
        logs.event(log, logging.INFO, "last")
        received += os.read(reader, 1 << 20)
        sys.stdout.write(received.decode())
    """
    done = child(code, subprocess.DEVNULL)
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    *written, dropped, last = entries
    assert last["event"] == "last"
    assert dropped["event"] == "log lines dropped"
    assert dropped["count"] + len(written) == 2000


def test_the_lines_of_one_turn_of_a_loop_are_whole_and_the_lost_ones_counted() -> None:
    code = """
        import asyncio, os
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        logs.configure("json", "info")
        received = b""
        async def turns():
            global received
            for n in range(2000):
                logs.event(log, logging.INFO, "x", n=n, field="y" * 200)
            os.set_blocking(reader, False)
            try:
                os.read(reader, 1)
            except BlockingIOError:
                sys.stdout.write("nothing yet\\n")
            await asyncio.sleep(0)
            received += os.read(reader, 1 << 20)
            logs.event(log, logging.WARNING, "last")
            received += os.read(reader, 1 << 20)
        asyncio.run(turns())
        sys.stdout.write(received.decode())
    """
    done = child(code, subprocess.DEVNULL)
    first, *rest = done.stdout.splitlines()
    assert first == "nothing yet"
    *written, dropped, last = [json.loads(line) for line in rest]
    assert [each["n"] for each in written] == list(range(len(written)))
    assert (last["event"], dropped["event"]) == ("last", "log lines dropped")
    assert dropped["count"] + len(written) == 2000


def test_the_lines_of_several_processes_do_not_mix() -> None:
    """Servers and workers of one service share its standard error."""
    code = """
        import asyncio
        # Nothing is dropped if the reader stands still for a moment.
        logs.StderrHandler._WAIT = 60_000
        logs.configure("json", "info")
        async def turns():
            for turn in range(40):
                for n in range(60):
                    logs.event(log, logging.INFO, "x", n=n, field="y" * (n * 7 % 230))
                await asyncio.sleep(0)
        asyncio.run(turns())
    """
    reader, writer = os.pipe()
    with ThreadPoolExecutor(3) as pool, os.fdopen(reader, "rb", buffering=0) as stream:
        ends = [pool.submit(child, code, writer) for _ in range(2)]
        # So little at a time that the pipe is full, and each write has to wait for room.
        lines = pool.submit(lambda: b"".join(iter(lambda: stream.read(256), b"")))
        codes = [each.result().returncode for each in ends]
        os.close(writer)
        entries = [json.loads(line) for line in lines.result().splitlines()]
    assert codes == [0, 0]
    assert [entry["event"] for entry in entries] == ["x"] * (2 * 40 * 60)


def test_the_last_lines_of_a_process_are_written() -> None:
    reader, writer = os.pipe()
    code = """
        import asyncio
        logs.configure("text", "info")
        async def turn():
            logs.event(log, logging.INFO, "one")
            logging.getLogger("x").info("two")
            logs.event(log, logging.INFO, "three")
            sys.exit()
        asyncio.run(turn())
    """
    child(code, writer)
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert [line.split()[-1] for line in stream] == ["one", "two", "three"]


def test_a_line_that_could_be_written_in_part_does_not_run_into_the_next() -> None:
    code = """
        import os
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        logs.configure("json", "info")
        for _ in range(100):
            logs.event(log, logging.INFO, "x", **{f"field{n}": "y" * 250 for n in range(40)})
        received = os.read(reader, 1 << 20)
        logs.event(log, logging.INFO, "last")
        received += os.read(reader, 1 << 20)
        sys.stdout.write(received.decode())
    """
    done = child(code, subprocess.DEVNULL)
    *whole, torn, dropped, last = done.stdout.splitlines()
    assert len(whole) > 1
    assert all(json.loads(line)["event"] == "x" for line in whole)
    assert whole[0].split('"field0"')[1].startswith(torn.split('"field0"')[1])
    assert json.loads(dropped)["count"] == 100 - len(whole)
    assert json.loads(last)["event"] == "last"


# --- uvicorn --------------------------------------------------------------------------------------


def test_uvicorn_writes_through_the_same_handler_and_no_lines_of_its_own_for_requests() -> None:
    code = """
        import uvicorn
        uvicorn.Config("x:y")  # which configures uvicorn's own logging
        logs.configure("text", "info")
        logging.getLogger("uvicorn.error").info("Started server process")
        logging.getLogger("uvicorn.access").info('%s - "%s"', "1.2.3.4:5", "GET /")
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\\n")
    """
    done = child(code, subprocess.PIPE)
    assert done.returncode == 0
    [line] = done.stderr.splitlines()
    assert re.fullmatch(TIME + r" ERROR uvicorn\.error  Exception in ASGI application\\n", line)
    assert done.stdout == ""


def test_with_level_debug_uvicorn_tells_what_it_does(output: Captured) -> None:
    configure("text", "debug")
    logging.getLogger("uvicorn.error").info("Started")
    assert output.line().endswith(" INFO  uvicorn.error  Started")
