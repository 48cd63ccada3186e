"""Responses to downloads: conditions, ranges, safe names and types, and both ways of sending."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator, MutableMapping
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.protocol.headers import Headers
from tusd_py.storage.base import StorageError
from tusd_py.storage.file.reader import FileReader
from tusd_py.web.download import DownloadPlan, plan_download, send_file
from tusd_py.web.http.sendfile import FileTruncated

ETAG = '"abc"'
CHANGED = 784111777.25  # Sun, 06 Nov 1994 08:49:37 GMT, and a quarter
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"


def plan(
    *headers: tuple[str, str],
    size: int = 1000,
    etag: str = ETAG,
    last_modified: float = CHANGED,
    method: str = "GET",
    **metadata: bytes,
) -> DownloadPlan:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return plan_download(
        Headers(raw),
        size=size,
        etag=etag,
        last_modified=last_modified,
        metadata=metadata,
        method=method,
    )


def field(answer: DownloadPlan, name: str) -> str | None:
    values = [value for key, value in answer.headers if key == name.encode()]
    assert len(values) < 2
    return values[0].decode("ascii") if values else None


class TestWholeFile:
    def test_its_fields(self) -> None:
        answer = plan()
        assert (answer.status, answer.start, answer.count) == (200, 0, 1000)
        assert {name.decode(): value.decode() for name, value in answer.headers} == {
            "etag": ETAG,
            "last-modified": DATE,
            "cache-control": "private, no-cache",
            "accept-ranges": "bytes",
            "content-length": "1000",
            "content-type": "application/octet-stream",
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
            "content-security-policy": (
                "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; "
                "style-src 'unsafe-inline'"
            ),
        }

    def test_an_empty_file(self) -> None:
        answer = plan(size=0)
        assert (answer.status, answer.start, answer.count) == (200, 0, 0)
        assert field(answer, "content-length") == "0"

    def test_last_modified_is_never_in_the_future(self) -> None:
        before = int(time.time())
        told = field(plan(last_modified=time.time() + 1000), "last-modified")
        assert told is not None
        assert before <= parsedate_to_datetime(told).timestamp() <= time.time()


class TestRange:
    @pytest.mark.parametrize(
        ("value", "start", "count"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=0-499", 0, 500),
            ("bytes=500-", 500, 500),
            ("bytes=999-", 999, 1),
            ("bytes=990-2000", 990, 10),
            ("bytes=0-99999999999999999999999999", 0, 1000),
            ("bytes=-1", 999, 1),
            ("bytes=-1000", 0, 1000),
            ("bytes=-5000", 0, 1000),
            ("bytes=-99999999999999999999999999", 0, 1000),
            ("bytes=00000000000000000000000000010-11", 10, 2),
            ("Bytes=1-2", 1, 2),
            ("bytes= 1-2 ", 1, 2),
        ],
    )
    def test_satisfiable(self, value: str, start: int, count: int) -> None:
        answer = plan(("range", value))
        assert (answer.status, answer.start, answer.count) == (206, start, count)
        assert field(answer, "content-range") == f"bytes {start}-{start + count - 1}/1000"
        assert field(answer, "content-length") == str(count)
        assert field(answer, "etag") == ETAG

    @pytest.mark.parametrize(
        "value", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=99999999999999999999-"]
    )
    def test_unsatisfiable(self, value: str) -> None:
        answer = plan(("range", value))
        assert (answer.status, answer.count) == (416, 0)
        assert field(answer, "content-range") == "bytes */1000"
        assert field(answer, "content-length") is None
        assert field(answer, "content-type") is None

    @pytest.mark.parametrize(
        "value",
        [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=2-1",
            "bytes=a-b",
            "bytes=1-2x",
            "bytes=+1-2",
            "bytes=1_0-20",
            "bytes=\xb2-3",
            "bytes 1-2",
            "bytes=1--2",
            "bytes=0x1-2",
            "lines=1-2",
            "bytes=0-0,2-3",
            "bytes=0-0, -1",
        ],
    )
    def test_malformed_unknown_and_several_get_the_whole_file(self, value: str) -> None:
        answer = plan(("range", value))
        assert (answer.status, answer.start, answer.count) == (200, 0, 1000)
        assert field(answer, "content-range") is None

    def test_two_fields_are_several_ranges(self) -> None:
        assert plan(("range", "bytes=0-1"), ("range", "bytes=4-5")).status == 200

    @pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-0", "bytes=-5"])
    def test_what_begins_an_empty_file_is_the_empty_file(self, value: str) -> None:
        answer = plan(("range", value), size=0)
        assert (answer.status, answer.count) == (200, 0)

    @pytest.mark.parametrize("value", ["bytes=1-", "bytes=5-9", "bytes=-0"])
    def test_what_lies_behind_an_empty_file_is_unsatisfiable(self, value: str) -> None:
        answer = plan(("range", value), size=0)
        assert answer.status == 416
        assert field(answer, "content-range") == "bytes */0"

    @given(st.text(st.sampled_from("bytes=0123456789-, \t"), max_size=30), st.integers(0, 50))
    def test_never_leaves_the_file(self, value: str, size: int) -> None:
        for text in (value, f"bytes={value}"):
            answer = plan(("range", text), size=size)
            assert answer.status in (200, 206, 416)
            assert answer.start >= 0
            assert answer.count == 0 or answer.start + answer.count <= size
            assert (answer.status == 206) <= (answer.count > 0)


class TestConditions:
    """RFC 9110, section 13.2.2."""

    @pytest.mark.parametrize(
        ("value", "status"),
        [
            ('"abc"', 200),
            ('"x", "abc"', 200),
            (' ,"x" ,, "abc"', 200),
            ('"a,b","abc"', 200),
            ("*", 200),
            ('"x"', 412),
            ('W/"abc"', 412),
            ("abc", 412),
            ('"abc', 412),
            ('x"abc"', 412),
            ('"x" "abc"', 412),
            ("", 412),
        ],
    )
    def test_if_match_compares_strongly(self, value: str, status: int) -> None:
        answer = plan(("if-match", value))
        assert answer.status == status
        if status == 412:
            assert answer.count == 0
            assert field(answer, "content-length") is None

    def test_a_weak_tag_of_ours_matches_no_if_match(self) -> None:
        assert plan(("if-match", 'W/"abc"'), etag='W/"abc"').status == 412
        assert plan(("if-match", '"abc"'), etag='W/"abc"').status == 412
        assert plan(("if-none-match", '"abc"'), etag='W/"abc"').status == 304

    @pytest.mark.parametrize(
        ("value", "status"),
        [
            ('"abc"', 304),
            ('W/"abc"', 304),
            ('"x", W/"abc"', 304),
            ("*", 304),
            ('"x"', 200),
            ("abc", 200),
            ('w/"abc"', 200),
            ("", 200),
        ],
    )
    def test_if_none_match_compares_weakly(self, value: str, status: int) -> None:
        answer = plan(("if-none-match", value))
        assert answer.status == status
        if status == 304:
            assert answer.count == 0
            assert field(answer, "etag") == ETAG
            assert field(answer, "last-modified") == DATE
            assert field(answer, "cache-control") is not None
            assert field(answer, "content-length") is None
            assert field(answer, "content-type") is None

    def test_if_none_match_refuses_what_does_not_read(self) -> None:
        assert plan(("if-none-match", "*"), method="PATCH").status == 412

    @pytest.mark.parametrize(("date", "status"), [(EARLIER, 200), (DATE, 304), (LATER, 304)])
    def test_if_modified_since(self, date: str, status: int) -> None:
        assert plan(("if-modified-since", date)).status == status

    @pytest.mark.parametrize(("date", "status"), [(EARLIER, 412), (DATE, 200), (LATER, 200)])
    def test_if_unmodified_since(self, date: str, status: int) -> None:
        assert plan(("if-unmodified-since", date)).status == status

    @pytest.mark.parametrize(
        "date",
        [
            "Sunday, 06-Nov-94 08:49:38 GMT",
            "Sun Nov  6 08:49:38 1994",
            "Sun Nov 06 08:49:38 1994",
            "Sun, 06 Nov 1994 08:49:60 GMT",
        ],
    )
    def test_all_forms_of_dates(self, date: str) -> None:
        assert plan(("if-modified-since", date)).status == 304

    def test_two_digits_of_a_year_lie_within_50_years(self) -> None:
        soon = time.gmtime().tm_year + 49
        date = f"Sunday, 06-Nov-{soon % 100:02} 08:49:37 GMT"
        assert plan(("if-modified-since", date)).status == 304
        date = f"Sunday, 06-Nov-{(soon + 3) % 100:02} 08:49:37 GMT"
        assert plan(("if-modified-since", date)).status == 200

    @pytest.mark.parametrize(
        "date",
        [
            "",
            "now",
            "0",
            "2094-11-06T08:49:37Z",
            "Sun, 06 Nov 2094 08:49:37",
            "Sun, 06 Nov 2094 08:49:37 UTC",
            "Sun, 06 Nov 2094 08:49:37 +0000",
            "Sun, 31 Feb 2094 08:49:37 GMT",
            "Sun, 00 Nov 2094 08:49:37 GMT",
            "Sun, 06 Nov 2094 24:00:00 GMT",
            "Sun, 06 Nov 2094 08:60:00 GMT",
            "Sun, 06 Nov 2094 08:49:61 GMT",
            "Sun, 06 Nov 2094 8:049:37 GMT",
            "Sun, 06 Nov 2094 ::::::37 GMT",
            "Sun, 06 Xyz 2094 08:49:37 GMT",
            "Sun, 06 Nov 0000 08:49:37 GMT",
        ],
    )
    def test_what_is_no_date_is_no_condition(self, date: str) -> None:
        assert plan(("if-modified-since", date)).status == 200
        assert plan(("if-unmodified-since", date)).status == 200

    def test_the_order(self) -> None:
        match, no_match = ("if-match", ETAG), ("if-match", '"x"')
        seen, unseen = ("if-none-match", ETAG), ("if-none-match", '"x"')
        unmodified, modified = ("if-unmodified-since", DATE), ("if-unmodified-since", EARLIER)
        fresh, stale = ("if-modified-since", DATE), ("if-modified-since", EARLIER)
        part = ("range", "bytes=0-1")
        assert plan(match, modified).status == 200, "If-Match replaces If-Unmodified-Since"
        assert plan(no_match, unmodified).status == 412
        assert plan(unseen, fresh).status == 200, "If-None-Match replaces If-Modified-Since"
        assert plan(seen, stale).status == 304
        assert plan(match, seen).status == 304, "what fails comes first, then what is known"
        assert plan(no_match, seen).status == 412
        assert plan(modified, seen).status == 412
        assert plan(unmodified, fresh).status == 304
        assert plan(no_match, part).status == 412, "conditions come before ranges"
        assert plan(seen, part).status == 304
        assert plan(seen, ("range", "bytes=5000-")).status == 304
        assert plan(match, unseen, part).status == 206


class TestIfRange:
    @pytest.mark.parametrize(
        ("value", "status"),
        [
            (ETAG, 206),
            ('"x"', 200),
            ('W/"abc"', 200),
            (f'{ETAG}, "x"', 200),
            (DATE, 206),
            (EARLIER, 200),
            (LATER, 200),
            ("Sunday, 06-Nov-94 08:49:37 GMT", 206),
            ("*", 200),
            ("", 200),
            ("nonsense", 200),
        ],
    )
    def test_a_part_only_of_what_is_known(self, value: str, status: int) -> None:
        assert plan(("range", "bytes=0-1"), ("if-range", value)).status == status

    def test_a_weak_tag_never_joins_parts(self) -> None:
        headers = ("range", "bytes=0-1"), ("if-range", 'W/"abc"')
        assert plan(*headers, etag='W/"abc"').status == 200

    def test_a_date_of_this_second_is_weak(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        headers = ("range", "bytes=0-1"), ("if-range", formatdate(now, usegmt=True))
        assert plan(*headers, last_modified=now).status == 200

    def test_a_range_that_is_unsatisfiable_of_something_else_is_not_asked_for(self) -> None:
        assert plan(("range", "bytes=5000-"), ("if-range", '"x"')).status == 200
        assert plan(("range", "bytes=5000-"), ("if-range", ETAG)).status == 416

    def test_without_range_it_means_nothing(self) -> None:
        assert plan(("if-range", '"x"')).status == 200

    def test_ranges_are_for_get(self) -> None:
        assert plan(("range", "bytes=0-1"), method="HEAD").status == 200


class TestTypes:
    @pytest.mark.parametrize(
        ("filetype", "content_type"),
        [
            (b"image/png", "image/png"),
            (b"IMAGE/JPEG", "image/jpeg"),
            (b"image/vnd.microsoft.icon", "image/vnd.microsoft.icon"),
            (b"audio/x-wav", "audio/x-wav"),
            (b'video/mp4; codecs="avc1.42E01E, mp4a.40.2"', "video/mp4"),
            (b"text/plain", "text/plain; charset=utf-8"),
            (b"text/plain;charset=ISO-8859-1", "text/plain; charset=iso-8859-1"),
            (b'text/plain; charset="utf-8"', "text/plain; charset=utf-8"),
        ],
    )
    def test_harmless_ones_are_shown(self, filetype: bytes, content_type: str) -> None:
        answer = plan(filetype=filetype, filename=b"a.b")
        assert field(answer, "content-type") == content_type
        assert str(field(answer, "content-disposition")).startswith('inline; filename="a.b"')
        assert field(answer, "x-content-type-options") == "nosniff"
        assert str(field(answer, "content-security-policy")).startswith("sandbox;")

    @pytest.mark.parametrize(
        "filetype",
        [
            b"",
            b"text/html",
            b"text/plain, text/html",
            b"text/plain\r\nset-cookie: a=b",
            b"text/plain; charset=utf-8\r\nx: y",
            b'text/plain; charset="a; x',
            b"text/javascript",
            b"text/css",
            b"text/xml",
            b"image/svg+xml",
            b"IMAGE/SVG+XML",
            b"image/svg",
            b"image/svg-xml",
            b"image/x+xml",
            b"video/xml",
            b"image/",
            b"image/png\nx: y",
            b"image/png\x00",
            b"image/png, text/html",
            b"image/p ng",
            b"image/png/",
            b"application/pdf",
            b"application/xhtml+xml",
            b"application/octet-stream",
            b"multipart/x-mixed-replace",
            b"\xff\xfe",
            b"image/\xc3\xa4",
            b"image/" + b"a" * 10_000,
            b"nonsense",
        ],
    )
    def test_everything_else_is_saved(self, filetype: bytes) -> None:
        answer = plan(filetype=filetype)
        assert field(answer, "content-type") == "application/octet-stream"
        assert field(answer, "content-disposition") == "attachment"


DISPOSITION = re.compile(
    r"(?:attachment|inline)"
    r"(?:; filename=\"[\x20\x21\x23\x24\x26-\x5b\x5d-\x7e]+\"; filename\*=UTF-8''[A-Za-z0-9%!#$&+.^_`|~-]+)?"
)


def names(raw: bytes) -> tuple[str, str]:
    """The plain name and the extended one, decoded."""
    value = field(plan(filename=raw), "content-disposition")
    assert value is not None
    assert DISPOSITION.fullmatch(value)
    if "filename" not in value:
        return "", ""
    plain, extended = value.split('filename="')[1].split("\"; filename*=UTF-8''")
    return plain, unquote_to_bytes(extended).decode()


class TestNames:
    @pytest.mark.parametrize(
        ("raw", "plain", "extended"),
        [
            ("study.dcm", "study.dcm", "study.dcm"),
            ("Überraschung né.pdf", "Uberraschung ne.pdf", "Überraschung né.pdf"),
            ("文件.pdf", "_.pdf", "文件.pdf"),
            ("👩\u200d🚀.png", "_.png", "👩\u200d🚀.png"),
            ("a b  c.txt", "a b  c.txt", "a b  c.txt"),
            ("100%.txt", "100_.txt", "100%.txt"),
            ("a;b=c.txt", "a_b=c.txt", "a;b=c.txt"),
            ("it's (1).txt", "it's (1).txt", "it's (1).txt"),
            ('a"b.txt', "a_b.txt", "a_b.txt"),
            ("/etc/passwd", "passwd", "passwd"),
            ("../../x.sh", "x.sh", "x.sh"),
            ("C:\\Windows\\x.dll", "x.dll", "x.dll"),
            ("dir/", "dir", "dir"),
            ("C:x.txt", "C_x.txt", "C_x.txt"),
            ("a\r\nSet-Cookie: b=c", "aSet-Cookie_ b=c", "aSet-Cookie_ b=c"),
            ("a\x00b.txt", "ab.txt", "ab.txt"),
            ("exe.\u202egpj.scr", "exe.gpj.scr", "exe.gpj.scr"),
            ("\u2066a\u2069\u200e\ufeff.txt", "a.txt", "a.txt"),
            (".htaccess", "htaccess", "htaccess"),
            ("name. . ", "name", "name"),
            ("a\u2028b\u2029c", "abc", "abc"),
            ("½.txt", "1_2.txt", "½.txt"),
            ("\uff0fetc\uff0fpasswd", "_etc_passwd", "\uff0fetc\uff0fpasswd"),
            ("\uff02", "_", "\uff02"),
            ("\u0301", "download", "\u0301"),
        ],
    )
    def test_are_told_safely(self, raw: str, plain: str, extended: str) -> None:
        assert names(raw.encode()) == (plain, extended)

    @pytest.mark.parametrize("raw", [b"", b".", b"..", b"/", b"\\", b" ", b"\r\n", b"...", b"\x7f"])
    def test_of_which_nothing_is_left_are_left_out(self, raw: bytes) -> None:
        assert names(raw) in {("", ""), ("_", "_")}

    def test_invalid_utf8_is_replaced(self) -> None:
        assert names(b"a\xff\xfe.txt") == ("a_.txt", "a\ufffd\ufffd.txt")

    @pytest.mark.parametrize("raw", ["a" * 10_240 + ".pdf", "ä" * 5_120 + ".pdf", "文" * 4000])
    def test_long_ones_are_cut_before_the_extension(self, raw: str) -> None:
        plain, extended = names(raw.encode())
        assert 190 < len(extended.encode()) <= 200
        assert plain
        assert extended[:50] == raw[:50]
        assert not raw.endswith(".pdf") or (plain[-4:], extended[-4:]) == (".pdf", ".pdf")

    def test_a_long_end_is_no_extension(self) -> None:
        _, extended = names(b"a." + b"b" * 300)
        assert extended == "a." + "b" * 198

    def test_without_metadata_there_is_none(self) -> None:
        assert field(plan(), "content-disposition") == "attachment"

    @given(st.binary(max_size=400), st.binary(max_size=60))
    def test_nothing_breaks_out(self, filename: bytes, filetype: bytes) -> None:
        self.check(filename, filetype)

    @given(st.text(max_size=300), st.text(st.characters(max_codepoint=127), max_size=40))
    def test_no_text_breaks_out(self, filename: str, filetype: str) -> None:
        self.check(filename.encode(), filetype.encode())

    def check(self, filename: bytes, filetype: bytes) -> None:
        answer = plan(filename=filename, filetype=filetype)
        for _, value in answer.headers:
            assert re.fullmatch(rb"[\x20-\x7e]+", value)
        disposition = field(answer, "content-disposition")
        assert disposition
        assert DISPOSITION.fullmatch(disposition)
        _, extended = names(filename)
        assert "/" not in extended
        assert "\\" not in extended
        assert extended == extended.strip(" .")
        assert len(extended.encode()) <= 200


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[FileReader]:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4096)  # 1 MiB
    found = FileReader(os.open(path, os.O_RDWR))
    yield found
    found.close()


class Sent:
    """An ASGI server's side of a response."""

    def __init__(self, *failures: Exception) -> None:
        self.messages: list[MutableMapping[str, Any]] = []
        self._failures = list(failures)

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if self._failures:
            raise self._failures.pop(0)
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        assert all(message["type"] == "http.response.body" for message in self.messages)
        assert [m["more_body"] for m in self.messages] == [True] * (len(self.messages) - 1) + [
            False
        ]
        return b"".join(message["body"] for message in self.messages)


PLAIN: dict[str, Any] = {"type": "http"}
ZERO_COPY: dict[str, Any] = {"type": "http", "extensions": {"http.response.zerocopysend": {}}}


class TestSending:
    async def test_without_a_copy_where_the_server_can(self, reader: FileReader) -> None:
        sent = Sent()
        await send_file(ZERO_COPY, sent, reader, 3, 70_000)
        (message,) = sent.messages
        assert message.pop("file").fileno() == reader.descriptor
        assert message == {
            "type": "http.response.zerocopysend",
            "offset": 3,
            "count": 70_000,
            "more_body": False,
        }

    @pytest.mark.parametrize("scope", [PLAIN, {"type": "http", "extensions": None}])
    async def test_in_pieces_elsewhere(self, reader: FileReader, scope: dict[str, Any]) -> None:
        sent = Sent()
        await send_file(scope, sent, reader, 3, 600_000)
        assert sent.body == (bytes(range(256)) * 4096)[3:600_003]
        assert max(len(message["body"]) for message in sent.messages) == 256 * 1024

    async def test_in_pieces_where_the_server_cannot_after_all(self, reader: FileReader) -> None:
        sent = Sent(asyncio.SendfileNotAvailableError())
        await send_file(ZERO_COPY, sent, reader, 0, 1000)
        assert len(sent.body) == 1000

    @pytest.mark.parametrize("scope", [PLAIN, ZERO_COPY])
    async def test_nothing_of_an_empty_file(
        self, reader: FileReader, scope: dict[str, Any]
    ) -> None:
        sent = Sent()
        await send_file(scope, sent, reader, 0, 0)
        assert sent.body == b""

    async def test_a_file_that_became_shorter(self, reader: FileReader) -> None:
        os.ftruncate(reader.descriptor, 300_000)
        sent = Sent()
        with pytest.raises(StorageError):
            await send_file(PLAIN, sent, reader, 0, 600_000)
        assert all(message["more_body"] for message in sent.messages)

    async def test_failures_of_the_server_are_passed_on(self, reader: FileReader) -> None:
        with pytest.raises(FileTruncated):
            await send_file(ZERO_COPY, Sent(FileTruncated("short")), reader, 0, 1)

    async def test_a_client_that_left_gets_no_more(self, reader: FileReader) -> None:
        left = asyncio.Event()
        incoming = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if incoming:
                return incoming.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        messages: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            messages.append(message)
            left.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

        await send_file(PLAIN, send, reader, 0, 1024 * 1024, receive=receive)
        assert len(messages) == 1
        assert messages[0]["more_body"]

    async def test_no_task_is_left_behind(self, reader: FileReader) -> None:
        async def receive() -> MutableMapping[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        await send_file(PLAIN, Sent(), reader, 0, 10, receive=receive)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
