"""Interfaces of other servers on top of this server."""
