"""The estimate command and a dry run: what a search will cost."""

import json
import shutil

import published_checkpoints
import pytest
import torch
from command_lines import lines, search_arguments
from paper_model import on_paper

from indexcache.commands import estimate as estimate_command
from indexcache.commands.job import measure
from indexcache.commands.job.measure import Running
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.long.backends import Backends
from indexcache.dsa.stream.footprint import footprint
from indexcache.dsa.stream.room import Room, least_on_device


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


class TestLayouts:
    @pytest.fixture
    def price(self, run_cli, tmp_path, monkeypatch):
        """Prices the paper's search of a published model, of which only the config is here."""
        monkeypatch.setattr(estimate_command, "load", lambda *_: pytest.fail("the weights were loaded"))

        def run(config, *options):
            (tmp_path / "config.json").write_text(json.dumps(config))
            search = ["--keep", 0.25, "--window", 32768, "--windows", 32, "--heldout", 16]
            code, out, err = run_cli("estimate", "--model", tmp_path, *search, *options, "--json", "-q")
            assert code == 0, err
            return json.loads(out)

        return run

    @pytest.fixture
    def v32(self):
        return json.loads((published_checkpoints.CONFIGS / "deepseek_v32.json").read_text())

    def test_deepseek_v32_on_a_node_of_80_gb_waits_in_host_memory(self, price, v32):
        document = price(v32, "--gpus", "8x80GB", "--ram", "1TB")
        host, disk, *others = document["layouts"]
        assert (host["name"], host["fits"], disk["name"], disk["fits"]) == ("host memory", True, "disk", True)
        assert [layout["fits"] for layout in others] == [False, False]
        assert all("80" in layout["reason"] for layout in others)
        # Each layer-window takes 183 to 210 ms on one of eight GPUs, and a layer 45 ms a sweep to be dequantised.
        rate = (8 * host["busy"] * host["seconds"] - 8 * 61 * 0.0449 * host["sweeps"]) / host["layer_windows"]
        assert 0.183 < rate < 0.211
        assert (host["waits_for"], disk["waits_for"]) == ("compute", "disk")
        assert disk["seconds"] > disk["sweeps"] * disk["bytes_a_sweep"] / 6e9
        assert document["weights"]["sizes_from"] == "config"
        assert document["layer_seconds"]["from"] == "measured"
        assert document["machine"]["assumed"] == ["disk-rate", "network-rate"]
        assert document["seconds"] is None

    def test_glm_5_in_bf16_is_larger_than_eight_gpus_of_141_gb(self, price):
        glm = published_checkpoints.glm_5()

        def fitting(*options):
            layouts = price(glm, "--gpus", "8x141GB", "--ram", "2TB", *options)["layouts"]
            return [layout["name"] for layout in layouts if layout["fits"]]

        assert fitting() == ["host memory", "disk"]
        # A 32nd of 1,484 GB, and a layer of 20 GB as stored, made, and coming.
        assert "shared out over the GPUs" in fitting("--nodes", 4)

    def test_a_gpu_that_estimate_calls_large_enough_is_enough_to_load(self, price, v32, tmp_path):
        """What the loader asks for beside a window, of a GPU of 80 GB, which has 84.5 free."""
        layouts = price(v32, "--gpus", "80GB", "--ram", "1TB")["layouts"]
        disk = next(layout for layout in layouts if layout["name"] == "disk")
        checkpoint = open_checkpoint(str(tmp_path))
        least = least_on_device(footprint(checkpoint, 2))
        assert disk["fits"]
        assert least < disk["gpu_bytes"] < 80e9
        running = Running("auto", torch.bfloat16, Room(), Backends("chunked", "sparse"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "process_memory", lambda *_: int(84.5e9))
            patch.setattr(measure.processes, "process_device", lambda: torch.device("cuda"))
            patch.setattr(measure, "free_memory", lambda _: int(1e12))
            assert measure._room(checkpoint, running, 32768).device >= least

    def test_sizes_of_weights_that_a_machine_does_not_use_are_told(self, run_cli, checkpoints):
        arguments = [
            "--model",
            checkpoints["glm_moe_dsa"],
            "--keep",
            0.5,
            "--gpus",
            "80GB",
            "--max-memory",
            "60GB",
        ]
        code, _, err = run_cli("estimate", *arguments)
        assert code == 0, err
        assert "--max-memory and --max-host-memory do nothing here" in err

    def test_where_nothing_fits_what_would_help_is_told(self, run_cli, checkpoints):
        arguments = ["--model", checkpoints["glm_moe_dsa"], "--keep", 0.5, "--gpus", "1MB", "--ram", "1TB", "-q"]
        code, out, err = run_cli("estimate", *arguments)
        assert code == 0, err
        said = " ".join(out.split())
        assert "on each GPU, which has 1 MB" in said
        assert "nothing fits: shorter windows (--window) or GPUs with more memory would" in said

    def test_what_is_known_of_another_gpu_counts(self, price, v32):
        options = ["--gpus", "80GB", "--ram", "1TB", "--disk-rate", "100GB/s"]
        slow, slower = (price(v32, *options, "--layer-seconds", told) for told in ("1,0.5", "2,1"))
        seconds = [document["layouts"][0]["seconds"] for document in (slow, slower)]
        assert seconds[1] == pytest.approx(2 * seconds[0], rel=0.01)
        assert slow["layer_seconds"] == {"full": 1, "shared": 0.5, "from": "given"}

    def test_it_is_shown_as_a_table(self, run_cli, checkpoints):
        arguments = ["--model", checkpoints["glm_moe_dsa"], "--keep", 0.5]
        code, out, err = run_cli("estimate", *arguments, "--gpus", "2x80GB", "--ram", "1TB", "-q")
        assert code == 0, err
        shown = [" ".join(line.split()) for line in lines(out)]
        assert any(line.startswith("whole on each GPU") for line in shown)
        assert any("2 x 80 GB GPU, 1,000 GB of host memory, disk 6 GB/s (assumed)" in line for line in shown)
        assert any("by the files' headers" in line for line in shown)
        assert not any("does not fit" in line for line in shown)

    def test_with_time_what_is_timed_here_counts(self, run_cli, checkpoints):
        arguments = [
            "--model",
            checkpoints["glm_moe_dsa"],
            "--keep",
            0.5,
            "--gpus",
            "80GB",
            "--time",
            "--json",
            "-q",
        ]
        document = json.loads(run_cli("estimate", *arguments)[1])
        assert document["layer_seconds"]["from"] == "here"
        assert document["layer_seconds"]["full"] == pytest.approx(document["seconds_per_full_layer"])

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (
                ["--gpus", "8"],
                "--gpus is '8' (give a number of GPUs and the memory of one, e.g. 8x80GB or 1x141GB)",
            ),
            (
                ["--gpus", "80GB", "--ram", "1"],
                "--ram is '1' (give a size with its unit, e.g. 80GB, 1TB or 64GiB)",
            ),
            (
                ["--gpus", "80GB", "--disk-rate", "6GB"],
                "--disk-rate is '6GB' (give bytes a second, e.g. 6GB/s or 900MB/s)",
            ),
            (
                ["--gpus", "80GB", "--network-rate", "200Gb/s"],
                "--network-rate is '200Gb/s', which is in bits (give bytes a second, an eighth of it",
            ),
            (["--gpus", "80GB", "--layer-seconds", "0.2"], "--layer-seconds is '0.2'"),
            (["--gpus", "80GB", "--layer-seconds", "0.2,-1"], "--layer-seconds is '0.2,-1'"),
            (["--ram", "1TB"], "--ram was given without --gpus (add e.g. --gpus 8x80GB)"),
            (["--nodes", 2], "--nodes was given without --gpus"),
        ],
    )
    def test_a_machine_that_is_none_is_told_the_form(self, run_cli, options, said):
        code, out, err = run_cli("estimate", "--model", "nothing/here", *options)
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert said in err

    def test_a_model_that_neither_headers_nor_config_size_is_told(self, run_cli, v32, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(v32 | {"hidden_act": "tanh"}))
        code, _, err = run_cli(
            "estimate", "--model", tmp_path, "--keep", 0.5, "--window", 4096, "--gpus", "80GB", "-q"
        )
        assert code == 2
        assert "how large the layers" in err
        assert "headers" in err
