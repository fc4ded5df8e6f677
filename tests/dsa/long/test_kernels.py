"""The Triton kernels against float64, on a GPU where there is one and in Triton's interpreter elsewhere."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from indexcache.dsa.long.kernels.attention import fused_attention
from indexcache.dsa.long.kernels.scores import fused_index_scores
from indexcache.dsa.long.kernels.top import select_top

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter computes with numpy, which has no bf16.
DTYPES = [torch.float16, torch.bfloat16] if ON_GPU else [torch.float16]


def poisoned(monkeypatch):
    """Fills whatever the kernels allocate with values that no result may keep."""
    empty_of_torch = torch.empty

    def empty(*shape, **kwargs):
        made = empty_of_torch(*shape, **kwargs)
        return made.fill_(float("nan") if made.is_floating_point() else -(1 << 30))

    monkeypatch.setattr(torch, "empty", empty)


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    poisoned(monkeypatch)


def relative_error(actual, wanted):
    return float((actual.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "heads", "dim", "first"), [(70, 4, 16, 0), (5, 3, 32, 190), (65, 2, 16, 127)])
def test_scores_equal_float64_up_to_each_query(dtype, count, heads, dim, first):
    generator = torch.Generator().manual_seed(count)
    queries = torch.randn(count, heads, dim, generator=generator).to(DEVICE, dtype)
    keys = torch.randn(first + count, dim, generator=generator).to(DEVICE, dtype)
    weights = torch.randn(count, heads, generator=generator).to(DEVICE)
    products = torch.einsum("nhd,td->nht", queries.double(), keys.double()).relu()
    wanted = torch.einsum("nh,nht->nt", weights.double(), products)
    scores = fused_index_scores(queries, keys, weights, first)
    seen = torch.arange(first + count)[None] <= torch.arange(first, first + count)[:, None]
    # Inputs are exact, so that only the order of fp32 sums differs.
    assert relative_error(scores[seen], wanted[seen]) < 1e-6


ROWS = {
    "random": lambda scores: scores,
    "few values": lambda scores: scores.round(),
    "all equal": torch.zeros_like,
    "ascending": lambda scores: scores.sort().values,
    "descending": lambda scores: scores.sort(descending=True).values,
    "mostly equal": lambda scores: scores.clamp(min=1.5),
    "negative": lambda scores: -scores.abs(),
    "signed zeros": lambda scores: torch.where(scores > 0, 0.0, -0.0),
    "far apart": lambda scores: scores.sinh() * 10.0 ** (scores * 10),
}


@pytest.mark.parametrize("first", [15, 60, 700])
def test_the_highest_scores_are_selected_in_order(first):
    """One row of each kind: the kernel goes through each row alone."""
    width, rows = 16, len(ROWS)
    scores = torch.randn(rows, first + rows, generator=torch.Generator().manual_seed(first))
    for row, turn in enumerate(ROWS.values()):
        scores[row] = turn(scores[row])
        scores[row, first + row + 1 :] = torch.inf  # what a query does not see must not be read
    chosen = select_top(scores.to(DEVICE), first, width).cpu()
    for row, kind in enumerate(ROWS):
        seen = scores[row, : first + row + 1]
        assert bool((chosen[row].diff() > 0).all()), f"of {kind} scores not ascending: {chosen[row]}"
        highest = seen.topk(width).values.sort().values
        assert torch.equal(seen[chosen[row].long()].sort().values, highest), f"of {kind} scores others"


def fused(queries, latent, chosen, first, scaling, sinks, rank, first_ones):
    """The kernel's result as ``[queries, heads, rank]``, from ``[queries, heads, rank + rope]``."""
    turned = queries.transpose(0, 1)
    means = fused_attention(
        turned[..., :rank], turned[..., rank:], latent, chosen.to(DEVICE), first, scaling, sinks, first_ones
    )
    return means.transpose(0, 1).cpu()


def attention(queries, latent, chosen, first, scaling, sinks, rank):
    """Row by row in float64, over the set of keys that each query selected and sees."""
    out = torch.zeros(*queries.shape[:2], rank, dtype=torch.float64)
    for row, keys in enumerate(chosen.tolist()):
        seen = sorted({key for key in keys if 0 <= key <= first + row})
        if seen:
            values = latent[seen].cpu().double()
            logits = queries[row].cpu().double() @ values.T * scaling
            if sinks is not None:
                logits = torch.cat([logits, sinks.cpu().double()[:, None]], dim=1)
            out[row] = logits.softmax(-1)[:, : len(seen)] @ values[:, :rank]
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [3, 20, 64])
@pytest.mark.parametrize("sinks", [False, True])
def test_attention_equals_float64(dtype, heads, sinks):
    count, rank, rope, width, first = 4, 32, 16, 70, 100
    generator = torch.Generator().manual_seed(heads)
    queries = torch.randn(count, heads, rank + rope, generator=generator).to(DEVICE, dtype)
    latent = torch.randn(first + count + 20, rank + rope, generator=generator).to(DEVICE, dtype)
    chosen = torch.stack([torch.randperm(len(latent), generator=generator)[:width] for _ in range(count)]).int()
    chosen[0, ::3] = -1
    chosen[1] = -1
    logits = torch.randn(heads, generator=generator).to(DEVICE) if sinks else None
    means = fused(queries, latent, chosen, first, 0.1, logits, rank, first_ones=False)
    wanted = attention(queries, latent, chosen, first, 0.1, logits, rank)
    assert relative_error(means, wanted) < (5e-3 if dtype == torch.bfloat16 else 1e-3)
    assert not means[1].any(), "a query that sees nothing should give zeros"


def test_queries_that_see_few_keys_stop_at_them():
    width, rank = 64, 16
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(80, 2, rank + 16, generator=generator).to(DEVICE, torch.float16)
    latent = torch.randn(80, rank + 16, generator=generator).to(DEVICE, torch.float16)
    chosen = torch.arange(width, dtype=torch.int32).repeat(80, 1)
    means = fused(queries, latent, chosen, 0, 0.3, None, rank, first_ones=True)
    assert relative_error(means, attention(queries, latent, chosen, 0, 0.3, None, rank)) < 1e-3
