"""Chunked indexers and sparse attention against transformers' own, on every family with token indices."""

import copy

import pytest
import torch
from random_models import TOKEN_INDEX_FAMILIES, build

from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.chunks import ChunkBudget
from indexcache.dsa.long import attention, indexers
from indexcache.dsa.long.backends import Backends, install
from indexcache.dsa.long.masks import Visibility
from indexcache.dsa.long.scores import (
    DeferredKeys,
    Scorer,
    index_scores,
    is_distinct,
    mark_distinct,
    select_tokens,
    without_repeats,
)
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.pattern import Pattern

EVERY = [Backends("chunked", "stock"), Backends("stock", "sparse"), Backends("chunked", "sparse")]
TOKENS = 96
SMALL = 40_000  # bytes a chunk: a few rows at these sizes


PIECES = {"whole": (4096, 1 << 26, 4), "gathered": (17, SMALL, 0), "mixed": (37, SMALL, 1)}


@pytest.fixture(params=PIECES.values(), ids=PIECES)
def pieces(request, monkeypatch):
    """Row chunks, their memory, and up to which multiple of the width products with all keys are used."""
    rows, budget, dense = request.param
    monkeypatch.setattr(indexers, "ROWS", rows)
    monkeypatch.setattr(attention, "_DENSE_UP_TO", dense)
    monkeypatch.setattr("indexcache.dsa.long.backends.CHUNK_ON_CPU", budget)


def ids_of(rows, tokens=TOKENS, seed=0):
    return torch.randint(5, 250, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model, ids, **kwargs):
    return model(input_ids=ids, use_cache=False, **kwargs).logits


@pytest.mark.parametrize("family", TOKEN_INDEX_FAMILIES)
class TestEveryFamily:
    def test_logits_equal_stock_with_and_without_padding(self, family, pieces):
        model, ids = build(family), ids_of(2)
        padding = torch.ones_like(ids)
        padding[1, :13] = 0
        stock, padded = logits(model, ids), logits(model, ids, attention_mask=padding)
        for backends in EVERY:
            remove = install(model, backends)
            torch.testing.assert_close(logits(model, ids), stock, rtol=0, atol=5e-5)
            real = padding.bool()
            sparse_logits = logits(model, ids, attention_mask=padding)
            torch.testing.assert_close(sparse_logits[real], padded[real], rtol=0, atol=5e-5)
            remove()
        assert torch.equal(logits(model, ids), stock), "the model was not given its own code back"

    def test_selected_sets_equal_stock_row_for_row(self, family, pieces):
        model, ids = build(family), ids_of(1)
        wanted = selections(model, ids)
        remove = install(model, Backends("chunked"))
        chunked_selections = selections(model, ids)
        remove()
        for layer, (selection, stock) in enumerate(zip(chunked_selections, wanted, strict=True)):
            assert selection.shape == stock.shape
            for row in range(TOKENS):
                seen = [set(keys[0, row].tolist()) & set(range(row + 1)) for keys in (selection, stock)]
                assert seen[0] == seen[1], f"indexer {layer}, row {row} selects other keys than stock"

    def test_window_losses_equal_stock_under_patterns(self, family, pieces):
        window, model = Window(0, ids_of(1, seed=3)[0].tolist()), build(family)
        sites = list(find_indexers(model)[1])
        patterns = [Pattern.all_full(len(sites)), Pattern.from_full(len(sites), [0, 2])]

        def losses(backends):
            remove = install(model, backends)
            measure = PatternLosses(model, sites)
            measured = measure.measure(patterns, [window])[0]
            measure.switch.remove()
            remove()
            return measured

        wanted = losses(Backends())
        for backends in EVERY:
            assert losses(backends) == pytest.approx(wanted, rel=1e-5), f"{backends} under {patterns}"

    @pytest.mark.parametrize("pieces", [PIECES["whole"], PIECES["gathered"]], ids=str, indirect=True)
    def test_sequences_no_longer_than_the_width(self, family, pieces):
        model = build(family)
        for tokens in (1, 2, 15, 16, 17):
            ids = ids_of(1, tokens)
            stock = logits(model, ids)
            remove = install(model, Backends("chunked", "sparse"))
            torch.testing.assert_close(logits(model, ids), stock, rtol=0, atol=5e-5)
            remove()


def selections(model, ids):
    """What every indexer returned."""
    selected, hooks = [], []
    for indexer in find_indexers(model)[1].values():
        hooks.append(indexer.register_forward_hook(lambda *args: selected.append(args[2])))
    logits(model, ids)
    for hook in hooks:
        hook.remove()
    return selected


def test_a_live_cache_keeps_the_stock_indexer():
    model, ids = build("glm_moe_dsa"), ids_of(1)
    with torch.inference_mode():
        wanted = model(input_ids=ids[:, :64], use_cache=True)
        wanted = model(input_ids=ids[:, 64:], past_key_values=wanted.past_key_values, use_cache=True).logits
        install(model, Backends("chunked"))
        out = model(input_ids=ids[:, :64], use_cache=True)
        out = model(input_ids=ids[:, 64:], past_key_values=out.past_key_values, use_cache=True).logits
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("family", TOKEN_INDEX_FAMILIES)
def test_prefill_and_decode_with_a_live_cache_as_stock(family):
    model, ids = build(family), ids_of(2)

    def run():
        with torch.inference_mode():
            prefill = model(input_ids=ids[:, :70], use_cache=True)
            several = model(input_ids=ids[:, 70:80], past_key_values=prefill.past_key_values, use_cache=True)
            one = model(input_ids=ids[:, 80:81], past_key_values=several.past_key_values, use_cache=True)
        return torch.cat([prefill.logits, several.logits, one.logits], dim=1)

    wanted = run()
    install(model, Backends("chunked", "sparse"))
    torch.testing.assert_close(run(), wanted, atol=1e-4, rtol=1e-4)


def test_repeated_selections_count_once():
    model, ids = build("deepseek_v32"), ids_of(1)
    install(model, Backends("stock", "sparse"))

    def repeating(own_forward):
        def forward(*args, **kwargs):
            chosen = own_forward(*args, **kwargs).clone()
            chosen[..., 1::2] = chosen[..., ::2]
            return chosen

        return forward

    for indexer in find_indexers(model)[1].values():
        indexer.forward = repeating(indexer.forward)
    repeated_logits = logits(model, ids)
    stock = build("deepseek_v32")
    for indexer in find_indexers(stock)[1].values():
        indexer.forward = repeating(indexer.forward)
    torch.testing.assert_close(repeated_logits, logits(stock, ids), rtol=0, atol=5e-5)


def test_without_repeats_keeps_one_of_each():
    assert without_repeats(torch.tensor([[5, 2, 5, 5, 2, 1]])).tolist() == [[1, 2, -1, 5, -1, -1]]


def test_the_note_of_distinctness_does_not_reach_copies():
    selection = mark_distinct(torch.arange(4))
    assert is_distinct(selection)
    assert not is_distinct(selection.clone())


def test_scores_equal_float64():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(9, 5, 16, generator=generator), torch.randn(30, 16, generator=generator)
    weights = torch.randn(9, 5, generator=generator)
    products = torch.einsum("nhd,td->nht", queries.double(), keys.double()).relu()
    wanted = torch.einsum("nh,nht->nt", weights.double(), products)
    torch.testing.assert_close(index_scores(queries, keys, weights).double(), wanted, rtol=0, atol=1e-5)


def test_attention_equals_float64_on_the_selected_keys(pieces):
    model = build("glm_moe_dsa").double()
    model.config._experts_implementation = "eager"  # grouped products take no float64
    wanted = logits(model, ids_of(1))
    single = copy.deepcopy(model).float()
    install(single, Backends("chunked", "sparse"))
    error = (logits(single, ids_of(1)).double() - wanted).abs().max()
    assert error < 5e-5, f"fp32 with sparse attention is {error:.1e} off float64"


def test_what_an_indexer_does_with_keys_beyond_what_is_foreseen_is_refused():
    keys = DeferredKeys(Scorer(torch.randn(1, 8, 4), 0, 8, ChunkBudget(1 << 20, 1 << 20)))
    with pytest.raises(TypeError, match="not foreseen"):
        torch.einsum("bd,bkd->bk", torch.randn(1, 4), keys)
    with pytest.raises(TypeError, match="not foreseen"):
        torch.sigmoid(torch.matmul(torch.randn(1, 8, 2, 4), keys))


def test_memory_that_runs_out_halves_the_chunk_and_is_told():
    lines, done = [], []
    budget = ChunkBudget(on_cpu=800, on_gpu=1 << 30, on_shortage=lines.append)

    def work(first, end):
        if end - first > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.append((first, end))

    budget.run(10, 1, torch.device("cuda"), work)
    assert done == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert budget.bytes(torch.device("cuda")) == 1 << 28, "each time halves what later chunks may take"
    assert lines == [
        "out of memory: going on with chunks of 5 rows",
        "out of memory: going on with chunks of 2 rows",
    ]
    with pytest.raises(torch.OutOfMemoryError):
        budget.run(1, 1, torch.device("cuda"), lambda first, end: work(0, 9) if end - first == 1 else None)


def test_chosen_keys_are_visible_ones(pieces):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(50, 4, 16, generator=generator), torch.randn(50, 16, generator=generator)
    chosen = torch.full((50, 8), -1, dtype=torch.int32)
    weights = torch.randn(50, 4, generator=generator)
    dense = torch.ones(1, 50, 50, dtype=torch.bool).tril()
    select_tokens(queries, keys, weights, Visibility(dense), 0, 0, chosen, ChunkBudget(SMALL, SMALL))
    for row in range(8, 50):
        assert len(set(chosen[row].tolist())) == 8
        assert int(chosen[row].max()) <= row


def relative_error(actual, wanted):
    return float((actual.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["glm_moe_dsa", "deepseek_v32", "axk2", "hy_v4"])
def test_kernels_in_a_model_are_as_near_to_fp32_as_stock_bf16(family, monkeypatch):
    # Random selections are 5 times as far off on these models.
    from indexcache.dsa.long.kernels import attention as attention_kernel
    from indexcache.dsa.long.kernels import scores as score_kernel

    calls = []
    for module, name in ((attention_kernel, "fused_attention"), (score_kernel, "fused_index_scores")):
        stock = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, stock=stock, name=name: (calls.append(name), stock(*args))[1]
        )
    sizes = {"kv_lora_rank": 64, "qk_rope_head_dim": 16, "index_head_dim": 32, "index_topk": 32}
    model, ids = build(family, layers=2, **sizes).cuda(), ids_of(1, 400).cuda()
    exact = logits(model, ids)
    model.bfloat16()
    stock = relative_error(logits(model, ids), exact)
    install(model, Backends("chunked", "sparse"))
    assert relative_error(logits(model, ids), exact) < 1.5 * stock
    assert set(calls) == {"fused_attention", "fused_index_scores"}, "the kernels did not run"
