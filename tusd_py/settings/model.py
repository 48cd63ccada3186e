"""The list of all settings: name, type, default, description, and constraints between them.

Command line, environment, file, help and documentation are derived from this model. `load` reads values; the server checks at
startup that the directories are usable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tusd_py.settings import types
from tusd_py.settings.name_template import check_template, split_template
from tusd_py.settings.reference import setting

_STRANGERS = (
    "https://a-stranger.invalid",
    "http://a-stranger.invalid",
    "https://a-stranger.invalid:8443",
    "https://pages.a-stranger.invalid",
)
"""Origins that no operator would allow by name."""


def _default_state_dir(given: Mapping[str, Path]) -> Path:
    return given["upload_dir"] / ".tusd-py"


class Settings(BaseModel, frozen=True, extra="forbid"):
    """All settings of a server; immutable. Sizes are in bytes, durations in seconds, paths absolute.

    `Settings(...)` accepts what users write too: `Settings(max_size="10GB", expire_after="14d")`.
    """

    # Errors must not show secrets.
    model_config = ConfigDict(validate_default=True, hide_input_in_errors=True)

    host: Annotated[types.Text, AfterValidator(types.check_host), types.Written("ADDRESS")] = (
        setting(
            "127.0.0.1",
            'Address to listen on. "0.0.0.0" or "::" is every address of this machine.',
            group="Network",
        )
    )
    port: Annotated[types.Whole, Field(ge=0, le=65_535)] = setting(
        8080, "Port to listen on. 0 picks a free one."
    )
    unix_sock: types.OptionalSocket = setting(
        None, "Listen on this Unix socket instead of an address and a port."
    )
    unix_sock_perms: types.FilePerms = setting(
        0o660, "Permissions of the Unix socket. Write permission is what a client needs to connect."
    )
    base_path: Annotated[
        types.UrlPath, AfterValidator(lambda path: path.removesuffix("/") + "/")
    ] = setting(
        "/files/",
        "URL path under which uploads are created. The trailing slash may be omitted.",
    )
    behind_proxy: types.Proxies = setting(
        (),
        'Proxies whose Forwarded and X-Forwarded-* headers are trusted: addresses, networks, "private" (this '
        'machine and private networks), "unix" (connections to --unix-sock) or "*" (any address: only safe if '
        'clients cannot connect directly). Without a value it means "private".',
    )
    relative_location: types.Flag = setting(
        False, "Send only the path of an upload in Location, not its full URL."
    )
    tls_certificate: types.OptionalFile = setting(
        None, "Serve HTTPS with this certificate (PEM, including its chain)."
    )
    tls_key: types.OptionalFile = setting(None, "Private key of the certificate (PEM).")
    workers: Annotated[types.Whole, Field(ge=1, le=256)] = setting(
        1, "Server processes that share the port. One is enough for most disks and networks."
    )

    upload_dir: types.Directory = setting(
        "./data",
        "Directory for uploads. Created if missing. Only one server may use a directory, unless servers share a Redis.",
        group="Storage",
    )
    wait_for_directory: types.DurationOrZero = setting(
        0.0,
        "How long to wait at startup for another server to release the upload directory, such as the one being "
        "replaced, and for the volume of a directory that was served before. 0 fails at once.",
    )
    new_upload_dir: Annotated[Literal["auto", "accept", "refuse"], types.AnyCase()] = setting(
        "auto",
        "Which upload directories to serve at startup: a new one only if no other one is remembered for its path, "
        "as the volume of that one may not be mounted (auto); whatever is there, which is then remembered, so "
        "that one start is enough (accept); only one that was served before (refuse).",
    )
    state_dir: types.Directory = setting(
        _default_state_dir,
        "Directory for everything the server stores besides the uploads themselves.",
        shown_default="<upload-dir>/.tusd-py",
    )
    dir_perms: types.DirectoryPerms = setting(
        0o750, "Permissions of directories that the server creates."
    )
    file_perms: types.FilePerms = setting(0o640, "Permissions of files that the server creates.")
    durability: Annotated[Literal["none", "finish", "chunk"], types.AnyCase()] = setting(
        "finish",
        "What survives a power failure: every finished upload (finish), every byte acknowledged to a client "
        "(chunk), or whatever the system had written (none).",
    )
    finished_dir: Annotated[
        types.Text, AfterValidator(check_template), types.Written("TEMPLATE")
    ] = setting(
        "",
        "Give each finished upload a name of its own: a directory with placeholders, such as /srv/studies/{owner}/{filename}. "
        "There are {filename}, {owner}, {date}, {id} and {metadata.KEY}. It must be on the upload directory's file system. "
        "A template that begins with a placeholder is below the directory finished in it; with --s3-bucket it is the key.",
    )
    finished_files: Annotated[Literal["keep", "remove"], types.AnyCase()] = setting(
        "keep",
        "What becomes of a file in --finished-dir once its upload is removed: it stays (keep), or goes too (remove).",
    )
    disk_reserve: types.Size = setting(
        0, "Disk space to keep free. Requests that would use it are refused with 507."
    )

    s3_bucket: Annotated[
        types.Text, Field(pattern=types.BUCKET), types.Written("NAME", types.A_BUCKET)
    ] = setting(
        "",
        "Keep uploads in this bucket instead of the upload directory, which then has only what this machine needs. "
        "Credentials come from where the AWS SDK looks for them: environment, files, roles. Servers that share a bucket "
        "must share a Redis.",
        group="S3",
    )
    s3_endpoint: types.Endpoint = setting("", "URL of the object store. Empty for AWS.")
    s3_region: types.Name = setting(
        "", "Region of the bucket. Empty for the one that the AWS SDK finds."
    )
    s3_path_style: Annotated[Literal["auto", "on", "off"], types.AnyCase()] = setting(
        "auto",
        "Name the bucket in the path of URLs (on) or in the host (off). auto: in the path if there is an endpoint.",
    )
    s3_object_prefix: types.KeyPrefix = setting("", "What the keys of uploads begin with.")
    s3_info_prefix: types.KeyPrefix = setting(
        "", "What the keys of records and of all other objects of the server begin with."
    )
    s3_part_size: Annotated[types.Size, Field(ge=5 * 1024**2, le=5 * 1024**3)] = setting(
        8 * 1024**2,
        "Smallest size of parts; larger where an upload would have too many. A part waits in memory until it is whole.",
    )
    s3_max_parts: Annotated[types.Whole, Field(ge=100, le=10_000)] = setting(
        10_000, "Most parts of an upload that the object store takes. Scaleway takes 1000."
    )
    s3_equal_parts: types.Flag = setting(
        False,
        "Never let parts grow, for object stores that take only equal ones, such as Cloudflare R2. Limits uploads of "
        "unknown length to --s3-part-size times --s3-max-parts.",
    )
    s3_max_object_size: Annotated[types.Size, Field(ge=5 * 1024**2)] = setting(
        5 * 1024**4,
        "Largest object that the object store takes. Longer uploads are refused, as are those that --s3-max-parts leaves no "
        "room for.",
    )
    s3_concurrent_part_uploads: Annotated[types.Whole, Field(ge=1, le=100)] = setting(
        4, "Parts of one upload that are sent at a time."
    )
    s3_spool_size: Annotated[types.Size, Field(ge=8 * 1024**2)] = setting(
        256 * 1024**2,
        "Memory in which bytes of all uploads wait for the object store. While it is full, the server reads no more.",
    )
    s3_spool_dir: types.OptionalDirectory = setting(
        None,
        "Directory in which requests with a checksum wait until it is verified. Default: that for temporary files.",
    )
    s3_flush_interval: types.Duration = setting(
        30.0, "How often the bytes of a slow request are stored before its end."
    )
    s3_sse: Annotated[Literal["none", "AES256", "aws:kms", "aws:kms:dsse"], types.AnyCase()] = (
        setting("none", "Encryption by the object store. none: what the bucket itself says.")
    )
    s3_kms_key: Annotated[types.Text, types.Written("KEY")] = setting(
        "", "Key for --s3-sse aws:kms. Empty for the bucket's."
    )
    s3_bucket_key: types.Flag = setting(False, "Use an S3 Bucket Key with --s3-sse aws:kms.")
    s3_acl: types.Name = setting("", "Canned ACL of uploads, such as bucket-owner-full-control.")
    s3_storage_class: types.Name = setting(
        "", "Storage class of uploads, such as STANDARD_IA. Records stay in the bucket's own."
    )
    s3_cache_control: Annotated[types.Text, types.Written("TEXT")] = setting(
        "",
        "Cache-Control of the objects of uploads, for those who read the bucket and for --s3-presigned-downloads.",
    )
    s3_tags: types.Tags = setting((), "Tags of the objects of uploads, such as team=imaging.")
    s3_object_metadata: types.MetadataKeys = setting(
        (),
        "Keys of Upload-Metadata that are stored with the object too. Empty: all, as far as they fit into 2 KiB.",
    )
    s3_allowed_locations: types.Locations = setting(
        (),
        "Where hooks may place uploads besides --s3-object-prefix of --s3-bucket: buckets, or beginnings of keys in them.",
    )
    s3_presigned_downloads: types.Flag = setting(
        False,
        "Redirect downloads to the object store (307), to a URL that is good for five minutes, instead of sending the bytes.",
    )
    s3_public_endpoint: types.Endpoint = setting(
        "",
        "URL of the object store as clients reach it, for --s3-presigned-downloads. Empty for --s3-endpoint.",
    )
    s3_disable_content_hashes: types.Flag = setting(
        False,
        "Do not sign the bytes that are sent to an endpoint without TLS: their SHA-256 takes most of the processor's time "
        "there. With TLS they are never signed, as it protects them.",
    )
    s3_timeout: types.Duration = setting(60.0, "How long each wait for the object store may take.")
    s3_retry_time: types.DurationOrZero = setting(
        60.0,
        "How long to repeat a request that the object store refuses for the moment, or does not respond to. It is repeated at "
        "least once. 0 never repeats.",
    )

    max_size: types.Size = setting(0, "Maximum size of an upload. 0 is unlimited.", group="Limits")
    quota_bytes: types.Size = setting(
        0, "Bytes that the uploads of one owner may take in total, finished or not. 0 is unlimited."
    )
    quota_uploads: Annotated[types.Whole, Field(ge=0, le=1_000_000)] = setting(
        0, "Maximum number of unfinished uploads of one owner. 0 is unlimited."
    )
    max_connections: types.Count = setting(
        10_000,
        "Maximum number of open connections. Further ones are answered with 503, HEAD requests with 423.",
    )
    max_header_size: Annotated[types.Size, Field(ge=1024, le=16 * 1024**2)] = setting(
        64 * 1024,
        "Maximum size of the request line and header fields of a request. Upload-Concat is not counted: "
        "--max-concat-parts bounds it.",
    )
    max_concat_parts: Annotated[types.Whole, Field(ge=1, le=100_000)] = setting(
        10_000,
        "Maximum number of parts of a final upload. Upload-Concat may be as long as that many URLs of 128 bytes "
        "plus the base path.",
    )
    max_concat_repeats: types.Size = setting(
        1024**3,
        "Maximum number of bytes that repeated parts may add to a final upload. 0 is unlimited.",
    )

    network_timeout: types.Duration = setting(
        60.0,
        "How long a request may go without receiving a byte of its body before it is ended. Received bytes are kept.",
        group="Time",
    )
    keep_alive_timeout: types.Duration = setting(
        60.0, "How long an idle connection is kept open for the next request."
    )
    shutdown_timeout: types.DurationOrZero = setting(
        10.0, "How long running requests may take to finish when the server shuts down."
    )
    acquire_lock_timeout: types.Duration = setting(
        20.0, "How long to wait for another request to release the lock of the same upload."
    )

    expire_after: types.DurationOrZero = setting(
        7 * 86_400.0,
        "How long an unfinished upload is kept after its last byte arrived. 0 is forever.",
        group="Expiry",
    )
    retain_finished: types.DurationOrZero = setting(
        0.0, "How long a finished upload is kept before it is removed as expired. 0 is forever."
    )
    tombstone_ttl: types.DurationOrZero = setting(
        30 * 86_400.0, "How long a removed upload is answered with 410 (Gone) instead of 404."
    )
    sweep_interval: types.Duration = setting(600.0, "How often to remove expired uploads.")
    tuspyserver_dirs: types.Directories = setting(
        (),
        "Directories of tuspyserver's router. Workers remove expired unfinished uploads there, too.",
    )
    time_zone: Annotated[
        types.Text, AfterValidator(types.check_time_zone), types.Written("ZONE")
    ] = setting(
        "local",
        "Time zone of the daily sweep over all uploads, which runs at 02:00: a name, or local for that of this "
        "machine.",
    )
    jobs: Annotated[Literal["auto", "on", "off"], types.AnyCase()] = setting(
        "auto",
        "Whether the server runs a worker and a scheduler of its own: on, off, or only if it also runs its own "
        "Redis (auto). Without any, it sweeps by itself.",
    )

    disable_download: types.Flag = setting(
        False, "Do not serve finished uploads to GET requests.", group="Protocol"
    )
    disable_termination: types.Flag = setting(
        False, "Do not let clients remove uploads with DELETE."
    )
    disable_concatenation: types.Flag = setting(
        False, "Do not offer to join uploads from parts (concatenation)."
    )
    remove_parts_when_joined: types.Flag = setting(
        False, "Remove parts as soon as every final upload that lists them is finished."
    )
    disable_direct_bodies: types.Flag = setting(
        False,
        "Pass large bodies through the HTTP parser like small ones, instead of reading them from the socket "
        "straight into the file.",
    )

    disable_cors: types.Flag = setting(
        False, "Send no CORS headers, for example because a proxy does.", group="CORS"
    )
    cors_allow_origin: Annotated[
        types.Text, AfterValidator(types.check_regex), types.Written("REGEX")
    ] = setting(".*", "Regular expression that an allowed origin must match as a whole.")
    cors_allow_credentials: types.Flag = setting(
        False, "Let pages send cookies and other credentials. Restrict --cors-allow-origin with it."
    )
    cors_allow_private_network: types.Flag = setting(
        False,
        "Let pages from public addresses reach this server at a private one (Access-Control-Allow-Private-Network).",
    )
    cors_allow_methods: types.Tokens = setting("", "Additional methods that pages may use.")
    cors_allow_headers: types.Tokens = setting(
        "", "Additional request headers that pages may send."
    )
    cors_expose_headers: types.Tokens = setting(
        "", "Additional response headers that pages may read."
    )
    cors_max_age: Annotated[
        types.Whole,
        Field(ge=0, le=9_999_999_999),
        types.Written("SECONDS", noun="a whole number of seconds"),
    ] = setting(86_400, "How long browsers may cache the answer to a preflight request.")

    duplicates: Annotated[Literal["on", "finished", "off"], types.AnyCase()] = setting(
        "on",
        "Which uploads cause a duplicate to be refused: all (on), only finished ones (finished), or none (off).",
        group="Duplicates",
    )
    duplicate_window: types.Duration = setting(
        30 * 86_400.0, "How long a finished upload is remembered for duplicate detection."
    )
    duplicates_pending_grace: types.Duration = setting(
        5.0,
        "How long after its last byte an unfinished upload counts as being sent. Until then a duplicate of it is refused with "
        "Retry-After; later its owner is told where to resume it, and an unauthenticated client may upload it anew.",
    )
    duplicate_keys: types.MetadataKeys = setting(
        (), "Metadata keys that identify the content. By default all keys do."
    )
    duplicate_fingerprint_key: types.MetadataKey = setting(
        "",
        "Metadata key whose value alone identifies the content, such as a digest that clients compute.",
    )
    duplicate_scope: Annotated[Literal["owner", "server"], types.AnyCase()] = setting(
        "owner", "Compare an upload with those of the same owner (owner) or of all owners (server)."
    )
    duplicates_when_unavailable: Annotated[Literal["allow", "refuse"], types.AnyCase()] = setting(
        "allow",
        "What to do with new uploads while Redis is unavailable: create them unchecked (allow), or refuse them "
        "with 503 (refuse).",
    )

    hooks: types.Hooks = setting(
        (),
        'Python hooks to call on upload events: "module:name", "path/file.py" or "path/file.py:name".',
        flag="--hook",
        group="Hooks",
    )
    hooks_timeout: types.Duration = setting(30.0, "Timeout of hooks that a request waits for.")
    progress_hooks_interval: types.Duration = setting(
        1.0, "How often post-receive is called while data arrives."
    )
    hooks_delivery: Annotated[Literal["auto", "workers", "server"], types.AnyCase()] = setting(
        "auto",
        "Who calls post-create, post-finish, post-terminate and post-expire: workers, with retries (workers), the "
        "server, once (server), or workers if the server runs one or has a --redis-url (auto).",
    )
    hooks_delivery_attempts: Annotated[types.Whole, Field(ge=1, le=100)] = setting(
        10, "Maximum number of attempts to deliver an event. Then it is marked as failed."
    )
    hooks_delivery_backoff: types.Duration = setting(
        10.0,
        "How long workers wait after the first failed attempt. The pause triples with each further one, up to an hour.",
    )

    hooks_http: types.HttpUrls = setting(
        (),
        "URLs to send events to, as POST requests in tusd's format.",
        group="Hooks over HTTP and as executables",
    )
    hooks_http_forward_headers: types.Tokens = setting(
        "", "Header fields of the client's request to forward to the endpoints, such as Cookie."
    )
    hooks_http_retry: Annotated[types.Whole, Field(ge=1, le=100)] = setting(
        3, "Maximum number of attempts of a call whose endpoint is unreachable or answers 5xx."
    )
    hooks_http_backoff: types.DurationOrZero = setting(
        1.0, "How long to wait between two attempts."
    )
    hooks_http_timeout: types.Duration = setting(
        15.0, "Timeout of a call, including all attempts and the pauses between them."
    )
    hooks_http_size_limit: Annotated[types.Size, Field(ge=2, le=16 * 1024**2)] = setting(
        5 * 1024, "Maximum size of an endpoint's response."
    )
    hooks_http_secret: Annotated[types.OptionalSecret, Field(min_length=16)] = setting(
        None,
        "Secret of at least 16 characters that signs every call (HMAC-SHA256, Hook-Signature). Set it in the "
        "environment or the file rather than on the command line.",
    )
    hooks_dir: types.OptionalDirectory = setting(
        None,
        "Directory with executables named after the events they are run for, such as pre-create.",
    )
    hooks_enabled_events: types.WireEvents = setting(
        ("pre-create", "post-create", "post-receive", "post-terminate", "post-finish"),
        "Events sent to --hooks-http and --hooks-dir: by default pre-create, post-create, post-receive, "
        "post-terminate and post-finish. Also available: pre-finish, pre-terminate, pre-access and post-expire.",
        shown_default="tusd's",
    )

    auth: Annotated[Literal["none", "jwt"], types.AnyCase()] = setting(
        "none",
        "Whether requests need a token: no (none), or a JSON Web Token (jwt).",
        group="Tokens",
    )
    jwt_secret: Annotated[types.OptionalSecret, Field(min_length=32)] = setting(
        None,
        "Secret of at least 32 bytes that access tokens are signed with (HS256). Set it in the environment or in "
        "--jwt-secret-file rather than on the command line.",
    )
    jwt_secret_file: types.OptionalFile = setting(
        None, 'File with one or more such secrets, one per line: "SECRET" or "KID SECRET".'
    )
    jwt_jwks: Annotated[
        types.Text | None, AfterValidator(types.check_jwks), types.Written("URL|FILE")
    ] = setting(None, "Key set (JWKS) with the public keys of access tokens: a URL or a file.")
    jwt_algorithms: types.JwtAlgorithms = setting(
        (),
        "Accepted signature algorithms of access tokens: by default HS256 with a secret, and RS256, PS256, ES256 "
        "and EdDSA with a key set.",
        shown_default="automatic",
    )
    jwt_issuer: Annotated[
        Annotated[types.Text, Field(pattern=r"^\P{C}+$")] | None,
        types.Written("TEXT", "give the text that the claim has"),
    ] = setting(None, "Required issuer (iss) of access tokens.")
    jwt_audience: Annotated[
        types.Names, types.Written("TEXT", "give one or more audiences, with commas between them")
    ] = setting(
        (),
        "Accepted audiences (aud) of access tokens. Without any, tokens that have an audience are refused.",
    )
    jwt_leeway: types.DurationOrZero = setting(
        30.0, "Tolerated clock difference to the issuer of access tokens."
    )
    jwt_required_claims: types.Claims = setting(
        (), "Claims that access tokens must have, besides exp and the owner's."
    )
    jwt_owner_claims: Annotated[types.Claims, Field(min_length=1)] = setting(
        ("sub",), "Claims that together identify the owner, such as tenant,sub."
    )
    jwt_scope_claim: types.Claim = setting(
        "scope", "Claim with the scopes: a list, or a text in which spaces separate them."
    )
    jwt_max_upload_size_claim: types.Claim = setting(
        "max_upload_size", "Claim with the maximum size of the owner's uploads, in bytes."
    )
    jwt_max_open_uploads_claim: types.Claim = setting(
        "max_open_uploads", "Claim with the maximum number of the owner's unfinished uploads."
    )
    jwt_quota_bytes_claim: types.Claim = setting(
        "quota_bytes",
        "Claim with the bytes that the owner's uploads may take in total, in place of --quota-bytes.",
    )
    jwt_quota_uploads_claim: types.Claim = setting(
        "quota_uploads",
        "Another claim with the maximum number of the owner's unfinished uploads, in place of --quota-uploads.",
    )
    scope_create: types.Claim = setting(
        "uploads:create", "Scope required to create uploads and resume your own."
    )
    scope_read: types.Claim = setting(
        "uploads:read", "Scope required to download your own uploads."
    )
    scope_delete: types.Claim = setting(
        "uploads:delete", "Scope required to remove and revoke your own uploads."
    )
    scope_admin: types.Claim = setting(
        "uploads:admin", "Scope that permits everything on the uploads of all owners."
    )
    upload_token_secret_file: types.OptionalFile = setting(
        None,
        "File with the secret that upload tokens are signed with, in the format of --jwt-secret-file. By default "
        "the key is derived from the secret of access tokens or, with a key set, stored in --state-dir. Servers "
        "that share uploads but not that directory need this file.",
    )
    upload_token_ttl: types.Duration = setting(3600.0, "Lifetime of an upload token.")
    upload_token_grace: types.DurationOrZero = setting(
        86_400.0, "How long an expired upload token can still be renewed."
    )
    upload_token_refreshes: types.Count = setting(
        60, "Maximum number of renewals of one upload's token per minute."
    )
    revocation_ttl: types.Duration = setting(
        34_560_000.0,
        "How long a revocation is remembered. Must exceed the lifetime of access tokens and the duration of an "
        "upload, and be the same on all servers.",
    )

    redis_url: Annotated[
        types.OptionalSecret, AfterValidator(types.check_redis_url), types.Written("URL")
    ] = setting(
        None,
        "Redis (6.2 or newer) or Valkey for the state that servers share: "
        "redis://[USER:PASSWORD@]HOST:PORT/DB, rediss:// for TLS, unix:///PATH, or "
        "redis+sentinel://HOST:PORT,…/SERVICE/DB. Never printed or logged. By default the server "
        "starts one of its own beside the uploads.",
        shown_default="embedded",
        group="Redis",
    )
    redis_timeout: types.Duration = setting(
        1.0, "Timeout of a Redis command. After it, Redis counts as unavailable."
    )
    redis_prefix: Annotated[
        types.Text,
        Field(pattern=r"^[!-z|~]{1,100}$"),
        types.Written(
            "TEXT", "give at most 100 printable ASCII characters without spaces and braces"
        ),
    ] = setting(
        "tusd:",
        "Prefix of all key names in Redis. Servers that share uploads must use the same one; other users of the "
        "same Redis must not.",
    )
    lock_lease: types.Duration = setting(
        10.0,
        "How long an upload stays locked after the server that was receiving it died. Must be the same on all "
        "servers that share uploads. Not used by a server that has its uploads to itself.",
    )

    pages: Annotated[Literal["auto", "on", "off"], types.AnyCase()] = setting(
        "auto",
        "Whether browsers get an upload page at /: on, off, or only if the server listens on a loopback address or a Unix "
        "socket (auto).",
        group="Pages",
    )
    pages_token_url: Annotated[
        types.Text,
        AfterValidator(types.check_token_url),
        types.Written("URL", "give a path or a URL"),
    ] = setting(
        "",
        "Where the upload page gets access tokens with --auth jwt: a path of its own origin or a URL, which it asks with the "
        "user's cookies. Without it the page has a field for a token.",
    )

    admin: Annotated[
        types.Text, AfterValidator(types.check_admin), types.Written("ADDRESS:PORT|PATH")
    ] = setting(
        "",
        "Serve the operators' page and its API on this address and port, such as 127.0.0.1:8081, or on a Unix socket at "
        "this path. Elsewhere than on a loopback address or a socket it needs --auth jwt or --admin-user-header. Empty "
        "serves none.",
        group="Operators",
    )
    admin_show_metadata: types.Flag = setting(
        False,
        "Show operators the names, metadata and contents of uploads. Must be the same on all servers that share uploads.",
    )
    admin_hosts: types.HostNames = setting(
        (),
        "Host names under which browsers reach the operators' page, besides the address that it is served on.",
    )
    admin_user_header: Annotated[
        types.Text, Field(pattern=r"^[A-Za-z0-9-]*$"), types.Written("NAME")
    ] = setting(
        "",
        "Header field in which an authenticating proxy, one of --behind-proxy, sends the name of an operator. The proxy "
        "must remove it from what clients send. Every user that it lets through is an operator.",
    )

    expose_metrics: types.Flag = setting(True, "Serve Prometheus metrics.", group="Operation")
    metrics_path: types.UrlPath = setting(
        "/metrics", "URL path of the metrics, outside the base path."
    )
    log_format: Annotated[Literal["text", "json"], types.AnyCase()] = setting(
        "text", "Format of the log on standard error: text for people, or JSON for machines."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], types.AnyCase()] = setting(
        "info", "Least severe level that is logged."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for sentence in self._conflicts():
            names = {name: name for _, name, _, _ in Formatter().parse(sentence) if name}
            raise PydanticCustomError("conflict", sentence, {"sentence": sentence} | names)
        return self

    def _conflicts(self) -> Iterator[str]:
        """Yield a sentence about each conflict; {name} in it is replaced with what the user wrote to give this setting."""
        if self.unix_sock is not None and "port" in self.model_fields_set:
            yield "{unix_sock} and {port} exclude each other; leave one out"
        if self.cors_allow_credentials and not self.disable_cors and self._allows_any_origin():
            yield (
                "{cors_allow_credentials} with {cors_allow_origin} lets every web page act in the name of "
                "its visitors; name the origins, such as --cors-allow-origin 'https://app\\.example\\.org'"
            )
        if self.tls_certificate is not None and self.tls_key is None:
            yield "{tls_certificate} needs {tls_key} too"
        if self.tls_key is not None and self.tls_certificate is None:
            yield "{tls_key} needs {tls_certificate} too"
        if self.hooks_http and self.hooks_http_timeout * len(self.hooks_http) > self.hooks_timeout:
            # Endpoints are called one after the other, so the total could not be reached.
            yield "{hooks_http_timeout} for each of {hooks_http} does not fit into {hooks_timeout}"
        yield from self._conflicts_of_s3()
        yield from self._conflicts_of_finished_files()
        yield from self._admin_conflicts()
        if self.state_dir == self.upload_dir:
            yield "{state_dir} and {upload_dir} must differ"
        if self.duplicate_keys and self.duplicate_fingerprint_key:
            yield (
                "{duplicate_keys} and {duplicate_fingerprint_key} exclude each other; leave one out"
            )
        if self.expose_metrics and not self._metrics_path_is_free():
            yield "{metrics_path} must be outside {base_path}, and not /, /healthz or /readyz"
        if self.base_path in ("/healthz/", "/readyz/", "/_pages/"):
            yield "{base_path} must be neither /healthz/ nor /readyz/ nor /_pages/"

    def _admin_conflicts(self) -> Iterator[str]:
        if self.admin_user_header and not self.behind_proxy:
            yield "{admin_user_header} needs --behind-proxy with the address of the proxy that sends it"
        if self.admin_user_header and "*" in self.behind_proxy:
            yield "{admin_user_header} with {behind_proxy} lets everybody be an operator; name the proxy"
        is_near = types.is_near(self.admin)
        if self.admin and not is_near and self.auth == "none" and not self.admin_user_header:
            yield (
                "{admin} can be reached from other machines, so operators must be told from others: add --auth jwt, or "
                "--admin-user-header with an authenticating proxy"
            )

    def _conflicts_of_s3(self) -> Iterator[str]:
        if self.s3_endpoint and not self.s3_bucket:
            yield "{s3_endpoint} needs --s3-bucket too"
        if self.s3_public_endpoint and not self.s3_presigned_downloads:
            yield "{s3_public_endpoint} has no effect without --s3-presigned-downloads"
        if self.s3_kms_key and not self.s3_sse.startswith("aws:kms"):
            yield "{s3_kms_key} needs --s3-sse aws:kms"

    @property
    def finished_base(self) -> Path:
        """The directory of `finished_dir`, up to its first placeholder."""
        directory = split_template(self.finished_dir)[0]
        return (
            Path(os.path.abspath(Path(directory).expanduser()))
            if directory
            else self.upload_dir / "finished"
        )

    def _conflicts_of_finished_files(self) -> Iterator[str]:
        if not self.finished_dir:
            return
        if self.s3_bucket:
            if self.finished_dir.startswith(("/", "~", ".")):
                yield "{finished_dir} with a bucket is a key below --s3-object-prefix; leave out / and . at its beginning"
            return
        base = self.finished_base
        if self.upload_dir.is_relative_to(base):
            yield "{finished_dir} must not mix with uploads in {upload_dir}; use another directory, also one in it"
        if base.is_relative_to(self.state_dir) or self.state_dir.is_relative_to(base):
            yield "{finished_dir} must not mix with what is in {state_dir}"

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
