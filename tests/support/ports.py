"""Reserved ports, which no other process gets."""

from __future__ import annotations

import socket


def reserve(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket that is bound and never listens: who connects is refused, and no other program is given the port.

    Who sets SO_REUSEADDR, as servers do, may listen on it all the same. Close it. Raises OSError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if port:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        holder.close()
        raise
    return holder
