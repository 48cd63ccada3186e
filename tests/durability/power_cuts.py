"""Cuts the power of a disk that uploads come in on, again and again, and serves what is on the disk after each cut.

    python -m tests.durability.power_cuts --seed 1 --cuts 50 --filesystem ext4 --durability finish

Needs root, loop devices, and mkfs.xfs: a cut is an atomic copy (a reflink on XFS) of the file that is the disk. Uploads come in
by several clients: small ones and large ones, in one request and in several, with right checksums, wrong ones and none. Then

- no request to any record is answered with a 5xx, nor does any record stand in the way of another;
- with durability `finish` and `chunk`, what was acknowledged as finished has the right bytes;
- with durability `chunk`, what was acknowledged counts;
- no byte counts of a chunk whose checksum was not verified;
- uploads go on from the offset that HEAD tells, or are removed.

Prints a line for each thing that is wrong, and the counts; the exit code tells whether there was any. Not for: kills.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.durability.volume import run_tool, unmount
from tests.support.server import ServerProcess
from tests.support.tus import Tus, checksum

CLIENTS = 8
MOST_FINISHED = 80
"""So many of those that clients know to be finished are looked at after a cut, as there are soon thousands."""
SETTINGS = {"TUSD_JOBS": "off", "TUSD_DUPLICATES": "off"}
SIZES = (1, 700, 3000, 5000, 40_000, 300_000, 2_500_000, 12_000_000)
WEIGHTS = (1, 2, 8, 8, 8, 4, 2, 1)
DISK = 2 * 1024**3


@dataclass
class Sent:
    """A client's knowledge of an upload. acknowledged: the highest acknowledged offset.

    ends: where its chunks end, if it sends all of them with checksums, so that no other length can count.
    """

    data: bytes
    ends: set[int] | None
    acknowledged: int = 0
    finished: bool = False
    removed: bool = False


@dataclass
class Report:
    """Counts of what was looked at, and lines about what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def complain(self, text: str) -> None:
        self.wrong.append(text)
        print("WRONG:", text, flush=True)


class Clients:
    """Upload without an end, and remember what they were told."""

    def __init__(self, tus: Tus, seed: int) -> None:
        self.sent: dict[str, Sent] = {}
        self._tus = tus
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}/{number}"),))
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def told(self) -> dict[str, Sent]:
        """The acknowledged offsets; concurrent acknowledgements may be included."""
        with self._lock:
            return {
                path: Sent(each.data, each.ends, each.acknowledged, each.finished, each.removed)
                for path, each in self.sent.items()
            }

    def _run(self, chance: random.Random) -> None:
        while not self._stopping.is_set():
            # The server is killed in the end.
            with suppress(OSError, AssertionError):
                self._upload(chance)

    def _upload(self, chance: random.Random) -> None:
        data = chance.randbytes(chance.choices(SIZES, WEIGHTS)[0])
        pieces = chance.choice((1, 1, 2, 2, 3, 7))
        ends = sorted({*chance.choices(range(1, len(data) + 1), k=pieces - 1), len(data)})
        verified = chance.random() < 0.5
        sent = Sent(data, {0, *ends} if verified else None)
        path = self._tus.new(len(data))
        with self._lock:
            self.sent[path] = sent
        begin = 0
        for end in ends:
            if self._stopping.wait(chance.choice((0.0, 0.0, 0.05, 0.5))):
                return
            piece = data[begin:end]
            if verified and chance.random() < 0.3:
                wrong = chance.randbytes(len(piece))
                headers = {"Upload-Checksum": checksum(b"another")}
                assert self._tus.patch(path, begin, wrong, headers).status == 460
            headers = {"Upload-Checksum": checksum(piece)} if verified else {}
            assert self._tus.patch(path, begin, piece, headers).status == 204
            with self._lock:
                sent.acknowledged, sent.finished = end, end == len(data)
            begin = end
        if chance.random() < 0.05:
            with self._lock:
                sent.removed = True
            self._tus.delete(path)


class Disk:
    """A file system in a file on an XFS in a file, below `place`."""

    def __init__(self, place: Path, filesystem: str) -> None:
        self.root = place / "mounted"
        self._place = place
        self._filesystem = filesystem
        self._outer = place / "outer"

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Made and mounted."""
        with (
            _image(self._place / "outer.img", "xfs", DISK * 3) as outer,
            _mounted(outer, self._outer),
            _image(self._outer / "disk", self._filesystem, DISK) as disk,
            _mounted(disk, self.root),
        ):
            yield

    @contextmanager
    def after_power_cut(self) -> Iterator[Path]:
        """Mount a copy of the disk as it is now."""
        copy = self._outer / "copy"
        run_tool("cp", "--reflink=always", str(self._outer / "disk"), str(copy))
        options = "loop,nouuid" if self._filesystem == "xfs" else "loop"
        with _mounted(copy, self._place / "after", options):
            yield self._place / "after"
        copy.unlink()


@contextmanager
def _image(path: Path, filesystem: str, size: int) -> Iterator[Path]:
    with path.open("wb") as file:
        file.truncate(size)
    options = ["-m", "reflink=1"] if filesystem == "xfs" else []
    run_tool(f"mkfs.{filesystem}", "-q", *options, str(path))
    yield path
    path.unlink()


@contextmanager
def _mounted(image: Path, root: Path, options: str = "loop") -> Iterator[None]:
    root.mkdir(exist_ok=True)
    run_tool("mount", "-o", options, str(image), str(root))
    try:
        yield
    finally:
        unmount(root)


class Cut:
    """The findings after one cut. told: what was acknowledged to clients before it."""

    def __init__(self, tus: Tus, told: dict[str, Sent], durability: str, report: Report) -> None:
        self._tus = tus
        self._told = told
        self._durability = durability
        self._report = report

    def look_at_all(self, chance: random.Random) -> None:
        """At every upload that clients know of or that has a record, and at some of those that are finished."""
        records = self._tus.server.upload_dir.glob("*.info")
        paths = {self._tus.server.base_path + record.name[:-5] for record in records}
        self._report.counts["records"] += len(paths)
        finished = [path for path, sent in self._told.items() if sent.finished]
        skipped = set(chance.sample(finished, max(0, len(finished) - MOST_FINISHED)))
        for path in sorted((paths | self._told.keys()) - skipped):
            sent = self._told.get(path)
            head = self._tus.head(path)
            if head.status not in (200, 404, 410):
                self._report.complain(f"{path}: HEAD {head.status}")
            elif sent is None:
                self._remove(path, head.status)
            elif not sent.removed:
                self._look_at(path, sent, head.status, chance)

    def _look_at(self, path: str, sent: Sent, status: int, chance: random.Random) -> None:
        counts, is_there = self._report.counts, status == 200
        offset = self._tus.offset(path) if is_there else 0
        if sent.finished and self._durability != "none":
            counts["acknowledged finishes"] += 1
            if self._tus.get(path).body != sent.data:
                self._report.complain(f"{path}: finished, acknowledged, and not as it was sent")
            return
        if self._durability == "chunk":
            counts["acknowledged chunks"] += sent.acknowledged > 0
            if not is_there or offset < sent.acknowledged:
                self._report.complain(
                    f"{path}: {sent.acknowledged} bytes were acknowledged, {offset} count"
                )
        if not is_there:
            counts["not on the disk"] += 1
            return
        if sent.ends is not None and offset not in sent.ends:
            counts["cut in the middle of a chunk"] += 1
        stored = self._tus.stored(path)[:offset]
        if stored != sent.data[:offset]:
            self._complain_of_bytes(path, sent, stored)
        elif chance.random() < 0.2:
            self._remove(path, status)
        elif offset < len(sent.data):
            self._go_on(path, sent, offset)

    def _complain_of_bytes(self, path: str, sent: Sent, stored: bytes) -> None:
        first = next(at for at, byte in enumerate(stored) if byte != sent.data[at])
        zeros = not any(stored[first : (first // 4096 + 1) * 4096])
        self._report.complain(
            f"{path}: {len(stored)} of {len(sent.data)} bytes count, {sent.acknowledged} were acknowledged, they are wrong "
            f"from {first} on ({'zeros' if zeros else 'others'}, verified: {sent.ends is not None})"
        )

    def _go_on(self, path: str, sent: Sent, offset: int) -> None:
        self._report.counts["went on"] += 1
        status = self._tus.patch(path, offset, sent.data[offset:]).status
        if status != 204 or self._tus.get(path).body != sent.data:
            self._report.complain(
                f"{path}: went on at {offset}: {status}, or is not as it was sent"
            )

    def _remove(self, path: str, status: int) -> None:
        self._report.counts["removed"] += 1
        expected = (204,) if status == 200 else (404, 410)
        if (found := self._tus.delete(path).status) not in expected:
            self._report.complain(f"{path}: HEAD {status}, DELETE {found}")


def cut_power(place: Path, *, seed: int, cuts: int, filesystem: str, durability: str) -> Report:
    """Does so in the directory `place`."""
    report, chance = Report(), random.Random(seed)
    flags = ("--durability", durability)
    disk = Disk(place, filesystem)
    with disk.mounted():
        server = ServerProcess(disk.root / "uploads", *flags, env=SETTINGS)
        with server:
            clients = Clients(Tus(server), seed)
            try:
                for number in range(cuts):
                    time.sleep(chance.uniform(0.2, 2.0))
                    if chance.random() < 0.3:
                        # As the system does by itself every few seconds.
                        run_tool("sync", "-f", str(disk.root))
                        time.sleep(chance.uniform(0.0, 0.3))
                    told = clients.told()
                    with disk.after_power_cut() as root:
                        (root / "uploads").mkdir(exist_ok=True)
                        with ServerProcess(root / "uploads", *flags, env=SETTINGS) as after:
                            Cut(Tus(after), told, durability, report).look_at_all(chance)
                    report.counts["cuts"] += 1
                    print(f"cut {number + 1}: {dict(report.counts)}", flush=True)
            finally:
                server.kill9()
                clients.stop()
    return report


def main() -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="power_cuts", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--filesystem", choices=("ext4", "xfs"), default="ext4")
    parser.add_argument("--durability", choices=("none", "finish", "chunk"), default="finish")
    options = parser.parse_args()
    # What is mounted is unmounted, and the servers end, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="power-cuts-") as place:
        report = cut_power(Path(place), **vars(options))
    print(
        f"{options.filesystem}, durability {options.durability}, seed {options.seed}: {dict(report.counts)}, "
        f"{len(report.wrong)} wrong"
    )
    return bool(report.wrong)


if __name__ == "__main__":
    sys.exit(main())
