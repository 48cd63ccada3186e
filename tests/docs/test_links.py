"""Links between the project's pages lead to files and headings that exist."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.server import ROOT

PLACES = ("*", "docs/*", "tests/*", "frontend/*", "examples/*/*", "bench/*", "bench/*/*")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(f"{place}.md"))
OURS = "https://github.com/tusd-py/tusd-py/blob/main/"
"""What links begin with that have to hold outside of the repository, too: those of README, which PyPI shows."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {each.replace(" ", "-") for each in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    to_root = os.path.relpath(ROOT, page.parent)
    for name, anchor in LINK.findall(text.replace(f"]({OURS}", f"]({to_root}/")):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def test_links_of_the_readme_hold_on_other_sites() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 20
    assert [link for link in links if not link.startswith("https://")] == []
