"""Differences of loss increases: paired, from intervals, and what they decide; and the swaps nearest to a plan."""

import math
from pathlib import Path

import pytest

from indexcache.errors import PlanError
from indexcache.evaluate import HELD_OUT
from indexcache.pattern import Pattern
from indexcache.search.intervals import interval
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import MeasuredPattern
from indexcache.search.upkeep.difference import WindowIncreases, at_confidence, loss_change, plan_difference
from indexcache.search.upkeep.neighbours import nearest_swaps

PLAN = read_plan(Path(__file__).parents[2] / "assets" / "plan-v3.json")


def measured(delta, low=None, high=None, error=None):
    return MeasuredPattern(
        kept=2, pattern="FSFS", loss=3.0 + delta, delta=delta, standard_error=error, low=low, high=high
    )


class TestLossChange:
    def test_in_pairs_only_what_differs_by_window_counts(self):
        """The windows differ far more from each other than the two patterns do on each."""
        old = [0.0, 1.0, 2.0, 3.0, 4.0]
        new = [0.010, 1.011, 2.009, 3.010, 4.010]
        change = loss_change(measured(2.0), measured(2.01), WindowIncreases(old, new, range(5)), 0.95)
        ends = interval([after - before for before, after in zip(old, new, strict=True)], range(5), 0.95)
        assert (change.low, change.high) == (ends.low, ends.high)
        assert change.is_paired
        assert change.verdict == "decided: higher"
        assert loss_change(measured(2.01, 1.0, 3.0), measured(2.0, 1.0, 3.0), None, 0.95).verdict == "noise"

    def test_independent_increases_combine_their_half_widths(self):
        change = loss_change(measured(0.10, 0.07, 0.14), measured(0.02, -0.02, 0.05), None, 0.95)
        assert change.low == pytest.approx(-0.08 - math.hypot(0.04, 0.04))
        assert change.high == pytest.approx(-0.08 + math.hypot(0.03, 0.03))
        assert change.verdict == "decided: lower"
        assert not change.is_paired

    def test_a_plan_without_intervals_has_its_standard_error(self):
        change = loss_change(measured(0.1, error=0.01), measured(0.1, error=0.0), None, 0.95)
        assert change.high == pytest.approx(0.0196, abs=1e-4)

    def test_an_interval_of_another_confidence_gives_way_to_the_error(self):
        wide = measured(0.1, 0.0, 0.2, error=0.01)
        at_99 = PLAN.model_copy(update={"search": PLAN.search.model_copy(update={"confidence": 0.99})})
        change = loss_change(at_confidence(at_99, wide, 0.95), measured(0.1, error=0.0), None, 0.95)
        assert change.high == pytest.approx(0.0196, abs=1e-4)
        assert at_confidence(at_99, wide, 0.99) == wide

    def test_one_document_leaves_it_open(self):
        assert loss_change(measured(0.1), measured(0.2, 0.1, 0.3), None, 0.95).verdict == "not known"


class TestPlanDifference:
    def test_names_the_layers_and_what_else_differs(self):
        roles = list(PLAN.result.pattern)
        kept, dropped = [roles.index(role, 1) for role in "FS"]
        roles[kept], roles[dropped] = "S", "F"
        result = PLAN.result.model_copy(update={"pattern": "".join(roles)})
        run = PLAN.run.model_copy(update={"dtype": "bfloat16"})
        difference = plan_difference(PLAN, PLAN.model_copy(update={"result": result, "run": run}))
        layers = PLAN.model.site_layers
        assert difference.changed_layers == tuple(sorted((layers[kept], layers[dropped])))
        assert difference.fields == {"dtype": (PLAN.run.dtype, "bfloat16")}
        assert len(difference.budgets) >= len(PLAN.search.steps)

    def test_windows_are_asked_for_by_group_and_pattern(self):
        asked = []
        plan_difference(PLAN, PLAN, lambda *names: asked.append(names))
        assert (HELD_OUT, PLAN.result.pattern, PLAN.result.pattern) in asked

    def test_models_with_other_sites_are_refused(self):
        model = PLAN.model.model_copy(update={"layers": PLAN.model.layers + 1})
        with pytest.raises(PlanError, match="other sites"):
            plan_difference(PLAN, PLAN.model_copy(update={"model": model}))


class TestNearestSwaps:
    def test_are_as_sparse_and_one_swap_away(self):
        swaps = nearest_swaps(PLAN, 50)
        assert swaps, "a plan that drops some sites and keeps more than the first has swaps"
        assert len({str(swap.pattern) for swap in swaps}) == len(swaps)
        for swap in swaps:
            assert swap.pattern.kept == PLAN.result.kept
            differing = [site for site, role in enumerate(str(swap.pattern)) if role != PLAN.result.pattern[site]]
            assert len(differing) == 2, f"{swap.pattern} is not one swap from {PLAN.result.pattern}"
            assert {PLAN.model.site_layers[site] for site in differing} == {
                swap.restored_layer,
                swap.removed_layer,
            }
        assert nearest_swaps(PLAN, 2) == swaps[:2]

    def test_leave_pinned_sites_and_the_first_alone(self):
        pinned = [PLAN.model.site_layers[site] for site in Pattern(PLAN.result.pattern).full]
        search = PLAN.search.model_copy(update={"pinned_layers": pinned})
        assert nearest_swaps(PLAN.model_copy(update={"search": search}), 50) == []
