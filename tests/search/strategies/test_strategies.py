"""What every strategy promises, on a hundred random loss tables, and what each does alone."""

import functools
import random

import pytest
from loss_tables import DistanceTable, LossTable, algorithm_1

from indexcache.errors import MeasurementError, SettingError
from indexcache.pattern import Pattern
from indexcache.search.losses import Measurements, paired_difference
from indexcache.search.strategies.blocks import blocks_greedy
from indexcache.search.strategies.fast import fast_greedy, look_again
from indexcache.search.strategies.greedy import exact_greedy
from indexcache.search.strategies.race import race
from indexcache.search.strategies.refine import refine

SITES = 9
STRATEGIES = {
    "exact": exact_greedy,
    "fast": fast_greedy,
    "blocks": functools.partial(blocks_greedy, blocks=2),
}
TABLES = [(kind, seed) for kind in (LossTable, DistanceTable) for seed in range(50)]


class SumTable(LossTable):
    """Each shared site adds a cost of its own, the same in every pattern, which windows blur."""

    def loss(self, pattern, window):
        shared = [site for site in range(self.sites) if not Pattern(str(pattern)).is_full(site)]
        return 3.0 + sum(random.Random(f"{self.seed}/{site}/{window}").gauss(site, 4.0) for site in shared)


@pytest.mark.parametrize("strategy", STRATEGIES)
class TestEveryStrategy:
    @pytest.mark.parametrize("pinned", [(), (3,), (2, 5, 8)])
    def test_pinned_sites_stay_full(self, strategy, pinned):
        for kind, seed in TABLES[::5]:
            table = kind(seed, SITES)
            for step in STRATEGIES[strategy](table.measurements(), SITES, 2, pinned=pinned):
                assert {0, *pinned} <= set(step.pattern.full)

    def test_every_committed_step_was_measured_on_all_windows(self, strategy):
        for kind, seed in TABLES:
            table = kind(seed, SITES)
            for step in STRATEGIES[strategy](table.measurements(), SITES, 2):
                assert step.evaluation.window_losses == table.losses(step.pattern)
                seen = {window for pattern, window in table.measured if pattern == step.pattern}
                assert seen == set(range(table.windows))

    def test_steps_are_nested_and_end_where_asked(self, strategy):
        for kind, seed in TABLES[::5]:
            pattern = Pattern.all_full(SITES)
            for step in STRATEGIES[strategy](kind(seed, SITES).measurements(), SITES, 3):
                assert step.pattern == pattern.share(step.removed)
                pattern = step.pattern
            assert pattern.kept == 3

    def test_nothing_is_measured_twice(self, strategy):
        table = LossTable(1, SITES)
        STRATEGIES[strategy](table.measurements(), SITES, 1 if strategy != "blocks" else 2)
        assert len(table.measured) == len(set(table.measured))

    def test_losses_that_are_no_numbers_are_an_error(self, strategy):
        class Broken(LossTable):
            def loss(self, pattern, window):
                return 1.0 if str(pattern) == "F" * SITES else float("nan")

        with pytest.raises(MeasurementError, match="1, 2"):
            STRATEGIES[strategy](Broken(0, SITES).measurements(), SITES, 2)


@pytest.mark.reliability("R16")
def test_exact_is_algorithm_1_on_every_table(cases):
    for kind, seed in TABLES:
        table = kind(seed, SITES)
        steps = exact_greedy(table.measurements(), SITES, 1)
        removed = [step.removed for step in steps]
        cases.check(removed == algorithm_1(table, SITES, 1), f"{kind.__name__} {seed}: {removed}")


class TestFast:
    @pytest.mark.reliability("R16")
    def test_finds_the_plan_of_exact_where_costs_grow(self, cases):
        """Where removing a site only gets dearer, the lazy bound is exact and nothing else may come out."""
        for seed in range(50):
            table = DistanceTable(seed, SITES)
            exact = exact_greedy(table.measurements(), SITES, 1)
            fast = fast_greedy(table.measurements(), SITES, 1)
            cases.check([step.removed for step in fast] == [step.removed for step in exact], f"table {seed}")

    def test_measures_far_less(self):
        spent = {"exact": 0, "fast": 0}
        for seed in range(4):
            for name in spent:
                table = DistanceTable(seed, 24, windows=32)
                STRATEGIES[name](table.measurements(), 24, 6)
                spent[name] += len(table.measured)
        assert spent["fast"] * 3 < spent["exact"]

    def test_a_site_that_gets_cheap_when_the_one_before_it_goes_is_seen_at_once(self):
        class Substitute(DistanceTable):
            """Site 4 is dear while site 3 would replace its selection, and free once an earlier one does."""

            def loss(self, pattern, window):
                costs = {1: 0.5, 2: 0.6, 3: 0.1, 4: 1.0 if pattern.is_full(3) else 0.0, 5: 0.3, 6: 0.7}
                shared = (site for site in costs if not pattern.is_full(site))
                return 3.0 + sum(costs[site] for site in shared) + 0.001 * window

        for greedy in (fast_greedy, functools.partial(fast_greedy, order=[3, 5, 1, 2]), exact_greedy):
            steps = greedy(Substitute(0, 7, windows=16).measurements(), 7, 3)
            assert [step.removed for step in steps] == [3, 4, 5, 1]

    def test_a_site_that_never_has_a_number_is_never_removed(self):
        class Poisoned(DistanceTable):
            def loss(self, pattern, window):
                return float("nan") if not pattern.is_full(2) else super().loss(pattern, window)

        for seed in range(10):
            steps = fast_greedy(Poisoned(seed, SITES, windows=16).measurements(), SITES, 2)
            assert [step.pattern.is_full(2) for step in steps] == [True] * (SITES - 2)

    def test_an_older_order_saves_the_first_round(self):
        """The race of all candidates is spared: its sweeps, and what they measured beside the winner."""
        cold_table, table = (DistanceTable(3, 24, windows=64) for _ in range(2))
        cold = fast_greedy(cold_table.measurements(), 24, 6)
        warm = fast_greedy(table.measurements(), 24, 6, order=[step.removed for step in cold])
        assert [step.removed for step in warm] == [step.removed for step in cold]
        assert len(cold_table.measured) - len(table.measured) > 2 * table.windows
        assert table.sweeps + 3 <= cold_table.sweeps
        assert table.sweeps <= 1.5 * len(warm)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_misleading_order_misleads_nothing(self, seed):
        table = DistanceTable(seed, SITES, windows=16)
        right = [step.removed for step in exact_greedy(table.measurements(), SITES, 3)]
        for order in (right[::-1], [*range(SITES - 1, 0, -1)], [8], [99, 0]):
            steps = fast_greedy(table.measurements(), SITES, 3, order=order)
            assert {step.removed for step in steps} == set(right)

    @pytest.mark.parametrize("seed", range(4))
    def test_a_step_is_decided_against_sites_that_it_did_not_measure_too(self, seed):
        table = SumTable(seed, SITES, windows=8)
        exact = exact_greedy(table.measurements(), SITES, 2)
        # Nobody leaves a race, so that what is last known of a site is of all windows.
        fast = fast_greedy(table.measurements(), SITES, 2, standard_errors=7.0)
        undecided = {(step.pattern, step.removed): set(step.undecided) for step in exact}
        assert any(undecided.values()), "the table should leave steps undecided"
        compared = [step for step in fast if (step.pattern, step.removed) in undecided]
        assert len(compared) > 1
        for step in compared:
            missing = undecided[step.pattern, step.removed] - set(step.undecided)
            assert not missing, f"{step.pattern} is said to be decided against sites {missing}"


class TestRace:
    @pytest.mark.parametrize("documents", [[w % 3 for w in range(32)], [0 if w % 4 else w for w in range(32)]])
    def test_few_documents_or_one_with_most_windows_hardly_drop_equals(self, documents):
        """Of patterns that cost the same, 3 standard errors of a normal let one in 740 seem worse."""
        field, dropped = [Pattern.all_full(SITES).share(site) for site in range(1, SITES)], 0
        for seed in range(50):
            measurements = Measurements(LossTable(seed, SITES, windows=32).sweep, 32, documents)
            dropped += sum(len(evaluation.windows) < 32 for evaluation in race(measurements, field, None, 3.0))
        assert dropped <= 0.02 * 50 * len(field), "a normal quantile would drop many more"

    def test_a_pattern_alone_is_measured_in_one_go(self):
        calls = []

        def sweep(requests):
            calls.extend(len(request.windows) for request in requests)
            return [[(1.0,) * len(request.windows)] * len(request.patterns) for request in requests]

        race(Measurements(sweep, 32), [Pattern("FSF")])
        assert calls == [32]

    @pytest.mark.reliability("R16")
    def test_the_best_of_all_windows_is_never_dropped_without_cause(self, cases):
        for seed in range(100):
            table = DistanceTable(seed, SITES, windows=32)
            field = [Pattern.all_full(SITES).share(site) for site in range(1, SITES)]
            results = race(table.measurements(), field)
            finished = [evaluation for evaluation in results if len(evaluation.window_losses) == 32]
            best = min(field, key=lambda pattern: sum(table.losses(pattern)))
            cases.check(min(finished, key=lambda evaluation: evaluation.loss).pattern == best, f"table {seed}")

    def test_dropped_patterns_were_worse_by_the_stated_standard_errors(self):
        table = DistanceTable(4, SITES, windows=32)
        field = [Pattern.all_full(SITES).share(site) for site in range(1, SITES)]
        results = race(table.measurements(), field, standard_errors=3.0)
        dropped = [evaluation for evaluation in results if len(evaluation.window_losses) < 32]
        assert dropped, "nothing was dropped"
        for evaluation in dropped:
            count = len(evaluation.window_losses)
            rivals = [other for other in results if len(other.window_losses) >= count and other is not evaluation]
            differences = [paired_difference(evaluation, other.first(count)) for other in rivals]
            assert any(difference.delta > 3.0 * difference.standard_error for difference in differences)

    def test_a_rival_outside_the_field_can_empty_it(self):
        table = DistanceTable(4, SITES, windows=32)
        full = table.measurements()([Pattern.all_full(SITES)])[0]
        results = race(table.measurements(), [Pattern("F" + "S" * (SITES - 1))], full)
        assert len(results[0].window_losses) == 4


class TestRefine:
    def test_never_raises_the_loss_and_stops_where_no_swap_helps(self):
        for kind, seed in TABLES:
            table = kind(seed, SITES)
            start = Pattern.uniform(SITES, 3)
            losses = [table.measurements()([start])[0].loss]
            (descent,) = refine(table.measurements(), {"uniform": start}, 50, 0.95)
            losses += [swap.evaluation.loss for swap in descent.swaps]
            assert losses == sorted(losses, reverse=True)
            assert all(swap.evaluation.pattern.kept == 3 for swap in descent.swaps)

    def test_rounds_bound_it(self):
        table, start = DistanceTable(2, SITES), {"uniform": Pattern.uniform(SITES, 3)}
        assert len(refine(table.measurements(), start, 9, 0.95)[0].swaps) > 1
        assert len(refine(table.measurements(), start, 1, 0.95)[0].swaps) == 1
        assert refine(table.measurements(), start, 0, 0.95)[0].swaps == ()

    def test_what_these_windows_cannot_tell_is_left_as_it_is(self):
        """All patterns cost the same but for noise: the cheapest of many neighbours looks better, and is not."""
        moved = 0
        for seed in range(40):
            table = LossTable(seed, SITES, windows=8)
            moved += bool(refine(table.measurements(), {"uniform": Pattern.uniform(SITES, 3)}, 9, 0.95)[0].swaps)
        assert moved <= 6, "more than one in twenty, by more than chance"

    def test_the_best_end_of_several_starts_comes_first(self):
        table = DistanceTable(7, SITES)
        starts = {"uniform": Pattern.uniform(SITES, 3), "last": Pattern("F" + "S" * (SITES - 3) + "FF")}
        descents = refine(table.measurements(), starts | {"again": starts["last"]}, 9, 0.95)
        assert {descent.name for descent in descents} == {"uniform", "last"}
        assert descents[0].end.cost <= descents[1].end.cost

    def test_pinned_sites_stay_full(self):
        for seed in range(20):
            start = {"uniform": Pattern.uniform(SITES, 3)}
            for swap in refine(DistanceTable(seed, SITES).measurements(), start, 9, 0.95, pinned=(3,))[0].swaps:
                assert {0, 3} <= set(swap.evaluation.pattern.full)


class TestBlocks:
    def test_the_first_site_of_each_block_stays_full(self):
        steps = blocks_greedy(LossTable(0, 12).measurements(), 12, 3, blocks=3)
        assert steps[-1].pattern.full == (0, 4, 8)

    def test_blocks_take_turns(self):
        steps = blocks_greedy(LossTable(0, 12).measurements(), 12, 6, blocks=3)
        assert [step.removed // 4 for step in steps] == [0, 1, 2, 0, 1, 2]

    def test_one_block_is_exact(self):
        exact = exact_greedy(LossTable(5, SITES).measurements(), SITES, 2)
        one = blocks_greedy(LossTable(5, SITES).measurements(), SITES, 2, blocks=1)
        assert [step.removed for step in one] == [step.removed for step in exact]

    def test_more_blocks_than_sites_to_keep_are_refused(self):
        with pytest.raises(SettingError, match="3 blocks"):
            blocks_greedy(LossTable(0, SITES).measurements(), SITES, 2, blocks=3)


class TestLookAgain:
    """Sites that stay, left undecided on few windows, are measured until they are told apart or have seen all."""

    @staticmethod
    def steps(table, stays):
        measurements = table.measurements()
        steps = fast_greedy(measurements, SITES, 3)
        assert any(step.margins[site].windows < 32 for step in steps for site in step.undecided if site in stays)
        return measurements, steps

    def test_leaves_nothing_open_that_more_windows_tell(self):
        table, stays = SumTable(3, SITES, windows=32), {0, 7, 8}
        measurements, steps = self.steps(table, stays)
        for step in steps:
            settled = look_again(measurements, step, stays, 0.0, 0.95)
            for site in stays & set(settled.margins):
                assert settled.margins[site].beyond() or settled.margins[site].windows == 32
            assert set(settled.undecided) <= set(step.undecided)
            assert set(settled.undecided) - stays == set(step.undecided) - stays

    def test_measures_nothing_where_every_candidate_saw_all(self):
        table = SumTable(3, SITES, windows=32)
        measurements = table.measurements()
        step = exact_greedy(measurements, SITES, 8)[0]
        measured = len(table.measured)
        assert look_again(measurements, step, set(range(SITES)), 0.0, 0.95) == step
        assert len(table.measured) == measured
