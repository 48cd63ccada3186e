"""The memory that long request heads may take together, in one process.

Every head is bounded by `--max-header-size`; but a final upload names all its parts in one header field, `Upload-Concat`, and
`--max-concat-parts` URLs take more than that. Strangers can send such heads too, before it is known who they are, so only a few
connections at a time may have one, and not for long: it has to come in at the pace of a slow line.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

FIELD = b"upload-concat"

_URL_BYTES = 128
"""What a URL takes in `Upload-Concat` besides the base path: scheme, host, a prefix, 32 digits of an id, a blank."""
_TOTAL_BYTES = 32 * 1024**2
_NETWORKS = 4
"""Clients that it takes to occupy all places."""
SECONDS = 5.0
"""Within which a long head has to be complete, besides the time that its bytes may take, and then the body behind it."""
_BYTES_A_SECOND = 32 * 1024


def field_size(max_parts: int, *, base_path: str, head_size: int) -> int:
    """Bytes that `Upload-Concat` may take so that `max_parts` absolute URLs fit; no less than an ordinary head may."""
    return max(head_size, max_parts * (_URL_BYTES + len(base_path)))


class LongHead:
    """The place of a connection with a long head. began: when it was taken, or the head complete, by the loop's clock."""

    __slots__ = ("_heads", "_network", "began")

    def __init__(self, heads: LongHeads, network: str | None, now: float) -> None:
        self._heads = heads
        self._network = network
        self.began = now

    def seconds_left(self, now: float, received: int, most: float) -> float:
        """Seconds that the rest may take; 0 or less at the end. received: bytes of the head. most: seconds for the whole."""
        return self.began + min(SECONDS + received / _BYTES_A_SECOND, most) - now

    def release(self) -> None:
        """Give the place back."""
        self._heads.release(self._network)


class LongHeads:
    """Counts the connections with a long head.

    Clients of one network have a quarter of the places at most, so that one of them does not keep out the rest.

    Args:
        field_size: Bytes of the longest `Upload-Concat`; 0 allows no long heads.
        is_shared: Whether many clients come from an address, as it is a proxy's.
    """

    def __init__(self, field_size: int, is_shared: Callable[[str], bool]) -> None:
        self._free = max(1, _TOTAL_BYTES // field_size) if field_size else 0
        self._most = max(1, self._free // _NETWORKS)
        self._is_shared = is_shared
        self._taken: dict[str, int] = {}

    def try_acquire(self, address: str | None, now: float) -> LongHead | None:
        """A place for one more connection, None if there is none. address: the client's, None for one without."""
        if self._free <= 0:
            return None
        network = None if address is None or self._is_shared(address) else _network_of(address)
        if network is not None:
            taken = self._taken.get(network, 0)
            if taken >= self._most:
                return None
            self._taken[network] = taken + 1
        self._free -= 1
        return LongHead(self, network, now)

    def release(self, network: str | None) -> None:
        """One connection has no long head any more."""
        self._free += 1
        if network is not None:
            self._taken[network] -= 1
            if not self._taken[network]:
                del self._taken[network]


def _network_of(address: str) -> str:
    """What one client may have: an address, or of IPv6 the /64 that it chooses its addresses from."""
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return parsed.packed[:8].hex()
