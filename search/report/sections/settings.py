"""Settings to paste, engine by engine, and how the text follows from the pattern of whatever budget is picked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ....errors import IndexcacheError
from ....pattern import indexer_types
from ...export.engines import ENGINES
from ...export.settings import Export, export
from ...export.support import Engine, Serving
from ...plan.schema import Plan

# A list of roles as JSON and Python write it, whatever stands between its words.
_ROLES = re.compile(r"""(["'])(?:full|shared)\1(?:,\s*\1(?:full|shared)\1)*""")

Piece = str | tuple[str, ...]
"""A part of a text: as it is, or made from the pattern: its letters, or its roles with a quote and a separator."""
_LETTERS: tuple[str, ...] = ("letters",)


@dataclass(frozen=True)
class EngineSettings:
    """What is pasted into one engine.

    Args:
        name: as given to ``--to``.
        title: as its makers write it.
        paste: for the plan's own pattern; why there is nothing to paste, where ``able`` is off.
        able: whether the engine takes the plan.
        remarks: what the user should know.
        by_site: a letter stands for a site, not for a decoder layer.
        pieces: the paste, with what follows from the pattern left open; none where texts differ otherwise.
        others: by full sites what is pasted where ``pieces`` do not say it.
    """

    name: str
    title: str
    paste: str
    able: bool = True
    remarks: tuple[str, ...] = ()
    by_site: bool = False
    pieces: tuple[Piece, ...] = ()
    others: Mapping[int, str] = field(default_factory=dict)


def engine_settings(plan: Plan, budgets: Sequence[Plan]) -> list[EngineSettings]:
    """The settings of every engine that shares in the plan's family; none where its checkpoint lacks indexers.

    Args:
        plan: as it is.
        budgets: the same with the pattern of every budget.
    """
    if plan.lacks_indexers:
        return []
    family = plan.model.model_type.removesuffix("_text")
    return [_settings(plan, budgets, engine) for engine in ENGINES.values() if family in engine.families]


def _settings(plan: Plan, budgets: Sequence[Plan], engine: Engine) -> EngineSettings:
    exported = _exported(plan, engine.name)
    if isinstance(exported, str):
        return EngineSettings(engine.name, engine.title, exported, able=False)
    by_site = engine.families[plan.model.model_type.removesuffix("_text")].letters == "sites"
    pieces = _pieces(exported.paste, exported.pattern)
    others = {}
    for budget in budgets:
        other = _exported(budget, engine.name)
        text = other if isinstance(other, str) else other.paste
        if text != assembled(pieces, budget.result.pattern if by_site else budget.result.layer_pattern):
            others[budget.result.kept] = text
    return EngineSettings(
        engine.name,
        engine.title,
        exported.paste,
        remarks=_remarks(exported, plan),
        by_site=by_site,
        pieces=pieces,
        others=others,
    )


def _exported(plan: Plan, engine: str) -> Export | str:
    """The engine's settings, or why there are none."""
    try:
        return export(plan, engine, Serving(elsewhere=True))
    except IndexcacheError as error:
        return f"# {error.line()}\n"


def _remarks(exported: Export, plan: Plan) -> tuple[str, ...]:
    """The remarks that hold at every budget: none that spells the pattern."""
    spelled = (plan.result.pattern, plan.result.layer_pattern)
    return tuple(
        remark.text for remark in exported.warnings if not any(pattern in remark.text for pattern in spelled)
    )


def _pieces(text: str, pattern: str) -> tuple[Piece, ...]:
    """``text`` with its spellings of ``pattern`` left open."""
    pieces: list[Piece] = []
    roles, end = indexer_types(pattern), 0
    spelled = re.compile(f"{re.escape(pattern)}|{_ROLES.pattern}")
    for match in spelled.finditer(text):
        if match[0] == pattern:
            piece = _LETTERS
        else:
            quote = match[1]
            separator = match[0].split(quote)[2] if len(roles) > 1 else ""
            piece = ("roles", quote, separator)
            if assembled([piece], pattern) != match[0]:
                continue
        pieces += [text[end : match.start()], piece]
        end = match.end()
    return (*pieces, text[end:])


def assembled(pieces: Sequence[Piece], pattern: str) -> str:
    """The text that ``pieces`` make with ``pattern``, as the page's script makes it too."""
    return "".join(piece if isinstance(piece, str) else _spelled(piece, pattern) for piece in pieces)


def _spelled(piece: tuple[str, ...], pattern: str) -> str:
    if piece == _LETTERS:
        return pattern
    _, quote, separator = piece
    return separator.join(f"{quote}{role}{quote}" for role in indexer_types(pattern))
