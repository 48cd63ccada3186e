"""What the modules of the store share: its options, and what writers and completions need of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tusd_py.locks.base import Fence
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.live import Live
from tusd_py.storage.s3.object_store import MAX_PARTS
from tusd_py.storage.s3.record import Record
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.spool import Spool
from tusd_py.storage.s3.tails import Tails
from tusd_py.storage.s3.whole import WholeUploads


@dataclass(frozen=True, slots=True)
class S3Options:
    """How uploads are laid out.

    Attributes:
        bucket: The bucket's name, for records.
        layout: The keys.
        part_bytes: Least size of parts.
        max_parts: Most parts that the store takes.
        most_object_bytes: Largest object that the store takes.
        equal_parts: The store takes only parts of one size (Cloudflare R2).
        concurrent_parts: Parts of one upload that are sent at a time.
        spool_bytes: Bytes of all uploads that wait in memory at most.
        spool_directory: Where chunks with a checksum wait; None for the system's directory of temporary files.
        flush_seconds: How often the bytes of a slow body are put into the bucket.
        metadata_keys: Keys of the metadata that are stored with the object; empty for all.
        allowed_locations: Where hooks may place uploads besides: buckets, or `bucket/prefix`.
        finished_names: Template of the keys of uploads for which hooks chose no place; empty for their ids.
        keeps_finished: The object of a finished upload whose key comes from that template outlives the upload.
    """

    bucket: str
    layout: Layout
    part_bytes: int = 8 * 1024 * 1024
    max_parts: int = MAX_PARTS
    most_object_bytes: int = 5 * 1024**4
    equal_parts: bool = False
    concurrent_parts: int = 4
    spool_bytes: int = 256 * 1024 * 1024
    spool_directory: str | None = None
    flush_seconds: float = 30.0
    metadata_keys: tuple[str, ...] = ()
    allowed_locations: tuple[str, ...] = ()
    finished_names: str = ""
    keeps_finished: bool = True


class Bucketed(Protocol):
    """What writers and completions need of the store, which imports them."""

    objects: ObjectStore
    options: S3Options
    layout: Layout
    spool: Spool
    whole: WholeUploads
    tails: Tails

    def now(self) -> float:
        """Seconds since the epoch."""

    async def save_record(self, live: Live, record: Record, fence: Fence) -> None:
        """Replace a record on condition that it is the one that `live` knows. Raises LeaseLost, UploadNotFound."""

    async def multipart(self, live: Live, fence: Fence) -> str:
        """Return the id of the multipart upload, begun if there is none. Raises LeaseLost, ObjectStoreError."""

    def remember(self, live: Live, fence: Fence) -> None:
        """Let later requests rely on what is known of an upload. Raises LeaseLost: others may have stored more."""

    def forget(self, live: Live) -> None:
        """Ask the bucket next time: what is known of an upload is wrong, or may be."""
