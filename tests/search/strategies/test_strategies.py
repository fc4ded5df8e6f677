"""What every strategy promises, on a hundred random loss tables, and what each does alone."""

import functools

import pytest
from loss_tables import DistanceTable, LossTable, algorithm_1

from indexcache.errors import MeasurementError, SettingError
from indexcache.pattern import Pattern
from indexcache.search.losses import Measurements, paired_difference
from indexcache.search.strategies.blocks import blocks_greedy
from indexcache.search.strategies.fast import fast_greedy
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
        """Where nothing moved, a step costs one evaluation and a glance."""
        table = DistanceTable(3, 24, windows=64)
        cold = fast_greedy(table.measurements(), 24, 6)
        table.measured.clear()
        warm = fast_greedy(table.measurements(), 24, 6, order=[step.removed for step in cold])
        assert [step.removed for step in warm] == [step.removed for step in cold]
        assert len(table.measured) < 1.4 * len(warm) * table.windows

    @pytest.mark.parametrize("seed", range(5))
    def test_a_misleading_order_misleads_nothing(self, seed):
        table = DistanceTable(seed, SITES, windows=16)
        right = [step.removed for step in exact_greedy(table.measurements(), SITES, 3)]
        for order in (right[::-1], [*range(SITES - 1, 0, -1)], [8], [99, 0]):
            steps = fast_greedy(table.measurements(), SITES, 3, order=order)
            assert {step.removed for step in steps} == set(right)


class TestRace:
    def test_windows_of_three_documents_drop_nobody(self):
        table = DistanceTable(4, SITES, windows=32)
        measurements = Measurements(table.measure, 32, [window % 3 for window in range(32)])
        field = [Pattern.all_full(SITES).share(site) for site in range(1, SITES)]
        assert {len(evaluation.window_losses) for evaluation in race(measurements, field)} == {32}

    def test_windows_mostly_of_one_document_drop_nobody(self):
        table = DistanceTable(4, SITES, windows=32)
        measurements = Measurements(table.measure, 32, [0 if window % 4 else window for window in range(32)])
        field = [Pattern.all_full(SITES).share(site) for site in range(1, SITES)]
        assert {len(evaluation.window_losses) for evaluation in race(measurements, field)} == {32}

    def test_a_pattern_alone_is_measured_in_one_go(self):
        calls = []

        def measure(patterns, windows):
            calls.append(len(windows))
            return [tuple(1.0 for _ in windows) for _ in patterns]

        race(Measurements(measure, 32), [Pattern("FSF")])
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
            differences = [
                paired_difference(evaluation, type(other)(other.pattern, other.window_losses[:count]))
                for other in rivals
            ]
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
            swaps = refine(table.measurements(), start, rounds=50)
            losses += [swap.evaluation.loss for swap in swaps]
            assert losses == sorted(losses, reverse=True)
            assert all(swap.evaluation.pattern.kept == 3 for swap in swaps)

    def test_rounds_and_noise_floor_bound_it(self):
        table = LossTable(2, SITES)
        start = Pattern.uniform(SITES, 3)
        assert len(refine(table.measurements(), start, rounds=1)) == 1
        assert refine(table.measurements(), start, rounds=0) == []
        assert refine(table.measurements(), start, rounds=9, noise_floor=10.0) == []

    def test_pinned_sites_stay_full(self):
        for seed in range(20):
            for swap in refine(LossTable(seed, SITES).measurements(), Pattern.uniform(SITES, 3), 9, pinned=(3,)):
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
