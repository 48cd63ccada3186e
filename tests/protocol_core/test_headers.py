"""Header fields and the numbers in them (T4), for all inputs."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tusd_py.protocol.headers import Headers, parse_digits

LARGEST = 2**63 - 1

any_text = st.text(max_size=30) | st.text(
    alphabet="0123456789+-_ .eEx\u00b2\u0663\uff11", max_size=22
)


@given(any_text)
@example("")
@example("-0")
@example("9223372036854775807")
@example("9223372036854775808")
@example("00000000000000000000")
def test_T4_digits_and_nothing_else_are_numbers(text: str) -> None:
    if re.fullmatch("[0-9]{1,19}", text) and int(text) <= LARGEST:
        assert parse_digits(text) == int(text)
    else:
        with pytest.raises(ValueError):
            parse_digits(text)


@given(st.integers(0, LARGEST))
def test_every_number_that_a_file_can_have_is_read_back(number: int) -> None:
    assert parse_digits(str(number)) == number


token = st.text(alphabet="abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8)
value = st.binary(max_size=20)


@given(st.lists(st.tuples(token, value), max_size=8))
def test_fields_are_found_by_their_lower_case_names(raw: list[tuple[str, bytes]]) -> None:
    headers = Headers([(name.upper().encode(), content) for name, content in raw])
    assert set(headers) == {name for name, _ in raw}
    for name in headers:
        same = [content.decode("latin-1").strip(" \t") for key, content in raw if key == name]
        assert headers[name] == ", ".join(same)


def test_a_repeated_number_is_no_number() -> None:
    headers = Headers([(b"Upload-Offset", b"5"), (b"upload-offset", b"5")])
    with pytest.raises(ValueError):
        parse_digits(headers["upload-offset"])
