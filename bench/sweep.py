"""`python -m bench.sweep`: how fast what was abandoned is swept away, in what memory, and what a sweep of what is due costs.

Not part of the comparison with other servers. What is swept are real uploads on a disk, by the server itself (locks in its
memory) and by the command beside it (locks in a Redis); see bench/results for what it showed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.servers import ROOT
from tusd_py.locks.memory import MemoryLocks
from tusd_py.redis import RedisClient
from tusd_py.redis.due_index import DueIndex
from tusd_py.redis.embedded.server import EmbeddedRedis
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file import records
from tusd_py.storage.file.store import FileStore
from tusd_py.uploads.policy import UploadPolicy
from tusd_py.uploads.service import Uploads
from tusd_py.uploads.sweep import Sweep

_CONTENT = bytes(1024)
_DAY = 86_400.0
_START_TIMEOUT = 60.0
_FAR = 10 * 365 * _DAY
_REGISTRY_STEP = 10_000
_DUE = 1000


@dataclass(frozen=True, slots=True)
class Swept:
    """seconds: from asking for it to its end. cpu: CPU seconds of who swept. peak: bytes of memory that they had at most."""

    seconds: float
    cpu: float
    peak: int


def main() -> int:
    """Returns the exit code."""
    arguments = _parser().parse_args()
    work: Path = arguments.work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for what in arguments.what or ("memory", "redis", "due"):
            _MEASURES[what](work, arguments)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.sweep", description=__doc__)
    add = parser.add_argument
    add("what", nargs="*", metavar="memory | redis | due", help="all three unless told")
    add("--uploads", type=int, default=100_000, help="abandoned uploads to be swept (100,000)")
    add("--known", type=int, nargs="+", default=[10_000, 1_000_000], help="for due: sizes")
    add("--duplicates", choices=["on", "off"], default="on")
    add("--work", type=Path, default=ROOT / "build" / "bench" / "sweep", help="on which disk")
    return parser


# Uploads on a disk


def _abandon(directory: Path, count: int) -> None:
    """Puts unfinished uploads there that had their last byte eight days ago, as the server would have."""
    began = time.monotonic()
    then = time.time() - 8 * _DAY
    root = str(directory)
    for number in range(count):
        name = os.urandom(16).hex()
        header = f"filename {_base64(f'study-{number}.zip')},patient {_base64(name)}"
        info = UploadInfo(
            id=name,
            length=1_000_000,
            metadata={"filename": f"study-{number}.zip".encode(), "patient": name.encode()},
            metadata_header=header,
            created_at=then,
        )
        (directory / f"{name}.info").write_bytes(records.serialize(info, root=root))
        path = directory / name
        path.write_bytes(_CONTENT)
        os.utime(path, (then, then))
    os.sync()
    _say(f"{count:,} uploads made in {time.monotonic() - began:.0f} s")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _by_server(work: Path, arguments: argparse.Namespace) -> None:
    """Locks in memory: the server is asked by the command, and sweeps."""
    directory = work / "memory"
    directory.mkdir()
    with _server(directory, {"TUSD_DUPLICATES": arguments.duplicates}) as pid:
        _abandon(directory, arguments.uploads)
        processes.forget_peaks(pid)
        cpu = processes.cpu_seconds(pid)
        seconds, _, _ = _sweep(directory, {"TUSD_DUPLICATES": arguments.duplicates})
        swept = Swept(seconds, processes.cpu_seconds(pid) - cpu, _peak(pid))
    _report(f"{arguments.uploads:,} abandoned, locks in memory (in the server)", swept)
    _check_empty(directory)


def _by_command(work: Path, arguments: argparse.Namespace) -> None:
    """Locks in Redis: the command, as a worker would, beside whatever servers there are."""
    directory = work / "redis"
    directory.mkdir()
    _abandon(directory, arguments.uploads)
    with _redis(work) as url:
        env = {"TUSD_REDIS_URL": url, "TUSD_DUPLICATES": arguments.duplicates}
        swept = Swept(*_sweep(directory, env))
    _report(f"{arguments.uploads:,} abandoned, locks in Redis (by the command)", swept)
    _check_empty(directory)


def _sweep(directory: Path, env: Mapping[str, str]) -> tuple[float, float, int]:
    began = time.perf_counter()
    process = subprocess.Popen(
        # Everything goes, which a sweep does only when told.
        [
            *(sys.executable, "-m", "tusd_py", "sweep", "--force", "--json"),
            *("--upload-dir", str(directory)),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, **env},
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    summary = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    process.stdout.close()
    _say(f"{summary}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _peak(pid: int) -> int:
    """Bytes of memory that this one process had at most."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _check_empty(directory: Path) -> None:
    left = sum(1 for entry in os.scandir(directory) if entry.is_file())
    if left:
        raise SystemExit(f"{left} files are left in {directory}")


@contextmanager
def _server(directory: Path, env: Mapping[str, str]) -> Iterator[int]:
    """A server with its embedded Redis that does not sweep by itself meanwhile; its process id."""
    log = directory.parent / "server.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tusd_py", "serve", "--port", "0", "--jobs", "off"),
                *("--sweep-interval", "1d", "--upload-dir", str(directory)),
            ],
            stderr=stderr,
            env={**os.environ, **env},
            cwd=ROOT,
        )
    try:
        deadline = time.monotonic() + _START_TIMEOUT
        while "Uploads at" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _redis(work: Path) -> Iterator[str]:
    embedded = EmbeddedRedis(work / "state")
    try:
        yield embedded.start()
    finally:
        embedded.stop()


# What is due, of what is known


def _due(work: Path, arguments: argparse.Namespace) -> None:
    directory = work / "due"
    directory.mkdir()
    with _redis(work) as url:
        asyncio.run(_due_sweeps(directory, url, arguments.known))


async def _due_sweeps(directory: Path, url: str, sizes: list[int]) -> None:
    store = FileStore(directory)
    store.open()
    redis = RedisClient(url, timeout=30.0)
    await redis.start()
    registry = DueIndex(redis)
    uploads = Uploads(store, MemoryLocks(), policy=UploadPolicy())
    far = time.time() + _FAR
    for known in sizes:
        await redis.command("FLUSHALL")
        await registry.mark_whole(await registry.data_mark())
        for start in range(0, known, _REGISTRY_STEP):
            names = range(start, min(known, start + _REGISTRY_STEP))
            await registry.update({f"{name:032x}": far + name for name in names})
        for due in (0, _DUE):
            _abandon(directory, due)
            ids = [entry.name for entry in os.scandir(directory) if entry.name.endswith(".info")]
            await registry.update(dict.fromkeys((name[:-5] for name in ids), 1.0))
            began, cpu = time.perf_counter(), time.process_time()
            report = await Sweep(uploads, registry).check_due()
            assert (report.seen, report.expired) == (due, due), report
            seconds = time.perf_counter() - began
            text = f"{known:,} known, {due:,} due"
            _say(
                f"{text:60} {seconds * 1e3:8.1f} ms {(time.process_time() - cpu) * 1e3:8.1f} CPU ms"
            )
    await redis.stop()
    store.close()


def _report(what: str, swept: Swept) -> None:
    _say(f"{what:60} {swept.seconds:6.1f} s {swept.cpu:6.1f} CPU s {swept.peak / 1e6:6.0f} MB peak")


def _say(text: str) -> None:
    print(text, flush=True)


_MEASURES = {"memory": _by_server, "redis": _by_command, "due": _due}


if __name__ == "__main__":
    sys.exit(main())
