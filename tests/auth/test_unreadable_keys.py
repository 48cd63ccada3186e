"""Malformed files of secrets and key sets are reported at startup and never misread."""

from __future__ import annotations

from pathlib import Path

import pytest

from tusd_py.auth.keys import secrets
from tusd_py.auth.keys.jwks import KeySet

SECRET = "s" * 40


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_in_another_encoding_is_refused(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(f"{SECRET}{end}".encode(encoding))
    with pytest.raises(ValueError, match="the file"):
        secrets.read(file, "the file")


@pytest.mark.parametrize("hidden", ["\x00", "\u200b", "\x7f", "\u202e", "\ufeff"])
def test_a_character_that_nobody_sees_is_refused(hidden: str) -> None:
    with pytest.raises(ValueError, match=r"line 1: .* cannot be seen"):
        secrets.parse(f"kid {SECRET}{hidden}\n", "the file")


def test_tabs_and_words_beyond_ascii_are_taken() -> None:
    (found,) = secrets.parse(f"kid\t{SECRET}\u00e9\r\n", "the file")
    assert found.value == f"{SECRET}\u00e9".encode()


def test_a_key_set_that_is_nested_without_end_is_none() -> None:
    with pytest.raises(ValueError, match="nested"):
        KeySet(b"[" * 400_000, ["RS256"])
