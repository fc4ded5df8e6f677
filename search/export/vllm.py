"""vLLM and its port to Ascend, as the table of engines has them."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

from ..stages import split_before_last
from .support import (
    BY_HALVES,
    IN_PAIRS,
    PATTERN_KEY,
    TYPES_KEY,
    USE_KEY,
    Detour,
    Engine,
    Key,
    Need,
    Note,
    Pipeline,
    Support,
)

_COMMAND = "{partition}vllm serve {model}{revision}{stages} --hf-overrides {settings}{detour}\n"
_STAGES = Pipeline(
    split=split_before_last,
    flag=" --pipeline-parallel-size {size}",
    partition="VLLM_PP_LAYER_PARTITION={sizes} ",
    otherwise=", and read uninitialised memory without a word",
)
_ROUTER = (
    Need(
        "scoring_func",
        "sigmoid",
        "softmax",
        "scores experts by softmax, where transformers does so by sigmoid: another model",
        routed=True,
    ),
    Need("topk_method", "noaux_tc", "", "builds no correction bias for its router", routed=True),
)

# The general model class lets go of the weights of shared indexers; it is what CUDA ran up to 0.28.
_GENERAL = "vllm.model_executor.models.deepseek_v2"
_FAILING_VERSIONS = ">=0.29,<=0.33.0"

_NOTES = (
    Note("use_index_cache is read by 0.21 and 0.22 only and harmless later", "<0.23"),
    Note(
        "0.24.0 and 0.29.0 to 0.33.0 (on ROCm from 0.32.0) fail to load a checkpoint that holds "
        "indexer weights of a shared layer, with a KeyError that names one: use 0.25 to 0.28, or "
        "leave them out with --write DIR --strip-weights",
        f"==0.24.* | {_FAILING_VERSIONS}",
        "rejected",
        "error",
    ),
    Note(
        "--model-class-overrides has 0.29 and later load the engine's general model class, which lets go of those "
        "weights: run with 0.32.0 on a CPU and read in 0.33.0, not tried on a GPU; where --engine-version names "
        "0.25 to 0.28 it is left out",
        _FAILING_VERSIONS,
        "rejected",
        "warning",
    ),
    Note(
        "before 0.24 it is not verified that a checkpoint loads whose own shared layers hold no indexer",
        "<0.24",
        "shipped",
        "warning",
    ),
    Note(
        "multi-token-prediction layers stay full: before 0.24 only a frequency shares them",
        "<0.24",
        "speculative decoding",
    ),
    Note(
        "the overrides do not reach the config of the draft model: what config.json lacks is missing there",
        when="speculative decoding",
    ),
    Note(
        "both micro-batches write their selections to one place, and nothing refuses it (read in 0.33.0, not "
        "run): leave --enable-dbo out",
        when="two-batch overlap",
        severity="warning",
    ),
)


def _support(architecture: str, general: str, rotary: Need) -> Support:
    """Of a family whose ``architecture`` the class ``general`` of the general model can stand in for."""
    override = json.dumps({architecture: f"{_GENERAL}:{general}"})
    return Support(
        # PR #37735; attention.py of deepseek_v32 reads the flag in 0.21 and 0.22 only, indexer_types never.
        (Key("use_index_cache", "true", "<0.23"), PATTERN_KEY),
        ">=0.21.0",
        stripped=">=0.24",
        detour=Detour(f" --model-class-overrides {shlex.quote(override)}", _FAILING_VERSIONS),
        needs=(rotary, *_ROUTER),
        notes=_NOTES,
    )


VLLM = Engine(
    name="vllm",
    title="vLLM",
    looked_at="0.33.0",
    paste=_COMMAND,
    revision=" --revision {quoted}",
    pipeline=_STAGES,
    families={
        "deepseek_v32": _support("DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM", BY_HALVES),
        "glm_moe_dsa": _support("GlmMoeDsaForCausalLM", "GlmMoeDsaForCausalLM", IN_PAIRS),
        "hy_v4": Support(
            (TYPES_KEY,),
            notes=(Note("HY-V4 was read in 0.33.0 alone: from which version on it shares is not known"),),
        ),
    },
    refused={
        "deepseek_v4": "no release reads a key for it (PR #51209 is open)",
        "minimax_m3_vl": "it takes a frequency only, which engines read differently, on ROCm, under text_config; "
        "0.33.0 rejects one at the top, and releases before ignore it",
        "glm5_next": "its model never shares",
    },
)

_ASCEND_STAGES = replace(
    _STAGES,
    otherwise=", and read uninitialised memory without a word, where 0.27.1rc1 to 0.29.0rc1 do not start and "
    "later ones hand it on in their second model runner",
    unsure_since="0.30.0rc1",
)
_ASCEND_BUILDS = (
    Note("indexer_types must not be set, nor config.json edited: shared layers still load their indexer weights"),
)
_ASCEND_V4 = (
    Note(
        "results are wrong with DSpark where a prompt hits the prefix cache (issue #14984, open in September "
        "2026): leave one of the three out",
        when="speculative decoding",
        severity="warning",
    ),
    Note(
        "enable_dsa_cp has every layer run its indexer before 0.27.1rc1, so that sharing gains nothing",
        "<0.27.1rc1",
        "context parallelism",
        "warning",
    ),
    Note(
        "0.27.1rc1 to 0.29.0rc1 take a letter of the pattern for a decoder layer when they check stages, and may "
        "refuse good ones",
        ">=0.27.1rc1,<0.30.0rc1",
        "staged",
        "warning",
    ),
    Note(
        "from 0.30.0rc1 on the first layer of a stage that owns an indexer runs it, whatever the pattern says",
        ">=0.30.0rc1",
        "staged",
    ),
)


def _ascend_support(rotary: Need) -> Support:
    return Support(
        (USE_KEY, PATTERN_KEY), ">=0.23.0rc1", stripped=None, needs=(rotary, *_ROUTER), notes=_ASCEND_BUILDS
    )


VLLM_ASCEND = Engine(
    name="vllm-ascend",
    title="vllm-ascend",
    looked_at="0.30.0rc2",
    paste=_COMMAND,
    revision=" --revision {quoted}",
    config=False,
    pipeline=_ASCEND_STAGES,
    families={
        "deepseek_v32": _ascend_support(BY_HALVES),
        "glm_moe_dsa": _ascend_support(IN_PAIRS),
        # dsv4_skips_indexer_topk: the layers of compress_ratio 4 are counted, which are the sites, and the first
        # has to be full. Prefill and decode share, and shared layers write no index keys, from 0.20.2rc1 on.
        "deepseek_v4": Support(
            (USE_KEY, PATTERN_KEY), ">=0.20.2rc1", letters="sites", stripped=None, notes=_ASCEND_V4
        ),
    },
)
