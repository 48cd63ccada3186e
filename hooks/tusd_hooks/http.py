"""Hooks over HTTP: sends every event as a POST request to the operator's endpoints, in tusd's format.

Calls share one pooled client per process and are retried if an endpoint fails; answers have an effect where tusd gives them
one. An event that could not be delivered within the timeout is delivered again by workers, if they deliver events.

The client is aiohttp's because it has been maintained by several people for over ten years, keeps its connections without
blocking, and verifies with the system's certificates; httpx has had no release since 2024.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import aiohttp
from yarl import URL

from tusd_hooks import wire
from tusd_hooks.wire import MalformedAnswer, WireHooks
from tusd_py import logs
from tusd_py.auth.http_client import USER_AGENT, proxy_for, without_credentials
from tusd_py.events.model import Changes, Event, EventType, HookContext, HookFailed
from tusd_py.telemetry import tracing

logger = logging.getLogger(__name__)

EVENT_ID_HEADER = "Hook-Event-Id"
ATTEMPT_HEADER = "Hook-Event-Attempt"
SIGNATURE_HEADER = "Hook-Signature"

_MAX_CONNECTIONS = 512
"""Maximum number of connections, so that a hanging endpoint does not use up the descriptors that uploads need."""
_KEEP_IDLE = 4.0
"""Seconds. Many servers close connections after 5 idle seconds, and a request sent at that moment would have to be retried."""

_NOT_FORWARDED = wire.OF_THE_CONNECTION | {
    "content-type",
    "expect",
    "host",
    EVENT_ID_HEADER.lower(),
    ATTEMPT_HEADER.lower(),
    SIGNATURE_HEADER.lower(),
}
"""Header fields that are never forwarded: they belong to a connection or a body, or are set here."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint. name: for the log, without secret parts of the URL. proxy: from the environment."""

    url: URL
    name: str
    headers: Mapping[str, str] = field(default_factory=dict)
    proxy: URL | None = None
    proxy_auth: aiohttp.BasicAuth | None = None


@dataclass(frozen=True, slots=True)
class _Reply:
    """A response. body: None if it was larger than the limit."""

    status: int
    body: bytes | None


class HTTPHooks(WireHooks):
    """Sends events to endpoints: `pre-` events one after the other, others at the same time."""

    _session: aiohttp.ClientSession

    async def start(self, context: HookContext) -> None:
        """Read the settings and open the client, without calling an endpoint."""
        await super().start(context)
        self._endpoints = [endpoint(url) for url in self._settings.hooks_http]
        self._forwarded = _forwarded(self._settings.hooks_http_forward_headers)
        secret = self._settings.hooks_http_secret
        self._secret = secret.get_secret_value().encode() if secret is not None else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEP_IDLE),
            # Cookies set by one response must not be sent with the next call.
            cookie_jar=aiohttp.DummyCookieJar(),
            # No compressed responses: a small one could expand beyond the limit.
            auto_decompress=False,
            # One timeout covers all attempts of a call.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        )
        _log_once(
            ", ".join(each.name for each in self._endpoints),
            ", ".join(self._settings.hooks_enabled_events),
            self._secret is not None,
        )

    async def stop(self) -> None:
        """Close the client's connections."""
        await self._session.close()

    async def handle(self, event: Event) -> Changes | None:
        """Send an event to the endpoints. Return or raise the meaning of their answers. Raises HookFailed."""
        if event.type.value.startswith("pre-"):
            return await self._ask_in_turn(event)
        await self._tell_all(event)
        return None

    async def _ask_in_turn(self, event: Event) -> Changes:
        """Send an event to each endpoint in order. The first refusal wins; each sees the metadata that earlier ones set."""
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
        """Send an event to all endpoints, whatever each answers. Afterwards a stop request takes precedence over a failure."""
        outcomes = await asyncio.gather(
            *(self._call(each, event) for each in self._endpoints), return_exceptions=True
        )
        problems = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for problem in problems:
            if not isinstance(problem, HookFailed):
                raise problem
        if problems:
            raise HookFailed("; ".join(map(str, problems)))

    async def _call(self, to: Endpoint, event: Event) -> Changes | None:
        """Return one endpoint's answer to an event. Raises Reject, Stop, HookFailed."""
        received = event.request.headers
        body = wire.request_document(event, self._settings)
        headers = {
            **to.headers,
            **tracing.passed_on(received),
            **{
                name: wire.header_text(received[name.lower()])
                for name in self._forwarded
                if name.lower() in received
            },
            "User-Agent": USER_AGENT,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            EVENT_ID_HEADER: event.id,
            ATTEMPT_HEADER: str(event.attempt),
        }
        try:
            reply = await self._persistently(to, headers, body)
            return self._meaning(reply, event.type)
        except HookFailed as problem:
            raise HookFailed(f"{to.name}: {problem}") from problem.__cause__

    async def _persistently(self, to: Endpoint, headers: Mapping[str, str], body: bytes) -> _Reply:
        """Return the first response that is not 5xx. Raises HookFailed after all attempts or at the timeout."""
        tries, seconds = self._settings.hooks_http_retry, self._settings.hooks_http_timeout
        failure, cause = "", None
        try:
            async with asyncio.timeout(seconds):
                for number in range(1, tries + 1):
                    try:
                        reply = await self._post(to, headers, body)
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
        """Interpret a response to an event. Raises Reject, Stop, HookFailed."""
        is_success = 200 <= reply.status < 300
        if is_success and (reply.status == 204 or event_type not in wire.ANSWERED):
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
        # Some endpoints also refuse with an error status: with an explicit refusal it is not a failure.
        if not is_success and event_type not in answer.refuses:
            raise HookFailed(_shown(reply))
        return answer.outcome(event_type)


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """Return the value of `Hook-Signature`: the time in seconds since the epoch, and the hexadecimal HMAC-SHA256 of that time,
    a full stop and the body."""
    signed = hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256)
    return f"t={timestamp},v1={signed.hexdigest()}"


def endpoint(url: str) -> Endpoint:
    """Return the endpoint of a URL, which may contain a user name and password (RFC 7617) and is otherwise used unchanged."""
    bare, auth = without_credentials(URL(url, encoded=True).with_fragment(None))
    proxy, proxy_auth = proxy_for(bare)
    return Endpoint(
        url=bare,
        name=str(bare.with_query(None)),
        headers={} if auth is None else {"Authorization": auth.encode()},
        proxy=proxy,
        proxy_auth=proxy_auth,
    )


def _forwarded(names: Sequence[str]) -> list[str]:
    """Return the names of the header fields to forward, as the operator wrote them. Warn about those that cannot be."""
    for name in names:
        if name.lower() in _NOT_FORWARDED:
            logger.warning("--hooks-http-forward-headers: %s cannot be forwarded", name)
    # Those of a trace are sent anyway.
    return [name for name in names if name.lower() not in _NOT_FORWARDED.union(tracing.FIELDS)]


@cache
def _log_once(endpoints: str, events: str, signed: bool) -> None:
    """Log what is called; a worker starts the hooks again for each sweep."""
    logs.event(
        logger, logging.INFO, "hooks over HTTP", endpoints=endpoints, events=events, signed=signed
    )


def _shown(reply: _Reply) -> str:
    """Summarize an unexpected response for the log."""
    if 300 <= reply.status < 400:
        return f"answered {reply.status}; redirects are not followed"
    return f"answered {reply.status}{wire.excerpt(reply.body or b'')}"
