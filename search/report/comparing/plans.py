"""Plans that are compared: short names that tell them apart, and what was measured of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...plan.schema import HeldOutRecord, Plan, ProbesRecord
from ...price.decodes import DecodeRecord, decode_file, read_decodes
from ...price.prefills import PrefillRecord, prefill_file, read_prefills
from ..checks import CheckRecord, check_file, checks_of
from ..sections.budgets import heldout_of, probes_of


@dataclass(frozen=True)
class Compared:
    """A plan that is compared with others.

    Args:
        name: that tells it from the others.
        plan: itself.
        heldout: its check on held-out windows; None where there is none.
        probes: likewise on probes.
        checks: what eval measured of it.
        prefills: what bench did.
        decodes: likewise of output tokens.
    """

    name: str
    plan: Plan
    heldout: HeldOutRecord | None
    probes: ProbesRecord | None
    checks: CheckRecord | None
    prefills: PrefillRecord | None
    decodes: DecodeRecord | None


def compared(plans: Sequence[tuple[Path, Plan]], warn: Callable[[str], None]) -> list[Compared]:
    """``plans`` by the files that they are in, with what stands beside each.

    Raises:
        PlanError: what bench left beside one cannot be read.
    """
    names = short_names([path for path, _ in plans])
    together = []
    for name, (path, plan) in zip(names, plans, strict=True):
        checks, left_out = checks_of(plan, check_file(path))
        if left_out:
            warn(left_out)
        pattern = plan.result.pattern
        times = read_prefills(prefill_file(path), pattern), read_decodes(decode_file(path), pattern)
        measured = heldout_of(plan, checks), probes_of(plan, checks)
        together.append(Compared(name, plan, *measured, checks, *times))
    return together


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart; ``plan.json`` goes without saying."""
    parts = [path.absolute().parent.parts + ((path.stem,) if path.stem != "plan" else ()) for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differing_text(plans: Sequence[Compared]) -> str:
    """What makes figures of different plans no fair comparison; "" where all were measured alike."""
    said = {
        "checkpoints": {plan.plan.model.weights_sha256 for plan in plans},
        "tokens": {plan.plan.tokens.sha256 for plan in plans},
        "dtypes": {plan.plan.run.dtype for plan in plans},
        "devices": {plan.plan.run.device for plan in plans},
    }
    differing = [name for name, values in said.items() if len(values) > 1]
    return ", ".join(differing)
