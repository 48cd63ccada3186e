"""The memory that long request heads may take together, in one process.

Every head is bounded by `--max-header-size`; but a final upload names all its parts in one header field, `Upload-Concat`, and
`--max-concat-parts` URLs take more than that. Strangers can send such heads too, before it is known who they are, so only a few
connections at a time may have one.
"""

from __future__ import annotations

FIELD = b"upload-concat"

_URL_BYTES = 128
"""What a URL takes in `Upload-Concat` besides the base path: scheme, host, a prefix, 32 digits of an id, a blank."""
_TOTAL_BYTES = 32 * 1024**2


def field_size(max_parts: int, *, base_path: str, head_size: int) -> int:
    """Bytes that `Upload-Concat` may take so that `max_parts` absolute URLs fit; no less than an ordinary head may."""
    return max(head_size, max_parts * (_URL_BYTES + len(base_path)))


class LongHeads:
    """Counts the connections with a long head. field_size: bytes of the longest `Upload-Concat`; 0 allows no long heads."""

    def __init__(self, field_size: int) -> None:
        self._free = max(1, _TOTAL_BYTES // field_size) if field_size else 0

    def try_acquire(self) -> bool:
        """Whether one more connection may have a long head; if so, it has to `release`."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def release(self) -> None:
        """One connection has no long head any more."""
        self._free += 1
