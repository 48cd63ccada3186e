"""The public API: what applications and hooks import from `tusd_py`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import tusd_py
from tests.support.server import ROOT


@pytest.mark.parametrize("name", tusd_py.__all__)
def test_every_name_can_be_imported_and_is_documented(name: str) -> None:
    assert getattr(tusd_py, name) is not None
    assert name in dir(tusd_py)
    if name != "__version__":
        assert re.search(rf"^\| `{name}\b", (ROOT / "docs/api.md").read_text(), re.MULTILINE)


def test_other_names_are_no_part_of_it() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Uploads'"):
        _ = tusd_py.Uploads  # type: ignore[attr-defined]


def test_importing_it_loads_nothing_else() -> None:
    code = "import sys, tusd_py; print(sorted(m for m in sys.modules if m.startswith('tusd_')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['tusd_py']\n"
