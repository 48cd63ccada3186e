"""Reading a client's bytes takes linear time, whatever the bytes are.

Expressions and header fields are found in the source. A new expression fails the first test until it says how hostile input
reaches its repetitions, or that no client's bytes reach it; a new header field is tried without a word. What is measured is
processor time, so that a machine that stands still proves nothing.
"""

from __future__ import annotations

import ast
import base64
import importlib
import inspect
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from email.message import Message
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from tests.auth.people import SECRET, access, bearer
from tests.conftest import MakeServer
from tests.hostile.expressions import Expression, header_fields, in_source, modules
from tests.support.server import ServerProcess
from tests.support.tus import Tus, merged, metadata
from tests.support.wire import Connection, ConnectionEnded, head_bytes
from tusd_py.auth.upload_tokens import BadToken
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import Headers
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.finished_names import FinishedNames
from tusd_py.storage.s3.presentation import properties_of
from tusd_py.web.download import plan_download, presentation

OPERATORS = {
    "tusd_py.cli.": "the command line",
    "tusd_py.settings.": "settings",
    "tusd_py.redis.": "answers of Redis",
    "tusd_py.storage.file.fsync.": "the kernel's version",
    "tusd_py.storage.file.records.": "records, which we have written ourselves",
    "tusd_py.telemetry.prometheus.": "our own metrics",
    "tusd_py.web.cors._TOKEN": "settings",
    "tusd_py.web.cors:None": "the operator's expression, tried at the start, on at most 512 bytes",
    "tusd_py.jobs.": "what lies in the Redis, and names of this machine",
    "tusd_py.storage.file.outbox._is_": "names of directories of our own",
    "tusd_py.storage.s3.failures._SECRETS": "messages of the object store and of its library",
    "tusd_py.storage.s3.outbox.": "names of objects of our own",
    "tusd_py.storage.file.volume._is_id": "a file of our own",
}
"""Expressions that no client's bytes reach, by the beginning of their names, and what does."""

REACHED_BY: Mapping[str, tuple[str, ...]] = {
    "tusd_py.auth.access_tokens.BEARER": ("bearer", "bearer "),
    "tusd_py.events.model.FIELD_NAME": ("",),
    "tusd_py.events.model.FIELD_VALUE": ("",),
    "tusd_py.events.outbox_record._SECRET": ("",),
    "tusd_py.logs._is_plain": ("",),
    "tusd_py.protocol.concat._AUTHORITY": ("", "http:", "http://", "//"),
    "tusd_py.protocol.metadata._is_key": ("",),
    "tusd_py.storage.base._ID_SEGMENT": ("", "a"),
    "tusd_py.storage.base._is_ordinary_id": ("",),
    "tusd_py.storage.file.outbox._NAME": ("", "a.000001-"),
    "tusd_py.storage.file.removal._NAME": ("", "a.1-0-", "a.1"),
    "tusd_py.storage.s3.object_store._OTHER_BUCKET": ("", "s3://", "s3://a", "s3://abc/"),
    "tusd_py.storage.s3.presentation._is_key": ("",),
    "tusd_py.storage.s3.presentation._is_type": ("", "a/"),
    "tusd_py.web.admin.access._is_cookie": ("",),
    "tusd_py.web.cors._ORIGIN": ("",),
    "tusd_py.web.download._SAFE_TYPE": ("image/", "image/a"),
    "tusd_py.web.download._PLAIN_TEXT": (
        "text/plain",
        "text/plain;",
        "text/plain;charset=",
        "text/plain;charset=a",
    ),
    "tusd_py.web.download._RESERVED": ("",),
    "tusd_py.web.download._NOT_IN_FALLBACK": ("",),
    "tusd_py.web.download._ENTITY_TAG": ("", '"', 'W/"', '"a"'),
    "tusd_py.web.download._RANGE": ("bytes=", "bytes=1", "bytes=-", "bytes=1-1"),
    "tusd_py.web.download._DATES": ("Mon, ", "Monday", "Mon Jan "),
    "tusd_py.web.endpoint._REQUEST_ID": ("",),
    "tusd_py.web.http.response_head._is_name": ("",),
    "tusd_py.web.http.framing._HOST": ("", "[", "a:"),
    "tusd_py.web.http.framing._SCHEME": ("", "http"),
    "tusd_py.web.http.framing._TOKEN": ("", "a"),
    "tusd_py.web.http.framing.authority": ("",),
    "tusd_py.web.pages.sending._WEIGHT": ("", ";", ";q", ";q=", ";q=1."),
    "tusd_py.web.proxy_headers._PAIR": ("", "for=a", 'for="', 'for="a"', "for="),
    "tusd_py.web.proxy_headers._NAME_AND_PORT": ("", "a", "a:"),
    "tusd_py.web.proxy_headers._IPV6_AND_PORT": ("[", "[::]", "[::]:"),
    "tusd_py.web.proxy_headers._PREFIX": ("", "/", "/a"),
    r"tusd_py.web.proxy_headers:'\\\\(.)'": ("",),
    "tusd_py.storage.finished_names._DEVICE": ("", "com", "com1"),
    "tusd_py.storage.finished_names._PACKED": ("", ".", ".a."),
    "tusd_py.telemetry.tracing._is_traceparent": ("", "00-"),
    "tusd_hooks.wire._METADATA_KEY": ("",),
}
"""For each other expression: beginnings after which hostile bytes meet each of its repetitions."""

PUMPS = (
    *' \t,;aA09./-_:="\\%[]!~\xe9\x00',
    *("a ", ", ", " ,", "; ", "a,", "a;", "a=b;", "a=b,", 'a="b"; ', "\\a", "a.", "/a", "/."),
    *("//", "/../", "a-", "0-0,", '"a",', '"a" ', '""', 'W/"', "a:", "%41", "a YQ==,", "[::1]"),
)
ENDS = ("", "x", "\x00", '"', "\n")
SIZES = (24, 48, 400, 10_000)
"""The smallest ones stop what is exponential before it takes for ever, the middle one what is cubic."""
MOST_SECONDS = 0.03
"""Of the processor. What is linear takes a hundredth of it; blanks in two neighbouring repetitions take 0.1 to 1 s."""
FIELD_SIZE = 60_000
GOOD_HEAD = '{"alg":"HS256"}'
MOST_SECONDS_OF_A_REQUEST = 0.5


@cache
def found() -> list[Expression]:
    return [each for module, tree in modules() for each in in_source(module, tree)]


def clients() -> list[Expression]:
    """Expressions that clients' bytes may reach."""
    return [each for each in found() if not each.name.startswith(tuple(OPERATORS))]


def hostile(beginning: str, size: int) -> Iterator[str]:
    for pump in PUMPS:
        for end in ENDS:
            yield beginning + pump * (size // len(pump)) + end


def seconds(work: Callable[[str], object], beginnings: tuple[str, ...]) -> tuple[float, str]:
    """The processor's time for the worst input, and its beginning; ends with the first that takes too long."""
    worst, worst_text = 0.0, ""
    for size in SIZES:
        for beginning in beginnings:
            for text in hostile(beginning, size):
                took = _processor_seconds(work, text)
                if took > MOST_SECONDS:
                    # Garbage may have been collected meanwhile, or the other processor have slowed this one down.
                    took = min(took, *(_processor_seconds(work, text) for _ in range(3)))
                if took > worst:
                    worst, worst_text = took, f"{text[:40]!r}... ({len(text)} characters)"
                if worst > MOST_SECONDS:
                    return worst, worst_text
    return worst, worst_text


def _processor_seconds(work: Callable[[str], object], text: str) -> float:
    began = time.thread_time()
    work(text)
    return time.thread_time() - began


def using(pattern: str | bytes, flags: int, method: str) -> Callable[[str], object]:
    """A function that applies an expression by one of its methods."""
    if isinstance(pattern, bytes):
        of_bytes = re.compile(pattern, flags)
        return lambda text: getattr(of_bytes, method)(text.encode("latin-1"))
    of_text = re.compile(pattern, flags)
    if method in ("sub", "subn"):
        return lambda text: of_text.sub("_", text)
    if method == "finditer":
        return lambda text: list(of_text.finditer(text))
    found: Callable[[str], object] = getattr(of_text, method)
    return found


def test_every_expression_is_known() -> None:
    """Say in OPERATORS or REACHED_BY what reaches a new expression; and take out what is gone."""
    names = {each.name for each in clients()}
    assert names == set(REACHED_BY)
    everything = [each.name for each in found()]
    for beginning in OPERATORS:
        assert any(name.startswith(beginning) for name in everything), beginning


@pytest.mark.parametrize(
    "expression",
    [each for each in clients() if each.name in REACHED_BY],
    ids=lambda each: each.name,
)
def test_expressions_are_linear(expression: Expression) -> None:
    assert expression.pattern is not None, "say what it is at run time"
    for method in sorted(expression.methods):
        work = using(expression.pattern, expression.flags, method)
        took, text = seconds(work, REACHED_BY[expression.name])
        assert took <= MOST_SECONDS, f"{expression.name}.{method} takes {took:.2f} s for {text}"


@pytest.mark.parametrize(
    ("pattern", "beginning"),
    [
        (r"[ \t]*(?:a=b)?[ \t]*[;,]", ""),
        (r'[ \t]*,*[ \t]*"[^"]*"', ""),
        (r"bytes=[0-9]*[0-9]*-", "bytes="),
        (r"(?:/?[a-z]+)*!", ""),
        (r"(?:a|a)*!", ""),
    ],
)
def test_what_is_not_linear_is_found(pattern: str, beginning: str) -> None:
    took, _ = seconds(using(pattern, 0, "match"), (beginning,))
    assert took > MOST_SECONDS


# -- parsers -----------------------------------------------------------------------------------

PARSERS = tuple(
    name
    for name, _ in modules()
    if name.startswith(("tusd_py.protocol.", "tusd_py.web.proxy_headers", "tusd_py.web.download"))
)
MORE: Mapping[str, Mapping[str, object]] = {
    "tusd_py.protocol.concat.parse": {"max_parts": 10_000},
    "tusd_py.protocol.concat.upload_ids_of": {"base_paths": ["/files/"]},
    "tusd_py.protocol.digests.parse": {"name": "Repr-Digest"},
}
"""Arguments that parsers take besides the text."""
NAMED = re.compile(
    r"_?parse\w*|_entity_tags|_host|_node|_prefix|_split|_split_host|upload_ids_of|_path_of|_port|wanted"
)


def parsers() -> Iterator[tuple[str, Callable[..., object]]]:
    """Functions that parse a text."""
    for name in PARSERS:
        module: ModuleType = importlib.import_module(name)
        for function in vars(module).values():
            if not inspect.isfunction(function) or function.__module__ != name:
                continue
            first = next(iter(inspect.signature(function).parameters.values()), None)
            takes = "" if first is None else str(first.annotation)
            if NAMED.fullmatch(function.__name__) and takes in ("str", "str | None"):
                yield f"{name}.{function.__name__}", function


FOUND_PARSERS = dict(parsers())

BEGINNINGS = (
    *("", "final;", "sha1 ", "a ", "bytes=", 'for="', "[", "//"),
    *('attachment; a="', "attachment; filename*", "attachment; filename*=utf-8''"),
)


@pytest.mark.parametrize("name", FOUND_PARSERS)
def test_parsers_are_linear(name: str) -> None:
    parse = FOUND_PARSERS[name]

    def work(text: str) -> None:
        with suppress(ProtocolError, BadToken, ValueError):
            parse(text, **MORE.get(name, {}))

    took, text = seconds(work, BEGINNINGS)
    assert took <= MOST_SECONDS, f"{name} takes {took:.2f} s for {text}"


def test_the_file_name_of_a_plain_upload_is_among_the_parsers() -> None:
    """The parser of the standard library was not linear: it looked for the end of a quoted string at each semicolon."""
    assert "tusd_py.protocol.disposition.parse_filename" in FOUND_PARSERS

    def by_the_standard_library(text: str) -> None:
        message = Message()
        message["content-disposition"] = text
        with suppress(TypeError, ValueError):
            message.get_params([], "content-disposition")

    took, _ = seconds(by_the_standard_library, BEGINNINGS)
    assert took > MOST_SECONDS


def test_a_field_that_is_repeated_is_joined_once() -> None:
    began = time.thread_time()
    joined = Headers([(b"x", b"y")] * 100_000)["x"]
    assert time.thread_time() - began < 1.0
    assert joined == ", ".join("y" * 100_000)


@pytest.mark.parametrize("key", ["filename", "filetype"])
def test_file_names_and_types_of_downloads(key: str) -> None:
    def work(text: str) -> None:
        pairs = {key: text.encode("utf-8")}
        plan_download({}, size=1, etag='"x"', last_modified=0, metadata=pairs, method="GET")

    took, text = seconds(work, ("image/",) if key == "filetype" else ("",))
    assert took <= MOST_SECONDS, f"{took:.2f} s for {text}"


NAME_OF_47_KB = (
    *(b"a" * 47_000, b"<" * 47_000, b"\\" * 47_000, b". " * 23_500, b"\xff" * 47_000),
    *(each.encode() for each in ("\u0301" * 23_500, "\U0001f600" * 11_700, " " * 46_990 + "a.txt")),
)


def names_for_downloads(name: bytes) -> object:
    return presentation({"filename": name})


def properties_of_objects(name: bytes) -> object:
    return properties_of({"filename": name})


def names_of_finished_files(name: bytes) -> object:
    info = UploadInfo(id="a", length=1, metadata={"filename": name})
    return list(FinishedNames("{filename}/{metadata.filename}").of(info))


@pytest.mark.parametrize(
    "work", [names_for_downloads, properties_of_objects, names_of_finished_files]
)
def test_a_file_name_of_47_kb_costs_no_more_than_one_that_fits(
    work: Callable[[bytes], object],
) -> None:
    """They are made anew for each download, and once for each finish."""
    for name in NAME_OF_47_KB:
        took: list[float] = []
        for _ in range(5):
            began = time.thread_time()
            work(name)
            took.append(time.thread_time() - began)
        assert min(took) < 0.006, name[:20]


QUADRATIC = frozenset(
    {
        "http.cookies",
        "http.cookiejar",
        "email.parser",
        "email.message",
        "email.header",
        "email.headerregistry",
        "email.policy",
        "html.parser",
        "cgi",
        "multipart",
        "python_multipart",
        "starlette.formparsers",
    }
)
"""Parsers that take, or took in a release of Python that we support, quadratic time."""
QUADRATIC_ATTRIBUTES = frozenset({"cookies", "form"})
"""Attributes of Starlette's requests by which these are reached."""


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_no_parser_that_is_not_linear_is_used() -> None:
    for name, tree in modules():
        assert not {each for each in _imports(tree) if each in QUADRATIC}, name
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and "request" in ast.unparse(node.value).lower()
        }
        assert not used & QUADRATIC_ATTRIBUTES, name


# -- header fields, by the front ---------------------------------------------------------------


def cpu_seconds(server: ServerProcess) -> float:
    """The processor's time that the server has taken."""
    numbers = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tus]:
    """A server that believes everybody's Forwarded and asks for tokens."""
    flags = ("--auth", "jwt", "--behind-proxy", "127.0.0.1")
    directory = tmp_path_factory.mktemp("hostile") / "uploads"
    with ServerProcess(directory, *flags, env={"TUSD_JWT_SECRET": SECRET}) as server:
        yield Tus(server)


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("latin-1")).rstrip(b"=").decode()


def values(field: str) -> Iterator[str]:
    """Hostile values of a header field: what may stand on a line."""
    beginnings = {
        "authorization": ("Bearer ", "Bearer a.b."),
        "content-disposition": ('attachment; a="', "attachment; filename*0=b; filename*="),
        "forwarded": ("for=a;", 'for="', "for=192.0.2.1;"),
        "range": ("bytes=", "bytes=0-"),
        "upload-concat": ("final;", "final;/files/"),
        "upload-checksum": ("sha1 ",),
        "upload-metadata": ("a ", "filename "),
        "if-none-match": ('"a"',),
        "if-match": ('"a"',),
    }.get(field, ("",))
    for pump in PUMPS:
        if pump != "\x00":
            for beginning in beginnings:
                yield beginning + pump * (FIELD_SIZE // len(pump)) + "x"
    if field in ("authorization", "upload-token"):
        scheme = "Bearer " if field == "authorization" else ""
        for nested in ("[" * 5000, '{"a":' * 1000, "9" * 5000, "-" * 100, '"\\ud800"', "1e400"):
            for document in (nested, f'{{"alg":"HS256","x":{nested}}}', f'{{"exp":{nested}}}'):
                yield f"{scheme}{encoded(document)}.{encoded(document)}.e30"
                yield f"{scheme}{encoded(GOOD_HEAD)}.{encoded(document)}.e30"


@pytest.mark.parametrize("field", sorted(header_fields() - {"message", "for", "port", "prefix"}))
def test_header_fields_are_read_in_linear_time(guarded: Tus, field: str) -> None:
    good = bearer(access())
    path = guarded.new(5, headers=good, body=b"hello")
    requests: tuple[tuple[str, str, dict[str, str]], ...] = (
        ("POST", guarded.collection, {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}),
        ("POST", guarded.collection, {"Upload-Complete": "?0", "Content-Length": "0"}),
        ("PATCH", path, guarded.patch_headers(5, {"Content-Length": "0"})),
        ("HEAD", path, {}),
        ("GET", path, {}),
        ("OPTIONS", path, {"Origin": "https://page.example"}),
        ("POST", "/auth/refresh-upload-token", {"Content-Length": "0"}),
        ("GET", "/metrics", {}),
    )
    for value in values(field):
        before = cpu_seconds(guarded.server)
        for method, target, headers in requests:
            fields = merged({**good, **headers}, {field: value})
            with Connection(guarded.server.address) as connection:
                head = head_bytes(method, target, list(fields.items()), "localhost")
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.send(head)
                    connection.half_close()
                with suppress(ConnectionResetError):
                    answer = connection.read_to_end()
                    # 501 is for transfer codings that are not known here.
                    assert not re.match(rb"HTTP/1\.1 50[^1]", answer), (value[:60], answer[:200])
        took = cpu_seconds(guarded.server) - before
        most = MOST_SECONDS_OF_A_REQUEST * len(requests)
        assert took < most, f"{field}: {value[:40]!r}... takes {took:.2f} s"
    assert "Traceback" not in guarded.server.log()


def test_fields_that_are_repeated_are_read_in_linear_time(make_server: MakeServer) -> None:
    """`Host` once took the square of their number."""
    server = make_server("--max-header-size", "1MiB")
    for field in ("host", "origin", "connection", "upload-token", "x"):
        line = f"{field}:\r\n".encode()
        head = b"POST /files/ HTTP/1.1\r\nHost: a\r\n" + line * (700_000 // (len(line) + 4))
        before = server.processor_seconds()
        with Connection(server.address) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.send(head + b"\r\n")
            with suppress(ConnectionResetError, ConnectionEnded):
                assert 400 <= connection.read_response("POST").status < 500
        assert server.processor_seconds() - before < 3, field


@pytest.mark.parametrize("pump", ["a", "/", "%2f", "../", "%2e%2e/", "%", ";", "a?", "%00", "\xe9"])
def test_paths_are_read_in_linear_time(guarded: Tus, pump: str) -> None:
    good = bearer(access())
    before = cpu_seconds(guarded.server)
    for method in ("HEAD", "GET", "PATCH", "DELETE", "POST", "OPTIONS"):
        target = guarded.collection + pump * (16_000 // len(pump))
        with Connection(guarded.server.address) as connection:
            connection.send(head_bytes(method, target, list(good.items()), "localhost"))
            connection.half_close()
            assert not connection.read_to_end().startswith(b"HTTP/1.1 5")
    assert cpu_seconds(guarded.server) - before < MOST_SECONDS_OF_A_REQUEST * 6


@pytest.mark.parametrize(
    "body",
    [b"[" * 60_000, b'{"a":' * 10_000, b"9" * 60_000, b'{"upload_id":"' + b"\\u0061" * 9_000],
)
@pytest.mark.parametrize("route", ["/auth/refresh-upload-token", "/auth/revoke"])
def test_documents_are_read_in_linear_time(guarded: Tus, route: str, body: bytes) -> None:
    before = cpu_seconds(guarded.server)
    refused = guarded.request("POST", route, bearer(access()), body)
    assert refused.status == 400
    assert cpu_seconds(guarded.server) - before < MOST_SECONDS_OF_A_REQUEST


def test_metadata_of_what_is_downloaded(guarded: Tus) -> None:
    good = bearer(access())
    for pump in PUMPS:
        text = pump * (FIELD_SIZE // 6 // len(pump))
        pairs = metadata(filename=text, filetype=text)
        path = guarded.new(1, headers={**good, "Upload-Metadata": pairs}, body=b"x")
        before = cpu_seconds(guarded.server)
        assert guarded.get(path, good).status == 200
        assert cpu_seconds(guarded.server) - before < MOST_SECONDS_OF_A_REQUEST


def test_an_origin_is_bounded(make_server: MakeServer) -> None:
    """The operator's expression sees no more than a host name needs."""
    tus = Tus(make_server("--cors-allow-origin", r"https?://[a-z.]*[a-z.]*\.example\.org"))
    for size, allowed in ((100, True), (600, False)):
        origin = f"https://{'a.' * (size // 2)}example.org"
        answer = tus.options(headers={"Origin": origin})
        assert ("Access-Control-Allow-Origin" in answer) is allowed
