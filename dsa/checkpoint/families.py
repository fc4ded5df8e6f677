"""What differs between DSA model families: where their sites are and how many keys they select."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError

Layers = Callable[[Any], tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """A model family of transformers whose decoder layers own a lightning indexer.

    Everything is read off the config of the language model, which multimodal checkpoints keep under
    ``text_config``. Figures are those of transformers 5.23's ``modeling_*.py`` (hy_v4_vl: 5.24's), where an
    indexer's ``forward`` returns what it selects.

    Args:
        model_type: transformers' name for it, which is also that of the package its classes are in.
        example: a public checkpoint family that uses it.
        site_layers: absolute ids of the layers that own an indexer.
        shared_layers: layers that reuse an earlier selection in the checkpoint itself.
        selection_width: the most tokens that a query may see before its indexer has to choose.
        selects: what is chosen; ``"tokens"`` are indices of tokens, which the code for long windows reads.
        passes_selection: the argument in which a layer hands its selection to the next, if it does.
        carries: the argument that layers write into for later ones, if there is one.
        attention: transformers' own implementations that the family accepts.
        index_heads: config key of the indexer's number of heads.
        index_head_dim: config key of their width.
        reads: config keys by which its layers share, in the order in which they decide; none where transformers
            reads none.
    """

    model_type: str
    example: str
    site_layers: Layers
    selection_width: Callable[[Any], int]
    shared_layers: Layers = lambda config: ()
    selects: str = "tokens"
    passes_selection: str | None = None
    carries: str | None = None
    attention: tuple[str, ...] = ("eager", "sdpa")
    index_heads: str = "index_n_heads"
    index_head_dim: str = "index_head_dim"
    reads: tuple[str, ...] = ()

    @property
    def selects_tokens(self) -> bool:
        """Whether a selection holds indices of tokens, so that the code for long windows applies."""
        return self.selects == "tokens"


def _every_layer(config: Any) -> tuple[int, ...]:
    return tuple(range(config.num_hidden_layers))


def _of_type(kind: str) -> Layers:
    """Layers that ``layer_types`` calls ``kind``."""

    def layers(config: Any) -> tuple[int, ...]:
        types = config.layer_types or ()
        return tuple(layer for layer in _every_layer(config) if layer < len(types) and types[layer] == kind)

    return layers


def _in_role(role: str, owners: Layers = _every_layer) -> Layers:
    """Layers among ``owners`` that ``indexer_types`` calls ``role``: full, or shared."""

    def layers(config: Any) -> tuple[int, ...]:
        # Entries behind the last layer are those of multi-token-prediction layers, which are never sites.
        types = (config.indexer_types or ())[: config.num_hidden_layers]
        if len(types) < config.num_hidden_layers or not set(types) <= {"full", "shared"}:
            raise ModelError(
                f"the config's indexer_types must say full or shared for each of {config.num_hidden_layers} layers"
            )
        return tuple(layer for layer in owners(config) if types[layer] == role)

    return layers


def _positive(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"the config's {name} is {value!r}, not a positive number")
    return value


def _index_topk(config: Any) -> int:
    """``scores.topk(min(index_topk, T))`` over tokens."""
    return _positive(config, "index_topk")


def _of_groups(chosen: int, tokens: int) -> int:
    """Up to ``chosen`` whole groups of ``tokens`` are all chosen, and what begins the next is no group yet."""
    return tokens * (chosen + 1) - 1  # one token more, and a further group is whole


def _compressed_entries(config: Any) -> int:
    """A query at t chooses among ``(t + 1) // rate`` compressed entries; the sliding window is seen anyway."""
    rate = (config.compress_rates or {}).get("compressed_sparse_attention")
    if not isinstance(rate, int) or rate < 1:
        raise ModelError(f"the config's compress_rates give {rate!r} for compressed_sparse_attention")
    return _of_groups(_positive(config, "index_topk"), rate)


def _pools(config: Any) -> int:
    """``index_topk // index_kpool`` pools whose last token is seen; the tail behind them is not chosen."""
    pool = _positive(config, "index_kpool")
    return _of_groups(_positive(config, "index_topk") // pool, pool)


def _budget(config: Any) -> int:
    """``indexer_budget // indexer_compress_ratio`` complete blocks; the tail behind them is not chosen."""
    ratio = _positive(config, "indexer_compress_ratio")
    return _of_groups(_positive(config, "indexer_budget") // ratio, ratio)


def _blocks(config: Any) -> int:
    """A query chooses among the blocks up to its own; the last ``index_local_blocks`` are always taken."""
    blocks, local = _positive(config, "index_topk_blocks"), config.index_local_blocks
    if blocks <= local:
        raise ModelError(
            f"the config's index_local_blocks ({local}) leave none of index_topk_blocks ({blocks}) to choose"
        )
    return blocks * _positive(config, "index_block_size")


_INDEXED = _of_type("indexed_attention")
_PREVIOUS = "prev_topk_indices"
_TYPES = ("indexer_types",)
_SCHEDULE = (*_TYPES, "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset")

FAMILIES = {
    family.model_type: family
    for family in (
        Family("deepseek_v32", "DeepSeek-V3.2", _every_layer, _index_topk),
        Family(
            "glm_moe_dsa", "GLM-5", _in_role("full"), _index_topk, _in_role("shared"),
            passes_selection=_PREVIOUS, reads=_SCHEDULE,
        ),
        Family("axk2", "A.X-K2", _every_layer, _index_topk),
        Family(
            "hy_v4", "Hy4", _in_role("full"), _index_topk, _in_role("shared"),
            passes_selection=_PREVIOUS, attention=("eager",), reads=_TYPES,
        ),
        Family(
            "hy_v4_vl", "Hy4 with vision", _in_role("full"), _index_topk, _in_role("shared"),
            passes_selection=_PREVIOUS, attention=("eager",), reads=_TYPES,
        ),
        Family(
            "mistral_large4", "Mistral-Large-4", _in_role("full"), _index_topk, _in_role("shared"),
            passes_selection=_PREVIOUS, carries="shared_kv_states", reads=_SCHEDULE,
        ),
        Family("dots3_note", "dots3-note", _INDEXED, _index_topk),
        Family(
            "glm5_next", "GLM-5.3-Flash", _in_role("full", _INDEXED), _pools, _in_role("shared", _INDEXED),
            selects="pools", passes_selection=_PREVIOUS, reads=_SCHEDULE,
        ),
        Family(
            "deepseek_v4", "DeepSeek-V4", _of_type("compressed_sparse_attention"), _compressed_entries,
            selects="compressed entries", attention=("eager",),
        ),
        Family("minimax_m3_vl", "MiniMax-M3", _of_type("minimax_m3_sparse"), _blocks, selects="blocks"),
        Family(
            "qwen4_exp", "Qwen4-Exp", _INDEXED, _budget, selects="pools",
            index_heads="indexer_n_heads", index_head_dim="indexer_head_dim",
        ),
    )
}  # fmt: skip

_INDEXER_KEYS = ("index_topk", "index_n_heads", "indexer_types", "index_topk_pattern", "index_topk_freq")

SELECTION_ARGUMENTS = frozenset(family.passes_selection for family in FAMILIES.values() if family.passes_selection)
"""Arguments in which layers hand on their selection, of all families."""
CARRYING_ARGUMENTS = frozenset(family.carries for family in FAMILIES.values() if family.carries)
"""Arguments that layers write into for later ones, of all families."""


def text_config(config: Any) -> Any:
    """The config of the language model, which multimodal ones have in ``text_config``, however deep."""
    inner = config.get_text_config(decoder=True)
    while type(inner) is not type(config) and hasattr(inner, "get_text_config"):
        config, inner = inner, inner.get_text_config(decoder=True)
    return inner


def family_of(config: Any) -> Family | None:
    """The family that a transformers config belongs to; None where it is none of the known ones."""
    return family_of_class(type(text_config(config)))


def family_of_class(config_class: type) -> Family | None:
    """The family that has this class of transformers for its config, whatever a checkpoint calls itself."""
    package, _, name = config_class.__module__.removeprefix("transformers.models.").partition(".")
    return FAMILIES.get(package) if name == f"configuration_{package}" else None


def no_indexer(config: Any) -> ModelError:
    """What is said of a model without a lightning indexer."""
    known = ", ".join(f"{family.model_type} ({family.example})" for family in FAMILIES.values())
    kind, text = getattr(config, "model_type", "unknown"), text_config(config)
    claims = next((key for key in _INDEXER_KEYS if getattr(text, key, None) is not None), None)
    if claims is None:
        return ModelError(
            f"the model is of type {kind!r}, which has no lightning indexer that can be searched",
            hint=f"families with one: {known}",
        )
    return ModelError(
        f"the config has {claims}, but its model_type is {kind!r}, for which transformers builds no indexer",
        hint=f"the model_type has to be that of a family with one: {known}",
    )
