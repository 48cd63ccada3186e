"""Types of settings: pydantic's own, with the conversions and checks that pydantic does not have.

`Written` says how values of a type are written; `reference` and the command line read it. A check raises `ValueError` with what
would be valid; for pydantic's own constraints `reference` makes that sentence. `load` adds where the wrong value was given.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import time
import zoneinfo
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    DirectoryPath,
    Field,
    FilePath,
    GetCoreSchemaHandler,
    SecretStr,
    StringConstraints,
)
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from tusd_py.protocol.metadata import CONTROL_KEYS
from tusd_py.settings import redis_url, units

PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "unix",
)
"""Meaning of "private" in a list of proxies: this machine and private networks."""

WireEvent = Literal[
    "pre-create",
    "post-create",
    "post-receive",
    "pre-finish",
    "post-finish",
    "pre-terminate",
    "post-terminate",
    "pre-access",
    "post-expire",
]
WIRE_EVENTS: tuple[str, ...] = get_args(WireEvent)
"""Events sent to endpoints and executables. The first seven are tusd's."""

JwtAlgorithm = Literal[
    "HS256", "HS384", "HS512",
    "RS256", "RS384", "RS512",
    "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512",
    "EdDSA",
]  # fmt: skip
"""Algorithms that access tokens may be signed with. "none" is not one of them."""

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
BUCKET = r"^([a-z0-9][a-z0-9._-]{1,61}[a-z0-9]|)$"
_MAX_PREFIX_BYTES = 900
"""Leaves room for the rest of a key, which has at most 1024 bytes."""
A_BUCKET = "give the name of a bucket: 3 to 63 lower case letters, digits, dots and hyphens"
_URL_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]+/?)*")
_ORIGIN = re.compile(r"[A-Za-z0-9._\-]+(?::\d+)?|\[[0-9A-Fa-f:.]+\](?::\d+)?")
"""Host and port of a URL that may stand in a header field."""
_HTTP_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@,]*@")
_PERMS = re.compile(r"0?o?([0-7]{3})")
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_TOKEN = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"  # noqa: S105 - a token of HTTP, RFC 9110 section 5.6.2
_CLAIM = r"^[!#-+./0-9:;<=>?@A-Z\[\]^_`a-z{|}~-]{1,100}$"

# sun_path has 108 bytes on Linux and 104 on macOS and the BSDs, one of them for the closing NUL.
_MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103

_NO_FILE = "there is no such file"

_MAX_REGEX_SECONDS = 0.1
"""Processor time for a text of some twenty characters; harmless expressions take microseconds."""


@dataclass(frozen=True)
class Written:
    """How the values of a setting are written."""

    metavar: str
    """Placeholder of the value in help, such as SIZE."""
    expected: str = ""
    """What to give instead of a wrong value, if the bounds or the words of the type do not say it."""
    noun: str = "a whole number"
    """What the bounds of the type are bounds of; for a list, what its items are."""
    text: Callable[[Any], str] = str
    """Formats a value, or an item of a list, as text that is accepted for it."""
    shown: Callable[[str], str] | None = None
    """Hides what is secret in the text of a value, where it is shown."""
    bare: str | None = None
    """Value of the flag if it is given without one; None if it needs one."""
    quoted: bool = False
    """Whether the value must be quoted in a TOML file, because a number there would mean something else."""


# --- numbers --------------------------------------------------------------------------------------


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _parse_with(parse: Callable[[str], float]) -> BeforeValidator:
    return BeforeValidator(
        lambda value: parse(value) if isinstance(value, str) else _refuse_bool(value)
    )


def _parse_octal(value: object) -> object:
    if not isinstance(value, str):
        return _refuse_bool(value)
    found = _PERMS.fullmatch(value.strip())
    if found is None:
        raise PydanticKnownError("int_parsing")
    return int(found[1], 8)


def _needs(bits: int) -> AfterValidator:
    def check(value: int) -> int:
        if value & bits != bits:
            raise ValueError(f"the server itself needs {bits:04o} of it")
        return value

    return AfterValidator(check)


def _octal(example: str) -> Written:
    expected = f'give three octal digits in quotes, such as "{example}"'
    return Written("OCTAL", expected, text="{:04o}".format, quoted=True)


# --- text and lists of it -------------------------------------------------------------------------


class AnyCase:
    """Annotates a Literal whose words are accepted in any case."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        known = {word.lower(): word for word in get_args(source)}

        def convert(value: object) -> object:
            return known.get(value.strip().lower(), value) if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(convert, handler(source))


def sorted_like(words: Iterable[str]) -> AfterValidator:
    """Sort a list of words as they are listed here."""
    order = tuple(words)
    return AfterValidator(lambda value: tuple(sorted(value, key=order.index)))


def split(value: object) -> object:
    """Split text at commas, and drop empty and repeated items."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Iterable):
        return value
    items = (item.strip() if isinstance(item, str) else item for item in value)
    return list(dict.fromkeys(item for item in items if item != ""))


def check_host(host: str) -> str:
    """Accept an IP address, with or without brackets, or a host name."""
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        pass
    if re.fullmatch(r"(\[.*\]|[^:]*):[0-9]+", host):
        raise ValueError("give the address alone; the port is a setting of its own")
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or labels[-1].isdigit() or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError('give an IP address or a host name, such as "127.0.0.1" or "::"')
    return host


def check_url_path(path: str) -> str:
    """Accept the path of a URL without anything that needs escapes."""
    if not _URL_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError(
            'give a path such as "/files/": a "/" first, then names in letters, digits and ._~-'
        )
    return path


def check_http_url(text: str) -> str:
    """Accept a complete URL of http or https."""
    try:
        parts = urlsplit(text)
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or not _HTTP_URL.fullmatch(text):
        raise ValueError('give URLs such as "https://example.org/hooks", with commas between them')
    return text


def without_credentials(url: str) -> str:
    """Hide the user name and the password of a URL."""
    return _CREDENTIALS.sub("********@", url)


def check_time_zone(name: str) -> str:
    """Accept a name that this machine knows, or "local"."""
    if name.lower() == "local":
        return "local"
    try:
        return zoneinfo.ZoneInfo(name).key
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError(
            "no such time zone is known here; give local or a name such as Europe/Zurich or UTC"
        ) from None


def check_metadata_key(key: str) -> str:
    """Accept a key of Upload-Metadata, except the ones that control the upload."""
    if not all("!" <= character <= "~" and character != "," for character in key):
        raise ValueError("give a key of Upload-Metadata: letters, digits and signs, without spaces")
    if key in CONTROL_KEYS:
        raise ValueError(f"{key} says nothing about what is uploaded; leave it out")
    return key


def check_regex(pattern: str) -> str:
    """Accept a regular expression whose matching does not take exponential time."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"give a regular expression; this one is wrong: {error}") from error
    if _is_exponential(compiled):
        raise ValueError(
            "give a regular expression in which repetitions do not contain each other: this one "
            "takes twice as long with each character, and anybody could stop the server with it"
        )
    return pattern


def _is_exponential(pattern: re.Pattern[str]) -> bool:
    """Return whether matching takes exponential time, by trying it with texts of growing length."""
    for count in range(8, 27, 2):
        for unit in ("a", "a.", "a-", "0", ".", "-", "/"):
            for scheme in ("https://", "http://", ""):
                began = time.thread_time()
                pattern.fullmatch(f"{scheme}{unit * count}!")
                if time.thread_time() - began > _MAX_REGEX_SECONDS:
                    return True
    return False


def expand_proxies(value: object) -> object:
    """Replace "private" and yes with all private networks, and no with none; drop repeated items."""
    if isinstance(value, bool):
        value = "private" if value else ""
    items = split(value)
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return items
    words = [item.lower() for item in items]
    if len(words) == 1 and words[0] in ("false", "no", "off", "0"):
        return ()
    known = dict.fromkeys(("private", "true", "yes", "on", "1"), PRIVATE_NETWORKS)
    return list(dict.fromkeys(proxy for word in words for proxy in known.get(word, (word,))))


def check_admin(text: str) -> str:
    """Accept an address with a port, or the absolute path of a Unix socket."""
    if not text or text.startswith("/"):
        if len(os.fsencode(text)) > _MAX_SOCKET_PATH:
            raise ValueError("give a shorter path, as sockets allow no longer ones")
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError(
            'give an address and a port, such as "127.0.0.1:8081", or the absolute path of a socket'
        )
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError('put an IPv6 address into brackets, such as "[::1]:8081"')
    checked = check_host(host)
    return f"[{checked}]:{int(port)}" if ":" in checked else f"{checked}:{int(port)}"


def is_near(text: str) -> bool:
    """Return whether an address of the form that `check_admin` accepts can be reached from this machine only."""
    return text.startswith("/") or is_loopback(text.rpartition(":")[0])


def is_loopback(host: str) -> bool:
    """Return whether a name or an address, with or without brackets, is that of this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_proxy(text: str) -> str:
    """Accept an address, a network, "unix" or "*"."""
    try:
        if text in ("*", "unix"):
            return text
        return str(
            ipaddress.ip_network(text, strict=False) if "/" in text else ipaddress.ip_address(text)
        )
    except ValueError:
        raise ValueError(
            f'"{text}" is neither an address nor a network; '
            'give addresses or networks, "private", "unix" or "*", with commas between them'
        ) from None


def check_hook(text: str) -> str:
    """Accept the name of a module's attribute or the path of a file, which becomes absolute."""
    path, name = text, ""
    if not text.endswith(".py"):
        path, _, name = text.rpartition(":")
    if path.endswith(".py") and (not name or name.isidentifier()):
        return f"{_absolute(path)}{':' if name else ''}{name}"
    if not _MODULE.fullmatch(text):
        raise ValueError(
            f'"{text}" names no hook; give "module:name" or "path/file.py" or "path/file.py:name"'
        )
    return text


def check_jwks(text: str | None) -> str | None:
    """Accept a URL without credentials, or the path of a readable file, which becomes absolute."""
    if text is None:
        return None
    if not text.lower().startswith(("https://", "http://")):
        return str(_existing_file(text))
    if "@" in text:
        raise ValueError("give a URL without a name and a password")
    scheme, _, rest = check_http_url(text).partition("://")
    return f"{scheme.lower()}://{rest}"


def check_redis_url(url: SecretStr | None) -> SecretStr | None:
    """Accept a URL that `redis_url` can parse and whose files can be read."""
    if url is not None:
        address = redis_url.parse(url.get_secret_value())
        for file in (address.ca_file, address.certificate, address.key):
            if file is not None and not os.access(file, os.R_OK):
                raise ValueError(f"the file {file} cannot be read")
    return url


def check_endpoint(text: str) -> str:
    """Accept the URL of an object store, without a path and without credentials."""
    if not text:
        return text
    parts = urlsplit(check_http_url(text))
    if "@" in parts.netloc:
        raise ValueError("give a URL without a name and a password; the AWS SDK finds credentials")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("give a URL without a path; the bucket is a setting of its own")
    return text.rstrip("/")


def check_token_url(text: str) -> str:
    """Accept where a page gets access tokens: a path of the same origin, or a URL. Its origin goes into a header field."""
    if not text or (text.startswith("/") and not text.startswith("//")):
        return text
    if not _ORIGIN.fullmatch(urlsplit(check_http_url(text)).netloc):
        raise ValueError("give a URL with a plain host, without a name and a password")
    return text


def check_prefix(text: str) -> str:
    """Accept the beginning of keys, such as "uploads/"."""
    if text.startswith("/") or any(not each.isprintable() for each in text):
        raise ValueError('give the beginning of keys, such as "uploads/"')
    if len(text.encode("utf-8", "surrogatepass")) > _MAX_PREFIX_BYTES:
        raise ValueError(f"give at most {_MAX_PREFIX_BYTES} bytes: keys have at most 1024 in all")
    return text


def check_tag(text: str) -> str:
    """Accept a tag of S3, such as "team=imaging"."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip()) or len(key) > 128 or len(value) > 256:
        raise ValueError('give a key of at most 128 characters and a value, such as "team=imaging"')
    return text


def check_location(text: str) -> str:
    """Accept a bucket with the beginning of its keys, such as "archive/uploads/", or a bucket alone."""
    bucket, _, prefix = text.partition("/")
    if not bucket or re.fullmatch(BUCKET, bucket) is None:
        raise ValueError(f"{A_BUCKET}, or a bucket and a prefix, such as archive/uploads/")
    return bucket if not prefix else f"{bucket}/{check_prefix(prefix)}"


def strip(value: object) -> object:
    """Remove spaces around text."""
    return value.strip() if isinstance(value, str) else value


# --- paths ----------------------------------------------------------------------------------------


def _absolute(value: object) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError("give a path in quotes")
    text = os.fspath(value).strip()
    if not text or "\0" in text:
        raise ValueError("give a path")
    return Path(os.path.abspath(os.path.expanduser(text)))


def _readable(path: Path) -> Path:
    if not os.access(path, os.R_OK):
        raise ValueError("the file cannot be read; mind its permissions")
    return path


def _existing_file(text: str) -> Path:
    path = _absolute(text)
    if not path.is_file():
        raise ValueError(_NO_FILE)
    return _readable(path)


def _short(path: Path) -> Path:
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ValueError(f"give a path of at most {_MAX_SOCKET_PATH} bytes; it is {path}")
    return path


# --- types ----------------------------------------------------------------------------------------

Text = Annotated[str, StringConstraints(strip_whitespace=True)]
Flag = Annotated[bool, BeforeValidator(strip)]
Whole = Annotated[int, BeforeValidator(_refuse_bool), Written("NUMBER")]
Count = Annotated[Whole, Field(ge=1, le=1_000_000)]
UrlPath = Annotated[Text, AfterValidator(check_url_path), Written("PATH")]
MetadataKey = Annotated[Text, AfterValidator(check_metadata_key), Written("KEY")]
Name = Annotated[Text, Written("NAME")]
Endpoint = Annotated[Text, AfterValidator(check_endpoint), Written("URL")]
KeyPrefix = Annotated[Text, AfterValidator(check_prefix), Written("PREFIX")]
Claim = Annotated[
    Text,
    Field(pattern=_CLAIM),
    Written(
        "NAME",
        "give the name of a claim or scope: printable ASCII without spaces, quotes and commas",
    ),
]

_Value_co = TypeVar("_Value_co", covariant=True)
_Given_contra = TypeVar("_Given_contra", contravariant=True)
_Item = TypeVar("_Item")


class Converted(Generic[_Value_co, _Given_contra]):
    """`Converted[int, int | str]` for a field whose attribute is an int and for which `Settings(...)` takes text, too.

    The second type is for type checkers; pydantic meets the first one only.
    """

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type[object]) -> _Value_co: ...
        def __set__(self, instance: object, value: _Given_contra) -> None: ...
    else:

        def __class_getitem__(cls, types):
            return types[0]


Size = Annotated[
    Converted[int, int | str],
    _parse_with(units.parse_size),
    Field(ge=0, le=units.MAX_SIZE),
    Written("SIZE", noun="a size", text=units.format_size),
]
"""Bytes."""
_Seconds = Annotated[
    Converted[float, float | str],
    _parse_with(units.parse_duration),
    Field(le=units.MAX_DURATION),
    Written("DURATION", noun="a duration", text=units.format_duration),
]
Duration = Annotated[_Seconds, Field(gt=0)]
"""Seconds, more than 0."""
DurationOrZero = Annotated[_Seconds, Field(ge=0)]
"""Seconds; 0 has a special meaning."""
_Perms = Annotated[Converted[int, int | str], BeforeValidator(_parse_octal), Field(ge=0, le=0o777)]
FilePerms = Annotated[_Perms, _needs(0o600), _octal("0640")]
DirectoryPerms = Annotated[_Perms, _needs(0o700), _octal("0750")]

_Absolute = BeforeValidator(_absolute)
_OptionalPath = Path | str | None
Directory = Annotated[Converted[Path, Path | str], _Absolute, Written("DIR")]
OptionalDirectory = Annotated[
    Converted[Annotated[DirectoryPath, _Absolute] | None, _OptionalPath],
    Written("DIR", "there is no such directory"),
]
OptionalFile = Annotated[
    Converted[Annotated[FilePath, _Absolute, AfterValidator(_readable)] | None, _OptionalPath],
    Written("FILE", _NO_FILE),
]
OptionalSocket = Annotated[
    Converted[Annotated[Path, _Absolute, AfterValidator(_short)] | None, _OptionalPath],
    Written("PATH", "give a path"),
]

ListOf = Annotated[
    Converted[tuple[_Item, ...], Iterable[_Item | str] | str], BeforeValidator(split)
]
"""A list, or a text with commas between the items."""
Directories = Annotated[ListOf[Annotated[Path, _Absolute]], Written("DIR", noun="directories")]
Names = Annotated[ListOf[str], Written("NAMES", noun="names")]
Tokens = Annotated[ListOf[Annotated[str, Field(pattern=_TOKEN)]], Written("NAMES", noun="names")]
Claims = Annotated[ListOf[Claim], Written("NAMES", noun="names of claims")]
MetadataKeys = Annotated[ListOf[MetadataKey], Written("KEYS", noun="keys of Upload-Metadata")]
Tags = Annotated[
    ListOf[Annotated[str, AfterValidator(check_tag)]],
    Field(max_length=10),
    Written("KEY=VALUE", noun="tags, such as team=imaging"),
]
Locations = Annotated[
    ListOf[Annotated[str, AfterValidator(check_location)]],
    Written("BUCKET/PREFIX", noun="buckets or their prefixes"),
]
Hooks = Annotated[ListOf[Annotated[str, AfterValidator(check_hook)]], Written("HOOK", noun="hooks")]
HostNames = Annotated[
    ListOf[Annotated[str, AfterValidator(check_host)]], Written("NAMES", noun="host names")
]
HttpUrls = Annotated[
    ListOf[Annotated[str, AfterValidator(check_http_url)]],
    Written("URL", noun="URLs", shown=without_credentials),
]
WireEvents = Annotated[
    ListOf[Annotated[WireEvent, AnyCase()]], sorted_like(WIRE_EVENTS), Field(min_length=1)
]
JwtAlgorithms = Annotated[
    ListOf[Annotated[JwtAlgorithm, AnyCase()]], sorted_like(get_args(JwtAlgorithm))
]
Proxies = Annotated[
    Converted[tuple[Annotated[str, AfterValidator(check_proxy)], ...], Iterable[str] | str | bool],
    BeforeValidator(expand_proxies),
    Written("LIST", noun="addresses or networks", bare="private"),
]
OptionalSecret = Annotated[Converted[SecretStr | None, SecretStr | str | None], Written("SECRET")]
