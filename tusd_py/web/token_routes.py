"""Renew upload tokens, and revoke tokens and uploads: two addresses beside the uploads, for JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from tusd_py import logs
from tusd_py.auth.principal import Action, Principal, Right
from tusd_py.events.model import RequestView
from tusd_py.protocol import errors
from tusd_py.redis import RedisClient, RedisUnavailable, Script
from tusd_py.uploads.receive import Body, BodyEnd
from tusd_py.uploads.service import Uploads
from tusd_py.web.messages import Request, Response

if TYPE_CHECKING:
    from tusd_py.auth.authenticator import Authenticator
    from tusd_py.auth.upload_tokens import Issued

logger = logging.getLogger(__name__)

REFRESH = "/auth/refresh-upload-token"
REVOKE = "/auth/revoke"

_MAX_BODY = 4096
_BODY_SECONDS = 10.0
"""A body is one small object; who is slower asks with a token that may have been good long ago."""
_WINDOW = 60

# KEYS: refreshes. ARGV: milliseconds. How often it was asked for, and how long that counts.
_COUNT = Script(
    "count refreshes",
    """\
local count = redis.call('INCR', KEYS[1])
if count == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return { count, redis.call('PTTL', KEYS[1]) }
""",
)


class TokenRoutes:
    """Renews and revokes. refreshes: how often the token of one upload is renewed within a minute."""

    routes = frozenset((REFRESH, REVOKE))

    def __init__(
        self, authenticator: Authenticator, uploads: Uploads, redis: RedisClient, *, refreshes: int
    ) -> None:
        self.authenticator = authenticator
        self._uploads = uploads
        self._redis = redis
        self._refreshes = refreshes

    async def answer(self, request: Request, view: RequestView) -> Response:
        """Answer a request for one of `routes`. view: the request as hooks see it. Raises ProtocolError."""
        if request.method == "OPTIONS":
            return Response(204)
        if request.method != "POST":
            raise errors.method_not_allowed("POST, OPTIONS")
        is_refresh = request.route == REFRESH
        # Before a byte of the body is read.
        principal = await self.authenticator.authenticate(
            view.headers, request.scope, grace=is_refresh
        )
        view = replace(view, principal=principal)
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                wanted = await _document(request.body)
        except TimeoutError:
            raise errors.bad_request(
                f"the body did not arrive within {_BODY_SECONDS:.0f} s"
            ) from None
        # The token may have been revoked while the body was on its way.
        self.authenticator.access_policy.check_standing(principal)
        if not is_refresh:
            request.upload_id = await self._revoke(wanted, view)
            return Response(204, {"Cache-Control": "no-store"})
        request.upload_id, issued = await self._refresh(wanted, view)
        document = {
            "upload_token": issued.token,
            "token_type": "Bearer",
            "expires_in": int(issued.lasts),
            "upload_id": request.upload_id,
        }
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        return Response(200, headers, json.dumps(document).encode())

    async def _refresh(self, wanted: dict[str, str], view: RequestView) -> tuple[str, Issued]:
        """Renew the token of an upload; return the upload's id and the token."""
        grants = view.principal.grants
        upload_id = wanted.get("upload_id", next(iter(grants)) if len(grants) == 1 else "")
        if not upload_id:
            raise errors.bad_request("upload_id is missing")
        upload = await self._uploads.look_up(upload_id, view, Action.REFRESH)
        # A part is finished only with the whole that it is joined to, and that may take hours more.
        if upload.finished and not upload.info.is_partial:
            raise errors.not_renewable()
        await self._limit(upload_id)
        return upload_id, self.authenticator.issue(upload_id, upload.info.owner, view.principal)

    async def _limit(self, upload_id: str) -> None:
        try:
            answer = await self._redis.run(
                _COUNT, [self._redis.keys.refreshes(upload_id)], (_WINDOW * 1000,)
            )
        except RedisUnavailable as problem:
            # The limit is there to spare the server; an upload shall not die of an outage.
            logger.warning("refreshes are not counted: %s", problem)
            return
        count, left = cast("list[int]", answer)
        if count > self._refreshes:
            raise errors.too_many_requests(max(1, -(-left // 1000)))

    async def _revoke(self, wanted: dict[str, str], view: RequestView) -> str:
        """Revoke an upload, whose id is returned, or the tokens of an owner."""
        upload_id, owner = wanted.get("upload_id", ""), wanted.get("owner", "")
        if bool(upload_id) == bool(owner):
            raise errors.bad_request("give either upload_id or owner")
        try:
            if upload_id:
                await self._uploads.look_up(upload_id, view, Action.REVOKE)
                await self.authenticator.revocations.revoke_upload(upload_id)
            else:
                self._check_owner(view.principal, owner)
                await self.authenticator.revocations.revoke_owner(owner)
        except RedisUnavailable as problem:
            logger.warning("nothing was revoked: %s", problem)
            raise errors.unavailable() from None
        logs.event(
            logger,
            logging.INFO,
            "revoked",
            upload=upload_id or None,
            owner=owner or None,
            by=view.principal.owner,
        )
        return upload_id

    def _check_owner(self, principal: Principal, owner: str) -> None:
        """Raises unless `principal` may revoke the tokens of `owner`: one's own, or an admin anybody's."""
        if principal.is_admin:
            return
        scopes = self.authenticator.access_policy.scopes
        if owner != principal.owner:
            raise errors.insufficient_scope(scopes[Right.ADMIN])
        if Right.DELETE not in principal.rights:
            raise errors.insufficient_scope(scopes[Right.DELETE])


async def _document(body: Body) -> dict[str, str]:
    """The JSON object of texts in a body; empty for an empty one. Raises a 400."""
    content = b""
    while piece := await body.read():
        content += piece
        if len(content) > _MAX_BODY:
            raise errors.bad_request("the body is too large")
    if body.end is not BodyEnd.COMPLETE:
        raise errors.connection_reset()
    if not content.strip():
        return {}
    try:
        document: object = json.loads(content)
    except (ValueError, RecursionError):
        raise errors.bad_request("the body is not JSON") from None
    if not isinstance(document, dict) or not all(
        isinstance(value, str) and value.isprintable() for value in document.values()
    ):
        raise errors.bad_request("the body is no JSON object of texts")
    return cast("dict[str, str]", document)
