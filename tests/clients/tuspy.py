"""Types for the parts of tuspy that the tests use."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol, TypedDict, Unpack, cast

from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage


class TuspyUploader(Protocol):
    """The used part of tuspy's Uploader."""

    url: str
    offset: int

    def upload(self, stop_at: int | None = None) -> None: ...
    def upload_chunk(self) -> None: ...
    def get_offset(self) -> int: ...


class Options(TypedDict, total=False):
    """Options of tuspy, under its own names (sizes in bytes, delays in seconds)."""

    url: str
    chunk_size: int
    metadata: dict[str, str]
    retries: int
    retry_delay: float
    store_url: bool
    url_storage: FileStorage
    upload_checksum: bool


def uploader_of(
    endpoint: str, source: Path | BinaryIO, **options: Unpack[Options]
) -> TuspyUploader:
    """An uploader for a file; without `url` the upload is still to be created.

    Of a path it opens the file for each chunk and leaves the closing to the garbage collector, which
    after an exception may be much later: where one is to be expected, give it an open file.
    """
    client = TusClient(endpoint)
    uploader = (
        client.uploader(str(source), **options)
        if isinstance(source, Path)
        else client.uploader(file_stream=source, **options)
    )
    return cast(TuspyUploader, uploader)
