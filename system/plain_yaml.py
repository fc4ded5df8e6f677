"""Reads YAML as settings need it: no aliases, no tags, and each key a word, given once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .documents import DEEPEST, LONGEST_NUMBER, Kind, read_document


def read_yaml(path: Path, kind: Kind, largest: int) -> Any:
    """The YAML document in ``path``: one, without anchors, aliases and tags.

    Raises:
        FileNotFoundError: there is no such file.
        IndexcacheError: of ``kind``, as for ``read_json``.
    """
    return read_document(path, kind, largest, "YAML", _parse)


def _parse(text: str) -> Any:
    """The one document in ``text``; ``ValueError`` for anything else, with the line where it is known."""
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


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
        if self._depth > DEEPEST:
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
                problem = f"key {key.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        if ":" in node.value:  # to YAML 1.1 a number of base 60: 1:4 would be 64
            return str(node.value)
        if len(node.value) > LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(
                problem=f"a number of {len(node.value)} digits", problem_mark=node.start_mark
            )
        return int(super().construct_yaml_int(node))

    def construct_decimal(self, node: yaml.ScalarNode) -> float | str:
        if ":" in node.value:
            return str(node.value)
        return float(super().construct_yaml_float(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_decimal)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_whole)
