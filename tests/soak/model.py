"""What may be true of uploads by what their clients were told: every fact is held against the earlier ones.

A contradiction is a `Violation`. The model knows nothing of servers; what a fault excuses is said here, and nothing else is
excused:

- the offset of an unfinished upload may go back to any value after its disk lost bytes (`disk lost bytes`);
- what Redis knew of duplicates may be forgotten when it is emptied (`redis flushed`);
- an upload may not be in the way of another one if its creation was answered with an error, or if its client saw no answer;
- what is removed while Redis is away may be refused as a duplicate all the same (`redis …`).
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from threading import Lock

from tests.soak import facts
from tests.soak.facts import Fact
from tests.support.tus import id_of

SETTLES_SECONDS = 8.0
"""How long after an outage of Redis servers may still catch up with what they could not tell it."""


class Violation(AssertionError):
    """Two facts that cannot both be true."""


@dataclass
class Sent:
    """Bytes that were on the line once, and may arrive at any time later."""

    start: int
    end: int
    verified: bool

    def may_reach(self, offset: int, part: int | None) -> bool:
        """part: see `Model`."""
        is_within = self.start < offset <= self.end
        is_counted = not self.verified or offset == self.end or (part and offset % part == 0)
        return bool(is_within and is_counted)


@dataclass
class Upload:
    """An upload as its client knows it. known: the highest offset that was told and counts."""

    path: str
    created: facts.Created
    at: float
    known: int = 0
    sent: list[Sent] = field(default_factory=list)
    finished: bool = False
    removing: float | None = None
    removed: bool = False
    abandoned: bool = False
    may_lose: bool = False
    certain: bool = True
    """Whether a response said that it is there."""
    part: int | None = None

    @property
    def is_live(self) -> bool:
        """Whether it has to be there."""
        return self.certain and self.removing is None and not self.removed

    def may_be_at(self, offset: int) -> bool:
        """Whether its offset may be this one."""
        if offset < self.known:
            return self.may_lose and not self.finished
        return offset == self.known or any(each.may_reach(offset, self.part) for each in self.sent)

    @property
    def may_be_finished(self) -> bool:
        """Whether so many bytes were sent that it may be finished."""
        length = self.created.length
        if self.finished or self.created.is_final:
            return True
        return length == self.known or any(each.end >= length >= 0 for each in self.sent)


@dataclass
class Print:
    """All that is known of one fingerprint. unanswered: creations that may have succeeded."""

    asked: int = 0
    unanswered: int = 0
    uploads: list[Upload] = field(default_factory=list)


class Model:
    """What is known of all uploads. Its methods may be called in any thread.

    part: bytes of a part of a bucket, None for files. A server that is killed while it stores a verified chunk may leave whole
    parts of it that count.
    """

    def __init__(self, part: int | None = None) -> None:
        self._part = part
        self.uploads: dict[str, Upload] = {}
        self.counts: Counter[str] = Counter()
        self.events: dict[str, Counter[str]] = {}
        """Of each upload's id: how often events came in, by kind."""
        self.unanswered = 0
        """Creations with all bytes that may have succeeded, and that nobody knows by name."""
        self._event_ids: dict[tuple[str, str], set[str]] = {}
        self._prints: dict[str, Print] = {}
        self._flushed_at = float("-inf")
        self._losses = 0
        self._away: set[str] = set()
        self._troubled_until = float("-inf")
        self._lock = Lock()

    def learn(self, fact: Fact, at: float | None = None) -> None:
        """Take a fact in. at: when it was noted, now by default. Raises Violation."""
        with self._lock:
            self.counts[type(fact).__name__] += 1
            self._learn(fact, time.monotonic() if at is None else at)

    def _learn(self, fact: Fact, at: float) -> None:
        match fact:
            case facts.Asked(fingerprint):
                self._print(fingerprint).asked += 1
            case facts.Unanswered(fingerprint, whole):
                self._print(fingerprint).unanswered += 1
                self.unanswered += whole
            case facts.Created():
                self._created(fact, at)
            case facts.Refused():
                self._refused(fact)
            case facts.Announced():
                self._announced(fact)
            case facts.Fault(kind, _, ends):
                self._fault(kind, at, ends=ends)
            case facts.Odd(path, text):
                raise Violation(f"{path}: {text}")
            case facts.Removing() | facts.Removed() | facts.Abandoned() | facts.Missing():
                self._leaves(self._of(fact.upload), fact, at)
            case _:
                self._grows(self._of(fact.upload), fact)

    # -- bytes ---------------------------------------------------------------------------------

    def _grows(
        self,
        upload: Upload,
        fact: facts.Sending | facts.Acknowledged | facts.Offset | facts.Finished | facts.Downloaded,
    ) -> None:
        match fact:
            case facts.Sending(_, start, end, verified, corrupt):
                if not corrupt:
                    upload.sent.append(Sent(start, end, verified))
            case facts.Acknowledged(_, offset) | facts.Offset(_, offset):
                self._at(upload, offset)
            case facts.Finished(_, length):
                self._finished(upload, length)
            case facts.Downloaded(_, right):
                if not right:
                    raise Violation(f"{upload.path}: other bytes than were sent")

    def _leaves(
        self,
        upload: Upload,
        fact: facts.Removing | facts.Removed | facts.Abandoned | facts.Missing,
        at: float,
    ) -> None:
        match fact:
            case facts.Removing():
                upload.removing = at
            case facts.Removed():
                upload.removed = True
            case facts.Abandoned():
                upload.abandoned = True
            case facts.Missing(_, status):
                if upload.is_live:
                    raise Violation(f"{upload.path}: {status}, and nobody has removed it")

    def _at(self, upload: Upload, offset: int) -> None:
        if not upload.may_be_at(offset):
            sent = [(each.start, each.end, each.verified) for each in upload.sent[-8:]]
            raise Violation(f"{upload.path}: {offset} after {upload.known}; sent last: {sent}")
        upload.known = offset
        upload.certain = True
        upload.may_lose = self._losses > 0

    def _finished(self, upload: Upload, length: int) -> None:
        if not upload.created.is_final:
            self._at(upload, length)
        if upload.created.length not in (-1, length):
            raise Violation(
                f"{upload.path}: finished with {length} bytes of {upload.created.length}"
            )
        upload.finished = True

    # -- duplicates ----------------------------------------------------------------------------

    def _created(self, fact: facts.Created, at: float) -> None:
        if fact.upload in self.uploads:
            if fact.is_final:
                # The same final, as the response to its creation was lost.
                return
            raise Violation(f"{fact.upload}: two uploads have this URL")
        certain = not fact.by_refusal
        upload = Upload(
            fact.upload, fact, at, may_lose=self._losses > 0, certain=certain, part=self._part
        )
        if fact.fingerprint:
            known = self._print(fact.fingerprint)
            if not fact.forced and (holder := self._certain_holder(known)) is not None:
                raise Violation(f"{fact.upload}: let in, a duplicate of {holder.path}")
            known.uploads.append(upload)
        self.uploads[fact.upload] = upload

    def _refused(self, fact: facts.Refused) -> None:
        known = self._print(fact.fingerprint)
        live = [upload for upload in known.uploads if upload.is_live]
        if not (live or known.unanswered or known.asked > 1 or known.uploads):
            raise Violation(f"{fact.fingerprint}: refused, and it is no duplicate")
        if not live and not known.unanswered and self._are_surely_removed(known.uploads):
            raise Violation(f"{fact.fingerprint}: refused, and the one before was removed")
        if fact.state == "complete" and not known.unanswered:
            was = [upload for upload in known.uploads if upload.may_be_finished]
            if not was:
                raise Violation(f"{fact.fingerprint}: refused as complete, and nothing is")
        strangers = fact.location and fact.location in self.uploads
        if strangers and self.uploads[fact.location].created.fingerprint != fact.fingerprint:
            raise Violation(f"{fact.fingerprint}: told to go on with {fact.location}")

    def _certain_holder(self, known: Print) -> Upload | None:
        """The upload of a fingerprint that has to refuse another one."""
        for upload in known.uploads:
            created = upload.created
            gave_back = created.by_refusal or created.failed
            certain = created.asked > self._flushed_at and not self._away & {"redis flushed"}
            if upload.is_live and certain and not gave_back:
                return upload
        return None

    def _are_surely_removed(self, uploads: list[Upload]) -> bool:
        """Whether all of them were removed while Redis knew it."""
        return bool(uploads) and all(
            upload.removed
            and upload.removing is not None
            and not self._away
            and upload.removing > self._troubled_until
            for upload in uploads
        )

    # -- events --------------------------------------------------------------------------------

    def _announced(self, fact: facts.Announced) -> None:
        self.events.setdefault(fact.upload_id, Counter())[fact.kind] += 1
        ids = self._event_ids.setdefault((fact.upload_id, fact.kind), set())
        ids.add(fact.event_id)
        if fact.kind == "post-finish" and len(ids) > 1:
            raise Violation(f"{fact.upload_id}: two finishes: {sorted(ids)}")

    def check_events(self) -> None:
        """At the end: what was finished or removed is announced, and nothing else. Raises Violation."""
        by_id = {id_of(path): upload for path, upload in self.uploads.items()}
        for upload_id, upload in by_id.items():
            told = self.events.get(upload_id, Counter())
            if upload.finished and not upload.created.is_part and not told["post-finish"]:
                raise Violation(f"{upload.path}: finished, and nobody was told")
            if upload.removed and not told["post-terminate"]:
                raise Violation(f"{upload.path}: removed, and nobody was told")
            if told["post-finish"] and (upload.created.is_part or not upload.may_be_finished):
                raise Violation(f"{upload.path}: announced, and it is not finished")
            if told["post-expire"] and upload.finished and not upload.created.is_part:
                raise Violation(f"{upload.path}: finished, and expired")
        unknown = {name for name, told in self.events.items() if told["post-finish"]} - {*by_id}
        if len(unknown) > self.unanswered:
            raise Violation(f"announced, and nobody sent them: {sorted(unknown)[:5]}")

    def left_finishes(self, kept: set[str]) -> set[str]:
        """Ids of uploads that were announced as finished, and that no client has removed or knows to keep.

        Nobody saw their creation succeed; or a client left them with all bytes, and the sweep finished them.
        """
        removed = {id_of(path) for path, upload in self.uploads.items() if upload.removed}
        return {name for name, told in self.events.items() if told["post-finish"]} - removed - kept

    # -- faults --------------------------------------------------------------------------------

    def _fault(self, kind: str, at: float, *, ends: bool) -> None:
        if kind == "redis flushed":
            # Between the two facts it happens.
            self._flushed_at = at
        if kind == "disk lost bytes":
            # They overlap: each has its beginning and its end.
            self._losses += -1 if ends else 1
            for upload in self.uploads.values():
                upload.may_lose = upload.may_lose or not upload.finished
        if kind.startswith("redis"):
            (self._away.discard if ends else self._away.add)(kind)
            self._troubled_until = at + SETTLES_SECONDS

    # -- helpers -------------------------------------------------------------------------------

    def _of(self, path: str) -> Upload:
        if path not in self.uploads:
            raise Violation(f"{path}: nobody created it")
        return self.uploads[path]

    def _print(self, fingerprint: str) -> Print:
        return self._prints.setdefault(fingerprint, Print())
