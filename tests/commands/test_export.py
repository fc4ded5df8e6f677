"""Exports with --write and --strip-weights: the folders they leave are what engines load."""

import json
import shutil

import pytest
import torch
import transformers
from random_models import build, measure
from safetensors.torch import load_file

from indexcache.commands.export import config_here
from indexcache.dsa.model.losses import PatternLosses
from indexcache.pattern import Pattern
from indexcache.search.plan.schema import Plan


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


@pytest.fixture
def plan(searched):
    document = json.loads((searched / "plan.json").read_text())
    del document["checksum"]
    return document


def shared_layers(plan):
    return [layer for layer, letter in enumerate(plan["result"]["layer_pattern"]) if letter == "S"]


def loss(model, ids):
    with torch.inference_mode():
        return model.eval()(input_ids=ids, labels=ids).loss.item()


@pytest.fixture
def ids():
    return torch.randint(0, 4096, (1, 48), generator=torch.Generator().manual_seed(0))


def test_write_leaves_the_edited_config_and_nothing_else(run_cli, searched, checkpoints, plan, tmp_path):
    code, out, err = run_cli("export", searched, "--to", "xllm", "--write", tmp_path / "new")
    assert (code, json.loads(out)) == (0, {"index_topk_pattern": plan["result"]["layer_pattern"]})
    assert f"wrote {tmp_path / 'new' / 'config.json'}" in err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]
    old = json.loads((checkpoints["eight"] / "config.json").read_text())
    new = json.loads((tmp_path / "new" / "config.json").read_text())
    changed = {name for name in {*old, *new} if old.get(name) != new.get(name)}
    assert changed == {"index_topk_pattern", "indexer_types"}
    assert [kind == "shared" for kind in new["indexer_types"]] == [
        letter == "S" for letter in plan["result"]["layer_pattern"]
    ]


def test_a_written_config_runs_as_the_switch_does(run_cli, searched, checkpoints, plan, tmp_path, ids):
    run_cli("export", searched, "--to", "transformers", "--write", tmp_path / "new")
    shutil.copy(checkpoints["eight"] / "model.safetensors", tmp_path / "new")
    native = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32)
    losses = PatternLosses(build("glm_moe_dsa", layers=8, seed=3), range(8))
    switched = measure(losses, [Pattern(plan["result"]["pattern"])], ids[0].tolist())[0] / 47
    assert loss(native, ids) == pytest.approx(switched, abs=1e-5)


def test_a_stripped_checkpoint_loads_and_loses_nothing(run_cli, searched, checkpoints, plan, tmp_path, ids):
    moved = shutil.copytree(checkpoints["eight"], tmp_path / "moved")
    arguments = ["export", searched, "--to", "vllm", "--write", tmp_path / "new", "--strip-weights", "--json"]
    code, out, err = run_cli(*arguments, "--model", moved)
    assert code == 0, err
    document = json.loads(out)
    assert document["written"] == str(tmp_path / "new")
    assert f"vllm serve {tmp_path / 'new'} " in document["paste"]
    assert not any("fail to load" in warning["text"] for warning in document["warnings"])
    before, after = load_file(moved / "model.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    layers = {int(name.split(".")[2]) for name in set(before) - set(after)}
    assert layers == set(shared_layers(plan))
    assert all(".indexer." in name for name in set(before) - set(after))

    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "new", dtype=torch.float32, output_loading_info=True
    )
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    types = ["shared" if letter == "S" else "full" for letter in plan["result"]["layer_pattern"]]
    whole = transformers.AutoModelForCausalLM.from_pretrained(moved, indexer_types=types, dtype=torch.float32)
    assert loss(model, ids) == loss(whole, ids)
    transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert run_cli("inspect", tmp_path / "new")[0] == 0


class TestWrongUse:
    def run(self, run_cli, searched, *options, to="vllm"):
        code, out, err = run_cli("export", searched, "--to", to, *options, "--json", "-q")
        assert code == 2
        assert len(lines(err)) == 1, err
        return json.loads(out)["error"]["message"]

    def test_weights_need_a_folder(self, run_cli, searched):
        assert "without --write" in self.run(run_cli, searched, "--strip-weights")

    @pytest.mark.parametrize("options", [[], ["--strip-weights"]])
    def test_a_folder_in_use_is_refused(self, run_cli, searched, checkpoints, tmp_path, options):
        (tmp_path / "config.json").write_text("mine")
        assert "is there already" in self.run(run_cli, searched, "--write", tmp_path, *options)
        assert (tmp_path / "config.json").read_text() == "mine"
        said = self.run(run_cli, searched, "--write", checkpoints["eight"], *options)
        assert "is the checkpoint itself" in said

    @pytest.mark.parametrize("options", [[], ["--strip-weights"]])
    def test_another_checkpoint_is_refused(self, run_cli, searched, checkpoints, tmp_path, options):
        arguments = ["--write", tmp_path / "new", "--model", checkpoints["glm_moe_dsa"], *options]
        said = self.run(run_cli, searched, *arguments)
        assert "not the one that was searched" in said or "another model" in said
        assert not (tmp_path / "new").exists()

    @pytest.mark.parametrize("options", [[], ["--strip-weights"]])
    def test_a_checkpoint_that_moved_is_asked_for(self, run_cli, searched, plan, tmp_path, options):
        plan["model"]["id"] = str(tmp_path / "gone")
        (tmp_path / "plan.json").write_text(Plan.model_validate(plan).as_json())
        code, _, err = run_cli("export", tmp_path, "--to", "vllm", "--write", tmp_path / "new", *options, "-q")
        assert (code, len(lines(err)), "with --model" in err) == (2, 1, True), err

    def test_weights_on_the_hub_are_to_be_fetched_first(
        self, run_cli, searched, checkpoints, plan, tmp_path, monkeypatch
    ):
        plan["model"] |= {"id": "some/model", "revision": "abc123"}
        (tmp_path / "plan.json").write_text(Plan.model_validate(plan).as_json())
        fetched = lambda model_id, revision: (checkpoints["eight"], "abc123")  # noqa: E731
        monkeypatch.setattr("indexcache.dsa.checkpoint.hub.fetch_description", fetched)
        said = self.run(run_cli, tmp_path, "--write", tmp_path / "new", "--strip-weights")
        assert "is on the hub" in said
        code, _, err = run_cli("export", tmp_path, "--to", "vllm", "--write", tmp_path / "new", "-q")
        assert code == 0, err
        assert (tmp_path / "new" / "config.json").exists()

    def test_a_plan_that_shares_nothing_has_nothing_to_strip(self, run_cli, searched, tmp_path):
        folder = shutil.copytree(searched, tmp_path / "run")
        path = run_cli("cut", folder, "--keep", 1)[1].strip()
        said = self.run(run_cli, path, "--write", tmp_path / "new", "--strip-weights")
        assert "shares no layer" in said

    @pytest.mark.parametrize("to", ["vllm-ascend", "prime-rl", "none"])
    def test_engines_that_must_not_have_it_in_the_config_refuse(self, run_cli, searched, tmp_path, to):
        assert "config.json" in self.run(run_cli, searched, "--write", tmp_path / "new", to=to)
        assert not (tmp_path / "new").exists()

    def test_that_is_said_before_libraries_are_loaded(self, run_cli, searched, tmp_path, monkeypatch):
        def loaded(*arguments, **settings):
            raise AssertionError("libraries were loaded")

        monkeypatch.setattr("indexcache.cli.working", loaded)
        self.run(run_cli, searched, "--write", tmp_path / "new", to="none")

    def test_what_is_known_to_fail_is_called_an_error_where_it_is_forced(self, run_cli, searched):
        arguments = ["export", searched, "--to", "vllm", "--engine-version", "0.24.0"]
        code, out, err = run_cli(*arguments)
        assert (code, out, len(lines(err))) == (2, "", 1)
        code, out, err = run_cli(*arguments, "--force")
        assert code == 0
        assert "vllm serve" in out
        assert any(line.startswith("error: ") and "fail to load" in line for line in lines(err))

    def test_weights_changed_since_the_search_are_refused(self, run_cli, searched, checkpoints, tmp_path):
        moved = shutil.copytree(checkpoints["eight"], tmp_path / "moved")
        content = bytearray((moved / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (moved / "model.safetensors").write_bytes(content)
        arguments = ["--write", tmp_path / "new", "--strip-weights", "--model", moved]
        assert "weights_sha256" in self.run(run_cli, searched, *arguments)


class TestConfigHere:
    """What export sees of the config.json to be served, and puts right."""

    KEY = "indexer_rope_interleave"

    @pytest.fixture
    def moved(self, checkpoints, tmp_path):
        """The plan's checkpoint elsewhere, and a way to change its config.json."""
        folder = shutil.copytree(checkpoints["eight"], tmp_path / "moved")

        def change(**keys):
            config = json.loads((folder / "config.json").read_text()) | keys
            (folder / "config.json").write_text(json.dumps(config))
            return folder

        return change

    def run(self, run_cli, searched, model, *options, to="vllm"):
        code, out, err = run_cli("export", searched, "--to", to, "--model", model, *options, "--json")
        document = json.loads(out)
        named = [remark["severity"] for remark in document.get("warnings", []) if self.KEY in remark["text"]]
        return code, document, named, err

    def test_a_missing_key_is_named_and_pasted(self, run_cli, searched, moved):
        code, document, named, err = self.run(run_cli, searched, moved(**{self.KEY: None}))
        assert (code, named, document["settings"][self.KEY]) == (0, ["warning"], True)
        assert f"config.json lacks {self.KEY}" in err
        assert f'"{self.KEY}": true' in document["paste"]

    def test_one_that_is_there_is_left_alone(self, run_cli, searched, moved):
        code, document, named, _ = self.run(run_cli, searched, moved(**{self.KEY: True}))
        assert (code, named, self.KEY in document["settings"]) == (0, [], False)

    def test_a_key_that_settings_do_not_reach_is_refused_and_written(
        self, run_cli, searched, checkpoints, tmp_path, moved
    ):
        code, document, _, err = self.run(run_cli, searched, moved(**{self.KEY: None}), to="tensorrt-llm")
        assert (code, len(lines(err)), self.KEY in document["error"]["message"]) == (2, 1, True)
        arguments = ["--to", "tensorrt-llm", "--write", tmp_path / "new", "-q"]
        assert run_cli("export", searched, *arguments)[0] == 0
        before, after = (
            json.loads((folder / "config.json").read_text()) for folder in (checkpoints["eight"], tmp_path / "new")
        )
        assert self.KEY not in before
        assert after[self.KEY] is True

    @pytest.mark.parametrize("content", ["", "[1]", "{", "\ud800", "[" * 100_000, '{"text_config": 3}'])
    def test_one_that_cannot_be_read_is_not_here(self, run_cli, searched, moved, content):
        folder = moved()
        (folder / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        code, document, named, _ = self.run(run_cli, searched, folder)
        seen = content.startswith('{"t')
        assert (code, named, document["settings"][self.KEY]) == (0, ["warning" if seen else "note"], True)

    def test_a_hub_models_is_read_from_the_cache_alone(self, plan, tmp_path, monkeypatch):
        plan["model"] |= {"id": "some/model", "revision": "a" * 40}
        cached = tmp_path / "config.json"
        cached.write_text(json.dumps({"text_config": {self.KEY: True}}))
        asked = []

        def look(*name, revision):
            asked.append((*name, revision))
            return str(cached)

        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look)
        assert config_here(Plan.model_validate(plan), None) == {self.KEY: True}
        assert asked == [("some/model", "config.json", "a" * 40)]
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, revision: None)
        assert config_here(Plan.model_validate(plan), None) is None
