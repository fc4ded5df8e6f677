"""Tries on a short window, before a search, whether switching this model's indexers does what it should."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from ...errors import LostProcessError, MeasurementError, ModelError, StorageError, first_line
from ...pattern import Pattern, layer_ranges
from ..checkpoint.config import Checkpoint
from ..chunks import out_of_memory
from ..long.backends import Backends
from ..model.losses import Asked, PatternLosses, input_device
from ..model.tail import Window
from ..stream.layers import stream_of, whole_forward
from .competence import Guess, check_competence
from .fastpath import check_fast_path
from .finite import not_finite

# How many sites are flipped one by one in a known family, spread evenly; in an unknown one all are.
_FLIPS = 8
# Positions at which logits are compared.
_POSITIONS = 16
# Where results that should be equal differ, the same run is repeated so often, and this many times the largest
# difference between the repeats is allowed. On a CPU equal runs do not differ.
_RERUNS = 3
_TIMES_NOISE = 4.0
_TYPES_DIFFER = re.compile(r"dtype|scalar type", re.IGNORECASE)
# Patterns that go through the layers together.
_ROWS = 8
# As a part of the largest logit: what comes after the layers runs on fewer rows, which may be rounded otherwise.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-8}
_COARSE_ROUNDING = 0.02
# What ends a check and says nothing of the model.
_FAULTS_OF_THE_MACHINE = (LostProcessError, MeasurementError, StorageError)


def self_check(
    model: torch.nn.Module, checkpoint: Checkpoint, token_ids: Sequence[int], guess: Guess | None = None
) -> None:
    """Runs the checks; the model is left as it was.

    All full is the model untouched; layers one at a time give what the model gives as a whole, also
    under a pattern; patterns run together give what each gives alone; sharing a site changes the loss,
    except where no query sees more keys than its indexer selects; switching back restores the model.

    Args:
        model: as loaded, without a switch.
        checkpoint: what it was loaded from.
        token_ids: of the text; the first ``check_tokens`` are used, over again where there are fewer.
        guess: what the model has to be better than; None for any model.

    Raises:
        ModelError: says which check failed.
        StorageError: weights that stream cannot be read any more.
        LostProcessError: another process that brings them is gone.
    """
    try:
        _SelfCheck(model, checkpoint, token_ids).run()
    except _FAULTS_OF_THE_MACHINE:
        raise
    except ModelError as error:
        raise _refusal(checkpoint, str(error), error.hint, shared=True) from error
    except Exception as error:  # whatever an unknown model makes of being run layer by layer
        fault = f"it raises {type(error).__name__}: {first_line(error)}"
        raise _refusal(checkpoint, fault, _remedy(error)) from error
    if guess is not None:
        check_competence(model, checkpoint, guess)


def check_backends(
    model: torch.nn.Module, checkpoint: Checkpoint, backends: Backends, token_ids: Sequence[int], tokens: int
) -> None:
    """Holds what is to run against the model's own code, see ``check_fast_path``; the model is left as it was.

    Where the model's own code runs out of memory a shorter window is taken, down to ``check_tokens``.

    Args:
        model: as loaded, with nothing put on it.
        checkpoint: what it was loaded from.
        backends: what is to run.
        token_ids: of the text, used over again where there are fewer than ``tokens``.
        tokens: of the window to try.

    Raises:
        ModelError: they do not agree, or what was to run does not.
    """
    asked_length, shortest = tokens, min(tokens, check_tokens(checkpoint.selection_width))
    while True:
        ids = [token_ids[place % len(token_ids)] for place in range(tokens)]
        short = False
        try:
            check_fast_path(model, checkpoint.site_layers, checkpoint.selection_width, backends, ids)
        except _FAULTS_OF_THE_MACHINE:
            raise
        except Exception as error:  # whatever a model makes of code that was written for others
            short = out_of_memory(error) and tokens > shortest
            if not short:
                # A process that is short of memory alone compared on a window of its own.
                raise _disagreement(checkpoint, error, alike=tokens == asked_length) from error
        if not _anywhere(model, short):
            return
        tokens = max(shortest, tokens // 2)


def _disagreement(checkpoint: Checkpoint, error: Exception, alike: bool) -> ModelError:
    compared = isinstance(error, ModelError)
    fault = str(error) if compared else f"{type(error).__name__}: {first_line(error)}"
    hint = (
        getattr(error, "hint", "") or "--indexer stock --attention stock run the model's own code, in more memory"
    )
    return _refusal(checkpoint, fault, hint, shared=compared and alike)


def check_tokens(selection_width: int) -> int:
    """Tokens that the checks need: enough that sharing shows, and few more."""
    return selection_width + 2 + max(64, selection_width // 8)


def _remedy(error: Exception) -> str | None:
    """What helps against an error that the search would meet too; None where it need not."""
    if isinstance(error, ImportError):
        return "install the package that it names"
    if isinstance(error, RuntimeError) and _TYPES_DIFFER.search(str(error)):
        return "its weights are in types that do not go together: try another --dtype"
    return None


def _refusal(checkpoint: Checkpoint, fault: str, hint: str | None = None, shared: bool = False) -> ModelError:
    """``shared`` where all processes meet it alike: comparing the same model on the same window."""
    kind = checkpoint.text.model_type
    error = ModelError(
        f"the self-check of {checkpoint.model_id!r} ({kind}) failed: {fault}",
        hint=hint or "its losses under a pattern would mean nothing; --no-selfcheck searches all the same",
    )
    error.shared = shared
    return error


class _SelfCheck:
    def __init__(self, model: torch.nn.Module, checkpoint: Checkpoint, token_ids: Sequence[int]) -> None:
        self._model = model
        self._layers = checkpoint.site_layers
        self._width = checkpoint.selection_width
        tokens = check_tokens(self._width)
        length = min(tokens, checkpoint.longest or tokens)
        self._ids = [token_ids[place % len(token_ids)] for place in range(length)]
        self._full = Pattern.all_full(len(self._layers))
        candidates = self._full.full[1:]
        count = min(len(candidates), _FLIPS) if checkpoint.family is not None else len(candidates)
        self._flipped = [candidates[index * (len(candidates) - 1) // max(1, count - 1)] for index in range(count)]

    def run(self) -> None:
        stock = self._logits()
        if not stock.isfinite().all():
            dtype = next(self._model.parameters()).dtype
            raise not_finite("its own logits are NaN or infinite", self._model, "", dtype)
        losses = PatternLosses(self._model, self._layers)
        try:
            self._unchanged(stock, "with all indexers on, the switch changes its logits")
            self._layer_by_layer(losses, stock)
            self._patterns(losses)
        finally:
            losses.switch.remove()
        self._unchanged(stock, "taking the switch off does not restore its logits")

    @torch.inference_mode()
    def _logits(self) -> torch.Tensor:
        """Of the last positions, from the model's own forward."""
        ids = torch.tensor([self._ids], device=input_device(self._model))
        with whole_forward(self._model):
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False, logits_to_keep=_POSITIONS).logits
        return logits[:, -_POSITIONS:].float().cpu()

    def _unchanged(self, stock: torch.Tensor, fault: str) -> None:
        logits = self._logits()
        if _anywhere(self._model, not torch.equal(logits, stock)):
            _agree(_largest(logits - stock), self._logits_noise(logits), fault)

    def _logits_noise(self, logits: torch.Tensor) -> float:
        return _TIMES_NOISE * max(_largest(self._logits() - logits) for _ in range(_RERUNS))

    def _layer_by_layer(self, losses: PatternLosses, stock: torch.Tensor) -> None:
        """All full, and a pattern that shares every other site, against the model run as a whole."""
        sites = len(self._layers)
        for pattern in dict.fromkeys((self._full, Pattern.uniform(sites, -(-sites // 2)))):
            losses.switch.use(pattern)
            whole = stock if pattern == self._full else self._logits()
            single = losses.logits(pattern, Window("self-check", self._ids), _POSITIONS).float().cpu()
            difference = _largest(single - whole)
            allowed = _ROUNDING.get(losses.dtype, _COARSE_ROUNDING) * _largest(whole)
            if _anywhere(self._model, not difference <= allowed):
                allowed += self._logits_noise(whole)
            _agree(difference, allowed, f"layers run one at a time give other logits under {pattern}")

    def _patterns(self, losses: PatternLosses) -> None:
        """Measures what ``_flips_show`` and ``_blind_is_blind`` judge: where layers stream, in one sweep."""
        together = [self._full, *(self._full.share(site) for site in self._flipped)]
        alone = sorted({0, len(together) // 2, len(together) - 1})
        blind = [self._full, Pattern.from_full(len(self._layers), [0])]
        blind += [self._full.share(site) for site in self._flipped[:1] + self._flipped[-1:]]
        shows, few = len(self._ids) >= self._width + 2, self._ids[: self._width + 1]
        asked = [Asked(together, [Window("together", self._ids)])] if shows else []
        asked += [Asked([together[index]], [Window(("alone", index), self._ids)]) for index in alone if shows]
        asked += [Asked(blind, [Window("blind", few)])] if self._width else []
        sums = self._sums(losses, asked)
        if shows:
            self._flips_show(losses, together, sums[0], {index: sums[1 + n][0] for n, index in enumerate(alone)})
        if self._width:
            self._blind_is_blind(losses, sums[-1], few)

    def _flips_show(
        self,
        losses: PatternLosses,
        patterns: Sequence[Pattern],
        together: Sequence[float],
        alone: Mapping[int, float],
    ) -> None:
        """Sharing any one site changes the loss, and a loss does not depend on the patterns beside it."""
        for index, loss in alone.items():
            if _anywhere(self._model, loss != together[index]):
                noise = self._loss_noise(losses, patterns[index], loss, self._ids)
                fault = f"{patterns[index]} gives another loss beside other patterns than alone"
                _agree(abs(loss - together[index]), noise, fault)
        flipped = zip(self._flipped, together[1:], strict=True)
        if unchanged_layers := [self._layers[site] for site, loss in flipped if loss == together[0]]:
            raise ModelError(f"sharing a selection changes nothing in layers {layer_ranges(unchanged_layers)}")

    def _blind_is_blind(self, losses: PatternLosses, sums: Sequence[float], ids: Sequence[int]) -> None:
        """Where no query sees more keys than are selected, all patterns have the same loss."""
        if _anywhere(self._model, max(sums) != min(sums)):
            noise = self._loss_noise(losses, self._full, sums[0], ids)
            fault = f"patterns differ on {len(ids)} tokens, although indexers should choose from more than "
            _agree(max(sums) - min(sums), noise, f"{fault}{self._width} keys only")

    def _loss_noise(self, losses: PatternLosses, pattern: Pattern, loss: float, ids: Sequence[int]) -> float:
        window = Window("repeated", ids)
        repeats = [losses.measure([pattern], [window])[0][0] for _ in range(_RERUNS)]
        return _TIMES_NOISE * max(abs(repeat - loss) for repeat in repeats)

    def _sums(self, losses: PatternLosses, asked: Sequence[Asked]) -> list[list[float]]:
        """The loss of each pattern of ``asked`` on its window."""
        if losses.streams:
            return [measured[0] for measured in losses.measure_all(asked)]
        sums: list[list[float]] = []
        for patterns, windows, _ in asked:
            starts = range(0, len(patterns), _ROWS)
            portions = [losses.measure(patterns[first : first + _ROWS], windows)[0] for first in starts]
            sums.append([loss for portion in portions for loss in portion])
        return sums


def _anywhere(model: torch.nn.Module, needed: bool) -> bool:
    """Whether more is to be run here, or on any process that brings weights together with this one."""
    stream = stream_of(model)
    return needed if stream is None else stream.anywhere(needed)


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max())


def _agree(difference: float, allowed: float, fault: str) -> None:
    if not difference <= allowed:  # NaN is no agreement
        raise ModelError(f"{fault}, by up to {difference:.2g}")
