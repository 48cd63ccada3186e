"""`Upload-Concat`: parsing it, and finding the uploads that its URLs name (tus 1.0.0, "Concatenation")."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from tusd_py.protocol import errors

_FINAL = "final;"


@dataclass(frozen=True, slots=True)
class Partial:
    """The upload is a part of a final one."""


@dataclass(frozen=True, slots=True)
class Final:
    """The upload is joined from `parts`: URLs as the client wrote them, relative or absolute, in order, with repeats."""

    parts: tuple[str, ...]


def parse(value: str, *, max_parts: int) -> Partial | Final:
    """`partial`, or `final;<url> <url>…` with at most `max_parts` URLs. Raises a 400 for anything else."""
    if value == "partial":
        return Partial()
    if not value.startswith(_FINAL):
        raise errors.invalid_concat("it must be `partial` or `final;` and a list of URLs")
    if not (value.isascii() and value.isprintable()):
        raise errors.invalid_concat("URLs are printable ASCII; percent-encode everything else")
    parts = tuple(part for part in value[len(_FINAL) :].split(" ") if part)
    if not parts:
        raise errors.invalid_concat("a final upload needs at least one part")
    if len(parts) > max_parts:
        raise errors.invalid_concat(f"a final upload has at most {max_parts} parts")
    return Final(parts)


def upload_id_of(url: str, base_path: str) -> str:
    """The id of the upload that `url` names, given the path that uploads have in front of their ids.

    `url` may be absolute, or a path; scheme and host are not compared, as servers are known under several names. A 404 is
    raised where it cannot be an upload of this server.
    """
    try:
        path = unquote_to_bytes(urlsplit(url).path).decode("utf-8")
    except ValueError:
        raise errors.not_found() from None
    if not path.startswith(base_path):
        raise errors.not_found()
    upload_id = path[len(base_path) :].rstrip("/")
    if not upload_id:
        raise errors.not_found()
    return upload_id
