"""Writes the lists of messages in troubleshooting.md, which follow from the code.

    python docs/troubleshooting.py            says whether they are current, exit code 1 if they are not
    python docs/troubleshooting.py --write    brings them up to date

Each place that makes an error or gives a warning is one entry, in the section that the program links to. Nothing
but ``errors.py`` is imported, and nothing is run.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import architecture

# The file itself, so that the package need not be installed.
_SPECIFICATION = importlib.util.spec_from_file_location("errors", architecture.ROOT / "errors.py")
assert _SPECIFICATION is not None
errors = importlib.util.module_from_spec(_SPECIFICATION)
_SPECIFICATION.loader.exec_module(errors)  # type: ignore[union-attr]
DOCUMENT = architecture.ROOT / "docs" / "troubleshooting.md"
_BEGIN, _END = "<!-- messages: begin -->", "<!-- messages: end -->"
# Functions that warn, and those that make an error of the class that they are given or stand for.
_WARNS = ("warn", "warn_before_start")
_MAKES = {"shared_refusal": "ModelError", "kind": "IndexcacheError"}
# Remarks on an engine's settings, which say how severe they are.
_REMARKS = ("Remark", "Note")
# What stands for whatever a message quotes.
_GAP = "…"


@dataclass(frozen=True)
class Message:
    """A place in the code that tells a user something.

    Args:
        place: file and line.
        section: of the document, as its heading is linked to.
        text: what is said, with … for what it quotes; "" where the code does not show it.
        hint: what helps, likewise.
    """

    place: str
    section: str
    text: str
    hint: str


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse((architecture.ROOT / path).read_text("utf-8"))


@cache
def _functions() -> dict[str, list[ast.FunctionDef]]:
    """All functions and methods of the package by name."""
    functions: dict[str, list[ast.FunctionDef]] = {}
    for path in architecture.source_files():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef):
                functions.setdefault(node.name, []).append(node)
    return functions


@cache
def _returned(name: str) -> list[tuple[ast.expr, ast.FunctionDef]]:
    """What functions of that name return, each with its function."""
    return [
        (node.value, function)
        for function in _functions()[name]
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and node.value is not None
    ]


def _texts(node: ast.expr, scope: ast.AST, depth: int = 0) -> list[str]:
    """What an expression may say: more than one text where it is chosen on the way."""
    texts: list[str] = []
    match node:
        case ast.Constant(value=str(text)):
            texts = [text]
        case ast.JoinedStr(values=values):
            texts = ["".join(str(part.value) if isinstance(part, ast.Constant) else _GAP for part in values)]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            texts = [(_texts(left, scope, depth) or [_GAP])[0] + (_texts(right, scope, depth) or [_GAP])[0]]
        case ast.IfExp(body=body, orelse=other):
            texts = [*_texts(body, scope, depth), *_texts(other, scope, depth)]
        case ast.Name(id=name) if depth < 4:
            texts = [text for value in _assigned(name, scope) for text in _texts(value, scope, depth + 1)]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if depth < 4 and name in _functions():
            returned = _returned(name)
            texts = [text for value, function in returned for text in _texts(value, function, depth + 1)]
    return texts


@cache
def _constants() -> dict[str, list[ast.expr]]:
    """What the package's constants are, by name."""
    constants: dict[str, list[ast.expr]] = {}
    for path in architecture.source_files():
        for node in _tree(path).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                constants.setdefault(node.targets[0].id, []).append(node.value)
    return constants


def _assigned(name: str, scope: ast.AST) -> Iterator[ast.expr]:
    """What ``name`` is in ``scope``: what is assigned to it there, or a constant's value."""
    if name.isupper():
        yield from _constants().get(name, ())
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield value
            case ast.NamedExpr(target=ast.Name(id=target), value=value) if target == name:
                yield value
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                pairs = zip(targets, values, strict=True)
                yield from (value for target, value in pairs if isinstance(target, ast.Name) and target.id == name)


def _scopes(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Each call with the function that it stands in."""

    def walk(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.Call, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield child, scope
            yield from walk(child, child if isinstance(child, ast.FunctionDef) else scope)

    return walk(tree, tree)


def _kind(call: ast.Call) -> str | None:
    """The class of the error that a call makes, "" for a warning, None for any other call."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = [part.value for part in (*call.args, *call.keywords) if isinstance(part, ast.Constant | ast.keyword)]
    words = {part.value if isinstance(part, ast.Constant) else part for part in given}
    # A note is no warning; where the code does not show which it is, it may be one.
    may_warn = {"warning", "error"} & words or (name == "Remark" and "note" not in words)
    if (name in _REMARKS and may_warn) or (name in _WARNS and call.args):
        return ""
    name = _MAKES.get(name, name) if isinstance(call.func, ast.Name) else ""
    made = getattr(errors, name, None)
    return name if isinstance(made, type) and issubclass(made, errors.IndexcacheError) and call.args else None


@cache
def messages() -> tuple[Message, ...]:
    """All that the program may say of what is wrong, in the order of the code."""
    listed = []
    for path in architecture.source_files():
        module = ".".join(("indexcache", *path.with_suffix("").parts))
        for call, scope in _scopes(_tree(path)):
            if (kind := _kind(call)) is None or _passes_on(call, scope):
                continue
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            if kind and len(call.args) > 1:
                options["hint"] = call.args[1]
            hints = _texts(options["hint"], scope) if "hint" in options else []
            if kind:
                made = getattr(errors, kind)
                section, hint = made.section_of(module), (hints or [made.default_hint])[0]
            else:
                section, hint = errors.warning_section(module), ""
            said = call.args[1] if getattr(call.func, "id", "") == "Remark" else call.args[0]
            for text in _texts(said, scope) or [""]:
                listed.append(Message(f"{path}:{call.lineno}", section, text, hint))
    return tuple(listed)


def _passes_on(call: ast.Call, scope: ast.AST) -> bool:
    """Whether a call only passes on what its function was given to say."""
    given = {argument.arg for argument in scope.args.args} if isinstance(scope, ast.FunctionDef) else set()
    return isinstance(call.args[0], ast.Name) and call.args[0].id in given


def _entry(message: Message) -> str:
    def code(text: str) -> str:
        ticks = "``" if "`" in text else "`"
        return f"{ticks}{' '.join(text.split())}{ticks}"

    return f"- {code(message.text)}" + (f": {' '.join(message.hint.split())}" if message.hint.strip(_GAP) else "")


def block(section: str) -> str:
    """The list of a section's messages."""
    entries = {
        _entry(message) for message in messages() if message.section == section and message.text.strip(_GAP)
    }
    return "\n".join(sorted(entries, key=lambda entry: (entry.strip("-` …").lower(), entry)))


def updated(document: str) -> str:
    """``document`` with the list of each section made current."""

    def section(match: re.Match[str]) -> str:
        anchor = re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-")
        lists = re.compile(f"{_BEGIN}\n.*?{_END}", re.DOTALL)
        return match[0] if _BEGIN not in match[0] else lists.sub(
            lambda _: f"{_BEGIN}\n{block(anchor)}\n{_END}", match[0]
        )  # fmt: skip

    return re.sub(r"^## (.+)\n(?:(?!## ).*\n)*", section, document, flags=re.MULTILINE)


def main() -> None:
    """Checks the document, or writes it."""
    architecture.write_or_check(DOCUMENT, updated(DOCUMENT.read_text("utf-8")), "docs/troubleshooting.py")


if __name__ == "__main__":
    main()
