"""Uploads as files on a local or shared file system, in tusd's layout.

`<id>` holds an upload's bytes and `<id>.info` its record. Everything else lies under `.tusd-py/`, a name that no id can have:

    new/                temporary files: records and joined files before they are renamed into place
    verifying/          <upload>: during a verified chunk, the length to cut back to (`markers.py`)
    chunks/             such markers of earlier versions
    sound/              <upload>: with durability chunk, the length of durable bytes that end in a zero (`power_cuts.py`)
    missing/            <upload>: an empty file, as old as it is known that the upload's bytes are missing (`cleanup.py`)
    gone/               <upload>: a tombstone; one that is not empty is an unfinished removal (`removal.py`)
    untold/             records of removed uploads whose event is not in the outbox yet (`removal.py`)
    awaiting/           <part>/<final>: finals that list a part and are not joined yet (`finals.py`)
    finals/             <key>: the final created from a list of parts, so that its creation can be repeated (`finals.py`)
    outbox/             events to be delivered (`outbox.py`)
    outbox-failed/      events whose delivery failed for good (`outbox.py`)
    id                  the directory's id, by which its volume is recognized (`volume.py`)
    session             which boot and mount this is (`power_cuts.py`)
    in-session/         <upload>: the number of the session, if it was written to in it and not finished (`power_cuts.py`)
    write-back-failed   its mtime is the number of the disk's last loss of bytes (`losses.py`)
    since-loss/         <upload>: the number of the last loss when the upload was begun, if there was one (`losses.py`)
    swept, sweep-held   their mtimes are when the last sweep ended, and since when one is held (`sweep_marks.py`)
    server.lock         locked by the running server (`volume.py`)
    locks               an empty file; servers that share the directory lock ranges of it (`locks/ofd.py`)
    epochs/             <upload>: which holder's changes count after a takeover (`locks/epochs.py`)

With `--finished-dir`, finished uploads have second names elsewhere: hard links (`finished.py`).

Other parts of the server keep their files there too, unless there is a `--state-dir`: the embedded Redis, `redis-seen`, keys,
metrics and the control socket.

Why the store survives a kill at any instant: the offset is the length of the data file, so nothing has to be kept in step with
it. Records are replaced by rename, or their last bytes by one write. A new upload's record is created before its data file and
filled after it, and a removed upload's record goes before its data file, so there is never data without a record, and an upload
exists once its record has content. A join becomes visible by one rename. Small operations run inline while the disk is quick
(`disk.py`); syncs, joins and removals run in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

from tusd_py import logs
from tusd_py.locks.base import UNFENCED, Fence, LeaseLost, Locks
from tusd_py.protocol.tus import Content
from tusd_py.storage.base import (
    DiskSpace,
    Guard,
    LocationRefused,
    RemovalEvent,
    StorageError,
    UnpublishedRemoval,
    Upload,
    UploadInfo,
    Writer,
)
from tusd_py.storage.errors import takes_nothing
from tusd_py.storage.errors import translated as _translated
from tusd_py.storage.file.adoption import Adoption
from tusd_py.storage.file.buffers import BufferPool
from tusd_py.storage.file.cleanup import Cleanup
from tusd_py.storage.file.creation import Creation
from tusd_py.storage.file.data_file import DataFile
from tusd_py.storage.file.disk import Disk
from tusd_py.storage.file.files import write_new
from tusd_py.storage.file.finals import FinalRecords
from tusd_py.storage.file.finished import FinishedFiles
from tusd_py.storage.file.fsync import BytesLost, GroupSync, sync_path
from tusd_py.storage.file.joining import FileJoiner
from tusd_py.storage.file.layout import Layout, flat_name
from tusd_py.storage.file.listing import upload_ids
from tusd_py.storage.file.loading import UploadLoader, check_bytes, check_same
from tusd_py.storage.file.losses import Losses, LossWatch, Written, WrittenUploads, untrusted
from tusd_py.storage.file.markers import ChunkMarkers, UploadMarks
from tusd_py.storage.file.mounts import is_local
from tusd_py.storage.file.outbox import FileOutbox
from tusd_py.storage.file.power_cuts import Session
from tusd_py.storage.file.reader import FileReader
from tusd_py.storage.file.record_cache import RecordCache
from tusd_py.storage.file.record_writer import RecordWriter
from tusd_py.storage.file.removal import Removal, UnpublishedRemovals
from tusd_py.storage.file.sweep_marks import FileSweepMarks
from tusd_py.storage.file.threads import Threads
from tusd_py.storage.file.volume import DirectoryHeld, UploadVolume, lock_directory
from tusd_py.storage.file.writers import FileWriter, VerifiedFileWriter, hashing_threads
from tusd_py.storage.skipped import Skip, skip_entry

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_AMPLE_BYTES = 4 * 1024**3
"""Free space that cannot be used up within `_FREE_SPACE_SECONDS`."""
_FREE_SPACE_SECONDS = 0.25
"""Age up to which a measured free space is used again."""
_PROBE_SECONDS = 2.0
"""Time that a write of a few bytes may take before the health check fails."""


class FileStore:
    """Stores uploads under `root`.

    Args:
        root: The upload directory.
        dir_perms: Permission bits of new directories.
        file_perms: Permission bits of new files.
        writes_behind: Start writing large bodies to the disk while they arrive, so that the final sync is short.
        syncs_chunks: Every writer is closed with a sync.
        finished: Where finished files get names; None for nowhere.
    """

    verifies_chunks = True
    reads_unfinished = True
    most_bytes = None

    @property
    def has_one_clock(self) -> bool:
        return self._layout.is_local

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        dir_perms: int = 0o750,
        file_perms: int = 0o640,
        writes_behind: bool = False,
        syncs_chunks: bool = False,
        finished: FinishedFiles | None = None,
    ) -> None:
        self._finished = finished
        self._writes_behind = writes_behind
        self._syncs_chunks = syncs_chunks
        self._layout = layout = Layout(root, dir_perms=dir_perms, file_perms=file_perms)
        self.root = layout.root
        state = layout.state
        self._marks = UploadMarks(layout)
        self._session = Session(f"{state}/session", layout.new_path)
        self._guard: int | None = None
        self._threads = Threads("tusd-store")
        self._disk = Disk(self._threads)
        self.sweep_marks = FileSweepMarks(state, threads=self._threads, file_perms=file_perms)
        self._hashing = hashing_threads()
        self._losses = Losses(f"{state}/write-back-failed", self._marks.since_loss, file_perms)
        self._written = WrittenUploads(syncs_chunks=syncs_chunks)
        self._known = RecordCache()
        self.volume = UploadVolume(layout)
        self._records = RecordWriter(layout, volume=self.volume, cache=self._known)
        self._unpublished = UnpublishedRemovals(state, root=self.root)
        self._finals = FinalRecords(layout, self._records)
        self.joiner = FileJoiner(layout, self._finals, disk=self._disk, threads=self._threads)
        self._loader = UploadLoader(
            layout,
            volume=self.volume,
            cache=self._known,
            marks=self._marks,
            session=self._session,
            losses=self._losses,
            written=self._written,
            unpublished=self._unpublished,
            syncs_chunks=syncs_chunks,
        )
        self._adoption = Adoption(layout, loader=self._loader, records=self._records)
        self._removal = Removal(layout, self._marks, self._finals, self._unpublished, finished)
        self._creation = Creation(layout, self.volume, self._known, self._removal, finished)
        self._cleanup = Cleanup(layout, self._marks, self._removal, self._finals, self._loader)
        self._blocks = BufferPool()
        self._syncs = GroupSync(self.root, self._threads.executor, on_loss=self._losses.record)
        self._free = 0.0, 0
        self._probing: asyncio.Future[None] | None = None
        self.outbox = FileOutbox(layout, self._records, self._threads, self._disk, self._syncs)

    # Opening and closing

    def open(self, guard: Guard = "exclusive", *, wait: float = 0.0) -> None:
        """Create the directories and lock the upload directory; see `Store`.

        A full or read-only disk is no error but logged: uploads can still be served, and removals free space.
        """
        try:
            self._make_directories()
            self._layout.is_local = is_local(self.root)
            self._session.open()
            self._syncs.open()
            self.volume.open()
            if guard != "none":
                self._lock_directory(guard, wait)
            # What lies on this machine and is locked by this process, no other one changes.
            is_shared = guard != "exclusive" or not self._layout.is_local
            self._known.is_shared = is_shared
            for kind in self._marks.kinds:
                kind.open(is_shared=is_shared)
            self._losses.open(is_shared=is_shared)
            if self._finished is not None:
                self._finished.open(self.root, f"{self._layout.state}/server.lock")
        except OSError as problem:
            raise StorageError(
                f"cannot use {self.root} for uploads: {problem.strerror or problem}"
            ) from problem

    def _make_directories(self) -> None:
        """Create the directories and check that they can be written to. Raises OSError."""
        try:
            for directory in (
                self.root,
                self._layout.new,
                *self._marks.directories,
                self._layout.tombstones,
                self._unpublished.directory,
                *self._finals.directories,
            ):
                os.makedirs(directory, mode=self._layout.dir_perms, exist_ok=True)
            self._probe()
        except OSError as problem:
            if not takes_nothing(problem) or not os.path.isdir(self.root):
                raise
            logs.event(
                logger,
                logging.WARNING,
                "nothing can be stored",
                message=f"Nothing can be stored in {self.root} now: {problem.strerror}; existing uploads are still served, "
                "and sweeps and removals free space",
                reason=problem.strerror,
            )

    def _lock_directory(self, guard: Guard, wait: float) -> None:
        exclusive = guard == "exclusive"
        try:
            self._guard = lock_directory(
                f"{self._layout.state}/server.lock",
                exclusive=exclusive,
                perms=self._layout.file_perms,
                wait=wait,
            )
        except DirectoryHeld as holder:
            raise StorageError(
                f"{self.root} is being served by another process (pid {holder}); stop it first, use another directory, "
                "let all servers of this directory use one Redis (TUSD_REDIS_URL), wait for its end (--wait-for-directory), "
                "or in applications give TusApp(shared=True) to each of them"
            ) from None
        if exclusive:
            self._cleanup.begin_alone(os.fstat(self._guard).st_mtime)

    def close(self) -> None:
        """Like `stop`, but blocking."""
        self.joiner.close()
        self._disk.close()
        self._threads.close()
        self._hashing.executor.shutdown()
        self._syncs.close()
        if self._guard is not None:
            os.close(self._guard)
            self._guard = None

    async def stop(self) -> None:
        await asyncio.to_thread(self.close)

    def data_path(self, info: UploadInfo) -> str:
        """Path of an upload's bytes."""
        return self._layout.data_path(info)

    # The core

    def locate(self, upload_id: str, *, bucket: str, prefix: str, key: str) -> str:
        """See `Store`. A directory has no buckets; paths in it are chosen by `Changes.storage_path`."""
        raise LocationRefused(
            "uploads are in a directory, in which no bucket, prefix or key can be chosen"
        )

    async def create(self, info: UploadInfo, *, fence: Fence = UNFENCED) -> Upload:
        with _translated(f"creating {info.id}"):
            await self._disk.change(_fenced, fence, self._creation.create, info)
        return Upload(info, 0, info.created_at, joined=not info.is_final)

    async def load(self, upload_id: str) -> Upload:
        return await self._disk.read(self._loader.load, upload_id)

    async def recover(self, upload: Upload, *, fence: Fence) -> Upload:
        if upload.info.foreign and not upload.finished:
            upload = await self.adopt(upload, fence=fence)
        if upload.is_cut:
            with _translated(f"recovering {upload.id}"):
                await self._disk.change(self._cut_back, upload, fence)
            upload = upload._replace(is_cut=False)
        return upload

    def _cut_back(self, upload: Upload, fence: Fence) -> None:
        with fence():
            os.truncate(self._layout.data_path(upload.info), upload.offset)
            flat = flat_name(upload.id)
            self._marks.verifying.remove(flat)
            if (self._marks.sound.read(flat) or 0) > upload.offset:
                os.unlink(self._marks.sound.path(flat))

    async def adopt(self, upload: Upload, *, fence: Fence) -> Upload:
        """Replace the record that another server wrote by our own, durably; from then on ours says whether it is finished."""
        with _translated(f"taking over {upload.id}"):
            if self._layout.is_local and not upload.finished:
                # All of its bytes were told to clients as long as the record was the other server's.
                number = self._session.number
                await self._disk.change(_mark, self._marks.in_session, upload.id, number, fence)
            return await self._threads.run(self._adoption.adopt, upload, fence)

    async def open_writer(self, upload: Upload, content: Content, *, fence: Fence) -> Writer:
        if not content.verified:
            with _translated(f"opening {upload.id}"):
                return FileWriter(await self._disk.read(self._data_file, upload, fence), self._disk)
        return VerifiedFileWriter(
            lambda: self._data_file(upload, fence),
            upload.offset,
            self._hashing,
            self._blocks,
            self._disk,
            # While added bytes do not count yet.
            mark=lambda: _mark(self._marks.verifying, upload.id, upload.offset, fence),
            marks_slowly=self._marks.verifying.is_slow,
            checksum=content.checksum,
            length=content.length,
            fence=fence,
        )

    def _data_file(self, upload: Upload, fence: Fence) -> DataFile:
        self._forget_sound(upload, fence)
        loss = self._losses.number()
        if loss and not upload.offset:
            _mark(self._marks.since_loss, upload.id, loss, fence)
        written = self._written.begin(upload.id, upload.offset, loss)
        return DataFile(
            self._layout.data_path(upload.info),
            upload.offset,
            self._threads,
            writes_behind=self._writes_behind,
            fence=fence,
            watch=LossWatch(
                self._losses, written, lambda number: self._outlived(upload.id, number, fence)
            ),
            on_durable=lambda file: self._mark_sound(upload, file, fence),
            # Elsewhere power cuts are not looked for.
            on_written=partial(self._mark_written, upload, written, fence)
            if self._layout.is_local
            else None,
        )

    def _outlived(self, upload_id: str, loss: int, fence: Fence) -> None:
        # If it cannot be recorded, the upload begins again from 0.
        with suppress(OSError, LeaseLost):
            _mark(self._marks.since_loss, upload_id, loss, fence)

    def _mark_written(self, upload: Upload, written: Written, fence: Fence, file: DataFile) -> None:
        """Record that all bytes come from this session, unless they are soon those of a finished upload."""
        if written.is_marked or (file.end == upload.info.length and not file.ends_in_zero):
            return
        # Without a mark, zeros at their end may not count once the server has been started again.
        with suppress(OSError):
            _mark(self._marks.in_session, upload.id, self._session.number, fence)
            written.is_marked = True

    def _mark_sound(self, upload: Upload, file: DataFile, fence: Fence) -> None:
        """Record that durable bytes count although they end in a zero, as the remains of a power cut do."""
        if file.ends_in_zero:
            _mark(self._marks.sound, upload.id, file.end, fence)
            sync_path(self._marks.sound.directory)

    def _forget_sound(self, upload: Upload, fence: Fence) -> None:
        """Remove the mark of durable bytes that were taken back since: it must not count for those that replace them."""
        flat = flat_name(upload.id)
        if (self._marks.sound.read(flat) or 0) > upload.offset:
            with fence():
                self._marks.sound.remove(flat)

    async def save(self, info: UploadInfo, *, fence: Fence) -> None:
        with _translated(f"recording {info.id}"):
            tmp = await self._disk.change(self._records.write_record, info)
            try:
                # A rename may reach the disk before the renamed file's content; the record would then be empty.
                await self._syncs.sync(None, tmp)
            except BaseException:
                await self._disk.change(os.unlink, tmp)
                raise
            await self._disk.change(self._records.replace, info, tmp, fence)

    async def finish(self, info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        with _translated(f"finishing {info.id}"):
            await self._finish(info, sync=sync, fence=fence)
            written = self._written.of(info.id)
            if written is None or written.is_marked or written.may_be_marked:
                with suppress(OSError):
                    await self._disk.change(self._marks.in_session.remove, flat_name(info.id))

    async def _finish(self, info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        # Readers over a network see either the old or the new record only if it is renamed. A final's length changes
        # as well, which an ending written in place cannot express.
        if not self._layout.is_local or info.is_final:
            await self._finish_by_rename(info, sync=sync, fence=fence)
            return
        record = self._layout.info_path(info.id)
        own = self._is_own(info)
        if sync:
            await self._sync_data(
                info, record, directories=self._layout.directories(info), fence=fence
            )
        if not await self._disk.change(self._records.mark_finished, info, record, fence):
            await self._finish_by_rename(info, sync=sync, fence=fence)
        elif sync:
            try:
                await self._syncs.sync(None, record, own=own)
            except BaseException:
                await self._disk.change(self._records.mark_unfinished, info, record, fence)
                raise

    async def _finish_by_rename(self, info: UploadInfo, *, sync: bool, fence: Fence) -> None:
        tmp = await self._disk.change(self._records.write_record, info)
        if sync:
            try:
                await self._sync_data(info, tmp, fence=fence)
            except BaseException:
                await self._disk.change(os.unlink, tmp)
                raise
        await self._disk.change(self._records.replace, info, tmp, fence)
        if sync:
            await self._syncs.sync(None, directories=self._layout.directories(info))

    async def give_back(self, upload: Upload, content: bytes) -> None:
        """Replace our record by one in another server's format, durably. The upload must need no recovery."""
        with _translated(f"giving back {upload.id}"):
            await self._threads.run(self._adoption.give_back, upload.info, content)

    def path_of(self, info: UploadInfo) -> str:
        return info.finished_path or self._layout.data_path(info)

    async def name(self, upload: Upload, *, sync: bool, fence: Fence) -> UploadInfo:
        info, finished = upload.info, self._finished
        if finished is None or info.is_partial:
            return info
        data = self._layout.data_path(info)
        with _translated(f"naming {info.id}"):
            if sync:
                # First: bytes that the disk loses are cut off the file, whatever names it has by then.
                await self._sync_data(info, fence=fence)
            if not finished.holds(info.finished_path):
                # Of a finish that was interrupted under other settings.
                await self.take_name(info, fence=fence)
            for path in finished.candidates(info):
                if not await self._disk.read(finished.is_free, path, data):
                    continue
                if info.finished_path != path:
                    info = info._replace(finished_path=path)
                    await self.save(info, fence=fence)
                    if sync:
                        await self._syncs.sync(None, directories=self._layout.directories(info))
                if await self._disk.change(_fenced, fence, finished.link, data, path):
                    if sync:
                        await self._syncs.sync(None, directories=finished.directories(path))
                    return info
        raise StorageError(f"naming {info.id}: all names that --finished-dir gives it are taken")

    async def take_name(self, info: UploadInfo, *, fence: Fence) -> None:
        if info.finished_path and self._finished is not None:
            with _translated(f"taking the name of {info.id} back"):
                data = self._layout.data_path(info)
                path = info.finished_path
                await self._disk.change(_fenced, fence, self._finished.unlink, path, data)

    async def settle(self, upload_id: str, *, fence: Fence) -> None:
        """See `Store`. Bytes count once their writer is closed."""

    async def sync(self, upload: Upload, *, fence: Fence) -> None:
        info = upload.info
        with _translated(f"syncing {upload.id}"):
            record, directories = self._layout.info_path(info.id), self._layout.directories(info)
            await self._sync_data(info, record, directories=directories, fence=fence)

    async def _sync_data(
        self, info: UploadInfo, *files: str, directories: Sequence[str] = (), fence: Fence
    ) -> None:
        """Sync an upload's bytes, and other files and directories with them. Raises BytesLost, OSError.

        If that fails, the kernel may have dropped the bytes, and it reports the error only once: a second sync would succeed.
        So all bytes are discarded but those that every writer has synced, and the client sends them again.
        """
        path = self._layout.data_path(info)
        written, own = self._written.of(info.id), self._is_own(info)
        is_sure = (
            info.is_final
            or not info.length
            or self._syncs_chunks
            or (written is not None and written.has_witness)
        )
        try:
            await self._syncs.sync(
                path, *files, directories=directories, whole=not is_sure, own=own
            )
            if not is_sure:
                await self._disk.read(self._check_trust, info, written)
        except BytesLost:
            await self._disk.change(self._discard_lost, info, fence)
            raise

    def _is_own(self, info: UploadInfo) -> bool:
        """Whether this process has just written all bytes of an upload that it has not made durable."""
        written = self._written.of(info.id)
        return written is not None and written.has_witness and written.is_own

    def _check_trust(self, info: UploadInfo, written: Written | None) -> None:
        """Raise BytesLost if the disk lost bytes of any file since this one was first written to."""
        changed_at = os.stat(self._layout.data_path(info)).st_mtime_ns
        if self._losses.concerns(flat_name(info.id), changed_at) or (
            written is not None and written.loss != self._losses.number()
        ):
            raise untrusted()

    def _discard_lost(self, info: UploadInfo, fence: Fence) -> None:
        path = self._layout.data_path(info)
        written = self._written.of(info.id) if self._syncs_chunks else None
        with suppress(OSError, LeaseLost), fence():
            if not info.is_final:
                os.truncate(path, 0 if written is None else written.durable_to)
                return
            if info.finished_path and self._finished is not None:
                # First: without the data file nothing tells whose the name is.
                self._finished.unlink(info.finished_path, path)
            os.unlink(path)

    async def free_space(self) -> int | None:
        """See `Store`. An ample value may be a fraction of a second old."""
        now = time.monotonic()
        looked_at, free = self._free
        if free < _AMPLE_BYTES or now - looked_at > _FREE_SPACE_SECONDS:
            status = await self._space()
            free = status.f_bavail * status.f_frsize
            self._free = now, free
        return free

    async def disk_space(self) -> DiskSpace | None:
        status = await self._space()
        return DiskSpace(
            free=status.f_bavail * status.f_frsize,
            size=status.f_blocks * status.f_frsize,
            # Some file systems, btrfs for one, have no such limit.
            free_files=status.f_favail if status.f_files else None,
        )

    async def _space(self) -> os.statvfs_result:
        with _translated("reading the space of the disk"):
            try:
                return await self._disk.read(os.statvfs, self.root)
            except FileNotFoundError:
                await self._disk.read(self.volume.check)
                raise

    async def check(self) -> None:
        if self._probing is None:
            self._probing = asyncio.ensure_future(self._disk.change(self._probe))
        probing = self._probing
        # All callers wait for the same probe: if it hangs, each further one would block another thread.
        done, _ = await asyncio.wait([probing], timeout=_PROBE_SECONDS)
        if not done:
            raise StorageError(f"writing to {self.root}: the disk does not respond")
        self._probing = None
        with _translated(f"writing to {self.root}"):
            probing.result()

    def _probe(self) -> None:
        self.volume.check()
        probe = self._layout.new_path("probe")
        write_new(probe, b"probe", perms=self._layout.file_perms)
        os.unlink(probe)
        os.close(os.open(self.root, os.O_RDONLY | os.O_CLOEXEC))

    async def open_reader(self, upload: Upload) -> FileReader:
        with _translated(f"opening {upload.id}"):
            try:
                path = self._layout.data_path(upload.info)
                descriptor = await self._disk.read(
                    os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                )
            except FileNotFoundError:
                self._loader.without_bytes(upload.info)
                raise
            try:
                status = os.fstat(descriptor)
                check_bytes(upload, status)
                check_same(upload, status)
            except StorageError:
                os.close(descriptor)
                raise
            return FileReader(descriptor)

    # Removal

    async def remove(
        self,
        upload_id: str,
        *,
        fence: Fence,
        event_id: str = "",
        keep_tombstone: bool = True,
        unpublished: RemovalEvent | None = None,
    ) -> None:
        with _translated(f"removing {upload_id}"):
            await self._threads.run(
                self._removal.remove,
                upload_id,
                fence,
                keep_tombstone=keep_tombstone,
                unpublished=unpublished,
            )

    async def unpublished_removals(self) -> list[UnpublishedRemoval]:
        with _translated("reading unpublished removals"):
            return await self._threads.run(self._unpublished.all)

    async def finish_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> bool:
        with _translated(f"removing {removal.upload.id}"):
            return await self._threads.run(self._removal.finish, removal, fence)

    async def forget_removal(self, removal: UnpublishedRemoval, *, fence: Fence) -> None:
        with _translated(f"removing {removal.upload.id}"), fence():
            self._removal.forget(removal)

    async def load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        return await self._threads.run(self._load_each, upload_ids)

    def _load_each(self, upload_ids: Sequence[str]) -> list[Upload | StorageError]:
        found: list[Upload | StorageError] = []
        for upload_id in upload_ids:
            try:
                # A scan of all uploads would evict the records that clients are using.
                found.append(self._loader.load(upload_id, remember=False))
            except StorageError as problem:
                found.append(problem)
            except Exception as problem:  # noqa: BLE001 - one upload must not keep the others from being swept
                found.append(StorageError(f"{upload_id}: {problem!r}"))
        return found

    async def remove_each(
        self,
        uploads: Sequence[Upload],
        *,
        fences: Mapping[str, Fence],
        event_ids: Mapping[str, str] | None = None,
        unpublished: Mapping[str, RemovalEvent] | None = None,
    ) -> list[bool | StorageError]:
        return await self._threads.run(
            self._removal.remove_each, uploads, fences, unpublished or {}
        )

    async def ids(self, skip: Skip = skip_entry) -> AsyncIterator[str]:
        await self._disk.read(self.volume.check)
        async for upload_id in upload_ids(self.root, self._disk, self._threads, skip):
            yield upload_id
        # A directory that went away meanwhile was not listed to its end.
        await self._disk.read(self.volume.check)

    async def tidy(self, *, tombstone_ttl: float, locks: Locks | None = None) -> int:
        with _translated("tidying up"):
            return await self._threads.run(self._tidy, tombstone_ttl)

    def _tidy(self, tombstone_ttl: float) -> int:
        self.volume.check()
        return self._cleanup.tidy(tombstone_ttl)

    async def discard_fragment(self, upload_id: str, *, fence: Fence) -> bool:
        with _translated(f"removing the fragment of {upload_id}"):
            return await self._threads.run(self._cleanup.discard_fragment, upload_id, fence)

    async def missing_since(self, upload_id: str, *, marks: bool = True) -> float:
        with _translated(f"marking {upload_id}"):
            return await self._disk.change(self._cleanup.missing_since, upload_id, marks=marks)


def _fenced(fence: Fence, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that makes one change. Raises LeaseLost."""
    with fence():
        return function(*args, **kwargs)


def _mark(kind: ChunkMarkers, upload_id: str, number: int, fence: Fence) -> str:
    """Make a marker of an upload and return its path. Raises OSError, LeaseLost."""
    with fence():
        return kind.make(flat_name(upload_id), number)
