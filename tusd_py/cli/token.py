"""`tusd-py token`: issues access tokens for testing, inspects tokens, and revokes them.

It takes the settings of `tusd-py serve`: the secret, the names of claims and scopes, the Redis. Tokens are read from standard
input, as all users of a machine can see the arguments of its processes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
from collections.abc import Mapping

import jwt

from tusd_py.auth import build
from tusd_py.auth.keys import KeysUnavailable
from tusd_py.auth.principal import Principal, Right
from tusd_py.auth.revocation import Revocations
from tusd_py.auth.upload_tokens import TYPE, BadToken, unverified_header
from tusd_py.cli.output import write_json, write_line
from tusd_py.cli.redis import NoRedis, instance_redis
from tusd_py.redis import RedisUnavailable
from tusd_py.redis.embedded.server import EmbeddedRedisError
from tusd_py.service.backends import redis_client
from tusd_py.settings import units
from tusd_py.settings.commandline import Parser, UsageError, suggestion
from tusd_py.settings.load import add_flags, load_arguments
from tusd_py.settings.model import Settings

USAGE = "issue --owner NAME | inspect | revoke (--owner NAME | --upload ID) [options of serve]"
ABOUT = """\
issue prints an access token signed with the server's secret, for operators and for testing. inspect reads a token from \
standard input, prints its content and whether the server would accept it; the exit code is 1 if not. revoke invalidates all \
tokens issued to an owner until now, or all tokens of an upload for good.

Give it the same options as the server, or the same environment.
"""

_ACTIONS = ("issue", "inspect", "revoke")
_SECTION = "Token"


def add_arguments(parser: Parser) -> None:
    """Declare the action, its options and all settings."""
    parser.add_argument("action", nargs="?", default="")
    parser.option("--owner", "Owner of the token.", section=_SECTION, metavar="NAME")
    parser.option("--upload", "The upload to revoke.", section=_SECTION, metavar="ID")
    parser.option(
        "--scope",
        "Scopes of the token, separated by commas.",
        section=_SECTION,
        metavar="NAMES",
        note="create, read and delete",
    )
    parser.option(
        "--lasts",
        "Lifetime of the token.",
        section=_SECTION,
        metavar="DURATION",
        note="1h",
    )
    parser.option(
        "--upload-size",
        "Maximum size of an upload with this token.",
        section=_SECTION,
        metavar="SIZE",
    )
    parser.option(
        "--open-uploads",
        "Maximum number of unfinished uploads of its owner.",
        section=_SECTION,
        metavar="NUMBER",
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the action and return the exit code."""
    action: str = arguments.action
    if action not in _ACTIONS:
        given = f'"{action}" is no action' if action else "no action was given"
        raise UsageError(f"{given}; give issue, inspect or revoke{suggestion(action, _ACTIONS)}")
    given_options = vars(arguments)
    settings = load_arguments(arguments, os.environ).settings
    settings = settings.model_copy(update={"auth": "jwt"})
    try:
        if action == "issue":
            write_line(_issue(settings, given_options))
            return 0
        if action == "inspect":
            return asyncio.run(_inspect(settings, sys.stdin.read().strip()))
        return _revoke(settings, given_options)
    except (ValueError, RedisUnavailable, EmbeddedRedisError, KeysUnavailable, NoRedis) as problem:
        sys.stderr.write(f"tusd-py token: {problem}\n")
        return 1


def _issue(settings: Settings, given: Mapping[str, object]) -> str:
    """Return a signed access token. Raises ValueError if there is no secret to sign it with."""
    secret = (build.shared_secrets(settings) or (None,))[0]
    if secret is None:
        raise ValueError(
            "there is no secret to sign with (--jwt-secret-file, TUSD_JWT_SECRET); "
            "with a key set, only the holder of the private key can issue tokens"
        )
    owner = str(given.get("owner", ""))
    if not owner:
        raise UsageError("--owner is missing")
    values = owner.split("/") if len(settings.jwt_owner_claims) > 1 else [owner]
    if len(values) != len(settings.jwt_owner_claims):
        claims = "/".join(settings.jwt_owner_claims)
        raise UsageError(f"--owner: give {claims}, separated by slashes")
    now = int(time.time())
    claims_of_token: dict[str, object] = {
        **dict(zip(settings.jwt_owner_claims, values, strict=True)),
        settings.jwt_scope_claim: " ".join(_scopes(settings, given)),
        "iat": now,
        "exp": now + _duration(given.get("lasts")),
    }
    if settings.jwt_issuer is not None:
        claims_of_token["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims_of_token["aud"] = settings.jwt_audience[0]
    if "upload_size" in given:
        size = units.parse_size(str(given["upload_size"]))
        claims_of_token[settings.jwt_max_upload_size_claim] = size
    if "open_uploads" in given:
        claims_of_token[settings.jwt_max_open_uploads_claim] = _number(str(given["open_uploads"]))
    algorithm = (settings.jwt_algorithms or ("HS256",))[0]
    headers = None if secret.kid is None else {"kid": secret.kid}
    return jwt.encode(claims_of_token, secret.value, algorithm=algorithm, headers=headers)


def _scopes(settings: Settings, given: Mapping[str, object]) -> list[str]:
    names = build.scope_names(settings)
    if "scope" not in given:
        return [names[right] for right in (Right.CREATE, Right.READ, Right.DELETE)]
    by_right = {right.value: name for right, name in names.items()}
    # Short names (create, read, delete) are accepted for the configured ones.
    return [by_right.get(name, name) for name in re.split(r"[, ]+", str(given["scope"])) if name]


def _duration(text: object) -> int:
    return 3600 if text is None else int(units.parse_duration(str(text)))


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError("--open-uploads: give a whole number")
    return int(text)


async def _inspect(settings: Settings, token: str) -> int:
    """Print a token's header and claims, and whether the server would accept it."""
    try:
        header = unverified_header(token)
        claims: dict[str, object] = jwt.decode(token, options={"verify_signature": False})
    except (BadToken, jwt.PyJWTError):
        write_json({"taken": False, "why": "it is no token"}, indent=2)
        return 1
    shown: dict[str, object] = {"header": dict(header), "claims": claims}
    try:
        shown |= await _verdict(settings, token, is_upload_token=header.get("typ") == TYPE)
    except BadToken as problem:
        shown |= {"taken": False, "why": str(problem)}
    write_json(shown, indent=2)
    return 0 if shown["taken"] else 1


async def _verdict(settings: Settings, token: str, *, is_upload_token: bool) -> dict[str, object]:
    if is_upload_token:
        upload_id, grant = build.upload_tokens(settings).verify(token)
        return {"taken": True, "upload": upload_id, "owner": grant.owner}
    verifier = build.access_tokens(settings)
    if verifier is None:
        raise BadToken("no tokens are asked for")
    await verifier.keys.start()
    try:
        return {"taken": True, **_described(await verifier.verify(token))}
    finally:
        await verifier.keys.stop()


def _described(principal: Principal) -> dict[str, object]:
    return {
        "owner": principal.owner,
        "rights": sorted(right.value for right in principal.rights),
        "max_upload_size": principal.limits.max_upload_size,
        "max_open_uploads": principal.limits.max_open_uploads,
    }


def _revoke(settings: Settings, given: Mapping[str, object]) -> int:
    if ("owner" in given) == ("upload" in given):
        raise UsageError("give either --owner or --upload")
    with instance_redis(settings) as url:
        asyncio.run(_revoke_in(url, settings, given))
    return 0


async def _revoke_in(url: str, settings: Settings, given: Mapping[str, object]) -> None:
    redis = redis_client(settings, url)
    await redis.start()
    try:
        revocations = Revocations(redis, on_change=lambda: None, ttl=settings.revocation_ttl)
        if "upload" in given:
            await revocations.revoke_upload(str(given["upload"]))
        else:
            await revocations.revoke_owner(str(given["owner"]))
    finally:
        await redis.stop()
