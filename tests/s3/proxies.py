"""Proxies in front of an object store: one does what networks and busy stores do, one has the rules of other stores.

Both read each request whole, and pass it on with the headers that its signature covers. Each runs an event loop of its own in
a thread, so that blocking tests and servers in other processes can use it.

    with FaultProxy(server.address) as proxy:
        proxy.plan("UploadPart", "lost")            # the next part is stored, and nobody is told
        proxy.inject(seed=7, rate=0.05)             # from now on, one request in twenty, by chance
"""

from __future__ import annotations

import asyncio
import io
import random
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, get_args
from urllib.parse import parse_qs, urlsplit

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

from tests.support.waiting import wait_until

WAIT = 60.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "te", "upgrade"}


@dataclass
class Exchange:
    """A request as it arrived. operation: the name that S3 gives it. expect: the header field, which is not passed on."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes
    expect: str = ""
    operation: str = field(init=False)
    key: str = field(init=False)
    query: dict[str, str] = field(init=False)
    fault: Fault | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.target)
        self.query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        self.key = parts.path.lstrip("/").partition("/")[2]
        self.operation = operation_of(self.method, bool(self.key), self.query, self.headers)


@dataclass
class Answer:
    """A response."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


def operation_of(
    method: str, has_key: bool, query: dict[str, str], headers: CIMultiDict[str]
) -> str:
    """The operation of S3 that a request with a path-style address is."""
    if not has_key:
        if "uploads" in query:
            return "ListMultipartUploads"
        return {"GET": "ListObjects", "HEAD": "HeadBucket", "PUT": "CreateBucket"}.get(
            method, method
        )
    if "uploads" in query:
        return "CreateMultipartUpload"
    if "uploadId" in query:
        if method == "PUT":
            return "UploadPartCopy" if "x-amz-copy-source" in headers else "UploadPart"
        return {
            "GET": "ListParts",
            "POST": "CompleteMultipartUpload",
            "DELETE": "AbortMultipartUpload",
        }[method]
    return {
        "GET": "GetObject",
        "HEAD": "HeadObject",
        "PUT": "PutObject",
        "DELETE": "DeleteObject",
    }[method]


def error(status: int, code: str, message: str = "injected by a test") -> Answer:
    """A refusal as S3 writes it."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>TESTS</RequestId></Error>"
    )
    headers = {"Content-Type": "application/xml", "x-amz-request-id": "TESTS"}
    return Answer(status, CIMultiDict(headers), body.encode())


Fault = Literal[
    "lost",
    "cut",
    "error-body",
    "error-body-after",
    "500",
    "slow-down",
    "twice",
    "cut-response",
    "stall",
    "lag",
]
"""What can happen to a request.

lost: it has its effect, and the connection ends without a response. cut: the connection ends in the middle of the request's
body. error-body: a 200 with an error in its body, without the effect. error-body-after: with it. 500, slow-down: refused.
twice: it arrives a second time after the first, which is answered. cut-response: the connection ends in the middle of the
response. stall: it has its effect, and nothing comes for `stall_seconds`. lag: a list of parts lacks the last one.
"""
EVERY_FAULT: tuple[Fault, ...] = get_args(Fault)
FAULTS: tuple[Fault, ...] = tuple(f for f in EVERY_FAULT if f not in {"stall", "lag"})
"""Those that cost no time, and tell nothing that is out of date."""


class Cut(Exception):
    """The connection ends without a response, or in the middle of `sent`."""

    def __init__(self, sent: Answer | None = None) -> None:
        super().__init__()
        self.sent = sent


class HttpProxy:
    """Passes requests on to `target`; what else happens to them is up to `handle`.

    requests: how many, by operation. by_key: how many, by operation and key.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self.requests: Counter[str] = Counter()
        self.by_key: Counter[tuple[str, str]] = Counter()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._session: ClientSession | None = None

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests_about(self, name: str) -> Counter[str]:
        """How many requests there were, by operation, whose key has this name in it."""
        found: Counter[str] = Counter()
        for (operation, key), count in list(self.by_key.items()):
            if name in key:
                found[operation] += count
        return found

    def wait_for_first_sweep(self) -> None:
        """It looks at what is created meanwhile, whose requests are to be counted."""
        wait_until(lambda: self.requests_about(".tusd-py/swept")["PutObject"] > 0, "the sweep")

    async def ask_for_body(self, request: web.Request) -> None:
        """Ask for the body of a request that waits for that."""
        transport = request.transport
        if transport is not None:
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def begin(self, exchange: Exchange) -> None:
        """Look at a request whose body was not read yet. Raises Cut."""

    async def handle(self, exchange: Exchange) -> Answer:
        """Return the response to a request. Raises Cut."""
        return await self.forward(exchange)

    async def forward(self, exchange: Exchange) -> Answer:
        """Pass a request on and return the response."""
        assert self._session is not None
        url = URL(f"http://{self.target[0]}:{self.target[1]}{exchange.target}", encoded=True)
        async with self._session.request(
            exchange.method,
            url,
            headers=exchange.headers,
            # Nothing at all for requests without a body: a length of 0 is a header too.
            data=io.BytesIO(exchange.body) if exchange.body else None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as response:
            headers = CIMultiDict(response.headers)
            return Answer(response.status, headers, await response.read())

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(WAIT), "the proxy does not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{tail:.*}", self.answer, expect_handler=self.ask_for_body)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        # Stores end connections that have been idle; one for each request is never stale.
        connector = TCPConnector(limit=0, force_close=True)
        async with ClientSession(
            connector=connector, auto_decompress=False, timeout=ClientTimeout(total=None)
        ) as self._session:
            await site.start()
            self.port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, none of whose body was read."""
        exchange = Exchange(
            request.method,
            request.raw_path,
            _passed_on(request.headers),
            b"",
            request.headers.get("Expect", ""),
        )
        self.requests[exchange.operation] += 1
        self.by_key[exchange.operation, exchange.key] += 1
        transport = request.transport
        try:
            self.begin(exchange)
            exchange.body = await request.read()
            answer = await self.handle(exchange)
        except Cut as cut:
            if cut.sent is not None:
                partial = web.StreamResponse(
                    status=cut.sent.status, headers=_passed_on(cut.sent.headers)
                )
                await partial.prepare(request)
                await partial.write(cut.sent.body[: len(cut.sent.body) // 2])
            if transport is not None:
                transport.abort()
            return web.Response(status=500)
        except OSError:
            return web.Response(status=502)
        return _as_response(exchange, answer)


def _passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in _HOP_BY_HOP)


def _as_response(exchange: Exchange, answer: Answer) -> web.StreamResponse:
    headers = _passed_on(answer.headers)
    if exchange.method == "HEAD":
        return web.Response(status=answer.status, headers=headers)
    headers.popall("Content-Length", None)
    return web.Response(status=answer.status, headers=headers, body=answer.body)


_WITH_ERROR_BODY = {"CompleteMultipartUpload", "UploadPartCopy"}
"""Operations that answer 200 before they are done."""
_NOT_TWICE = {"CreateMultipartUpload"}


class Hold:
    """A request that stands still at a named step, until the test lets it go; its client gets no response.

    key: a regular expression that its key has. after: it has its effect first. late: it has its effect when it is let go.
    skip: so many like it pass before.
    """

    def __init__(self, operation: str, key: str, *, after: bool, late: bool, skip: int) -> None:
        self.operation = operation
        self.after = after
        self.late = late
        self.skip = skip
        self._has_key = re.compile(key).search
        self._reached = threading.Event()
        self._released = threading.Event()

    def matches(self, exchange: Exchange) -> bool:
        return exchange.operation == self.operation and self._has_key(exchange.key) is not None

    @property
    def is_reached(self) -> bool:
        return self._reached.is_set()

    def wait(self) -> None:
        """Wait until the request is there."""
        assert self._reached.wait(WAIT), f"no {self.operation} came"

    def release(self) -> None:
        """Let it go: without effect, unless it had one already or is late."""
        self._released.set()

    async def stand_still(self) -> None:
        self._reached.set()
        while not self._released.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.005)


class FaultProxy(HttpProxy):
    """Does to requests what networks and busy stores do. injected: how many faults, by kind."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.injected: Counter[str] = Counter()
        self.stall_seconds = 5.0
        self.lag = 0
        """How many of an upload's last parts, by their numbers, its lists lack."""
        self._planned: dict[str, list[Fault]] = defaultdict(list)
        self._random: random.Random | None = None
        self._rate = 0.0
        self._kinds: Sequence[Fault] = FAULTS
        self._operation = ""
        self._parts: dict[str, set[int]] = defaultdict(set)
        self._lock = threading.Lock()
        self._holds: list[Hold] = []

    @contextmanager
    def hold(
        self,
        operation: str,
        key: str = "",
        *,
        after: bool = False,
        late: bool = False,
        skip: int = 0,
    ) -> Iterator[Hold]:
        """The next request of this operation whose key has `key` stands still, until the end of the block at most."""
        hold = Hold(operation, key, after=after, late=late, skip=skip)
        with self._lock:
            self._holds.append(hold)
        try:
            yield hold
        finally:
            hold.release()
            with self._lock:
                if hold in self._holds:
                    self._holds.remove(hold)

    def _held(self, exchange: Exchange) -> Hold | None:
        with self._lock:
            for hold in self._holds:
                if not hold.matches(exchange):
                    continue
                hold.skip -= 1
                if hold.skip < 0:
                    self._holds.remove(hold)
                    return hold
        return None

    def plan(self, operation: str, *faults: Fault) -> None:
        """The next requests of this operation meet these faults, one each, in order."""
        with self._lock:
            self._planned[operation].extend(faults)

    def inject(
        self, *, seed: int, rate: float, kinds: Sequence[Fault] = FAULTS, operation: str = ""
    ) -> None:
        """From now on, requests without a planned fault meet one by chance.

        rate: of those between 0 and 1; 0 ends it. operation: only requests that are this one; empty for all.
        """
        with self._lock:
            self._random, self._rate, self._kinds = random.Random(seed), rate, kinds
            self._operation = operation

    @property
    def pending(self) -> int:
        """The number of planned faults that have not occurred yet."""
        with self._lock:
            return sum(map(len, self._planned.values()))

    def _fault(self, exchange: Exchange) -> Fault | None:
        with self._lock:
            planned = self._planned[exchange.operation]
            if planned:
                return planned.pop(0)
            if self._operation not in {"", exchange.operation}:
                return None
            if self._random is not None and self._random.random() < self._rate:
                return self._random.choice(self._kinds)
        return None

    def begin(self, exchange: Exchange) -> None:
        fault = self._fault(exchange)
        if (
            fault in {"error-body", "error-body-after"}
            and exchange.operation not in _WITH_ERROR_BODY
        ):
            fault = "500"
        if fault == "lag" and exchange.operation != "ListParts":
            fault = "slow-down"
        if fault is not None:
            self.injected[fault] += 1
        exchange.fault = fault
        if fault == "cut":
            raise Cut

    async def handle(self, exchange: Exchange) -> Answer:
        hold = self._held(exchange)
        if hold is not None:
            if hold.after:
                self._remember_part(exchange, await self.forward(exchange))
            await hold.stand_still()
            if hold.late:
                await self.forward(exchange)
            raise Cut
        fault = exchange.fault
        match fault:
            case "500":
                return error(500, "InternalError")
            case "slow-down":
                return error(503, "SlowDown")
            case "error-body":
                return error(200, "InternalError")
        answer = await self.forward(exchange)
        self._remember_part(exchange, answer)
        match fault:
            case "lost":
                raise Cut
            case "stall":
                await asyncio.sleep(self.stall_seconds)
                raise Cut
            case "error-body-after":
                return error(200, "InternalError")
            case "cut-response" if answer.body and exchange.method != "HEAD":
                raise Cut(answer)
            case "twice" if exchange.operation not in _NOT_TWICE:
                await self.forward(exchange)
        return self._with_lag(exchange, answer)

    def _remember_part(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.operation in {"UploadPart", "UploadPartCopy"} and answer.status == 200:
            self._parts[exchange.query["uploadId"]].add(int(exchange.query["partNumber"]))

    def _with_lag(self, exchange: Exchange, answer: Answer) -> Answer:
        lag = 1 if exchange.fault == "lag" else self.lag
        if exchange.operation != "ListParts" or not lag:
            return answer
        for number in sorted(self._parts[exchange.query["uploadId"]])[-lag:]:
            pattern = rb"<Part>(?:(?!</Part>).)*<PartNumber>%d</PartNumber>.*?</Part>" % number
            answer.body = re.sub(pattern, b"", answer.body, flags=re.DOTALL)
        return answer


Rule = Callable[["RulesProxy", Exchange], Answer | None]
"""Returns the refusal of a request; None to pass it on."""


def equal_parts(proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """Cloudflare R2: all parts but the last are of one size, copied ones too."""
    if exchange.operation != "CompleteMultipartUpload":
        return None
    sizes = proxy.part_sizes[exchange.query["uploadId"]]
    listed = re.findall(rb"<PartNumber>(\d+)</PartNumber>", exchange.body)
    ordered = [sizes[int(number)] for number in listed]
    if len(set(ordered[:-1])) > 1 or (len(ordered) > 1 and ordered[-1] > ordered[0]):
        return error(400, "InvalidPart", "All non-trailing parts must have the same length.")
    return None


def no_checksum_headers(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """Backblaze B2, Storj, older clones: no checksum headers, no trailers."""
    names = {name.lower() for name in exchange.headers}
    if any(name.startswith("x-amz-checksum-") for name in names) or names & {
        "x-amz-sdk-checksum-algorithm",
        "x-amz-trailer",
    }:
        return error(400, "InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm'")
    if "aws-chunked" in exchange.headers.get("Content-Encoding", ""):
        return error(501, "NotImplemented", "Transfer encoding aws-chunked is not supported")
    return None


def thousand_parts(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """Scaleway: part numbers end at 1,000."""
    if int(exchange.query.get("partNumber", "0")) > 1000:
        return error(400, "InvalidArgument", "Part number must be an integer between 1 and 1000")
    return None


def small_metadata(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """AWS and others: 2 KiB of metadata."""
    prefix = "x-amz-meta-"
    pairs = [
        (name, value) for name, value in exchange.headers.items() if name.lower().startswith(prefix)
    ]
    if sum(len(name) - len(prefix) + len(value) for name, value in pairs) > 2048:
        return error(
            400, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed size"
        )
    return None


def lists_uploads_by_key_only(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """MinIO: multipart uploads are listed for an exact key, not for a prefix."""
    if exchange.operation == "ListMultipartUploads" and not re.search(
        r"[0-9a-f]{32}$", exchange.query.get("prefix", "")
    ):
        empty = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
        return Answer(200, CIMultiDict({"Content-Type": "application/xml"}), empty.encode())
    return None


def no_conditional_removals(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """Stores of before September 2025: they know no condition of DeleteObject. This one says so."""
    if exchange.operation == "DeleteObject" and "If-Match" in exchange.headers:
        return error(501, "NotImplemented", "A header you provided is not implemented")
    return None


def no_encryption_headers_on_reads(_proxy: RulesProxy, exchange: Exchange) -> Answer | None:
    """AWS: a header of server-side encryption is refused for GET and HEAD."""
    if exchange.method in {"GET", "HEAD"} and any(
        name.lower().startswith("x-amz-server-side-encryption") for name in exchange.headers
    ):
        return error(400, "InvalidRequest", "Server-side encryption headers are not applicable")
    return None


class RulesProxy(HttpProxy):
    """Has the rules of other stores. upload_is_key: NoSuchKey where others say NoSuchUpload (DigitalOcean)."""

    def __init__(self, target: tuple[str, int], *rules: Rule, upload_is_key: bool = False) -> None:
        super().__init__(target)
        self.rules: Iterable[Rule] = rules
        self.upload_is_key = upload_is_key
        self.refused: Counter[str] = Counter()
        self.part_sizes: dict[str, dict[int, int]] = defaultdict(dict)

    async def handle(self, exchange: Exchange) -> Answer:
        for rule in self.rules:
            refusal = rule(self, exchange)
            if refusal is not None:
                self.refused[rule.__name__] += 1
                return refusal
        answer = await self.forward(exchange)
        if exchange.operation == "UploadPart":
            self._note(exchange, len(exchange.body))
        elif exchange.operation == "UploadPartCopy":
            start, _, end = (
                exchange.headers["x-amz-copy-source-range"].rpartition("=")[2].partition("-")
            )
            self._note(exchange, int(end) - int(start) + 1)
        if self.upload_is_key and b"<Code>NoSuchUpload</Code>" in answer.body:
            answer.body = answer.body.replace(b"NoSuchUpload", b"NoSuchKey")
        return answer

    def _note(self, exchange: Exchange, size: int) -> None:
        self.part_sizes[exchange.query["uploadId"]][int(exchange.query["partNumber"])] = size
