"""Exports read back under each engine's documented rule give exactly the plan's roles."""

import ast
import json
import shlex

import pytest
import torch
import transformers
from random_models import build, measure
from test_pattern import PUBLISHED

from indexcache.dsa.losses import PatternLosses
from indexcache.errors import ExportError
from indexcache.pattern import Pattern
from indexcache.search.export import ENGINES, export
from indexcache.search.plan import read_plan


@pytest.fixture
def plan(searched):
    return read_plan(searched / "plan.json")


def plan_for(plan, pattern, model_type="glm_moe_dsa"):
    """The plan as if ``pattern`` had come out for a model with as many layers."""
    sites = list(range(len(pattern)))
    model = plan.model.model_copy(
        update={"layers": len(pattern), "site_layers": sites, "shared_layers": [], "model_type": model_type}
    )
    result = plan.result.model_copy(update={"pattern": pattern, "layer_pattern": pattern})
    return plan.model_copy(update={"model": model, "result": result})


def vllm_roles(paste, layers):
    """vLLM: one letter per absolute layer, shared where it is exactly S, full beyond the end."""
    words = shlex.split(paste)
    override = json.loads(words[words.index("--hf-overrides") + 1])
    assert override["use_index_cache"] is True
    letters = override["index_topk_pattern"]
    return "".join("S" if layer < len(letters) and letters[layer] == "S" else "F" for layer in range(layers))


def sglang_roles(paste, layers):
    """SGLang from 0.5.20 on: indexer_types wins; before, the pattern. Both must agree."""
    words = shlex.split(paste)
    override = json.loads(words[words.index("--json-model-override-args") + 1])
    new = "".join("S" if override["indexer_types"][layer] == "shared" else "F" for layer in range(layers))
    old = "".join("S" if override["index_topk_pattern"][layer] == "S" else "F" for layer in range(layers))
    assert new == old
    return new


def transformers_roles(paste, layers):
    """transformers: the config class itself, given the keyword that the snippet gives."""
    call = ast.parse(paste).body[-1].value
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    config = transformers.GlmMoeDsaConfig(num_hidden_layers=layers, **given)
    return "".join("S" if kind == "shared" else "F" for kind in config.indexer_types)


READERS = {"vllm": vllm_roles, "sglang": sglang_roles, "transformers": transformers_roles}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_each_engine_reads_back_the_published_patterns(plan, engine, name):
    _, layers, pattern = PUBLISHED[name]
    exported = export(plan_for(plan, pattern), engine)
    assert READERS[engine](exported.paste, layers) == pattern
    assert not any("freq" in key for key in exported.settings)
    assert None not in exported.settings.values()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_names_are_quoted_for_the_shell(plan, engine):
    evil = plan.model.model_copy(update={"id": "a'; rm -rf $HOME #"})
    words = shlex.split(export(plan.model_copy(update={"model": evil}), engine).paste)
    assert "a'; rm -rf $HOME #" in words


def test_transformers_runs_the_plan_as_the_switch_does(plan, checkpoints):
    types = export(plan, "transformers").settings["indexer_types"]
    native = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoints["eight"], indexer_types=types, dtype=torch.float32
    )
    ids = torch.randint(0, 4096, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        own = native.eval()(input_ids=ids, labels=ids).loss.item()
    losses = PatternLosses(build("glm_moe_dsa", layers=8, seed=3), range(8))
    assert measure(losses, [Pattern(plan.result.pattern)], ids[0].tolist())[0] / 47 == pytest.approx(own, abs=1e-5)


def test_transformers_cannot_share_in_deepseek_v32(plan):
    with pytest.raises(ExportError, match="deepseek_v32"):
        export(plan_for(plan, "FSFS", "deepseek_v32"), "transformers")


def test_vllm_warns_of_versions_that_do_not_load(plan):
    """They stumble over indexer weights of shared layers, which only sites that are shared now still have."""
    assert any("0.29.0" in warning for warning in export(plan, "vllm").warnings)
    everything_full = export(plan_for(plan, "FFFF"), "vllm")
    assert not any("0.29.0" in warning for warning in everything_full.warnings)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_commit_that_was_searched_is_served(plan, engine):
    assert "revision" not in export(plan, engine).paste
    model = plan.model.model_copy(update={"revision": "abc123"})
    paste = export(plan.model_copy(update={"model": model}), engine).paste
    assert "revision='abc123'" in paste if engine == "transformers" else "--revision abc123" in paste


def test_an_unknown_engine_is_refused_with_the_known_ones(plan):
    with pytest.raises(ExportError, match="tgi") as caught:
        export(plan, "tgi")
    assert "vllm" in caught.value.hint
