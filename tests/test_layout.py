"""The house rules that a test can see: directions of import, sizes and packages."""

import ast
import graphlib
import statistics
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from random_models import ROOT

HEAVY = {"torch", "transformers", "accelerate", "datasets", "triton"}
NO_PART_OF_THE_PACKAGE = {"tests", "build", "outputs", "docs"}

# What each room may import besides itself: one way only. A folder that is not in this table fails a test.
_WORDS = ("errors", "pattern", "evaluate", "system")
_ROOMS = ("calibrate", "dsa", "search", "recipes")
MAY_IMPORT = {
    "errors": set(),
    "system": {"errors"},
    "pattern": {"errors"},
    "evaluate": {"errors", "pattern"},
    "version": set(),
    **{room: {*_WORDS} for room in _ROOMS},
    "commands": {*_WORDS, *_ROOMS, "version"},
    "cli": {"errors", "evaluate", "system", "recipes", "search", "commands", "version"},
    "recipes/tiny": {*_WORDS, "calibrate"},  # scripts beside the model they made
    "__main__": {"cli"},
    "__init__": {"pattern", "commands", "version"},
}
# What the command line reads beside the commands: numbers and fields of options, and plans before anything heavy.
READ_BY_CLI = {
    "recipes/numbers.py",
    "recipes/schema.py",
    "search/export/settings.py",
    "search/export/support.py",
    "search/plan/file.py",
}
# Likewise inside dsa: the checkpoint below, the stream of layers under the model, long windows beside it.
MAY_IMPORT_IN_DSA = {
    "overrides": set(),
    "chunks": set(),
    "caches": set(),
    "checkpoint": {"overrides", "chunks", "caches"},
    "stream": {"overrides", "chunks", "checkpoint"},
    "model": {"overrides", "chunks", "caches", "checkpoint", "stream"},
    "long": {"overrides", "chunks", "caches", "checkpoint"},
    "checks": {"overrides", "chunks", "caches", "checkpoint", "model", "long", "stream"},
    "distil": {"overrides", "chunks", "caches", "checkpoint", "model", "long", "stream"},
    "decode": {"overrides", "caches", "checkpoint", "model", "long"},
}
# And inside search, whose parts are files and folders.
MAY_IMPORT_IN_SEARCH = {
    "objective": set(),
    "losses": {"objective"},
    "intervals": {"losses"},
    "gate": {"intervals", "losses"},
    "resamples": set(),
    "sample_size": {"intervals"},
    "cost": set(),
    "stages": set(),
    "strategies": {"intervals", "losses"},
    "goal": {"gate", "objective", "strategies"},
    "search": {"gate", "goal", "losses", "objective", "resamples", "sample_size", "strategies"},
    "estimate": {"cost", "goal", "search"},
    "machine": {"cost", "estimate"},
    "plan": {"cost", "gate", "goal", "losses", "sample_size", "search", "strategies"},
    "distil": {"gate", "losses", "objective", "plan", "search"},
    "price": {"gate", "plan"},
    "report": {"export", "gate", "plan", "price", "stages"},
    "fingerprint": {"plan"},
    "run": {"card", "cost", "fingerprint", "plan", "report", "price"},
    "export": {"plan", "stages"},
    "card": {"export", "plan", "report"},
    "upkeep": {"intervals", "losses", "plan", "report", "run"},
}
# What breaks a rule today, by rule; to be emptied. A test fails where an entry breaks it no longer.
STILL_TO_MEND: dict[str, set[str]] = {}


@cache
def tracked():
    """Every file that is the project's, new ones too: no list of folders, so that no new folder escapes."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:  # no git checkout
        every = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        paths = [path for path in every if not any(part.startswith((".", "__pycache")) for part in path.parts)]
    else:
        paths = [Path(name) for name in listed.stdout.split("\0") if name]
    return sorted(path for path in paths if (ROOT / path).is_file())


PACKAGED = [path for path in tracked() if path.parts[0] not in NO_PART_OF_THE_PACKAGE]
FILES = [path for path in PACKAGED if path.suffix == ".py"]
MODULES = {path.with_suffix("").parts: path for path in FILES}


@cache
def tree(path):
    return ast.parse((ROOT / path).read_text("utf-8"))


# When an import runs: as the file is loaded, for a type checker alone, or as a function is called.
LOADED, TYPED, CALLED = "loaded", "typed", "called"


def import_statements(node, moment=LOADED):
    """Every import below ``node`` and when it runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, moment
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            assert not child.orelse, "an import that only a run sees hides from the type checker"
            yield from import_statements(child, TYPED)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from import_statements(child, CALLED if inside else moment)


@cache
def imports(path):
    """Pairs of what a file imports and when: our files, and names of other packages."""
    ours, foreign = set(), set()
    for statement, moment in import_statements(tree(path)):
        if isinstance(statement, ast.Import):
            names = [alias.name.split(".") for alias in statement.names]
        else:
            above = path.parent.parts[: len(path.parent.parts) - statement.level + 1] if statement.level else ()
            module = statement.module.split(".") if statement.module else []
            names = [[*above, *module, alias.name] for alias in statement.names]
            if statement.level:
                names = [["indexcache", *name] for name in names]
        for name in names:
            if name[0] == "indexcache":
                ours.add((file_of(tuple(name[1:])), moment))
            else:
                foreign.add((name[0], moment))
    return ours, foreign


def file_of(name):
    """The file that a dotted name is in: a module, or what a module or a package defines."""
    for end in range(len(name), -1, -1):
        for parts in (name[:end], (*name[:end], "__init__")):
            if parts in MODULES:
                return MODULES[parts]
    raise AssertionError(f"no file for {'.'.join(name)}")


def room(path):
    """The first part of a file's place: a room's name, that of a file at the root, or of the folder of scripts."""
    return "recipes/tiny" if path.parts[:2] == ("recipes", "tiny") else path.with_suffix("").parts[0]


def mended(rule, broken):
    """What breaks a rule and is not yet known to; nothing may be known that breaks it no longer."""
    known = STILL_TO_MEND.get(rule, set())
    assert known <= broken, f"mended, so take it off the list: {sorted(known - broken)}"
    return broken - known


def test_there_are_files_to_check():
    assert len(FILES) > 80
    assert {"dsa/long/kernels/scores.py", "commands/job/prepare.py"} <= {path.as_posix() for path in FILES}


def test_every_room_is_in_the_table():
    assert {room(path) for path in FILES} == set(MAY_IMPORT)
    for folder, table in (("dsa", MAY_IMPORT_IN_DSA), ("search", MAY_IMPORT_IN_SEARCH)):
        inside = {path.with_suffix("").parts[1] for path in FILES if room(path) == folder} - {"__init__"}
        assert inside == set(table)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_rooms_import_one_way(name):
    wrong = {
        f"{path} imports {other}"
        for path in FILES
        if room(path) == name
        for other, _ in imports(path)[0]
        if room(other) not in {name, *MAY_IMPORT[name]}
    }
    assert not mended("import against the table", wrong)


TABLES = {"dsa": MAY_IMPORT_IN_DSA, "search": MAY_IMPORT_IN_SEARCH}


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder in TABLES for name in TABLES[folder]])
def test_the_parts_of_a_room_import_one_way(folder, name):
    def part(path):
        return path.with_suffix("").parts[1]

    wrong = {
        f"{path} imports {other}"
        for path in FILES
        if room(path) == folder and part(path) == name
        for other, _ in imports(path)[0]
        if room(other) == folder and part(other) not in {name, *TABLES[folder][name]}
    }
    assert not mended(f"import against the table of {folder}", wrong)


def test_what_commands_share_imports_no_command():
    wrong = {
        f"{path} imports {other}"
        for path in FILES
        if path.parts[:2] == ("commands", "job")
        for other, _ in imports(path)[0]
        if other.parts[0] == "commands" and other.parts[1] != "job" and other.name != "__init__.py"
    }
    assert not mended("import of a command by what commands share", wrong)


def test_no_files_import_each_other_in_a_circle():
    """Imports for the type checker count too: two files that speak of each other's classes are one."""
    graph = {path: {other for other, moment in imports(path)[0] if moment != CALLED} - {path} for path in FILES}
    circles = set()
    while True:
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = error.args[1]  # its first and last file are the same
            circles.add(" and ".join(sorted(map(str, set(circle)))))
            graph[circle[1]].discard(circle[0])
        else:
            break
    assert not mended("circle of imports", circles)


def test_the_command_line_reads_little_beside_the_commands():
    read = {other for name in ("cli.py", "commands/times_cli.py") for other, _ in imports(Path(name))[0]}
    files = {other.as_posix() for other in read if room(other) in ("recipes", "search")}
    assert files == READ_BY_CLI


_LIGHT_ROOMS = ("search", "system", "cli", "errors", "pattern", "evaluate")
LIGHT = [path for path in FILES if room(path) in _LIGHT_ROOMS]
LIGHT += [Path("commands/job/options.py"), Path("recipes/schema.py"), Path("__init__.py"), Path("__main__.py")]
LIGHT += [Path("commands/inspect.py"), Path("commands/job/start.py"), Path("dsa/checkpoint/config.py")]
LIGHT += [path for path in FILES if path.is_relative_to("dsa/checkpoint/sizes")]


@pytest.mark.parametrize("path", LIGHT, ids=str)
def test_what_starts_fast_loads_no_torch(path):
    anywhere = room(path) == "search"  # not even later
    moments = (LOADED, CALLED) if anywhere else (LOADED,)
    heavy = {name for name, moment in imports(path)[1] if name in HEAVY and moment in moments}
    assert not heavy


def test_loading_all_of_them_loads_no_torch():
    """What the imports' own imports bring counts too, which only a process that runs them can tell."""
    parts = [path.with_suffix("").parts for path in LIGHT if path.name != "__main__.py"]
    names = [".".join(("indexcache", *part)).removesuffix(".__init__") for part in parts]
    code = f"import importlib, sys\n[importlib.import_module(name) for name in {names}]\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def length_of_body(function):
    """Lines of a function below its signature and docstring."""
    first = function.body[1 if ast.get_docstring(function) and len(function.body) > 1 else 0]
    return function.body[-1].end_lineno - first.lineno + 1


def is_kernel(function):
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_files_and_functions_are_short():
    lengths = {path.as_posix(): len((ROOT / path).read_text("utf-8").splitlines()) for path in FILES}
    assert statistics.median(lengths.values()) <= 200
    assert not mended("file above 500 lines", {path for path, length in lengths.items() if length > 500})
    long = {
        f"{path}:{node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if length_of_body(node) > 40 and not is_kernel(node)
    }
    assert not mended("function above 40 lines", long)


def test_folders_hold_few_files():
    sizes = Counter(path.parent.as_posix() for path in FILES)
    assert sizes.pop(".") <= 8
    sizes.pop("commands")  # a file a command
    assert not mended("folder above 12 files", {folder for folder, size in sizes.items() if size > 12})


def setuptools_settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]


def test_every_folder_is_a_package_that_is_shipped():
    holding = {path.parent for path in FILES if path.name == "__init__.py"}
    names = {".".join(("indexcache", *folder.parts)) for folder in holding}
    assert sorted(setuptools_settings()["packages"]) == sorted(names)
    # Scripts in a folder of data are shipped as data.
    without = {path.parent.as_posix() for path in FILES} - {folder.as_posix() for folder in holding}
    assert without == {"recipes/tiny"}


def test_every_file_of_data_is_shipped():
    shipped = set()
    for package, patterns in setuptools_settings()["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        shipped |= {path.relative_to(ROOT) for pattern in patterns for path in folder.glob(pattern)}
    data = {path for path in PACKAGED if path not in FILES and len(path.parts) > 1 and path.parts[0] != ".ci"}
    assert data - shipped == set()
    assert Path("py.typed") in shipped
    assert data, "there are recipes and templates at least"


def test_nothing_of_one_machine_is_tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = [name for name in listed.stdout.splitlines() if name.startswith(("outputs/", ".venv/"))]
    assert tracked == ["outputs/.gitkeep"]
