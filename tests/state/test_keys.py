"""The names of keys: one prefix, one cluster slot for keys that are used together, all documented."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from tests.support.redis import RedisServer
from tusd_py.redis import Keys

PAGE = Path(__file__).parents[2] / "docs" / "state.md"


def names() -> dict[str, str]:
    """The keys as the page writes them, by the attributes and methods that have them."""
    keys = Keys("tusd:")
    found = {
        name: key
        for name, key in vars(keys).items()
        if name != "prefix" and not name.startswith("all_")
    }
    for method, make in inspect.getmembers(keys, inspect.ismethod):
        parameters = list(inspect.signature(make).parameters)
        if not method.startswith(("_", "all_")):
            # What is hidden in a digest is on the page in words.
            name = re.sub(r"[0-9a-f]{64}", "<SHA-256", make(*(f"<{each}>" for each in parameters)))
            found[method] = name.removesuffix("}") if "<SHA-256" in name else name
    return found


@pytest.mark.parametrize(("method", "name"), names().items())
def test_every_key_is_documented_and_has_the_prefix(method: str, name: str) -> None:
    assert name.startswith("tusd:")
    assert f"| `{name}" in PAGE.read_text(), f"{method} is missing in {PAGE.name}"


def test_no_two_have_the_same_name() -> None:
    assert len(set(names().values())) == len(names())


def test_keys_that_one_script_uses_are_in_one_slot() -> None:
    keys = Keys("x:")
    assert tag(keys.probe) == tag(keys.since)
    assert tag(keys.lock("a/b")) == tag(keys.lock_queue("a/b")) == "a/b"


def tag(name: str) -> str:
    """The hash tag, by which a cluster chooses the slot: the text between the first braces."""
    return name[name.index("{") + 1 : name.index("}")]


def test_the_pattern_for_fingerprints_means_these_alone(tmp_path: Path) -> None:
    keys = Keys("a*[b]?^\\:")
    with RedisServer(tmp_path / "redis") as server:
        server.command("SET", keys.duplicate("00"), 1)
        server.command("SET", Keys("a-[b]-^\\:").duplicate("00"), 1)
        assert server.client.keys(keys.all_duplicates) == [keys.duplicate("00").encode()]
