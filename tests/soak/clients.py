"""Clients that carry plans of uploads out, each in a thread of its own, until each upload is where its plan says.

A client notes every answer in the history, and knows of its uploads what any client of the protocol may know. Whether an
answer can be right is the model's business.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from tests.auth.people import access, bearer
from tests.crash.fleet import poisoned
from tests.soak import facts
from tests.soak.dialects import Dialect, Ietf, Tus
from tests.soak.history import History
from tests.soak.line import Address, Answer, Body, Line
from tests.soak.plan import UploadPlan, UploadPlans
from tests.support.tus import id_of, path_of

COLLECTION = "/files/"
REFRESH = "/auth/refresh-upload-token"
DUPLICATE = "ERR_DUPLICATE_UPLOAD"
KEPT_BYTES = 4 << 20
"""How much a client leaves on the servers before it removes its oldest uploads."""
_LIFE_SECONDS = 400 * 86_400
_PUZZLES = 20
"""Refusals of bytes at the offset that a HEAD tells, in a row, that cannot be a coincidence with late requests."""
_PASSING = {408, 423, 503, 507}
_CUT = "ERR_CONNECTION_RESET"
"""The body ended early: the response comes if only the client's direction was closed."""
_BROKEN = {"ERR_INTERNAL_SERVER_ERROR", "ERR_BYTES_LOST"}
_RESYNC = {"ERR_MISMATCHED_OFFSET", "ERR_UPLOAD_INTERRUPTED", "ERR_UPLOAD_COMPLETED"}


class Vanished(Exception):
    """An upload is not there, as the model allows."""


class Closed(Exception):
    """The run is over."""


@dataclass
class Site:
    """What clients share. address: where the next connection goes; may_fail: whether a 500 can be a fault's.

    patience_seconds: how long an upload may go without progress.
    """

    address: Callable[[random.Random], Address]
    may_fail: Callable[[], bool]
    history: History
    patience_seconds: float
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when there is nothing to send to any more."""


@dataclass
class Mine:
    """An upload of this client. length: None until it is told."""

    plan: UploadPlan
    content: memoryview
    fingerprint: str
    length: int | None
    path: str = ""
    offset: int = 0
    token: str = ""
    is_part: bool = False
    complete: bool = False
    bodies: dict[tuple[int, bool], None] = field(default_factory=dict)
    """Of its creations so far, any of which may be the one that succeeded: how long, and whether verified."""

    @property
    def dialect(self) -> Dialect:
        return Ietf() if self.plan.ietf else Tus()

    @property
    def total(self) -> int:
        return len(self.content)


class Client:
    """One client, which is one owner, too."""

    def __init__(self, number: int, seed: int, site: Site, largest: int) -> None:
        self.number = number
        self.uploads = 0
        self.bytes_verified = 0
        self.kept: deque[Mine] = deque()
        """Those that are on the servers, and to be found there in the end."""
        self._plans = UploadPlans(seed, number, largest)
        self._dice = random.Random(f"{seed}/client/{number}")
        self._site = site
        self.line = Line(self._dice, lambda: site.address(self._dice))
        self._second = Line(self._dice, lambda: site.address(self._dice))
        now = int(time.time())
        # Valid by every clock that servers may have.
        self._access = access(f"owner-{number}", iat=now - 30 * 86_400, exp=now + _LIFE_SECONDS)
        self._deadline = 0.0

    def upload_one(self) -> None:
        """Carry the next plan out."""
        self._progress()
        plan = next(self._plans)
        upload = self._joined(plan) if plan.shape.startswith("joined") else self._single(plan)
        self.uploads += 1
        if upload is None:
            return
        self._verify(upload)
        if plan.duplicate == "finished":
            self._again(upload)
        if plan.end == "removed":
            self._remove(upload)
            if plan.duplicate == "removed":
                self._again(upload)
        else:
            self.kept.append(upload)
            self._make_room()

    def check_kept(self) -> None:
        """All that this client left on the servers is there."""
        for upload in self.kept:
            self._progress()
            self._verify(upload)

    def hang_up(self) -> None:
        """End all connections."""
        self.line.hang_up()
        self._second.hang_up()

    # -- ways to upload ------------------------------------------------------------------------

    def _single(self, plan: UploadPlan) -> Mine | None:
        mine = self._mine(plan, plan.contents[0])
        if plan.duplicate == "twins":
            self._create_twice(mine)
        if not mine.path:
            self._create(mine)
        if plan.duplicate in ("pending", "forced"):
            self._again(mine, forced=plan.duplicate == "forced")
        return mine if self._send_rest(mine, abandon=plan.end == "abandoned") else None

    def _joined(self, plan: UploadPlan) -> Mine:
        parts = [self._mine(plan, content, is_part=True) for content in plan.contents]
        for part in parts:
            self._create(part, {"Upload-Concat": "partial"})
        begun = len(parts) if plan.shape == "joined" else self._dice.randrange(len(parts))
        for part in parts[:begun]:
            self._send_rest(part)
        content = memoryview(b"".join(plan.contents))
        final = Mine(plan, content, "", len(content))
        self._create(final, {"Upload-Concat": "final;" + " ".join(part.path for part in parts)})
        for part in parts[begun:]:
            self._send_rest(part)
        self._until_joined(final)
        for part in parts:
            self._remove(part)
        return final

    def _mine(self, plan: UploadPlan, content: memoryview, *, is_part: bool = False) -> Mine:
        compared = not is_part and plan.shape != "deferred"
        fingerprint = f"{plan.name}/{len(content)}" if compared else ""
        length = None if plan.shape == "deferred" else len(content)
        return Mine(plan, content, fingerprint, length, is_part=is_part)

    # -- creating ------------------------------------------------------------------------------

    def _create(self, mine: Mine, concat: dict[str, str] | None = None) -> None:
        """Create an upload, however often it takes, or go on with the one that exists."""
        refused = 0
        is_final = concat is not None and not mine.is_part
        while not mine.path:
            forced = refused > 2
            body = self._first_body(mine)
            if body is not None:
                mine.bodies[len(body.data), body.checksum is not None] = None
            headers = self._creation(mine, body, concat, forced=forced)
            asked = time.monotonic()
            self._note(facts.Asked(mine.fingerprint, forced))
            answer = self._ask("POST", COLLECTION, headers, body)
            if answer.code == DUPLICATE:
                refused = max(refused + 1, 3 if self._refused(mine, answer, asked) else 0)
                self._adopt(mine, answer.document.get("location"), asked)
            elif 200 <= answer.status < 300 or answer.get("Location"):
                self._created(mine, answer, asked, body, forced=forced, is_final=is_final)
            else:
                whole = is_final or (body is not None and len(body.data) == mine.total)
                self._note(facts.Unanswered(mine.fingerprint, whole))
                self._expect(answer, 0, 401, *_codes(answer, _RESYNC))
                self._rest()

    def _first_body(self, mine: Mine) -> Body | None:
        if mine.is_part or mine.plan.shape not in ("with body", "whole"):
            return None
        size = mine.total if mine.plan.shape == "whole" else min(mine.plan.piece, mine.total)
        return self._body(mine, 0, size, corrupt=False)

    def _creation(
        self, mine: Mine, body: Body | None, concat: dict[str, str] | None, *, forced: bool
    ) -> dict[str, str]:
        complete = body is not None and len(body.data) == mine.total
        name = mine.plan.name if mine.fingerprint else ""
        headers = mine.dialect.create(
            name, mine.length, has_body=body is not None, complete=complete
        )
        if concat is not None and not mine.is_part:
            del headers["Upload-Length"]
        force = {"Upload-Force": "true"} if forced else {}
        return {**headers, **(concat or {}), **force, **bearer(self._access)}

    def _created(
        self,
        mine: Mine,
        answer: Answer,
        asked: float,
        body: Body | None,
        *,
        forced: bool = False,
        is_final: bool = False,
    ) -> None:
        """Take an answer that has the upload's URL."""
        location = answer.get("Location")
        if location is None:
            self._odd("POST", f"{answer.status} without Location")
            return
        mine.path = path_of(location)
        mine.token = answer.get("Upload-Token") or ""
        failed = answer.response is None or not 200 <= answer.status < 300
        self._note(
            facts.Created(
                mine.path,
                mine.fingerprint,
                asked,
                -1 if mine.length is None else mine.total,
                self.number,
                is_part=mine.is_part,
                is_final=is_final,
                forced=forced,
                failed=failed,
            )
        )
        self._note_bodies(mine)
        if failed:
            self._ask_offset(mine)
        elif body is not None:
            self._acknowledged(mine, answer, len(body.data), complete=len(body.data) == mine.total)
        self._progress()

    def _refused(self, mine: Mine, answer: Answer, asked: float) -> bool:
        """Note the refusal of a duplicate; True if only force helps."""
        state: facts.State = "complete" if answer.document["state"] == "complete" else "pending"
        location = str(answer.document.get("location", ""))
        known = path_of(location) if location else ""
        self._note(facts.Refused(mine.fingerprint, asked, state, known))
        if not location:
            self._rest()
        return state == "complete"

    def _adopt(self, mine: Mine, location: object, asked: float) -> None:
        """Go on with the upload that a refusal names: this client's own, whose creation was not answered."""
        if not location:
            return
        mine.path, mine.token = path_of(str(location)), ""
        length = -1 if mine.length is None else mine.total
        # Forced: it was let in at some time that nobody knows.
        self._note(
            facts.Created(
                mine.path,
                mine.fingerprint,
                asked,
                length,
                self.number,
                forced=True,
                by_refusal=True,
            )
        )
        self._note_bodies(mine)
        try:
            self._ask_offset(mine)
        except Vanished:
            # Its creation was going on, and failed.
            mine.path = ""

    def _note_bodies(self, mine: Mine) -> None:
        for size, verified in mine.bodies:
            self._note(facts.Sending(mine.path, 0, size, verified))

    def _again(self, mine: Mine, *, forced: bool = False) -> None:
        """Create the same once more, without a body; if it is let in, remove what was made."""
        other = Mine(mine.plan, mine.content, mine.fingerprint, mine.length)
        headers = self._creation(other, None, None, forced=forced)
        while not other.path:
            asked = time.monotonic()
            self._note(facts.Asked(mine.fingerprint, forced))
            answer = self._ask("POST", COLLECTION, headers)
            if answer.code == DUPLICATE:
                if forced:
                    self._odd(mine.path, "refused in spite of force")
                self._refused(other, answer, asked)
                return
            if answer.status == 201:
                self._created(other, answer, asked, None, forced=forced)
                self._remove(other)
                return
            self._note(facts.Unanswered(mine.fingerprint, whole=False))
            self._expect(answer, 0, 401)
            self._rest()

    def _create_twice(self, mine: Mine) -> None:
        """Create an upload by two requests at the same time, of which one at most may be let in."""
        headers = self._creation(mine, None, None, forced=False)
        asked = time.monotonic()
        for line in (self.line, self._second):
            self._note(facts.Asked(mine.fingerprint))
            line.begin("POST", COLLECTION, headers)
        answers = [line.end("POST") for line in (self.line, self._second)]
        for answer in answers:
            if answer.status != 201 and answer.code != DUPLICATE:
                self._note(facts.Unanswered(mine.fingerprint, whole=False))
        for answer in answers:
            if answer.status == 201:
                self._created(mine, answer, asked, None)
            elif answer.code == DUPLICATE:
                self._refused(mine, answer, asked)

    # -- sending -------------------------------------------------------------------------------

    def _send_rest(self, mine: Mine, *, abandon: bool = False) -> bool:
        """Send until all is there; False if it was abandoned before."""
        puzzles = 0
        while not mine.complete:
            end = min(mine.total, mine.offset + mine.plan.piece)
            if abandon and end == mine.total:
                self._note(facts.Abandoned(mine.path))
                return False
            before = mine.offset
            self._append(mine, end)
            puzzles = puzzles + 1 if mine.offset == before and not mine.complete else 0
            if puzzles > _PUZZLES:
                self._rest()
        self._note(facts.Finished(mine.path, mine.total))
        return True

    def _append(self, mine: Mine, end: int) -> None:
        start, last = mine.offset, end == mine.total
        body = self._body(mine, start, end)
        corrupt = body.data != mine.content[start:end]
        verified = body.checksum is not None
        length = mine.total if last and mine.length is None else None
        self._note(facts.Sending(mine.path, start, end, verified, corrupt))
        headers = mine.dialect.append(start, complete=last, length=length)
        answer = self._ask("PATCH", mine.path, {**headers, **self._credentials(mine)}, body)
        if corrupt:
            # Unanswered, or answered late: then there may be bytes of an earlier request.
            self._expect(answer, 0, 401, mine.dialect.mismatch, *_codes(answer, _RESYNC), 413)
            self._ask_offset(mine)
        elif 200 <= answer.status < 300:
            self._acknowledged(mine, answer, end, complete=last)
        else:
            self._expect(answer, 0, 401, *_codes(answer, _RESYNC), 413)
            self._recover(mine, answer)
            self._ask_offset(mine)

    def _acknowledged(self, mine: Mine, answer: Answer, end: int, *, complete: bool) -> None:
        told = answer.get("Upload-Offset")
        self._note(facts.Acknowledged(mine.path, end if told is None else int(told)))
        mine.offset, mine.complete = end, complete
        self._progress()

    def _body(self, mine: Mine, start: int, end: int, *, corrupt: bool = True) -> Body:
        data = mine.content[start:end]
        if not data or self._dice.random() >= mine.plan.verified:
            return Body(data)
        checksum = mine.dialect.checksum(bytes(data), self._dice)
        if corrupt and len(data) > 64 and self._dice.random() < mine.plan.corrupt:
            data = poisoned(data)
        return Body(data, checksum)

    def _ask_offset(self, mine: Mine) -> None:
        """HEAD, until it is answered."""
        answer = self._head(mine)
        offset = int(answer.get("Upload-Offset") or -1)
        self._note(facts.Offset(mine.path, offset))
        if offset != mine.offset:
            self._progress()
        mine.offset = offset
        if answer.get("Upload-Length") is not None:
            mine.length = mine.total
        mine.complete = offset == mine.total and mine.dialect.is_complete(answer)

    def _head(self, mine: Mine) -> Answer:
        while True:
            headers = {**mine.dialect.marks, **self._credentials(mine)}
            answer = self._ask("HEAD", mine.path, headers)
            if answer.status in (200, 204):
                return answer
            if answer.status in (404, 410):
                self._note(facts.Missing(mine.path, answer.status))
                raise Vanished
            self._expect(answer, 0, 401)
            self._recover(mine, answer)
            self._rest()

    # -- afterwards ----------------------------------------------------------------------------

    def _until_joined(self, final: Mine) -> None:
        while True:
            answer = self._head(final)
            if answer.get("Upload-Offset") == str(final.total):
                self._note(facts.Finished(final.path, final.total))
                return
            self._rest()

    def _verify(self, mine: Mine) -> None:
        """Download an upload and compare."""
        wanted = hashlib.sha256(mine.content).digest()
        while True:
            answer = self._ask("GET", mine.path, bearer(self._access))
            if answer.status == 200 and answer.response is not None:
                right = hashlib.sha256(answer.response.body).digest() == wanted
                self._note(facts.Downloaded(mine.path, right))
                self.bytes_verified += mine.total
                return
            if answer.status in (404, 410):
                self._note(facts.Missing(mine.path, answer.status))
            self._expect(answer, 0, 401)
            self._rest()

    def _remove(self, mine: Mine) -> None:
        self._progress()
        repeated = False
        self._note(facts.Removing(mine.path))
        while True:
            headers = {**Tus.marks, **self._credentials(mine)}
            answer = self._ask("DELETE", mine.path, headers)
            if answer.status == 204 or (repeated and answer.status in (404, 410)):
                self._note(facts.Removed(mine.path))
                break
            self._expect(answer, 0, 401, *_codes(answer, _RESYNC))
            repeated = True
            self._recover(mine, answer)
            self._rest()
        if self._dice.random() < 0.2:
            self._expect_gone(mine)

    def _expect_gone(self, mine: Mine) -> None:
        while True:
            answer = self._ask("HEAD", mine.path, {**Tus.marks, **bearer(self._access)})
            if answer.status in (404, 410):
                return
            self._expect(answer, 0, 401)
            self._rest()

    def _make_room(self) -> None:
        """Check and remove the oldest, so that the servers' disk suffices."""
        while sum(upload.total for upload in self.kept) > KEPT_BYTES:
            oldest = self.kept.popleft()
            self._verify(oldest)
            self._remove(oldest)

    # -- tokens --------------------------------------------------------------------------------

    def _credentials(self, mine: Mine) -> dict[str, str]:
        """The upload's own token or the owner's."""
        return bearer(mine.token if mine.token and self._dice.random() < 0.7 else self._access)

    def _recover(self, mine: Mine, answer: Answer) -> None:
        """After a 401: renew the upload's token."""
        if answer.status != 401:
            return
        shown = bearer(mine.token) if mine.token and self._dice.random() < 0.7 else {}
        document = {} if shown else {"upload_id": id_of(mine.path)}
        body = Body(memoryview(json.dumps(document).encode()))
        headers = {"Content-Type": "application/json", **(shown or bearer(self._access))}
        renewed = self._ask("POST", REFRESH, headers, body)
        # Not while its finish or its removal may have happened, nor after the grace by a clock that is ahead.
        mine.token = str(renewed.document.get("upload_token", ""))
        self._expect(renewed, 0, 200, 401, 404, 409, 410)

    # -- helpers -------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: Body | None = None
    ) -> Answer:
        """One request. Without a response is what has to be repeated, for whatever reason."""
        if self._site.closed.is_set():
            raise Closed
        answer = self.line.ask(method, path, headers, body)
        if time.monotonic() > self._deadline:
            self._odd(
                path, f"no progress for {self._site.patience_seconds:.0f} s: {method} {answer}"
            )
        # The response to a HEAD has no code.
        is_broken = answer.code in _BROKEN or (method == "HEAD" and answer.status == 500)
        if (
            answer.status in _PASSING
            or answer.code == _CUT
            or (is_broken and self._site.may_fail())
        ):
            location = {"location": answer.get("Location") or ""} if answer.code == _CUT else {}
            return Answer(None, {**answer.interim, **location})
        return answer

    def _expect(self, answer: Answer, *statuses: int) -> None:
        if answer.status not in statuses:
            self._odd("", f"{answer.status} {answer.code}: {answer.response}")

    def _odd(self, path: str, text: str) -> None:
        self._note(facts.Odd(path, text))

    def _note(self, fact: facts.Fact) -> None:
        self._site.history.note(f"client-{self.number}", fact)

    def _rest(self) -> None:
        self.line.rest(self._dice.uniform(0.02, 0.25))

    def _progress(self) -> None:
        self._deadline = time.monotonic() + self._site.patience_seconds


def _codes(answer: Answer, codes: set[str]) -> tuple[int, ...]:
    """The status of an answer, if its code is one of these."""
    return (answer.status,) if answer.code in codes else ()


class Clients:
    """All clients. failures: what each of them ended with that failed."""

    def __init__(self, seed: int, count: int, site: Site, largest: int) -> None:
        self.all = [Client(number, seed, site, largest) for number in range(count)]
        self.failures: list[str] = []
        self.failed = threading.Event()
        self._ending = threading.Event()
        self._site = site
        self._pool = ThreadPoolExecutor(count)
        self._running: list[Future[None]] = []

    def start(self) -> None:
        self._running = [self._submit(client, self._upload) for client in self.all]

    def finish(self, timeout: float) -> None:
        """Let each finish the upload that it is at."""
        self._ending.set()
        self._wait(timeout)

    def check_kept(self, timeout: float) -> None:
        """Let each look at all that it left on the servers."""
        self._running = [self._submit(client, Client.check_kept) for client in self.all]
        self._wait(timeout)

    def close(self) -> None:
        """Give up whatever is not finished."""
        self._ending.set()
        self._site.closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _wait(self, timeout: float) -> None:
        _, hanging = wait(self._running, timeout)
        if hanging:
            self.failures.append(f"{len(hanging)} clients do not come to an end")

    def _upload(self, client: Client) -> None:
        while not self._ending.is_set():
            client.upload_one()

    def _submit(self, client: Client, work: Callable[[Client], None]) -> Future[None]:
        def run() -> None:
            try:
                work(client)
            finally:
                client.hang_up()

        running = self._pool.submit(run)
        running.add_done_callback(self._note_failure)
        return running

    def _note_failure(self, running: Future[None]) -> None:
        if not running.cancelled() and (error := running.exception()):
            self.failures.append("".join(traceback.format_exception(error)))
            self.failed.set()
