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
    alphabet=[chr(code) for code in range(0x21, 0x7F) if chr(code) != ","], min_size=1, max_size=10
)
pairs = st.dictionaries(keys, st.binary(max_size=40), max_size=6)


@given(pairs)
def test_what_is_written_is_read_back(expected: dict[str, bytes]) -> None:
    parsed = metadata.parse(metadata.serialize(expected))
    assert parsed == expected
    assert list(parsed) == list(expected)


@given(pairs)
def test_T17_values_may_be_left_out_with_or_without_the_space(expected: dict[str, bytes]) -> None:
    elements = []
    for number, (key, value) in enumerate(expected.items()):
        encoded = base64.b64encode(value).decode()
        elements.append(f"{key} {encoded}" if value or number % 2 else key)
    assert metadata.parse(",".join(elements)) == expected


VALID = re.compile(r"[!-+\--~]+( ([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)?")


def follows_the_grammar(text: str) -> bool:
    """The grammar of the specification as a regular expression, white space around pairs aside."""
    if not text:
        return True
    elements = [element.strip(" \t") for element in text.split(",")]
    names = [element.partition(" ")[0] for element in elements]
    return all(map(VALID.fullmatch, elements)) and len(set(names)) == len(names)


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
def test_T17_all_else_is_refused_with_400(text: str) -> None:
    if follows_the_grammar(text):
        metadata.parse(text)
        return
    with pytest.raises(ProtocolError) as refusal:
        metadata.parse(text)
    assert refusal.value.status == 400


@given(st.text(alphabet="XYZ!=,", min_size=12, max_size=40))
def test_T19_a_refusal_does_not_repeat_what_was_sent(text: str) -> None:
    outcome = attempt(metadata.parse, text)
    if isinstance(outcome, ProtocolError):
        assert text not in outcome.message
        assert outcome.message.isprintable()
