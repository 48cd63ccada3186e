"""Uploads acknowledged as finished are on the disk: tested on a copy of the disk, not by trusting a sync."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.durability.volume import Volume, require_mounts
from tests.support.tus import Tus, checksum, id_of, path_of


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    require_mounts(tmp_path)
    volume = Volume(tmp_path)
    with volume.mounted():
        yield volume


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def digests(server: Tus, paths: list[str]) -> list[str | int]:
    """Return the digests of downloads; the status of those that fail."""
    answers = [server.get(path) for path in paths]
    return [
        hashlib.sha256(answer.body).hexdigest() if answer.status == 200 else answer.status
        for answer in answers
    ]


def upload_all_kinds(tus: Tus) -> dict[str, bytes]:
    """Finish uploads in every possible way, the last ones at the same moment."""
    found: dict[str, bytes] = {}
    for seed, size in enumerate((0, 1, 16_384, 20_000_000)):
        data = content(seed, size)
        found[tus.finished(data)] = data
    verified = content(10, 300_000)
    path = tus.new(len(verified))
    for offset in range(0, len(verified), 100_000):
        chunk = verified[offset : offset + 100_000]
        tus.patch(path, offset, chunk, {"Upload-Checksum": checksum(chunk)})
    found[path] = verified
    parts = [content(20 + number, 100_000) for number in range(3)]
    urls = [tus.finished(part, headers={"Upload-Concat": "partial"}) for part in parts]
    final = tus.create(headers={"Upload-Concat": "final;" + " ".join(urls)})
    found[path_of(final["Location"])] = b"".join(parts)
    small = [content(100 + number, 16_384) for number in range(40)]
    with ThreadPoolExecutor(20) as pool:
        found |= dict(zip(pool.map(tus.finished, small), small, strict=True))
    return found


def test_what_was_finished_survives_a_loss_of_power(
    make_server: MakeServer, volume: Volume, tmp_path: Path
) -> None:
    tus = Tus(make_server(upload_dir=volume.root / "uploads"))
    found = upload_all_kinds(tus)
    with volume.after_power_loss(tmp_path / "after") as disk:
        after = Tus(make_server(upload_dir=disk / "uploads"))
        expected = [hashlib.sha256(data).hexdigest() for data in found.values()]
        assert digests(after, list(found)) == expected
        after.server.close()
    tus.server.close()


def test_an_id_with_directories_survives_it_too(
    make_server: MakeServer, volume: Volume, tmp_path: Path
) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(
        "from tusd_py.events.model import Changes\n"
        "def pre_create(event):\n"
        "    return Changes(id='a/b/c/study')\n"
    )
    tus = Tus(make_server("--hook", str(hook), upload_dir=volume.root / "uploads"))
    path = tus.finished(b"x" * 1000)
    with volume.after_power_loss(tmp_path / "after") as disk:
        kept = disk / "uploads" / "a" / "b" / "c"
        assert path.endswith("/a/b/c/study")
        assert (kept / "study").read_bytes() == b"x" * 1000
        assert b'"FinishedAt":1' in (kept / "study.info").read_bytes()
    tus.server.close()


def test_every_chunk_survives_it_where_that_is_promised(
    make_server: MakeServer, volume: Volume, tmp_path: Path
) -> None:
    tus = Tus(make_server("--durability", "chunk", upload_dir=volume.root / "uploads"))
    data = content(7, 200_000)
    path = tus.new(300_000)
    assert tus.patch(path, 0, data).status == 204
    with volume.after_power_loss(tmp_path / "after") as disk:
        after = Tus(make_server(upload_dir=disk / "uploads"))
        assert after.offset(path) == 200_000
        assert (disk / "uploads" / id_of(path)).read_bytes() == data
        after.server.close()
    tus.server.close()


def test_without_syncs_it_would_be_lost(
    make_server: MakeServer, volume: Volume, tmp_path: Path
) -> None:
    """Proves that the tests above detect losses: without syncs nothing is on the disk."""
    tus = Tus(make_server("--durability", "none", upload_dir=volume.root / "uploads"))
    paths = [tus.finished(content(seed, 16_384)) for seed in range(5)]
    with volume.after_power_loss(tmp_path / "after") as disk:
        assert not any((disk / "uploads" / id_of(path)).exists() for path in paths)
    tus.server.close()
