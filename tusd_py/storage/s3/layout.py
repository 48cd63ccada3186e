"""Keys of the objects of an upload, and of those beside the uploads.

    <object prefix><location or id>             the bytes
    <info prefix><id>.info                      the record
    <info prefix><id>.part                      bytes behind the last whole part
    <info prefix>.tusd-py/…                     everything else; no upload id begins with a dot

These are tusd's names.
"""

from __future__ import annotations

from dataclasses import dataclass

from tusd_py.storage.base import LocationRefused, UploadInfo, is_valid_id
from tusd_py.storage.s3.object_store import other_bucket

STATE = ".tusd-py/"
RECORD = ".info"
TAIL = ".part"
_MAX_KEY_BYTES = 1024
"""Of UTF-8, in a key of S3."""
_SLASH = "%2F"
"""Stands for a slash of an id, which has no percent sign, where each id is one name."""


_EVENT_BYTES = 6 + 1 + 40
"""Of the name of an event in the outbox."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys under two prefixes, which may be the same."""

    object_prefix: str = ""
    info_prefix: str = ""

    def data(self, info: UploadInfo) -> str:
        return self.key(info.location or info.id)

    def key(self, location: str) -> str:
        """The key of the bytes at a location, or of an upload with this id that has none."""
        return location if other_bucket(location) else self.object_prefix + location

    def storage(self, location: str, *, bucket: str) -> dict[str, str]:
        """What tusd's records and hooks say of where bytes are. bucket: the one of the uploads."""
        other, key = other_bucket(location) or (bucket, self.key(location))
        return {"Bucket": other, "Key": key, "Type": "s3store"}

    def check(self, info: UploadInfo) -> None:
        """Raise LocationRefused for a new upload whose objects, or what is kept beside them, would have too long keys."""
        place = info.location or info.id
        other = other_bucket(place)
        keys = [
            self.key(place) if other is None else other[1],
            self.record(info.id),
            # The longest that a name of an event is put behind, and that two ids are in.
            self.state("outbox-failed", info.id, "0" * _EVENT_BYTES),
            self.state("taken", place),
            *(self.state("awaiting", part_id, info.id) for part_id in info.parts),
        ]
        longest = max(keys, key=lambda key: len(key.encode()))
        if (size := len(longest.encode())) > _MAX_KEY_BYTES:
            raise LocationRefused(
                f"the key {longest} has {size} bytes, more than the {_MAX_KEY_BYTES} that a bucket takes: use a shorter "
                "id, place, --s3-object-prefix or --s3-info-prefix"
            )

    def record(self, upload_id: str) -> str:
        return f"{self.info_prefix}{upload_id}{RECORD}"

    def tail(self, upload_id: str) -> str:
        return f"{self.info_prefix}{upload_id}{TAIL}"

    def state(self, *names: str) -> str:
        """The key of something beside the uploads. names: the last ones may be ids."""
        flat = "/".join(name.replace("/", _SLASH) for name in names)
        return f"{self.info_prefix}{STATE}{flat}"

    def directory(self, *names: str) -> str:
        """The prefix of the keys below `state`."""
        return self.state(*names) + "/"

    def names(self, key: str) -> list[str]:
        """The arguments of `state` that give `key`."""
        flat = key[len(self.info_prefix) + len(STATE) :]
        return [name.replace(_SLASH, "/") for name in flat.split("/")]

    def id_of(self, key: str, ending: str) -> str | None:
        """The id of the upload to which a record or a tail belongs; None for other keys."""
        name = key[len(self.info_prefix) :]
        upload_id = name.removesuffix(ending)
        return upload_id if upload_id != name and is_valid_id(upload_id) else None
