"""Counts a checkpoint's parameters: by its config where that is known to give the same, else on its modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..architectures import skeleton
from ..config import Checkpoint
from ..sites import find_indexers
from .decoders import DECODERS, Decoder
from .towers import tower_parameters
from .usual import is_usual

# Names under which configs count a layer's routed experts.
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Sizes:
    """Parameter counts: of what is loaded, of its indexers, and of towers that text does not run through."""

    parameters: int
    indexer_parameters: int
    idle_parameters: int


def measure_sizes(checkpoint: Checkpoint) -> Sizes:
    """Counts parameters on the meta device, without weights or memory.

    Raises:
        ModelError: the model cannot be built.
    """
    model = skeleton(checkpoint.config, checkpoint.trust.remote_code)
    language = find_indexers(model, checkpoint.layers)[0].rpartition(".")[0]
    head = model.get_output_embeddings()
    head_weights = {id(weight) for weight in head.parameters()} if head is not None else set()
    counts = {name: weight.numel() for name, weight in model.named_parameters()}
    indexers = sum(count for name, count in counts.items() if ".indexer." in name)
    idle = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if not name.startswith(f"{language}.") and id(weight) not in head_weights
    )
    return Sizes(sum(counts.values()), indexers, idle)


@dataclass(frozen=True)
class LayerSizes:
    """Parameters of one decoder layer.

    Args:
        attention: without an indexer.
        indexer: 0 where it has none.
        feed_forward: all of it, norms and what else stands beside included.
        idle: of the feed-forward, those of routed experts that a token does not go through.
        routed: of the feed-forward, those of all routed experts.
    """

    attention: int
    indexer: int
    feed_forward: int
    idle: int
    routed: int = 0

    @property
    def parameters(self) -> int:
        """All together."""
        return self.attention + self.indexer + self.feed_forward


def layer_sizes(checkpoint: Checkpoint) -> tuple[LayerSizes, ...] | None:
    """Parameters of every decoder layer by the config's numbers; None where only building the model can tell."""
    decoder, text = _decoder(checkpoint), checkpoint.text
    if decoder is None:
        return None
    try:
        return tuple(
            LayerSizes(
                decoder.attention(text, layer),
                decoder.indexer(text, layer) if layer in checkpoint.site_layers else 0,
                decoder.feed_forward(text, layer) + decoder.beside(text, layer),
                decoder.idle(text, layer),
                _routed(decoder.idle(text, layer), text),
            )
            for layer in range(checkpoint.layers)
        )
    except (TypeError, LookupError, RuntimeError):  # as in count_sizes
        return None


def _routed(idle: int, text: Any) -> int:
    """Parameters of all routed experts, of which those that a token does not go through have ``idle``."""
    if not idle:
        return 0
    count = next(count for name in _EXPERT_COUNTS if (count := getattr(text, name, None)))
    return int(idle * count // (count - text.num_experts_per_tok))


def resident_parameters(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Parameters outside of the decoder's layers; None as above.

    Returns:
        Of embedding, last norm and head; and of towers beside them, which are loaded too.
    """
    sizes, layers = count_sizes(checkpoint), layer_sizes(checkpoint)
    if sizes is None or layers is None:
        return None
    language = sizes.parameters - sizes.idle_parameters - sum(layer.parameters for layer in layers)
    return language, sizes.idle_parameters


def _decoder(checkpoint: Checkpoint) -> Decoder | None:
    """What is known of its family's parameters; None where nothing is, or its config is none of the usual ones."""
    kind = "" if checkpoint.family is None else checkpoint.family.model_type
    return DECODERS.get(kind) if is_usual(checkpoint.config, checkpoint.text) else None


def count_sizes(checkpoint: Checkpoint) -> Sizes | None:
    """What ``measure_sizes`` gives, by the numbers in the config; None where only building the model can tell."""
    kind = "" if checkpoint.family is None else checkpoint.family.model_type
    decoder = _decoder(checkpoint)
    if decoder is None:
        return None
    idle = 0 if checkpoint.text_only else tower_parameters(checkpoint.config, kind)
    try:
        return None if idle is None else _counted(checkpoint, decoder, idle)
    # A number is left out, or it is each layer's own (transformers' error for that is a RuntimeError).
    except (TypeError, LookupError, RuntimeError):
        return None


def _counted(checkpoint: Checkpoint, decoder: Decoder, idle: int) -> Sizes:
    text = checkpoint.text
    indexers = sum(decoder.indexer(text, layer) for layer in checkpoint.site_layers)
    layers = sum(
        decoder.attention(text, layer) + decoder.feed_forward(text, layer) + decoder.beside(text, layer)
        for layer in range(checkpoint.layers)
    )
    tied = (text if checkpoint.text_only else checkpoint.config).tie_word_embeddings
    embeddings = (1 if tied else 2) * text.vocab_size * text.hidden_size
    return Sizes(embeddings + layers + indexers + decoder.behind(text) + idle, indexers, idle)
