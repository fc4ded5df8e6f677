"""What export says of the checkpoint's config.json, and of ways of serving that it is not told of."""

import json

import pytest
import transformers
from made_plans import plan_for, remarks

from indexcache.errors import ExportError
from indexcache.search.export.engines import ENGINES
from indexcache.search.export.settings import check_servable, edited_config, export
from indexcache.search.export.support import Serving
from indexcache.search.plan.file import read_plan

ROTARY = "indexer_rope_interleave"
# What transformers 5.24.0 does without, and some engine reads.
KEYS = {ROTARY: True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
ROUTED = {"num_hidden_layers": 4, "first_k_dense_replace": 3, "n_routed_experts": 8}


@pytest.fixture(scope="module")
def plan(searched):
    return read_plan(searched / "plan.json")


class TestNeeds:
    """Keys that engines go by and transformers does not: compared with the config.json to be served."""

    def exported(self, plan, engine, config, family="glm_moe_dsa", **serving):
        return export(plan_for(plan, "FSFS", family), engine, Serving(config=config, **serving))

    def said(self, exported):
        """The keys that remarks name, with their severity."""
        return {
            name: remark.severity for remark in exported.warnings for name in KEYS if f" {name}" in remark.text
        }

    @pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-ascend", "lmdeploy", "tokenspeed"])
    @pytest.mark.parametrize("config", [{}, {ROTARY: None}, {ROTARY: False}])
    def test_a_glm_checkpoint_that_would_rotate_otherwise_is_set_right(self, plan, engine, config):
        exported = self.exported(plan, engine, {**config, "n_routed_experts": None})
        assert exported.settings[ROTARY] is True
        assert self.said(exported) == {ROTARY: "warning"}
        assert f'"{ROTARY}": true' in exported.paste
        check_servable(exported)

    @pytest.mark.parametrize("engine", sorted(ENGINES))
    def test_a_config_that_says_it_all_needs_nothing(self, plan, engine):
        exported = self.exported(plan, engine, {**ROUTED, **KEYS}, stripped=engine == "mlx-vlm")
        assert self.said(exported) == {}
        assert not set(KEYS) & set(exported.settings)

    @pytest.mark.parametrize(
        ("engine", "needed"),
        [
            ("vllm", {ROTARY, "scoring_func", "topk_method"}),
            ("vllm-ascend", {ROTARY, "scoring_func", "topk_method"}),
            ("sglang", set(KEYS)),
            ("lmdeploy", set(KEYS)),
            ("mlx-vlm", set(KEYS) - {ROTARY}),
            ("tokenspeed", {ROTARY}),
            ("transformers", set()),
            ("llama.cpp", set()),
            ("xllm", set()),
        ],
    )
    def test_routers_need_theirs(self, plan, engine, needed):
        exported = self.exported(plan, engine, ROUTED, stripped=engine == "mlx-vlm")
        assert set(self.said(exported)) == needed
        assert {name: KEYS[name] for name in needed}.items() <= exported.settings.items()

    @pytest.mark.parametrize(
        ("config", "routed"),
        [
            ({}, True),
            ({"num_hidden_layers": 4}, True),
            ({"num_hidden_layers": 3}, False),
            ({"num_hidden_layers": 4, "first_k_dense_replace": 4}, False),
            ({"num_hidden_layers": 4, "n_routed_experts": 0}, False),
            ({"num_hidden_layers": 4, "mlp_layer_types": ["dense"] * 4}, False),
            ({"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]}, True),
            ({"num_hidden_layers": "4", "mlp_layer_types": "odd", "first_k_dense_replace": [1]}, True),
        ],
    )
    def test_only_where_layers_route(self, plan, config, routed):
        assert ("scoring_func" in self.exported(plan, "vllm", config).settings) == routed

    def test_deepseek_rotates_the_other_way(self, plan):
        for engine in ("vllm", "sglang", "tokenspeed", "vllm-ascend"):
            dense = {"num_hidden_layers": 3}
            assert ROTARY not in self.exported(plan, engine, dense, "deepseek_v32").settings
            exported = self.exported(plan, engine, dense | {ROTARY: True}, "deepseek_v32")
            assert exported.settings[ROTARY] is False

    def test_what_settings_do_not_reach_belongs_into_the_config(self, plan):
        exported = self.exported(plan, "tensorrt-llm", {})
        assert self.said(exported) == {ROTARY: "error"}
        assert ROTARY not in exported.paste
        with pytest.raises(ExportError, match="--write DIR"):
            check_servable(exported)
        edited = self.exported(plan, "tensorrt-llm", {}, edited=True)
        check_servable(edited)
        assert edited_config({"a": 1}, edited)[ROTARY] is True

    def test_without_a_config_to_look_at_what_would_change_the_model_is_said_again(self, plan):
        for engine, said in (("vllm", True), ("tensorrt-llm", False), ("xllm", False), ("mlx-vlm", False)):
            exported = self.exported(plan, engine, None)
            assert (ROTARY in exported.settings) == said
            assert not {"scoring_func", "topk_method", "moe_layer_freq"} & set(exported.settings)
            assert self.said(exported) == ({ROTARY: "note"} if engine in ("vllm", "tensorrt-llm") else {})

    def test_transformers_takes_the_same_whatever_config_json_says(self, plan):
        """The reason for all this; once transformers reads one of the keys, its entry is to go."""
        config = transformers.GlmMoeDsaConfig()
        written = json.loads(config.to_json_string(use_diff=False))
        assert not set(KEYS) & set(written), "transformers writes it by itself now"

    @pytest.mark.parametrize("value", ["\x1b[2J\nx" * 40, ["a"] * 99, 1e308, {"a": None}])
    def test_odd_values_stay_on_one_line(self, plan, value):
        exported = self.exported(plan, "sglang", ROUTED | {ROTARY: value, "moe_layer_freq": value})
        assert set(self.said(exported)) == set(KEYS)
        assert all(remark.text.isprintable() and len(remark.text) < 400 for remark in exported.warnings)


class TestTraps:
    """Ways of serving that export is not told of."""

    @pytest.mark.parametrize(
        ("engine", "family", "version", "trap", "severity"),
        [
            ("vllm-ascend", "deepseek_v4", None, "speculative decoding", "warning"),
            ("vllm-ascend", "deepseek_v4", "0.30.0rc2", "speculative decoding", "warning"),
            ("vllm-ascend", "deepseek_v4", None, "context parallelism", "warning"),
            ("vllm-ascend", "deepseek_v4", "0.23.0.post1", "context parallelism", "warning"),
            ("vllm-ascend", "deepseek_v4", "0.27.1rc1", "context parallelism", None),
            ("vllm-ascend", "glm_moe_dsa", None, "context parallelism", None),
            ("vllm", "glm_moe_dsa", "0.33.0", "two-batch overlap", "warning"),
            ("vllm", "deepseek_v32", None, "speculative decoding", "note"),
            ("sglang", "glm_moe_dsa", None, "two-batch overlap", "note"),
            ("xllm", "glm_moe_dsa", None, "context parallelism", "note"),
            ("atom", "glm_moe_dsa", None, "speculative decoding", "note"),
            ("tokenspeed", "glm_moe_dsa", None, "speculative decoding", "note"),
        ],
    )
    def test_they_are_said_of_plans_that_share(self, plan, engine, family, version, trap, severity):
        def severities(roles):
            exported = export(plan_for(plan, roles, family), engine, Serving(version))
            return {r.severity for r in exported.warnings if r.text.startswith(f"with {trap}: ")}

        assert severities("FSF") == ({severity} if severity else set())
        assert severities("FFF") == set(), "nothing is shared"

    @pytest.mark.parametrize(
        ("version", "said"),
        [("0.26.0rc1", []), ("0.28.0rc1", ["refuse good ones"]), ("0.30.0rc2", ["runs it, whatever"])],
    )
    def test_v4s_stages_are_checked_as_each_release_does(self, plan, version, said):
        made = plan_for(plan, "FSF", "deepseek_v4", sites=[0, 2, 4], layers=6)
        parts = ("refuse good ones", "runs it, whatever")
        for serving, expected in ((Serving(version, pp_layers=[4, 2]), said), (Serving(version), [])):
            texts = " ".join(remarks(export(made, "vllm-ascend", serving)))
            assert [part for part in parts if part in texts] == expected

    def test_a_stage_that_a_release_may_hand_on_to_is_no_error(self, plan):
        made = plan_for(plan, "FFSFSS")
        for version, severity in (("0.29.0rc1", "error"), ("0.30.0rc2", "warning"), (None, "error")):
            exported = export(made, "vllm-ascend", Serving(version, pp_layers=[2, 4]))
            assert exported.warnings[0].severity == severity
            assert "get no selection" in exported.warnings[0].text
