"""The calls that ``recording_hooks.py`` has recorded in a server."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_until

HOOK_FILE = Path(__file__).with_name("recording_hooks.py")


@dataclass(frozen=True)
class Recorded:
    """One call of a hook."""

    type: str
    upload: str
    offset: int
    length: int | None


class Recorder:
    """Flags and environment for a server whose hooks are recorded, and the record itself."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "events.jsonl"
        self.hold = directory / "hold-pre-finish"
        self.flags = ("--hook", str(HOOK_FILE))
        self.env = {"RECORD_EVENTS": str(self.file), "HOLD_PRE_FINISH": str(self.hold)}

    def hold_pre_finish(self) -> None:
        """Hold every pre-finish until :meth:`release`."""
        os.mkfifo(self.hold)

    def release(self) -> None:
        """Wait for a held pre-finish, let it return, and hold no others."""
        self.hold.write_bytes(b"go")
        self.hold.unlink()

    def events(self) -> list[Recorded]:
        if not self.file.exists():
            return []
        # The last line may be on its way.
        whole, _, _ = self.file.read_text().rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        return [
            Recorded(line["type"], line["upload"], line["offset"], line["length"]) for line in lines
        ]

    def types(self, upload: str) -> list[str]:
        """The types of one upload's events, in order."""
        return [event.type for event in self.events() if event.upload == upload]

    def wait_for(self, kind: str, upload: str) -> None:
        """Wait until a hook was called (post-hooks run after the response)."""
        wait_until(lambda: kind in self.types(upload), f"{kind} of {upload}")
