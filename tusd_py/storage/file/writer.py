"""A writer whose bytes count as they are written: inline while the disk is quick, in a thread while it is slow (`disk.py`)."""

from __future__ import annotations

from collections.abc import Awaitable

from tusd_py.protocol.checksum import Checksum
from tusd_py.storage.errors import translated
from tusd_py.storage.file.data_file import DataFile
from tusd_py.storage.file.disk import Disk


class FileWriter:
    """Appends bytes to one data file that count at once; see `Writer`."""

    __slots__ = ("_closed", "_disk", "_file")

    def __init__(self, file: DataFile, disk: Disk) -> None:
        self._file = file
        self._disk = disk
        self._closed = False

    @property
    def offset(self) -> int:
        return self._file.end

    def get_buffer(self) -> memoryview | None:
        return None

    def write(self, data: memoryview) -> Awaitable[None] | None:
        with translated("writing"):
            rest = self._disk.write(self._file.write, data)
        return None if rest is None else _translated_write(rest)

    async def verify(self, checksum: Checksum) -> bool:
        raise RuntimeError("not a verified chunk")

    async def discard(self) -> None:
        with translated("cutting back"):
            await self._disk.change(self._file.cut_back)

    def abandon(self) -> None:
        """Nothing to do: each write counted when it was made."""

    async def close(self, *, sync: bool) -> None:
        if self._closed:
            return
        self._closed = True
        await self._file.settle()
        try:
            await self._file.check_losses()
            if sync:
                await self._file.sync()
        finally:
            self._file.close()


async def _translated_write(rest: Awaitable[None]) -> None:
    with translated("writing"):
        await rest
