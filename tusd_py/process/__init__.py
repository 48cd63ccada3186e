"""Processes of a server: sockets, signals, the supervisor and what runs beside it."""
