"""Flags of tusd that do not exist here, and what there is in their place."""

from __future__ import annotations

from collections.abc import Mapping

IN_PLACE_OF: Mapping[str, str] = {
    "--s3-disable-ssl": "give an --s3-endpoint that begins with http://",
    "--s3-max-buffered-parts": "use --s3-spool-size",
    "--s3-min-part-size": "--s3-part-size alone decides",
    "--s3-transfer-acceleration": "it is not supported",
    "--s3-log-api-calls": "the metrics count requests",
    "--hooks-http-skip-verify": "name the endpoint's certificate in SSL_CERT_FILE",
    "--hooks-plugin": "hooks use HTTP, executables or Python",
    "--tls-mode": "TLS 1.2 and later are spoken, as the system's OpenSSL is configured",
    "--enable-h2c": "a proxy in front speaks HTTP/2",
    "--enable-experimental-protocol": "the IETF's protocol is spoken without it",
    "--filelock-holder-poll-interval": "locks are requested at once",
    "--filelock-acquirer-poll-interval": "locks are requested at once",
    "--request-completion-timeout": "what arrived is stored after its client has gone, however long that takes",
    "--show-greeting": "a GET of / is always answered",
    "--show-startup-logs": "use --log-level warning",
    "--verbose": "use --log-level debug",
    "--expose-pprof": "py-spy looks into a running server",
    "--pprof-path": "py-spy looks into a running server",
    "--pprof-block-profile-rate": "py-spy looks into a running server",
    "--pprof-mutex-profile-rate": "py-spy looks into a running server",
}
_FAMILIES: Mapping[str, str] = {
    "--gcs-": "uploads are kept in a directory or in S3",
    "--azure-": "uploads are kept in a directory or in S3",
    "--hooks-grpc": "hooks use HTTP, executables or Python",
}
"""By how the flags begin."""


def advice(flag: str) -> str | None:
    """What there is in place of a flag, with one dash or two; None for one that tusd does not have."""
    name = f"--{flag.lstrip('-')}"
    families = (text for beginning, text in _FAMILIES.items() if name.startswith(beginning))
    return IN_PLACE_OF.get(name) or next(families, None)
