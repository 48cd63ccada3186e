"""The canonical form of an upload: different for uploads that differ in anything that counts, independent of order."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tus import metadata as header_of
from tusd_hooks.fingerprint import Identity, canonical_pairs, canonical_value
from tusd_py.events.model import UploadView
from tusd_py.protocol import metadata
from tusd_py.protocol.metadata import CONTROL_KEYS

KEYS = st.one_of(
    st.sampled_from(["study", "Study", "STUDY", "a", "aa", "b", "force_upload "]),
    st.text(max_size=12),
    st.text(st.characters(categories=["Cs", "Ll"]), max_size=3),
)
VALUES = st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"\0", b"a", b"aa", b"\xff\xfe"]))
PAIRS = st.dictionaries(KEYS, VALUES, max_size=6)
LENGTHS = st.integers(0, 10**19 - 1)
OWNERS = st.none() | st.text(max_size=8)

Upload = tuple[dict[str, bytes], int, str | None]


@dataclass(frozen=True)
class Decoded:
    """The content of a canonical form."""

    kind: bytes
    length: int
    owner: bytes | None
    pieces: tuple[bytes, ...]


def decode(form: bytes) -> Decoded:
    """Reads a canonical form back, knowing nothing but that numbers are 8 bytes and pieces follow their lengths.

    That this can be written at all is the proof that no two inputs share a form.
    """
    end = form.index(b"\0")
    kind, rest = form[:end], form[end + 1 :]
    length, rest = int.from_bytes(rest[:8], "big"), rest[8:]
    pieces = []
    while rest:
        count = int.from_bytes(rest[:8], "big")
        assert len(rest) >= 8 + count
        pieces.append(rest[8 : 8 + count])
        rest = rest[8 + count :]
    whose, *others = pieces
    assert whose[:1] in (b"", b"=")
    return Decoded(kind, length, whose[1:] if whose else None, tuple(others))


def decoded_pairs(form: bytes) -> tuple[dict[str, bytes], int, str | None]:
    found = decode(form)
    names, values = found.pieces[::2], found.pieces[1::2]
    assert len(names) == len(values)
    assert list(names) == sorted(set(names))
    text = [name.decode("utf-8", "surrogatepass") for name in names]
    owner = None if found.owner is None else found.owner.decode("utf-8", "surrogatepass")
    return dict(zip(text, values, strict=True)), found.length, owner


@given(PAIRS, LENGTHS, OWNERS)
def test_everything_that_went_in_can_be_read_back(
    pairs: dict[str, bytes], length: int, owner: str | None
) -> None:
    form = canonical_pairs(pairs, length=length, owner=owner)
    assert decoded_pairs(form) == (pairs, length, owner)


@given(VALUES, LENGTHS, OWNERS)
def test_a_fingerprint_of_the_clients_own_can_be_read_back_and_is_no_form_of_pairs(
    value: bytes, length: int, owner: str | None
) -> None:
    form = canonical_value(value, length=length, owner=owner)
    found = decode(form)
    assert (found.length, found.pieces) == (length, (value,))
    assert found.kind != decode(canonical_pairs({}, length=length, owner=owner)).kind


@given(st.tuples(PAIRS, LENGTHS, OWNERS), st.tuples(PAIRS, LENGTHS, OWNERS))
def test_forms_are_equal_only_if_all_is_equal(one: Upload, other: Upload) -> None:
    forms = [
        canonical_pairs(pairs, length=length, owner=owner) for pairs, length, owner in (one, other)
    ]
    assert (one == other) == (forms[0] == forms[1])


@given(PAIRS, LENGTHS, st.randoms(use_true_random=False))
def test_order_does_not_matter(
    pairs: dict[str, bytes], length: int, shuffled: random.Random
) -> None:
    items = list(pairs.items())
    shuffled.shuffle(items)
    assert canonical_pairs(dict(items), length=length, owner="") == canonical_pairs(
        pairs, length=length, owner=""
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": b"b", "c": b"d"}, {"a": b"bcd"}),
        ({"ab": b"c"}, {"a": b"bc"}),
        ({"a": b""}, {}),
        ({"a": b"", "b": b""}, {"ab": b""}),
        ({"study": b"17"}, {"Study": b"17"}),
        ({"study": b"17"}, {"study": b"17\0"}),
        ({"study": "\u00e9".encode()}, {"study": "e\u0301".encode()}),
        ({"study": b"\xff"}, {"study": b"\xfe"}),
        ({"study": b"\xff"}, {"study": "\ufffd".encode()}),
        ({"study": b"x" * 100_000}, {"study": b"x" * 99_999 + b"y"}),
        ({"\ud800": b""}, {"\\ud800": b""}),
    ],
)
def test_what_looks_alike_is_told_apart(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert canonical_pairs(one, length=1, owner="") != canonical_pairs(other, length=1, owner="")


def of(
    pairs: dict[str, bytes],
    *,
    length: int | None = 1,
    owner: str = "",
    identity: Identity | None = None,
) -> str | None:
    return (identity or Identity()).of_upload(UploadView("u", length, 0, pairs, owner=owner))


def test_the_fingerprint_is_the_sha256_of_the_form() -> None:
    form = canonical_pairs({"study": b"17"}, length=1, owner="")
    assert of({"study": b"17"}) == hashlib.sha256(form).hexdigest()


def test_the_form_never_changes() -> None:
    """Another form would forget every upload that was finished before it."""
    assert canonical_pairs({"study": b"17", "a": b""}, length=258, owner="me") == (
        b"tusd-py upload 1 metadata\0"
        b"\0\0\0\0\0\0\1\2"
        b"\0\0\0\0\0\0\0\3=me"
        b"\0\0\0\0\0\0\0\1a\0\0\0\0\0\0\0\0"
        b"\0\0\0\0\0\0\0\5study\0\0\0\0\0\0\0\00217"
    )


def test_the_order_of_a_header_does_not_matter() -> None:
    one = metadata.parse(header_of(study="17", series="3"))
    other = metadata.parse(header_of(series="3", study="17"))
    assert of(one) == of(other) is not None


@pytest.mark.parametrize("key", sorted(CONTROL_KEYS))
def test_control_keys_do_not_count(key: str) -> None:
    assert of({"study": b"17", key: b"true"}) == of({"study": b"17"})
    assert of({"study": b"17", key.upper(): b"true"}) != of({"study": b"17"})


@pytest.mark.parametrize("pairs", [{}, {"force_upload": b"false"}, {"token": b"x"}])
def test_without_metadata_that_counts_there_is_none(pairs: dict[str, bytes]) -> None:
    assert of(pairs) is None


def test_without_a_length_there_is_none() -> None:
    assert of({"study": b"17"}, length=None) is None
    assert of({"study": b"17"}, length=0) is not None


def test_length_and_owner_count() -> None:
    found = {
        of({"study": b"17"}, length=length, owner=owner)
        for length in (0, 1, 256)
        for owner in ("", "a", "b")
    }
    assert len(found) == 9


def test_chosen_keys_are_all_that_counts() -> None:
    identity = Identity(keys=frozenset({"study", "series"}))
    chosen = of({"study": b"17", "filename": b"a.dcm"}, identity=identity)
    assert chosen == of({"study": b"17", "filename": b"b.dcm"}, identity=identity)
    assert chosen != of({"study": b"17", "series": b""}, identity=identity)
    assert chosen != of({"Study": b"17", "study": b"18"}, identity=identity)
    assert of({"filename": b"a.dcm"}, identity=identity) is None


def test_a_named_fingerprint_is_all_that_counts() -> None:
    identity = Identity(fingerprint_key="sha256")
    value = b"9f86d081884c7d65"
    named = of({"sha256": value, "filename": b"a"}, identity=identity)
    assert named == of({"sha256": value, "filename": b"b"}, identity=identity)
    assert named != of({"sha256": value}, length=2, identity=identity)
    assert named != of({"sha256": value}, owner="a", identity=identity)
    assert named != of({"sha256": value})
    assert of({"filename": b"a"}, identity=identity) is None
    assert of({"sha256": b""}, identity=identity) is None


def test_one_scope_for_all_owners() -> None:
    identity = Identity(per_owner=False)
    shared = of({"study": b"17"}, owner="a", identity=identity)
    assert shared == of({"study": b"17"}, owner="b", identity=identity)
    assert shared not in {of({"study": b"17"}, owner=owner) for owner in ("", "a", "b")}
