"""What a search is expected to cost: the same count as measuring, without a model."""

import random
from dataclasses import replace

import pytest
from loss_tables import LossTable

from indexcache.evaluate import Request
from indexcache.pattern import Pattern
from indexcache.search.cost import LayerCount, Shape, layer_cost_runs, layer_cost_sweeps
from indexcache.search.estimate import expected_cost
from indexcache.search.goal import Goal, Method

SITE_LAYERS, LAYERS = (1, 2, 4, 5, 7), 9
SHAPE = Shape(SITE_LAYERS, LAYERS, windows=6, heldout=3)


def prefix_tree(patterns, start, without_indexer=False):
    """Layers from ``start`` on, once for each state: a state is what all sites up to the layer decided."""
    states = set()
    for pattern in patterns:
        roles = dict(zip(SITE_LAYERS, pattern.roles, strict=True))
        for layer in range(start, LAYERS):
            if not without_indexer or roles.get(layer) != "F":
                states.add((layer, "".join(role for at, role in roles.items() if at <= layer)))
    return len(states)


def some_patterns(chance, count):
    return [Pattern("F" + "".join(chance.choice("FS") for _ in SITE_LAYERS[1:])) for _ in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_patterns_share_the_layers_before_they_differ(seed):
    patterns = some_patterns(random.Random(seed), 1 + seed)
    count = LayerCount(SHAPE)
    count.measure(patterns, [0, 1])
    assert count.layer_windows == 2 * prefix_tree(patterns, 0)
    assert count.shared_layer_windows == 2 * prefix_tree(patterns, 0, without_indexer=True)


def test_candidates_start_where_they_leave_the_pattern_in_force():
    count, full = LayerCount(SHAPE), Pattern("FFFFF")
    count.measure([full], [0])
    before = count.layer_windows
    count.measure([full.share(3), full.share(4)], [0])
    assert count.layer_windows - before == (LAYERS - 5) + (LAYERS - 7)
    count.measure([full.share(2)], [0])
    count.follow(full.share(2))
    before = count.layer_windows
    count.measure([full.share(2).share(4)], [0])
    assert count.layer_windows - before == LAYERS - 7


def test_states_of_one_window_say_nothing_of_another():
    count = LayerCount(SHAPE)
    count.measure([Pattern("FFFFF")], [0])
    count.measure([Pattern("FFFFS")], [1])
    assert count.layer_windows == 2 * LAYERS


@pytest.mark.parametrize("goal", [Goal(keep=0.4), Goal(max_delta=0.1), Goal(keep=1.0), Goal(0.6, to_one=True)])
@pytest.mark.parametrize("strategy", ["exact", "blocks"])
def test_what_does_not_depend_on_losses_is_counted_exactly(goal, strategy):
    """Evaluations of exact and blocks are the same whatever the losses are."""
    from indexcache.search.search import Problem, run_search

    method, table = Method(strategy=strategy, blocks=2), LossTable(3, 5)
    done = []

    def evaluate(requests):
        done.extend(len(request.patterns) * len(request.windows) for request in requests)
        return [
            [tuple(window.losses for window in windows) for windows in measured]
            for measured in table.sweep(requests)
        ]

    documents = {"calibration": range(6), "heldout": range(3)}
    labels = {group: [1] * len(numbers) for group, numbers in documents.items()}
    run_search(Problem(evaluate, labels, documents, 5, goal, method))
    expected = expected_cost(SHAPE, goal, method)
    # A uniform pattern that the search came by is not measured again, and the losses say which it comes by.
    assert abs(expected.window_evaluations - sum(done)) <= 4 * SHAPE.windows


def test_without_a_removal_there_is_the_baseline_twice_and_the_held_out_check():
    expected = expected_cost(SHAPE, Goal(keep=1.0), Method())
    assert expected.layer_windows == (2 * SHAPE.windows + SHAPE.heldout) * LAYERS
    assert (expected.search_layer_windows, expected.algorithm_1_layer_windows) == (0, 0)


def test_algorithm_1_runs_every_candidate_through_every_layer():
    expected = expected_cost(SHAPE, Goal(keep=0.4), Method(strategy="exact"))
    assert expected.algorithm_1_layer_windows == (4 + 3 + 2) * 6 * LAYERS


def test_the_deeper_the_model_the_more_fast_saves():
    ratios = []
    for sites in (16, 47, 78):
        fast, exact = (
            expected_cost(Shape(range(sites), sites, 16, 0), Goal(keep=0.25), Method(strategy=strategy))
            for strategy in ("fast", "exact")
        )
        assert 1.5 < exact.fewer < 2.2
        assert fast.search_layer_windows < exact.search_layer_windows
        ratios.append(fast.fewer)
    assert ratios == sorted(ratios)


def test_rows_that_do_not_fit_together_share_less():
    patterns = some_patterns(random.Random(0), 8)
    counts = []
    for rows in (8, 2, 1):
        count = LayerCount(SHAPE)
        for first in range(0, 8, rows):
            count.measure(patterns[first : first + rows], [0], remember=False)
        counts.append(count.layer_windows)
    assert counts[0] < counts[1] < counts[2] == 8 * LAYERS


def test_a_step_takes_a_sweep_and_a_half_at_most():
    """Beside the steps there are all full, the noise floor's two, uniform, and the held-out check."""
    for sites, kept in ((61, 16), (78, 20)):
        expected = expected_cost(Shape(range(sites), sites, 32, 4), Goal(keep=kept / sites), Method())
        assert sites - kept < expected.sweeps <= 1.5 * (sites - kept) + 5


def test_the_same_twice():
    cost = [expected_cost(SHAPE, Goal(keep=0.4), Method(strategy="fast", refine_rounds=2)) for _ in range(2)]
    assert cost[0] == cost[1]


def test_many_windows_cost_in_proportion():
    few, many = (
        expected_cost(Shape(range(16), 16, windows, 0), Goal(keep=0.25), Method()) for windows in (32, 3200)
    )
    assert many.layer_windows == 100 * few.layer_windows
    assert many.algorithm_1_layer_windows == 100 * few.algorithm_1_layer_windows


def test_overlap_patterns_and_their_selections_count():
    plain, both = (expected_cost(SHAPE, Goal(keep=0.4), Method(), overlap) for overlap in (False, True))
    assert both.layer_windows >= plain.layer_windows + SHAPE.windows * LAYERS


def test_blocks_go_no_deeper_than_a_site_each():
    expected = expected_cost(SHAPE, Goal(max_delta=1.0), Method(strategy="blocks", blocks=2))
    assert expected.algorithm_1_layer_windows == (4 + 3 + 2) * 6 * LAYERS


@pytest.mark.parametrize("goal", [Goal(keep=0.4), Goal(max_delta=0.1), Goal(0.6, to_one=True)])
@pytest.mark.parametrize("surrogate", ["error", "fisher"])
def test_dynamic_programming_costs_its_layer_costs_and_a_pattern_a_budget(goal, surrogate):
    shape = replace(SHAPE, cost_windows=2)
    expected = expected_cost(shape, goal, Method(strategy="dp", surrogate=surrogate))
    costs = layer_cost_runs(surrogate, 2, LAYERS, SITE_LAYERS)
    patterns = 1 if goal.keep and not goal.to_one else 4
    asked = expected.search_layer_windows - costs
    assert 0 < asked <= patterns * shape.windows * LAYERS
    kept = 3 if goal.to_one else 2
    if goal.keep:
        removals = range(kept, 5)
        assert expected.algorithm_1_layer_windows == sum(removals) * shape.windows * LAYERS


def both_surrogates(method):
    """What a search costs with either kind of layer costs, and by how much measuring the second takes more."""
    shape = replace(SHAPE, cost_windows=2)
    error, fisher = (
        expected_cost(shape, Goal(0.4), replace(method, surrogate=name)) for name in ("error", "fisher")
    )
    runs = [layer_cost_runs(name, 2, LAYERS, SITE_LAYERS) for name in ("error", "fisher")]
    return error, fisher, runs[1] - runs[0]


def test_layer_costs_count_where_they_are_only_a_baseline_but_not_as_choosing():
    error, fisher, more = both_surrogates(Method(strategy="exact"))
    assert fisher.layer_windows - error.layer_windows == more
    assert fisher.search_layer_windows == error.search_layer_windows


def test_where_layer_costs_order_fast_they_count_as_choosing():
    error, fisher, more = both_surrogates(Method())
    assert fisher.search_layer_windows - error.search_layer_windows == more
    # An older plan's order goes before theirs.
    error, fisher, _ = both_surrogates(Method(order=(3, 1, 4, 2)))
    assert fisher.search_layer_windows == error.search_layer_windows


def test_algorithm_1_takes_the_windows_that_auto_comes_to():
    shape = Shape(range(16), 16, 128, 0)
    expected = expected_cost(shape, Goal(keep=0.5), Method(auto_windows=True))
    evaluations = sum(range(8, 16))
    assert expected.algorithm_1_layer_windows % (evaluations * 16) == 0
    assert 0 < expected.algorithm_1_layer_windows <= evaluations * 16 * 128


def rows(sweeps):
    return sum(sum(sweep.full) + sum(sweep.shared) for sweep in sweeps)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("surrogate", ["none", "error", "fisher"])
@pytest.mark.parametrize("windows", [6, 96])
def test_the_rows_of_all_sweeps_are_all_layer_windows(surrogate, windows, overlap):
    shape = Shape(SITE_LAYERS, LAYERS, windows, 3, cost_windows=2)
    expected = expected_cost(shape, Goal(keep=0.4), Method(surrogate=surrogate), overlap)
    assert rows(expected.sweep_rows) == pytest.approx(expected.layer_windows, abs=0 if windows == 6 else LAYERS)
    assert expected.sweeps == len(expected.sweep_rows)


@pytest.mark.parametrize("surrogate", ["error", "fisher"])
@pytest.mark.parametrize("shared", [(), (3, 6)])
def test_layer_costs_take_one_pass_or_for_each_window_one_forward_and_one_back(surrogate, shared):
    sweeps = layer_cost_sweeps(surrogate, 2, LAYERS, SITE_LAYERS, shared)
    assert rows(sweeps) == layer_cost_runs(surrogate, 2, LAYERS, SITE_LAYERS, shared)
    assert len(sweeps) == (2 * 2 if surrogate == "fisher" else 1)
    assert all(sum(row) >= sweep.windows for sweep in sweeps for row in zip(sweep.full, sweep.shared, strict=True))


def test_a_sweep_runs_the_layers_from_where_states_are_kept():
    count, full = LayerCount(SHAPE), Pattern("FFFFF")
    first = count.sweep([Request([full], [0, 1])])
    assert (first.full, first.shared) == ((0, 2, 2, 0, 2, 2, 0, 2, 0), (2, 0, 0, 2, 0, 0, 2, 0, 2))
    second = count.sweep([Request([full.share(3), full.share(4)], [0, 1])])
    # The last site's layer alone runs with an indexer in one state and without in the other.
    assert (second.full, second.shared) == ((0, 0, 0, 0, 0, 0, 0, 2, 0), (0, 0, 0, 0, 0, 2, 2, 2, 4))


def test_the_fewer_states_are_kept_the_more_layers_run_in_as_many_sweeps():
    costs = [
        expected_cost(Shape(range(16), 16, 8, 4, kept_states=kept), Goal(keep=0.25), Method())
        for kept in (None, 15, 4, 1, 0)
    ]
    counts = [cost.layer_windows for cost in costs]
    assert counts[0] == counts[1] < counts[2] < counts[3] < counts[4]
    assert len({cost.sweeps for cost in costs}) == 1
    # Without any, a sweep runs every layer.
    assert all(min(map(sum, zip(sweep.full, sweep.shared, strict=True))) for sweep in costs[4].sweep_rows)


def test_states_are_kept_where_the_evaluator_keeps_them():
    from indexcache.dsa.model.states.paths import PathMemory

    class State:
        bytes = 10

    for count in range(6):
        memory = PathMemory(SITE_LAYERS, 3, budget=4 * 3 * 10 * count)
        kept = tuple(layer for layer in range(LAYERS) if memory.wants(layer, State()))
        assert replace(SHAPE, kept_states=count).kept_layers == kept
