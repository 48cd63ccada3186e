"""A hook file for tests: what it does depends on the file's name."""

from __future__ import annotations

from tusd_py.events.model import Changes, Event, HookResponse, Reject


def pre_create(event: Event) -> None:
    if event.upload.metadata.get("filename") == b"refused.txt":
        raise Reject(402, "pay first", {"X-Price": "1"})


def pre_finish(event: Event) -> Changes:
    name = event.upload.metadata.get("filename", b"")
    if name == b"unfit.txt":
        raise Reject(422, '{"reason": "unfit"}', {"Content-Type": "application/json"})
    if name == b"shaped.txt":
        shown = {"Content-Type": "application/json", "Upload-Offset": "99"}
        return Changes(response=HookResponse(200, shown, f'{{"bytes": {event.upload.offset}}}'))
    return Changes()
