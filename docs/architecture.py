"""Writes the parts of architecture.md that follow from the code: the tree of files and the drawings of rooms.

    python docs/architecture.py            says what is not current, exit code 1 if anything is
    python docs/architecture.py --write    brings it up to date

The tree takes the first sentence of each file's docstring. The drawings take the imports, those inside
functions and those for the type checker too. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "architecture.md"
ROOMS = ("commands", "calibrate", "dsa", "search", "recipes", "system")
"""Folders of the package in the order of reading, which is that of the imports."""

_DOOR, _WORDS = "cli", "words"
_ROOT_FILES = {
    "__init__": _DOOR, "__main__": _DOOR, "cli": _DOOR,
    "pattern": _WORDS, "evaluate": _WORDS, "errors": _WORDS, "version": _WORDS,
}  # fmt: skip
_WIDTH = 28


def source_files() -> list[Path]:
    """The package's files, relative to its root: those at the root first, then room by room."""
    paths = [path.relative_to(ROOT) for path in ROOT.glob("*.py")]
    for room in ROOMS:
        paths += [path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py")]
    return sorted(paths, key=_order)


def _order(path: Path) -> tuple[object, ...]:
    rank = ROOMS.index(path.parts[0]) if len(path.parts) > 1 else -1
    folders = [(1, folder) for folder in path.parts[1:-1]]
    return rank, *folders, (0, path.name)


def purpose(path: Path) -> str:
    """The first sentence of a file's docstring, without its full stop.

    Raises:
        ValueError: the file has no docstring.
    """
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8")))
    if not docstring:
        raise ValueError(f"{path} does not open with a sentence of purpose")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].rstrip(".")


def tree() -> str:
    """A line a file: its name, indented below its folder, and its purpose."""
    lines, above = [], Path()
    for path in source_files():
        for depth, folder in enumerate(path.parts[:-1]):
            if path.parts[: depth + 1] != above.parts[: depth + 1]:
                lines.append(f"{'  ' * depth}{folder}/")
        above = path.parent
        name = f"{'  ' * (len(path.parts) - 1)}{path.name}"
        lines.append(f"{name:{_WIDTH}} {purpose(path)}")
    return "```\n" + "\n".join(lines) + "\n```"


def imported(path: Path) -> set[Path]:
    """The package's own files that a file imports anywhere; its root, which Python runs first anyway, left out."""
    targets = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = path.parents[node.level - 1]
        module = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
        targets |= {_file_of(module / alias.name) or _file_of(module) for alias in node.names}
    return {target for target in targets if target is not None and target != Path("__init__.py")}


def _file_of(module: Path) -> Path | None:
    candidates = (module.parent / f"{module.name}.py", module / "__init__.py")
    return next((path for path in candidates if (ROOT / path).is_file()), None)


def room(path: Path) -> str:
    """The room that a file is in; those at the root are the way in, or words that all rooms share."""
    return path.parts[0] if len(path.parts) > 1 else _ROOT_FILES.get(path.stem, path.stem)


def part(path: Path) -> str | None:
    """The part of a room: its folder, or the file where it lies directly in the room; None for the room's own."""
    name = path.parts[1] if len(path.parts) > 1 else ""
    return None if not name or name == "__init__.py" else name.removesuffix(".py")


def arrows(files: Iterable[Path], name: Callable[[Path], str | None]) -> list[tuple[str, str]]:
    """Who imports whom, by what ``name`` calls a file; files that it calls None are left out."""
    chosen = list(files)
    pairs = {(name(path), name(target)) for path in chosen for target in imported(path) & set(chosen)}
    return sorted((start, end) for start, end in pairs if start and end and start != end)


def drawing(pairs: Iterable[tuple[str, str]], labels: dict[str, str] | None = None) -> str:
    """A Mermaid block, which GitHub and most editors draw."""
    pairs, labels = list(pairs), labels or {}
    nodes = sorted({node for pair in pairs for node in pair})
    boxes = [f'  {node}["{labels.get(node, node)}"]' for node in nodes]
    return "\n".join(["```mermaid", "flowchart TD", *boxes, *(f"  {a} --> {b}" for a, b in pairs), "```"])


def house() -> str:
    """The drawing of all rooms."""
    labels = {_DOOR: "cli*.py, __main__.py, __init__.py", _WORDS: "pattern.py, evaluate.py, errors.py, version.py"}
    rooms = {name: f"{name}/" for name in ROOMS}
    return drawing(arrows(source_files(), room), labels | rooms)


def parts_of(name: str) -> str:
    """The drawing of one room's parts."""
    files = [path for path in source_files() if path.parts[0] == name]
    labels = {path.name: f"{path.name}/" for path in (ROOT / name).iterdir() if path.is_dir()}
    return drawing(arrows(files, part), labels)


def blocks() -> dict[str, str]:
    """What the document holds between its marks, by their name."""
    return {
        "tree": tree(),
        "rooms": house(),
        "dsa": parts_of("dsa"),
        "search": parts_of("search"),
    }


def updated(document: str) -> str:
    """``document`` with what stands between its marks made current.

    Raises:
        ValueError: a pair of marks is missing.
    """
    for name, block in blocks().items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, first, rest = document.partition(begin)
        _, last, after = rest.partition(end)
        if not (first and last):
            raise ValueError(f"architecture.md lacks the marks of {name}")
        document = f"{before}{begin}{block}\n{end}{after}"
    return document


def write_or_check(document: Path, text: str, script: str) -> None:
    """Writes ``text`` with ``--write``; else ends with 1 and names ``script`` where ``document`` differs."""
    if "--write" in sys.argv[1:]:
        document.write_text(text, "utf-8")
    elif not document.is_file() or document.read_text("utf-8") != text:
        sys.exit(f"docs/{document.name} is not current: run python {script} --write")


def main() -> None:
    """Checks the document, or writes it."""
    write_or_check(DOCUMENT, updated(DOCUMENT.read_text("utf-8")), "docs/architecture.py")


if __name__ == "__main__":
    main()
