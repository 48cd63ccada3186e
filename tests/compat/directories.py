"""Directories of other servers: written by hand from their description, or by the servers themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx

from tests.compat import http
from tests.compat.apps import THEIRS, AppProcess, path_in
from tests.support.waiting import wait_until

METADATA = {"filename": "Röntgen 肺.dcm", "filetype": "application/dicom"}
THEIR_APP = f"""
from fastapi import FastAPI
{THEIRS}
app = FastAPI()
app.include_router(create_tus_router(files_dir="uploads"))
"""


def in_days(days: float) -> str:
    """A moment as tuspyserver records it, to the second."""
    return format_datetime(datetime.now(UTC) + timedelta(days=days), usegmt=True)


def write_as_tuspyserver(directory: Path, upload_id: str, data: bytes, **changes: object) -> None:
    """An upload as tuspyserver leaves it; without changes it is finished."""
    record = {
        "metadata": METADATA,
        "size": len(data),
        "offset": len(data),
        "upload_part": 1,
        "created_at": "2026-11-20 10:11:12.131415",
        "defer_length": False,
        "upload_chunk_size": len(data),
        "expires": in_days(4),
        "error": None,
        "is_partial": False,
        "is_final": False,
        "partial_uploads": None,
        **changes,
    }
    directory.mkdir(exist_ok=True)
    (directory / upload_id).write_bytes(data)
    (directory / f"{upload_id}.info").write_text(json.dumps(record, indent=4))


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and its content."""
    return {
        str(path.relative_to(directory)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def begin(collection: str, length: int, headers: Mapping[str, str] | None = None) -> str:
    """The URL of a new upload."""
    created = http.create(collection, length, METADATA, headers)
    assert created.status_code == 201, created.text
    return created.headers["location"]


@contextmanager
def sending(url: str, offset: int, declared: int, content: bytes) -> Iterator[None]:
    """A PATCH of `declared` bytes of which no more than `content` come before the server is gone."""
    gone = threading.Event()

    def body() -> Iterator[bytes]:
        yield content
        gone.wait(120)
        raise httpx.WriteError("the server is gone")

    def send() -> None:
        headers = {
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(declared),
        }
        try:
            httpx.patch(url, headers=headers, content=body(), timeout=120)
        except httpx.HTTPError:
            return

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        gone.set()
        sender.join()


@dataclass(frozen=True)
class Begun:
    """An upload that a server was killed in. offset: what its client was told."""

    directory: Path
    upload_id: str
    offset: int


def killed_tuspyserver(
    place: Path, content: bytes, *, confirmed: int, lost: int, resumed: int = 0
) -> Begun:
    """The real one is killed in the middle of the second request, so that its file is longer than its offset.

    resumed: bytes that its client sends after a restart, before it is ended.
    """
    app = AppProcess(place, THEIR_APP, "theirs").start()
    url = begin(f"{app.url}/files/", len(content))
    file = path_in(place / "uploads", url)
    assert http.patch(url, 0, content[:confirmed]).status_code == 204
    rest = content[confirmed:]
    with sending(url, confirmed, len(rest), rest[:lost]):
        wait_until(lambda: file.stat().st_size == confirmed + lost, "bytes", 60)
        app.kill9()
    if resumed:
        app.start()
        assert http.head(url).headers["upload-offset"] == str(confirmed)
        assert http.patch(url, confirmed, rest[:resumed]).status_code == 204
        app.kill9()
    return Begun(place / "uploads", file.name, confirmed + resumed)


def killed_tusd(place: Path, content: bytes, *, confirmed: int, lost: int) -> Begun:
    """The binary that TUSD_BIN names, killed in the middle of the second request; its file is the truth."""
    place.mkdir()
    command = [os.environ["TUSD_BIN"], "-upload-dir", "uploads", "-host", "127.0.0.1", "-port", "0"]
    process = subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if found := re.search(r"You can now upload files to: (\S+)", line):
                break
        else:
            raise AssertionError("tusd did not start")
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        url = begin(found[1], len(content))
        file = path_in(place / "uploads", url)
        assert http.patch(url, 0, content[:confirmed]).status_code == 204
        rest = content[confirmed:]
        with sending(url, confirmed, len(rest), rest[:lost]):
            wait_until(lambda: file.stat().st_size == confirmed + lost, "bytes", 60)
            process.kill()
            process.wait()
        reader.join()
    return Begun(place / "uploads", file.name, confirmed + lost)
