"""Holds what a load left over against what may be left: tensors nobody asked for, missing ones, other shapes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ....errors import ModelError
from ..config import Checkpoint

_PREFIX = r"(?:\w+\.)*?"
_LAYER = re.compile(_PREFIX + r"layers\.(\d+)\.(.+)")
# Parts of a model that text does not run through.
_TOWERS = "vision|visual|vit|audio|speech|sound|talker|image|patch|projector|connector|resampler|tower"
_TOWER = re.compile(rf"(?:^|[._])(?:{_TOWERS})")
_BESIDE = re.compile(rf"(?:^|[._])(?:{_TOWERS}|mtp|nextn|draft|dspark|eagle|medusa)")
# Heads of other tasks, which stand beside the one that predicts tokens.
_HEADS = re.compile(
    _PREFIX
    + r"(?:score|classifier|(?:v|value|reward|regression|class|classification|pooler|qa)_head|v_head|pooler|"
    r"qa_outputs|summary)\..+"
)
_INDEXER = re.compile(r"(?:^|\.)indexer")
# How a config counts layers that predict further tokens: as DeepSeek and GLM, MiniMax, Qwen, transformers.
_PREDICTION_COUNTS = (
    "num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers", "num_mtp_layers"
)  # fmt: skip
# What such a layer has and no other: it joins a state with the next token's embedding, and has a head of its own.
_PREDICTION_PARTS = re.compile(r"(?:eh_proj|enorm|hnorm|shared_head)\.")
# Computed by the model itself, whatever a file says, or notes of the program that trained it.
_COMPUTED = re.compile(r"(?:^|\.)(?:inv_freq|position_ids|cos_cached|sin_cached|rope\.freqs|_extra_state)$")
# Scales of activations and caches, which weights do without.
_OF_ACTIVATIONS = re.compile(r"\.(?:activation_scale|input_scale|qscale_act|[kvq]_scale|prob_output_scale)$")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_CAUSE = re.compile(r"^\s*((?:\w+\.)*\w*(?:Error|Exception): .+?)\s*$", re.MULTILINE)
_PLACE = re.compile(r"^(\S.*?)\s*\|\s*CONVERSION", re.MULTILINE)


def unread(names: Collection[str], checkpoint: Checkpoint, quantised: bool = False) -> set[str]:
    """Those of ``names``, of a checkpoint's tensors, that may stay unread where the model does not ask for them.

    These may: multi-token-prediction layers, towers beside the language model, heads of other tasks, indexers of
    layers that share in the checkpoint itself, what a model computes itself and, of quantised ones, scales of
    activations. What transformers' own models ignore does not come here at all.
    """
    predicts = _predicting_layers(names, checkpoint)
    return {name for name in names if _is_unread(name, checkpoint, predicts, quantised)}


def is_of_activations(name: str) -> bool:
    """Whether a tensor of that name holds scales of activations or of a cache, not of weights."""
    return bool(_OF_ACTIVATIONS.search(name))


def is_of_tower(name: str) -> bool:
    """Whether a tensor of that name is of a tower beside the language model, or of what joins the two."""
    layer = _LAYER.fullmatch(name)
    return bool(_TOWER.search(name[: layer.start(1)] if layer else name))


def _is_unread(name: str, checkpoint: Checkpoint, predicts: Callable[[int], bool], quantised: bool) -> bool:
    if _COMPUTED.search(name) or (quantised and is_of_activations(name)):
        return True
    layer = _LAYER.fullmatch(name)
    if _BESIDE.search(name[: layer.start(1)] if layer else name):
        return True
    if layer is None:
        return bool(_HEADS.fullmatch(name))
    number = int(layer[1])
    if number >= checkpoint.layers:
        return predicts(number)
    return number not in checkpoint.site_layers and bool(_INDEXER.search(layer[2]))


def _predicting_layers(names: Collection[str], checkpoint: Checkpoint) -> Callable[[int], bool]:
    """Whether a layer behind the decoder's predicts further tokens: counted by the config, or with parts for it.

    Any others behind the decoder's are layers of a model that has more of them than the config says.
    """
    counts = (
        getattr(config, key, None) for config in (checkpoint.text, checkpoint.config) for key in _PREDICTION_COUNTS
    )
    counted = max((count for count in counts if type(count) is int), default=0)
    layers = filter(None, map(_LAYER.fullmatch, names))
    marked = {int(layer[1]) for layer in layers if _PREDICTION_PARTS.match(layer[2])}
    return lambda number: number < checkpoint.layers + counted or number in marked


def check_complete(checkpoint: Checkpoint, loaded: Mapping[str, Collection[Any]]) -> None:
    """Checks transformers' account of a load, ``output_loading_info``.

    Raises:
        ModelError: tensors that are missing, of another shape, or in the decoder and never asked for.
    """
    configs = (checkpoint.config, checkpoint.text)
    quantised = any(getattr(config, "quantization_config", None) is not None for config in configs)
    unexpected = set(loaded["unexpected_keys"])
    extra = sorted(unexpected - unread(unexpected, checkpoint, quantised))
    if missing := sorted(loaded["missing_keys"]):
        instead = f"; it holds {and_more(extra)} instead, which the model does not ask for" if extra else ""
        raise shared_refusal(
            f"the checkpoint {checkpoint.model_id!r} has no weights for {and_more(missing)}{instead}",
            "they would be random: fetch or convert the checkpoint again",
        )
    if mismatches := sorted(loaded["mismatched_keys"]):
        name, stored, expected = mismatches[0]
        more = f", and {len(mismatches) - 1} more have another shape too" if len(mismatches) > 1 else ""
        raise shared_refusal(
            f"{name} of {checkpoint.model_id!r} has the shape {list(stored)}, its config makes it {list(expected)}"
            f"{more}",
            "config.json and the weights are of different checkpoints",
        )
    if extra:
        raise shared_refusal(
            f"{checkpoint.model_id!r} holds {and_more(extra)}, which the model that its config describes does "
            "not ask for",
            _remedy(extra[0], checkpoint),
        )


def _remedy(name: str, checkpoint: Checkpoint) -> str:
    """What to do about a tensor that would be left out."""
    restore = "restore the config.json that belongs to the weights"
    layer = _LAYER.fullmatch(name)
    if layer is None or int(layer[1]) < checkpoint.layers:
        return f"what is left out changes the losses: {restore}"
    return (
        f"config.json counts {checkpoint.layers} layers: {restore}, or, where the others predict further tokens, "
        f"count them in it as {_PREDICTION_COUNTS[0]}"
    )


def shared_refusal(message: str, hint: str) -> ModelError:
    """An error that every process meets alike, so that one tells of it for all."""
    error = ModelError(message, hint=hint)
    error.shared = True
    return error


def and_more(names: Sequence[str]) -> str:
    """The first of ``names``, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


class LoadReport(logging.Handler):
    """What transformers logs while it loads, where it says why a weight cannot be converted."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message."""
        self._text += _COLOURS.sub("", record.getMessage()) + "\n"

    @property
    def cause(self) -> str | None:
        """The first error that it reports, with the weight's name; None where it reports none."""
        place = _PLACE.search(self._text)
        if place is None:
            return None
        error = _CAUSE.search(self._text, place.end())
        return f"{place[1]}: {error[1]}" if error else place[1]


@contextmanager
def load_reported() -> Iterator[LoadReport]:
    """Listens to the report that transformers makes of a load, also where its log is silent."""
    logger, report = logging.getLogger("transformers.modeling_utils"), LoadReport()
    level, propagate = logger.level, logger.propagate
    logger.propagate = propagate and logger.isEnabledFor(logging.WARNING)
    logger.setLevel(logging.WARNING)
    logger.addHandler(report)
    try:
        yield report
    finally:
        logger.removeHandler(report)
        logger.setLevel(level)
        logger.propagate = propagate
