"""Every statement of docs/conformance.md has a proof, and every proof a statement."""

from __future__ import annotations

import ast
import re

from tests.support.server import ROOT

_STATEMENT = re.compile(r"^\| ([TR][0-9]+) \|", re.MULTILINE)
_NUMBERS = re.compile(r"test_((?:[TR][0-9]+_)+)")


def _statements() -> list[str]:
    return _STATEMENT.findall((ROOT / "docs/conformance.md").read_text())


def _proofs() -> dict[str, list[str]]:
    """Names of tests by the statement that they prove."""
    proofs: dict[str, list[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found = _NUMBERS.match(node.name)
                for statement in found[1].rstrip("_").split("_") if found else ():
                    proofs.setdefault(statement, []).append(f"{path.name}::{node.name}")
    return proofs


def test_the_statements_are_numbered_without_a_gap() -> None:
    numbers = [("T", number) for number in range(1, 41)] + [
        ("R", number) for number in range(1, 25)
    ]
    assert _statements() == [f"{letter}{number}" for letter, number in numbers]


def test_every_statement_has_a_proof() -> None:
    proofs = _proofs()
    assert [each for each in _statements() if each not in proofs] == []


def test_no_test_is_named_for_a_statement_that_does_not_exist() -> None:
    unknown = {
        statement: names for statement, names in _proofs().items() if statement not in _statements()
    }
    assert unknown == {}
