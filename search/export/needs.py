"""Keys of config.json that engines go by and transformers does not: which a checkpoint lacks, in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .remarks import Remark
from .support import Engine, Need, Serving, Severity, Support

# transformers' own, where config.json says nothing of dense layers: glm_moe_dsa, deepseek_v32.
_DENSE_LAYERS = 3


def unmet(support: Support, serving: Serving) -> tuple[Need, ...]:
    """What config.json does not say as the engine needs it.

    Without a config.json to look at, it is what would change the model in silence and costs nothing to say again;
    not what concerns experts, nor what stops the engine, which speaks for itself.
    """
    config = serving.config
    if config is None:
        return tuple(need for need in support.needs if _is_silent(need) and not need.routed and need.reached)
    return tuple(
        need
        for need in support.needs
        if _taken(need, config) != need.value and (not need.routed or routes(config))
    )


def values(needs: Iterable[Need]) -> dict[str, object]:
    """The keys and values that make an engine compute what transformers does."""
    return {need.name: need.value for need in needs}


def need_remarks(engine: Engine, support: Support, serving: Serving) -> list[Remark]:
    """What to say of the keys that config.json lacks, or might lack where it is not here."""
    if serving.config is None:
        silent = [need for need in support.needs if _is_silent(need) and not need.routed]
        return [Remark("note", _unseen(engine, need)) for need in silent]
    return [_seen(engine, need, serving) for need in unmet(support, serving)]


def routes(config: Mapping[str, object]) -> bool:
    """Whether any layer routes to experts."""
    types, layers = config.get("mlp_layer_types"), config.get("num_hidden_layers")
    if not config.get("n_routed_experts", True):
        return False
    if isinstance(types, list):
        return "sparse" in types
    dense = config.get("first_k_dense_replace", _DENSE_LAYERS)
    return not (isinstance(dense, int) and isinstance(layers, int) and dense >= layers)


def _taken(need: Need, config: Mapping[str, object]) -> object:
    """What the engine goes by; null is not there."""
    value = config.get(need.name)
    return need.missing if value is None else value


def _is_silent(need: Need) -> bool:
    return need.missing is not None and need.missing != need.value


def _seen(engine: Engine, need: Need, serving: Serving) -> Remark:
    """``need`` was looked for in config.json, and is not met."""
    said = None if serving.config is None else serving.config.get(need.name)
    value = f"{need.name}: {_spelled(need.value)}"
    if said is None:
        text = f"the checkpoint's config.json lacks {need.name}: without it {engine.title} {need.effect}"
    else:
        effect = need.effect if need.missing is not None else "goes by that"
        text = (
            f"the checkpoint's config.json says {need.name}: {_spelled(said)}, so that {engine.title} {effect}; "
            f"searched was {_spelled(need.value)}, which transformers takes whatever config.json says"
        )
    if need.reached:
        return Remark("warning", f"{text}; the settings say {value}")
    severity: Severity = "warning" if serving.edited else "error"
    return Remark(
        severity, f"{text}; settings come too late for it: serve with the config.json that --write DIR writes"
    )


def _unseen(engine: Engine, need: Need) -> str:
    """``need`` was not looked for, as config.json is not here."""
    value = f"{need.name}: {_spelled(need.value)}"
    done = f"the settings say {value}" if need.reached else f"see that it says {value}"
    return (
        f"the checkpoint's config.json was not here to be looked at: where it lacks {need.name}, {engine.title} "
        f"{need.effect}; {done}"
    )


def _spelled(value: object) -> str:
    """The start of ``value`` as JSON spells it."""
    return json.dumps(value)[:40]
