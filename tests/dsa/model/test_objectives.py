"""Divergence, agreement and key loss against float64 on whole logits, and on a model against transformers."""

import math

import pytest
import torch
from random_models import build

from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.objectives import divergences, key_weights, short_pieces, window_loss
from indexcache.dsa.model.tail import References, Window
from indexcache.pattern import Pattern, indexer_types

SITES, TOKENS = 8, 96


def exact_divergence(reference, logits):
    """By definition, in float64."""
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("distance", [1e-4, 1e-2, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_divergence_is_exact_to_a_millionth(distance, scale):
    generator = torch.Generator().manual_seed(0)
    reference = scale * torch.randn(64, 4096, generator=generator)
    logits = reference + distance * torch.randn(64, 4096, generator=generator)
    expected = float(exact_divergence(reference, logits).sum())
    assert float(divergences(reference, logits).double().sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distance", [1e-2, 0.3, 3.0])
def test_divergence_is_exact_though_a_softmax_of_many_tokens_does_not_sum_up_to_one(distance):
    generator = torch.Generator().manual_seed(0)
    reference = 3 * torch.randn(16, 150_000, generator=generator)
    logits = reference + distance * torch.randn(16, 150_000, generator=generator)
    expected = float(exact_divergence(reference, logits).sum())
    assert float(divergences(reference, logits).sum()) == pytest.approx(expected, rel=3e-7)


def test_a_shift_of_all_logits_changes_nothing():
    logits = torch.randn(4, 100)
    assert float(divergences(logits, logits + 7.5).abs().max()) < 1e-10
    assert float(divergences(logits, logits).max()) == 0.0


def test_a_certain_token_that_is_lost_costs_what_it_should():
    reference, logits = torch.zeros(1, 10), torch.zeros(1, 10)
    reference[0, 3], logits[0, 3] = 40.0, -40.0
    assert float(divergences(reference, logits)) == pytest.approx(
        float(exact_divergence(reference, logits)), rel=1e-6
    )


def test_what_is_counted_of_a_window():
    reference = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    measured = window_loss(logits, labels, reference, torch.tensor([0.0, 0.0, 2.0]))
    assert (measured.agreement, measured.correct) == (2.0, 2.0)
    assert measured.key_loss == pytest.approx(2 * math.log(1 + math.e))
    assert math.isnan(window_loss(logits, labels).divergence)


def test_key_weights_have_a_mean_of_one_and_know_only_gains():
    weights = key_weights(torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, 0.5, 99.0]))
    assert weights.tolist() == pytest.approx([0.0, 4 / 6, 0.0, 20 / 6])
    assert key_weights(torch.ones(3), torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("tokens", "short"), [(31, 16), (32, 16), (33, 16), (80, 16), (127, 16), (300, 37)])
def test_every_label_with_a_long_context_is_in_one_piece(tokens, short):
    pieces = list(short_pieces(tokens))
    labels = [label for _, first, end in pieces for label in range(first, end)]
    assert labels == list(range(2 * short, tokens))
    assert all(short <= label - start < 2 * short for start, first, end in pieces for label in range(first, end))


@pytest.fixture(scope="module")
def model():
    return build("glm_moe_dsa", layers=SITES, seed=3)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 4096, (TOKENS,), generator=torch.Generator().manual_seed(1))


def stock_logits(model, ids, pattern):
    native = build("glm_moe_dsa", layers=SITES, indexer_types=indexer_types(pattern))
    native.load_state_dict(model.state_dict(), strict=False)
    with torch.inference_mode():
        return native(input_ids=ids[None, :-1]).logits[0]


@pytest.mark.parametrize("room", [1 << 30, 0])
@pytest.mark.parametrize("blind", [0, 8])
def test_a_model_s_figures_are_those_of_stock_logits(model, ids, room, blind):
    patterns = [Pattern("FSFSSFSS"), Pattern("FFFFFFFF"), Pattern("FSSSSSSS")]
    losses = PatternLosses(model, range(SITES), blind=blind, reference_budget=room)
    full = stock_logits(model, ids, "F" * SITES)
    for asked in (patterns, patterns[:1]):
        for pattern, measured in zip(asked, losses.compare(asked, [Window("w", ids.tolist())])[0], strict=True):
            logits = stock_logits(model, ids, str(pattern))
            cross_entropy = torch.nn.functional.cross_entropy(logits.double(), ids[1:], reduction="sum")
            assert measured.loss == pytest.approx(float(cross_entropy), rel=1e-6)
            expected = float(exact_divergence(full, logits).sum())
            assert measured.divergence == pytest.approx(expected, rel=1e-4, abs=1e-9), pattern
            assert measured.agreement == int((logits.argmax(-1) == full.argmax(-1)).sum())
            assert measured.correct == int((logits.argmax(-1) == ids[1:]).sum())
            assert math.isnan(measured.key_loss)


def test_only_answers_count_where_a_window_has_some(model, ids):
    answers, pattern = (40, 41, 90), Pattern("FSSSSSSS")
    losses = PatternLosses(model, range(SITES), blind=8)
    measured = losses.compare([pattern], [Window("p", ids.tolist(), answers)])[0][0]
    logits, full = (stock_logits(model, ids, str(p))[list(answers)] for p in (pattern, "F" * SITES))
    labels = ids[1:][list(answers)]
    assert measured.loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum")), rel=1e-5
    )
    assert measured.divergence == pytest.approx(float(exact_divergence(full, logits).sum()), rel=1e-4)


def test_key_loss_weighs_labels_by_what_short_contexts_lack(model, ids):
    """Each piece by stock transformers: the label's loss with 16 to 31 tokens before it against all of them."""
    pattern, labels = Pattern("FSSSSSSS"), ids[1:]
    losses = PatternLosses(model, range(SITES))
    measured = losses.compare([pattern], [Window("k", ids.tolist(), weighs_keys=True)])[0][0]
    full = torch.nn.functional.cross_entropy(stock_logits(model, ids, "F" * SITES), labels, reduction="none")
    near = full.clone()
    for start, first, end in short_pieces(TOKENS - 1):
        with torch.inference_mode():
            logits = model(input_ids=ids[None, start:end]).logits[0, first - start :]
        near[first:end] = torch.nn.functional.cross_entropy(logits, labels[first:end], reduction="none")
    gains = (near - full).clamp(0, 5).double()
    losses_of_labels = torch.nn.functional.cross_entropy(
        stock_logits(model, ids, str(pattern)).double(), labels, reduction="none"
    )
    assert gains.sum() > 0, "the test needs labels that gain"
    assert measured.key_loss == pytest.approx(float((losses_of_labels * gains / gains.mean()).sum()), rel=1e-4)


def test_states_are_kept_as_far_as_there_is_room():
    references = References(4 * 10 * 8)
    references.keep("a", torch.ones(1, 10, 8))
    references.keep("b", torch.ones(1, 10, 8))
    assert list(references.of([Window("a", ()), Window("b", ())])) == ["a"]
