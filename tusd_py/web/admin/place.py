"""Where operators are served, if they have an address of their own."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AdminPlace:
    """An address for operators.

    Attributes:
        sockets: Bound to it.
        url: Of the page as reached from this machine; `unix:PATH` for a Unix socket.
        uploads_url: Of the uploads as reached from this machine.
        origins: Where each setting comes from.
    """

    sockets: list[socket.socket]
    url: str
    uploads_url: str
    origins: Mapping[str, str] = field(default_factory=dict)
