"""The kinds of values that settings have: how each is parsed, checked and shown.

A kind annotates a field of the model, and pydantic calls its `parse`. Every `ValueError` raised here says what would be valid;
`load` adds the source of the wrong value.
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
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

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

_YES = ("true", "yes", "on", "1")
_NO = ("false", "no", "off", "0")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_URL_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]+/?)*")
_HTTP_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^/@,]*@")
_PERMS = re.compile(r"0?o?([0-7]{3})")
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)

# sun_path has 108 bytes on Linux and 104 on macOS and the BSDs, one of them for the closing NUL.
_MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103


@dataclass(frozen=True)
class Kind:
    """How the values of a setting are written."""

    metavar: str
    """Placeholder of the value in help, such as SIZE."""
    parse: Callable[[object], object]
    """Converts text (or a TOML or Python value) to the value; raises ValueError."""
    show: Callable[[object], str] = str
    """Converts the value to text that `parse` accepts."""
    bare: str | None = None
    """Value of the flag if it is given without one; None if it needs one."""
    many: bool = False
    """Whether the flag may be repeated, each time adding to the list."""
    quoted: bool = False
    """Whether the value must be quoted in a TOML file, because a number there would mean something else."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))


def _text(value: object, expected: str) -> str:
    if not isinstance(value, str):
        raise ValueError(expected)
    return value.strip()


def whole(minimum: int, maximum: int) -> Kind:
    """A whole number within bounds."""
    expected = f"give a whole number from {minimum} to {maximum}"

    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value.strip()):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise ValueError(expected)
        return value

    return Kind("NUMBER", parse)


def size(minimum: int = 0, maximum: int = units.MAX_SIZE) -> Kind:
    """A number of bytes within bounds."""

    def parse(value: object) -> int:
        if isinstance(value, str):
            value = units.parse_size(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(units.SIZE_HELP)
        if not minimum <= value <= maximum:
            least, most = units.format_size(minimum), units.format_size(maximum)
            raise ValueError(f"give a size from {least} to {most}")
        return value

    def show(value: object) -> str:
        return units.format_size(value) if isinstance(value, int) else str(value)

    return Kind("SIZE", parse, show)


def duration(*, zero: bool) -> Kind:
    """A time span in seconds; `zero` says whether 0 is allowed."""

    def parse(value: object) -> float:
        if isinstance(value, str):
            value = units.parse_duration(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(units.DURATION_HELP)
        if not 0 <= value <= units.MAX_DURATION:
            raise ValueError(
                f"give a duration from 0 to {units.format_duration(units.MAX_DURATION)}"
            )
        if value == 0 and not zero:
            raise ValueError("give a duration greater than 0")
        return float(value)

    def show(value: object) -> str:
        return units.format_duration(value) if isinstance(value, int | float) else str(value)

    return Kind("DURATION", parse, show)


def perms(needed: int) -> Kind:
    """A file mode in octal; `needed` are the bits that the server itself requires."""
    # The example lets the group read (and search) what the owner can.
    expected = f'give three octal digits in quotes, such as "{needed | (needed & 0o500) >> 3:04o}"'

    def parse(value: object) -> int:
        if isinstance(value, str):
            found = _PERMS.fullmatch(value.strip())
            if found is None:
                raise ValueError(expected)
            value = int(found[1], 8)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o777:
            raise ValueError(expected)
        if value & needed != needed:
            raise ValueError(f"the server itself needs {needed:04o} of it")
        return value

    def show(value: object) -> str:
        return f"{value:04o}" if isinstance(value, int) else str(value)

    return Kind("OCTAL", parse, show, quoted=True)


def choice(*words: str) -> Kind:
    """One of a few words, in any case."""
    expected = f"give {', '.join(words[:-1])} or {words[-1]}"

    def parse(value: object) -> str:
        word = _text(value, expected).lower()
        if word not in words:
            raise ValueError(expected)
        return word

    return Kind("|".join(words), parse)


def _parse_time_zone(value: object) -> str:
    expected = "give local or a name such as Europe/Zurich or UTC"
    name = _text(value, expected)
    if name.lower() == "local":
        return "local"
    try:
        return zoneinfo.ZoneInfo(name).key
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise ValueError(f"no such time zone is known here; {expected}") from None


TIME_ZONE = Kind("ZONE", _parse_time_zone)


def _parse_flag(value: object) -> bool:
    if isinstance(value, str):
        value = {**dict.fromkeys(_YES, True), **dict.fromkeys(_NO, False)}.get(
            value.strip().lower()
        )
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


FLAG = Kind("true|false", _parse_flag, lambda value: "true" if value else "false", bare="true")


def _parse_host(value: object) -> str:
    host = _text(value, "give an address or a host name")
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


HOST = Kind("ADDRESS", _parse_host)


def _parse_url_path(value: object) -> str:
    expected = 'give a path such as "/files/": a "/" first, then names in letters, digits and ._~-'
    path = _text(value, expected)
    if not _URL_PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise ValueError(expected)
    return path


def _parse_base_path(value: object) -> str:
    return _parse_url_path(value).removesuffix("/") + "/"


URL_PATH = Kind("PATH", _parse_url_path)
BASE_PATH = Kind("PATH", _parse_base_path)


def _parse_path(value: object) -> Path:
    text = os.fspath(value) if isinstance(value, Path) else _text(value, "give a path in quotes")
    if not text or "\0" in text:
        raise ValueError("give a path")
    return Path(os.path.abspath(os.path.expanduser(text)))


def _parse_file(value: object) -> Path:
    path = _parse_path(value)
    if not path.is_file():
        raise ValueError("there is no such file")
    if not os.access(path, os.R_OK):
        raise ValueError("the file cannot be read; mind its permissions")
    return path


def _parse_socket(value: object) -> Path:
    path = _parse_path(value)
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise ValueError(f"give a path of at most {_MAX_SOCKET_PATH} bytes; it is {path}")
    return path


def _optional(parse: Callable[[object], object]) -> Callable[[object], object]:
    """Wrap a parser so that None (the default) stays None."""
    return lambda value: None if value is None else parse(value)


def _parse_existing_directory(value: object) -> Path:
    path = _parse_path(value)
    if not path.is_dir():
        raise ValueError("there is no such directory")
    return path


DIRECTORY = Kind("DIR", _parse_path)
OPTIONAL_DIRECTORY = Kind("DIR", _optional(_parse_existing_directory))
OPTIONAL_FILE = Kind("FILE", _optional(_parse_file))
OPTIONAL_SOCKET = Kind("PATH", _optional(_parse_socket))


_MOST_REGEX_SECONDS = 0.1
"""Processor time for a text of some twenty characters; harmless expressions take microseconds."""


def _parse_regex(value: object) -> str:
    pattern = _text(value, "give a regular expression")
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
                if time.thread_time() - began > _MOST_REGEX_SECONDS:
                    return True
    return False


REGEX = Kind("REGEX", _parse_regex)


def _items(value: object, expected: str) -> list[str]:
    """Split a list, or text with commas, into items without the empty ones."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Iterable):
        raise ValueError(expected)
    return [item for each in value if (item := _text(each, expected))]


def tokens(metavar: str, expected: str) -> Kind:
    """Comma-separated tokens (RFC 9110, section 5.6.2), stored as one text."""

    def parse(value: object) -> str:
        names = _items(value, expected)
        if not all(map(_TOKEN.fullmatch, names)):
            raise ValueError(expected)
        return ", ".join(names)

    return Kind(metavar, parse, many=True)


def _parse_metadata_keys(value: object) -> tuple[str, ...]:
    keys = _items(value, "give keys of Upload-Metadata, with commas between them")
    return tuple(dict.fromkeys(map(_parse_metadata_key, keys)))


def _parse_metadata_key(value: object) -> str:
    expected = "give a key of Upload-Metadata: letters, digits and signs, without spaces"
    key = _text(value, expected)
    if not all("!" <= character <= "~" and character != "," for character in key):
        raise ValueError(expected)
    if key in CONTROL_KEYS:
        raise ValueError(f"{key} says nothing about what is uploaded; leave it out")
    return key


def _parse_delta_seconds(value: object) -> str:
    expected = "give a whole number of seconds"
    text = str(value) if type(value) is int else _text(value, expected)
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise ValueError(expected)
    return text


DELTA_SECONDS = Kind("SECONDS", _parse_delta_seconds)
"""Seconds, copied unchanged into a response header."""


def _show_list(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Iterable) else str(value)


METADATA_KEYS = Kind("KEYS", _parse_metadata_keys, _show_list, many=True)
METADATA_KEY = Kind("KEY", _parse_metadata_key)


def _parse_proxies(value: object) -> tuple[str, ...]:
    expected = 'give addresses or networks, "private", "unix" or "*", with commas between them'
    if isinstance(value, bool):
        value = "private" if value else ""
    items = [item.lower() for item in _items(value, expected)]
    if len(items) == 1 and items[0] in _NO:
        return ()
    proxies: list[str] = []
    for item in items:
        if item == "private" or item in _YES:
            proxies.extend(PRIVATE_NETWORKS)
        elif item in ("*", "unix"):
            proxies.append(item)
        else:
            proxies.append(_network(item, expected))
    return tuple(dict.fromkeys(proxies))


def _network(text: str, expected: str) -> str:
    try:
        return str(
            ipaddress.ip_network(text, strict=False) if "/" in text else ipaddress.ip_address(text)
        )
    except ValueError:
        raise ValueError(f'"{text}" is neither an address nor a network; {expected}') from None


PROXIES = Kind("LIST", _parse_proxies, _show_list, bare="private", many=True)


def _parse_hooks(value: object) -> tuple[str, ...]:
    expected = 'give "module:name" or "path/file.py" or "path/file.py:name"'
    return tuple(_hook(item, expected) for item in _items(value, expected))


def _hook(text: str, expected: str) -> str:
    path, name = text, ""
    if not text.endswith(".py"):
        path, _, name = text.rpartition(":")
    if path.endswith(".py") and (not name or name.isidentifier()):
        return f"{_parse_path(path)}{':' if name else ''}{name}"
    if not _MODULE.fullmatch(text):
        raise ValueError(f'"{text}" names no hook; {expected}')
    return text


HOOKS = Kind("HOOK", _parse_hooks, _show_list, many=True)


def words(*known: str) -> Kind:
    """One or more of a few words; stored in canonical order, each once."""
    expected = f"give one or more of {', '.join(known)}"

    def parse(value: object) -> tuple[str, ...]:
        given = {item.lower() for item in _items(value, expected)}
        if not given or not given.issubset(known):
            raise ValueError(expected)
        return tuple(word for word in known if word in given)

    return Kind("NAMES", parse, _show_list, many=True)


def secret(minimum: int) -> Kind:
    """A secret text of at least `minimum` characters. It is never shown."""
    expected = f"give at least {minimum} characters"

    def parse(value: object) -> object:
        # Spaces are significant, as the other side has the same text.
        if value is None or (isinstance(value, str) and len(value) >= minimum):
            return value
        raise ValueError(expected)

    return Kind("SECRET", parse)


JWT_ALGORITHMS = (
    *(f"{family}{bits}" for family in ("HS", "RS", "PS", "ES") for bits in (256, 384, 512)),
    "EdDSA",
)
"""Algorithms that access tokens may be signed with. "none" is not one of them."""


def _parse_jwt_algorithms(value: object) -> tuple[str, ...]:
    expected = f"give one or more of {', '.join(JWT_ALGORITHMS)}"
    given = {item.lower() for item in _items(value, expected)}
    known = {name.lower(): name for name in JWT_ALGORITHMS}
    if not given.issubset(known):
        raise ValueError(expected)
    return tuple(name for low, name in known.items() if low in given)


ALGORITHMS = Kind("NAMES", _parse_jwt_algorithms, _show_list, many=True)


def _parse_directories(value: object) -> tuple[Path, ...]:
    return tuple(_parse_path(item) for item in _items(value, "give directories, with commas"))


def _show_paths(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


DIRECTORIES = Kind("DIR", _parse_directories, _show_paths, many=True)


def _parse_claim(value: object) -> str:
    expected = (
        "give the name of a claim or scope: printable ASCII without spaces, quotes and commas"
    )
    name = _text(value, expected)
    if not re.fullmatch(r"[!#-+./0-9:;<=>?@A-Z\[\]^_`a-z{|}~-]{1,100}", name):
        raise ValueError(expected)
    return name


def _parse_claims(value: object) -> tuple[str, ...]:
    expected = "give names of claims, with commas between them"
    return tuple(dict.fromkeys(map(_parse_claim, _items(value, expected))))


CLAIM = Kind("NAME", _parse_claim)
CLAIMS = Kind("NAMES", _parse_claims, _show_list, many=True)


def _parse_some_claims(value: object) -> tuple[str, ...]:
    names = _parse_claims(value)
    if not names:
        raise ValueError("give at least one name of a claim")
    return names


SOME_CLAIMS = Kind("NAMES", _parse_some_claims, _show_list, many=True)


def _parse_issuer(value: object) -> str:
    expected = "give the text that the claim has, without spaces around it"
    issuer = _text(value, expected)
    if not issuer or not issuer.isprintable():
        raise ValueError(expected)
    return issuer


def _parse_audiences(value: object) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(_items(value, "give one or more audiences, with commas between them"))
    )


OPTIONAL_TEXT = Kind("TEXT", _optional(_parse_issuer))
AUDIENCES = Kind("TEXT", _parse_audiences, _show_list, many=True)


def _parse_jwks(value: object) -> str:
    text = _text(value, "give a URL or a file's path")
    if text.lower().startswith(("https://", "http://")):
        if "@" in text:
            raise ValueError("give a URL without a name and a password")
        scheme, _, rest = _http_url(text, "give a URL").partition("://")
        return f"{scheme.lower()}://{rest}"
    return str(_parse_file(text))


OPTIONAL_JWKS = Kind("URL|FILE", _optional(_parse_jwks))


def _parse_redis_url(value: object) -> object:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    address = redis_url.parse(_text(text, redis_url.EXPECTED))
    for file in (address.ca_file, address.certificate, address.key):
        if file is not None and not os.access(file, os.R_OK):
            raise ValueError(f"the file {file} cannot be read")
    return text.strip() if isinstance(text, str) else text


def _parse_redis_prefix(value: object) -> str:
    expected = "give at most 100 printable ASCII characters without spaces and braces"
    prefix = _text(value, expected)
    # A brace would change the hash tags of all keys.
    if not re.fullmatch(r"[!-z|~]{1,100}", prefix):
        raise ValueError(expected)
    return prefix


OPTIONAL_REDIS_URL = Kind("URL", _optional(_parse_redis_url))
REDIS_PREFIX = Kind("TEXT", _parse_redis_prefix)


def _parse_http_urls(value: object) -> tuple[str, ...]:
    expected = 'give URLs such as "https://example.org/hooks", with commas between them'
    return tuple(_http_url(item, expected) for item in _items(value, expected))


def _http_url(text: str, expected: str) -> str:
    try:
        parts = urlsplit(text)
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or not _HTTP_URL.fullmatch(text):
        raise ValueError(expected)
    return text


def _show_urls(value: object) -> str:
    """Format URLs without user names and passwords."""
    return _CREDENTIALS.sub("********@", _show_list(value))


HTTP_URLS = Kind("URL", _parse_http_urls, _show_urls, many=True)
