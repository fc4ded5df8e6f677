"""Greedy layer retention: drop one indexer at a time, each time the one whose cost stays lowest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import MeasurementError
from ...pattern import Pattern
from ..intervals import CONFIDENCE, Margin, margin
from ..losses import Difference, Evaluation, Measure, paired_cost


@dataclass(frozen=True)
class Step:
    """One committed removal.

    Args:
        removed: the site that turned shared.
        evaluation: the pattern after it, measured on all windows.
        runner_up: the site that came second of those measured on all windows; None where it was the only one.
        margin: how much dearer the runner-up is on the same windows.
        rivals: the other sites measured on all windows, the cheapest first.
        margins: how much dearer than the removed one every other candidate with a finite loss is: measured at
            this step, or as last seen at an earlier one, on the windows that it was seen on.
        undecided: those of them that these windows do not tell from the removed one.
        tied: other sites measured on all windows whose cost is within the noise floor of the chosen one's.
    """

    removed: int
    evaluation: Evaluation
    runner_up: int | None
    margin: Difference | None
    tied: tuple[int, ...]
    undecided: tuple[int, ...] = ()
    rivals: Mapping[int, Evaluation] = field(default_factory=dict)
    margins: Mapping[int, Margin] = field(default_factory=dict)

    @property
    def pattern(self) -> Pattern:
        """The pattern after the removal."""
        return self.evaluation.pattern


def exact_greedy(
    measure: Measure,
    sites: int,
    kept: int,
    noise_floor: float = 0.0,
    pinned: Collection[int] = (),
    confidence: float = CONFIDENCE,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Step]:
    """Algorithm 1 of arXiv 2603.12201, from all full down to ``kept`` full sites.

    At each step every remaining full site but the first is a candidate and is measured on all windows.
    Of equal costs the earlier site is removed. With the objective ``loss`` a pattern's cost is its LM loss, as
    in the paper; other objectives put theirs in its place.

    Args:
        measure: losses of patterns on the calibration windows.
        sites: how many sites the model has.
        kept: full sites at the end, at least 1.
        noise_floor: costs that differ by no more than this count as tied.
        pinned: sites that stay full.
        confidence: with which a step has to be told from its rivals to count as decided.
        on_step: told of each committed step.

    Raises:
        MeasurementError: no candidate of a step has a finite loss.
    """
    pattern, steps = Pattern.all_full(sites), list[Step]()
    while pattern.kept > kept and (field := candidates(pattern, pinned)):
        step = best_step(field, measure([pattern.share(site) for site in field]), noise_floor, confidence)
        on_step(step)
        steps.append(step)
        pattern = step.pattern
    return steps


def candidates(pattern: Pattern, pinned: Collection[int] = ()) -> list[int]:
    """Sites that may be turned shared next: full, neither the first nor pinned."""
    return [site for site in pattern.full[1:] if site not in pinned]


def candidate_evaluations(sites: int, kept: int, pinned: Collection[int] = ()) -> int:
    """How many evaluations the steps of ``exact_greedy`` take together."""
    return sum(full - len({0, *pinned}) for full in range(kept + 1, sites + 1))


def best_step(
    sites: Sequence[int], evaluations: Sequence[Evaluation], noise_floor: float, confidence: float = CONFIDENCE
) -> Step:
    """The removal with the lowest cost of those measured on all windows; of equal ones the earlier site's.

    Raises:
        MeasurementError: none has a finite loss.
    """
    ranked = sorted(
        (evaluation.cost, site, evaluation)
        for site, evaluation in zip(sites, evaluations, strict=True)
        if evaluation.finite
    )
    if not ranked:
        raise no_finite_loss(sites)
    cost, site, evaluation = ranked[0]
    second = ranked[1] if len(ranked) > 1 else None
    margins = {
        other: margin(evaluation.window_costs, rival.window_costs, evaluation.documents, confidence)
        for _, other, rival in ranked[1:]
    }
    return Step(
        removed=site,
        evaluation=evaluation,
        runner_up=second[1] if second else None,
        margin=paired_cost(second[2], evaluation) if second else None,
        rivals={other: rival for _, other, rival in ranked[1:]},
        undecided=undecided_sites(margins, noise_floor),
        margins=margins,
        tied=tuple(other for other_cost, other, _ in ranked[1:] if other_cost - cost <= noise_floor),
    )


def undecided_sites(margins: Mapping[int, Margin], noise_floor: float) -> tuple[int, ...]:
    """The sites that windows do not tell from the removed one, by how much dearer each is.

    A step without any is decided, about as seldom wrongly as ``1 - confidence``: the two-sided interval of *every*
    rival's margin is above the noise floor. No further correction for the number of candidates is needed, since
    the more there are, the closer the second comes (Gutmann and Maymin, 1987; Hung and Fithian, 2019).

    Measured (``bench_intervals.py``) where all candidates are equal, so that each decision is wrong, on 3 to 32
    documents: normal ones decide 4 to 5 % of steps with 2 candidates and below 1 % with 10 or 60; exponential ones
    with candidates of unlike spread up to 7, 1 to 2 and 0 to 1 %. The second alone would decide up to 7 % there
    whatever the number, a one-sided interval 6 to 11 % with 2 candidates.

    The bound is on steps. Where the best candidates are closer than a standard error, hardly any step is decided,
    and of those few many are wrong: no test tells what is all but equal.

    Args:
        margins: by rival, how much dearer it is.
        noise_floor: a rival dearer by no more than this is not told apart, nats per label.
    """
    return tuple(site for site, apart in margins.items() if not apart.beyond(noise_floor))


def no_finite_loss(sites: Sequence[int]) -> MeasurementError:
    """The error for a step none of whose candidates ``sites`` has a finite loss."""
    error = MeasurementError(
        f"every candidate's loss is NaN or infinite; sites tried: {', '.join(map(str, sites))}",
        hint="check the checkpoint's own loss, or load it with --dtype float32",
    )
    error.sites = tuple(sites)
    return error
