"""The house rules that a test can see: directions of import, sizes, and the README's tree."""

import ast
import statistics
import subprocess

import pytest
from random_models import ROOT

HEAVY = {"torch", "transformers", "accelerate", "datasets"}
ROOMS = ("calibrate", "dsa", "search")
FILES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.py", "calibrate/*.py", "dsa/*.py", "search/*.py", "recipes/**/*.py")
    for path in ROOT.glob(pattern)
)


def tree(path):
    return ast.parse((ROOT / path).read_text("utf-8"))


def imports(path):
    """Top-level names of other packages, and rooms of ours, that a file imports anywhere."""
    foreign, rooms = set(), set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            foreign |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            foreign.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            own_room = node.level == 1 and len(path.parts) > 1
            rooms.add(path.parts[0] if own_room else (node.module or "").split(".")[0])
    return foreign, rooms


def test_there_are_files_to_check():
    assert len(FILES) > 20


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "search"], ids=str)
def test_the_search_knows_no_torch(path):
    foreign, rooms = imports(path)
    assert not foreign & HEAVY
    assert not rooms & {"calibrate", "dsa"}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in ("calibrate", "dsa")], ids=str)
def test_calibrate_and_dsa_know_nothing_of_the_search(path):
    _, rooms = imports(path)
    assert not rooms & (set(ROOMS) - {path.parts[0]})


@pytest.mark.parametrize("path", ["pattern.py", "errors.py"])
def test_the_shared_words_import_no_room(path):
    _, rooms = imports((ROOT / path).relative_to(ROOT))
    assert not rooms & {*ROOMS, "recipes", "cli", "workflow"}


def length_of_body(function):
    """Lines of a function below its signature and docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return function.body[-1].end_lineno - first.lineno + 1


def test_files_and_functions_are_short():
    lengths = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path in FILES}
    assert statistics.median(lengths.values()) <= 250
    assert not {path: length for path, length in lengths.items() if length > 600}
    functions = [
        (path, node) for path in FILES for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)
    ]
    assert not [f"{path}:{node.name}" for path, node in functions if length_of_body(node) > 40]


def test_the_readmes_tree_says_what_the_files_say():
    readme = (ROOT / "README.md").read_text("utf-8")
    missing = []
    for path in FILES:
        purpose = (ast.get_docstring(tree(path)) or "no purpose sentence").splitlines()[0]
        if f"{path.name}" not in readme or purpose.rstrip(".") not in readme:
            missing.append(f"{path}: {purpose}")
    assert not missing, "README's tree lacks:\n" + "\n".join(missing)


def test_nothing_of_one_machine_is_tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = [name for name in listed.stdout.splitlines() if name.startswith(("outputs/", ".venv/"))]
    assert tracked == ["outputs/.gitkeep"]
