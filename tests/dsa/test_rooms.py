"""The rooms of dsa: checkpoint below, model and long beside each other, checks above both."""

import ast
from pathlib import Path

import pytest

import indexcache.dsa

DSA = Path(indexcache.dsa.__file__).parent
# What the modules of a folder may import of dsa; "" are the files at its root, which all may use.
ALLOWED = {
    "": {""},
    "checkpoint": {"", "checkpoint"},
    "model": {"", "checkpoint", "model"},
    "long": {"", "checkpoint", "long"},
    "checks": {"", "checkpoint", "model", "long", "checks"},
}


def room(parts):
    """The folder of dsa that a dotted name leads to: that of a module at its root is ""."""
    return parts[0] if parts and (DSA / parts[0]).is_dir() else ""


def imports(path):
    """The rooms of dsa that a file imports from, wherever in it."""
    package = ("dsa", *path.relative_to(DSA).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            for name in node.names:
                target = (*base, *(node.module or name.name).split("."))
                if target[0] == "dsa":
                    yield room(target[1:])


@pytest.mark.parametrize("path", sorted(DSA.rglob("*.py")), ids=lambda path: path.relative_to(DSA).as_posix())
def test_imports_go_downwards(path):
    assert set(imports(path)) <= ALLOWED[room(path.relative_to(DSA).parts)]


def test_every_folder_is_a_room():
    folders = {path.name for path in DSA.iterdir() if (path / "__init__.py").is_file()}
    assert folders == {name for name in ALLOWED if name}
