"""The files and the Redis of an earlier version: saved to files, and restored in a test.

The directory is a tar; Redis is a list of keys with types, values and remaining lifetimes, which every version of Redis and
Valkey takes. Modification times, scores and lifetimes are moved to the present when it is laid out. Contents of files stay as
they were, except for the path of the directory in records.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import redis

_ROOT = b"/srv/uploads"
"""Stands for the path of the upload directory in what is saved."""
_TIME = re.compile(r"(?<![\w.-])1[0-9]{9}(?:[0-9]{3})?(?:\.[0-9]+)?(?![\w-])")
"""Seconds or milliseconds since the epoch in a text."""
_FIRST_MILLISECONDS = 1e11
"""Times from here on are in milliseconds."""
_LOCK_MS = 60_000
"""Remaining lease of a lock whose server was killed; a test ends it sooner."""


@dataclass(frozen=True)
class Kept:
    """An upload as its client knows it. length: None while deferred. offset: bytes that count. token: its upload token."""

    name: str
    path: str
    owner: str
    length: int | None
    offset: int
    token: str


def content(name: str, length: int) -> bytes:
    """The bytes of the upload with this name."""
    lines = b"".join(b"%s %06d\n" % (name.encode(), number) for number in range(length // 8 + 1))
    return lines[:length]


class Fixture:
    """The files of one earlier version, in a directory of this package."""

    def __init__(self, directory: Path) -> None:
        self._tar = directory / "uploads.tar.xz"
        self._redis = directory / "redis.json"
        self._uploads = directory / "uploads.json"

    def uploads(self) -> dict[str, Kept]:
        """The uploads by name."""
        return {each["name"]: Kept(**each) for each in self._described()["uploads"]}

    def save(
        self, uploads: list[Kept], root: Path, client: redis.Redis | None, made_at: float
    ) -> None:
        """Write all files.

        client: of the operator's Redis; None for an embedded one, whose data is in the directory.
        made_at: the time of the state that is saved, in seconds since the epoch.
        """
        document = {"made_at": made_at, "uploads": [asdict(each) for each in uploads]}
        self._uploads.write_text(json.dumps(document, indent=1) + "\n")
        with tarfile.open(self._tar, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as tar:
            for path in sorted(root.rglob("*")):
                if path.name == "server.log":
                    continue
                if path.is_symlink() or path.is_file() or path.is_dir():
                    _add(tar, path, root)
        if client is None:
            return
        keys = sorted(cast("list[bytes]", client.keys("*")))
        saved = [_read_key(client, key) for key in keys]
        self._redis.write_text(json.dumps(saved, indent=1) + "\n")

    def lay_out(self, root: Path, client: redis.Redis | None, age: float) -> None:
        """Fill an empty directory, and an empty Redis if there is one, as if they had been left `age` seconds ago."""
        shift = time.time() - age - self._described()["made_at"]
        with tarfile.open(self._tar) as tar:
            members = tar.getmembers()
            tar.extractall(root, filter="tar")
        # Backwards, as a change of an entry changes the time of its directory.
        for member in reversed(members):
            path = root / member.name
            if path.suffix == ".info":
                path.write_bytes(path.read_bytes().replace(_ROOT, os.fsencode(root)))
            changed_at = member.mtime + shift
            os.utime(path, (changed_at, changed_at), follow_symlinks=False)
        if client is not None:
            for saved in json.loads(self._redis.read_text()):
                _write_key(client, saved, shift, age)

    def _described(self) -> Any:
        return json.loads(self._uploads.read_text())


def _add(tar: tarfile.TarFile, path: Path, root: Path) -> None:
    member = tar.gettarinfo(path, str(path.relative_to(root)))
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    data = path.read_bytes() if member.isfile() else b""
    if path.suffix == ".info":
        data = data.replace(os.fsencode(root), _ROOT)
        member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _read_key(client: redis.Redis, key: bytes) -> dict[str, Any]:
    """A key as JSON. Bytes are read as Latin-1, which keeps all of them."""
    kind = cast(bytes, client.type(key)).decode()
    value: Any
    match kind:
        case "string":
            value = _text(client.get(key))
        case "hash":
            found = cast("dict[bytes, bytes]", client.hgetall(key))
            value = {_text(name): _text(each) for name, each in sorted(found.items())}
        case "list":
            value = [_text(each) for each in cast("list[bytes]", client.lrange(key, 0, -1))]
        case "set":
            value = sorted(_text(each) for each in cast("set[bytes]", client.smembers(key)))
        case "zset":
            pairs = cast("list[tuple[bytes, float]]", client.zrange(key, 0, -1, withscores=True))
            value = {_text(member): score for member, score in pairs}
        case _:
            raise AssertionError(f"{key!r} is a {kind}")
    return {"key": _text(key), "type": kind, "ttl_ms": client.pttl(key), "value": value}


def _write_key(client: redis.Redis, saved: dict[str, Any], shift: float, age: float) -> None:
    key, kind, ttl, value = (saved[name] for name in ("key", "type", "ttl_ms", "value"))
    if ttl >= 0:
        if ":lock:" in key:
            ttl = _LOCK_MS
        ttl -= round(age * 1000)
        if ttl <= 0:
            return
    if key.startswith("tusd:{revoked}:"):
        # Tokens keep their dates: a revocation must not come before them.
        shift = max(0.0, shift)
    # What rq keeps is not text, and its times are of no meaning.
    moved = shift if key.startswith("tusd:") else 0.0
    match kind:
        case "string":
            client.set(_bytes(key), _bytes(_moved_text(value, moved)))
        case "hash":
            pairs: dict[Any, Any] = {
                _bytes(name): _bytes(_moved_text(each, moved)) for name, each in value.items()
            }
            client.hset(_bytes(key), mapping=pairs)
        case "list":
            client.rpush(_bytes(key), *map(_bytes, value))
        case "set":
            client.sadd(_bytes(key), *map(_bytes, value))
        case "zset":
            scores = {_bytes(member): _moved(score, shift) for member, score in value.items()}
            client.zadd(_bytes(key), scores)
        case _:
            raise AssertionError(f"{key!r} is a {kind}")
    if ttl >= 0:
        client.pexpire(_bytes(key), ttl)


def _moved_text(text: str, shift: float) -> str:
    def moved(match: re.Match[str]) -> str:
        digits = len(match[0].partition(".")[2])
        return f"{_moved(float(match[0]), shift):.{digits}f}"

    return _TIME.sub(moved, text) if shift else text


def _moved(moment: float, shift: float) -> float:
    return moment + (1000 * shift if moment >= _FIRST_MILLISECONDS else shift)


def _text(data: object) -> str:
    assert isinstance(data, bytes)
    return data.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
