"""What chooses: the cost of a window under an objective, and from which windows it is made."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from ..evaluate import WindowLoss

Objective = Literal["expected-loss", "loss", "key-loss", "mix"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
# An answer's divergence is some ten times a text label's, and there is one probe a window: so both weigh alike.
PROBE_WEIGHT = 0.1


class ScoredWindow(NamedTuple):
    """A window under a pattern: what chooses, and what was measured, both per label."""

    cost: float
    losses: WindowLoss


def scored(objective: Objective, losses: WindowLoss, probe: WindowLoss | None = None) -> ScoredWindow:
    """The window with its cost under ``objective``.

    Args:
        objective: ``loss`` is Algorithm 1's mean cross entropy; ``expected-loss`` the same increase with labels
            drawn from the model itself and integrated out; ``key-loss`` weighs labels by what a long context
            tells of them; ``mix`` adds to the expected loss that of the answers of a probe.
        losses: of the window's text, per label.
        probe: of the probe that goes with it, per answer.
    """
    if objective == "loss":
        return ScoredWindow(losses.loss, losses)
    if objective == "key-loss":
        return ScoredWindow(losses.key_loss, losses)
    if objective == "mix" and probe is not None:
        return ScoredWindow(losses.divergence + PROBE_WEIGHT * probe.divergence, losses)
    return ScoredWindow(losses.divergence, losses)
