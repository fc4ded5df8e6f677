"""What a search is after, and how it goes about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import SettingError
from ..pattern import Pattern, kept_sites
from .gate import GateKind
from .objective import Objective
from .strategies.blocks import check_blocks
from .strategies.race import STANDARD_ERRORS


@dataclass(frozen=True)
class Goal:
    """How far to search and which step to pick; exactly one of ``keep`` and ``max_delta`` is set.

    Args:
        keep: fraction of sites that stay full.
        max_delta: pick the sparsest pattern whose loss increase, in nats per label, is at most this.
        to_one: search on as far as sites can be shared, whatever is picked.
    """

    keep: float | None = None
    max_delta: float | None = None
    to_one: bool = False


@dataclass(frozen=True)
class Method:
    """How to search.

    Args:
        strategy: ``fast``, ``exact``, ``blocks``, ``dp``, or ``distilled``: ``fast``, every pattern measured with
            indexers distilled for it.
        objective: what chooses.
        surrogate: which layer costs are measured: ``fisher``, ``error`` or ``none``.
        confidence: of intervals, of decided steps, and of what is held to a limit.
        pinned: sites that stay full.
        standard_errors: how much worse a candidate must be to leave a race early.
        blocks: number of blocks, for the strategy of that name.
        refine_rounds: swaps at most after the removals; 0 for none.
        student_steps: training steps of each indexer that is distilled while searching.
        older: patterns of an older plan by their number of full sites, from which refinement starts too.
        layer_costs: ``[windows][sites][sites]``, what a later site costs under an earlier one's selection.
        gate: what ``Goal.max_delta`` holds of a loss increase: the upper end of its interval, or the estimate.
        auto_windows: whether the search begins with few windows and takes more until the plan is decided.
        order: sites in the order in which an earlier search removed them, tried first by ``fast``.
        curve: whether baselines are measured at every number of full sites that the search reaches.
        overlap_matrix: ``[sites][sites]`` share of keys selected alike, to measure overlap patterns too.
    """

    strategy: str = "fast"
    objective: Objective = "expected-loss"
    surrogate: str = "none"
    confidence: float = 0.95
    pinned: tuple[int, ...] = ()
    standard_errors: float = STANDARD_ERRORS
    blocks: int = 1
    refine_rounds: int = 0
    student_steps: int = 50
    older: Mapping[int, Pattern] = field(default_factory=dict)
    layer_costs: Sequence[Sequence[Sequence[float]]] | None = None
    gate: GateKind = "interval"
    auto_windows: bool = False
    order: tuple[int, ...] = ()
    curve: bool = False
    overlap_matrix: Sequence[Sequence[float]] | None = None

    def always_full(self, sites: int) -> frozenset[int]:
        """The sites that stay full whatever is measured: the first, the pinned, and each block's first."""
        starts = Pattern.uniform(sites, self.blocks).full if self.strategy == "blocks" else (0,)
        return frozenset((*starts, *self.pinned))

    @property
    def costs_choose(self) -> bool:
        """Whether the pattern picked depends on layer costs, and is not just measured beside theirs."""
        ordered = self.strategy == "fast" and not self.order
        return bool(self.layer_costs) and (self.strategy == "dp" or ordered or self.refine_rounds > 0)

    @property
    def distils(self) -> bool:
        """Whether every pattern is measured with indexers distilled for it."""
        return self.strategy == "distilled"

    def deepest(self, goal: Goal, sites: int) -> int:
        """How many full sites the search goes down to."""
        if goal.to_one or goal.keep is None:
            return len(self.always_full(sites))
        return kept_sites(sites, goal.keep)

    def check(self, goal: Goal, sites: int) -> None:
        """Refuses a goal that keeps fewer sites than have to stay full, and windows that nothing could decide.

        Raises:
            SettingError: says how many of how many, or what does not go together.
        """
        if self.strategy == "dp" and self.auto_windows:
            raise SettingError(
                "--windows auto takes windows until the steps are decided, but --strategy dp has no steps",
                hint="give a number of windows, or --strategy fast",
            )
        kept = sites if goal.keep is None else kept_sites(sites, goal.keep)
        if self.strategy == "blocks":
            check_blocks(self.blocks, sites, kept)
        fewest = len(self.always_full(sites))
        if kept < fewest:
            raise SettingError(
                f"{fewest} of {sites} sites have to stay full (the first and those pinned), but keep "
                f"{goal.keep:g} leaves {kept}",
                hint="keep more, or pin fewer",
            )
