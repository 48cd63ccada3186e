"""Every statement of docs/conformance.md has a proof, on files and in buckets, and every proof a statement."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.server import ROOT

_STATEMENT = re.compile(r"^\| ([TR][0-9]+) \|", re.MULTILINE)
_FILES_ONLY = re.compile(r"^\| `(test_\w+)` \| (.+) \|$", re.MULTILINE)
_NUMBERS = re.compile(r"test_((?:[TR][0-9]+_)+)")


@dataclass(frozen=True)
class _Test:
    """A test. files_only: why it does not run on an object store; empty if it does."""

    path: Path
    name: str
    files_only: str

    @property
    def statements(self) -> list[str]:
        found = _NUMBERS.match(self.name)
        return found[1].rstrip("_").split("_") if found else []


def _document() -> str:
    return (ROOT / "docs/conformance.md").read_text()


def _statements() -> list[str]:
    return _STATEMENT.findall(_document())


def _tests(*folders: Path) -> Iterator[_Test]:
    for folder in folders:
        for path in folder.rglob("test_*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                        if name.startswith("test_"):
                            yield _Test(path, name, _reason(node))


def _reason(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    for each in node.decorator_list:
        match each:
            case ast.Call(func=ast.Name("files_only"), args=[ast.Constant(str(reason))]):
                return reason
    return ""


def _proofs() -> dict[str, list[str]]:
    """Names of tests by the statement that they prove."""
    proofs: dict[str, list[str]] = {}
    for test in _tests(ROOT / "tests"):
        for statement in test.statements:
            proofs.setdefault(statement, []).append(f"{test.path.name}::{test.name}")
    return proofs


def _run_on(store: str) -> list[_Test]:
    """The tests that `make test-s3` runs on an object store."""
    # Not with the arguments of the `make` that runs these tests.
    env = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    commands = subprocess.run(
        ["make", "-n", "test-s3", "PYTEST_ARGS="],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    found = re.search(rf"TEST_STORE={store} .* -m pytest (.*)", commands)
    assert found is not None, commands
    ignored = {ROOT / path for path in re.findall(r"--ignore (\S+)", found[1])}
    folders = re.findall(r" (tests/\w+)(?= )", re.sub(r"--ignore \S+", "", found[1]))
    tests = _tests(*(ROOT / folder for folder in folders))
    return [test for test in tests if test.path not in ignored and not test.files_only]


def test_the_statements_are_numbered_without_a_gap() -> None:
    numbers = [("T", number) for number in range(1, 41)] + [
        ("R", number) for number in range(1, 25)
    ]
    assert _statements() == [f"{letter}{number}" for letter, number in numbers]


def test_every_statement_has_a_proof() -> None:
    proofs = _proofs()
    assert [each for each in _statements() if each not in proofs] == []


@pytest.mark.parametrize(("store", "letters"), [("seaweedfs", "TR"), ("versitygw", "T")])
def test_every_statement_has_a_proof_in_buckets(store: str, letters: str) -> None:
    proven = {each for test in _run_on(store) for each in test.statements}
    wanted = [each for each in _statements() if each[0] in letters]
    assert [each for each in wanted if each not in proven] == []
    assert "make test-s3" in (ROOT / ".ci/run").read_text()


def test_the_tests_that_do_not_run_in_buckets_are_listed() -> None:
    marked = [(test.name, test.files_only) for test in _tests(ROOT / "tests") if test.files_only]
    assert sorted(_FILES_ONLY.findall(_document())) == sorted(marked)


def test_no_test_is_named_for_a_statement_that_does_not_exist() -> None:
    unknown = {
        statement: names for statement, names in _proofs().items() if statement not in _statements()
    }
    assert unknown == {}
