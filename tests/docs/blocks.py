"""The fenced code blocks of a Markdown page."""

from __future__ import annotations

import re

from tests.support.server import ROOT

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The code of all blocks in `language` on `page`, a path from the project's root."""
    found = _FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [code for name, code in found if name == language]
