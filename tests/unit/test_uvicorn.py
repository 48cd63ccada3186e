"""Only documented parts of uvicorn are used: `Config`, `Server` and the class for `http=`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.server import ROOT

PUBLIC = {"Config", "Server"}


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("tusd_py", "hooks", "workers"):
        for path in (ROOT / folder).rglob("*.py"):
            yield path, ast.parse(path.read_text())


def _uses(tree: ast.Module) -> Iterator[str]:
    """Names of uvicorn's that a module imports or reads from the package."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("uvicorn"):
                yield from (f"{module}.{each.name}" for each in names)
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.startswith("uvicorn."))
            case ast.Attribute(value=ast.Name(id="uvicorn"), attr=name):
                yield f"uvicorn.{name}"


def test_only_public_names_of_uvicorn_are_used() -> None:
    allowed = {f"uvicorn.{name}" for name in PUBLIC}
    found = {path.name: set(_uses(tree)) - allowed for path, tree in _sources()}
    assert {name: used for name, used in found.items() if used} == {}


def test_no_private_attribute_of_its_server_is_touched() -> None:
    tree = ast.parse((ROOT / "tusd_py/web/http/server.py").read_text())
    ours = {"_on_startup", "_on_shutdown", "_on_end"}
    private = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)
    }
    assert private <= ours
