"""Processes of a server: sockets, signals, the supervisor and its sidecars."""
