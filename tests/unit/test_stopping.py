"""Processes that were told to stop: how long they may take, and what they may finish first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.support.server import ROOT

PROLOGUE = """
import os, signal, sys, threading, time
from tusd_py.process import stopping

handled = threading.Event()
signals = []

def handle(number, frame):
    signals.append(number)
    handled.set()
    # Not print: the next signal may come in the middle of it.
    os.write(1, b"handled\\n")

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
    signal.signal(number, handle)
busy = threading.Event()
with stopping.end_after_signal(2.0, is_busy=busy.is_set, log=lambda: print("stopped", flush=True)):
    print("begun", flush=True)
"""


def run(work: str, *signals: signal.Signals) -> tuple[int, list[str], str]:
    """Runs a process that sends itself these signals after each line that it reads; returns its exit code and lines."""
    code = PROLOGUE + textwrap.indent(textwrap.dedent(work), "    ")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for number in signals:
            os.kill(process.pid, number)
            assert process.stdout.readline() == "handled\n"
        said, errors = process.communicate(timeout=60)
    return process.returncode, said.splitlines(), errors


def test_one_that_does_nothing_ends_in_time() -> None:
    assert run("while True: time.sleep(0.1)", signal.SIGTERM) == (0, ["stopped"], "")


def test_one_that_ends_by_itself_is_left_alone() -> None:
    work = """
    handled.wait()
    sys.exit(3)
    """
    assert run(work, signal.SIGINT) == (3, [], "")


def test_a_job_that_begins_after_the_signal_is_not_ended() -> None:
    work = """
    handled.wait()
    busy.set()
    time.sleep(3.5)
    print("job", flush=True)
    busy.clear()
    while True: time.sleep(0.1)
    """
    assert run(work, signal.SIGTERM) == (0, ["job", "stopped"], "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
def test_further_signals_during_a_job_are_no_errors(number: signal.Signals) -> None:
    work = """
    busy.set()
    while len(signals) < 3: time.sleep(0.1)
    print("job", flush=True)
    busy.clear()
    while True: time.sleep(0.1)
    """
    assert run(work, signal.SIGTERM, number, number) == (0, ["job", "stopped"], "")
