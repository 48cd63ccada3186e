"""What the wire says, and nothing else: no sockets, no files, no asyncio.

Requests are parsed from header fields into commands (`tus.py`), and what became of them is turned back into a status and
header fields. Everything here works on plain values, so it can be tested without a server.
"""
