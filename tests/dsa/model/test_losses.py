"""Losses layer by layer: the model's own, whatever is shared between patterns, wherever the weights are."""

import itertools

import pytest
import torch
from random_models import build, measure

from indexcache.dsa.model import tail as tail_module
from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.stack import Stack, State
from indexcache.dsa.model.states.paths import PathMemory
from indexcache.dsa.model.tail import Window
from indexcache.evaluate import Request
from indexcache.pattern import Pattern
from indexcache.search.cost import LayerCount, Shape
from indexcache.search.goal import Goal, Method
from indexcache.search.search import Problem, SearchProgress, run_search

LAYERS, TOPK = 6, 16
ALL_PATTERNS = [Pattern("F" + "".join(tail)) for tail in itertools.product("FS", repeat=LAYERS - 1)]


def window(length, seed=1):
    return torch.randint(0, 4096, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_model_is_left_as_it_was():
    model, ids = build("glm_moe_dsa"), torch.tensor([window(40)])
    stock = model(input_ids=ids).logits
    losses = PatternLosses(model, range(LAYERS))
    measure(losses, [Pattern("FFFFFS")], ids[0].tolist())
    assert losses.switch.selection is None
    assert torch.equal(model(input_ids=ids).logits, stock), "measuring left the model under a pattern"


@pytest.mark.parametrize("where", ["model.layers.3", "model.norm"])
def test_an_error_on_the_way_leaves_the_model_as_it_was(where):
    model, ids = build("glm_moe_dsa"), torch.tensor([window(40)])
    stock = model(input_ids=ids).logits
    losses = PatternLosses(model, range(LAYERS))
    broken = model.get_submodule(where).register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure(losses, [Pattern("FFFFFS"), Pattern("FSFFFF")], ids[0].tolist())
    broken.remove()
    assert torch.equal(model(input_ids=ids).logits, stock)
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


def test_candidates_of_a_step_share_the_layers_before_their_flip():
    losses = PatternLosses(build("glm_moe_dsa"), range(LAYERS))
    full = Pattern.all_full(LAYERS)
    measure(losses, [full.share(site) for site in range(1, LAYERS)], window(24))
    # The candidate that flips site s runs layers s to 5 on its own; the path they leave runs 0 to 4.
    assert losses.layer_runs == sum(LAYERS - site for site in range(1, LAYERS)) + (LAYERS - 1)


def test_logits_in_chunks_of_rows_give_the_same_loss(monkeypatch):
    ids = window(50)
    whole = measure(PatternLosses(build("glm_moe_dsa"), range(LAYERS)), ALL_PATTERNS[:3], ids)
    monkeypatch.setattr(tail_module, "_LOGITS_BYTES", 4 * 4096 * 7)
    chunked = measure(PatternLosses(build("glm_moe_dsa"), range(LAYERS)), ALL_PATTERNS[:3], ids)
    assert chunked == pytest.approx(whole, rel=1e-6)


def test_float64_agrees_with_float32():
    # Without experts: their grouped matmul has no float64 form.
    dense = build("glm_moe_dsa", first_k_dense_replace=LAYERS)
    single = measure(PatternLosses(dense, range(LAYERS)), ALL_PATTERNS, window(48))
    double = measure(
        PatternLosses(build("glm_moe_dsa", first_k_dense_replace=LAYERS).double(), range(LAYERS)),
        ALL_PATTERNS,
        window(48),
    )
    assert single == pytest.approx(double, rel=1e-4)


def test_a_natively_shared_layer_follows_the_switched_site_before_it():
    roles = ["full", "full", "shared", "full", "shared", "full"]
    model = build("glm_moe_dsa", indexer_types=roles)
    native = build("glm_moe_dsa", indexer_types=["full", "full", "shared", "shared", "shared", "full"])
    native.load_state_dict(model.state_dict(), strict=False)
    ids = window(48)
    switched = measure(PatternLosses(model, (0, 1, 3, 5)), [Pattern("FFSF"), Pattern("FFFF")], ids)
    assert switched[0] == measure(PatternLosses(native, (0, 1, 5)), [Pattern("FFF")], ids)[0]
    assert switched[0] != switched[1]


def same_model(family="glm_moe_dsa", **options):
    return PatternLosses(build(family), range(LAYERS), **options)


# The second carries key states from layer to layer.
@pytest.mark.parametrize("family", ["glm_moe_dsa", "mistral_large4"])
class TestMemory:
    """States kept between calls change what is run, never what comes out."""

    def test_candidates_start_where_they_differ_and_come_out_the_same(self, family):
        memory = PathMemory(range(LAYERS), windows=1, budget=1 << 30)
        ids, keeping, fresh = window(48), same_model(family, memory=memory), same_model(family)
        for pattern in ("FFFFFF", "FFFFSF", "FFFSFF", "FFFFFS", "FFSFSF", "FFFFSS", "FSFFSF"):
            runs = keeping.layer_runs
            assert measure(keeping, [Pattern(pattern)], ids) == measure(fresh, [Pattern(pattern)], ids), pattern
            if pattern == "FFFFSF":
                memory.follow(Pattern(pattern))
                assert keeping.layer_runs - runs == 2, "the candidate did not start at the layer it flips"

    def test_each_of_several_candidates_starts_at_its_own_flip(self, family):
        memory = PathMemory(range(LAYERS), windows=1, budget=1 << 30)
        ids, keeping, fresh = window(48), same_model(family, memory=memory), same_model(family)
        measure(keeping, [Pattern("FFFFFF")], ids)
        field = [Pattern("FFFFSF"), Pattern("FFFFFS")]
        runs = keeping.layer_runs
        assert measure(keeping, field, ids) == measure(fresh, field, ids)
        assert keeping.layer_runs - runs == 2 + 1

    def test_patterns_that_leave_the_known_path_together_share_what_follows(self, family):
        memory = PathMemory(range(LAYERS), windows=1, budget=1 << 30)
        ids, keeping, fresh = window(48), same_model(family, memory=memory), same_model(family)
        measure(keeping, [Pattern("FFFFFF")], ids)
        field = [Pattern("FFFSFF"), Pattern("FFFSFS"), Pattern("FFFFFS")]
        runs = keeping.layer_runs
        assert measure(keeping, field, ids) == measure(fresh, field, ids)
        assert keeping.layer_runs - runs == (1 + 1 + 2) + 1

    @pytest.mark.parametrize("states", [0, 1, 2, 3])
    def test_a_smaller_budget_keeps_fewer_states(self, family, states):
        size = 47 * (64 * 4 + 16 * 4)
        memory = PathMemory(range(LAYERS), windows=1, budget=3 * states * size)
        ids, keeping, fresh = window(48), same_model(family, memory=memory), same_model(family)
        for pattern in (Pattern("FFFFFF"), Pattern("FFFFFS"), Pattern("FFSFFF")):
            assert measure(keeping, [pattern], ids) == measure(fresh, [pattern], ids)
        assert all(len(path.states) <= states for paths in memory._latest.values() for path in paths)


def test_states_are_sized_with_all_that_they_hold():
    hidden, selection, keys = (
        torch.zeros(1, 8, 4),
        torch.zeros(1, 8, 2, dtype=torch.int32),
        torch.zeros(1, 1, 8, 3),
    )
    assert State(hidden, selection).bytes == 4 * (8 * 4 + 8 * 2)
    carried = {"shared_kv_states": {"rope": (keys, keys), "nope": (keys, keys)}}
    assert State(hidden, selection, carried).bytes == 4 * (8 * 4 + 8 * 2 + 4 * 8 * 3)


def test_fewer_states_are_kept_once_a_larger_one_turns_up():
    small, large = State(torch.zeros(10)), State(torch.zeros(20))
    memory = PathMemory(range(LAYERS), windows=1, budget=4 * small.bytes * (LAYERS - 1))
    assert all(memory.wants(layer, small) for layer in range(1, LAYERS))
    wanted = [layer for layer in range(1, LAYERS) if memory.wants(layer, large)]
    assert len(wanted) == (LAYERS - 1) // 2
    memory.keep("window", Pattern("FFFFFF"), dict.fromkeys(range(1, LAYERS), small))
    assert list(memory._latest["window"][0].states) == wanted


def test_windows_in_one_sweep_equal_windows_one_by_one():
    rows = [Window(seed, window(40, seed)) for seed in range(3)]
    together = same_model().measure(ALL_PATTERNS[::7], rows)
    alone = same_model()
    assert together == [alone.measure(ALL_PATTERNS[::7], [row])[0] for row in rows]


def test_windows_of_one_length_have_one_mask_and_others_their_own():
    model = build("glm_moe_dsa")
    stack = Stack(model, PatternLosses(model, range(LAYERS)).switch.stack_name)

    def masks(calls):
        return [id(kwargs["attention_mask"]) for kwargs in calls.kwargs]

    first, second, shorter = (stack.record(torch.tensor([window(*of)])) for of in ((40, 1), (40, 2), (32, 3)))
    assert isinstance(first.kwargs[0]["attention_mask"], torch.Tensor), "the test needs a mask"
    assert set(masks(second.sharing(first))) == set(masks(first)) != set(masks(second))
    assert masks(shorter.sharing(first)) == masks(shorter)


def test_blind_positions_measured_once_give_the_same_loss():
    ids = window(60)
    stock = measure(same_model(), ALL_PATTERNS[::3], ids)
    once = measure(same_model(blind=TOPK), ALL_PATTERNS[::3], ids)
    assert once == pytest.approx(stock, rel=1e-6)
    # One position more would already differ between patterns.
    assert measure(same_model(blind=TOPK + 8), ALL_PATTERNS[::3], ids) != pytest.approx(stock, rel=1e-6)


def windows_of(group, count):
    return [Window((group, seed), window(40, seed + len(group))) for seed in range(count)]


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_bounded_rows_give_the_same_losses(rows):
    groups = {"calibration": windows_of("calibration", 3)}
    free = Evaluator(same_model(), groups)(ALL_PATTERNS[::4], "calibration")
    bounded = Evaluator(same_model(), groups, max_rows=rows)(ALL_PATTERNS[::4], "calibration")
    assert repr(bounded) == repr(free)  # key losses are NaN


def test_some_windows_are_measured_in_their_order():
    groups = {"calibration": windows_of("calibration", 4)}
    everyone = Evaluator(same_model(), groups)(ALL_PATTERNS[:2], "calibration")
    portion = Evaluator(same_model(), groups)(ALL_PATTERNS[:2], "calibration", windows=[3, 1])
    assert repr(portion) == repr([(losses[3], losses[1]) for losses in everyone])


def test_requests_of_one_sweep_give_what_they_give_alone():
    groups = {name: windows_of(name, 4) for name in ("calibration", "heldout")}
    requests = [Request(ALL_PATTERNS[:3], [2, 0]), Request(ALL_PATTERNS[5:6], range(4), "heldout")]
    together = Evaluator(same_model(), groups).sweep(requests)
    alone = [
        Evaluator(same_model(), groups)(ALL_PATTERNS[:3], "calibration", [2, 0]),
        Evaluator(same_model(), groups)(ALL_PATTERNS[5:6], "heldout"),
    ]
    assert repr(together) == repr(alone)  # key losses are NaN


def test_pieces_are_all_that_was_asked_for_a_window_at_a_time():
    evaluator = Evaluator(same_model(), {"calibration": windows_of("calibration", 3)})
    requests = [Request(ALL_PATTERNS[:2], [0, 2]), Request(ALL_PATTERNS[2:3], [1])]
    pieces = [request for piece in evaluator.pieces(requests) for request in piece]
    assert [(request.patterns, list(request.windows)) for request in pieces] == [
        (ALL_PATTERNS[:2], [0]),
        (ALL_PATTERNS[:2], [2]),
        (ALL_PATTERNS[2:3], [1]),
    ]


def test_another_shape_gives_the_same_losses_and_remembers_nothing():
    memory = PathMemory(range(LAYERS), windows=1, budget=1 << 30)
    losses, ids = same_model(memory=memory, blind=TOPK), window(48)
    usual = measure(losses, [Pattern("FFSFFF")], ids)
    runs = losses.layer_runs
    other = losses.measure([Pattern("FFSFFF")], [Window(tuple(ids), ids)], last_token=True)[0]
    assert other == pytest.approx(usual, rel=1e-6)
    assert losses.layer_runs - runs == LAYERS, "states kept in one shape were used in another"


def test_losses_carry_no_graph():
    model = build("glm_moe_dsa").requires_grad_(True)
    losses = PatternLosses(model, range(LAYERS))
    memory = losses.memory = PathMemory(range(LAYERS), windows=1, budget=1 << 30)
    measure(losses, [Pattern("FFFFFF")], window(40))
    hiddens = [
        state.hidden for paths in memory._latest.values() for path in paths for state in path.states.values()
    ]
    assert hiddens
    assert not any(hidden.requires_grad for hidden in hiddens)


@pytest.mark.parametrize("strategy", ["exact", "fast", "blocks"])
def test_the_estimate_counts_layers_as_they_are_run(strategy):
    """With the model's own losses in place of made-up ones, the estimate's count is the evaluator's."""
    groups = {name: windows_of(name, 6) for name in ("calibration", "heldout")}
    memory = PathMemory(range(LAYERS), windows=6, budget=1 << 30)
    evaluator = Evaluator(same_model(memory=memory), groups)
    count = LayerCount(Shape(range(LAYERS), LAYERS, 6, 6))

    def evaluate(requests):
        count.sweep(requests)
        return evaluator.sweep(requests)

    def step(step):
        count.follow(step.pattern)
        evaluator.follow(step.pattern)

    method, documents = Method(strategy=strategy, blocks=2, refine_rounds=2), {name: range(6) for name in groups}
    labels = {name: [39] * 6 for name in groups}
    run_search(Problem(evaluate, labels, documents, LAYERS, Goal(keep=0.34), method), SearchProgress(step))
    assert evaluator.layer_windows() == count.layer_windows
