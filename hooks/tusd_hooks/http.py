"""Hooks over HTTP: every event is a POST request to an endpoint of the operator's, in tusd's format.

The calls go through one pooled client a process and are tried again when an endpoint fails; an answer decides only where tusd
lets it. Not for redelivery: an event that could not be told within its time is tried again by workers, if by anybody.

The client is aiohttp's because it has been maintained by several people for over ten years, keeps its connections without
blocking, and verifies with the system's certificates; httpx has had no release since 2024.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import aiohttp
from yarl import URL

from tusd_hooks import wire
from tusd_hooks.wire import MalformedAnswer, WireHooks
from tusd_py import logs
from tusd_py.auth.http_client import USER_AGENT, proxy_for, without_credentials
from tusd_py.events.model import Changes, Event, EventType, HookContext, HookFailed
from tusd_py.settings.model import Settings

logger = logging.getLogger(__name__)

EVENT_ID_HEADER = "Hook-Event-Id"
ATTEMPT_HEADER = "Hook-Event-Attempt"
SIGNATURE_HEADER = "Hook-Signature"

_MAX_CONNECTIONS = 512
"""At the same time, so that an endpoint that hangs does not use up the descriptors that uploads need; others wait in line."""
_KEEP_IDLE = 4.0
"""Seconds. Many servers close a connection that was idle for 5; what is sent just then would be lost and tried again."""
_SHOWN = 200
"""Bytes of an unexpected answer that are logged."""

_NOT_FORWARDED = frozenset(
    (
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        EVENT_ID_HEADER.lower(),
        ATTEMPT_HEADER.lower(),
        SIGNATURE_HEADER.lower(),
    )
)
"""Header fields that belong to one connection or to one body, or that are ours to set."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events are sent. name: for the log, without what may be secret in the URL. proxy: as the environment has it."""

    url: URL
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    proxy: URL | None = None
    proxy_auth: aiohttp.BasicAuth | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    """What came back. body: None if it was larger than what is taken."""

    status: int
    body: bytes | None


class HTTPHooks(WireHooks):
    """See the module. Several endpoints are asked in turn by `pre-` events, and told at the same time of the others."""

    _settings: Settings
    _session: aiohttp.ClientSession

    async def start(self, context: HookContext) -> None:
        """Takes its settings and opens the client. No endpoint is called."""
        await super().start(context)
        self._settings = context.settings
        self._endpoints = [endpoint(url) for url in self._settings.hooks_http]
        self._forwarded = _forwarded(self._settings.hooks_http_forward_headers)
        secret = self._settings.hooks_http_secret
        self._secret = secret.get_secret_value().encode() if secret is not None else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEP_IDLE),
            # One endpoint's answer to one event must not show up in the call for another.
            cookie_jar=aiohttp.DummyCookieJar(),
            # Compressed answers are neither asked for nor unpacked: a small one could become a large one.
            auto_decompress=False,
            # The time-out is one for all tries of a call.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        )
        logs.event(
            logger,
            logging.INFO,
            "hooks over HTTP",
            endpoints=", ".join(each.name for each in self._endpoints),
            events=", ".join(self._settings.hooks_enabled_events),
            signed=self._secret is not None,
        )

    async def stop(self) -> None:
        """Closes the client's connections."""
        await self._session.close()

    async def handle(self, event: Event) -> Changes | None:
        """Tells the endpoints of an event; returns or raises what their answers mean. Raises HookFailed."""
        if event.type.value.startswith("pre-"):
            return await self._ask_in_turn(event)
        await self._tell_all(event)
        return None

    async def _ask_in_turn(self, event: Event) -> Changes:
        """The first refusal wins; a later endpoint sees the metadata that those before it set."""
        changes = Changes()
        for each in self._endpoints:
            wanted = await self._call(each, event)
            if wanted is None:
                continue
            changes = changes.then(wanted)
            if wanted.metadata is not None:
                event = replace(event, upload=replace(event.upload, metadata=wanted.metadata))
        return changes

    async def _tell_all(self, event: Event) -> None:
        """All of them are told, whatever one of them says; then a request to stop goes before a failure."""
        outcomes = await asyncio.gather(
            *(self._call(each, event) for each in self._endpoints), return_exceptions=True
        )
        problems = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        failures = [problem for problem in problems if isinstance(problem, HookFailed)]
        for problem in problems:
            if not isinstance(problem, HookFailed):
                raise problem
        if failures:
            raise HookFailed("; ".join(map(str, failures)))

    async def _call(self, to: Endpoint, event: Event) -> Changes | None:
        """One endpoint's answer to an event. Raises Reject, Stop, HookFailed."""
        body = wire.request_document(event, self._settings.upload_dir)
        headers = {
            **to.headers,
            **self._forwarded(event.request.headers),
            "User-Agent": USER_AGENT,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            EVENT_ID_HEADER: event.id,
            ATTEMPT_HEADER: str(event.attempt),
        }
        try:
            reply = await self._persistently(lambda: self._post(to, headers, body))
            return self._meaning(reply, event.type)
        except HookFailed as problem:
            raise HookFailed(f"{to.name}: {problem}") from problem.__cause__

    async def _persistently(self, post: Callable[[], Awaitable[_Reply]]) -> _Reply:
        """The first reply that is not 5xx. Raises HookFailed after so many tries, or when the time is over."""
        tries, seconds = self._settings.hooks_http_retry, self._settings.hooks_http_timeout
        failure, cause = "", None
        try:
            async with asyncio.timeout(seconds):
                for number in range(1, tries + 1):
                    try:
                        reply = await post()
                    except (aiohttp.ClientError, OSError) as problem:
                        failure, cause = f"{type(problem).__name__}: {problem}", problem
                    else:
                        if reply.status < 500:
                            return reply
                        failure, cause = _shown(reply), None
                    logger.debug("hook call %d of %d failed: %s", number, tries, failure)
                    if number < tries:
                        await asyncio.sleep(self._settings.hooks_http_backoff)
        except TimeoutError:
            before = f"; before that: {failure}" if failure else ""
            raise HookFailed(f"no answer within {seconds:g} s{before}") from cause
        raise HookFailed(f"{failure} (tried {tries} times)") from cause

    async def _post(self, to: Endpoint, headers: Mapping[str, str], body: bytes) -> _Reply:
        if self._secret is not None:
            headers = {**headers, SIGNATURE_HEADER: signature(self._secret, int(time.time()), body)}
        limit = self._settings.hooks_http_size_limit
        async with self._session.post(
            to.url,
            data=body,
            headers=headers,
            allow_redirects=False,
            proxy=to.proxy,
            proxy_auth=to.proxy_auth,
        ) as response:
            received = bytearray()
            async for part in response.content.iter_any():
                received += part
                if len(received) > limit:
                    response.close()
                    return _Reply(response.status, None)
            return _Reply(response.status, bytes(received))

    def _meaning(self, reply: _Reply, event_type: EventType) -> Changes | None:
        """What a reply means for an event. Raises Reject, Stop, HookFailed."""
        is_success = 200 <= reply.status < 300
        if is_success and (reply.status == 204 or not wire.counts(event_type)):
            return None
        if is_success and reply.body is None:
            raise HookFailed(
                f"the answer is larger than {self._settings.hooks_http_size_limit} bytes"
            )
        if not is_success and not (400 <= reply.status < 500 and reply.body):
            raise HookFailed(_shown(reply))
        try:
            answer = wire.parse_answer(reply.body or b"", self._settings.upload_dir)
        except MalformedAnswer:
            if is_success:
                raise
            raise HookFailed(_shown(reply)) from None
        # Endpoints are written that say no with the status as well: said in so many words, it is no failure.
        if not is_success and not answer.refuses(event_type):
            raise HookFailed(_shown(reply))
        return answer.outcome(event_type)


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """The value of `Hook-Signature`: when it was made (seconds since the epoch), and the HMAC-SHA256 of that time, a full
    stop and the body, in hexadecimal digits."""
    signed = hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256)
    return f"t={timestamp},v1={signed.hexdigest()}"


def endpoint(url: str) -> Endpoint:
    """The endpoint at a URL, which may have a name and a password in it (RFC 7617) and is otherwise sent as it stands."""
    bare, auth = without_credentials(URL(url, encoded=True).with_fragment(None))
    proxy, proxy_auth = proxy_for(bare)
    return Endpoint(
        url=bare,
        name=str(bare.with_query(None)),
        headers={} if auth is None else {"Authorization": auth.encode()},
        proxy=proxy,
        proxy_auth=proxy_auth,
    )


def _forwarded(names: str) -> Callable[[Mapping[str, str]], dict[str, str]]:
    """Picks what is to be forwarded out of a request's header fields; names are written as the operator did."""
    wanted = []
    for name in filter(None, names.split(", ")):
        if name.lower() in _NOT_FORWARDED:
            logger.warning("--hooks-http-forward-headers: %s cannot be forwarded", name)
        else:
            wanted.append((name, name.lower()))

    def pick(headers: Mapping[str, str]) -> dict[str, str]:
        return {
            name: wire.header_text(headers[lower]) for name, lower in wanted if lower in headers
        }

    return pick


def _shown(reply: _Reply) -> str:
    """A reply that was not expected, in a few words for the log."""
    if 300 <= reply.status < 400:
        return f"answered {reply.status}; redirects are not followed"
    begins = (reply.body or b"")[:_SHOWN].decode("utf-8", "replace")
    return f"answered {reply.status}" + (f": {begins!r}" if begins else "")
