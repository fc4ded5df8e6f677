"""Functions of an installed package, without importing it: most of what its files import needs a GPU."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from importlib.metadata import distribution
from typing import Any


def functions(package: str, file: str, names: Iterable[str], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The functions of these names, as they stand in the package's file.

    Args:
        package: as it was installed.
        file: inside it, as in ``sglang/srt/configs/model_config.py``.
        names: of functions, or of methods, which are static then.
        beside: what else stands in the file, as far as they use it.

    Raises:
        LookupError: the file has none of a name.
    """
    path = str(distribution(package).locate_file(file))
    with open(path, encoding="utf-8") as text:  # noqa: PTH123
        module = ast.parse(text.read())
    defined = {node.name: node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
    missing = [name for name in names if name not in defined]
    if missing:
        raise LookupError(f"{file} of {package} has no {missing[0]}")
    wanted = [defined[name] for name in names]
    for function in wanted:
        # Caches and the like, and types that nobody here imports.
        function.decorator_list = []
        function.returns = None
        for argument in ast.walk(function.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
    space = dict(beside)
    exec(compile(ast.Module(wanted, []), path, "exec"), space)
    return space
