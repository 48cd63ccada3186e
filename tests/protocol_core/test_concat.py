"""``Upload-Concat``, for all inputs (T32)."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.protocol_core.attempts import attempt
from tusd_py.protocol import concat
from tusd_py.protocol.concat import Final, Partial
from tusd_py.protocol.errors import ProtocolError

urls = st.text(alphabet=[chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=20)


def test_T31_partial() -> None:
    assert concat.parse("partial", max_parts=1) == Partial()


@given(st.lists(urls, min_size=1, max_size=5))
def test_T32_parts_in_order_with_repeats(parts: list[str]) -> None:
    parsed = concat.parse("final;" + " ".join(parts), max_parts=5)
    assert parsed == Final(tuple(parts))


@given(st.lists(urls, min_size=4, max_size=8))
def test_T32_too_many_parts_are_refused(parts: list[str]) -> None:
    with pytest.raises(ProtocolError) as refusal:
        concat.parse("final;" + " ".join(parts), max_parts=3)
    assert refusal.value.status == 400


@given(st.text(max_size=20) | st.text(max_size=20).map("final;".__add__))
@example("")
@example("final;")
@example("final; ")
@example("partial;")
@example("PARTIAL")
@example("final;/a\u00a0/b")
def test_T32_all_else_is_refused_with_400(text: str) -> None:
    parsed = attempt(concat.parse, text, max_parts=100)
    if isinstance(parsed, ProtocolError):
        assert parsed.status == 400
    elif isinstance(parsed, Final):
        assert text.startswith("final;")
        assert parsed.parts
        assert all(part.isascii() and part.isprintable() and part for part in parsed.parts)
    else:
        assert text == "partial"


ids = st.text(min_size=1, max_size=20).filter(lambda text: not text.endswith("/"))
origins = st.sampled_from(
    [
        "",
        "http://host",
        "https://user@host:8443",
        "//host",
        "HTTP://[::1]:80",
        "https://h/app",
        "/app",
    ]
)


@given(ids, origins, st.sampled_from(["", "?x=/files/y", "#/files/y", "/", "//"]))
def test_T32_absolute_and_relative_urls_name_the_same(
    upload_id: str, origin: str, end: str
) -> None:
    try:
        path = quote(upload_id, safe="")
    except UnicodeEncodeError:
        return
    url = f"{origin}/files/{path}{end}"
    assert concat.upload_ids_of(url, ["/files/"])[-1] == upload_id.rstrip("/")
    if not origin.endswith("/app"):
        assert concat.upload_ids_of(url, ["/files/"])[0] == upload_id.rstrip("/")


@pytest.mark.parametrize(
    ("url", "readings"),
    [
        ("/files/a", ["a"]),
        ("http://other:9/app/files/a", ["a"]),
        ("http://other:9/deep/er/files/a/b", ["a/b"]),
        ("/files/files/a", ["files/a", "a"]),
        ("/app/files/x/files/a", ["a", "x/files/a"]),
        ("%2Ffiles%2Fa", ["a"]),
        ("/app%2Ffiles%2fa", ["a"]),
        ("/files/%252e", ["%2e"]),
        ("a", ["a"]),
        ("./a", ["a"]),
        ("files/a", ["files/a", "a"]),
        ("../files/a", ["../files/a", "a"]),
        ("/files/../a", ["../a"]),
    ],
)
def test_T32_the_id_is_what_stands_behind_the_base_path(url: str, readings: list[str]) -> None:
    assert list(concat.upload_ids_of(url, ["/files/"])) == readings


def test_T32_under_the_root_the_id_may_begin_at_each_segment() -> None:
    assert concat.upload_ids_of("http://h/app/a", ["/"]) == ("app/a", "a")
    assert len(concat.upload_ids_of("/" + "a/" * 5000, ["/"])) == 8


@given(st.text(max_size=40) | urls.map("/files".__add__) | urls.map("http://[".__add__))
@example("/files/%ff")
@example("http://[::1")
@example("/files/")
@example("/files//")
@example("/filesx/abc")
@example("/elsewhere/abc")
@example("")
def test_T32_what_names_no_upload_is_404(url: str) -> None:
    found = attempt(concat.upload_ids_of, url, ["/files/"])
    if isinstance(found, ProtocolError):
        assert found.status == 404
    else:
        assert all(found)
