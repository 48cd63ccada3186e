"""The rules proxy refuses what the imitated stores refuse, and passes on what they accept."""

from __future__ import annotations

import asyncio
import http.client

import pytest

from tests.s3 import proxies
from tests.s3.conftest import OpenStore
from tests.s3.proxies import RulesProxy
from tests.s3.servers import S3Server
from tusd_py.storage.s3.object_store import (
    MIN_PART_BYTES,
    ObjectKind,
    ObjectNotFound,
    ObjectStoreError,
    Properties,
)

PLAIN = Properties()
BIG = bytes(MIN_PART_BYTES)


async def test_r2_wants_equal_parts(
    seaweedfs: S3Server, open_store: OpenStore, prefix: str
) -> None:
    key = f"{prefix}x"
    with RulesProxy(seaweedfs.address, proxies.equal_parts) as proxy:
        store = await open_store(proxy.endpoint)
        upload = (await store.create_multipart(key, PLAIN)).upload_id
        parts = [
            await store.upload_part(key, upload, 1, BIG + b"x"),
            await store.upload_part(key, upload, 2, BIG),
            await store.upload_part(key, upload, 3, b"x"),
        ]
        with pytest.raises(ObjectStoreError, match="same length"):
            await store.complete(key, upload, parts)
        parts[0] = await store.upload_part(key, upload, 1, BIG)
        await store.complete(key, upload, parts)
        assert proxy.refused == {"equal_parts": 1}


async def test_what_the_adapter_sends_has_nothing_that_old_stores_refuse(
    seaweedfs: S3Server, open_store: OpenStore, prefix: str
) -> None:
    rules = (
        proxies.no_checksum_headers,
        proxies.no_encryption_headers_on_reads,
        proxies.small_metadata,
    )
    key = f"{prefix}x"
    with RulesProxy(seaweedfs.address, *rules, upload_is_key=True) as proxy:
        store = await open_store(proxy.endpoint)
        await store.put(f"{prefix}y", BIG, PLAIN, kind=ObjectKind.DATA)
        upload = (await store.create_multipart(key, PLAIN)).upload_id
        source = await store.head(f"{prefix}y")
        parts = [
            await store.copy_part(key, upload, 1, source, start=0, end=len(BIG)),
            await store.upload_part(key, upload, 2, BIG),
        ]
        await store.complete(key, upload, parts)
        assert len((await store.read(key, limit=2 * len(BIG)))[1]) == 2 * len(BIG)
        assert not proxy.refused
        # NoSuchKey in place of NoSuchUpload is the same to us.
        with pytest.raises(ObjectNotFound) as missing:
            await store.upload_part(key, upload, 3, b"x")
        assert missing.value.code == "NoSuchKey"


async def test_checksum_headers_are_refused(seaweedfs: S3Server) -> None:
    with RulesProxy(seaweedfs.address, proxies.no_checksum_headers) as proxy:
        for headers in (
            {"x-amz-sdk-checksum-algorithm": "CRC32"},
            {"x-amz-checksum-crc32": "AAAAAA=="},
            {"x-amz-trailer": "x-amz-checksum-crc32"},
            {"Content-Encoding": "aws-chunked"},
        ):
            connection = http.client.HTTPConnection(*proxy.address, timeout=30)
            await asyncio.to_thread(connection.request, "PUT", "/b/k", b"x", headers)
            assert (await asyncio.to_thread(connection.getresponse)).status in {400, 501}
            connection.close()
        assert proxy.refused == {"no_checksum_headers": 4}


async def test_metadata_parts_and_lists_have_limits(
    seaweedfs: S3Server, open_store: OpenStore, prefix: str
) -> None:
    rules = (
        proxies.thousand_parts,
        proxies.small_metadata,
        proxies.lists_uploads_by_key_only,
    )
    key = f"{prefix}{'0' * 32}"
    with RulesProxy(seaweedfs.address, *rules) as proxy:
        store = await open_store(proxy.endpoint)
        with pytest.raises(ObjectStoreError, match="MetadataTooLarge"):
            await store.put(key, b"x", Properties(metadata={"x": "y" * 2048}), kind=ObjectKind.DATA)
        upload = (await store.create_multipart(key, PLAIN)).upload_id
        await store.upload_part(key, upload, 1000, b"x")
        with pytest.raises(ObjectStoreError, match="between 1 and 1000"):
            await store.upload_part(key, upload, 1001, b"x")
        assert await store.pending_uploads(key) == [upload]
        assert await store.pending_uploads(prefix) == []
        await store.abort(key, upload)
        assert set(proxy.refused) == {rule.__name__ for rule in rules}


async def test_encryption_headers_are_refused_on_reads(seaweedfs: S3Server) -> None:
    with RulesProxy(seaweedfs.address, proxies.no_encryption_headers_on_reads) as proxy:
        connection = http.client.HTTPConnection(*proxy.address, timeout=30)
        headers = {"x-amz-server-side-encryption": "AES256"}
        await asyncio.to_thread(connection.request, "GET", "/b/k", None, headers)
        assert (await asyncio.to_thread(connection.getresponse)).status == 400
        connection.close()
