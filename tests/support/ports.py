"""Reserved ports, which no other process gets."""

from __future__ import annotations

import socket


def reserve(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A bound socket that never listens: connections are refused, and no other program gets the port.

    A server that sets SO_REUSEADDR can still listen on it. The caller closes it. Raises OSError.
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


def is_open(port: int) -> bool:
    """Whether somebody accepts connections to a port of this machine."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
