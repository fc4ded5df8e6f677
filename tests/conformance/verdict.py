"""Whether an engine runs a plan: its roles, and its log-probabilities beside those of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# A row is off where a log-probability of its next token differs by more, in nats.
TOLERANCE = 1e-2
# Rows that may be off: scores that tie at the edge of a selection fall either way.
SHARE_OFF = 0.01


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of each token, [..., vocabulary]; float64, in nats."""
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def shifted(pattern: str) -> str:
    """The pattern as an engine has it that counts layers wrong by one; the first layer has to be full."""
    return "F" + pattern[:-1]


@dataclass(frozen=True)
class Verdict:
    """What was compared.

    Args:
        plan: the plan's pattern, a letter per decoder layer.
        roles: what the engine's code makes of the settings.
        rows: that were compared; 0 where no logits were.
        rows_off: from transformers under each pattern, by its name.
        largest: difference from transformers under the plan, in nats.
    """

    plan: str
    roles: str
    rows: int = 0
    rows_off: Mapping[str, int] | None = None
    largest: float | None = None

    @property
    def fault(self) -> str | None:
        """What is wrong, None where the engine runs the plan."""
        if self.roles != self.plan:
            return f"its layers are {self.roles}, and the plan's {self.plan}"
        for name, off in (self.rows_off or {}).items():
            limit = SHARE_OFF * self.rows
            if name == "plan" and off >= limit:
                return f"{off} of {self.rows} rows are off under the plan, which should be fewer than {limit:g}"
            if name != "plan" and off < limit:
                return (
                    f"only {off} of {self.rows} rows tell the plan from {name}, which should be {limit:g} at least"
                )
        return None


def compared(plan: str, roles: str, logits: np.ndarray | None, references: Mapping[str, np.ndarray]) -> Verdict:
    """Holds an engine's answer against transformers.

    Args:
        plan: its pattern, a letter per decoder layer.
        roles: those of the engine's code.
        logits: of the engine, [windows, tokens, vocabulary or more]; None where it made none.
        references: transformers' logits of the same windows by pattern, one of them named "plan".
    """
    if logits is None:
        return Verdict(plan, roles)
    # Engines pad the vocabulary.
    answer = log_probabilities(logits[..., : references["plan"].shape[-1]])
    worst = {name: abs(answer - log_probabilities(logits)).max(-1) for name, logits in references.items()}
    # A figure that is not finite is off.
    rows_off = {name: int((~(row <= TOLERANCE)).sum()) for name, row in worst.items()}
    return Verdict(plan, roles, worst["plan"].size, rows_off, float(worst["plan"].max()))
