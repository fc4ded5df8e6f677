"""What distill is asked for: for which pattern, how long and from what indexers learn, and the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calibrate.sources import TextSource
from ..errors import OutputError, PlanError, SettingError, WindowError
from ..pattern import Pattern
from ..search.gate import Gate
from ..search.intervals import CONFIDENCE
from ..search.plan.cut import check_max_delta
from ..search.plan.schema import Plan
from ..system.files import is_there

STEPS, ROWS, WINDOWS_A_STEP = 400, 128, 4
OTHER_WINDOWS = 64
_LARGEST_RATE = 1.0
_SOURCE_FIELDS = ("dataset_subset", "dataset_split", "dataset_revision", "column")


@dataclass(frozen=True)
class DistilSettings:
    """How a plan's kept indexers are distilled.

    Args:
        pattern: whose kept indexers they are.
        out: folder of the new checkpoint.
        steps: of each indexer.
        rows: queries of each window.
        learning_rate: the highest; None for a short probe.
        seed: of rows and of the windows' order.
        text: to learn from; None for the plan's own calibration windows.
        windows: how many of that text.
        gate: what of the loss increase is held to a limit.
        max_delta: the limit, nats per token; None for none.
    """

    pattern: Pattern
    out: Path
    steps: int
    rows: int
    learning_rate: float | None
    seed: int
    text: TextSource | None
    windows: int
    gate: Gate
    max_delta: float | None

    @property
    def work(self) -> Path:
        """The folder beside ``out`` that a run works in until ``out`` is there."""
        place = self.out.resolve()
        return place.with_name(f"{place.name}.unfinished")


def learning_rate(text: str | float | None) -> float | None:
    """The learning rate that ``text`` says; None for auto.

    Raises:
        SettingError: it says none.
    """
    if text is None or text == "auto":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= _LARGEST_RATE:
        raise SettingError(f"--lr is {text!r}", hint="give auto, or a learning rate such as 0.005")
    return rate


def distil_settings(
    plan: Plan,
    out: Path,
    pattern: str | None,
    uniform: bool,
    steps: int,
    rows: int,
    rate: str | float | None,
    fields: Mapping[str, Any],
) -> DistilSettings:
    """What the options ask for, held against the plan; nothing heavy is imported.

    Raises:
        PlanError: the plan's indexers are distilled already, or it has no windows to check them on.
        OutputError: there is something in the folder to be written.
        SettingError: impossible values, or options that do not go together.
        PatternError: no pattern of the plan's model.
        WindowError: windows in which no indexer chooses.
    """
    _check_plan(plan)
    if is_there(out) and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{str(out)!r} is there already and not empty", hint="give another folder with --out")
    max_delta = fields.get("max_delta")
    check_max_delta(max_delta)
    for option, value in (("--steps", steps), ("--rows", rows)):
        if value < 1:
            raise SettingError(f"{option} is {value}", hint="give a number from 1 up")
    if fields.get("windows") == "auto":
        raise SettingError("--windows is auto, which is for search", hint="give a number of windows")
    text = _text(plan, fields)
    confidence = fields.get("confidence") or plan.search.confidence or CONFIDENCE
    return DistilSettings(
        pattern=_pattern(plan, pattern, uniform),
        out=out,
        steps=steps,
        rows=rows,
        learning_rate=learning_rate(rate),
        seed=fields.get("seed", plan.tokens.seed),
        text=text,
        windows=fields.get("windows", OTHER_WINDOWS),
        gate=Gate(fields.get("gate", "interval"), confidence),
        max_delta=max_delta,
    )


def _check_plan(plan: Plan) -> None:
    if plan.distilled is not None:
        raise PlanError(
            "the plan's indexers are distilled already",
            hint="give the plan that they were distilled from, and its checkpoint",
        )
    if not plan.tokens.heldout_windows:
        raise PlanError(
            "the plan has no held-out windows, on which distilled indexers are checked",
            hint="search again with --heldout 16",
        )
    width, window = plan.model.selection_width, plan.tokens.window
    if window <= width + 1:
        raise WindowError(
            f"the plan's windows have {window} tokens, in which indexers that select {width} choose nothing",
            hint=f"search again with --window {4 * width}",
        )


def _pattern(plan: Plan, text: str | None, uniform: bool) -> Pattern:
    """The pattern to distil for: the plan's, another one, or one spread evenly that keeps as many.

    Raises:
        SettingError: two are asked for, or one that shares nothing or a pinned layer.
        PatternError: no pattern of the plan's model.
    """
    sites, pinned = len(plan.model.site_layers), plan.pinned_sites
    if text is not None and uniform:
        raise SettingError("--pattern and --uniform name two patterns", hint="give one of them")
    pattern = plan.pattern
    if text is not None:
        pattern = Pattern.parse(text, sites)
    if uniform:
        pattern = Pattern.uniform(sites, plan.result.kept, pinned)
    if shared := sorted(set(pinned) - set(pattern.full)):
        layer = plan.model.site_layers[shared[0]]
        raise SettingError(f"the pattern shares layer {layer}, which the plan's search pinned")
    if not pattern.serving:
        raise SettingError(
            f"the pattern {pattern} shares no layer, so there is nothing to distil",
            hint="cut the plan to fewer indexers, or give --pattern",
        )
    return pattern


def _text(plan: Plan, fields: Mapping[str, Any]) -> TextSource | None:
    """Other text than the plan's windows, where options name it.

    Raises:
        SettingError: options of text without one.
    """
    named = {name.removeprefix("dataset_"): fields[name] for name in _SOURCE_FIELDS if name in fields}
    if "dataset" in fields:  # nothing that was said of the plan's dataset holds for another one
        return replace(TextSource(fields["dataset"]), **named)
    if named or "windows" in fields:
        option = "--windows" if "windows" in fields else f"--{next(iter(fields.keys() & set(_SOURCE_FIELDS)))}"
        raise SettingError(
            f"{option.replace('_', '-')} is of other text, and none was given: indexers learn from the plan's own "
            f"{plan.tokens.windows} calibration windows",
            hint="give --dataset too, or leave it out",
        )
    return None
