"""tus 1.0.0 and Resumable Uploads for HTTP without I/O: header fields in, commands and header fields out.

Requests are parsed into commands, which both protocols share, and results serialized to status and header fields (`tus.py`,
`ietf.py`). Everything here works on plain values, without sockets, files or asyncio, so it can be tested without a server.
"""
