"""A whole search over a loss table: what is measured, what is picked, and when it refuses."""

import math
import random

import pytest

from indexcache.errors import MeasurementError, SettingError
from indexcache.evaluate import WindowLoss
from indexcache.pattern import Pattern
from indexcache.search.goal import Goal, Method
from indexcache.search.search import Problem, choose, compare, run_search
from indexcache.search.strategies.greedy import exact_greedy

SITES, LABELS = 6, 10


class Table:
    """Losses that grow with each shared site by a fixed amount per site."""

    costs = (0.0, 0.5, 0.1, 0.4, 0.2, 0.3)

    def __init__(self, noise=0.0):
        self.noise, self.calls = noise, []

    def __call__(self, requests):
        return [self.losses(*request) for request in requests]

    def losses(self, patterns, numbers, group, last_token):
        self.calls.append((group, last_token, len(patterns)))
        losses = [self.windows(pattern, group, last_token) for pattern in patterns]
        return [tuple(WindowLoss(sums[number], sums[number] - LABELS) for number in numbers) for sums in losses]

    def windows(self, pattern, group, last_token):
        base = sum(cost for cost, role in zip(self.costs, pattern.roles, strict=True) if role == "S")
        draw = random.Random(f"{group}/{pattern}")
        return tuple((1 + base + draw.random() / 100 + last_token * self.noise) * LABELS for _ in range(4))


def run(goal, table=None, heldout=True, **method):
    documents = {"calibration": (0, 1, 2, 3), "heldout": (4, 5, 6, 7) if heldout else ()}
    labels = {group: [LABELS] * len(numbers) for group, numbers in documents.items()}
    return run_search(Problem(table or Table(), labels, documents, SITES, goal, Method(**method)))


def test_sites_go_in_the_order_of_what_they_cost():
    assert [step.removed for step in run(Goal(keep=0.01)).steps] == [2, 4, 5, 3, 1]


def test_keep_stops_at_the_asked_number():
    findings = run(Goal(keep=0.5))
    assert str(findings.chosen.pattern) == "FFSFSS"
    assert len(findings.steps) == 3


def test_all_goes_on_to_one_site_but_picks_the_asked_one():
    findings = run(Goal(keep=0.5, to_one=True))
    assert findings.chosen.pattern.kept == 3
    assert findings.steps[-1].pattern.kept == 1


@pytest.mark.parametrize(("limit", "kept"), [(0.0, 6), (0.15, 5), (0.35, 4), (2.0, 1)])
def test_max_delta_picks_the_sparsest_step_within_it(limit, kept):
    assert run(Goal(max_delta=limit)).chosen.pattern.kept == kept


def test_uniform_is_measured_at_the_budget_asked_for_and_on_request_at_all():
    uniform = [Pattern.uniform(SITES, kept) for kept in (5, 4, 3)]
    assert [evaluation.pattern for evaluation in run(Goal(keep=0.5), curve=True).uniform] == uniform
    assert [evaluation.pattern for evaluation in run(Goal(keep=0.5)).uniform] == uniform[2:]


def test_losses_are_per_label():
    assert run(Goal(keep=1.0)).baseline.loss == pytest.approx(1.0, abs=0.011)


def test_removals_within_the_noise_floor_are_tied():
    assert not any(step.tied for step in run(Goal(keep=0.5)).steps)
    assert run(Goal(keep=0.5), Table(noise=0.15)).steps[0].tied == (4,)


def test_max_delta_picks_the_sparsest_even_behind_a_dearer_step():
    class Dipping(Table):
        """Losses that rise and fall again as sites are shared."""

        def windows(self, pattern, group, last_token):
            shared = pattern.roles.count("S")
            return tuple((1 + (0, 0.5, 0.1, 0.6, 0.2, 0.9)[shared]) * LABELS for _ in range(4))

    assert run(Goal(max_delta=0.3), Dipping()).chosen.pattern.kept == SITES - 4


def test_the_noise_floor_comes_from_another_shape():
    assert run(Goal(keep=1.0)).noise_floor == 0.0
    assert run(Goal(keep=1.0), Table(noise=0.05)).noise_floor == pytest.approx(0.05)


def test_the_held_out_check_measures_other_windows():
    table = Table()
    findings = run(Goal(keep=0.5), table)
    assert [call for call in table.calls if call[0] == "heldout"] == [("heldout", False, 3)]
    assert findings.heldout.plan.pattern == findings.chosen.pattern
    assert run(Goal(keep=0.5), heldout=False).heldout is None


def test_a_mix_asks_for_text_and_probes_in_one_sweep():
    sweeps = []

    class Counted(Table):
        def __call__(self, requests):
            sweeps.append([request.group for request in requests])
            return super().__call__(requests)

    documents = dict.fromkeys(("calibration", "probes"), (0, 1, 2, 3))
    labels = {group: [LABELS] * 4 for group in documents}
    choose(Problem(Counted(), labels, documents, SITES, Goal(keep=0.5), Method(objective="mix")))
    assert {groups.count("calibration") - groups.count("probes") for groups in sweeps} == {0}


def test_a_model_without_a_loss_is_refused_at_once():
    def broken(requests):
        return [[(WindowLoss(math.nan),) * 4 for _ in request.patterns] for request in requests]

    with pytest.raises(MeasurementError, match="the model's own loss"):
        run(Goal(keep=0.5), broken)


@pytest.mark.parametrize("strategy", ["exact", "fast", "blocks"])
def test_every_strategy_reaches_the_goal_around_pinned_sites(strategy):
    findings = run(Goal(keep=0.5), strategy=strategy, pinned=(2,))
    assert findings.chosen.pattern.kept == 3
    assert findings.chosen.pattern.is_full(2)


@pytest.mark.parametrize("strategy", ["exact", "fast", "blocks"])
@pytest.mark.parametrize("wish", [{"max_delta": 9.0}, {"keep": 0.9, "to_one": True}])
def test_a_search_without_an_end_stops_at_the_pinned_sites(strategy, wish):
    findings = run(Goal(**wish), strategy=strategy, blocks=2, pinned=(1, 5))
    last = findings.steps[-1].pattern.full
    assert last == ((0, 1, 3, 5) if strategy == "blocks" else (0, 1, 5))


@pytest.mark.parametrize("wish", [{}, {"to_one": True}])
def test_keeping_fewer_than_are_pinned_is_refused_before_anything_is_measured(wish):
    table = Table()
    with pytest.raises(SettingError, match="4 of 6 sites have to stay full"):
        run(Goal(keep=0.5, **wish), table, pinned=(1, 2, 3))
    assert table.calls == []


def test_every_pattern_that_the_plan_is_compared_with_keeps_the_pinned_sites():
    overlap = [[1.0 if a == b else 0.1 * b for b in range(SITES)] for a in range(SITES)]
    findings = run(Goal(keep=0.5), pinned=(5,), refine_rounds=9, overlap_matrix=overlap, curve=True)
    compared = [*findings.uniform, *findings.overlap, findings.heldout.uniform, findings.heldout.plan]
    assert len(compared) == 8
    assert all(evaluation.pattern.is_full(5) for evaluation in compared)
    assert str(findings.heldout.uniform.pattern) == "FSSFSF"


def test_algorithm_1_does_not_try_the_pinned_sites_either():
    assert run(Goal(keep=0.5)).algorithm_1_evaluations == 5 + 4 + 3
    assert run(Goal(keep=0.5), pinned=(0, 4)).algorithm_1_evaluations == 4 + 3 + 2


def test_refinement_changes_the_pattern_picked_and_is_recorded():
    start = run(Goal(keep=0.5), strategy="blocks", blocks=2)
    better = run(Goal(keep=0.5), strategy="blocks", blocks=2, refine_rounds=5)
    assert better.swaps
    assert better.chosen.loss < start.chosen.loss
    assert better.chosen.pattern == better.swaps[-1].evaluation.pattern
    assert better.heldout.plan.pattern == better.chosen.pattern


class Blurred:
    """Each shared site adds a cost of its own that windows blur; counts the window evaluations asked for."""

    def __init__(self, costs, blur):
        self.costs, self.blur, self.windows = costs, blur, 0

    def __call__(self, requests):
        return [self.losses(request.patterns, request.windows) for request in requests]

    def losses(self, patterns, windows):
        self.windows += len(patterns) * len(windows)
        return [tuple(WindowLoss(*[self.loss(pattern, window)] * 2) for window in windows) for pattern in patterns]

    def loss(self, pattern, window):
        shared = [site for site, role in enumerate(pattern.roles) if role == "S"]
        noise = sum(self.blur * random.Random(f"{site}/{window}").gauss(0, 1) for site in shared)
        return (1 + sum(self.costs[site] for site in shared) + noise) * LABELS


def search_auto(table, available=64, **method):
    labels, documents = {"calibration": [LABELS] * available}, {"calibration": range(available)}
    settings = Method(auto_windows=True, **method)
    goal = Goal(keep=0.5)
    return choose(Problem(table, labels, documents, SITES, goal, settings, layer_windows=lambda: table.windows))


CLEAR, CLOSE = (0.0, 0.9, 0.1, 0.8, 0.2, 0.7), (0.0, 0.50, 0.10, 0.51, 0.2, 0.49)


@pytest.mark.parametrize("strategy", ["fast", "exact"])
def test_auto_stops_at_the_first_look_that_decides(strategy):
    findings = search_auto(Blurred(CLEAR, 0.001), strategy=strategy)
    assert (findings.windows, findings.decided, findings.ties) == (8, True, ())


@pytest.mark.parametrize("strategy", ["fast", "exact"])
def test_auto_goes_on_while_any_candidate_is_not_told_apart(strategy):
    """Sites 1, 3 and 5 are all but equal, and one of them has to go: no number of windows tells which."""
    findings = search_auto(Blurred(CLOSE, 0.5), strategy=strategy)
    assert findings.windows > 8
    assert findings.decided is False
    removed = {step.removed for step in findings.steps}
    assert {tie.removed for tie in findings.ties} <= removed
    assert not {tie.kept for tie in findings.ties} & removed


@pytest.mark.parametrize("strategy", ["fast", "exact", "blocks"])
def test_a_plan_is_decided_where_no_step_leaves_a_kept_site_open(strategy):
    """Ties and undecided sites are two views of the same margins, of whatever number of windows."""
    for blur in (0.001, 0.1, 0.5, 2.0):
        findings = search_auto(Blurred(CLOSE, blur), strategy=strategy, blocks=1)
        kept = set(findings.chosen.pattern.full)
        still_open = {(step.removed, site) for step in findings.steps for site in step.undecided if site in kept}
        assert still_open == {(tie.removed, tie.kept) for tie in findings.ties}, f"blur {blur}"
        candidates = [set(step.evaluation.pattern.full) - {0} for step in findings.steps]
        if strategy != "blocks":
            assert [set(step.margins) for step in findings.steps] == candidates, f"blur {blur}"


def test_a_fixed_number_of_windows_promises_no_decision():
    assert run(Goal(keep=0.5)).decided is None


def test_the_cost_counts_all_looks():
    table = Blurred(CLOSE, 0.5)
    findings = search_auto(table, strategy="exact")
    looks = [8]
    while looks[-1] < findings.windows:
        looks.append(min(2 * looks[-1], 64))
    assert len(looks) > 1, "one look would show nothing"
    # Baseline and noise floor are no part of the removals: all full and a shared pattern, this one once more.
    beside = findings.windows + sum(looks) + findings.windows
    assert table.windows - beside <= findings.search_layer_windows < table.windows


def test_steps_of_several_looks_are_held_to_the_confidence_of_one(monkeypatch):
    taken = []

    def spy(*arguments):
        taken.append(arguments[5])
        return exact_greedy(*arguments)

    monkeypatch.setattr("indexcache.search.search.exact_greedy", spy)
    search_auto(Blurred(CLEAR, 0.001), strategy="exact")
    assert taken == [pytest.approx(1 - 0.05 / 4)]


def test_auto_with_layer_costs_alone_is_refused_before_anything_is_measured():
    table = Blurred(CLEAR, 0.001)
    with pytest.raises(SettingError, match="--strategy dp has no steps") as caught:
        search_auto(table, strategy="dp", layer_costs=[[[1.0] * SITES] * SITES])
    assert caught.value.hint
    assert table.windows == 0


def test_algorithm_1_would_go_as_far_as_dynamic_programming():
    costs = [[[float(later - earlier) for later in range(SITES)] for earlier in range(SITES)]]
    findings = run(Goal(keep=0.5), strategy="dp", layer_costs=costs)
    assert findings.steps == ()
    assert findings.algorithm_1_evaluations == 5 + 4 + 3


def test_chances_stand_beside_no_pattern_that_the_removals_did_not_come_by():
    blocks = {"strategy": "blocks", "blocks": 2}
    assert len(run(Goal(keep=0.5), **blocks).kept_chances) == SITES
    better = run(Goal(keep=0.5), refine_rounds=5, **blocks)
    assert better.swaps
    assert better.kept_chances == ()
    assert len(run(Goal(keep=0.5), refine_rounds=5).kept_chances) == SITES, "refinement changed nothing here"


@pytest.mark.parametrize(("gate", "kept"), [("interval", 6), ("estimate", 1)])
def test_of_one_document_the_interval_passes_nothing(gate, kept):
    labels, documents = {"calibration": [LABELS] * 4}, {"calibration": (7,) * 4}
    problem = Problem(Table(), labels, documents, SITES, Goal(max_delta=9.0), Method(gate=gate))
    assert choose(problem).chosen.pattern.kept == kept


def test_a_comparison_can_be_of_the_first_windows_alone():
    labels, documents = {"calibration": [LABELS] * 4}, {"calibration": range(4)}
    problem = Problem(Table(), labels, documents, SITES, Goal(keep=0.5), Method())
    first = compare(problem, "calibration", Pattern("FFSFSS"), windows=2)
    assert len(first.plan.windows) == len(first.full.windows) == 2
    every = compare(problem, "calibration", Pattern("FFSFSS"))
    assert first.plan.window_losses == every.plan.window_losses[:2]


def test_overlap_patterns_are_measured_when_asked_for():
    overlap = [[1.0 if a == b else 0.1 * b for b in range(SITES)] for a in range(SITES)]
    assert run(Goal(keep=0.5)).overlap == ()
    findings = run(Goal(keep=0.5), overlap_matrix=overlap)
    assert [evaluation.pattern.kept for evaluation in findings.overlap] == [5, 4, 3]
