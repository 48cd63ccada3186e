"""Keeps memory that was never touched out of the measurements.

On virtual machines a page costs ten times a copy at its first use, as the host has to provide it, and freed memory goes back
to the host within seconds. So a process of its own takes all memory, and gives a pool of it free just before something is
measured: what is then used was touched a moment ago. Afterwards it takes the pool again. It is the first to go if memory gets
short.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

_BLOCK = 32 * 1024 * 1024
_LEFT = 512 * 1024 * 1024
"""Bytes that stay free, for everything else on the machine."""
_MADV_POPULATE_WRITE = 23


class Pool:
    """Memory that is kept warm: a context manager. size: bytes that `release` gives free; 0 does nothing at all."""

    def __init__(self, size: int, *, cpus: set[int], say: Callable[[str], None]) -> None:
        self._size = size
        self._cpus = cpus
        self._say = say
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._size:
            self._holder = subprocess.Popen(
                [sys.executable, "-m", "bench.memory", str(self._size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[1],
            )
            os.sched_setaffinity(self._holder.pid, self._cpus)
            self._say("taking the memory that was never touched (seconds to a minute)")
            self.grab()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            self._holder = None

    def grab(self) -> None:
        """Takes all memory that is free."""
        self._order("grab")

    def release(self) -> None:
        """Gives the pool free, to be used within the next seconds."""
        self._order("release")

    def release_all(self) -> None:
        """Gives everything free, for what is slow on a machine that has little memory left to cache files in."""
        self._order("release all")

    def _order(self, order: str) -> None:
        if self._holder is None:
            return
        try:
            requests = cast(IO[bytes], self._holder.stdin)
            requests.write(f"{order}\n".encode())
            requests.flush()
            done = cast(IO[bytes], self._holder.stdout).readline()
        except BrokenPipeError:
            done = b""
        if not done:
            self._holder.wait()
            self._holder = None
            self._say("WARNING: memory got short and is no longer held: what follows may be cold")


def _free() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not tell how much memory is free")


def _block() -> mmap.mmap:
    block = mmap.mmap(-1, _BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    try:
        block.madvise(_MADV_POPULATE_WRITE)
    except OSError:
        # Before Linux 5.14.
        block.write(bytes(_BLOCK))
    return block


def _hold(size: int) -> None:
    """The process that holds: carries out the orders of standard input until it ends."""
    Path("/proc/self/oom_score_adj").write_text("1000")
    blocks: list[mmap.mmap] = []
    for order in sys.stdin:
        if order == "grab\n":
            while _free() > _LEFT + _BLOCK:
                blocks.append(_block())
        else:
            wanted = len(blocks) if order == "release all\n" else size // _BLOCK
            for _ in range(min(wanted, len(blocks))):
                blocks.pop().close()
        print(len(blocks), flush=True)


if __name__ == "__main__":
    _hold(int(sys.argv[1]))
