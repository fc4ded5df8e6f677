"""One search: what chooses (baseline, noise floor, removals, refinement), then what is measured beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..errors import MeasurementError
from ..evaluate import (
    CALIBRATION,
    HELD_OUT,
    HELD_OUT_PROBES,
    PROBES,
    REFINEMENT,
    Evaluate,
    PatternWindowLosses,
    Request,
)
from ..pattern import Pattern, kept_sites, layer_ranges
from .gate import Gate, measured_increase
from .goal import Goal, Method
from .losses import Evaluation, Look, Measurements, cost_increases, effective_documents, noise_floor
from .objective import ScoredWindow, scored
from .resamples import kept_chances
from .sample_size import Choice, Outlook, Tie, look_confidence, look_count, outlook
from .strategies.blocks import blocks_greedy
from .strategies.dp import Costs, dp_patterns, mean_costs, removal_order
from .strategies.fast import fast_greedy, look_again
from .strategies.greedy import Step, candidate_evaluations, exact_greedy
from .strategies.overlap import overlap_patterns
from .strategies.refine import Descent, Swap, refine

# Windows at first, where more are taken until the plan is decided.
_FIRST_LOOK = 8


@dataclass(frozen=True)
class Comparison:
    """A pattern beside all full, uniform interleaving and, if known, that of layer costs, on the same windows."""

    full: Evaluation
    plan: Evaluation
    uniform: Evaluation
    surrogate: Evaluation | None = None


@dataclass(frozen=True)
class Findings:
    """Everything a search measured.

    Args:
        baseline: all sites full.
        noise_floor: in what chooses, per label, from measuring a pattern again in another shape.
        steps: the removals, from all full downwards.
        descents: what refinement made of each start, on its own windows, the best first; empty without it.
        swaps: of the best descent, measured on the calibration windows.
        surrogate: the patterns that dynamic programming over layer costs gives, as far as measured.
        chosen: the pattern picked, measured on the calibration windows.
        search_layer_windows: decoder-layer executions of the removals and swaps alone, over all looks.
        algorithm_1_evaluations: of patterns on all windows, that Algorithm 1 takes to as few full sites.
        windows: calibration windows that were used.
        kept_chances: how often each site stays full when documents are drawn anew; empty where that is not known,
            and where the pattern picked is no step's.
        outlook: what stands between the removals and a decided plan; None before it was looked at.
        auto_windows: whether windows were added until the plan was decided, or more would have decided nothing.
        uniform: patterns spread evenly around the pinned sites, one per number of full sites that was asked for.
        overlap: the patterns that overlap alone would choose, likewise; empty unless asked for.
        heldout: the check on other windows; None where there are none.
        probes: the check on the answers of probes; None where there are none.
    """

    baseline: Evaluation
    noise_floor: float
    steps: tuple[Step, ...]
    descents: tuple[Descent, ...]
    swaps: tuple[Swap, ...]
    surrogate: tuple[Evaluation, ...]
    chosen: Evaluation
    search_layer_windows: int
    algorithm_1_evaluations: int
    windows: int
    uniform: tuple[Evaluation, ...] = ()
    overlap: tuple[Evaluation, ...] = ()
    kept_chances: tuple[float, ...] = ()
    outlook: Outlook | None = None
    auto_windows: bool = False
    heldout: Comparison | None = None
    probes: Comparison | None = None

    @property
    def ties(self) -> tuple[Tie, ...]:
        """Of a removed and a kept site, which the windows used do not tell apart."""
        return self.outlook.ties if self.outlook else ()

    @property
    def decided(self) -> bool | None:
        """Whether the windows that were added decided the plan; None where their number was fixed."""
        return self.outlook.decided if self.outlook and self.auto_windows else None


@dataclass(frozen=True)
class SearchProgress:
    """What is called as a search goes on.

    Args:
        step: after each removal.
        swap: after each swap of refinement.
        look: before each search of ``--windows auto``, with which one it is, from 1, and on how many windows.
    """

    step: Callable[[Step], None] = lambda step: None
    swap: Callable[[Swap], None] = lambda swap: None
    look: Callable[[int, int], None] = lambda number, windows: None


@dataclass(frozen=True)
class Problem:
    """What is searched, on which windows, and what measures them.

    Args:
        evaluate: losses of patterns on the windows.
        labels: of each group, how many labels each of its windows has.
        documents: of each group, the document that each of its windows is from.
        sites: how many sites the model has.
        goal: how far to go and what to pick.
        method: how to go about it.
        layer_windows: counts decoder-layer executions so far.
        site_layers: absolute ids of the sites, for errors that name some; site numbers by default.
    """

    evaluate: Evaluate
    labels: Mapping[str, Sequence[int]]
    documents: Mapping[str, Sequence[int]]
    sites: int
    goal: Goal
    method: Method
    layer_windows: Callable[[], int] = lambda: 0
    site_layers: Sequence[int] | None = None
    _known: dict[str, dict[str, tuple[ScoredWindow, ...]]] = field(default_factory=dict)

    @property
    def full(self) -> Pattern:
        """All sites full."""
        return Pattern.all_full(self.sites)

    @cached_property
    def layer_costs(self) -> Costs:
        """Means over their windows, ``[sites][sites]``; empty where they were not measured."""
        return mean_costs(self.method.layer_costs) if self.method.layer_costs else []

    @cached_property
    def dp_patterns(self) -> dict[int, Pattern]:
        """What dynamic programming over layer costs gives for each number of full sites."""
        return dp_patterns(self.layer_costs, self.method.pinned) if self.layer_costs else {}

    def has(self, group: str) -> bool:
        """Whether there are windows of ``group``."""
        return bool(self.labels.get(group))

    def measure(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        """What each request asks for, per label, in one sweep."""
        return [
            [
                tuple(loss.per(self.labels[group][window]) for window, loss in zip(windows, losses, strict=True))
                for losses in measured
            ]
            for (_, windows, group, _), measured in zip(requests, self.evaluate(requests), strict=True)
        ]

    def score(self, requests: Sequence[Request]) -> list[list[tuple[ScoredWindow, ...]]]:
        """Requests of windows of text, with what chooses; for a mix, window i goes with probe i."""
        objective = self.method.objective
        if objective != "mix":
            return [
                [tuple(scored(objective, loss) for loss in losses) for losses in measured]
                for measured in self.measure(requests)
            ]
        measured = self.measure([*requests, *map(self._probes_beside, requests)])
        text, probes = measured[: len(requests)], measured[len(requests) :]
        return [
            [
                tuple(scored(objective, loss, probe) for loss, probe in zip(losses, answers, strict=True))
                for losses, answers in zip(of_text, of_probes, strict=True)
            ]
            for of_text, of_probes in zip(text, probes, strict=True)
        ]

    def _probes_beside(self, request: Request) -> Request:
        """The probes that go with a request's windows: refinement's stand behind those of the search."""
        first = len(self.labels[CALIBRATION]) if request.group == REFINEMENT else 0
        return request._replace(windows=[first + window for window in request.windows], group=PROBES)

    def measurements(self, group: str = CALIBRATION, windows: int | None = None) -> Measurements:
        """Measures patterns on the windows of ``group``, the first ``windows`` of them, and remembers them."""
        documents = self.documents[group][:windows]
        return Measurements(
            lambda requests: self.score([request._replace(group=group) for request in requests]),
            len(documents),
            documents,
            self._known.setdefault(group, {}),
        )


def run_search(problem: Problem, progress: SearchProgress = SearchProgress()) -> Findings:
    """Chooses which sites stay full, and measures what stands beside the plan."""
    return complete(problem, choose(problem, progress))


def choose(problem: Problem, progress: SearchProgress = SearchProgress()) -> Findings:
    """Finds which sites stay full; nothing is measured that does not choose.

    Args:
        problem: what is searched.
        progress: what is called as the search goes on.

    Raises:
        MeasurementError: the model's own loss is not finite, or no candidate's is.
        SettingError: blocks or pinned sites that do not go with what is to be kept, or windows to be added until
            steps are decided where there are none.
    """
    problem.method.check(problem.goal, problem.sites)
    auto, available = problem.method.auto_windows, len(problem.documents[CALIBRATION])
    count: int | None = min(_FIRST_LOOK, available) if auto else available
    confidence = look_confidence(problem.method.confidence, look_count(count or 1, available))
    spent, looks = 0, 0
    while count is not None:
        looks += 1
        if auto:
            progress.look(looks, count)
        findings = _choose(problem, problem.measurements(windows=count), confidence, progress)
        spent += findings.search_layer_windows
        prospect = _prospect(problem, findings, confidence)
        findings = replace(findings, outlook=prospect, auto_windows=auto, search_layer_windows=spent)
        count = prospect.windows if auto else None
    return findings


def _prospect(problem: Problem, findings: Findings, confidence: float) -> Outlook:
    """Whether the plan at the budget picked is decided, and how many windows to look at next."""
    documents, kept = problem.documents[CALIBRATION], findings.chosen.pattern.kept
    return outlook(
        [Choice(step.removed, step.margins) for step in findings.steps if step.pattern.kept >= kept],
        findings.windows,
        effective_documents(documents[: findings.windows], findings.windows),
        len(documents),
        findings.noise_floor,
        confidence,
    )


def _choose(problem: Problem, measurements: Measurements, confidence: float, progress: SearchProgress) -> Findings:
    """One look: a search on the windows of ``measurements``, whose steps are decided with ``confidence``."""
    goal, method, sites = problem.goal, problem.method, problem.sites
    baseline, floor = _baseline(problem, measurements)
    layer_windows_before = problem.layer_windows()
    steps: list[Step] = []
    try:
        if method.strategy != "dp":
            removal = replace(method, confidence=confidence)
            steps = _remove(measurements, sites, goal, removal, floor, problem.layer_costs, progress)
    except MeasurementError as error:
        raise _naming_layers(error, problem.site_layers) from error
    by_dp = _by_dp(measurements, problem.dp_patterns, goal, method, sites) if method.strategy == "dp" else []
    chosen = _pick(baseline, [*(step.evaluation for step in steps), *by_dp], goal, method)
    if method.auto_windows:
        steps = _looked_again(measurements, steps, chosen.pattern, floor, confidence)
    descents = _refine(problem, measurements, chosen.pattern, progress)
    swaps = _on_calibration(measurements, descents)
    if descents:
        chosen = measurements([descents[0].end.pattern])[0]
    reached = [step.pattern.kept for step in steps] or [chosen.pattern.kept]
    return Findings(
        baseline=baseline,
        noise_floor=floor,
        steps=tuple(steps),
        descents=tuple(descents),
        swaps=tuple(swaps),
        surrogate=tuple(by_dp),
        kept_chances=_kept_chances(problem, measurements.windows, baseline, steps, chosen.pattern),
        chosen=chosen,
        search_layer_windows=problem.layer_windows() - layer_windows_before,
        algorithm_1_evaluations=candidate_evaluations(sites, min(reached), method.pinned),
        windows=measurements.windows,
    )


def _looked_again(
    measurements: Measurements, steps: Sequence[Step], picked: Pattern, floor: float, confidence: float
) -> list[Step]:
    """``steps``, those down to ``picked`` told from what it keeps full as far as these windows tell."""
    return [
        look_again(measurements, step, picked.full, floor, confidence)
        if step.pattern.kept >= picked.kept
        else step
        for step in steps
    ]


def _kept_chances(
    problem: Problem, windows: int, baseline: Evaluation, steps: Sequence[Step], chosen: Pattern
) -> tuple[float, ...]:
    """How often each site is still full at the budget picked when documents are drawn anew.

    Empty if unknown, and where refinement or layer costs picked a pattern that the removals did not come by: the
    chances are of the removals.
    """
    if all(step.pattern != chosen for step in steps):
        return ()
    documents = problem.documents[CALIBRATION][:windows]
    before, increases = baseline, list[dict[int, list[float]]]()
    for step in steps:
        if step.pattern.kept < chosen.kept:
            break
        measured = {step.removed: step.evaluation, **step.rivals}
        increases.append({site: cost_increases(rival, before) for site, rival in measured.items()})
        before = step.evaluation
    chances = kept_chances(increases, documents) if increases else {}
    return tuple(chances.get(site, 1.0) for site in range(problem.sites)) if chances else ()


def complete(problem: Problem, findings: Findings) -> Findings:
    """``findings`` with what does not choose: baselines at the budgets asked for, the held-out check, probes."""
    method, chosen = problem.method, findings.chosen.pattern
    measurements = problem.measurements(windows=findings.windows)
    budgets = [step.pattern.kept for step in findings.steps] or [chosen.kept]
    asked = budgets if method.curve else [kept for kept in budgets if kept == chosen.kept]
    uniform = [Pattern.uniform(problem.sites, kept, method.pinned) for kept in asked]
    by_overlap = (
        overlap_patterns(method.overlap_matrix, method.pinned) if method.overlap_matrix is not None else {}
    )
    overlap = [by_overlap[kept] for kept in budgets if kept in by_overlap]
    by_dp = problem.dp_patterns
    surrogate = [] if findings.surrogate else [by_dp[kept] for kept in asked if kept in by_dp]
    beside = measurements.together([Look(uniform), Look(overlap), Look(surrogate)])
    return replace(
        findings,
        uniform=tuple(beside[0]),
        overlap=tuple(beside[1]),
        surrogate=findings.surrogate or tuple(beside[2]),
        heldout=compare(problem, HELD_OUT, chosen, by_dp.get(chosen.kept)),
        probes=compare(problem, HELD_OUT_PROBES, chosen, by_dp.get(chosen.kept)),
    )


def _baseline(problem: Problem, measurements: Measurements) -> tuple[Evaluation, float]:
    """All full, and the noise floor from measuring a pattern again in another shape.

    The pattern is all full for the loss. All full's divergence is zero in every shape, or nearly, so where that
    chooses, the pattern shares one site in the middle.
    """
    backwards = range(measurements.windows)[::-1]
    baseline = measurements([problem.full])[0]
    kept = problem.method.deepest(problem.goal, problem.sites)
    candidates = [site for site in problem.full.full[1:] if site not in problem.method.pinned]
    if not baseline.finite or problem.method.objective == "loss" or kept == problem.sites or not candidates:
        pattern = problem.full
    else:
        pattern = problem.full.share(candidates[len(candidates) // 2])
    first = measurements([pattern])[0]
    if not first.finite:
        pattern, first = problem.full, baseline
    if baseline.finite:
        scores = problem.score([Request([pattern], backwards, last_token=True)])[0][0]
        repetition = Evaluation(pattern, scores[::-1])
        if repetition.finite:
            return baseline, noise_floor(first, repetition)
    raise MeasurementError(
        "the model's own loss on the calibration windows is NaN or infinite",
        hint="check the checkpoint, or load it with --dtype float32",
    )


def _naming_layers(error: MeasurementError, site_layers: Sequence[int] | None) -> MeasurementError:
    """``error`` with its sites named as layers, where the model's layers are known."""
    if not error.sites or site_layers is None:
        return error
    layers = layer_ranges([site_layers[site] for site in error.sites])
    return MeasurementError(f"every candidate's loss is NaN or infinite; layers tried: {layers}", error.hint)


def _remove(
    measurements: Measurements,
    sites: int,
    goal: Goal,
    method: Method,
    floor: float,
    costs: Costs,
    progress: SearchProgress,
) -> list[Step]:
    kept = method.deepest(goal, sites)
    if method.strategy in ("fast", "distilled"):
        return fast_greedy(
            measurements,
            sites,
            kept,
            floor,
            method.pinned,
            method.confidence,
            order=method.order or (removal_order(costs, method.pinned) if costs else ()),
            standard_errors=method.standard_errors,
            on_step=progress.step,
        )
    if method.strategy == "blocks":
        return blocks_greedy(
            measurements, sites, kept, method.blocks, floor, method.pinned, method.confidence, progress.step
        )
    return exact_greedy(measurements, sites, kept, floor, method.pinned, method.confidence, progress.step)


def _by_dp(
    measurements: Measurements, surrogate: Mapping[int, Pattern], goal: Goal, method: Method, sites: int
) -> list[Evaluation]:
    """The patterns of dynamic programming that the goal has to choose from, measured."""
    deepest = method.deepest(goal, sites)
    if goal.keep is not None and not goal.to_one:
        return measurements([surrogate[deepest]])
    return measurements([surrogate[kept] for kept in range(sites - 1, deepest - 1, -1)])


def _refine(
    problem: Problem,
    measurements: Measurements,
    picked: Pattern,
    progress: SearchProgress,
) -> list[Descent]:
    """Refines the pattern picked and others of as many full sites, on windows of its own where there are any."""
    method = problem.method
    if not method.refine_rounds:
        return []
    starts = {"searched": picked}
    for name, patterns in (("dp", problem.dp_patterns), ("older plan", method.older)):
        if picked.kept in patterns:
            starts[name] = patterns[picked.kept]
    starts["uniform"] = Pattern.uniform(problem.sites, picked.kept, method.pinned)
    return refine(
        problem.measurements(REFINEMENT) if problem.has(REFINEMENT) else measurements,
        starts,
        method.refine_rounds,
        method.confidence,
        method.pinned,
        method.standard_errors,
        progress.swap,
    )


def _on_calibration(measurements: Measurements, descents: Sequence[Descent]) -> list[Swap]:
    """The swaps of the best descent, with what the calibration windows say of them."""
    swaps = descents[0].swaps if descents else ()
    evaluations = measurements([swap.evaluation.pattern for swap in swaps])
    return [replace(swap, evaluation=evaluation) for swap, evaluation in zip(swaps, evaluations, strict=True)]


def _pick(baseline: Evaluation, measured: Sequence[Evaluation], goal: Goal, method: Method) -> Evaluation:
    """The pattern that keeps what was asked for, or the sparsest within the limit."""
    evaluations = [baseline, *measured]
    if goal.keep is not None:
        kept = kept_sites(len(baseline.pattern), goal.keep)
        return next(evaluation for evaluation in evaluations if evaluation.pattern.kept == kept)
    limit, gate = goal.max_delta or 0.0, Gate(method.gate, method.confidence)
    within = [
        evaluation
        for evaluation in evaluations
        if gate.passes(measured_increase(evaluation, baseline, method.confidence), limit)
    ]
    return min(within or [baseline], key=lambda evaluation: evaluation.pattern.kept)


def compare(
    problem: Problem, group: str, chosen: Pattern, surrogate: Pattern | None = None, windows: int | None = None
) -> Comparison | None:
    """Measures ``chosen``, all full and uniform around the pinned sites on windows of ``group``.

    On its first ``windows`` windows, all by default.
    """
    if not problem.has(group):
        return None
    patterns = [problem.full, chosen, Pattern.uniform(problem.sites, chosen.kept, problem.method.pinned)]
    patterns += [surrogate] if surrogate is not None else []
    documents = tuple(problem.documents[group][:windows])
    measured = problem.measure([Request(patterns, range(len(documents)), group)])[0]
    return Comparison(
        *(
            Evaluation(pattern, tuple(scored("expected-loss", loss) for loss in losses), documents)
            for pattern, losses in zip(patterns, measured, strict=True)
        )
    )
