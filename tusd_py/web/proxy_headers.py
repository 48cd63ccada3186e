"""What a request's address was before proxies took it in: `Forwarded` (RFC 7239) and `X-Forwarded-…`.

Anybody can send these fields, so they count only when the peer is a proxy that the operator named, and of a chain of hops only
those that such proxies wrote. Whatever is malformed is treated as absent: the address is then the one that this server itself
saw. Not for: deciding what a client may do.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

_Address = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network
_DEFAULT_PORTS = {"http": 80, "https": 443}

_NAMES = {
    b"host": "host",
    b"forwarded": "forwarded",
    b"x-forwarded-for": "for",
    b"x-forwarded-proto": "proto",
    b"x-forwarded-host": "xhost",
    b"x-forwarded-port": "port",
    b"x-forwarded-prefix": "prefix",
}
_FAMILY = ("for", "proto", "xhost", "port")
_HINTS = frozenset(_NAMES) - {b"host"}
_MAX_FIELD_BYTES = 4096
"""A longer field counts as absent; a chain of fifty proxies takes less."""
_MAX_HOST_LENGTH = 262

# Blanks are matched in one place for each side of a pair: two neighbours that both match them would try
# every way to share a run of blanks out between them.
_PAIR = re.compile(
    r"""[ \t]*(?:(?P<name>[!\#$%&'*+.^_`|~0-9A-Za-z-]+)=
            (?:(?P<token>[!\#$%&'*+.^_`|~0-9A-Za-z-]+)
              |"(?P<quoted>(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e])*)")
            [ \t]*)?
        (?P<end>[;,]|\Z)""",
    re.VERBOSE,
)
_NAME_AND_PORT = re.compile(
    r"(?P<name>[0-9A-Za-z_](?:[0-9A-Za-z._-]{0,252}[0-9A-Za-z_.])?)(?::(?P<port>[0-9]{1,5}))?"
)
_IPV6_AND_PORT = re.compile(r"\[(?P<name>[0-9A-Fa-f:.]{2,45})\](?::(?P<port>[0-9]{1,5}))?")
# Segments of unreserved characters and escapes: no empty ones, as `//evil.example` would be another host's address.
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[0-9A-Za-z._~!$&'()*+;=:@%-]+){1,16}")


class External(NamedTuple):
    """How the client addressed the server, and who it is.

    scheme: "http" or "https". host: with the port unless it is the scheme's own; never empty. prefix: path that proxies took
    off, "" or "/something". client: "ip:port", "ip" where a proxy did not tell the port, "" where nothing is known.
    """

    scheme: str
    host: str
    prefix: str
    client: str


@dataclass(frozen=True, slots=True)
class _Hop:
    """What one proxy said of the request that it took in; None where it said nothing (usable)."""

    client: str | None = None
    scheme: str | None = None
    host: str | None = None


_NOTHING = _Hop()


class Proxies:
    """The proxies whose word counts.

    trusted: IP addresses, networks in CIDR notation, "*" for every peer, "unix" for those of the Unix socket. Raises ValueError
    for anything else.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        names = [entry.strip() for entry in trusted]
        self._all = "*" in names
        self._unix = "unix" in names or self._all
        self._networks = tuple(_network(name) for name in names if name not in ("*", "unix"))
        self._any = self._unix or bool(self._networks)
        # An address is looked up for every request of its connections.
        self._is_trusted: Callable[[str], bool] = lru_cache(maxsize=4096)(self._find)
        self._warned: set[str] = set()

    def external(self, scope: Mapping[str, Any]) -> External:
        """The address of an ASGI request as its client sees it."""
        if not self.trusts_peer(scope):
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if "untrusted" not in self._warned:
                self._hint(scope)
            return _seen(scope, b", ".join(hosts).decode("latin-1").strip(" \t"))
        fields = _fields(scope["headers"])
        return self._told(fields, _seen(scope, fields.get("host")))

    def trusts_peer(self, scope: Mapping[str, Any]) -> bool:
        """Whether an ASGI request was sent by one of the proxies."""
        if not self._any:
            return False
        client = scope.get("client")
        if client:
            return self._is_trusted(client[0])
        # A TCP peer that has gone already has no address either: only the server's own tells a unix socket.
        server = scope.get("server")
        return self._unix and server is not None and server[1] is None

    def location(self, external: External, path: str) -> str:
        """The absolute URL of `path` (which begins with "/") for the client of the request."""
        return f"{external.scheme}://{external.host}{external.prefix}{path}"

    def _find(self, address: str) -> bool:
        if self._all:
            return True
        try:
            wanted = _parse_ip(address)
        except ValueError:
            return False
        return any(wanted in network for network in self._networks)

    def _told(self, fields: Mapping[str, str], seen: External) -> External:
        """The request's address by what trusted proxies wrote; what they leave out is as the server saw it.

        Each family may tell what the other leaves out. Where both tell the same thing differently, one of them came
        from the client: which one cannot be told, so neither counts.
        """
        rfc = self._by_rfc(fields["forwarded"]) if "forwarded" in fields else _NOTHING
        family, told_port = _NOTHING, None
        if any(key in fields for key in _FAMILY):
            family, told_port = self._by_family(fields)
        scheme = rfc.scheme or family.scheme or seen.scheme
        prefix = _prefix(_at(fields.get("prefix", ""), 1))
        if _contradict(rfc, family, scheme):
            self._warn_once(
                "contradiction",
                "Forwarded and X-Forwarded-* of a trusted proxy contradict each other, so neither "
                "is used; let the proxy remove the one that it does not write itself",
            )
            return seen._replace(prefix=prefix)
        named = rfc.host or family.host
        name, port = _split_host(named or seen.host)
        if named is None or port is None:
            # A port beside the host's name; it does not replace one that the proxy wrote behind the name.
            port = told_port or port
        client = rfc.client or family.client or seen.client
        return External(scheme, _with_port(name, port, scheme), prefix, client)

    def _by_rfc(self, value: str) -> _Hop:
        return _merged(self._walk(_parse_forwarded(value) or []))

    def _by_family(self, fields: Mapping[str, str]) -> tuple[_Hop, int | None]:
        """What X-Forwarded-* tell, and the port, which has a field of its own."""
        clients = self._walk([_Hop(client=_node(each)) for each in _split(fields.get("for", ""))])
        depth = max(len(clients), 1)
        told = _Hop(
            client=_merged(clients).client,
            scheme=_scheme(_at(fields.get("proto", ""), depth)),
            host=_host(_at(fields.get("xhost", ""), depth)),
        )
        return told, _port(_at(fields.get("port", ""), depth))

    def _walk(self, hops: Sequence[_Hop]) -> list[_Hop]:
        """The hops that trusted proxies wrote, from the nearest to the one that met the client.

        The last hop was written by the peer; the one before it by what the last names as its client, and so on.
        """
        believed: list[_Hop] = []
        for hop in reversed(hops):
            believed.append(hop)
            if hop.client is None or not self._is_trusted(_address_of(hop.client)):
                break
        return believed

    def _hint(self, scope: Mapping[str, Any]) -> None:
        """Tell the operator once of a peer that writes such fields and is not trusted: it may be the proxy."""
        names = [name for name, _ in scope["headers"]]
        if _HINTS.isdisjoint(names):
            return
        name = next(filter(_HINTS.__contains__, names))
        client = scope.get("client")
        peer = client[0] if client else "unix"
        self._warn_once(
            "untrusted",
            f"{name.decode().title()} of {peer} is ignored, as it is not a trusted proxy; "
            f"if it is your proxy, start with --behind-proxy {peer}",
        )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", message)


def _network(entry: str) -> _Network:
    try:
        return ip_network(entry, strict=False)
    except ValueError:
        raise ValueError(
            f"{entry!r} is not an IP address, a network such as 10.0.0.0/8, '*' or 'unix'"
        ) from None


def _parse_ip(text: str) -> _Address:
    address = ip_address(text.partition("%")[0])
    # A socket that listens on both families shows IPv4 peers this way.
    return getattr(address, "ipv4_mapped", None) or address


def _fields(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The fields that tell of the address, repeated ones joined; those that are too long are left out."""
    found: dict[str, list[bytes]] = {}
    for raw_name, raw_value in raw:
        name = _NAMES.get(raw_name)
        if name is not None:
            found.setdefault(name, []).append(raw_value.strip(b" \t"))
    joined = {name: b", ".join(values) for name, values in found.items()}
    return {
        name: value.decode("latin-1")
        for name, value in joined.items()
        if len(value) <= _MAX_FIELD_BYTES
    }


def _seen(scope: Mapping[str, Any], host_field: str | None) -> External:
    scheme = "https" if scope.get("scheme") == "https" else "http"
    if host_field is not None and len(host_field) > _MAX_HOST_LENGTH:
        host_field = None
    host = _normal_host(host_field, scheme) or _host_of_server(scope.get("server"), scheme)
    client = scope.get("client")
    return External(scheme, host, "", _endpoint(client[0], client[1]) if client else "")


@lru_cache(maxsize=256)
def _normal_host(host_field: str | None, scheme: str) -> str | None:
    """What a `Host` field says, without a port that goes without saying; None if it says nothing that is of use."""
    host = _host(host_field)
    return None if host is None else _with_port(*_split_host(host), scheme)


def _host_of_server(server: Sequence[Any] | None, scheme: str) -> str:
    if not server or server[1] is None:
        return "localhost"
    name = f"[{server[0]}]" if ":" in server[0] else str(server[0])
    return _with_port(name, int(server[1]), scheme)


def _endpoint(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _address_of(client: str) -> str:
    if client.startswith("["):
        return client[1:].partition("]")[0]
    return client.partition(":")[0] if client.count(":") == 1 else client


def _contradict(one: _Hop, other: _Hop, scheme: str) -> bool:
    """Whether both tell a scheme, a host or a client, and not the same. Ports of clients, which one may lack, do not count."""
    pairs = (
        (one.scheme, other.scheme),
        (_comparable(one.host, scheme), _comparable(other.host, scheme)),
        (one.client and _address_of(one.client), other.client and _address_of(other.client)),
    )
    return any(this and that and this != that for this, that in pairs)


def _comparable(host: str | None, scheme: str) -> str | None:
    return None if host is None else _with_port(*_split_host(host.lower()), scheme)


def _merged(hops: Iterable[_Hop]) -> _Hop:
    """What believed hops tell together, from the nearest to the farthest; the farther one counts, where it tells anything."""
    client = scheme = host = None
    for hop in hops:
        client = hop.client or client
        scheme = hop.scheme or scheme
        host = hop.host or host
    return _Hop(client, scheme, host)


def _split(value: str) -> list[str]:
    return [part for part in (part.strip(" \t") for part in value.split(",")) if part]


def _at(value: str, depth: int) -> str | None:
    """The entry of the `depth`-th hop from here; a shorter list was begun by a proxy, not appended to by each."""
    entries = _split(value)
    return entries[-min(depth, len(entries))] if entries else None


def _scheme(value: str | None) -> str | None:
    value = value.lower() if value else None
    return value if value in _DEFAULT_PORTS else None


def _port(value: str | None) -> int | None:
    if not value or not value.isascii() or not value.isdigit() or len(value) > 5:
        return None
    port = int(value)
    return port if 0 < port < 65536 else None


def _prefix(value: str | None) -> str:
    value = (value or "").removesuffix("/")
    return value if len(value) <= 1024 and _PREFIX.fullmatch(value) else ""


def _host(value: str | None) -> str | None:
    """A host name or address, with its port if it has one; None for what cannot stand in a URL there."""
    if not value or len(value) > _MAX_HOST_LENGTH:
        return None
    match = _NAME_AND_PORT.fullmatch(value) or _IPV6_AND_PORT.fullmatch(value)
    if match is None or (match["port"] is not None and _port(match["port"]) is None):
        return None
    if value.startswith("["):
        try:
            IPv6Address(match["name"])
        except ValueError:
            return None
    return value


def _split_host(host: str) -> tuple[str, int | None]:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        return host, None
    return name, int(port)


def _with_port(name: str, port: int | None, scheme: str) -> str:
    return name if port in (None, _DEFAULT_PORTS[scheme]) else f"{name}:{port}"


def _node(value: str) -> str | None:
    """A `for` as "ip" or "ip:port"; None for `unknown`, an obfuscated name (RFC 7239, section 6) and nonsense."""
    address, port = value, None
    if value.startswith("["):
        address, bracket, rest = value[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port = rest[1:] or None
    elif value.count(":") == 1:
        address, _, port = value.partition(":")
    try:
        return _endpoint(str(_parse_ip(address)), _port(port))
    except ValueError:
        return None


def _parse_forwarded(value: str) -> list[_Hop] | None:
    """The elements of a `Forwarded` field (RFC 7239, section 4), or None where any of it is malformed.

    All or nothing, because a client's unfinished quotation mark could otherwise swallow what a proxy appended.
    """
    hops: list[_Hop] = []
    pairs: dict[str, str] = {}
    at = 0
    while match := _PAIR.match(value, at):
        if match["name"]:
            name = match["name"].lower()
            if name in pairs:
                return None
            pairs[name] = match["token"] or re.sub(r"\\(.)", r"\1", match["quoted"] or "")
        if match["end"] != ";" and pairs:
            hops.append(_hop(pairs))
            pairs = {}
        if not match["end"]:
            return hops
        at = match.end()
    return None


def _hop(pairs: Mapping[str, str]) -> _Hop:
    return _Hop(
        client=_node(pairs.get("for", "")),
        scheme=_scheme(pairs.get("proto")),
        host=_host(pairs.get("host")),
    )
