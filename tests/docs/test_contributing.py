"""The maps in CONTRIBUTING.md and tests/README.md list all packages and folders, and nothing else."""

from __future__ import annotations

import re
import tomllib

from tests.support.server import ROOT


def test_every_folder_of_tests_is_on_the_map() -> None:
    listed = re.findall(r"^\| `(\w+)/` \|", (ROOT / "tests/README.md").read_text(), re.MULTILINE)
    there = {path.parent.name for path in ROOT.glob("tests/*/__init__.py")}
    assert sorted(listed) == sorted(there)


def test_every_layer_is_on_the_map_in_its_place() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [
        name.strip() for layer in contract["contracts"][0]["layers"] for name in layer.split("|")
    ]
    table = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ((?:`[\w./]+`(?:, )?)+) \|", table, re.MULTILINE)
    listed = [name.rpartition("/")[2] for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    tools = ("tusd_py.background", "tusd_py.logs")
    assert listed == [each for each in layers if each not in tools]
