"""What verify is asked to measure of an old plan on a new checkpoint, and what it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SettingError
from ..evaluate import HELD_OUT
from ..search.plan.cut import check_max_delta
from ..search.plan.schema import Plan
from .eval_settings import EvalSettings, eval_settings


@dataclass(frozen=True)
class VerifySettings:
    """What is measured, and what ends in searching again.

    Args:
        asked: windows, gate and limit, as eval has them.
        tolerance: nats per token by which the increase may surely have grown, or another pattern surely be better.
        swaps: how many patterns one swap away are measured too.
    """

    asked: EvalSettings
    tolerance: float
    swaps: int


def verify_settings(
    plan: Plan, model: str | None, tolerance: float, swaps: int, fields: Mapping[str, Any]
) -> VerifySettings:
    """What verify's options ask for. Nothing heavy is imported.

    Raises:
        SettingError: impossible values, or no new checkpoint.
    """
    if not model:
        raise SettingError("--model was not given: it names the new checkpoint")
    check_max_delta(tolerance, "--tolerance", "nats per token, e.g. 0.005")
    return VerifySettings(eval_settings(plan, HELD_OUT, False, fields), tolerance, swaps)
