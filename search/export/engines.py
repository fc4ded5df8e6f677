"""The table of engines: in which families each takes a pattern, under which keys and since when, and its traps.

Read in the engines' released sources up to the versions named by ``looked_at``; what rests on less says so.
Engines check almost nothing: a key that is not read, or read otherwise, changes the model without a word.
"""

from __future__ import annotations

from dataclasses import replace

from ..stages import split_before_last, split_first
from .support import (
    BY_HALVES,
    IN_PAIRS,
    PATTERN_KEY,
    TYPES_KEY,
    USE_KEY,
    Engine,
    Key,
    Need,
    Note,
    Pipeline,
    Support,
)
from .vllm import VLLM, VLLM_ASCEND

FAMILIES = (
    "deepseek_v32",
    "glm_moe_dsa",
    "axk2",
    "hy_v4",
    "hy_v4_vl",
    "mistral_large4",
    "dots3_note",
    "glm5_next",
    "deepseek_v4",
    "minimax_m3_vl",
    "qwen4_exp",
)

_CONFIG_KEYS = "{json}\n"
_EDIT = Note(
    "the keys belong into config.json, in place of any that stand there: --write DIR writes an edited copy"
)
_ONE_PROCESS = Pipeline("")
_ROUTER = tuple(
    Need(name, value, None, "does not start", routed=True)
    for name, value in (("scoring_func", "sigmoid"), ("topk_method", "noaux_tc"), ("moe_layer_freq", 1))
)
_ONLY_NEXT = "a full layer hands its selection to the very next layer only"

_TRANSFORMERS = Engine(
    name="transformers",
    title="transformers",
    looked_at="5.24.0",
    paste=(
        "from transformers import {loader}\n\n"
        "model = {loader}.from_pretrained(\n    {model_name},\n{revision}{arguments})\n"
    ),
    revision="    revision={plain!r},\n",
    families={
        "glm_moe_dsa": Support((TYPES_KEY,), ">=5.6.0"),
        "hy_v4": Support((TYPES_KEY,), ">5.14.1"),
        "hy_v4_vl": Support((TYPES_KEY,), ">=5.24.0", section="text_config"),
        "mistral_large4": Support((TYPES_KEY,), ">5.18.0", section="text_config"),
        "glm5_next": Support((TYPES_KEY,), ">5.14.1", section="text_config", only_behind_full=True),
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
        "deepseek_v32": Support(
            (PATTERN_KEY, TYPES_KEY), ">=0.5.10", stripped=">=0.5.18", needs=(BY_HALVES, *_ROUTER)
        ),
        "glm_moe_dsa": Support(
            (PATTERN_KEY, TYPES_KEY), ">=0.5.10", stripped=">=0.5.18", needs=(IN_PAIRS, *_ROUTER)
        ),
        "hy_v4": Support((PATTERN_KEY, TYPES_KEY), ">=0.5.20"),
        "glm5_next": Support(
            (PATTERN_KEY, TYPES_KEY),
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
        "minimax_m3_vl": "it takes a frequency only, from an environment variable, on ROCm",
        "dots3_note": f"{_ONLY_NEXT}, and sliding-window layers stand between",
    },
    notes=(
        Note("both keys are needed: from 0.5.20 on indexer_types wins and a pattern alone is ignored for GLM"),
        Note("--enable-two-batch-overlap is refused with shared layers", when="two-batch overlap"),
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
    # model_config.py, from_pretrained: how the indexer rotates is read before model_kwargs are applied.
    families={
        "deepseek_v32": Support((PATTERN_KEY,), ">=1.3.0rc22", needs=(replace(BY_HALVES, reached=False),)),
        "glm_moe_dsa": Support((PATTERN_KEY,), ">=1.3.0rc22", needs=(replace(IN_PAIRS, reached=False),)),
    },
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

_ATOM_DSA = Support(
    (USE_KEY, PATTERN_KEY, TYPES_KEY),
    ">=0.1.5",
    stripped=">0.1.5",
    notes=(Note("the compile cache does not see indexer_types: clear it after a change"),),
)
_ATOM_DRAFTS = Note(
    "in a build from before PR #1362 (June 2026) the draft layer takes the model's selection for its own, and few "
    "drafts are accepted",
    when="speculative decoding",
)
_ATOM = Engine(
    name="atom",
    title="ATOM",
    paste="python -m atom.entrypoints.openai_server --model {model}{stages} --hf-overrides {settings}\n",
    pipeline=Pipeline(""),
    # models/deepseek_v2.py, _should_skip_index_topk: a pattern alone does nothing.
    families={
        "deepseek_v32": _ATOM_DSA,
        "glm_moe_dsa": replace(_ATOM_DSA, notes=(*_ATOM_DSA.notes, _ATOM_DRAFTS)),
        "deepseek_v4": Support((USE_KEY, PATTERN_KEY), ">=0.1.5", stripped=None),
        # The sparse layers are counted, and keys at the top level are mirrored into text_config (PR #1354).
        "minimax_m3_vl": Support(
            (USE_KEY, PATTERN_KEY),
            ">0.1.5",
            letters="sites",
            section="either",
            stripped=None,
            notes=(
                Note(
                    "it copies these keys into text_config; other engines ignore them at the top of MiniMax-M3's"
                ),
            ),
        ),
    },
    notes=(Note("as a plugin of SGLang the same settings go to --json-model-override-args"),),
)


_XLLM = Engine(
    name="xllm",
    title="xLLM",
    looked_at="0.10.0",
    paste=_CONFIG_KEYS,
    # layers/common/dsa_topk_share_plan.h; aborts unless the pattern has a letter per decoder layer.
    families={
        "deepseek_v32": Support((PATTERN_KEY,), ">=0.10.0", stripped=None),
        # Without the key it rotates in pairs, as transformers does.
        "glm_moe_dsa": Support(
            (PATTERN_KEY,), ">=0.10.0", stripped=None, needs=(replace(IN_PAIRS, missing=True),)
        ),
    },
    notes=(_EDIT, Note("prefill is not supported with shared layers", when="context parallelism")),
)

_LLAMA_CPP = Engine(
    name="llama.cpp",
    title="llama.cpp",
    paste=_CONFIG_KEYS,
    pipeline=_ONE_PROCESS,
    # PR #25407, conversion/glm.py: the converter writes <architecture>.attention.indexer.types from indexer_types.
    families={
        "glm_moe_dsa": Support((TYPES_KEY,), notes=(Note("needs PR #25407"),)),
        # glm5-next.cpp hands a selection on to any later layer.
        "glm5_next": Support(
            (TYPES_KEY,),
            section="text_config",
            notes=(Note("needs PR #27773; read in the tree that llama-cpp-python 0.3.36 brings, not run"),),
        ),
        "hy_v4": Support(
            (TYPES_KEY,),
            notes=(
                Note("needs PR #25407"),
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
        _EDIT,
        Note("then convert_hf_to_gguf.py writes them into the GGUF; --override-kv cannot, for a GGUF that exists"),
    ),
)

_LMDEPLOY = Engine(
    name="lmdeploy",
    title="LMDeploy",
    looked_at="0.18.0",
    paste="lmdeploy serve api_server {model}{revision} --hf-overrides {settings}\n",
    revision=" --revision {quoted}",
    families={"glm_moe_dsa": Support((TYPES_KEY,), ">=0.16.0", needs=(IN_PAIRS, *_ROUTER))},
    refused={"deepseek_v32": "it reads indexer_types for glm_moe_dsa only"},
)

# Read from the config as fields that have no default, whether layers route to experts or not.
_MLX_FIELDS = tuple(replace(need, effect="fails to read the config", routed=False) for need in _ROUTER)


def _rejects_indexers(evidence: str) -> Note:
    """mlx-vlm loads weights strictly: none may be left over."""
    return Note(
        f"it fails to load a checkpoint that holds indexer weights of a shared layer ({evidence}): leave them out "
        "with --write DIR --strip-weights",
        when="rejected",
        severity="error",
    )


_MLX_VLM = Engine(
    name="mlx-vlm",
    title="mlx-vlm",
    paste=_CONFIG_KEYS,
    pipeline=_ONE_PROCESS,
    looked_at="0.7.10",
    families={
        "glm_moe_dsa": Support(
            (PATTERN_KEY, TYPES_KEY),
            ">=0.6.4",
            needs=_MLX_FIELDS,
            notes=(_rejects_indexers("run with 0.6.5, 0.7.0 and 0.7.10"),),
        ),
        "hy_v4": Support((TYPES_KEY,), ">=0.7.1", notes=(_rejects_indexers("read in 0.7.10"),)),
        # 0.7.0 reads the key and its model does not go by it.
        "glm5_next": Support(
            (TYPES_KEY,), ">=0.7.1", section="text_config", notes=(_rejects_indexers("read in 0.7.10"),)
        ),
    },
    refused=dict.fromkeys(("deepseek_v32", "deepseek_v4", "minimax_m3_vl"), "its model has no setting for it"),
    notes=(_EDIT, Note("a checkpoint converted to MLX before has a config.json of its own: edit that one")),
)

_TOKENSPEED = Engine(
    name="tokenspeed",
    title="TokenSpeed",
    paste="tokenspeed serve {model}{revision} --hf-overrides {settings}\n",
    revision=" --revision {quoted}",
    # Every process builds all layers, and no option asks for stages.
    pipeline=_ONE_PROCESS,
    # runtime/models/glm5.py, _glm_dsa_skip_indexer_topk, which deepseek_v32.py is too: indexer_types win, then the
    # pattern, then a frequency. A layer beyond the end of the one goes by the next, so they are of full length.
    families={
        "deepseek_v32": Support((TYPES_KEY,), needs=(BY_HALVES,)),
        "glm_moe_dsa": Support((TYPES_KEY,), needs=(IN_PAIRS,)),
    },
    notes=(
        Note("read in its repository of September 2026; which release was the first to share is not known"),
        Note(
            "the draft layer takes the model's last selection for its first step; how many drafts are accepted "
            "under a pattern was not measured",
            when="speculative decoding",
        ),
    ),
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
        VLLM,
        _SGLANG,
        _TENSORRT_LLM,
        VLLM_ASCEND,
        _ATOM,
        _XLLM,
        _LLAMA_CPP,
        _LMDEPLOY,
        _MLX_VLM,
        _PRIME_RL,
        _TOKENSPEED,
    )
}

WITHOUT_PATTERNS = {
    "mlx-lm": "reads no key for sharing, up to 0.32.2",
    "ktransformers": "has no key for sharing in its own tree",
    "omlx": "takes a frequency only",
    "slime": "takes a frequency only",
    "miles": "takes a frequency only",
}
