"""What eval is asked to measure of a plan: its own windows or others, probes, and the limits that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..calibrate.probes import KINDS
from ..calibrate.sources import TextSource
from ..errors import SettingError
from ..evaluate import CALIBRATION, HELD_OUT
from ..recipes.schema import Recipe
from ..search.gate import Gate
from ..search.intervals import CONFIDENCE
from ..search.plan.cut import check_max_delta
from ..search.plan.schema import Plan

# Of eval's options those that ask for other windows than the plan's own, and of these what says where text is.
_SOURCE_FIELDS = ("dataset_subset", "dataset_split", "dataset_revision", "column")
_TEXT_FIELDS = {"window", "windows", "dataset", *_SOURCE_FIELDS}


@dataclass(frozen=True)
class OtherText:
    """Other windows than a plan's own.

    Args:
        source: of their text.
        length: tokens per window.
        count: how many windows.
        beyond_positions: whether they may be longer than the model's positions.
    """

    source: TextSource
    length: int
    count: int
    beyond_positions: bool


@dataclass(frozen=True)
class EvalSettings:
    """What is measured of a plan, and what it is held to.

    Args:
        group: of the plan's own windows; held-out ones of another text.
        text: other windows; None for the plan's own.
        probes: of each kind, where other windows are to have some; of its own windows a plan has them or not.
        with_probes: whether probes are measured too.
        gate: what of a loss increase is held to a limit.
        max_delta: the limit, nats per token; None for none.
        max_probe_delta: likewise of probes, nats per answer token.
        fingerprint: whether the plan's fingerprint is measured and written beside it.
        with_curve: whether every budget of the plan is measured too, and its own by position in the window.
        warnings: of options that do nothing.
    """

    group: str
    text: OtherText | None
    probes: int
    with_probes: bool
    gate: Gate
    max_delta: float | None
    max_probe_delta: float | None
    fingerprint: bool = False
    with_curve: bool = False
    warnings: tuple[str, ...] = ()


def eval_settings(
    plan: Plan,
    group: str,
    with_probes: bool,
    fields: Mapping[str, Any],
    with_curve: bool = False,
    fingerprint: bool = False,
) -> EvalSettings:
    """What eval's options ask for; where they are silent, the plan says it. Nothing heavy is imported.

    Raises:
        SettingError: impossible values, or options that do not go together.
    """
    if group not in (HELD_OUT, CALIBRATION):
        raise SettingError(f"--on is {group!r}", hint="give heldout or calibration")
    max_delta, max_probe_delta = fields.get("max_delta"), fields.get("max_probe_delta")
    check_max_delta(max_delta)
    check_max_delta(max_probe_delta, "--max-probe-delta", "nats per answer token, e.g. 0.1")
    text = _other_text(plan, fields)
    if text is not None and group != HELD_OUT:
        raise SettingError(
            f"--on {group} is of the plan's own windows, and other windows were asked for", hint="leave --on out"
        )
    if text is not None and fingerprint:
        raise SettingError(
            "--fingerprint is of the plan's own windows, and other windows were asked for",
            hint="give it without --window, --windows and --dataset",
        )
    if with_curve and (text is not None or group != HELD_OUT):
        raise SettingError(
            "--curve is of the plan's own held-out windows, and others were asked for",
            hint="leave --curve out, or give nothing that asks for other windows",
        )
    is_idle = "gate" in fields and max_delta is None and max_probe_delta is None
    confidence = fields.get("confidence") or plan.search.confidence or CONFIDENCE
    return EvalSettings(
        group=group,
        text=text,
        probes=plan.tokens.probes // len(KINDS) or Recipe.probes,
        with_probes=with_probes or max_probe_delta is not None,
        gate=Gate(fields.get("gate", "interval"), confidence),
        max_delta=max_delta,
        max_probe_delta=max_probe_delta,
        fingerprint=fingerprint,
        with_curve=with_curve,
        warnings=("--gate does nothing without --max-delta or --max-probe-delta",) if is_idle else (),
    )


def _other_text(plan: Plan, fields: Mapping[str, Any]) -> OtherText | None:
    """The windows that options ask for; None for the plan's own."""
    if not fields.keys() & _TEXT_FIELDS:
        return None
    if fields.get("windows") == "auto":
        raise SettingError("--windows is auto, which is for search", hint="give a number of windows")
    tokens = plan.tokens
    named = {name.removeprefix("dataset_"): fields[name] for name in _SOURCE_FIELDS if name in fields}
    source = TextSource(tokens.dataset, tokens.subset, tokens.split, tokens.column, tokens.revision)
    if "dataset" in fields:  # nothing that was said of the plan's dataset holds for another one
        source = TextSource(fields["dataset"])
    return OtherText(
        source=replace(source, **named),
        length=fields.get("window") or tokens.window,
        count=fields.get("windows") or tokens.heldout_windows or Recipe.heldout,
        beyond_positions=fields.get("beyond_positions", False),
    )
