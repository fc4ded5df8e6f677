"""Reads small JSON and YAML documents that anyone may have written: bounded, unambiguous, and safe to show."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import ValidationError

from ..errors import IndexcacheError, escaped, one_line, steers
from .files import refuse_pointer

Kind: TypeAlias = type[IndexcacheError]
_DEEPEST = 32
_LONGEST_NUMBER = 40


def read_bytes(path: Path, kind: Kind, largest: int) -> bytes:
    """The content of a regular file; never waits for a pipe, nor reads a device without end.

    Raises:
        FileNotFoundError: there is none.
        IndexcacheError: of ``kind``: no regular file, larger than ``largest``, or unreadable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise kind(f"{str(path)!r} is no regular file", hint="a file belongs there")
            content = file.read(largest + 1) if found.st_size <= largest else b""
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(f"{str(path)!r} cannot be read: {reason}") from error
    if max(found.st_size, len(content)) > largest:
        size = f"{largest >> 20} MiB" if largest >> 20 else f"{largest >> 10} KiB"
        raise kind(f"{str(path)!r} is larger than {size}, which is more than such a file takes")
    refuse_pointer(path, kind)
    return content


def read_json(path: Path, kind: Kind, largest: int) -> Any:
    """The JSON document in ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        IndexcacheError: of ``kind``: unreadable, not JSON, a key twice, a number or a depth beyond reason, or text
            that a terminal cannot be shown.
    """
    return _document(path, kind, largest, "JSON", parse_json)


def read_yaml(path: Path, kind: Kind, largest: int) -> Any:
    """The YAML document in ``path``: one, without anchors, aliases and tags.

    Raises:
        FileNotFoundError: there is no such file.
        IndexcacheError: of ``kind``, as for ``read_json``.
    """
    return _document(path, kind, largest, "YAML", lambda text: yaml.load(text, _PlainLoader))


def _document(path: Path, kind: Kind, largest: int, language: str, parse: Callable[[str], Any]) -> Any:
    content = read_bytes(path, kind, largest)
    try:
        document = parse(content.decode("utf-8-sig"))
        check_showable(document)
    except UnicodeDecodeError as error:
        raise kind(f"{str(path)!r} is not UTF-8: byte {error.start}", hint="save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise kind(f"{str(path)!r} is not YAML that can be read: {line}{error.problem or error}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise kind(f"{str(path)!r} is not {language} that can be read: {reason}") from error
    return document


def parse_json(text: str) -> Any:
    """``text`` as JSON of which nothing can be read in two ways.

    Raises:
        ValueError: not JSON, a key twice, NaN, or a number of absurd length.
        RecursionError: nested too deep.
    """
    return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_short_int)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {name!r} stands there twice")
        found[name] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _short_int(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


class _PlainLoader(yaml.SafeLoader):
    """YAML as settings need it: aliases could blow a few lines up to gigabytes, tags make objects."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not allowed", problem_mark=event.start_mark
            )
        if event.tag is not None:
            raise yaml.MarkedYAMLError(problem="tags are not allowed", problem_mark=event.start_mark)
        if self._depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith(":str"):
                raise yaml.MarkedYAMLError(problem="a key that is no word", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"key {key.value!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(
                problem=f"a number of {len(node.value)} digits", problem_mark=node.start_mark
            )
        return int(super().construct_yaml_int(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def check_showable(document: Any) -> None:
    """Refuses a document nested beyond reason, or with text that would do more to a terminal than appear on it.

    Raises:
        ValueError: names the field.
    """
    left: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while left:
        place, value = left.pop()
        if len(place) > _DEEPEST:
            raise ValueError("nested too deep")
        if isinstance(value, dict):
            for name in value:
                _check_text(str(name), (*place, "a key"))
            left += [((*place, str(name)), each) for name, each in value.items()]
        elif isinstance(value, list):
            left += [((*place, str(number)), each) for number, each in enumerate(value)]
        elif isinstance(value, str):
            _check_text(value, place)


def _check_text(text: str, place: tuple[str, ...]) -> None:
    if not text.isprintable() and (found := next((each for each in text if steers(each)), None)):
        raise ValueError(f"field {'.'.join(place) or 'of the whole'} holds the character {escaped(found)}")


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The first field that a document has wrong, by its dotted path, and what is wrong with it."""
    first = error.errors(include_url=False, include_context=False)[0]
    return one_line(".".join(map(str, first["loc"]))), one_line(first["msg"].removeprefix("Value error, "))
