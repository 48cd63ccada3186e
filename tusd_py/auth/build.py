"""Build the authenticator from settings."""

from __future__ import annotations

from collections.abc import Callable

from tusd_py.auth.access_tokens import AccessTokens
from tusd_py.auth.authenticator import Authenticator, Source
from tusd_py.auth.keys import Keys, secrets
from tusd_py.auth.keys.secrets import Secret, SharedSecrets
from tusd_py.auth.policy import AccessPolicy
from tusd_py.auth.principal import Right
from tusd_py.auth.revocation import Revocations
from tusd_py.auth.upload_tokens import UploadTokens
from tusd_py.redis import RedisClient
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import catalogue

_KEY_FILE = "upload-token.key"
_KEY_SET_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")


def shared_secrets(settings: Settings) -> tuple[Secret, ...]:
    """The shared secrets for access tokens; empty if there are none. Raises ValueError."""
    if settings.jwt_secret is not None:
        return (Secret(None, settings.jwt_secret.get_secret_value().encode()),)
    if settings.jwt_secret_file is not None:
        return secrets.read(settings.jwt_secret_file, "--jwt-secret-file")
    return ()


def scope_names(settings: Settings) -> dict[Right, str]:
    """The operator's name for each right."""
    return {
        Right.CREATE: settings.scope_create,
        Right.READ: settings.scope_read,
        Right.DELETE: settings.scope_delete,
        Right.ADMIN: settings.scope_admin,
    }


def access_tokens(settings: Settings) -> AccessTokens | None:
    """The verifier of access tokens; None with `--auth none`. Reads files. Raises ValueError for contradictory settings."""
    sources = {
        "--jwt-secret": settings.jwt_secret,
        "--jwt-secret-file": settings.jwt_secret_file,
        "--jwt-jwks": settings.jwt_jwks,
    }
    given = [name for name, value in sources.items() if value is not None]
    if settings.auth == "none":
        if given:
            variable = next(
                each.environment for each in catalogue(Settings) if each.flag == given[0]
            )
            raise ValueError(
                f"{given[0]} ({variable}) is given, but authentication is off; add --auth jwt"
            )
        return None
    if len(given) != 1:
        number = f"{len(given)} are" if given else "none is"
        raise ValueError(f"--auth jwt needs one of {', '.join(sources)}; {number} given")
    found = shared_secrets(settings)
    algorithms = settings.jwt_algorithms or (("HS256",) if found else _KEY_SET_ALGORITHMS)
    wrong = [name for name in algorithms if name.startswith("HS") != bool(found)]
    if wrong:
        raise ValueError(f"--jwt-algorithms {wrong[0]} does not go with {given[0]}")
    keys: Keys = SharedSecrets(found)
    if settings.jwt_jwks is not None:
        # Loads the HTTP client, a third of all that a server loads.
        from tusd_py.auth.keys.jwks import Jwks  # noqa: PLC0415

        keys = Jwks(settings.jwt_jwks, algorithms)
    names = scope_names(settings)
    if len(set(names.values())) < len(names):
        raise ValueError("two of --scope-create, -read, -delete and -admin are the same")
    rights = {name: right for right, name in names.items()}
    return AccessTokens(keys, settings, algorithms=algorithms, rights=rights)


def upload_tokens(settings: Settings) -> UploadTokens:
    """The issuer and verifier of upload tokens. Reads the key file, and creates it if needed. Raises ValueError."""
    file = settings.upload_token_secret_file
    found = shared_secrets(settings)
    if file is not None:
        keys = secrets.derived(secrets.read(file, "--upload-token-secret-file"))
    elif found:
        keys = secrets.derived(found)
    else:
        try:
            keys = secrets.kept(settings.state_dir / _KEY_FILE)
        except OSError as problem:
            raise ValueError(
                f"{_KEY_FILE} cannot be kept in {settings.state_dir}: {problem.strerror}"
            ) from None
    return UploadTokens(keys, ttl=settings.upload_token_ttl, grace=settings.upload_token_grace)


def authenticator(
    settings: Settings,
    source: Source,
    redis: RedisClient,
    *,
    on_revocation: Callable[[], None],
) -> Authenticator:
    """Build the authenticator. on_revocation: called after new revocations were read. Raises ValueError."""
    revocations = Revocations(redis, on_change=on_revocation, ttl=settings.revocation_ttl)
    return Authenticator(
        source,
        upload_tokens(settings),
        revocations,
        AccessPolicy(revocations, scope_names(settings)),
    )
