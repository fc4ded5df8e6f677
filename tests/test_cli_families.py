"""The commands from end to end on families that select otherwise, share already or are nobody's.

One of each kind is searched in every run of the tests, the others under ``--torture``.
"""

import json

import pytest
import transformers
from conftest import save
from paper_model import on_paper
from random_models import LAYERS, build, build_multimodal, settings_of

COMMON = ("--keep", "0.5", "--windows", 3, "--heldout", 2, "--window", 64, "--selfcheck")


@pytest.fixture
def search(run_cli, text_file, tmp_path):
    """Searches a model and returns its plan and what was said on stderr."""

    def run(model, *options):
        arguments = ["search", "--model", model, "--dataset", text_file, "--out", tmp_path / "run", "--json"]
        code, out, err = run_cli(*arguments, *COMMON, *options)
        assert code == 0, err
        return json.loads(out), err

    return run


def saved(model, tmp_path):
    return save(model, tmp_path / "model")


MODELS = {
    "multimodal minimax_m3_vl": lambda: build_multimodal("minimax_m3_vl"),
    "deepseek_v4": lambda: build("deepseek_v4"),
    "minimax_m3_vl": lambda: build("minimax_m3_vl"),
    "multimodal mistral_large4": lambda: build_multimodal("mistral_large4"),
    "multimodal qwen4_exp": lambda: build_multimodal("qwen4_exp"),
}


def first_of(names):
    """Names of models as parameters; those after the first are searched under --torture only."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.torture) for name in others)]


@pytest.mark.parametrize("name", first_of(MODELS))
def test_inspect_search_eval_and_export(name, search, run_cli, tmp_path):
    folder = saved(MODELS[name](), tmp_path)
    code, out, _ = run_cli("inspect", folder, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["family"] in name
    assert document["sites"] == len(document["site_layers"]) >= 4
    assert document["index_heads"] >= 2
    code, out, _ = run_cli("inspect", folder)
    assert (code, "tell patterns apart" in out) == (0, True)

    plan, said = search(folder, "--baselines", "overlap")
    towers = document["idle_parameters"] > 0
    assert ("measured on text" in said) is towers
    assert plan["model"]["site_layers"] == document["site_layers"]
    assert plan["model"]["selection_width"] == document["selection_width"]
    sites, kept = document["sites"], -(-document["sites"] // 2)
    assert (plan["result"]["kept"], plan["result"]["sites"], plan["result"]["layers"]) == (kept, sites, LAYERS)
    assert len(plan["result"]["layer_pattern"]) == LAYERS
    assert len(plan["search"]["overlap_matrix"]) == sites
    assert any(step["delta"] != 0 for step in plan["search"]["steps"])

    code, out, _ = run_cli("eval", tmp_path / "run", "--json", "-q")
    assert (code, json.loads(out)["plan"]) == (0, plan["heldout"]["plan"])
    for engine in ("vllm", "sglang", "transformers"):
        code, out, err = run_cli("export", tmp_path / "run", "--to", engine)
        assert code in (0, 2)
        assert bool(out) is (code == 0)
        assert "error: unexpected" not in err


# GLM-5.2 keeps three layers, then shares three of four; hy_v4's own default shares from its third layer on.
SHARING = {
    "glm_moe_dsa": {"indexer_types": ["full", "full", "full", "shared", "shared", "full"]},
    "hy_v4": {"indexer_types": None},
}


@pytest.mark.parametrize("family", first_of(SHARING))
def test_a_checkpoint_that_shares_already(family, search, run_cli, tmp_path):
    folder = saved(build(family, **SHARING[family]), tmp_path)
    inspected = json.loads(run_cli("inspect", folder, "--json")[1])
    full = {"glm_moe_dsa": [0, 1, 2, 5], "hy_v4": [0, 1, 5]}[family]
    assert (inspected["site_layers"], inspected["shared_layers"]) == (full, [x for x in range(6) if x not in full])
    plan, said = search(folder)
    result = plan["result"]
    assert (result["kept"], result["sites"], result["layers"]) == (2, len(full), LAYERS)
    assert f"2 of {len(full)} indexers kept, in 6 layers" in " ".join(said.split())
    assert all(result["layer_pattern"][layer] == "S" for layer in inspected["shared_layers"])
    assert result["layer_pattern"].count("F") == 2
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"Keeps 2 of {len(full)} indexers, in 6 layers" in " ".join(report.split())
    assert run_cli("eval", tmp_path / "run", "-q")[0] == 0


@pytest.mark.reliability("R13")
def test_windows_in_which_no_query_has_a_choice_are_refused(run_cli, text_file, tmp_path, monkeypatch):
    """deepseek_v4 with 4 entries of 4 tokens begins to choose where a fifth is complete."""
    folder = saved(build("deepseek_v4"), tmp_path)
    arguments = ["search", "--model", folder, "--dataset", text_file, "--keep", 0.5, "--out", tmp_path / "run"]
    code, _, err = run_cli(*arguments, "--window", 20)
    assert (code, "measure nothing" in err, "21 tokens" in err) == (2, True, True)
    on_paper(monkeypatch)  # what is asked is only whether it is refused
    assert run_cli(*arguments, "--window", 21, "--windows", 2, "--heldout", 0, "-q")[0] == 0


class NobodysConfig(transformers.DeepseekV32Config):
    model_type = "nobodys_sparse"


class NobodysForCausalLM(transformers.DeepseekV32ForCausalLM):
    config_class = NobodysConfig


class TestAModelOfNoKnownFamily:
    @pytest.fixture
    def folder(self, tmp_path):
        transformers.AutoConfig.register("nobodys_sparse", NobodysConfig, exist_ok=True)
        transformers.AutoModelForCausalLM.register(NobodysConfig, NobodysForCausalLM, exist_ok=True)
        return saved(NobodysForCausalLM(NobodysConfig(**settings_of("deepseek_v32"))).float(), tmp_path)

    def test_is_searched_with_a_warning(self, folder, search, run_cli, monkeypatch):
        plan, said = search(folder)
        assert plan["model"]["site_layers"] == list(range(LAYERS))
        assert "warning:" in said
        assert "'nobodys_sparse', no family known here; assumed: every layer that owns an indexer" in said
        assert "--no-selfcheck" not in said
        on_paper(monkeypatch)
        _, said = search(folder, "--no-selfcheck", "--resume", "never")
        assert "with --no-selfcheck nothing shows" in said
        inspected = json.loads(run_cli("inspect", folder, "--json")[1])
        assert (inspected["family"], len(inspected["assumed"])) == (None, 3)
        assert "assumed" in run_cli("inspect", folder)[1]

    def test_is_refused_where_the_check_fails(self, folder, run_cli, text_file, tmp_path, monkeypatch):
        stock_forward = transformers.models.deepseek_v32.modeling_deepseek_v32.DeepseekV32Indexer.forward

        def wide(self, *args, **kwargs):
            self.index_topk = 10**6
            return stock_forward(self, *args, **kwargs)

        monkeypatch.setattr(
            transformers.models.deepseek_v32.modeling_deepseek_v32.DeepseekV32Indexer, "forward", wide
        )
        arguments = ["search", "--model", folder, "--dataset", text_file, "--out", tmp_path / "run", *COMMON]
        code, out, err = run_cli(*arguments, "-q")
        assert (code, out) == (2, "")
        assert "failed: sharing a selection changes nothing in layers 1-5" in err
        assert not (tmp_path / "run" / "plan.json").exists()


class UnsaidConfig(transformers.Qwen4ExpTextConfig):
    model_type = "unsaid_budget"


class UnsaidForCausalLM(transformers.Qwen4ExpForCausalLM):
    config_class = UnsaidConfig


class TestAModelWhoseSelectionWidthIsNotSaid:
    """Its indexers choose where a query sees more than 19 tokens, under a key that no other model has."""

    @pytest.fixture
    def folder(self, tmp_path):
        transformers.AutoConfig.register("unsaid_budget", UnsaidConfig, exist_ok=True)
        transformers.AutoModelForCausalLM.register(UnsaidConfig, UnsaidForCausalLM, exist_ok=True)
        return saved(UnsaidForCausalLM(UnsaidConfig(**settings_of("qwen4_exp"))).float(), tmp_path)

    @pytest.mark.parametrize("options", [(), ("--window", 64), ("--window", 64, "--no-selfcheck")])
    def test_is_not_searched(self, folder, options, run_cli, text_file, tmp_path):
        arguments = ["search", "--model", folder, "--dataset", text_file, "--keep", 0.5, "--out", tmp_path / "run"]
        code, out, err = run_cli(*arguments, *options)
        assert (code, out) == (2, "")
        assert "names no index_topk" in err
        assert "add it to config.json as index_topk" in " ".join(err.split())
        assert not (tmp_path / "run").exists()
        assert run_cli("inspect", folder)[0] == 0

    def test_is_searched_once_the_config_says_it_and_the_check_agrees(self, folder, run_cli, text_file, tmp_path):
        document = json.loads((folder / "config.json").read_text())
        arguments = ["search", "--model", folder, "--dataset", text_file, "--out", tmp_path / "run", *COMMON, "-q"]
        (folder / "config.json").write_text(json.dumps(document | {"index_topk": 40}))
        code, _, err = run_cli(*arguments)
        assert code == 2
        assert "although indexers should choose from more than 40 keys only" in " ".join(err.split())
        (folder / "config.json").write_text(json.dumps(document | {"index_topk": 19}))
        code, _, err = run_cli(*arguments, "--resume", "never")
        assert code == 0, err
