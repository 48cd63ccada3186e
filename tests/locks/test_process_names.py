"""A process is reported dead only if that is certain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.locks.holding import until
from tusd_py.locks.process_id import ProcessName

LIVE = """
import sys, time
from tusd_py.locks.process_id import ProcessName
print(ProcessName.of_this(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", LIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def name_of(child: subprocess.Popen[str]) -> ProcessName:
    assert child.stdout is not None
    name = ProcessName.parse(child.stdout.readline().strip())
    assert name is not None
    assert name.pid == child.pid
    return name


def test_a_name_survives_being_written_down() -> None:
    name = ProcessName.of_this()
    assert ProcessName.parse(str(name)) == name
    assert ProcessName.of_this() != name
    assert not name.is_gone()


@pytest.mark.parametrize("text", ["", "a", "a-b-c-d", "1-2-3", "1-2-3-4-5", "a-1-x-n"])
def test_other_texts_are_no_names(text: str) -> None:
    assert ProcessName.parse(text) is None


async def test_a_killed_process_is_gone_even_before_its_parent_knows(
    child: subprocess.Popen[str],
) -> None:
    name = name_of(child)
    assert not name.is_gone()
    child.send_signal(signal.SIGSTOP)
    assert not name.is_gone()
    child.kill()
    await until(name.is_gone, "the end of the process")
    child.wait()
    assert name.is_gone()


def test_a_process_id_that_is_used_again_is_another_process() -> None:
    mine = ProcessName.of_this()
    assert replace(mine, started=mine.started - 1).is_gone()


def test_nothing_is_known_about_other_machines(child: subprocess.Popen[str]) -> None:
    name = name_of(child)
    child.kill()
    child.wait()
    assert name.is_gone()
    assert not replace(name, machine="1234567890abcdef").is_gone()
    assert not replace(name, machine="0").is_gone()
    assert not replace(name, pid=0).is_gone()
    assert not replace(name, pid=-1).is_gone()


def test_somebody_elses_process_is_there() -> None:
    # Process 1 is always there, whoever asks.
    mine = ProcessName.of_this()
    started = int(Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19])
    assert not replace(mine, pid=1, started=started).is_gone()


def test_a_child_has_a_name_of_its_own() -> None:
    name = str(ProcessName.of_this())
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, str(ProcessName.of_this()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        other = ProcessName.parse(pipe.read())
    assert other is not None
    assert other.pid == pid
    assert str(other) != name
