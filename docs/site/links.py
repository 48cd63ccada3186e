"""A hook of MkDocs: links that leave docs/ lead to the repository, and no page is left out of the navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_OUTSIDE = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_config(config: Any) -> None:
    """Put pages that the navigation lacks at its end."""
    named = re.findall(r"[\w-]+\.md", str(config.nav))
    left = sorted({page.name for page in Path(config.docs_dir).glob("*.md")} - set(named))
    if left:
        config.nav.append({"More": left})


def on_page_markdown(markdown: str, *, config: Any, **_others: object) -> str:
    """Replace links to files beside docs/ by their address in the repository."""
    return _OUTSIDE.sub(rf"]({config.repo_url}/blob/main/\1)", markdown)
