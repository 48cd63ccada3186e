"""Single tus 1.0.0 requests to applications."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import httpx

TIMEOUT = 60.0


def encoded(pairs: Mapping[str, str]) -> str:
    """An `Upload-Metadata` field."""
    return ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items()
    )


def create(
    collection: str,
    length: int | None,
    metadata: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> httpx.Response:
    """POST."""
    fields = {"Tus-Resumable": "1.0.0", **(headers or {})}
    if length is not None:
        fields["Upload-Length"] = str(length)
    if metadata is not None:
        fields["Upload-Metadata"] = encoded(metadata)
    if content is not None:
        fields["Content-Type"] = "application/offset+octet-stream"
    return httpx.post(collection, headers=fields, content=content, timeout=TIMEOUT)


def patch(
    url: str, offset: int, content: bytes, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """PATCH."""
    fields = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": str(offset),
        "Content-Type": "application/offset+octet-stream",
        **(headers or {}),
    }
    return httpx.patch(url, headers=fields, content=content, timeout=TIMEOUT)


def head(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """HEAD."""
    return httpx.head(url, headers={"Tus-Resumable": "1.0.0", **(headers or {})}, timeout=TIMEOUT)


def delete(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """DELETE."""
    return httpx.delete(url, headers={"Tus-Resumable": "1.0.0", **(headers or {})}, timeout=TIMEOUT)
