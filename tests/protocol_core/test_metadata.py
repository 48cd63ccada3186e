"""``Upload-Metadata``, for all inputs (T17, T18)."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.protocol_core.attempts import attempt
from tusd_py.protocol import metadata
from tusd_py.protocol.errors import ProtocolError

keys = st.text(
    alphabet=[
        *(chr(code) for code in range(0x21, 0x7F) if chr(code) != ","),
        *"\u00e4\u00df\u00f1\u0416\u05d0\u06a9\u0939\u6587\u540d\u30d5\uac00\U0001f4c4\u200d\u00a0\ufeff\u00ff",
    ],
    min_size=1,
    max_size=10,
)
pairs = st.dictionaries(keys, st.binary(max_size=40), max_size=6)


def on_the_wire(text: str) -> str:
    """UTF-8 as ASGI servers hand header fields over: byte by byte."""
    return text.encode("utf-8").decode("latin-1")


@given(pairs)
def test_what_is_written_is_read_back(expected: dict[str, bytes]) -> None:
    parsed = metadata.parse(metadata.serialize(expected))
    assert parsed == expected
    assert list(parsed) == list(expected)


@given(pairs)
def test_T17_values_may_be_left_out_with_or_without_the_space(expected: dict[str, bytes]) -> None:
    elements = []
    for number, (key, value) in enumerate(expected.items()):
        encoded, name = base64.b64encode(value).decode(), on_the_wire(key)
        elements.append(f"{name} {encoded}" if value or number % 2 else name)
    assert metadata.parse(",".join(elements)) == expected


VALID = re.compile(
    r"[!-+\--~\x80-\xff]+( ([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)?"
)


def follows_the_grammar(text: str) -> bool:
    """The grammar of the specification as a regular expression, white space around pairs aside."""
    if not text:
        return True
    elements = [element.strip(" \t") for element in text.split(",")]
    if not all(map(VALID.fullmatch, elements)):
        return False
    names = [as_text(element.partition(" ")[0].encode("latin-1")) for element in elements]
    return len(set(names)) == len(names) and not any(map(NO_KEY.search, names))


NO_KEY = re.compile("[\u0080-\u009f\u2028\u2029]")
"""Control characters and ends of lines beyond ASCII."""


def as_text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


near_misses = st.lists(
    st.sampled_from(
        ["a", "b", " ", "  ", ",", "YQ==", "YQ", "=", "\t", "\u00e4", "!", "é", "YWJj"]
    ),
    max_size=8,
).map("".join)


@given(st.text(max_size=40) | near_misses)
@example("a YQ==,")
@example("a Y Q==")
@example("a YQ==YQ==")
@example("a \u2028")
@example("a YQ==\x1c")
@example("a YR==")
@example("\xc3\xa4 YQ==")
@example("\xe4 YQ==")
@example("\xc3\xa4,\xe4")
@example("\xc2\x85")
@example("\xe2\x80\xa8")
@example("a\xc2\x9fb YQ==")
def test_T17_all_else_is_refused_with_400(text: str) -> None:
    if follows_the_grammar(text):
        metadata.parse(text)
        return
    with pytest.raises(ProtocolError) as refusal:
        metadata.parse(text)
    assert refusal.value.status == 400


def test_T17_keys_beyond_ascii_are_text() -> None:
    field = ",".join(
        [on_the_wire("gr\u00f6\u00dfe YQ=="), on_the_wire("\u6587\u4ef6\u540d Yg=="), "\xe4 Yw=="]
    )
    assert metadata.parse(field) == {
        "gr\u00f6\u00dfe": b"a",
        "\u6587\u4ef6\u540d": b"b",
        "\u00e4": b"c",
    }


@given(st.text(alphabet="XYZ!=,", min_size=12, max_size=40))
def test_T19_a_refusal_does_not_repeat_what_was_sent(text: str) -> None:
    outcome = attempt(metadata.parse, text)
    if isinstance(outcome, ProtocolError):
        assert text not in outcome.message
        assert outcome.message.isprintable()


def test_T17_surplus_padding_is_refused() -> None:
    with pytest.raises(ProtocolError):
        metadata.parse("key aGV5=")
    with pytest.raises(ProtocolError):
        metadata.parse("key aGVsbG8==")
    assert metadata.parse("key aGV5eQ==") == {"key": b"heyy"}


def test_T17_keys_are_counted() -> None:
    """Except in what was accepted before."""
    header = ",".join(f"k{number}" for number in range(256))
    assert len(metadata.parse(header)) == 256
    with pytest.raises(ProtocolError) as refusal:
        metadata.parse(f"{header},more")
    assert (refusal.value.status, refusal.value.code) == (400, "ERR_INVALID_METADATA")
    assert "256" in refusal.value.message
    assert len(metadata.parse(f"{header},more", strict=False)) == 257


def test_the_text_of_a_long_value_is_its_beginning_and_its_end() -> None:
    assert metadata.text_of(b"a\xff.txt") == "a\ufffd.txt"
    text = metadata.text_of(("x" + "é" * 30_000 + ".txt").encode())
    assert len(text.encode()) < 2048
    assert (text[:3], text[-6:], set(text[3:-6])) == ("xéé", "éé.txt", {"é"})
