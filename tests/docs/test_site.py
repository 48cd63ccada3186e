"""The site of the documentation; `make docs` builds it."""

from __future__ import annotations

import re

import tusd_py
from tests.support.server import ROOT


def test_the_reference_has_every_exported_name() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)}
    assert shown | {"UploadProtocol", "__version__"} == set(tusd_py.__all__)
