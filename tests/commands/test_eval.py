"""The eval command: a plan measured again on its own tokens, and what it refuses."""

import json
import shutil

import pytest
from command_lines import lines


class TestEval:
    def test_measures_the_frozen_held_out_tokens_again(self, run_cli, searched):
        code, out, _ = run_cli("eval", searched / "plan.json", "--json", "-q")
        assert code == 0
        again, plan = json.loads(out), json.loads((searched / "plan.json").read_text())
        assert again["plan"] == plan["heldout"]["plan"]
        assert again["uniform"] == plan["heldout"]["uniform"]
        assert again["passed"] is None

    def test_on_calibration_repeats_the_searchs_own_losses(self, run_cli, searched):
        _, out, _ = run_cli("eval", searched / "plan.json", "--on", "calibration", "--json", "-q")
        again, plan = json.loads(out), json.loads((searched / "plan.json").read_text())
        assert again["baseline_loss"] == plan["search"]["baseline_loss"]
        assert again["plan"]["loss"] == plan["result"]["loss"]

    def test_prints_a_table(self, run_cli, searched):
        code, out, _ = run_cli("eval", searched / "plan.json", "-q")
        assert code == 0
        for name in ("all full", "this plan", "uniform"):
            assert name in out

    @pytest.mark.reliability("R8")
    def test_a_plan_for_another_model_is_refused_by_field(self, run_cli, searched, checkpoints):
        code, out, err = run_cli("eval", searched / "plan.json", "--model", checkpoints["glm_moe_dsa"])
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "layers is 6, the plan has 8" in err

    @pytest.mark.reliability("R8")
    def test_changed_weights_in_the_same_place_are_refused(self, run_cli, searched, checkpoints, tmp_path):
        folder = shutil.copytree(checkpoints["eight"], tmp_path / "eight")
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        code, _, err = run_cli("eval", searched / "plan.json", "--model", folder)
        assert (code, len(lines(err))) == (2, 1)
        assert "weights_sha256" in err

    @pytest.mark.reliability("R8")
    def test_lost_or_changed_tokens_are_refused(self, run_cli, searched, tmp_path):
        folder = shutil.copytree(searched, tmp_path / "run")
        (folder / "windows.safetensors").unlink()
        code, _, err = run_cli("eval", folder / "plan.json")
        assert (code, len(lines(err))) == (2, 1)
        content = bytearray((searched / "windows.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "windows.safetensors").write_bytes(content)
        code, _, err = run_cli("eval", folder / "plan.json")
        assert (code, len(lines(err))) == (2, 1)
        assert "not the plan's" in err

    @pytest.mark.parametrize("option", [["--on", "else"], ["--max-delta", "nan"]])
    def test_impossible_options_are_refused(self, run_cli, searched, option):
        code, _, err = run_cli("eval", searched / "plan.json", *option)
        assert (code, len(lines(err))) == (2, 1)
