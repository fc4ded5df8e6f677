"""Settings, ready to paste, that make a serving engine run a plan's pattern."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ExportError
from ..pattern import indexer_types
from .plan import Plan


@dataclass(frozen=True)
class Export:
    """One engine's settings.

    Args:
        engine: its name.
        settings: the settings as data.
        paste: what to paste, with comments.
        warnings: what the engine does not check and the user should know.
    """

    engine: str
    settings: dict[str, object]
    paste: str
    warnings: tuple[str, ...]


def export(plan: Plan, engine: str) -> Export:
    """The settings for ``engine``; always an explicit pattern, one letter per decoder layer.

    A frequency is never written: engines disagree by one layer about what it means.

    Raises:
        ExportError: an engine that is not known, or one that cannot share in this family.
    """
    if engine not in ENGINES:
        raise ExportError(f"engine {engine!r} is not known", hint=f"give one of {', '.join(ENGINES)}")
    return ENGINES[engine](plan)


def _transformers(plan: Plan) -> Export:
    if plan.model.model_type != "glm_moe_dsa":
        raise ExportError(
            f"transformers has no setting that shares indexers in {plan.model.model_type}",
            hint="export for vllm or sglang",
        )
    types = indexer_types(plan.result.layer_pattern)
    revision = f"    revision={plan.model.revision!r},\n" if plan.model.revision else ""
    paste = (
        "from transformers import AutoModelForCausalLM\n\n"
        "model = AutoModelForCausalLM.from_pretrained(\n"
        f"    {plan.model.id!r},\n"
        f"{revision}"
        f"    indexer_types={types!r},\n"
        ")\n"
    )
    warnings = (
        "needs transformers 5.6.0 or later (sharing in glm_moe_dsa)",
        "shared layers build no indexer: their indexer weights are reported as unexpected and not loaded",
        "in config.json the key is indexer_types; index_topk_pattern is ignored wherever indexer_types stands",
    )
    return Export("transformers", {"indexer_types": types}, paste, warnings)


def _revision(plan: Plan) -> str:
    """The commit that was searched, as both servers take it; nothing for a local folder."""
    return f" --revision {shlex.quote(plan.model.revision)}" if plan.model.revision else ""


def _vllm(plan: Plan) -> Export:
    settings: dict[str, object] = {"use_index_cache": True, "index_topk_pattern": plan.result.layer_pattern}
    overrides = shlex.quote(json.dumps(settings))
    paste = f"vllm serve {shlex.quote(plan.model.id)}{_revision(plan)} --hf-overrides {overrides}\n"
    warnings = ["needs vLLM 0.21.0 or later; use_index_cache is read by 0.21 and 0.22 only and harmless later"]
    if "S" in plan.result.pattern:
        warnings.append(
            "vLLM 0.24.0 and 0.29.0 to 0.33.0 fail to load a checkpoint that ships indexer weights for a shared "
            "layer (KeyError on them): use 0.25 to 0.28"
        )
    warnings.append("with pipeline parallelism the first layer of every stage must be F; vLLM does not check it")
    return Export("vllm", settings, paste, tuple(warnings))


def _sglang(plan: Plan) -> Export:
    pattern = plan.result.layer_pattern
    settings: dict[str, object] = {"index_topk_pattern": pattern, "indexer_types": indexer_types(pattern)}
    paste = (
        f"python -m sglang.launch_server --model-path {shlex.quote(plan.model.id)}{_revision(plan)} "
        f"--json-model-override-args {shlex.quote(json.dumps(settings))}\n"
    )
    warnings = (
        "needs SGLang 0.5.10 or later",
        "both keys are needed: from 0.5.20 on indexer_types wins and a pattern alone is ignored for GLM",
        "--enable-two-batch-overlap is refused with shared layers",
        "with pipeline parallelism before 0.5.14 the first layer of every stage must be F",
    )
    return Export("sglang", settings, paste, warnings)


ENGINES: dict[str, Callable[[Plan], Export]] = {
    "transformers": _transformers,
    "vllm": _vllm,
    "sglang": _sglang,
}
