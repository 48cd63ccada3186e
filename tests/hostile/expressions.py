"""Regular expressions, header fields and parsers of our packages, found in their source, to be tested with hostile input."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import ROOT

PACKAGES = (ROOT / "tusd_py", ROOT / "hooks" / "tusd_hooks", ROOT / "workers" / "tusd_workers")
_METHODS = frozenset(
    {"match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}
)
_FLAGS = {
    "IGNORECASE": re.IGNORECASE,
    "VERBOSE": re.VERBOSE,
    "MULTILINE": re.MULTILINE,
    "DOTALL": re.DOTALL,
    "ASCII": re.ASCII,
}
_FIELD = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Expression:
    """name: `module.NAME`, or `module:pattern` for one without a name. pattern: None where it is put together at run time.

    methods: by which it is used.
    """

    name: str
    pattern: str | bytes | None
    flags: int
    methods: frozenset[str]


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Each module's dotted name and its source's tree."""
    for package in PACKAGES:
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(package.parent).with_suffix("").parts
            yield ".".join(parts), ast.parse(file.read_text(encoding="utf-8"), str(file))


def in_source(module: str, tree: ast.Module) -> Iterator[Expression]:
    """The expressions of a module, whether compiled or used at once."""
    names = _names(tree)
    bound = {
        node.value: node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }  # an expression -> the method that is asked of it
    used: dict[str, set[str]] = {}
    for value, method in bound.items():
        if isinstance(value, ast.Name) and method in _METHODS:
            used.setdefault(value.id, set()).add(method)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and _is_of_re(node.func)):
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        pattern = _constant(node.args[0]) if node.args else None
        name = names.get(node)
        methods = {function} if function != "compile" else set()
        if function == "compile":
            methods = set(used.get(name or "", ())) or {bound.get(node, "fullmatch"), "match"}
        shown = f"{module}.{name}" if name else f"{module}:{pattern!r}"
        yield Expression(shown, pattern, _flags(node), frozenset(methods & _METHODS))


def header_fields() -> frozenset[str]:
    """Names of the request header fields that any module reads, in lower case."""
    found: set[str] = set()
    for _, tree in modules():
        for node in ast.walk(tree):
            found |= {name for name in _read_by(node) if _FIELD.fullmatch(name)}
    return frozenset(found)


def _read_by(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(
            func=ast.Attribute(attr="get", value=where), args=[ast.Constant(value=name), *_]
        ):
            pass
        case ast.Subscript(value=where, slice=ast.Constant(value=name)):
            pass
        case ast.Compare(
            left=ast.Constant(value=name), ops=[ast.In() | ast.NotIn()], comparators=[where]
        ):
            pass
        case ast.Compare(
            left=ast.Name(id="name"), ops=[ast.Eq()], comparators=[ast.Constant(value=name)]
        ):
            where = ast.Name(id="headers")
        case ast.Dict(keys=keys):
            for key in keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, bytes):
                    yield key.value.decode("latin-1")
            return
        case _:
            return
    words = ast.unparse(where).lower()
    if "headers" in words or "trailers" in words or "fields" in words:
        if isinstance(name, bytes):
            yield name.decode("latin-1")
        elif isinstance(name, str):
            yield name


def _names(tree: ast.Module) -> dict[ast.AST, str]:
    """Calls -> the name of the module that what they return, or a method of it, is given."""
    found: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        for part in ast.walk(value):
            if isinstance(part, ast.Call) and _is_of_re(part.func):
                found[part] = name
    return found


def _is_of_re(function: ast.expr) -> bool:
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "re"
        and function.attr in _METHODS | {"compile"}
    )


def _constant(node: ast.expr) -> str | bytes | None:
    try:
        value: object = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, str | bytes) else None


def _flags(call: ast.Call) -> int:
    names = {
        node.attr
        for argument in [*call.args[1:], *(keyword.value for keyword in call.keywords)]
        for node in ast.walk(argument)
        if isinstance(node, ast.Attribute)
    }
    flags = 0
    for name in names & set(_FLAGS):
        flags |= _FLAGS[name]
    return flags


def relative(path: Path) -> str:
    """A path as the project's root sees it."""
    return str(path.relative_to(ROOT))
