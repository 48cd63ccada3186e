"""Where the uploads of a run are: a directory on a small disk, or a bucket whose requests fail."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from tests.durability.small_disk import SmallDisk
from tests.s3 import servers
from tests.s3.contents import Contents
from tests.s3.proxies import EVERY_FAULT, FaultProxy
from tests.s3.servers import BUCKET, ENVIRONMENT
from tests.soak.plan import DISK, MIB, MOUNTED, Kind

_DISK_MEBIBYTES = 8 * 1024
"""Takes the uploads that the clients of a long run keep; only `disk full` fills it up. The image has holes."""
_BUCKET_RATE = 0.1
"""Share of the requests to a bucket that fail."""
_EMPTY = ("new", "verifying", "outbox", "outbox-failed", "untold")
"""Directories of the state directory in which no file stays."""
_STAYS = (".tusd-py/gone/", ".tusd-py/finals/", ".tusd-py/swept", ".tusd-py/awaiting/")


class Store(ABC):
    """What the driver needs to know of it. env: of servers. largest: bytes of an upload. without: kinds of faults."""

    flags: tuple[str, ...] = ()
    env: dict[str, str] = {}  # noqa: RUF012 - set by instances
    upload_dir: Path | None = None
    largest: int
    part: int | None = None
    """Bytes after which what is verified may count, though not all of its chunk does yet; None where it counts as a whole."""
    patience_seconds = 120.0
    """How long an upload may go without progress."""
    without: frozenset[Kind] = frozenset()

    @abstractmethod
    def waiting_events(self) -> set[str]:
        """The events that wait for a worker."""

    @abstractmethod
    def leftovers(self, kept: set[str]) -> set[str]:
        """What is there after a sweep besides the uploads with these ids."""

    def inject(self, seed: int, *, fails: bool) -> None:  # noqa: B027 - a directory fails in other ways
        """Whether requests of the servers to it fail from now on."""

    def faults(self) -> dict[str, int]:
        """How often which kind was injected by the store itself."""
        return {}


def is_root() -> bool:
    return os.geteuid() == 0 and all(
        map(shutil.which, ("mount", "umount", "mkfs.ext4", "fsfreeze"))
    )


class FileStore(Store):
    """A directory, on a file system of its own if the user may mount one: then it can be full, and stall."""

    largest = 600 * 1024

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.disk: SmallDisk | None = None
        root = directory
        if is_root():
            self.disk = SmallDisk(directory, "ext4", _DISK_MEBIBYTES)
            stack.enter_context(self.disk.mounted())
            root = self.disk.root
        else:
            self.without = MOUNTED
        self.upload_dir = root / "uploads"
        self.upload_dir.mkdir()
        self.env = {"SOAK_UPLOADS": str(self.upload_dir)}
        self.flags = ("--hook", str(Path(__file__).with_name("inside.py")))
        self._state = self.upload_dir / ".tusd-py"

    def waiting_events(self) -> set[str]:
        return _files(self._state / "outbox")

    def leftovers(self, kept: set[str]) -> set[str]:
        names = {entry.name for entry in self._state.parent.iterdir()} - {".tusd-py", "lost+found"}
        expected = kept | {f"{name}.info" for name in kept}
        state = {name for directory in _EMPTY for name in _files(self._state / directory)}
        return (names ^ expected) | state


class BucketStore(Store):
    """A prefix of a bucket behind a proxy that injects faults. It shows at once what was written, as the docs demand."""

    largest = 7 * MIB
    part = 5 * MIB
    # A tenth of its requests fail, or wait for seconds.
    patience_seconds = 300.0
    without = DISK

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        store = servers.shared("seaweedfs")
        self._proxy = stack.enter_context(FaultProxy(store.address))
        prefix = f"{uuid4().hex}/"
        self._contents = Contents(store, prefix)
        self.flags = (
            *("--s3-bucket", BUCKET, "--s3-endpoint", self._proxy.endpoint),
            *("--s3-part-size", str(self.part)),
            *("--s3-flush-interval", "300ms", "--s3-timeout", "4s"),
            *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
        )
        self.env = {**ENVIRONMENT, "TUSD_UPLOAD_DIR": str(directory / "jobs")}

    def inject(self, seed: int, *, fails: bool) -> None:
        kinds = [fault for fault in EVERY_FAULT if fault != "lag"]
        self._proxy.inject(seed=seed, rate=_BUCKET_RATE if fails else 0.0, kinds=kinds)

    def faults(self) -> dict[str, int]:
        return {f"bucket: {kind}": count for kind, count in list(self._proxy.injected.items())}

    def waiting_events(self) -> set[str]:
        found = self._contents.keys()
        return {key for key in found if key.startswith(".tusd-py/outbox/")}

    def leftovers(self, kept: set[str]) -> set[str]:
        self._contents.tidy()
        keys = self._contents.keys()
        found = {key for key in keys if not key.startswith(_STAYS)}
        expected = kept | {f"{name}.info" for name in kept}
        return (found ^ expected) | self._contents.pending()


def _files(directory: Path) -> set[str]:
    return {
        f"{Path(parent).relative_to(directory.parent)}/{name}"
        for parent, _, names in os.walk(directory)
        for name in names
    }


STORES: dict[str, type[FileStore | BucketStore]] = {"file": FileStore, "s3": BucketStore}
