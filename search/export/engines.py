"""The table of engines: in which families each takes a pattern, under which keys and since when, and its traps.

Read in the engines' released sources up to the versions named by ``looked_at``; what rests on less says so.
Engines check almost nothing: a key that is not read, or read otherwise, changes the model without a word.
"""

from __future__ import annotations

import json
import shlex

from ..stages import split_before_last, split_first
from .support import Detour, Engine, Key, Note, Pipeline, Support

FAMILIES = (
    "deepseek_v32",
    "glm_moe_dsa",
    "axk2",
    "hy_v4",
    "mistral_large4",
    "dots3_note",
    "glm5_next",
    "deepseek_v4",
    "minimax_m3_vl",
    "qwen4_exp",
)

_PATTERN, _TYPES = Key("index_topk_pattern", "pattern"), Key("indexer_types", "types")
_USE = Key("use_index_cache", "true")
_CONFIG_KEYS = "{json}\n"
_EDIT = Note(
    "the keys belong into config.json, in place of any that stand there: --write DIR writes an edited copy"
)
_VLLM_COMMAND = "{partition}vllm serve {model}{revision}{stages} --hf-overrides {settings}{detour}\n"
_VLLM_STAGES = Pipeline(
    split=split_before_last,
    flag=" --pipeline-parallel-size {size}",
    partition="VLLM_PP_LAYER_PARTITION={sizes} ",
    otherwise=", and read uninitialised memory without a word",
)
_ONE_PROCESS = Pipeline("")
_ONLY_NEXT = "a full layer hands its selection to the very next layer only"

_TRANSFORMERS = Engine(
    name="transformers",
    title="transformers",
    looked_at="5.23.0",
    paste=(
        "from transformers import {loader}\n\n"
        "model = {loader}.from_pretrained(\n    {model_name},\n{revision}{arguments})\n"
    ),
    revision="    revision={plain!r},\n",
    families={
        "glm_moe_dsa": Support((_TYPES,), ">=5.6.0"),
        "hy_v4": Support((_TYPES,), ">5.14.1"),
        "mistral_large4": Support((_TYPES,), ">5.18.0", section="text_config"),
        "glm5_next": Support((_TYPES,), ">5.14.1", section="text_config", only_behind_full=True),
    },
    refused=dict.fromkeys(
        ("deepseek_v32", "deepseek_v4", "axk2", "dots3_note", "minimax_m3_vl", "qwen4_exp"),
        "its model has no setting for it",
    ),
    notes=(
        Note("shared layers build no indexer: their indexer weights are reported as unexpected and not loaded"),
        Note(
            "in config.json the key is indexer_types; index_topk_pattern is ignored wherever indexer_types stands"
        ),
    ),
)

BARE = Engine(
    name="none",
    title="an engine of one's own",
    paste=_CONFIG_KEYS,
    families={},
    config=False,
    pipeline=Pipeline(split=split_before_last, otherwise=", unless your engine hands it on"),
)

# The general class lets go of those weights; it is what CUDA ran up to 0.28.
_GENERAL = "vllm.model_executor.models.deepseek_v2"
_VLLM_FAILING = ">=0.29,<=0.33.0"


_VLLM_NOTES = (
    Note("use_index_cache is read by 0.21 and 0.22 only and harmless later", "<0.23"),
    Note(
        "0.24.0 and 0.29.0 to 0.33.0 (on ROCm from 0.32.0) fail to load a checkpoint that holds "
        "indexer weights of a shared layer, with a KeyError that names one: use 0.25 to 0.28, or "
        "leave them out with --write DIR --strip-weights",
        f"==0.24.* | {_VLLM_FAILING}",
        "rejected",
        "error",
    ),
    Note(
        "--model-class-overrides has 0.29 and later load the engine's general model class, which lets go of those "
        "weights: run with 0.32.0 on a CPU and read in 0.33.0, not tried on a GPU; where --engine-version names "
        "0.25 to 0.28 it is left out",
        _VLLM_FAILING,
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
    ),
)


def _vllm_support(architecture: str, general: str) -> Support:
    override = json.dumps({architecture: f"{_GENERAL}:{general}"})
    return Support(
        # PR #37735; attention.py of deepseek_v32 reads the flag in 0.21 and 0.22 only, indexer_types never.
        (Key("use_index_cache", "true", "<0.23"), _PATTERN),
        ">=0.21.0",
        stripped=">=0.24",
        detour=Detour(f" --model-class-overrides {shlex.quote(override)}", _VLLM_FAILING),
        notes=_VLLM_NOTES,
    )


_VLLM = Engine(
    name="vllm",
    title="vLLM",
    looked_at="0.33.0",
    paste=_VLLM_COMMAND,
    revision=" --revision {quoted}",
    pipeline=_VLLM_STAGES,
    families={
        "deepseek_v32": _vllm_support("DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM"),
        "glm_moe_dsa": _vllm_support("GlmMoeDsaForCausalLM", "GlmMoeDsaForCausalLM"),
        "hy_v4": Support(
            (_TYPES,),
            notes=(Note("HY-V4 was read in 0.33.0 alone: from which version on it shares is not known"),),
        ),
    },
    refused={
        "deepseek_v4": "no release reads a key for it (PR #51209 is open)",
        "minimax_m3_vl": "it takes a frequency only, which engines read differently, and only on ROCm",
        "glm5_next": "its model never shares",
    },
)

_SGLANG = Engine(
    name="sglang",
    title="SGLang",
    looked_at="0.5.23",
    paste=(
        "{partition}python -m sglang.launch_server --model-path {model}{revision}{stages} "
        "--json-model-override-args {settings}\n"
    ),
    revision=" --revision {quoted}",
    pipeline=Pipeline("0.5.14", flag=" --pp-size {size}", partition="SGLANG_PP_LAYER_PARTITION={sizes} "),
    # model_config.py, dsa_layer_skips_topk: indexer_types win from 0.5.20 on; GLM configs always have them.
    families={
        **dict.fromkeys(
            ("deepseek_v32", "glm_moe_dsa"), Support((_PATTERN, _TYPES), ">=0.5.10", stripped=">=0.5.18")
        ),
        "hy_v4": Support((_PATTERN, _TYPES), ">=0.5.20"),
        "glm5_next": Support(
            (_PATTERN, _TYPES),
            ">=0.5.20",
            section="text_config",
            only_behind_full=True,
            paste=_CONFIG_KEYS,
            notes=(
                Note("--json-model-override-args replaces text_config as a whole and cannot be used"),
                _EDIT,
            ),
        ),
    },
    refused={
        "deepseek_v4": "no release up to 0.5.23 reads a key for it (PRs #26274 and #32771 are open)",
        "minimax_m3_vl": "it takes a frequency only, from an environment variable",
        "dots3_note": f"{_ONLY_NEXT}, and sliding-window layers stand between",
    },
    notes=(
        Note("both keys are needed: from 0.5.20 on indexer_types wins and a pattern alone is ignored for GLM"),
        Note("--enable-two-batch-overlap is refused with shared layers"),
    ),
)

_TENSORRT_LLM = Engine(
    name="tensorrt-llm",
    title="TensorRT-LLM",
    paste=(
        "cat > indexcache.yaml <<'EOF'\n"
        'model_kwargs:\n  index_topk_pattern: "{pattern}"\n{revision}{partition}EOF\n'
        "trtllm-serve {model} --extra_llm_api_options indexcache.yaml{stages}\n"
    ),
    place=("model_kwargs",),
    revision="revision: {json}\n",
    pipeline=Pipeline(split=split_first, flag=" --pp_size {size}", partition="pp_partition: [{sizes}]\n"),
    # PR #15574, llm_args.py, _is_full_indexer_layer: the pattern wins, indexer_types are not read on purpose.
    families=dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), Support((_PATTERN,), ">=1.3.0rc22")),
    refused={"deepseek_v4": "its model does not use the pattern"},
    notes=(
        Note(
            "merged for about 1.3.0rc22: a release candidate from before ignores the key without a word",
            "<1.3.0rc23",
            severity="warning",
        ),
        Note("sparse_attention_config takes no pattern and rejects one"),
    ),
)

_ASCEND_BUILDS = (
    Note("indexer_types must not be set, nor config.json edited: shared layers still load their indexer weights"),
)
_VLLM_ASCEND = Engine(
    name="vllm-ascend",
    title="vllm-ascend",
    looked_at="0.23.0.post1",
    paste=_VLLM_COMMAND,
    revision=" --revision {quoted}",
    config=False,
    pipeline=_VLLM_STAGES,
    families={
        **dict.fromkeys(
            ("deepseek_v32", "glm_moe_dsa"),
            Support((_USE, _PATTERN), ">=0.23.0rc1", stripped=None, notes=_ASCEND_BUILDS),
        ),
        # models/deepseek_v4/model.py counts the layers of compress_ratio 4, which are the sites.
        "deepseek_v4": Support((_USE, _PATTERN), ">=0.20.2rc1", letters="sites", stripped=None),
    },
)

_ATOM = Engine(
    name="atom",
    title="ATOM",
    paste="python -m atom.entrypoints.openai_server --model {model}{stages} --hf-overrides {settings}\n",
    pipeline=Pipeline(""),
    # models/deepseek_v2.py, _should_skip_index_topk: a pattern alone does nothing.
    families={
        **dict.fromkeys(
            ("deepseek_v32", "glm_moe_dsa"),
            Support(
                (_USE, _PATTERN, _TYPES),
                ">=0.1.5",
                stripped=">0.1.5",
                notes=(Note("the compile cache does not see indexer_types: clear it after a change"),),
            ),
        ),
        "deepseek_v4": Support((_USE, _PATTERN), ">=0.1.5", stripped=None),
        # The sparse layers are counted, and keys at the top level are mirrored into text_config (PR #1354).
        "minimax_m3_vl": Support((_USE, _PATTERN), ">0.1.5", letters="sites", section="either", stripped=None),
    },
    notes=(Note("as a plugin of SGLang the same settings go to --json-model-override-args"),),
)

_XLLM = Engine(
    name="xllm",
    title="xLLM",
    looked_at="0.10.0",
    paste=_CONFIG_KEYS,
    # layers/common/dsa_topk_share_plan.h; aborts unless the pattern has a letter per decoder layer.
    families=dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), Support((_PATTERN,), ">=0.10.0", stripped=None)),
    notes=(_EDIT, Note("context-parallel prefill is not supported with shared layers")),
)

_LLAMA_CPP = Engine(
    name="llama.cpp",
    title="llama.cpp",
    paste=_CONFIG_KEYS,
    pipeline=_ONE_PROCESS,
    # PR #25407, conversion/glm.py: the converter writes <architecture>.attention.indexer.types from indexer_types.
    families={
        "glm_moe_dsa": Support((_TYPES,)),
        "hy_v4": Support(
            (_TYPES,),
            notes=(
                Note(
                    "the converter rejects indexer weights of a shared layer: leave them out with --write DIR "
                    "--strip-weights",
                    when="rejected",
                    severity="error",
                ),
            ),
        ),
    },
    refused={
        "deepseek_v32": "every layer runs its indexer there, and no key says otherwise",
        "dots3_note": "its converter takes the indexers from the layer types alone",
    },
    notes=(
        Note("needs PR #25407"),
        _EDIT,
        Note("then convert_hf_to_gguf.py writes them into the GGUF; --override-kv cannot, for a GGUF that exists"),
    ),
)

_LMDEPLOY = Engine(
    name="lmdeploy",
    title="LMDeploy",
    looked_at="0.16.0",
    paste="lmdeploy serve api_server {model}{revision} --hf-overrides {settings}\n",
    revision=" --revision {quoted}",
    families={"glm_moe_dsa": Support((_TYPES,), ">=0.16.0")},
    refused={"deepseek_v32": "it reads indexer_types for glm_moe_dsa only"},
)

_MLX_VLM = Engine(
    name="mlx-vlm",
    title="mlx-vlm",
    paste=_CONFIG_KEYS,
    pipeline=_ONE_PROCESS,
    looked_at="0.7.10",
    families={
        "glm_moe_dsa": Support(
            (_PATTERN, _TYPES),
            ">=0.6.4",
            notes=(
                Note(
                    "it fails to load a checkpoint that holds indexer weights of a shared layer (run with 0.6.5, "
                    "0.7.0 and 0.7.10): leave them out with --write DIR --strip-weights",
                    when="rejected",
                    severity="error",
                ),
            ),
        )
    },
    notes=(_EDIT, Note("a checkpoint converted to MLX before has a config.json of its own: edit that one")),
)

_PRIME_RL = Engine(
    name="prime-rl",
    title="prime-rl",
    paste='[trainer.model.index_cache]\ntopk_pattern = "{pattern}"\n',
    place=("trainer", "model", "index_cache"),
    config=False,
    families={"glm_moe_dsa": Support((Key("topk_pattern", "pattern"),), stripped=None)},
    notes=(Note("needs PR #2541; its topk_freq means other layers than vLLM's index_topk_freq"),),
)

ENGINES = {
    engine.name: engine
    for engine in (
        _TRANSFORMERS,
        _VLLM,
        _SGLANG,
        _TENSORRT_LLM,
        _VLLM_ASCEND,
        _ATOM,
        _XLLM,
        _LLAMA_CPP,
        _LMDEPLOY,
        _MLX_VLM,
        _PRIME_RL,
    )
}

WITHOUT_PATTERNS = {
    "mlx-lm": "reads no key for sharing, up to 0.32.2",
    "ktransformers": "has no key for sharing in its own tree",
    "omlx": "takes a frequency only",
    "slime": "takes a frequency only",
    "miles": "takes a frequency only",
}
