"""Each nginx configuration of ours removes `Forwarded` fields of clients, which nginx would pass on."""

from __future__ import annotations

import re

import pytest

from tests.support.server import ROOT

PLACES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docker" / "nginx.conf")
GIVEN = [
    pytest.param(block, id=f"{place.name}-{number}")
    for place in PLACES
    for number, block in enumerate(
        re.findall(r"```nginx\n(.*?)```", place.read_text(encoding="utf-8"), re.DOTALL)
        if place.suffix == ".md"
        else [place.read_text(encoding="utf-8")]
    )
    if "proxy_pass" in block
]


def test_there_are_some() -> None:
    assert len(GIVEN) >= 2


@pytest.mark.parametrize("block", GIVEN)
def test_forwarded_of_clients_is_taken_away(block: str) -> None:
    assert re.search(r'^\s*proxy_set_header Forwarded "";', block, re.MULTILINE)
    assert "proxy_request_buffering off;" in block
