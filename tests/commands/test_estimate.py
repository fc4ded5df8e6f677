"""The estimate command and a dry run: what a search will cost."""

import json
import shutil

import pytest
from command_lines import lines, search_arguments
from paper_model import on_paper


class TestEstimate:
    def test_counts_from_the_config_alone(self, run_cli, checkpoints, tmp_path):
        shutil.copy(checkpoints["glm_moe_dsa"] / "config.json", tmp_path)
        arguments = ["--model", tmp_path, "--keep", "0.5", "--windows", 8, "--strategy", "exact", "--no-time"]
        code, out, _ = run_cli("estimate", *arguments, "--json", "-q")
        document = json.loads(out)
        assert code == 0
        assert document["algorithm_1_layer_windows"] == 12 * 8 * 6
        assert document["seconds"] is None
        # No weights are there, so that what a sweep reads of them is not known.
        assert (document["sweeps"] > 6 - 3, document["weight_bytes"]) == (True, None)
        code, out, _ = run_cli("estimate", *arguments)
        assert (code, f"Algorithm 1 takes {12 * 8 * 6:,}" in out, "not timed" in out) == (0, True, True)

    def test_times_one_window_after_saying_what_it_counted(self, run_cli, checkpoints):
        code, out, err = run_cli("estimate", "--model", checkpoints["glm_moe_dsa"], "--keep", "0.5", "--json")
        document = json.loads(out)
        assert (code, "layer-windows" in err) == (0, True)
        layers = sorted([document["seconds_per_full_layer"], document["seconds_per_shared_layer"]])
        assert (
            layers[0] * document["layer_windows"] <= document["seconds"] <= layers[1] * document["layer_windows"]
        )

    def test_is_near_what_an_exact_search_takes(self, run_cli, checkpoints, text_file, tmp_path, monkeypatch):
        arguments = search_arguments(checkpoints, text_file, tmp_path, strategy="exact")
        _, out, _ = run_cli(*arguments, "--dry-run", "--json", "-q")
        expected = json.loads(out)
        on_paper(monkeypatch)
        _, out, _ = run_cli(*arguments, "--json", "-q")
        cost = json.loads(out)["cost"]
        assert expected["algorithm_1_layer_windows"] == cost["algorithm_1_layer_windows"]
        assert expected["search_layer_windows"] == pytest.approx(cost["search_layer_windows"], rel=0.25)
        assert expected["layer_windows"] == pytest.approx(cost["layer_windows"], rel=0.25)
        # A uniform pattern that the search came by takes no sweep, and the losses say whether it does.
        assert abs(expected["sweeps"] - cost["sweeps"]) <= 1
        assert cost["weight_bytes"] == cost["sweeps"] * expected["weight_bytes_a_sweep"] > 0

    @pytest.mark.parametrize("surrogate", ["error", "fisher"])
    def test_dynamic_programming_is_counted_without_its_layer_costs(
        self, run_cli, checkpoints, text_file, tmp_path, monkeypatch, surrogate
    ):
        changes = {"strategy": "dp", "surrogate": surrogate}
        arguments = search_arguments(checkpoints, text_file, tmp_path, **changes)
        code, out, err = run_cli(*arguments, "--dry-run", "--json", "-q")
        assert code == 0, err
        expected = json.loads(out)
        on_paper(monkeypatch)
        cost = json.loads(run_cli(*arguments, "--json", "-q")[1])["cost"]
        assert expected["algorithm_1_layer_windows"] == cost["algorithm_1_layer_windows"] == 12 * 3 * 6
        assert expected["search_layer_windows"] == pytest.approx(cost["search_layer_windows"], rel=0.25)
        assert expected["layer_windows"] == pytest.approx(cost["layer_windows"], rel=0.25)
        # Of them the layer costs: three windows through six layers, and attention alone for each pair of sites.
        assert cost["search_layer_windows"] > 3 * (6 + 15)

    def test_a_dry_run_checks_everything_and_writes_nothing(self, run_cli, checkpoints, text_file, tmp_path):
        out = tmp_path / "run"
        code, printed, err = run_cli(*search_arguments(checkpoints, text_file, out), "--dry-run")
        assert (code, "about" in printed, "3 calibration and 2 held-out windows" in err) == (0, True, True)
        assert not out.exists()
        arguments = search_arguments(checkpoints, tmp_path / "none.jsonl", out)
        code, printed, err = run_cli(*arguments, "--dry-run")
        assert (code, printed, len(lines(err)), "none.jsonl" in err) == (2, "", 1, True)

    def test_pinned_layers_are_no_candidates(self, run_cli, checkpoints):
        def estimate(*options):
            arguments = ["--model", checkpoints["glm_moe_dsa"], "--strategy", "exact", "--no-time"]
            return json.loads(run_cli("estimate", *arguments, *options, "--json", "-q")[1])

        assert estimate("--keep", 0.5)["algorithm_1_layer_windows"] == (5 + 4 + 3) * 32 * 6
        assert estimate("--keep", 0.5, "--pp-size", 2)["algorithm_1_layer_windows"] == (4 + 3 + 2) * 32 * 6
        assert estimate("--max-delta", 1, "--pin", "2,3")["kept"] == 3

    def test_blocks_that_cannot_be_are_refused_before_weights(self, run_cli, checkpoints, tmp_path):
        shutil.copy(checkpoints["glm_moe_dsa"] / "config.json", tmp_path)
        arguments = ["--model", tmp_path, "--keep", "0.5", "--strategy", "blocks", "--blocks", 4]
        code, out, err = run_cli("estimate", *arguments)
        assert (code, out, "4 blocks keep at least 4" in err) == (2, "", True)
