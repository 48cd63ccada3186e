"""Which new connections are served: neither their number nor the descriptors of the process may run out.

Each connection that is served may need two descriptors more, as a download has the file's and a second one of its socket, and a
further connection that could not be accepted would be closed without a response. So connections are refused while some
descriptors are still free.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from enum import Enum

from tusd_py.web.http.connection_config import Limits

_RESERVED_DESCRIPTORS = 64
_LARGEST_RESERVE = 1 / 8
"""Fraction of all descriptors that is kept free at most."""
_PER_CONNECTION = 3
"""Descriptors: the connection's, the file's, and for a download that of the connection once more."""


class Admission(Enum):
    """What happens to a new connection."""

    SERVED = "served"
    REFUSED = "refused"
    """Once its request has come in, as HEAD is refused otherwise than the rest."""
    REFUSED_AT_ONCE = "refused at once"
    """Even those that are being refused are too many to wait for."""


def admission(transport: asyncio.Transport, connections: int, limits: Limits) -> Admission:
    """What happens to a connection. connections: how many are open, with it."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most == resource.RLIM_INFINITY:
        most = sys.maxsize
    reserve = min(_RESERVED_DESCRIPTORS, most * _LARGEST_RESERVE)
    # The system gives the lowest free number, so all below are taken.
    found = transport.get_extra_info("socket")
    free = most if found is None else most - 1 - found.fileno()
    if connections > limits.most_accepted or free < reserve / 2:
        return Admission.REFUSED_AT_ONCE
    if connections > min(limits.connections, served_by(most)) or free < reserve:
        return Admission.REFUSED
    return Admission.SERVED


def served_by(descriptors: int) -> int:
    """How many connections can be served with so many descriptors."""
    reserve = min(_RESERVED_DESCRIPTORS, descriptors * _LARGEST_RESERVE)
    return int(descriptors - 4 * reserve) // _PER_CONNECTION
