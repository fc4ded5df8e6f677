"""The verify command: an old plan on new checkpoints, those on which it holds and others."""

import json
import shutil

import pytest
from command_lines import lines, search_arguments
from paper_model import PaperModel, on_paper
from safetensors.torch import load_file, save_file

from indexcache.commands.verify import check_fit
from indexcache.errors import DatasetError


@pytest.fixture
def paper_plan(run_cli, monkeypatch, checkpoints, text_file, tmp_path):
    """A plan whose losses come from a formula, for a copy of which other losses can be made up."""
    on_paper(monkeypatch)
    arguments = search_arguments(checkpoints, text_file, tmp_path / "run", windows=6, heldout=6)
    assert run_cli(*arguments, "-q")[0] == 0
    return tmp_path / "run"


def verified(run_cli, plan, model, *options):
    code, out, err = run_cli("verify", plan, "--model", model, "--json", "-q", *options)
    return code, json.loads(out), err


def test_a_plan_holds_on_its_own_checkpoint(run_cli, searched, checkpoints):
    code, found, _ = verified(run_cli, searched, checkpoints["eight"], "--swaps", 2)
    plan = json.loads((searched / "plan.json").read_text())
    assert (code, found["holds"], found["reasons"]) == (0, True, [])
    assert found["plan"] == plan["heldout"]["plan"]
    assert (found["drift"]["low"], found["drift"]["high"], found["drift"]["paired"]) == (0, 0, True)
    assert found["window_evaluations"] == (3 + 2) * found["windows"]
    assert found["search_window_evaluations"] == plan["cost"]["window_evaluations"]


def test_other_weights_are_measured_and_not_refused(run_cli, searched, checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["eight"], tmp_path / "new")
    tensors = load_file(folder / "model.safetensors")
    moved = {name: tensor * 1.5 if "indexer" in name else tensor for name, tensor in tensors.items()}
    save_file({name: tensor.contiguous() for name, tensor in moved.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    code, out, _ = run_cli("verify", searched, "--model", folder, "--tolerance", 10, "-q")
    assert code == 0
    for words in ("the old plan", "uniform", "new less old, window by window", "cost: ", "holds: "):
        assert words in out


class TestAPlanThatNoLongerHolds:
    def test_is_told_by_its_drift_and_by_what_is_better(self, run_cli, monkeypatch, paper_plan, checkpoints):
        pattern = json.loads((paper_plan / "plan.json").read_text())["result"]["pattern"]

        def trouble(call, asked, window):
            return 500.0 + window if str(asked) == pattern else None

        on_paper(monkeypatch, PaperModel(trouble))
        code, found, err = verified(run_cli, paper_plan, checkpoints["glm_moe_dsa"])
        assert (code, found["holds"], len(lines(err))) == (1, False, 1)
        assert "grew by" in found["reasons"][0]
        assert "less than the plan" in found["reasons"][1]
        assert "--init PLAN" in err

    def test_or_by_a_limit(self, run_cli, paper_plan, checkpoints):
        code, found, _ = verified(run_cli, paper_plan, checkpoints["glm_moe_dsa"], "--max-delta", 1e-6)
        assert (code, len(found["reasons"])) == (1, 1)
        assert "--max-delta" in found["reasons"][0]

    def test_what_is_not_sure_is_no_reason(self, run_cli, monkeypatch, paper_plan, checkpoints):
        """One window alone is much dearer: the mean grows, and the interval reaches far below it."""
        pattern = json.loads((paper_plan / "plan.json").read_text())["result"]["pattern"]

        def trouble(call, asked, window):
            return 900.0 if str(asked) == pattern and window == 0 else None

        on_paper(monkeypatch, PaperModel(trouble))
        asked = ("--swaps", 0)
        code, found, _ = verified(run_cli, paper_plan, checkpoints["glm_moe_dsa"], *asked)
        assert found["drift"]["difference"] > 1
        assert code == 0
        code, found, _ = verified(run_cli, paper_plan, checkpoints["glm_moe_dsa"], *asked, "--gate", "estimate")
        assert code == 1


class TestBadInput:
    def test_tokens_that_the_checkpoint_cannot_predict(self):
        check_fit(old_loss=2.9, new_loss=3.5, guess=6.0, model="new")
        check_fit(old_loss=8.3, new_loss=8.4, guess=6.0, model="new")  # a random model, whatever its tokens
        with pytest.raises(DatasetError, match="its tokenizer is likely another"):
            check_fit(old_loss=2.9, new_loss=8.1, guess=6.0, model="new")

    def test_another_layout(self, run_cli, searched, checkpoints):
        code, out, err = run_cli("verify", searched, "--model", checkpoints["glm_moe_dsa"])
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "not the plan's 8 and 8" in err

    def test_no_checkpoint(self, run_cli, searched):
        code, _, err = run_cli("verify", searched)
        assert (code, "--model was not given" in err) == (2, True)

    def test_another_tokenizer(self, run_cli, searched, checkpoints, text_file, tmp_path):
        folder = shutil.copytree(checkpoints["eight"], tmp_path / "new")
        document = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = document["model"]["vocab"]
        special = {token["content"] for token in document["added_tokens"]}
        names = [name for name in vocabulary if name not in special]
        document["model"]["vocab"] |= dict(zip(names, [vocabulary[name] for name in reversed(names)], strict=True))
        (folder / "tokenizer.json").write_text(json.dumps(document))
        code, out, err = run_cli("verify", searched, "--model", folder)
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "tokenizer" in err
        assert "--dataset" in err
        options = ("--dataset", text_file, "--windows", 2, "--gate", "estimate", "--tolerance", 10, "--swaps", 0)
        code, found, _ = verified(run_cli, searched, folder, *options)
        assert (code, found["drift"], found["windows"]) == (0, None, 2)

    def test_a_plan_that_was_not_checked(self, run_cli, searched, checkpoints, tmp_path):
        folder = shutil.copytree(searched, tmp_path / "run")
        assert run_cli("cut", folder, "--keep", 0.25)[0] == 0
        code, _, err = run_cli("verify", folder / "plan-2of8.json", "--model", checkpoints["eight"])
        assert (code, "--max-delta" in err) == (2, True)
