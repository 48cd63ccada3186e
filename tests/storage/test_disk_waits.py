"""An operation that waits for a processor does not count as a slow disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tusd_py.storage.file import disk as disk_module
from tusd_py.storage.file import disk_waits
from tusd_py.storage.file.disk import _TRIAL_BYTES, Disk
from tusd_py.storage.file.disk_waits import WaitClock
from tusd_py.storage.file.threads import Threads

SLOW_SECONDS = 0.15
"""In place of the real limit, which a thread that waits for a processor of a busy machine exceeds, too."""
LONG = 3 * SLOW_SECONDS


class Kernel:
    """Stands in for the kernel's count. delay: seconds without a processor."""

    delay = 0.0

    def read(self) -> float:
        return self.delay

    def sleep(self, *, counted: float) -> None:
        """Sleep for a long time, of which this fraction is without a processor. A busy machine wakes a thread late."""
        began = time.monotonic()
        time.sleep(LONG)
        self.delay += counted * (time.monotonic() - began)


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "SLOW_SECONDS", SLOW_SECONDS)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(disk_waits, "_Counter", lambda: kernel)
    return kernel


@pytest.fixture
def disk(kernel: Kernel) -> Iterator[Disk]:
    threads = Threads("test")
    disk = Disk(threads)
    yield disk
    disk.close()
    threads.close()


def quick() -> None:
    """An operation that waits for nothing."""


async def inline(disk: Disk, operation: Callable[[], None]) -> None:
    """Runs an operation in the event loop."""
    await disk.change(quick)
    with disk.observed():
        operation()


async def helper(disk: Disk, operation: Callable[[], None]) -> None:
    """Runs the first operation, for which the event loop waits no longer than for a quick disk."""
    await disk.change(operation)


async def thread(disk: Disk, operation: Callable[[], None]) -> None:
    """Runs an operation in a thread, as those that come while the helper is busy."""
    await disk._changes._run_in_thread(operation)


Way = Callable[[Disk, Callable[[], None]], Awaitable[None]]
WAYS = pytest.mark.parametrize("way", [inline, helper, thread])


@WAYS
async def test_a_thread_without_a_processor_is_no_slow_disk(
    disk: Disk, kernel: Kernel, way: Way
) -> None:
    await way(disk, lambda: kernel.sleep(counted=1.0))
    assert disk._changes._slow_until == float("-inf")


@WAYS
async def test_a_wait_for_the_disk_is_one_though_the_machine_is_busy(
    disk: Disk, kernel: Kernel, way: Way
) -> None:
    await way(disk, lambda: kernel.sleep(counted=1 / 3))
    assert disk._changes._slow_until > float("-inf")


@pytest.mark.parametrize("is_slow", [False, True], ids=["quick", "slow"])
async def test_a_disk_is_tried_with_the_first_bytes_of_a_write(
    disk: Disk, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others follow in the event loop if it is quick, else from a copy in a thread."""
    if not is_slow:
        # However long the helper waits for a processor.
        monkeypatch.setattr(disk_module, "SLOW_SECONDS", 60.0)
    received = memoryview(bytearray(os.urandom(3 * _TRIAL_BYTES)))
    whole, written = bytes(received), bytearray()
    threads: list[int] = []

    def write(data: memoryview) -> None:
        threads.append(threading.get_ident())
        if is_slow:
            time.sleep(LONG)
        written.extend(data)

    waiting = disk.write(write, received)
    received[:] = bytes(len(whole))
    if waiting is not None:
        await waiting
    assert bytes(written) == whole
    assert (waiting is not None) == is_slow
    first, *others = threads
    assert first != threading.get_ident()
    assert (others == [threading.get_ident()]) == (not is_slow)


def test_what_was_lacked_before_an_operation_does_not_count_for_it(kernel: Kernel) -> None:
    clock = WaitClock()
    clock.look(10.0)
    kernel.delay = 0.5
    assert clock.waited(10.5, 10.6) == pytest.approx(0.1)


@pytest.mark.skipif(not os.path.exists(disk_waits._PATH), reason="the system does not tell")
def test_the_kernel_tells_what_a_thread_lacked_and_no_sleep() -> None:
    spin = "while True: pass"
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    others = [
        subprocess.Popen(["taskset", "-c", str(min(one)), sys.executable, "-c", spin])
        for _ in range(3)
    ]
    try:
        os.sched_setaffinity(0, one)
        clock = WaitClock()
        began = time.monotonic()
        clock.look(began)
        used = time.thread_time()
        while time.thread_time() - used < 0.1:
            pass
        ended = time.monotonic()
        waited = clock.waited(began, ended)
        assert ended - began > 0.15, "the others did not run"
        assert 0.09 < waited < (ended - began) * 0.9
        began = time.monotonic()
        clock.look(began)
        time.sleep(0.1)
        assert clock.waited(began, time.monotonic()) > 0.09
    finally:
        os.sched_setaffinity(0, allowed)
        for other in others:
            other.kill()
            other.wait()
