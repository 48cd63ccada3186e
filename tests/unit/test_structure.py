"""No module imports itself by way of others, even for types; a server loads no library that it does not use.

import-linter holds the layers of packages.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT

PACKAGES = (ROOT / "tusd_py", ROOT / "hooks/tusd_hooks", ROOT / "workers/tusd_workers")


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    # The public API names what is above it, and loads it when it is asked for.
    del found["tusd_py"]
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{each.name}" for each in node.names}
            found |= names if names & known.keys() else {node.module}
    return found & known.keys()


def test_no_circle_of_modules() -> None:
    known = modules()
    assert len(known) > 100
    left = {name: imports(path, known) - {name} for name, path in known.items()}
    # Take away what imports nothing that is left, until only circles and what leads to them remain.
    while leaves := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left


def test_a_server_without_authentication_loads_no_library_for_it() -> None:
    """Nor an HTTP client, nor Prometheus' library before the first scrape: they would double the time that a start takes."""
    code = (
        "import sys; from tusd_py.settings.model import Settings; from tusd_py.process import server;"
        "server.TusApp(Settings());"
        "print({'aiohttp', 'jwt', 'prometheus_client', 'rq'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
