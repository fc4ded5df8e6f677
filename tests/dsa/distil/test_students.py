"""A student's scores and gradient against the model's own indexer code under autograd, in float64."""

import inspect

import pytest
import torch
from random_models import TOKEN_INDEX_FAMILIES, build, site_layers

from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.chunks import ChunkBudget
from indexcache.dsa.distil import students
from indexcache.dsa.distil.segments import Segment
from indexcache.dsa.distil.students import IndexerCode, Student, divergence_and_gradient
from indexcache.dsa.distil.train import Settings, collect

TOKENS = 36
WINDOWS = torch.randint(0, 4000, (1, TOKENS + 1), generator=torch.Generator().manual_seed(9)).tolist()
CPU = torch.device("cpu")


@pytest.fixture(params=TOKEN_INDEX_FAMILIES)
def learning(request, monkeypatch):
    """A student in float64 with what it learns from: the indexer, the student, its inputs and its target."""
    model, sites = build(request.param), site_layers(request.param)
    segment = Segment(1, len(sites))
    stored = collect(model, sites, WINDOWS, [segment], Settings(rows=9))
    indexer = list(find_indexers(model)[1].values())[1].double()
    # Indexers and the code for long windows ask for fp32 by this method.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(students, "ROWS", 10)  # keys come in four pieces
    student = Student(IndexerCode(indexer), stored.sites[1].parameters, CPU, ChunkBudget(1 << 16, 1 << 16))
    target = stored.target(segment, 0)
    target = target / target.sum(-1, keepdim=True)
    return indexer, student, stored.sites[1].windows[0].to(CPU, torch.float64), target


def own_scores(indexer, parameters, inputs, monkeypatch):
    """Masked scores ``[rows, tokens]`` of the indexer's own forward on the whole window, with gradients."""
    seen = []

    def topk(scores, *args, **kwargs):
        seen.append(scores)
        return stock(scores, *args, **kwargs)

    stock = torch.Tensor.topk
    forward = inspect.unwrap(type(indexer).forward)
    names = inspect.signature(forward).parameters
    arguments = {
        "hidden_states": inputs.hidden[None],
        "position_embeddings": inputs.positions,
        "attention_mask": torch.full((1, TOKENS, TOKENS), -torch.inf, dtype=torch.float64).triu(1),
        "position_ids": inputs.position_ids,
    }
    if "q_resid" in names:
        latent = torch.zeros(1, TOKENS, inputs.latent.shape[1], dtype=torch.float64)
        latent[0, inputs.rows] = inputs.latent
        arguments["q_resid"] = latent
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "topk", topk)
        patch.setattr(indexer, "forward", forward.__get__(indexer), raising=False)
        torch.func.functional_call(indexer, parameters, (), arguments)
    return seen[0][0, inputs.rows]


def test_the_gradient_is_that_of_autograd_through_the_models_own_code(learning, monkeypatch):
    indexer, student, inputs, target = learning
    parameters = {name: value.detach().requires_grad_() for name, value in student.parameters.items()}
    scores = own_scores(indexer, parameters, inputs, monkeypatch)
    divergence = 0.0
    for row, place in enumerate(inputs.rows.tolist()):
        p, logs = target[row, : place + 1], scores[row, : place + 1].log_softmax(-1)
        divergence = divergence + (p * (p.log() - logs)).sum()
    expected = torch.autograd.grad(divergence / len(inputs.rows), list(parameters.values()))

    total = student.learn(inputs, target, 1 / len(inputs.rows))
    assert float(total.detach()) == pytest.approx(float(divergence.detach()), rel=1e-10)
    assert float(student.divergence(inputs, target)) == pytest.approx(float(divergence.detach()), rel=1e-10)
    for (name, value), gradient in zip(student.parameters.items(), expected, strict=True):
        assert value.dtype == torch.float64
        assert gradient.abs().max() > 0, f"nothing flows to {name}"
        torch.testing.assert_close(value.grad, gradient, rtol=1e-8, atol=1e-12)


def test_gradients_of_windows_add_up(learning):
    _, student, inputs, target = learning
    student.learn(inputs, target, 0.5)
    once = {name: value.grad.clone() for name, value in student.parameters.items()}
    student.learn(inputs, target, 0.25)
    for name, value in student.parameters.items():
        torch.testing.assert_close(value.grad, 1.5 * once[name])


def test_at_the_scores_the_gradient_is_q_minus_p():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 8, generator=draw, dtype=torch.float64).requires_grad_()
    hidden = torch.arange(8)[None] > torch.arange(3, 8)[:, None]
    target = torch.rand(5, 8, generator=draw, dtype=torch.float64).masked_fill(hidden, 0)
    target /= target.sum(-1, keepdim=True)
    expected = sum(
        torch.nn.functional.kl_div(scores[row, : row + 4].log_softmax(-1), target[row, : row + 4], reduction="sum")
        for row in range(5)
    )
    divergence, gradient = divergence_and_gradient(scores.detach(), target, hidden)
    torch.testing.assert_close(divergence, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, scores)[0])
