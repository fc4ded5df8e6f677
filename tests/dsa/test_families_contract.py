"""One contract that every family keeps, whatever its indexers select and wherever its sites are."""

import functools
import importlib
import itertools
from contextlib import nullcontext

import pytest
import torch
from random_models import (
    FAMILIES,
    LAYERS,
    MULTIMODAL,
    build,
    build_multimodal,
    least_room,
    load_checkpoint,
    load_streamed,
    measure,
    site_layers,
)

from indexcache.calibrate.windows import check_length
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.families import FAMILIES as TABLE
from indexcache.dsa.checkpoint.families import family_of
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.checkpoint.sizes.count import measure_sizes
from indexcache.dsa.checks.selfcheck import self_check
from indexcache.dsa.model.agreement import selection_overlap
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.states.paths import PathMemory
from indexcache.dsa.model.switch import Switch
from indexcache.dsa.model.tail import Window
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.room import Room
from indexcache.errors import WindowError
from indexcache.pattern import Pattern, indexer_types

NATIVE = [name for name, family in TABLE.items() if family.passes_selection]


@functools.cache
def fresh(family):
    """A model that every test leaves as it found it: building one takes longer than most tests."""
    return build(family)


@pytest.fixture
def model(family):
    yield fresh(family)
    for module in fresh(family).modules():
        module.__dict__.pop("forward", None)


@pytest.fixture
def sites(family):
    return site_layers(family)


@pytest.fixture
def patterns(sites):
    """Every pattern over the family's sites."""
    return [Pattern("F" + "".join(tail)) for tail in itertools.product("FS", repeat=len(sites) - 1)]


@pytest.fixture
def width(family):
    return TABLE[family].selection_width(fresh(family).config.get_text_config())


def window(length, seed=1):
    return torch.randint(0, 4000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def logits(model, ids, **options):
    return model(input_ids=torch.tensor([ids]), use_cache=False, **options).logits


def stack(model):
    return model.get_submodule(find_indexers(model)[0])


def test_the_table_and_the_fixtures_name_the_same_families():
    assert set(TABLE) == set(FAMILIES)
    assert len(TABLE) == 11


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_the_table_finds_the_models_own_indexers(self, family, model, sites):
        known = family_of(model.config)
        assert known is TABLE[family]
        assert known.site_layers(model.config.get_text_config()) == sites

    def test_the_table_knows_what_flows_between_layers(self, family, model):
        names = set()
        for layer in stack(model):
            layer.register_forward_pre_hook(lambda *call: names.update(call[2]), with_kwargs=True)
        logits(model, window(8))
        for layer in stack(model):
            layer._forward_pre_hooks.clear()
        known = TABLE[family]
        expected = {argument for argument in (known.passes_selection, known.carries) if argument}
        assert names & {"prev_topk_indices", "shared_kv_states"} == expected

    @pytest.mark.reliability("R14")
    def test_all_full_is_the_untouched_model_and_switching_back_restores_it(self, family, model, sites):
        ids = window(64)
        stock = logits(model, ids)
        switch = Switch(model, sites)
        assert torch.equal(logits(model, ids), stock)
        switch.use(Pattern.from_full(len(sites), [0]))
        assert not torch.equal(logits(model, ids), stock)
        switch.use(Pattern.all_full(len(sites)))
        assert torch.equal(logits(model, ids), stock)
        switch.use(Pattern.from_full(len(sites), [0]))
        switch.remove()
        assert torch.equal(logits(model, ids), stock)
        assert not any("forward" in module.__dict__ for module in model.modules())

    def test_every_single_flip_changes_the_loss(self, family, model, sites):
        full = Pattern.all_full(len(sites))
        flips = [full.share(site) for site in full.full[1:]]
        sums = measure(PatternLosses(model, sites), [full, *flips], window(64))
        assert len(set(sums)) == len(sums), "two of them have the same loss"

    def test_a_shared_sites_attention_sees_exactly_what_its_source_sees(self, family, sites, monkeypatch):
        model, seen = build(family), {}
        for config in {
            id(module.config): module.config for module in model.modules() if hasattr(module, "config")
        }.values():
            config._attn_implementation = "eager"
        code = importlib.import_module(type(stack(model)[0]).__module__)
        stock_attention = code.eager_attention_forward

        def watched(module, query, key, value, attention_mask, *args, **kwargs):
            seen[module.layer_idx] = attention_mask > torch.finfo(attention_mask.dtype).min / 2
            return stock_attention(module, query, key, value, attention_mask, *args, **kwargs)

        monkeypatch.setattr(code, "eager_attention_forward", watched)
        roles = "FSFS" if len(sites) == 4 else "FSFSSF"[: len(sites)]
        Switch(model, sites).use(Pattern(roles))
        logits(model, window(64))
        masks = [seen[layer] for layer in sites]
        for site, source in enumerate(Pattern(roles).sources()):
            assert torch.equal(masks[site], masks[source])
        assert not torch.equal(masks[0], masks[2]), "two full sites chose the same"

    def test_cached_decoding_equals_a_full_forward(self, family, model, sites):
        ids = window(44)
        roles = ("FSFS" if len(sites) == 4 else "FSFSSF")[: len(sites)]
        Switch(model, sites).use(Pattern(roles))
        whole = logits(model, ids)
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([ids[:36]]), use_cache=True)
            pieces = [out.logits]
            for token in ids[36:]:
                out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values)
                pieces.append(out.logits)
        assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-4)

    @pytest.mark.reliability("R16")
    def test_forks_equal_patterns_run_one_by_one(self, family, model, sites, patterns):
        losses = PatternLosses(model, sites)
        ids = window(48)
        assert measure(losses, patterns, ids) == [measure(losses, [pattern], ids)[0] for pattern in patterns]

    def test_the_loss_is_the_models_own(self, family, model, sites, patterns):
        ids, portion = window(70), patterns[::3]
        losses = PatternLosses(model, sites)
        measured = measure(losses, portion, ids)
        rows = torch.tensor([ids])
        for pattern, loss in zip(portion, measured, strict=True):
            losses.switch.use(pattern)
            with torch.inference_mode():
                stock = model(input_ids=rows, labels=rows, use_cache=False).loss.item()
            assert loss / 69 == pytest.approx(stock, abs=1e-5), str(pattern)

    @pytest.mark.reliability("R13")
    def test_windows_are_refused_exactly_where_every_pattern_has_the_same_loss(
        self, family, model, sites, patterns, checkpoints, width, cases
    ):
        """From two tokens more than are selected, one query chooses. It may leave out the same key at two sites:
        some window of that length has to tell patterns apart.
        """
        assert open_checkpoint(str(checkpoints[family])).selection_width == width
        losses, some = PatternLosses(model, sites), [*patterns[::5], patterns[-1]]
        for length, seeds in ((8, 1), (width, 1), (width + 1, 4), (width + 2, 4)):
            apart = any(len(set(measure(losses, some, window(length, seed)))) > 1 for seed in range(seeds))
            with nullcontext() if length >= width + 2 else pytest.raises(WindowError):
                check_length(length, width)
            cases.check(apart == (length >= width + 2), f"{length} tokens: patterns told apart is {apart}")

    def test_blind_positions_measured_once_give_the_same_loss(self, family, model, sites, patterns, width):
        ids = window(64)
        stock = measure(PatternLosses(model, sites), patterns[::3], ids)
        once = measure(PatternLosses(model, sites, blind=width), patterns[::3], ids)
        assert once == pytest.approx(stock, rel=1e-6)

    @pytest.mark.reliability("R16")
    def test_states_kept_between_calls_change_nothing(self, family, model, sites, patterns):
        memory = PathMemory(sites, windows=1, budget=1 << 30)
        ids, keeping = window(48), PatternLosses(model, sites, memory=memory)
        for pattern in patterns[:: max(1, len(patterns) // 8)]:
            runs = keeping.layer_runs
            sums = measure(keeping, [pattern], ids)
            assert sums == measure(PatternLosses(model, sites), [pattern], ids), str(pattern)
        assert keeping.layer_runs - runs < LAYERS, "the last pattern did not start from a kept state"

    @pytest.mark.reliability("R23")
    @pytest.mark.parametrize("host", [0, 200_000, 1 << 30])
    def test_layers_that_stream_give_the_same_losses(self, family, model, sites, checkpoints, patterns, host):
        """From files, from files and host memory, and from host memory alone."""
        there = load_streamed(checkpoints[family], Room(), "float32")
        away = load_streamed(checkpoints[family], Room(least_room(model), host), "float32")
        stream, ids = stream_of(away), window(40)
        assert len(stream.files) + len(stream.host) == LAYERS
        assert bool(stream.files) == (host < 1 << 30)
        untouched = logits(there, ids)
        assert torch.equal(logits(away, ids), untouched)
        losses = PatternLosses(away, sites)
        assert losses.streams
        assert measure(losses, patterns[::5], ids) == measure(PatternLosses(there, sites), patterns[::5], ids)
        # What fetches the weights of a layer that is called is back in place.
        losses.switch.remove()
        assert torch.equal(logits(away, ids), untouched)

    def test_half_precision_losses_are_summed_in_full_precision(self, family, sites):
        model, ids = build(family).bfloat16(), window(60)
        stock = logits(model, ids[:-1])[0]
        expected = torch.nn.functional.cross_entropy(stock.double(), torch.tensor(ids[1:]), reduction="sum").item()
        loss = measure(PatternLosses(model, sites), [Pattern.all_full(len(sites))], ids)[0]
        assert loss == pytest.approx(expected, rel=2e-3)

    def test_overlap_is_the_share_of_what_both_select(self, family, model, sites, width):
        losses, ids = PatternLosses(model, sites), window(60)
        chosen = [members(selection, width) for selection in losses.selections([Window(0, ids)])[0]]
        shares = selection_overlap(losses, [ids], width)
        for a, keys in enumerate(chosen):
            for b, others in enumerate(chosen):
                assert shares[a][b] == pytest.approx(len(keys & others) / len(keys))
            assert shares[a][a] == 1.0

    def test_the_self_check_passes_and_leaves_the_model_alone(self, family, checkpoints):
        checkpoint = open_checkpoint(str(checkpoints[family]))
        loaded, ids = load_checkpoint(checkpoint, "float32"), window(64)
        stock = logits(loaded, ids)
        self_check(loaded, checkpoint, window(90, seed=2))
        assert torch.equal(logits(loaded, ids), stock)
        assert not any("forward" in module.__dict__ for module in loaded.modules())

    def test_sizes_are_those_of_the_loaded_model(self, family, checkpoints):
        checkpoint = open_checkpoint(str(checkpoints[family]))
        loaded, sizes = load_checkpoint(checkpoint), measure_sizes(checkpoint)
        assert sizes.parameters == sum(weight.numel() for weight in loaded.parameters())
        assert 0 < sizes.indexer_parameters < sizes.parameters
        assert (sizes.idle_parameters > 0) is (not checkpoint.text_only)


def members(selection, width):
    """What a site selects in its informative rows, as a set of (group, row, index)."""
    rows = selection[0] if selection.dim() == 4 else selection
    chosen = set()
    for group, row in itertools.product(range(rows.shape[0]), range(width, rows.shape[1])):
        values = rows[group, row]
        indices = values.nonzero().flatten() if values.dtype == torch.bool else values[values >= 0]
        chosen |= {(group, row, index) for index in indices.tolist()}
    return chosen


@pytest.mark.parametrize("family", NATIVE)
class TestNativeSharing:
    """transformers' own ``indexer_types`` on the same weights is the oracle."""

    @pytest.mark.reliability("R15")
    def test_the_switch_equals_it(self, family, sites):
        model, ids = build(family), window(64)
        losses = PatternLosses(model, sites)
        # Its glm5_next passes no selection through linear layers: there only neighbours can share.
        tried = ["FSFS"] if family == "glm5_next" else ["FSSSSS", "FFSFSF", "FSFSFS", "FFSSFF"]
        for roles in tried:
            native = with_roles(family, sites, roles)
            native.load_state_dict(model.state_dict(), strict=False)
            losses.switch.use(Pattern(roles))
            assert torch.equal(logits(model, ids), logits(native, ids)), roles

    @pytest.mark.reliability("R15")
    def test_a_checkpoint_that_shares_already_can_share_more(self, family, sites):
        first, more = ("FSFF", "FSFS") if family == "glm5_next" else ("FFSFSF", "FFSSSF")
        model, native, ids = with_roles(family, sites, first), with_roles(family, sites, more), window(64)
        native.load_state_dict(model.state_dict(), strict=False)
        full = [layer for layer, role in zip(sites, first, strict=True) if role == "F"]
        pattern = Pattern("".join(more[sites.index(layer)] for layer in full))
        expected = measure(
            PatternLosses(native, [s for s, r in zip(sites, more, strict=True) if r == "F"]),
            [Pattern.all_full(more.count("F"))],
            ids,
        )
        losses = PatternLosses(model, full)
        assert measure(losses, [pattern], ids) == expected
        losses.switch.use(pattern)
        assert torch.equal(logits(model, ids), logits(native, ids))


def with_roles(family, sites, roles):
    """A model whose own config shares as ``roles`` say of ``sites``."""
    layer_pattern = Pattern(roles).over_layers(sites, LAYERS)
    return build(family, indexer_types=indexer_types(layer_pattern))


@pytest.mark.parametrize("family", MULTIMODAL)
def test_a_multimodal_checkpoint_is_measured_on_its_text(family, tmp_path):
    whole, ids = build_multimodal(family), window(48)
    whole.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.family is TABLE[family]
    assert (checkpoint.layers, checkpoint.vocabulary, checkpoint.longest) == (LAYERS, 4096, 512)
    assert checkpoint.site_layers == site_layers(family)
    loaded = load_checkpoint(checkpoint, "float32")
    assert torch.equal(logits(loaded, ids), logits(whole, ids))
    towers = sum(weight.numel() for weight in whole.parameters()) - sum(w.numel() for w in loaded.parameters())
    assert (towers > 0) is checkpoint.text_only
    full = Pattern.all_full(len(checkpoint.site_layers))
    losses = measure(PatternLosses(loaded, checkpoint.site_layers), [full, full.share(1)], ids)
    assert losses[0] != losses[1]
