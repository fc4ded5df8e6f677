"""Exact greedy against Algorithm 1 as written, on loss tables and on a real random model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_tables import LossTable, algorithm_1
from random_models import build, measure

from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.states.paths import PathMemory
from indexcache.errors import MeasurementError
from indexcache.pattern import Pattern, indexer_types
from indexcache.search.losses import Evaluation
from indexcache.search.strategies.greedy import candidate_evaluations, exact_greedy


@pytest.mark.reliability("R16")
@given(st.integers(0, 10**6), st.integers(1, 9), st.data())
def test_exact_greedy_is_algorithm_1(seed, sites, data):
    kept = data.draw(st.integers(1, sites))
    table = LossTable(seed, sites)
    steps = exact_greedy(table.measurements(), sites, kept)
    assert [step.removed for step in steps] == algorithm_1(table, sites, kept)
    assert len(table.measured) == candidate_evaluations(sites, kept) * table.windows
    for step in steps:
        assert step.evaluation.window_losses == table.losses(step.pattern)


def test_the_whole_search_costs_what_the_paper_says():
    assert candidate_evaluations(47, 1) == 1081


@pytest.mark.reliability("R16")
def test_greedy_equals_brute_force_on_a_random_model():
    """Each step's choice against transformers' native sharing and its own loss, one model a candidate."""
    model = build("glm_moe_dsa", layers=8, seed=3)
    windows = [torch.randint(0, 4096, (40,), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]

    def native_loss(pattern):
        native = build("glm_moe_dsa", layers=8, indexer_types=indexer_types(pattern))
        native.load_state_dict(model.state_dict(), strict=False)
        with torch.inference_mode():
            return sum(native(input_ids=row[None], labels=row[None]).loss.item() for row in windows) / 2

    pattern, expected = "F" * 8, []
    while pattern.count("F") > 1:
        tried = {
            site: native_loss(pattern[:site] + "S" + pattern[site + 1 :])
            for site in range(1, 8)
            if pattern[site] == "F"
        }
        best = min(tried, key=tried.get)
        pattern = pattern[:best] + "S" + pattern[best + 1 :]
        expected.append((best, tried[best]))

    losses = PatternLosses(model, range(8))

    def evaluate(patterns):
        sums = [measure(losses, patterns, row.tolist()) for row in windows]
        return [
            Evaluation.of_losses(pattern, tuple(row[i] / 39 for row in sums)) for i, pattern in enumerate(patterns)
        ]

    steps = exact_greedy(evaluate, 8, 1)
    assert [step.removed for step in steps] == [site for site, _ in expected]
    for step, (_, loss) in zip(steps, expected, strict=True):
        assert step.evaluation.loss == pytest.approx(loss, abs=1e-5)


@pytest.mark.reliability("R16")
def test_what_is_kept_between_steps_changes_no_choice(cases, full):
    """Random models: candidates together from kept states, against each candidate alone from the start."""
    for seed in range(100 if full else 3):
        model = build("glm_moe_dsa", layers=6, seed=seed)
        row = torch.randint(0, 4096, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
        keeping = PatternLosses(model, range(6), memory=PathMemory(range(6), windows=1, budget=1 << 30))

        def together(patterns, keeping=keeping, row=row):
            losses = measure(keeping, patterns, row)
            return [Evaluation.of_losses(pattern, (loss,)) for pattern, loss in zip(patterns, losses, strict=True)]

        def alone(patterns, model=model, row=row):
            losses = [measure(PatternLosses(model, range(6)), [pattern], row) for pattern in patterns]
            return [
                Evaluation.of_losses(pattern, tuple(loss)) for pattern, loss in zip(patterns, losses, strict=True)
            ]

        fast, slow = (
            [(step.removed, step.evaluation.window_losses) for step in exact_greedy(way, 6, 1)]
            for way in (together, alone)
        )
        cases.check(fast == slow, f"model {seed}: {fast} instead of {slow}")


def fixed(losses):
    """Measures by a dictionary from pattern to loss."""
    return lambda patterns: [Evaluation.of_losses(pattern, (losses[str(pattern)],)) for pattern in patterns]


def test_ties_go_to_the_earlier_site_and_are_flagged():
    step = exact_greedy(fixed({"FSFF": 1.0, "FFSF": 1.0, "FFFS": 1.5}), 4, 3)[0]
    assert (step.removed, step.runner_up, step.tied) == (1, 2, (2,))
    assert step.margin.delta == 0.0


def test_differences_within_the_noise_floor_are_ties():
    measure = fixed({"FSFF": 1.0, "FFSF": 1.1, "FFFS": 1.3})
    assert exact_greedy(measure, 4, 3, noise_floor=0.2)[0].tied == (2,)
    assert exact_greedy(measure, 4, 3, noise_floor=0.05)[0].tied == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", ["FSFF", "FFSF", "FFFS"])
def test_a_loss_that_is_no_number_never_wins(bad, at):
    losses = {"FSFF": 1.0, "FFSF": 2.0, "FFFS": 3.0, at: bad}
    chosen = exact_greedy(fixed(losses), 4, 3)[0]
    assert str(chosen.pattern) == min((pattern for pattern in losses if pattern != at), key=losses.get)


def test_no_candidate_with_a_loss_is_an_error_that_names_them():
    with pytest.raises(MeasurementError, match="1, 2"):
        exact_greedy(fixed({"FSF": math.nan, "FFS": math.inf}), 3, 2)


def test_nothing_to_remove_measures_nothing():
    table = LossTable(0, 4)
    assert exact_greedy(table.measurements(), 4, 4) == []
    assert table.measured == []


def test_each_step_is_told_as_it_is_committed():
    committed = []
    steps = exact_greedy(LossTable(1, 5).measurements(), 5, 2, on_step=committed.append)
    assert committed == steps


def test_patterns_start_full():
    assert exact_greedy(LossTable(2, 3).measurements(), 3, 2)[0].pattern.kept == 2
    assert str(Pattern.all_full(3)) == "FFF"
