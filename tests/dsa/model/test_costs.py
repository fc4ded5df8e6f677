"""Layer costs against the model's own forward and autograd, in every family, and against measured KL."""

import itertools
import random

import pytest
import torch
from random_models import EMBEDDED, FAMILIES, LAYERS, TOKEN_INDEX_FAMILIES, build, load_checkpoint, site_layers

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.families import FAMILIES as TABLE
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.long.backends import Backends, install
from indexcache.dsa.model.costs import ERROR, FISHER, layer_costs
from indexcache.dsa.model.losses import PatternLosses, Window
from indexcache.dsa.model.stack import Stack
from indexcache.dsa.model.switch import Switch
from indexcache.errors import MeasurementError
from indexcache.pattern import Pattern
from indexcache.search.cost import layer_cost_runs
from indexcache.system import processes

TOKENS = 48


def window(length=TOKENS, seed=1):
    return torch.randint(0, 4000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def width_of(family, model):
    return TABLE[family].selection_width(model.config.get_text_config())


class Watched:
    """The model's own forward: what enters each layer, attention's outputs, selections, and gradients at outputs.

    ``forced`` makes the attention of some layers use other selections, by what is done to its arguments.
    """

    def __init__(self, model, ids, forced=()):
        name, indexers = find_indexers(model)
        self.residuals, self.outputs, self.selections, handles = {}, {}, {}, []
        for layer, module in enumerate(list(model.get_submodule(name))[:LAYERS]):

            def entering(module, args, kwargs, layer=layer):
                self.residuals[layer] = args[0] if args else kwargs["hidden_states"]

            def left(module, args, result, layer=layer):
                self.outputs[layer] = result[0] if isinstance(result, tuple) else result

            handles.append(module.register_forward_pre_hook(entering, with_kwargs=True))
            if hasattr(module, "self_attn"):
                handles.append(module.self_attn.register_forward_hook(left))
        for layer, indexer in indexers.items():

            def chosen(module, args, result, layer=layer):
                self.selections[layer] = result
                return dict(forced).get(layer, result)

            handles.append(indexer.register_forward_hook(chosen))
        # Weights are frozen: the graph begins with what is embedded.
        embedding = model.get_input_embeddings()
        handles.append(embedding.register_forward_hook(lambda module, args, result: result.requires_grad_()))
        with torch.enable_grad():
            self.logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        for handle in handles:
            handle.remove()

    def gradients(self, labels):
        """Of the summed cross entropy with ``labels``, at each layer's attention output."""
        loss = torch.nn.functional.cross_entropy(self.logits, labels, reduction="sum")
        return dict(zip(self.outputs, torch.autograd.grad(loss, list(self.outputs.values())), strict=True))


def drawn_labels(logits, seed):
    """The first token at which the distribution function reaches a seeded number, position by position."""
    draw, labels = random.Random(seed), []
    for chances in logits.detach().double().softmax(-1):
        labels.append(int(torch.searchsorted(chances.cumsum(0), draw.random())))
    return torch.tensor(labels)


def rows(states, blind):
    return states.detach()[0, blind:].double().flatten(1)


def relative_error(change, residual, blind):
    """``mean over r of |d_r|^2 / |h_r|^2``."""
    pairs = zip(rows(change, blind), rows(residual, blind), strict=True)
    return sum(((d @ d) / (h @ h)).item() for d, h in pairs) / (TOKENS - 1 - blind)


def fisher_cost(gradient, change, blind):
    """``sum over r of (g_r . d_r)^2 / (2 labels)``."""
    pairs = zip(rows(gradient, blind), rows(change, blind), strict=True)
    return sum((g @ d).item() ** 2 for g, d in pairs) / 2 / (TOKENS - 1)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_errors_are_those_of_the_models_own_forward(self, family):
        model, sites, ids = build(family), site_layers(family), window()
        blind, stock = width_of(family, model), Watched(model, ids)
        costs = layer_costs(model, Switch(model, sites), [ids], ERROR, blind).windows[0]
        neighbours = list(itertools.pairwise(range(len(sites))))
        for source, site in [*neighbours, (0, len(sites) - 1)]:
            layer = sites[site]
            # Nothing before the site is changed, so that its attention gets what it gets under all full.
            other = Watched(model, ids, {layer: stock.selections[sites[source]]})
            change = other.outputs[layer] - stock.outputs[layer]
            expected = relative_error(change, stock.residuals[layer], blind)
            assert expected > 0, "the two sites chose the same, so that nothing is compared"
            assert costs[source][site] == pytest.approx(expected, rel=1e-3)
        assert all(costs[i][j] == 0 for i in range(len(sites)) for j in range(i + 1)), "a cost backwards"

    def test_fisher_weighs_with_the_gradients_of_the_whole_model(self, family):
        model, sites, ids = build(family), site_layers(family), window()
        blind, stock = width_of(family, model), Watched(model, ids)
        costs = layer_costs(model, Switch(model, sites), [ids], FISHER, blind, seed=3).windows[0]
        gradients = stock.gradients(drawn_labels(stock.logits, "3/0"))
        for source, site in ((0, 1), (0, len(sites) - 1), (len(sites) - 2, len(sites) - 1)):
            layer = sites[site]
            other = Watched(model, ids, {layer: stock.selections[sites[source]]})
            change = other.outputs[layer] - stock.outputs[layer]
            expected = fisher_cost(gradients[layer], change, blind)
            assert costs[source][site] == pytest.approx(expected, rel=1e-3)

    def test_the_model_is_left_as_it_was(self, family):
        model, sites, ids = build(family), site_layers(family), window()
        stock = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        switch = Switch(model, sites)
        for surrogate in (ERROR, FISHER):
            layer_costs(model, switch, [ids], surrogate, width_of(family, model))
            assert switch.selection is None
            assert torch.equal(model(input_ids=torch.tensor([ids]), use_cache=False).logits, stock)
        switch.remove()
        assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("surrogate", [ERROR, FISHER])
def test_layers_that_share_in_the_checkpoint_suffer_with_their_site(surrogate):
    roles, blind = "FSFSSF", 16
    types = ["full" if role == "F" else "shared" for role in roles]
    model, ids, sites = build("glm_moe_dsa", indexer_types=types), window(), (0, 2, 5)
    stock = Watched(model, ids)
    gradients = stock.gradients(drawn_labels(stock.logits, "0/0"))
    costs = layer_costs(model, Switch(model, sites), [ids], surrogate, blind).windows[0]
    expected, forced = 0.0, stock.selections[0]
    for layer in (2, 3, 4):
        attention = model.model.layers[layer].self_attn
        if layer == 2:
            handle = attention.indexer.register_forward_hook(lambda *call: forced)
        else:
            handle = attention.register_forward_pre_hook(
                lambda module, args, kwargs: (args, {**kwargs, "prev_topk_indices": forced}), with_kwargs=True
            )
        change = Watched(model, ids).outputs[layer] - stock.outputs[layer]
        handle.remove()
        if surrogate == ERROR:
            expected += relative_error(change, stock.residuals[layer], blind)
        else:
            expected += fisher_cost(gradients[layer], change, blind)
    assert costs[0][1] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("surrogate", [ERROR, FISHER])
def test_what_is_run_is_counted(surrogate):
    model, windows = build("glm_moe_dsa"), [window(seed=1), window(seed=2)]
    done = []
    costs = layer_costs(
        model, Switch(model, range(LAYERS)), windows, surrogate, 16, on_window=lambda: done.append(1)
    )
    pairs = LAYERS * (LAYERS - 1) // 2
    # Backwards every layer runs again and is differentiated, and attention runs under its own selection too.
    layers, attentions = (LAYERS, pairs) if surrogate == ERROR else (4 * LAYERS, pairs + LAYERS)
    assert (costs.layer_runs, costs.attention_runs, len(done)) == (2 * layers, 2 * attentions, 2)
    assert layer_cost_runs(surrogate, 2, LAYERS, range(LAYERS)) == 2 * (layers + attentions)


@pytest.mark.parametrize("surrogate", [ERROR, FISHER])
def test_layers_that_share_in_the_checkpoint_are_counted_without_a_model_too(surrogate):
    types = ["full" if role == "F" else "shared" for role in "FSFSSF"]
    model, sites, shared = build("glm_moe_dsa", indexer_types=types), (0, 2, 5), (1, 3, 4)
    costs = layer_costs(model, Switch(model, sites), [window()], surrogate, 16)
    assert layer_cost_runs(surrogate, 1, 6, sites, shared) == costs.layer_runs + costs.attention_runs


def test_processes_share_the_windows_and_draw_the_same_labels(monkeypatch):
    model, windows = build("glm_moe_dsa"), [window(seed=seed) for seed in range(3)]
    switch = Switch(model, range(LAYERS))
    whole = layer_costs(model, switch, windows, FISHER, 16).windows
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    for process, share in enumerate(((0, 2), (1,))):
        monkeypatch.setattr(processes, "process_index", lambda process=process: process)
        part = layer_costs(model, switch, windows, FISHER, 16).windows
        assert part == tuple(whole[number] for number in share)


def test_the_seed_decides_the_labels():
    model = build("glm_moe_dsa")
    switch = Switch(model, range(LAYERS))
    first, again, other = (layer_costs(model, switch, [window()], FISHER, 16, seed).windows for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("family", TOKEN_INDEX_FAMILIES)
def test_long_window_code_gives_the_same_errors_and_has_no_backward_pass(family):
    # Long enough that attention gathers what it reads, which is done in place.
    ids, sites, model = window(90), site_layers(family), build(family)
    switch = Switch(model, sites)
    stock = layer_costs(model, switch, [ids], ERROR, 16).windows[0]
    switch.remove()
    remove = install(model, Backends("chunked", "sparse"))
    switch = Switch(model, sites)
    for row, expected in zip(layer_costs(model, switch, [ids], ERROR, 16).windows[0], stock, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-9)
    with pytest.raises(MeasurementError, match="no backward pass") as caught:
        layer_costs(model, switch, [ids], FISHER, 16)
    assert "--surrogate error" in caught.value.hint
    switch.remove()
    remove()


@pytest.mark.parametrize(("surrogate", "said"), [(ERROR, "--window"), (FISHER, "--surrogate error")])
def test_too_little_memory_is_said_with_what_helps(surrogate, said, monkeypatch):
    model = build("glm_moe_dsa")
    switch = Switch(model, range(LAYERS))

    def no_memory(*call):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stack, "run_layer", no_memory)
    with pytest.raises(MeasurementError, match="out of memory") as caught:
        layer_costs(model, switch, [window()], surrogate, 16)
    assert said in caught.value.hint


@pytest.mark.parametrize("surrogate", [ERROR, FISHER])
def test_costs_that_are_no_numbers_are_refused(surrogate):
    model = build("glm_moe_dsa")
    model.model.layers[3].self_attn.o_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(MeasurementError, match="window 0 are NaN"):
        layer_costs(model, Switch(model, range(LAYERS)), [window()], surrogate, 16)


def test_fisher_costs_are_about_the_kl_that_one_shared_site_makes():
    checkpoint = open_checkpoint(str(EMBEDDED))
    model, ids, blind = load_checkpoint(checkpoint, "float32"), window(256, seed=4), checkpoint.selection_width
    losses, sites = PatternLosses(model, checkpoint.site_layers), len(checkpoint.site_layers)
    costs = layer_costs(model, losses.switch, [ids], FISHER, blind).windows[0]
    full = Pattern.all_full(sites)

    def predictions(pattern):
        return losses.logits(pattern, Window(0, ids[:-1]), len(ids) - 1)[0].double().log_softmax(-1)

    stock, measured, estimated = predictions(full), [], []
    for site in (1, 3, 5, 8, 11, 15):
        shared = predictions(full.share(site))
        measured.append((stock.exp() * (stock - shared)).sum(-1).mean().item())
        estimated.append(costs[site - 1][site])
    ratios = sorted(estimate / kl for estimate, kl in zip(estimated, measured, strict=True))
    assert 0.5 < ratios[len(ratios) // 2] < 2, f"estimated over measured KL: {ratios}"
    ranks = [sorted(values).index(value) for values in (measured, estimated) for value in values]
    moved = sum((a - b) ** 2 for a, b in zip(ranks[: len(measured)], ranks[len(measured) :], strict=True))
    count = len(measured)
    assert 1 - 6 * moved / (count * (count * count - 1)) > 0.8, f"{measured} are ranked as {estimated}"
