"""A student: fp32 copies of one indexer's parameters, its differentiable scores, and their gradient by hand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import ModelError
from ..chunks import ChunkBudget
from ..long.indexers import BY_ROW, ROWS, indexer_call
from ..long.scores import DeferredKeys, index_scores
from ..overrides import Overrides


class IndexerInputs(NamedTuple):
    """What an indexer was called with on one window, as far as some queries need it.

    Args:
        hidden: hidden states of all tokens, ``[tokens, hidden]``.
        rows: ascending places of the queries, ``[rows]``, on the CPU.
        latent: what queries are made of, ``[rows, latent]``; None where they are made of hidden states.
        positions: position embeddings, each ``[1, tokens, dim]``.
        position_ids: ``[1, tokens]``; None where the family passes none.
    """

    hidden: torch.Tensor
    rows: torch.Tensor
    latent: torch.Tensor | None
    positions: tuple[torch.Tensor, ...]
    position_ids: torch.Tensor | None

    @property
    def bytes(self) -> int:
        """Memory of what differs from window to window."""
        return sum(part.nbytes for part in (self.hidden, self.rows, self.latent) if part is not None)

    def to(self, device: torch.device, dtype: torch.dtype) -> IndexerInputs:
        """On ``device``, states in ``dtype``; ``rows`` stay where they are."""
        latent = None if self.latent is None else self.latent.to(device, dtype)
        positions = tuple(table.to(device, dtype) for table in self.positions)
        ids = None if self.position_ids is None else self.position_ids.to(device)
        return IndexerInputs(self.hidden.to(device, dtype), self.rows, latent, positions, ids)


class _Projections:
    """Stands in for the cache inside an indexer's forward, and takes what its scores are made of."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.keys = self.queries = self.weights = torch.empty(0)

    def update_indexer(self, keys: torch.Tensor, layer: int) -> DeferredKeys:
        self.keys = keys[0]
        return DeferredKeys(self)

    def choose(self, queries: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor, width: int) -> torch.Tensor:
        self.queries, self.weights = queries[0], weights[0]
        return torch.empty((*queries.shape[:2], width), dtype=torch.int32, device=queries.device)


class IndexerCode:
    """An indexer's own forward with gradients, to be run with other parameters than the model's.

    Args:
        indexer: of a model, of a family whose selections are token indices; its weights are not read.

    Raises:
        ModelError: its forward takes other arguments than are known here.
    """

    def __init__(self, indexer: Any) -> None:
        with torch.device("meta"):
            self._module: Any = type(indexer)(indexer.config, indexer.layer_idx)
        # Transformers' own runs without gradients, by a decorator.
        self._module.forward = MethodType(inspect.unwrap(type(indexer).forward), self._module)
        self._call = indexer_call(self._module.forward)

    def queries(
        self, parameters: Mapping[str, torch.Tensor], inputs: IndexerInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries ``[rows, heads, dim]`` and weights ``[rows, heads]``, scales included, of the inputs' rows."""
        rows = inputs.rows.to(inputs.hidden.device)
        made = self._project(parameters, inputs, rows, inputs.latent)
        return made.queries, made.weights

    def keys(self, parameters: Mapping[str, torch.Tensor], inputs: IndexerInputs) -> torch.Tensor:
        """Keys ``[tokens, dim]`` of all tokens."""
        tokens, device = len(inputs.hidden), inputs.hidden.device
        parts = []
        with self._without_queries():
            for start in range(0, tokens, ROWS):
                rows = torch.arange(start, min(start + ROWS, tokens), device=device)
                latent = None if inputs.latent is None else inputs.latent[:1].expand(len(rows), -1)
                parts.append(self._project(parameters, inputs, rows, latent).keys)
        return torch.cat(parts)

    def _project(
        self,
        parameters: Mapping[str, torch.Tensor],
        inputs: IndexerInputs,
        rows: torch.Tensor,
        latent: torch.Tensor | None,
    ) -> _Projections:
        made = _Projections(len(inputs.hidden))
        arguments = {
            "hidden_states": inputs.hidden[rows][None],
            "q_resid": None if latent is None else latent[None],
            "position_ids": None if inputs.position_ids is None else inputs.position_ids[:, rows],
            "position_embeddings": tuple(table[:, rows] for table in inputs.positions),
            "attention_mask": inputs.hidden.new_zeros(1, 1, 1),  # whoever reads the scores knows what is hidden
            str(self._call.name): made,
        }
        known = {name: value for name, value in arguments.items() if name in self._call.parameters}
        torch.func.functional_call(self._module, dict(parameters), (), known, strict=True)
        return made

    @contextmanager
    def _without_queries(self) -> Iterator[None]:
        """Within it, zeros that take no memory stand for the largest product, whose result nobody reads."""
        with Overrides() as overrides:
            if isinstance(getattr(self._module, "wq_b", None), nn.Linear):
                width = self._module.wq_b.out_features
                overrides.replace(
                    self._module.wq_b,
                    "forward",
                    lambda stock: lambda latent: latent.new_zeros(()).expand(*latent.shape[:-1], width),
                )
            yield


def inputs_of(indexer: nn.Module, arguments: Mapping[str, Any], rows: torch.Tensor) -> IndexerInputs:
    """What ``rows`` need of the arguments, by name, that ``indexer`` was called with on one window.

    Raises:
        ModelError: there are others than are known here.
    """
    known = {*BY_ROW, "position_embeddings", "attention_mask"}
    if unknown := sorted(name for name in arguments.keys() - known if arguments[name] is not None):
        raise ModelError(
            f"{type(indexer).__name__} is called with {', '.join(unknown)}, which a student of it would lack",
            hint="this release of transformers is not known here; see the versions in pyproject.toml",
        )
    hidden, latent = arguments["hidden_states"][0], arguments.get("q_resid")
    places = rows.to(hidden.device)
    return IndexerInputs(
        hidden,
        rows,
        None if latent is None else latent[0, places],
        tuple(arguments["position_embeddings"]),
        arguments.get("position_ids"),
    )


def divergence_and_gradient(
    scores: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``KL(p || q)`` summed over rows, and its gradient at the scores, ``q - p``, with ``q = softmax(scores)``.

    Args:
        scores: ``[rows, keys]``.
        target: ``p``, likewise; rows sum to 1.
        hidden: likewise; true where a query does not see a key, where ``p`` is 0.
    """
    logs = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
    divergence = (torch.xlogy(target, target) - target * logs.masked_fill(hidden, 0.0)).sum()
    return divergence, logs.exp_().sub_(target)


class Student:
    """One indexer that learns.

    Args:
        code: its forward.
        parameters: what it starts from, by name; copied.
        device: where it learns.
        budget: memory for a chunk of scores.
    """

    def __init__(
        self,
        code: IndexerCode,
        parameters: Mapping[str, torch.Tensor],
        device: torch.device,
        budget: ChunkBudget,
    ) -> None:
        self._code, self._device, self._budget = code, device, budget
        self.parameters = {
            name: value.detach().to(device).float().clone().requires_grad_() for name, value in parameters.items()
        }
        """fp32 leaves, by name."""

    def divergence(self, inputs: IndexerInputs, target: torch.Tensor) -> torch.Tensor:
        """``KL(target || softmax of the scores)`` summed over the inputs' rows.

        Args:
            inputs: of one window.
            target: ``[rows, tokens]``; rows sum to 1.
        """
        with torch.no_grad():
            factors = self._factors(inputs)
            return self._over_rows(factors, inputs.rows, target, None)

    def learn(self, inputs: IndexerInputs, target: torch.Tensor, share: float) -> torch.Tensor:
        """Adds ``share`` times the gradient of the summed divergence to the parameters' ``grad``.

        The scores of a chunk of rows are the largest value: no graph over ``[rows, tokens]`` is kept.

        Args:
            inputs: of one window.
            target: ``[rows, tokens]``; rows sum to 1.
            share: 1 / rows of the whole step, for the gradient of the mean.

        Returns:
            The summed divergence before.
        """
        factors = self._factors(inputs)
        gradients = [torch.zeros_like(factor) for factor in factors]
        total = self._over_rows([factor.detach() for factor in factors], inputs.rows, target, gradients)
        torch.autograd.backward(factors, [gradient.mul_(share) for gradient in gradients])
        return total

    def _factors(self, inputs: IndexerInputs) -> list[torch.Tensor]:
        """What scores are made of: queries, keys, weights."""
        placed = inputs.to(self._device, next(iter(self.parameters.values())).dtype)
        queries, weights = self._code.queries(self.parameters, placed)
        return [queries, self._code.keys(self.parameters, placed), weights]

    def _over_rows(
        self,
        factors: list[torch.Tensor],
        rows: torch.Tensor,
        target: torch.Tensor,
        gradients: list[torch.Tensor] | None,
    ) -> torch.Tensor:
        """The summed divergence; adds its gradients at ``factors`` to ``gradients``, in chunks of rows."""
        queries, keys, weights = factors
        divergences: dict[int, torch.Tensor] = {}

        def work(start: int, end: int) -> None:
            places = rows[start:end]
            seen = int(places[-1]) + 1
            hidden = torch.arange(seen, device=self._device)[None] > places.to(self._device)[:, None]
            aim = target[start:end, :seen].to(self._device, queries.dtype)
            aim = aim / aim.sum(-1, keepdim=True)  # stored in few bits
            leaves = [queries[start:end], keys[:seen], weights[start:end]]
            with torch.set_grad_enabled(gradients is not None):
                if gradients is not None:
                    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
                scores = index_scores(*leaves)
            divergences[start], at_scores = divergence_and_gradient(scores.detach(), aim, hidden)
            if gradients is None:
                return
            parts = torch.autograd.grad(scores, leaves, at_scores)
            gradients[0][start:end], gradients[2][start:end] = parts[0], parts[2]
            gradients[1][:seen] += parts[1]  # last, so that a chunk that ran out of memory has added nothing

        # Of one row: products of all heads, their gradients and a copy, and a few rows of scores.
        row_bytes = 4 * len(keys) * (3 * queries.shape[1] + 6)
        self._budget.run(len(rows), row_bytes, self._device, work)
        return torch.stack(list(divergences.values())).sum()
