"""Exports read back under each engine's own rule, written down here once more, give exactly the plan's roles."""

import ast
import json
import shlex

import pytest
import torch
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_plans import plan_for, remarks
from random_models import LAYERS, build, measure, site_layers
from test_pattern import PUBLISHED

from indexcache.dsa.checkpoint.families import FAMILIES as SEARCHED
from indexcache.dsa.model.losses import PatternLosses
from indexcache.errors import ExportError, SettingError
from indexcache.pattern import Pattern
from indexcache.search.export.engines import ENGINES, FAMILIES, WITHOUT_PATTERNS
from indexcache.search.export.settings import check_servable, edited_config, export
from indexcache.search.export.support import Serving
from indexcache.search.plan.file import read_plan

# Which family each engine shares in, by its sources and threads.
SHARES = {
    "transformers": {"glm_moe_dsa", "hy_v4", "hy_v4_vl", "mistral_large4", "glm5_next"},
    "vllm": {"deepseek_v32", "glm_moe_dsa", "hy_v4"},
    "sglang": {"deepseek_v32", "glm_moe_dsa", "hy_v4", "glm5_next"},
    "tensorrt-llm": {"deepseek_v32", "glm_moe_dsa"},
    "vllm-ascend": {"deepseek_v32", "glm_moe_dsa", "deepseek_v4"},
    "atom": {"deepseek_v32", "glm_moe_dsa", "deepseek_v4", "minimax_m3_vl"},
    "xllm": {"deepseek_v32", "glm_moe_dsa"},
    "llama.cpp": {"glm_moe_dsa", "hy_v4", "glm5_next"},
    "lmdeploy": {"glm_moe_dsa"},
    "mlx-vlm": {"glm_moe_dsa", "hy_v4", "glm5_next"},
    "prime-rl": {"glm_moe_dsa"},
    "tokenspeed": {"deepseek_v32", "glm_moe_dsa"},
}
# Those that have no stages, or hand selections on from one to the next.
UNSTAGED = {"atom", "llama.cpp", "mlx-vlm", "tokenspeed"}
PAIRS = [(engine, family) for engine, families in SHARES.items() for family in sorted(families)]
EVERY_LAYER = {"deepseek_v32", "glm_moe_dsa", "hy_v4", "hy_v4_vl", "mistral_large4"}


@pytest.fixture(scope="module")
def plan(searched):
    return read_plan(searched / "plan.json")


def option(paste, name):
    words = shlex.split(paste)
    return json.loads(words[words.index(name) + 1])


def absolute(pattern, layers):
    """A letter per absolute layer, shared where it is exactly S, full beyond the end."""
    return "".join("S" if layer < len(pattern) and pattern[layer] == "S" else "F" for layer in range(layers))


def by_types(types, layers):
    assert len(types) == layers
    assert set(types) <= {"full", "shared"}
    return "".join("S" if types[layer] == "shared" else "F" for layer in range(layers))


def by_ordinal(pattern, sites, layers):
    """A letter per layer that owns an indexer, in their order; it opens with F."""
    assert pattern[0] == "F"
    letters = dict(zip(sites, pattern, strict=True))
    return "".join(letters.get(layer, "F") for layer in range(layers))


def transformers_roles(paste, plan):
    call = ast.parse(paste).body[-1].value
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    return by_types(given.get("text_config", given)["indexer_types"], plan.model.layers)


def vllm_roles(paste, plan):
    override = option(paste, "--hf-overrides")
    if plan.model.model_type == "hy_v4":
        return by_types(override["indexer_types"], plan.model.layers)
    assert override["use_index_cache"] is True, "0.21 and 0.22 read nothing without it"
    return absolute(override["index_topk_pattern"], plan.model.layers)


def sglang_roles(paste, plan):
    """indexer_types win from 0.5.20 on, before that the pattern counts; glm5_next has them under text_config."""
    if plan.model.model_type == "glm5_next":
        override = json.loads(paste)["text_config"]
    else:
        override = option(paste, "--json-model-override-args")
    new = by_types(override["indexer_types"], plan.model.layers)
    assert new == absolute(override["index_topk_pattern"], plan.model.layers)
    return new


def tensorrt_roles(paste, plan):
    """The pattern, upper-cased, of the HF config that model_kwargs override."""
    config = yaml.safe_load(paste.split("<<'EOF'\n")[1].split("EOF\n")[0])
    assert set(config) <= {"model_kwargs", "revision", "pp_partition"}
    return absolute(config["model_kwargs"]["index_topk_pattern"].upper(), plan.model.layers)


def ascend_roles(paste, plan):
    override = option(paste, "--hf-overrides")
    assert override["use_index_cache"] is True
    assert "indexer_types" not in override
    if plan.model.model_type == "deepseek_v4":
        return by_ordinal(override["index_topk_pattern"], plan.model.site_layers, plan.model.layers)
    return absolute(override["index_topk_pattern"], plan.model.layers)


def atom_roles(paste, plan):
    """Nothing without the flag; indexer_types win over the pattern; V4 counts layers, MiniMax sparse ones."""
    override = option(paste, "--hf-overrides")
    assert override["use_index_cache"] is True
    pattern, layers = override["index_topk_pattern"], plan.model.layers
    if plan.model.model_type == "minimax_m3_vl":
        return by_ordinal(pattern, plan.model.site_layers, layers)
    assert len(pattern) == layers, "the pipeline code indexes it unguarded"
    if plan.model.model_type != "deepseek_v4":
        assert by_types(override["indexer_types"], layers) == absolute(pattern, layers)
    return absolute(pattern, layers)


def xllm_roles(paste, plan):
    pattern = json.loads(paste)["index_topk_pattern"]
    assert len(pattern) == plan.model.layers, "xLLM aborts"
    return absolute(pattern.upper(), plan.model.layers)


def types_in_config_roles(paste, plan):
    """The converter reads a multimodal config's text_config, with what stands beside it."""
    keys = json.loads(paste)
    nested = plan.model.model_type == "glm5_next"
    return by_types((keys["text_config"] if nested else keys)["indexer_types"], plan.model.layers)


def lmdeploy_roles(paste, plan):
    return by_types(option(paste, "--hf-overrides")["indexer_types"], plan.model.layers)


def mlx_roles(paste, plan):
    """indexer_types win; glm5_next has them under text_config, and hy_v4 knows nothing else."""
    if plan.model.model_type != "glm_moe_dsa":
        return types_in_config_roles(paste, plan)
    keys = json.loads(paste)
    assert by_types(keys["indexer_types"], plan.model.layers) == keys["index_topk_pattern"]
    return keys["index_topk_pattern"]


def tokenspeed_roles(paste, plan):
    """indexer_types, else the pattern, else a frequency; a layer beyond the end of the one goes by the next."""
    override = option(paste, "--hf-overrides")
    roles = ""
    for layer in range(plan.model.layers):
        for key in ("indexer_types", "index_topk_pattern"):
            letters = override.get(key)
            if letters is not None and layer < len(letters):
                roles += "S" if letters[layer] in ("S", "shared") else "F"
                break
        else:
            pytest.fail(f"layer {layer} goes by the checkpoint's frequency")
    return roles


def prime_rl_roles(paste, plan):
    section, line = paste.strip().splitlines()
    assert section == "[trainer.model.index_cache]"
    key, value = line.split(" = ")
    assert key == "topk_pattern"
    return absolute(json.loads(value), plan.model.layers)


READERS = {
    "transformers": transformers_roles,
    "vllm": vllm_roles,
    "sglang": sglang_roles,
    "tensorrt-llm": tensorrt_roles,
    "vllm-ascend": ascend_roles,
    "atom": atom_roles,
    "xllm": xllm_roles,
    "llama.cpp": types_in_config_roles,
    "lmdeploy": lmdeploy_roles,
    "mlx-vlm": mlx_roles,
    "prime-rl": prime_rl_roles,
    "tokenspeed": tokenspeed_roles,
}


def check_settings(exported):
    """No frequency and no null, whatever the engine."""
    text = json.dumps(exported.settings)
    assert "freq" not in text
    assert "offset" not in text
    assert "null" not in text


@pytest.mark.reliability("R24")
@pytest.mark.parametrize(("engine", "family"), [pair for pair in PAIRS if pair[1] in EVERY_LAYER])
@pytest.mark.parametrize("name", PUBLISHED)
def test_each_engine_reads_back_the_published_patterns(plan, engine, family, name):
    _, layers, pattern = PUBLISHED[name]
    made = plan_for(plan, pattern, family)
    exported = export(made, engine)
    assert READERS[engine](exported.paste, made) == pattern
    assert (len(exported.pattern), exported.pattern_layers) == (layers, tuple(range(layers)))
    check_settings(exported)


@st.composite
def sites_and_roles(draw):
    """Sites among up to 40 layers, at least one, and their roles; the first one is full."""
    layers = draw(st.integers(1, 40))
    sites = sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1)))
    return layers, sites, "F" + draw(st.text("FS", min_size=len(sites) - 1, max_size=len(sites) - 1))


@pytest.mark.reliability("R24")
@pytest.mark.parametrize(("engine", "family"), PAIRS)
@given(made=sites_and_roles())
@settings(max_examples=25, deadline=None)
def test_each_engine_reads_back_any_pattern(plan, engine, family, made):
    layers, sites, roles = made
    if family in EVERY_LAYER:
        layers, sites = len(roles), list(range(len(roles)))
    full = plan_for(plan, roles, family, sites, layers)
    letters = full.result.layer_pattern
    lost = [
        layer for layer in sites if letters[layer] == "S" and (layer - 1 not in sites or letters[layer - 1] == "S")
    ]
    if family == "glm5_next" and engine in ("transformers", "sglang") and lost:
        with pytest.raises(ExportError, match="very next layer"):
            export(full, engine)
        return
    exported = export(full, engine)
    assert READERS[engine](exported.paste, full) == letters
    check_settings(exported)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "atom", "transformers", "xllm"])
def test_layers_that_share_in_the_checkpoint_stay_shared(plan, engine):
    made = plan_for(plan, "FSF", sites=[0, 1, 4], layers=6, shared=[2, 3, 5])
    assert READERS[engine](export(made, engine).paste, made) == "FSSSFS"


def test_the_table_knows_the_families_of_each_engine():
    assert {name: set(engine.families) for name, engine in ENGINES.items()} == SHARES
    assert set(FAMILIES) >= {family for families in SHARES.values() for family in families}
    assert not any(set(engine.families) & set(engine.refused) for engine in ENGINES.values())
    assert set(FAMILIES) == set(SEARCHED), "those that can be searched"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_an_engine_cannot_share_in_is_said_so(plan, engine, family):
    made = plan_for(plan, "FFSF", family)
    if family in SHARES[engine]:
        assert export(made, engine).pattern == "FFSF"
        return
    with pytest.raises(ExportError, match=f"cannot share indexers in {family}: ") as caught:
        export(made, engine)
    able = [name for name, families in SHARES.items() if family in families]
    assert all(name in caught.value.hint for name in able) or "no engine" in caught.value.hint


def test_a_text_model_is_of_its_familys_kind(plan):
    assert export(plan_for(plan, "FFSF", "minimax_m3_vl_text"), "atom").settings["index_topk_pattern"] == "FFSF"
    with pytest.raises(ExportError, match="mamba"):
        export(plan_for(plan, "FF", "mamba"), "vllm")


@pytest.mark.parametrize("engine", [*WITHOUT_PATTERNS, "tgi"])
def test_an_engine_that_takes_no_pattern_is_refused_with_those_that_do(plan, engine):
    with pytest.raises(ExportError, match=engine) as caught:
        export(plan, engine)
    assert all(name in caught.value.hint for name in ENGINES)


class TestVersions:
    @pytest.mark.parametrize(
        ("engine", "family", "old", "first"),
        [
            ("transformers", "glm_moe_dsa", "5.5.4", "5.6.0"),
            ("transformers", "hy_v4", "5.14.1", "5.18.0"),
            ("vllm", "glm_moe_dsa", "0.20.2", "0.21.0"),
            ("sglang", "deepseek_v32", "0.5.9", "0.5.10"),
            ("tensorrt-llm", "glm_moe_dsa", "1.2.1", "1.3.0rc22"),
            ("vllm-ascend", "deepseek_v32", "0.22.0", "0.23.0rc1"),
            ("vllm-ascend", "deepseek_v4", "0.20.1", "0.20.2rc1"),
            ("atom", "deepseek_v4", "v0.1.4", "v0.1.5"),
            ("atom", "minimax_m3_vl", "0.1.5", "0.1.6"),
            ("xllm", "glm_moe_dsa", "0.9.0", "0.10.0"),
            ("lmdeploy", "glm_moe_dsa", "0.15.1", "0.16.0"),
            ("mlx-vlm", "glm_moe_dsa", "0.6.3", "0.6.4"),
            ("mlx-vlm", "hy_v4", "0.7.0", "0.7.1"),
            ("mlx-vlm", "glm5_next", "0.7.0", "0.7.1"),
        ],
    )
    def test_those_before_the_first_that_shares_are_refused(self, plan, engine, family, old, first):
        made = plan_for(plan, "FSF", family)
        assert not any(
            f"needs {ENGINES[engine].title}" in text for text in remarks(export(made, engine, Serving(first)))
        )
        assert any(f"needs {ENGINES[engine].title}" in text for text in remarks(export(made, engine)))
        with pytest.raises(ExportError, match="cannot share") as caught:
            export(made, engine, Serving(old))
        assert "it needs" in caught.value.hint

    def test_vllms_flag_is_written_where_it_is_read(self, plan):
        made = plan_for(plan, "FSF")
        flagged = [
            version
            for version in (None, "0.21.0", "0.22.1", "0.23.0", "0.33.0")
            if "use_index_cache" in export(made, "vllm", Serving(version)).settings
        ]
        assert flagged == [None, "0.21.0", "0.22.1"]

    @pytest.mark.parametrize(
        ("version", "fails"),
        [
            (None, True),
            ("0.23.0", False),
            ("0.24.0", True),
            ("0.25.0", False),
            ("0.28.1", False),
            ("0.29.0", True),
            ("0.33.0", True),
        ],
    )
    @pytest.mark.parametrize("family", ["glm_moe_dsa", "deepseek_v32"])
    def test_vllm_versions_that_do_not_load_are_named_with_the_way_round(self, plan, version, fails, family):
        def warned(roles, **serving):
            warnings = remarks(export(plan_for(plan, roles, family), "vllm", Serving(version, **serving)))
            return any("fail to load" in text and "0.25 to 0.28" in text for text in warnings)

        assert warned("FSF") == fails
        assert not warned("FFF"), "there is nothing to stumble over"
        if version != "0.23.0":
            assert not warned("FSF", stripped=True)

    def test_checkpoints_without_indexers_are_unverified_before_vllm_0_24(self, plan):
        def warned(version, shared):
            made = plan_for(plan, "FS", sites=[0, 1], layers=3, shared=shared)
            return any("not verified" in text for text in remarks(export(made, "vllm", Serving(version))))

        assert (warned("0.23.0", [2]), warned("0.24.0", [2]), warned("0.23.0", [])) == (True, False, False)

    def test_newer_ones_than_were_looked_at_are_said_to_be(self, plan):
        made = plan_for(plan, "FSF")
        assert any(
            "0.34.0 is newer than 0.33.0" in text for text in remarks(export(made, "vllm", Serving("0.34.0")))
        )
        assert not any("newer" in text for text in remarks(export(made, "vllm", Serving("0.33.0"))))

    def test_an_early_release_candidate_of_tensorrt_is_refused(self, plan):
        made = plan_for(plan, "FSF")
        with pytest.raises(ExportError, match="cannot share"):
            export(made, "tensorrt-llm", Serving("1.3.0rc5"))
        assert any("1.3.0rc22" in text for text in remarks(export(made, "tensorrt-llm", Serving("1.3.0rc22"))))
        assert not any("1.3.0rc22" in text for text in remarks(export(made, "tensorrt-llm", Serving("1.3.0"))))

    def test_what_held_for_the_last_one_looked_at_is_taken_to_hold_for_newer_ones(self, plan):
        texts = remarks(export(plan_for(plan, "FSF"), "vllm", Serving("0.34.0")))
        assert any("fail to load" in text for text in texts)

    @pytest.mark.parametrize("version", ["main", "", "b1234"])
    def test_what_is_no_version_is_refused(self, plan, version):
        with pytest.raises(SettingError, match="no version of vLLM"):
            export(plan_for(plan, "FSF"), "vllm", Serving(version))

    @pytest.mark.parametrize(("engine", "version"), [("llama.cpp", "b5000"), ("prime-rl", "0.1")])
    def test_where_nothing_is_known_of_versions_that_is_said(self, plan, engine, version):
        made = plan_for(plan, "FSF")
        texts = remarks(export(made, engine, Serving(version)))
        assert any("nothing is known here of versions" in text for text in texts)
        assert any("needs PR #" in text for text in texts)


class TestStages:
    NEED = sorted(set(ENGINES) - UNSTAGED - {"sglang"})

    def stage_remarks(self, plan, engine, roles="FFSFSS", **serving):
        return [
            text for text in remarks(export(plan_for(plan, roles), engine, Serving(**serving))) if "stage" in text
        ]

    @pytest.mark.parametrize("engine", NEED)
    def test_a_stage_that_starts_on_a_shared_layer_is_warned_about(self, plan, engine):
        assert "must be F" in " ".join(self.stage_remarks(plan, engine))
        assert self.stage_remarks(plan, engine, pp_layers=[3, 3]) == []
        (warning,) = self.stage_remarks(plan, engine, pp_layers=[2, 1, 3])
        assert "stages 2,1,3" in warning
        assert "start with layers 2 " in warning
        assert "--pp-layers 2,1,3" in warning

    @pytest.mark.parametrize("engine", sorted(set(ENGINES) - UNSTAGED))
    @pytest.mark.parametrize("stages", [{"pp_size": 2}, {"pp_layers": [3, 3]}])
    def test_stages_that_the_settings_do_not_ask_for_are_said(self, plan, engine, stages):
        made = plan_for(plan, "FFSFSS")
        asked, plain = export(made, engine, Serving("99", **stages)), export(made, engine, Serving("99"))
        said = any("pipeline parallelism: set it there" in text for text in remarks(asked))
        assert said == (asked.paste == plain.paste and engine != "sglang")

    @pytest.mark.parametrize("engine", sorted(UNSTAGED))
    def test_engines_that_hand_selections_on_are_not(self, plan, engine):
        assert self.stage_remarks(plan, engine, pp_layers=[2, 4]) == self.stage_remarks(plan, engine) == []

    def test_a_stage_that_starts_where_the_checkpoint_itself_shares_is_one_of_them(self, plan):
        made = plan_for(plan, "FFF", sites=[0, 1, 3], layers=4, shared=[2])
        assert any("start with layers 2" in text for text in remarks(export(made, "vllm", Serving(pp_size=2))))
        made = plan_for(plan, "FFS", "deepseek_v4", sites=[0, 3, 5], layers=6)
        texts = remarks(export(made, "vllm-ascend", Serving(pp_layers=[2, 2, 2])))
        assert any("start with layers 5 " in text for text in texts), "layers without an indexer wait for nothing"

    def test_sglang_hands_them_on_since_0_5_14(self, plan):
        def staged(version, **serving):
            return self.stage_remarks(plan, "sglang", version=version, **serving)

        assert "before 0.5.14" in staged(None)[0]
        assert "before 0.5.14" in staged(None, pp_layers=[2, 4])[0]
        assert "start with layers 2" in staged("0.5.13", pp_layers=[2, 4])[0]
        assert staged("0.5.14", pp_layers=[2, 4]) == staged("0.5.14") == []

    def test_each_engine_splits_as_it_does(self, plan):
        roles = "FFFSFFF"  # vLLM takes 4 and 3 layers of 7, and 2, 3 and 2; TensorRT-LLM 3, 2 and 2
        assert self.stage_remarks(plan, "vllm", roles, pp_size=2) == []
        assert self.stage_remarks(plan, "vllm", roles, pp_size=3) == []
        assert self.stage_remarks(plan, "tensorrt-llm", roles, pp_size=3) != []
        assert "stages of 2,3,2 were taken" in self.stage_remarks(plan, "xllm", roles, pp_size=3)[0]

    def test_stages_that_cannot_be_are_refused_everywhere(self, plan):
        for engine in ENGINES:
            with pytest.raises(SettingError, match="add up to 5"):
                self.stage_remarks(plan, engine, pp_layers=[2, 3])

    @pytest.mark.parametrize(
        ("engine", "asked"),
        [
            ("vllm", "VLLM_PP_LAYER_PARTITION=3,3 vllm serve m --pipeline-parallel-size 2 --hf-overrides"),
            ("vllm-ascend", "VLLM_PP_LAYER_PARTITION=3,3 vllm serve m --pipeline-parallel-size 2 --hf-overrides"),
            ("sglang", "SGLANG_PP_LAYER_PARTITION=3,3 python -m sglang.launch_server --model-path m --pp-size 2 "),
            (
                "tensorrt-llm",
                "pp_partition: [3,3]\nEOF\ntrtllm-serve m --extra_llm_api_options indexcache.yaml --pp_size 2",
            ),
        ],
    )
    def test_the_command_asks_for_them(self, plan, engine, asked):
        made = plan_for(plan, "FFSFSS", id="m")
        assert asked in export(made, engine, Serving(pp_layers=[3, 3])).paste
        assert "PARTITION" not in export(made, engine, Serving(pp_size=2)).paste.upper()


class TestPaste:
    @pytest.mark.parametrize(
        "engine", ["vllm", "sglang", "tensorrt-llm", "vllm-ascend", "atom", "lmdeploy", "tokenspeed"]
    )
    def test_names_are_quoted_for_the_shell(self, plan, engine):
        made = plan_for(plan, "FS", id="a'; rm -rf $HOME #", revision="b'\nEOF\n; rm #")
        command = export(made, engine).paste
        if engine == "tensorrt-llm":
            heredoc, _, command = command.rpartition("\nEOF\n")
            assert yaml.safe_load(heredoc.split("<<'EOF'\n")[1])["revision"] == made.model.revision
        words = shlex.split(command)
        assert "a'; rm -rf $HOME #" in words
        if "--revision" in words:
            assert made.model.revision in words

    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_commit_that_was_searched_is_served(self, plan, engine):
        assert "revision" not in export(plan_for(plan, "FS"), engine).paste
        made = plan_for(plan, "FS", revision="abc123")
        exported = export(made, engine)
        if ENGINES[engine].revision:
            assert "abc123" in exported.paste
        else:
            assert any("abc123" in text for text in remarks(exported))
        moved = export(made, engine, Serving(model="elsewhere"))
        assert "abc123" not in moved.paste + "".join(remarks(moved))

    def test_deepseek_v4_says_what_a_letter_stands_for(self, plan):
        made = plan_for(plan, "FSF", "deepseek_v4", sites=[2, 4, 6], layers=8)
        by_ordinal, by_layer = export(made, "vllm-ascend"), export(made, "atom")
        assert (by_ordinal.pattern, by_ordinal.pattern_layers) == ("FSF", (2, 4, 6))
        assert any("2, 4, 6" in text and "FFFFSFFF" in text for text in remarks(by_ordinal))
        assert (by_layer.pattern, by_layer.pattern_layers) == ("FFFFSFFF", tuple(range(8)))

    @pytest.mark.parametrize(("nested", "where"), [(None, True), (True, True), (False, False)])
    def test_a_multimodal_config_has_the_keys_inside(self, plan, nested, where):
        made = plan_for(plan, "FSF", "mistral_large4", nested_config=nested)
        exported = export(made, "transformers")
        assert ("text_config" in exported.settings) == where
        assert ("AutoModelForImageTextToText" in exported.paste) == where

    def test_keys_at_the_top_of_a_multimodal_config_would_be_lost(self, plan):
        with pytest.raises(ExportError, match="keeps the text model under text_config"):
            export(plan_for(plan, "FSF", nested_config=True), "vllm")
        made = plan_for(plan, "FSF", "minimax_m3_vl", nested_config=True)
        assert set(export(made, "atom").settings) == {"use_index_cache", "index_topk_pattern"}


class TestStripped:
    @pytest.mark.parametrize("engine", ["vllm-ascend", "xllm", "prime-rl"])
    def test_engines_not_known_to_load_it_are_refused(self, plan, engine):
        with pytest.raises(ExportError, match="without the shared layers' indexers"):
            export(plan_for(plan, "FSF"), engine, Serving(stripped=True))

    @pytest.mark.parametrize(
        ("engine", "old", "new"), [("vllm", "0.23.0", "0.24.0"), ("sglang", "0.5.17", "0.5.18")]
    )
    def test_versions_that_load_them_all_are_refused(self, plan, engine, old, new):
        made = plan_for(plan, "FSF")
        assert "elsewhere" in export(made, engine, Serving(new, model="elsewhere", stripped=True)).paste
        with pytest.raises(ExportError, match=f"{old} loads the indexers of shared layers"):
            export(made, engine, Serving(old, stripped=True))


class TestConfig:
    def test_every_key_that_stands_there_says_the_same(self, plan):
        made = plan_for(plan, "FSF")
        standing = {
            "a": 1,
            "indexer_types": ["full"] * 3,
            "index_topk_pattern": "FFF",
            "index_topk_freq": 4,
            "index_skip_topk_offset": 2,
            "index_topk": 16,
        }
        for engine in SHARES:
            exported = export(made, engine)
            if exported.config is None:
                with pytest.raises(ExportError, match=r"config\.json"):
                    edited_config(standing, exported)
                continue
            edited = edited_config(standing, exported)
            assert edited["indexer_types"] == ["full", "shared", "full"]
            assert edited["index_topk_pattern"] == "FSF"
            assert not {"index_topk_freq", "index_skip_topk_offset"} & set(edited)
            assert (edited["a"], edited["index_topk"]) == (1, 16)
            assert exported.config.items() <= edited_config({}, exported).items()

    def test_keys_go_where_the_text_model_is(self, plan):
        exported = export(plan_for(plan, "FSF", "mistral_large4"), "transformers")
        edited = edited_config({"b": 2, "text_config": {"index_topk_freq": 4, "c": 3}}, exported)
        assert edited == {"b": 2, "text_config": {"c": 3, "indexer_types": ["full", "shared", "full"]}}

    def test_a_config_that_says_nothing_gets_the_engines_own_keys_only(self, plan):
        assert edited_config({"a": 1}, export(plan_for(plan, "FSF"), "xllm")) == {
            "a": 1,
            "index_topk_pattern": "FSF",
        }


class TestTransformers:
    """The one engine at hand, run for real."""

    @pytest.mark.reliability("R24")
    @pytest.mark.parametrize(
        ("family", "roles"),
        [("glm_moe_dsa", "FSSFSF"), ("hy_v4", "FSFSSF"), ("mistral_large4", "FSFFSS"), ("glm5_next", "FSFS")],
    )
    def test_it_runs_the_plan_as_the_switch_does(self, plan, checkpoints, family, roles):
        sites = site_layers(family)
        made = plan_for(plan, roles, family, list(sites), LAYERS, id=str(checkpoints[family]))
        namespace = {}
        exec(export(made, "transformers", Serving(transformers.__version__)).paste, namespace)
        native = namespace["model"].eval()
        read = native.config.get_text_config().indexer_types
        assert by_types(read, LAYERS) == made.result.layer_pattern
        ids = torch.randint(0, 4000, (1, 64), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            native_loss = native(input_ids=ids, labels=ids).loss.item()
        losses = PatternLosses(build(family), sites)
        under_plan, full = measure(losses, [Pattern(roles), Pattern.all_full(len(sites))], ids[0].tolist())
        assert under_plan / 63 == pytest.approx(native_loss, abs=1e-5)
        assert abs(full - under_plan) / 63 > 1e-4, "a plan that changes nothing would show nothing"

    @pytest.mark.reliability("R24")
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_its_config_class_reads_the_published_patterns(self, plan, name):
        _, layers, pattern = PUBLISHED[name]
        given = export(plan_for(plan, pattern), "transformers").settings
        config = transformers.GlmMoeDsaConfig(num_hidden_layers=layers, **given)
        assert by_types(config.indexer_types, layers) == pattern

    @pytest.mark.reliability("R24")
    @pytest.mark.parametrize(
        ("family", "config"),
        [
            ("hy_v4", "HYV4Config"),
            ("mistral_large4", "MistralLarge4Config"),
            ("glm5_next", "Glm5NextConfig"),
        ],
    )
    @pytest.mark.parametrize("how", ["keyword", "config.json"])
    def test_other_families_config_classes_read_it_too(self, plan, tmp_path, family, config, how):
        small = {"num_hidden_layers": 5, "vocab_size": 77}
        # By its name, as not every supported release has all of them.
        config_class = getattr(transformers, config)
        config_class(**(small if family == "hy_v4" else {"text_config": small})).save_pretrained(tmp_path)
        exported = export(plan_for(plan, "FSFSF", family), "transformers")
        given = exported.settings if how == "keyword" else {}
        if how == "config.json":
            path = tmp_path / "config.json"
            path.write_text(json.dumps(edited_config(json.loads(path.read_text()), exported)))
        read = transformers.AutoConfig.from_pretrained(tmp_path, **given).get_text_config()
        assert (by_types(read.indexer_types, 5), read.vocab_size) == ("FSFSF", 77)

    @pytest.mark.reliability("R24")
    def test_an_edited_config_wins_over_what_stood_there(self, plan, tmp_path):
        old = transformers.GlmMoeDsaConfig(num_hidden_layers=4).to_dict() | {"index_topk_freq": 2}
        for engine in ("transformers", "xllm", "mlx-vlm", "llama.cpp", "vllm", "atom"):
            edited = edited_config(old, export(plan_for(plan, "FSSF"), engine))
            (tmp_path / "config.json").write_text(json.dumps(edited))
            assert by_types(transformers.AutoConfig.from_pretrained(tmp_path).indexer_types, 4) == "FSSF"


# The class of deepseek_v2 that replaces vLLM's.
GENERAL = {
    "glm_moe_dsa": {"GlmMoeDsaForCausalLM": "GlmMoeDsaForCausalLM"},
    "deepseek_v32": {"DeepseekV32ForCausalLM": "DeepseekV3ForCausalLM"},
}


class TestFailing:
    """Settings with which an engine is known to fail."""

    def severities(self, exported, part):
        return [remark.severity for remark in exported.warnings if part in remark.text]

    @pytest.mark.parametrize(
        ("version", "severity"),
        [
            (None, ["warning"]),
            ("0.23.0", []),
            ("0.24.0", ["error"]),
            ("0.24.0rc2", ["error"]),
            ("0.25.0", []),
            ("0.28.1+cu130", []),
            ("0.29.0rc1", ["warning"]),
            ("0.29.0.dev3+gabc", ["warning"]),
            ("0.29.1.dev3+g0123456", ["warning"]),
            ("0.33.0", ["warning"]),
            ("0.33.0rc1", ["warning"]),
            ("0.33.0+cu130", ["warning"]),
            ("0.33.0.post1", ["warning"]),
            ("0.33.1.dev7+gabc.d20261101", ["warning"]),
            ("0.34.0", ["warning"]),
        ],
    )
    @pytest.mark.parametrize("family", GENERAL)
    def test_versions_that_fail_to_load_are_refused_unless_there_is_a_way_round(
        self, plan, version, severity, family
    ):
        exported = export(plan_for(plan, "FSF", family), "vllm", Serving(version))
        assert self.severities(exported, "fail to load") == severity
        if severity == ["error"]:
            with pytest.raises(ExportError, match="fail to load"):
                check_servable(exported)
        else:
            check_servable(exported)
        assert (severity == ["warning"]) == ("--model-class-overrides" in exported.paste)

    @pytest.mark.parametrize("version", [None, "0.28.0", "0.29.0", "0.33.0", "0.34.0"])
    @pytest.mark.parametrize("family", GENERAL)
    def test_the_paste_works_on_the_newest_one_looked_at(self, plan, version, family):
        exported = export(plan_for(plan, "FSF", family), "vllm", Serving(version))
        words = shlex.split(exported.paste)
        assert ("--model-class-overrides" in words) == (version != "0.28.0")
        if version != "0.28.0":
            ((old, new),) = option(exported.paste, "--model-class-overrides").items()
            assert GENERAL[family][old] == new.removeprefix("vllm.model_executor.models.deepseek_v2:")
        for roles, stripped in (("FFF", False), ("FSF", True)):
            made = export(plan_for(plan, roles, family), "vllm", Serving(version, stripped=stripped))
            assert "class-overrides" not in made.paste, "nothing is rejected"

    @pytest.mark.parametrize(
        ("engine", "version", "severity"),
        [
            ("vllm", None, "error"),
            ("vllm-ascend", None, "error"),
            ("tensorrt-llm", None, "error"),
            ("sglang", None, "warning"),
            ("sglang", "0.5.13", "error"),
            ("none", None, "warning"),
        ],
    )
    def test_stages_that_wait_are_refused_where_nothing_is_handed_over(self, plan, engine, version, severity):
        exported = export(plan_for(plan, "FFSFSS"), engine, Serving(version, pp_layers=[2, 4]))
        assert self.severities(exported, "get no selection") == [severity]
        assert exported.warnings[0].severity == severity, "the worst comes first"
        check_servable(export(plan_for(plan, "FFSFSS"), engine, Serving(version, pp_layers=[3, 3])))

    @pytest.mark.parametrize("engine", sorted(name for name, engine in ENGINES.items() if engine.looked_at))
    def test_a_release_that_was_not_looked_at_is_not_said_to_fail(self, plan, engine):
        for made in (plan_for(plan, "FFSFSS"), plan_for(plan, "FFSFSS", "hy_v4")):
            if made.model.model_type in SHARES[engine]:
                exported = export(made, engine, Serving("99.0", pp_layers=[2, 4]))
                assert "error" not in [remark.severity for remark in exported.warnings]

    @pytest.mark.parametrize(
        ("engine", "family"),
        [("mlx-vlm", "glm_moe_dsa"), ("mlx-vlm", "hy_v4"), ("mlx-vlm", "glm5_next"), ("llama.cpp", "hy_v4")],
    )
    def test_an_engine_of_which_every_version_fails_is_refused(self, plan, engine, family):
        made = plan_for(plan, "FSF", family)
        newest = ENGINES[engine].looked_at or None
        for version in (None, newest):
            with pytest.raises(ExportError, match="strip-weights"):
                check_servable(export(made, engine, Serving(version)))
            check_servable(export(made, engine, Serving(version, stripped=True)))
            check_servable(export(plan_for(plan, "FFF", family), engine, Serving(version)))
        if newest:
            check_servable(export(made, engine, Serving("99.0")))


class TestBare:
    """The pattern for an engine of one's own."""

    @pytest.mark.parametrize("name", ["none", "pattern", "None"])
    @pytest.mark.parametrize("family", ["mamba", "glm_moe_dsa", "hy_v4_vl_text"])
    def test_it_spells_the_pattern_over_layers_and_sites(self, plan, name, family):
        made = plan_for(plan, "FSFS", family, sites=[0, 2, 4, 6], layers=8, shared=[5])
        exported = export(made, name)
        document = json.loads(exported.paste)
        assert document == exported.settings
        assert (document["layers"], document["layer_pattern"]) == (8, "FFSFFSSF")
        assert (document["site_layers"], document["site_pattern"]) == ([0, 2, 4, 6], "FSFS")
        assert (document["kept_layers"], document["shared_layers"]) == ([0, 4], [2, 5, 6])
        assert document["served_by"] == {"2": 0, "6": 4}

    def test_it_is_for_no_version_and_goes_into_no_config(self, plan):
        with pytest.raises(ExportError, match="no engine that is known"):
            export(plan, "none", Serving("1.0"))
        with pytest.raises(ExportError, match=r"config\.json"):
            edited_config({}, export(plan, "none"))


class TestPaths:
    def test_a_local_checkpoint_is_pasted_from_the_root(self, plan, tmp_path, monkeypatch):
        (tmp_path / "model").mkdir()
        monkeypatch.chdir(tmp_path)
        made = plan_for(plan, "FFF", id="model", revision=None)
        for engine in ("vllm", "sglang", "tensorrt-llm", "transformers", "lmdeploy", "atom", "tokenspeed"):
            for spelled in (None, "model", "./model"):
                assert str(tmp_path / "model") in export(made, engine, Serving(model=spelled)).paste
        assert str(tmp_path / "gone") in export(made, "vllm", Serving(model="./gone")).paste

    def test_a_hub_name_stays_and_a_folder_that_is_gone_is_said(self, plan):
        assert (
            "serve org/name --revision abc "
            in export(plan_for(plan, "FFF", id="org/name", revision="abc"), "vllm").paste
        )
        lost = plan_for(plan, "FFF", id="gone", revision=None)
        assert any("is not here" in text for text in remarks(export(lost, "vllm")))
        assert not any("is not here" in text for text in remarks(export(lost, "xllm"))), "it names no model"
