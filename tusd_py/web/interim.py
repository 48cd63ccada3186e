"""Interim responses (104) to one request of Resumable Uploads for HTTP: the upload's URL, and offsets as bytes come in.

Only clients that name an interop version that this server speaks get them, and only from our own HTTP server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from tusd_py.protocol import ietf
from tusd_py.protocol.headers import RawHeaders
from tusd_py.storage.base import Upload
from tusd_py.web.messages import Request

_LOOK_SECONDS = 0.5
"""A client is told at most so often."""
_STEP_BYTES = 256 * 1024
"""Bytes that are news by themselves."""
_MOST_SECONDS = 5.0
"""After which fewer are news too."""


class Interim:
    """The interim responses to one request; see `Watcher`.

    announcement: makes the fields that tell where the upload is. announced: what it made, once it was called. sent: whether the
    client got any.
    """

    def __init__(
        self,
        request: Request,
        version: ietf.Version,
        announcement: Callable[[Upload], Mapping[str, str]] | None = None,
    ) -> None:
        self.announced: Mapping[str, str] | None = None
        self.sent = False
        self._exchange = request.exchange if version.number is not None else None
        self._version = version
        self._announcement = announcement
        self._kept: Callable[[], int] = int
        self._told = 0
        self._told_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def created(self, upload: Upload) -> None:
        if self._announcement is not None:
            self.announced = self._announcement(upload)
            self.send(self.announced)

    def receiving(self, kept: Callable[[], int]) -> None:
        # A body that has come in already needs no news of it.
        if self._exchange is not None and self._version.has_progress and self._exchange.more_body:
            self._kept = kept
            self._told, self._told_at = kept(), asyncio.get_running_loop().time()
            self._look_later()

    def received(self) -> None:
        # It refers to the body, which refers to this object: with the bytes in its buffers a cycle would wait for the garbage
        # collector, which counts objects and not bytes.
        self._kept = int
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def send(self, fields: Mapping[str, str]) -> bool:
        """Send an interim response; False if the client cannot get it."""
        if self._exchange is None:
            return False
        raw: RawHeaders = [
            (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in fields.items()
        ]
        sent = self._exchange.send_informational(ietf.RESUMPTION_SUPPORTED, raw)
        self.sent = self.sent or sent
        return sent

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _look(self) -> None:
        offset, now = self._kept(), asyncio.get_running_loop().time()
        grown = offset - self._told
        if grown >= _STEP_BYTES or (grown > 0 and now - self._told_at >= _MOST_SECONDS):
            self._told, self._told_at = offset, now
            self.send(ietf.progress(self._version, offset))
        self._look_later()
