"""`tusd-py token`: issues access tokens for testing, inspects tokens, and revokes them.

It takes the settings of `tusd-py serve`: the secret, the names of claims and scopes, the Redis. Tokens are read from standard
input, as all users of a machine can see the arguments of its processes.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import Any

import click
import jwt

from tusd_py.auth import build
from tusd_py.auth.principal import Principal, Right
from tusd_py.auth.revocation import Revocations
from tusd_py.auth.upload_tokens import TYPE, BadToken, unverified_header
from tusd_py.cli.instance import instance_redis
from tusd_py.cli.options import Value, action, option, quiet_settings, subcommand, whole
from tusd_py.cli.output import CommandFailed, printable, write_json, write_line, write_problem
from tusd_py.service.backends import connected_redis, store_to_read
from tusd_py.settings import units
from tusd_py.settings.model import Settings
from tusd_py.storage.base import StorageError, UploadGone, UploadNotFound

ABOUT = """\
issue prints an access token signed with the server's secret, for operators and for testing. inspect reads a token from
standard input, prints its content and whether it is valid, apart from revocations; the exit code is 1 if not. revoke
invalidates all tokens issued to an owner until now, or all tokens of an upload for good; the exit code is 1 for an upload that
is not there.

Give it the same options as the server, or the same environment.
"""

_LIFETIME_SECONDS = 3600.0
_SECTION = "Token"


@subcommand(
    "issue --owner NAME | inspect | revoke (--owner NAME | --upload ID) [options of serve]", ABOUT
)
@action("issue", "inspect", "revoke")
@option("--owner", "Owner of the token.", section=_SECTION, type=Value("NAME"))
@option("--upload", "The upload to revoke.", section=_SECTION, type=Value("ID"))
@option(
    "--scope",
    "Scopes of the token, separated by commas.",
    section=_SECTION,
    type=Value("NAMES"),
    note="create, read and delete",
)
@option(
    "--lasts",
    "Lifetime of the token.",
    section=_SECTION,
    type=Value("DURATION", units.parse_duration),
    note="1h",
)
@option(
    "--upload-size",
    "Maximum size of an upload with this token.",
    section=_SECTION,
    type=Value("SIZE", units.parse_size),
)
@option(
    "--open-uploads",
    "Maximum number of unfinished uploads of its owner.",
    section=_SECTION,
    type=whole(0, 999_999_999),
)
@option(
    "--total-size",
    "Bytes that all uploads of its owner may take.",
    section=_SECTION,
    type=Value("SIZE", units.parse_size),
)
def command(action: str, owner: str | None, upload: str | None, **limits: Any) -> int:
    """Run the action and return the exit code."""
    # What fails is reported in a line of the command.
    settings = quiet_settings("error").model_copy(update={"auth": "jwt"})
    try:
        if action == "issue":
            write_line(_issue(settings, owner, **limits))
            return 0
        if action == "inspect":
            return asyncio.run(_inspect(settings, sys.stdin.read().strip()))
    except ValueError as problem:
        raise CommandFailed(str(problem)) from problem
    return _revoke(settings, owner, upload)


def _issue(
    settings: Settings,
    owner: str | None,
    *,
    scope: str | None,
    lasts: float | None,
    upload_size: int | None,
    open_uploads: int | None,
    total_size: int | None,
) -> str:
    """Return a signed access token. Raises ValueError if there is no secret to sign it with."""
    secret = (build.shared_secrets(settings) or (None,))[0]
    if secret is None:
        raise ValueError(
            "there is no secret to sign with (--jwt-secret-file, TUSD_JWT_SECRET); "
            "with a key set, only the holder of the private key can issue tokens"
        )
    now = int(time.time())
    claims: dict[str, object] = {
        **_owner_claims(settings, owner),
        settings.jwt_scope_claim: " ".join(_scopes(settings, scope)),
        "iat": now,
        "exp": now + int(_LIFETIME_SECONDS if lasts is None else lasts),
        "iss": settings.jwt_issuer,
        "aud": next(iter(settings.jwt_audience), None),
        settings.jwt_max_upload_size_claim: upload_size,
        settings.jwt_max_open_uploads_claim: open_uploads,
        settings.jwt_quota_bytes_claim: total_size,
    }
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        secret.value,
        algorithm=(settings.jwt_algorithms or ("HS256",))[0],
        headers=None if secret.kid is None else {"kid": secret.kid},
    )


def _owner_claims(settings: Settings, owner: str | None) -> dict[str, str]:
    if not owner:
        raise click.UsageError("--owner is missing")
    names = settings.jwt_owner_claims
    values = owner.split("/") if len(names) > 1 else [owner]
    if len(values) != len(names):
        raise click.UsageError(f"--owner: give {'/'.join(names)}, separated by slashes")
    return dict(zip(names, values, strict=True))


def _scopes(settings: Settings, given: str | None) -> list[str]:
    names = build.scope_names(settings)
    if given is None:
        return [names[right] for right in (Right.CREATE, Right.READ, Right.DELETE)]
    by_right = {right.value: name for right, name in names.items()}
    # Short names (create, read, delete) are accepted for the configured ones.
    return [by_right.get(name, name) for name in re.split(r"[, ]+", given) if name]


async def _inspect(settings: Settings, token: str) -> int:
    """Print a token's header and claims, and whether it is valid; does not look at revocations."""
    try:
        header = unverified_header(token)
        claims: dict[str, object] = jwt.decode(token, options={"verify_signature": False})
    except (BadToken, jwt.PyJWTError):
        write_json({"valid": False, "why": "it is not a token"}, indent=2)
        return 1
    shown: dict[str, object] = {"header": dict(header), "claims": claims}
    try:
        shown |= await _verdict(settings, token, is_upload_token=header.get("typ") == TYPE)
    except BadToken as problem:
        shown |= {"valid": False, "why": str(problem)}
    write_json(shown, indent=2)
    return 0 if shown["valid"] else 1


async def _verdict(settings: Settings, token: str, *, is_upload_token: bool) -> dict[str, object]:
    if is_upload_token:
        upload_id, grant = build.upload_tokens(settings).verify(token)
        return {"valid": True, "upload": upload_id, "owner": grant.owner}
    verifier = build.access_tokens(settings)
    if verifier is None:
        raise BadToken("neither a secret nor a key set is configured")
    await verifier.start()
    try:
        return {"valid": True, **_described(await verifier.verify(token))}
    finally:
        await verifier.stop()


def _described(principal: Principal) -> dict[str, object]:
    return {
        "owner": principal.owner,
        "rights": sorted(right.value for right in principal.rights),
        "max_upload_size": principal.limits.max_upload_size,
        "max_open_uploads": principal.limits.max_open_uploads,
        "quota_bytes": principal.limits.quota_bytes,
    }


def _revoke(settings: Settings, owner: str | None, upload: str | None) -> int:
    if (owner is None) == (upload is None):
        raise click.UsageError("give either --owner or --upload")
    with instance_redis(settings) as url:
        asyncio.run(_revoke_in(url, settings, owner, upload))
    if upload is None:
        write_line(f"revoked what {printable(owner or '')} was issued until now")
        return 0
    write_line(f"revoked upload {printable(upload)}")
    if asyncio.run(_is_here(settings, upload)):
        return 0
    write_problem(f"{printable(upload)} is not an upload here")
    return 1


async def _is_here(settings: Settings, upload_id: str) -> bool:
    """Whether there is such an upload; also where the uploads are not here, but only their Redis."""
    if not settings.s3_bucket and not settings.upload_dir.is_dir():
        return True
    try:
        async with store_to_read(settings) as store:
            await store.load(upload_id)
    except (UploadNotFound, UploadGone):
        return False
    except StorageError:
        pass
    return True


async def _revoke_in(url: str, settings: Settings, owner: str | None, upload: str | None) -> None:
    async with connected_redis(settings, url) as redis:
        revocations = Revocations(redis, on_change=lambda: None, ttl=settings.revocation_ttl)
        if upload is not None:
            await revocations.revoke_upload(upload)
        elif owner is not None:
            await revocations.revoke_owner(owner)
