"""The list of all settings: name, kind, default, description, and constraints between them.

Command line, environment, file, help and documentation are derived from this model. `load` reads values; the server checks at
startup that the directories are usable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from tusd_py.settings import kinds
from tusd_py.settings.reference import Shown

Size = Annotated[int, kinds.size()]
"""Bytes."""
Duration = Annotated[float, kinds.duration(zero=False)]
"""Seconds, more than 0."""
DurationOrZero = Annotated[float, kinds.duration(zero=True)]
"""Seconds; 0 has a special meaning."""
Count = Annotated[int, kinds.whole(1, 1_000_000)]
Flag = Annotated[bool, kinds.FLAG]
HeaderNames = Annotated[
    str, kinds.tokens("NAMES", "give names of headers, with commas between them")
]
Methods = Annotated[str, kinds.tokens("METHODS", "give names of methods, with commas between them")]

NETWORK = Shown("Network")
STORAGE = Shown("Storage")
LIMITS = Shown("Limits")
TIME = Shown("Time")
EXPIRY = Shown("Expiry")
PROTOCOL = Shown("Protocol")
CORS = Shown("CORS")
DUPLICATES = Shown("Duplicates")
HOOKS = Shown("Hooks", flag="--hook")
HOOK_TIMES = Shown("Hooks")
WIRE_HOOKS = Shown("Hooks over HTTP and as executables")
STATE = Shown("Redis", default="embedded")
STATE_USE = Shown("Redis")
OPERATION = Shown("Operation")
TOKENS = Shown("Tokens")

_STRANGERS = (
    "https://a-stranger.invalid",
    "http://a-stranger.invalid",
    "https://a-stranger.invalid:8443",
    "https://pages.a-stranger.invalid",
)
"""Origins that no operator would allow by name."""

WIRE_EVENTS = (
    "pre-create",
    "post-create",
    "post-receive",
    "pre-finish",
    "post-finish",
    "pre-terminate",
    "post-terminate",
    "pre-access",
    "post-expire",
)
"""Events sent to endpoints and executables. The first seven are tusd's."""


def _default_state_dir(given: Mapping[str, Path]) -> Path:
    return given["upload_dir"] / ".tusd-py"


class Settings(BaseModel):
    """All settings of a server; immutable. Sizes are in bytes, durations in seconds, paths absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: Annotated[str, kinds.HOST, NETWORK] = Field(
        "127.0.0.1",
        description='Address to listen on. "0.0.0.0" or "::" is every address of this machine.',
    )
    port: Annotated[int, kinds.whole(0, 65535), NETWORK] = Field(
        8080, description="Port to listen on. 0 picks a free one."
    )
    unix_sock: Annotated[Path | None, kinds.OPTIONAL_SOCKET, NETWORK] = Field(
        None, description="Listen on this Unix socket instead of an address and a port."
    )
    unix_sock_perms: Annotated[int, kinds.perms(0o600), NETWORK] = Field(
        0o660,
        description="Permissions of the Unix socket. Write permission is what a client needs to connect.",
    )
    base_path: Annotated[str, kinds.BASE_PATH, NETWORK] = Field(
        "/files/",
        description="URL path under which uploads are created. The trailing slash may be omitted.",
    )
    behind_proxy: Annotated[tuple[str, ...], kinds.PROXIES, NETWORK] = Field(
        (),
        description="Proxies whose Forwarded and X-Forwarded-* headers are trusted: addresses, networks, "
        '"private" (this machine and private networks), "unix" (connections to --unix-sock) '
        'or "*" (any address: only safe if clients cannot connect directly). Without a value '
        'it means "private".',
    )
    relative_location: Annotated[Flag, NETWORK] = Field(
        False, description="Send only the path of an upload in Location, not its full URL."
    )
    tls_certificate: Annotated[Path | None, kinds.OPTIONAL_FILE, NETWORK] = Field(
        None, description="Serve HTTPS with this certificate (PEM, including its chain)."
    )
    tls_key: Annotated[Path | None, kinds.OPTIONAL_FILE, NETWORK] = Field(
        None, description="Private key of the certificate (PEM)."
    )

    workers: Annotated[int, kinds.whole(1, 256), NETWORK] = Field(
        1,
        description="Server processes that share the port. One is enough for most disks and networks.",
    )

    upload_dir: Annotated[Path, kinds.DIRECTORY, STORAGE] = Field(
        Path("./data"),
        description="Directory for uploads. Created if missing. Only one server may use a directory, "
        "unless servers share a Redis.",
    )
    wait_for_directory: Annotated[DurationOrZero, STORAGE] = Field(
        0.0,
        description="How long to wait at startup for another server to release the upload directory, such"
        " as the one being replaced, and for the volume of a directory that was served before. 0 fails at once.",
    )
    new_upload_dir: Annotated[
        Literal["auto", "accept", "refuse"], kinds.choice("auto", "accept", "refuse"), STORAGE
    ] = Field(
        "auto",
        description="Which upload directories to serve at startup: a new one only if no other one is remembered for its "
        "path, as the volume of that one may not be mounted (auto); whatever is there, which is then remembered, so that one "
        "start is enough (accept); only one that was served before (refuse).",
    )
    state_dir: Annotated[
        Path, kinds.DIRECTORY, Shown("Storage", default="<upload-dir>/.tusd-py")
    ] = Field(
        default_factory=_default_state_dir,
        description="Directory for everything the server stores besides the uploads themselves.",
    )
    dir_perms: Annotated[int, kinds.perms(0o700), STORAGE] = Field(
        0o750, description="Permissions of directories that the server creates."
    )
    file_perms: Annotated[int, kinds.perms(0o600), STORAGE] = Field(
        0o640, description="Permissions of files that the server creates."
    )
    durability: Annotated[
        Literal["none", "finish", "chunk"], kinds.choice("none", "finish", "chunk"), STORAGE
    ] = Field(
        "finish",
        description="What survives a power failure: every finished upload (finish), every byte "
        "acknowledged to a client (chunk), or whatever the system had written (none).",
    )
    disk_reserve: Annotated[Size, STORAGE] = Field(
        0, description="Disk space to keep free. Requests that would use it are refused with 507."
    )

    max_size: Annotated[Size, LIMITS] = Field(
        0, description="Maximum size of an upload. 0 is unlimited."
    )
    max_connections: Annotated[Count, LIMITS] = Field(
        10_000,
        description="Maximum number of open connections. Further ones are answered with 503, HEAD "
        "requests with 423.",
    )
    max_header_size: Annotated[int, kinds.size(1024, 16 * 1024**2), LIMITS] = Field(
        64 * 1024,
        description="Maximum size of the request line and header fields of a request. Upload-Concat is "
        "not counted: --max-concat-parts bounds it.",
    )
    max_concat_parts: Annotated[int, kinds.whole(1, 100_000), LIMITS] = Field(
        10_000,
        description="Maximum number of parts of a final upload. Upload-Concat may be as long as that many"
        " URLs of 128 bytes plus the base path.",
    )

    max_concat_repeats: Annotated[Size, LIMITS] = Field(
        1024**3,
        description="Maximum number of bytes that repeated parts may add to a final upload. 0 is "
        "unlimited.",
    )

    network_timeout: Annotated[Duration, TIME] = Field(
        60.0,
        description="How long a request may go without receiving a byte of its body before it is ended. "
        "Received bytes are kept.",
    )
    keep_alive_timeout: Annotated[Duration, TIME] = Field(
        60.0, description="How long an idle connection is kept open for the next request."
    )
    shutdown_timeout: Annotated[DurationOrZero, TIME] = Field(
        10.0,
        description="How long running requests may take to finish when the server shuts down.",
    )
    acquire_lock_timeout: Annotated[Duration, TIME] = Field(
        20.0,
        description="How long to wait for another request to release the lock of the same upload.",
    )

    expire_after: Annotated[DurationOrZero, EXPIRY] = Field(
        7 * 86_400.0,
        description="How long an unfinished upload is kept after its last byte arrived. 0 is forever.",
    )
    retain_finished: Annotated[DurationOrZero, EXPIRY] = Field(
        0.0,
        description="How long a finished upload is kept before it is removed as expired. 0 is forever.",
    )
    tombstone_ttl: Annotated[DurationOrZero, EXPIRY] = Field(
        30 * 86_400.0,
        description="How long a removed upload is answered with 410 (Gone) instead of 404.",
    )
    sweep_interval: Annotated[Duration, EXPIRY] = Field(
        600.0, description="How often to remove expired uploads."
    )
    tuspyserver_dirs: Annotated[tuple[Path, ...], kinds.DIRECTORIES, EXPIRY] = Field(
        (),
        description="Directories of tuspyserver's router. Workers remove expired unfinished uploads "
        "there, too.",
    )
    time_zone: Annotated[str, kinds.TIME_ZONE, EXPIRY] = Field(
        "local",
        description="Time zone of the daily sweep over all uploads, which runs at 02:00: a name, or local"
        " for that of this machine.",
    )

    jobs: Annotated[Literal["auto", "on", "off"], kinds.choice("auto", "on", "off"), EXPIRY] = (
        Field(
            "auto",
            description="Whether the server runs a worker and a scheduler of its own: on, off, or only if it "
            "also runs its own Redis (auto). Without any, it sweeps by itself.",
        )
    )

    disable_download: Annotated[Flag, PROTOCOL] = Field(
        False, description="Do not serve finished uploads to GET requests."
    )
    disable_termination: Annotated[Flag, PROTOCOL] = Field(
        False, description="Do not let clients remove uploads with DELETE."
    )
    disable_concatenation: Annotated[Flag, PROTOCOL] = Field(
        False, description="Do not offer to join uploads from parts (concatenation)."
    )

    remove_parts_when_joined: Annotated[Flag, PROTOCOL] = Field(
        False,
        description="Remove parts as soon as every final upload that lists them is finished.",
    )

    disable_direct_bodies: Annotated[Flag, PROTOCOL] = Field(
        False,
        description="Pass large bodies through the HTTP parser like small ones, instead of reading them "
        "from the socket straight into the file.",
    )

    disable_cors: Annotated[Flag, CORS] = Field(
        False, description="Send no CORS headers, for example because a proxy does."
    )
    cors_allow_origin: Annotated[str, kinds.REGEX, CORS] = Field(
        ".*", description="Regular expression that an allowed origin must match as a whole."
    )
    cors_allow_credentials: Annotated[Flag, CORS] = Field(
        False,
        description="Let pages send cookies and other credentials. Restrict --cors-allow-origin with it.",
    )
    cors_allow_private_network: Annotated[Flag, CORS] = Field(
        False,
        description="Let pages from public addresses reach this server at a private one "
        "(Access-Control-Allow-Private-Network).",
    )
    cors_allow_methods: Annotated[Methods, CORS] = Field(
        "", description="Additional methods that pages may use."
    )
    cors_allow_headers: Annotated[HeaderNames, CORS] = Field(
        "", description="Additional request headers that pages may send."
    )
    cors_expose_headers: Annotated[HeaderNames, CORS] = Field(
        "", description="Additional response headers that pages may read."
    )
    cors_max_age: Annotated[str, kinds.DELTA_SECONDS, CORS] = Field(
        "86400", description="How long browsers may cache the answer to a preflight request."
    )

    duplicates: Annotated[
        Literal["on", "finished", "off"], kinds.choice("on", "finished", "off"), DUPLICATES
    ] = Field(
        "on",
        description="Which uploads cause a duplicate to be refused: all (on), only finished ones "
        "(finished), or none (off).",
    )
    duplicate_window: Annotated[Duration, DUPLICATES] = Field(
        30 * 86_400.0,
        description="How long a finished upload is remembered for duplicate detection.",
    )
    duplicate_keys: Annotated[tuple[str, ...], kinds.METADATA_KEYS, DUPLICATES] = Field(
        (),
        description="Metadata keys that identify the content. By default all keys do.",
    )
    duplicate_fingerprint_key: Annotated[str, kinds.METADATA_KEY, DUPLICATES] = Field(
        "",
        description="Metadata key whose value alone identifies the content, such as a digest that clients"
        " compute.",
    )
    duplicate_scope: Annotated[
        Literal["owner", "server"], kinds.choice("owner", "server"), DUPLICATES
    ] = Field(
        "owner",
        description="Compare an upload with those of the same owner (owner) or of all owners (server).",
    )
    duplicates_when_unavailable: Annotated[
        Literal["allow", "refuse"], kinds.choice("allow", "refuse"), DUPLICATES
    ] = Field(
        "allow",
        description="What to do with new uploads while Redis is unavailable: create them unchecked "
        "(allow), or refuse them with 503 (refuse).",
    )

    hooks: Annotated[tuple[str, ...], kinds.HOOKS, HOOKS] = Field(
        (),
        description='Python hooks to call on upload events: "module:name", "path/file.py" or '
        '"path/file.py:name".',
    )
    hooks_timeout: Annotated[Duration, HOOK_TIMES] = Field(
        30.0, description="Timeout of hooks that a request waits for."
    )
    progress_hooks_interval: Annotated[Duration, HOOK_TIMES] = Field(
        1.0, description="How often post-receive is called while data arrives."
    )
    hooks_delivery: Annotated[
        Literal["auto", "workers", "server"],
        kinds.choice("auto", "workers", "server"),
        HOOK_TIMES,
    ] = Field(
        "auto",
        description="Who calls post-create, post-finish, post-terminate and post-expire: workers, with "
        "retries (workers), the server, once (server), or workers if the server runs one or "
        "has a --redis-url (auto).",
    )
    hooks_delivery_attempts: Annotated[int, kinds.whole(1, 100), HOOK_TIMES] = Field(
        10,
        description="Maximum number of attempts to deliver an event. Then it is marked as failed.",
    )
    hooks_delivery_backoff: Annotated[Duration, HOOK_TIMES] = Field(
        10.0,
        description="How long workers wait after the first failed attempt. The pause triples with each "
        "further one, up to an hour.",
    )

    hooks_http: Annotated[tuple[str, ...], kinds.HTTP_URLS, WIRE_HOOKS] = Field(
        (), description="URLs to send events to, as POST requests in tusd's format."
    )
    hooks_http_forward_headers: Annotated[HeaderNames, WIRE_HOOKS] = Field(
        "",
        description="Header fields of the client's request to forward to the endpoints, such as Cookie.",
    )
    hooks_http_retry: Annotated[int, kinds.whole(1, 100), WIRE_HOOKS] = Field(
        3,
        description="Maximum number of attempts of a call whose endpoint is unreachable or answers 5xx.",
    )
    hooks_http_backoff: Annotated[DurationOrZero, WIRE_HOOKS] = Field(
        1.0, description="How long to wait between two attempts."
    )
    hooks_http_timeout: Annotated[Duration, WIRE_HOOKS] = Field(
        15.0, description="Timeout of a call, including all attempts and the pauses between them."
    )
    hooks_http_size_limit: Annotated[int, kinds.size(2, 16 * 1024**2), WIRE_HOOKS] = Field(
        5 * 1024, description="Maximum size of an endpoint's response."
    )
    hooks_http_secret: Annotated[SecretStr | None, kinds.secret(16), WIRE_HOOKS] = Field(
        None,
        description="Secret of at least 16 characters that signs every call (HMAC-SHA256, "
        "Hook-Signature). Set it in the environment or the file rather than on the command "
        "line.",
    )
    hooks_dir: Annotated[Path | None, kinds.OPTIONAL_DIRECTORY, WIRE_HOOKS] = Field(
        None,
        description="Directory with executables named after the events they are run for, such as "
        "pre-create.",
    )
    hooks_enabled_events: Annotated[
        tuple[str, ...],
        kinds.words(*WIRE_EVENTS),
        Shown(WIRE_HOOKS.group, default="tusd's"),
    ] = Field(
        ("pre-create", "post-create", "post-receive", "post-terminate", "post-finish"),
        description="Events sent to --hooks-http and --hooks-dir: by default pre-create, post-create, "
        "post-receive, post-terminate and post-finish. Also available: pre-finish, "
        "pre-terminate, pre-access and post-expire.",
    )

    auth: Annotated[Literal["none", "jwt"], kinds.choice("none", "jwt"), TOKENS] = Field(
        "none",
        description="Whether requests need a token: no (none), or a JSON Web Token (jwt).",
    )
    jwt_secret: Annotated[SecretStr | None, kinds.secret(32), TOKENS] = Field(
        None,
        description="Secret of at least 32 bytes that access tokens are signed with (HS256). Set it in "
        "the environment or in --jwt-secret-file rather than on the command line.",
    )
    jwt_secret_file: Annotated[Path | None, kinds.OPTIONAL_FILE, TOKENS] = Field(
        None,
        description='File with one or more such secrets, one per line: "KID SECRET".',
    )
    jwt_jwks: Annotated[str | None, kinds.OPTIONAL_JWKS, TOKENS] = Field(
        None,
        description="Key set (JWKS) with the public keys of access tokens: a URL or a file.",
    )
    jwt_algorithms: Annotated[
        tuple[str, ...],
        kinds.ALGORITHMS,
        Shown(TOKENS.group, default="automatic"),
    ] = Field(
        (),
        description="Accepted signature algorithms of access tokens: by default HS256 with a secret, and "
        "RS256, PS256, ES256 and EdDSA with a key set.",
    )
    jwt_issuer: Annotated[str | None, kinds.OPTIONAL_TEXT, TOKENS] = Field(
        None, description="Required issuer (iss) of access tokens."
    )
    jwt_audience: Annotated[tuple[str, ...], kinds.AUDIENCES, TOKENS] = Field(
        (),
        description="Accepted audiences (aud) of access tokens. Without any, tokens that have an audience"
        " are refused.",
    )
    jwt_leeway: Annotated[DurationOrZero, TOKENS] = Field(
        30.0, description="Tolerated clock difference to the issuer of access tokens."
    )
    jwt_required_claims: Annotated[tuple[str, ...], kinds.CLAIMS, TOKENS] = Field(
        (), description="Claims that access tokens must have, besides exp and the owner's."
    )
    jwt_owner_claims: Annotated[tuple[str, ...], kinds.SOME_CLAIMS, TOKENS] = Field(
        ("sub",),
        description="Claims that together identify the owner, such as tenant,sub.",
    )
    jwt_scope_claim: Annotated[str, kinds.CLAIM, TOKENS] = Field(
        "scope",
        description="Claim with the scopes: a list, or a text in which spaces separate them.",
    )
    jwt_max_upload_size_claim: Annotated[str, kinds.CLAIM, TOKENS] = Field(
        "max_upload_size",
        description="Claim with the maximum size of the owner's uploads, in bytes.",
    )
    jwt_max_open_uploads_claim: Annotated[str, kinds.CLAIM, TOKENS] = Field(
        "max_open_uploads",
        description="Claim with the maximum number of the owner's unfinished uploads.",
    )
    scope_create: Annotated[str, kinds.CLAIM, TOKENS] = Field(
        "uploads:create", description="Scope required to create uploads and resume your own."
    )
    scope_read: Annotated[str, kinds.CLAIM, TOKENS] = Field(
        "uploads:read", description="Scope required to download your own uploads."
    )
    scope_delete: Annotated[str, kinds.CLAIM, TOKENS] = Field(
        "uploads:delete", description="Scope required to remove and revoke your own uploads."
    )
    scope_admin: Annotated[str, kinds.CLAIM, TOKENS] = Field(
        "uploads:admin", description="Scope that permits everything on the uploads of all owners."
    )
    upload_token_secret_file: Annotated[Path | None, kinds.OPTIONAL_FILE, TOKENS] = Field(
        None,
        description="File with the secret that upload tokens are signed with, in the format of "
        "--jwt-secret-file. By default the key is derived from the secret of access tokens "
        "or, with a key set, stored in --state-dir. Servers that share uploads but not that "
        "directory need this file.",
    )
    upload_token_ttl: Annotated[Duration, TOKENS] = Field(
        3600.0, description="Lifetime of an upload token."
    )
    upload_token_grace: Annotated[DurationOrZero, TOKENS] = Field(
        86_400.0, description="How long an expired upload token can still be renewed."
    )
    upload_token_refreshes: Annotated[Count, TOKENS] = Field(
        60, description="Maximum number of renewals of one upload's token per minute."
    )
    revocation_ttl: Annotated[Duration, TOKENS] = Field(
        34_560_000.0,
        description="How long a revocation is remembered. Must exceed the lifetime of access tokens and "
        "the duration of an upload, and be the same on all servers.",
    )

    redis_url: Annotated[SecretStr | None, kinds.OPTIONAL_REDIS_URL, STATE] = Field(
        None,
        description="Redis (6.2 or newer) or Valkey for the state that servers share: "
        "redis://[USER:PASSWORD@]HOST:PORT/DB, rediss:// for TLS, unix:///PATH, or "
        "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB. Never printed or logged. By default"
        " the server starts one of its own beside the uploads.",
    )
    redis_timeout: Annotated[Duration, STATE_USE] = Field(
        1.0, description="Timeout of a Redis command. After it, Redis counts as unavailable."
    )
    redis_prefix: Annotated[str, kinds.REDIS_PREFIX, STATE_USE] = Field(
        "tusd:",
        description="Prefix of all key names in Redis. Servers that share uploads must use the same one; "
        "other users of the same Redis must not.",
    )

    lock_lease: Annotated[Duration, STATE_USE] = Field(
        10.0,
        description="How long an upload stays locked after the server that was receiving it died. Must be"
        " the same on all servers that share uploads. Not used by a server that has its "
        "uploads to itself.",
    )

    expose_metrics: Annotated[Flag, OPERATION] = Field(
        True, description="Serve Prometheus metrics."
    )
    metrics_path: Annotated[str, kinds.URL_PATH, OPERATION] = Field(
        "/metrics", description="URL path of the metrics, outside the base path."
    )
    log_format: Annotated[Literal["text", "json"], kinds.choice("text", "json"), OPERATION] = Field(
        "text",
        description="Format of the log on standard error: text for people, or JSON for machines.",
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        kinds.choice("debug", "info", "warning", "error"),
        OPERATION,
    ] = Field("info", description="Least severe level that is logged.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for sentence, *names in self._conflicts():
            raise PydanticCustomError(
                "conflict", sentence, {"sentence": sentence} | {name: name for name in names}
            )
        return self

    def _conflicts(self) -> Iterator[tuple[str, ...]]:
        """Yield a sentence about each conflict, with the names of the settings in it.

        {name} in a sentence is replaced with what the user wrote.
        """
        if self.unix_sock is not None and "port" in self.model_fields_set:
            yield "{unix_sock} and {port} exclude each other; leave one out", "unix_sock", "port"
        if self.cors_allow_credentials and not self.disable_cors and self._allows_any_origin():
            sentence = (
                "{cors_allow_credentials} with {cors_allow_origin} lets every web page act in the name of "
                "its visitors; name the origins, such as --cors-allow-origin 'https://app\\.example\\.org'"
            )
            yield sentence, "cors_allow_credentials", "cors_allow_origin"
        if self.tls_certificate is not None and self.tls_key is None:
            yield "{tls_certificate} needs {tls_key} too", "tls_certificate", "tls_key"
        if self.tls_key is not None and self.tls_certificate is None:
            yield "{tls_key} needs {tls_certificate} too", "tls_key", "tls_certificate"
        if self.hooks_http and self.hooks_http_timeout * len(self.hooks_http) > self.hooks_timeout:
            # Endpoints are called one after the other, so the total could not be reached.
            sentence = (
                "{hooks_http_timeout} for each of {hooks_http} does not fit into {hooks_timeout}"
            )
            yield sentence, "hooks_http_timeout", "hooks_http", "hooks_timeout"
        if self.state_dir == self.upload_dir:
            yield "{state_dir} and {upload_dir} must differ", "state_dir", "upload_dir"
        if self.duplicate_keys and self.duplicate_fingerprint_key:
            sentence = (
                "{duplicate_keys} and {duplicate_fingerprint_key} exclude each other; leave one out"
            )
            yield sentence, "duplicate_keys", "duplicate_fingerprint_key"
        if self.expose_metrics and not self._metrics_path_is_free():
            sentence = "{metrics_path} must be outside {base_path}, and not /, /healthz or /readyz"
            yield sentence, "metrics_path", "base_path"
        if self.base_path in ("/healthz/", "/readyz/"):
            yield "{base_path} must be neither /healthz/ nor /readyz/", "base_path"

    def _allows_any_origin(self) -> bool:
        """Return whether the expression matches arbitrary origins; it is tried, as there are many ways to write that."""
        pattern = re.compile(self.cors_allow_origin)
        return any(pattern.fullmatch(origin) is not None for origin in _STRANGERS)

    def _metrics_path_is_free(self) -> bool:
        path = self.metrics_path.removesuffix("/") + "/"
        if path in ("/", "/healthz/", "/readyz/"):
            return False
        # With base path "/", fixed pages take precedence over uploads.
        return self.base_path == "/" or not path.startswith(self.base_path)
