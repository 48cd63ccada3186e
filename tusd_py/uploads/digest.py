"""The digest of a whole upload (RFC 9530, `Repr-Digest`), computed when all its bytes are there.

The bytes are read back from the store, in pieces, before the upload is finished: they may have come in many requests, by way of
many servers, and what the store has is what others will get. Only for uploads of which a client asked for it, at the
creation or with the append that completes them.
"""

from __future__ import annotations

import asyncio

from tusd_py.locks.base import Fence
from tusd_py.protocol import digests, errors
from tusd_py.protocol.checksum import ALGORITHMS, Checksum
from tusd_py.storage.base import Store, Upload


async def verify_digest(store: Store, upload: Upload, fence: Fence) -> str:
    """Compare the digest of an upload that has all its bytes with the one that a client announced.

    Returns the `Repr-Digest` that the creator wants to be told; empty if none is wanted. Raises a 400 for another digest than
    announced, StorageError, LeaseLost.
    """
    info = upload.info
    if not (info.repr_digest or info.wanted_digest):
        return ""
    expected = digests.parse(info.repr_digest, digests.REPRESENTATION)
    algorithms = {info.wanted_digest} if info.wanted_digest in ALGORITHMS else set()
    if expected is not None:
        algorithms.add(expected.algorithm)
    if not algorithms:
        return ""
    if not store.reads_unfinished:
        await store.sync(upload, fence=fence)
    found = await _digests(store, upload, sorted(algorithms))
    if expected is not None and expected not in found:
        raise errors.digest_mismatch()
    return "".join(
        digests.serialize(each) for each in found if each.algorithm == info.wanted_digest
    )


async def _digests(store: Store, upload: Upload, algorithms: list[str]) -> list[Checksum]:
    hashers = [ALGORITHMS[algorithm][0]() for algorithm in algorithms]
    # Loaded again, as readers check that the bytes have not changed since.
    reader = await store.open_reader(await store.load(upload.id))
    try:
        async for piece in reader.stream(0, upload.offset):
            for hasher in hashers:
                await asyncio.to_thread(hasher.update, piece)
    finally:
        reader.close()
    return [
        Checksum(algorithm, hasher.digest())
        for algorithm, hasher in zip(algorithms, hashers, strict=True)
    ]
