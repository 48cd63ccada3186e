"""``Upload-Checksum``: parsing of all inputs, and algorithms compared with other implementations (T25, T26)."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.protocol_core.attempts import attempt
from tests.support.tus import checksum as independent
from tusd_py.protocol import checksum
from tusd_py.protocol.errors import ProtocolError

algorithms = st.sampled_from(sorted(checksum.ALGORITHMS))


@given(algorithms, st.lists(st.binary(max_size=200), max_size=6))
def test_T25_a_running_checksum_is_that_of_the_whole(name: str, blocks: list[bytes]) -> None:
    announced = checksum.parse(independent(b"".join(blocks), name))
    hasher = announced.hasher()
    for block in blocks:
        hasher.update(memoryview(block))
    assert announced.matches(hasher)
    hasher.update(b"x")
    assert not announced.matches(hasher)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("sha1", hashlib.sha1(b"123456789").digest()),
        ("sha256", hashlib.sha256(b"123456789").digest()),
        ("sha512", hashlib.sha512(b"123456789").digest()),
        ("md5", hashlib.md5(b"123456789").digest()),
        ("crc32", zlib.crc32(b"123456789").to_bytes(4, "big")),
        # The check value of the CRC catalogue.
        ("crc32c", bytes.fromhex("e3069283")),
    ],
)
def test_T25_known_values(name: str, digest: bytes) -> None:
    announced = checksum.parse(f"{name} {base64.b64encode(digest).decode()}")
    assert (announced.algorithm, announced.digest) == (name, digest)
    hasher = announced.hasher()
    hasher.update(b"123456789")
    assert announced.matches(hasher)


@given(
    st.text(max_size=60)
    | st.builds("{} {}".format, algorithms, st.text(max_size=40))
    | st.builds(
        "{} {}".format, algorithms, st.binary(max_size=70).map(base64.b64encode).map(bytes.decode)
    )
)
@example("sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=\n")
@example("sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00= ")
@example("sha1 \u0661")
def test_T26_a_digest_of_the_right_length_or_400(text: str) -> None:
    name, _, encoded = text.partition(" ")
    announced = attempt(checksum.parse, text)
    if isinstance(announced, ProtocolError):
        assert announced.status == 400
        assert announced.message.isprintable()
    else:
        assert announced.algorithm == name
        assert base64.b64encode(announced.digest).decode()[:-1] == encoded[: -1 if encoded else 0]
        assert len(announced.digest) == len(checksum.ALGORITHMS[name][0]().digest())


def test_T26_every_algorithm_has_the_digest_length_it_says() -> None:
    for maker, length in checksum.ALGORITHMS.values():
        assert len(maker().digest()) == length
