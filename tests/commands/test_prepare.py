"""What a search is warned of before any weight is loaded."""

import json
import re

import pytest
from command_lines import lines, search_arguments

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.long.backends import Backends
from indexcache.dsa.long.capacity import layer_bytes
from indexcache.dsa.stream.footprint import footprint


@pytest.fixture
def estimate(run_cli, checkpoints):
    def run(*options):
        arguments = ["--model", checkpoints["glm_moe_dsa"], "--no-time", "--json", "-q", *options]
        code, out, err = run_cli("estimate", *arguments)
        assert code == 0
        return json.loads(out), err

    return run


@pytest.mark.parametrize("keep", [0.9, 0.99])
def test_a_budget_that_keeps_every_site_says_which_would_drop_one(estimate, keep):
    document, err = estimate("--keep", keep)
    sites = document["sites"]
    assert document["kept"] == sites
    warning = f"warning: --keep {keep:g} keeps all {sites} sites, as it is rounded up: the plan drops no indexer"
    assert warning in err
    largest = re.search(r"give --keep (\S+) or less", err)[1]
    document, err = estimate("--keep", largest)
    assert document["kept"] == sites - 1
    assert "warning" not in err


def test_where_every_site_has_to_stay_full_no_budget_is_named(estimate):
    document, err = estimate("--keep", 0.9, "--pin", ",".join(map(str, range(1, 6))))
    assert document["kept"] == document["sites"]
    assert "all have to stay full" in err
    assert "or less" not in err


def test_what_is_not_rounded_needs_no_warning(estimate):
    assert "warning" not in estimate("--keep", 1)[1]
    assert "warning" not in estimate("--max-delta", 0.1)[1]


def test_options_that_do_nothing_are_warned_of(estimate):
    assert (
        "warning: --refine-windows does nothing without --refine-rounds"
        in estimate("--keep", 0.5, "--refine-windows", 4)[1]
    )
    assert "does nothing" not in estimate("--keep", 0.5, "--refine-windows", 4, "--refine-rounds", 1)[1]
    warning = "warning: --gate does nothing without --max-delta or --max-probe-delta"
    assert warning in estimate("--keep", 0.5, "--gate", "estimate")[1]
    assert "does nothing" not in estimate("--max-delta", 0.5, "--gate", "estimate")[1]


def test_a_limit_by_the_interval_of_one_document_is_refused(run_cli, checkpoints, text_file, tmp_path):
    text = tmp_path / "one.txt"
    text.write_text(" ".join(f"This is sentence {number} of many." for number in range(2000)))
    changes = {"keep": None, "max_delta": 0.1, "heldout": 0}
    arguments = [*search_arguments(checkpoints, text, tmp_path / "run", **changes), "--dry-run", "-q"]
    code, out, err = run_cli(*arguments)
    assert (code, out, len(lines(err))) == (2, "", 1), err
    assert "--max-delta holds the upper end of an interval, but all calibration windows are of one document" in err
    assert "--gate estimate" in err
    assert run_cli(*arguments, "--gate", "estimate")[0] == 0


class TestDefaultWindow:
    """Sixteen selection widths, which are 256 tokens here, as far as positions and memory go."""

    def window(self, estimate, *options, model=None):
        arguments = ["--keep", 1, *options, *(["--model", model] if model else [])]
        return estimate(*arguments)[0]["window"]

    def layer(self, monkeypatch, checkpoints, tokens):
        """Leaves room for the weights and for a layer on windows of ``tokens``."""
        from indexcache.commands.job import windows

        def whole_memory(device):
            checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
            layer = layer_bytes(checkpoint.config, tokens, 4, Backends("chunked", "stock"), False)
            return (layer + footprint(checkpoint, 4).in_memory) / 0.9 + 1024

        monkeypatch.setattr(windows, "whole_memory", whole_memory)

    def test_is_sixteen_selections(self, estimate):
        assert self.window(estimate) == 256
        assert self.window(estimate, "--window", 100) == 100

    def test_says_why(self, run_cli, checkpoints):
        arguments = ["--model", checkpoints["glm_moe_dsa"], "--keep", 1, "--no-time"]
        says = "no --window was given: windows have 256 tokens, 16 x the selection width"
        assert says in run_cli("estimate", *arguments)[2]
        assert "no --window" not in run_cli("estimate", *arguments, "--window", 99)[2]

    @pytest.mark.parametrize(("positions", "window"), [(200, 200), (40, 40), (256, 256)])
    def test_is_no_longer_than_the_model(self, estimate, checkpoints, tmp_path, positions, window):
        config = json.loads((checkpoints["glm_moe_dsa"] / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
        assert self.window(estimate, model=tmp_path) == window

    def test_is_no_longer_than_32768(self, estimate, checkpoints, tmp_path):
        config = json.loads((checkpoints["glm_moe_dsa"] / "config.json").read_text())
        more = {"max_position_embeddings": 1 << 20, "index_topk": 4096}
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        assert self.window(estimate, model=tmp_path) == 32768

    @pytest.mark.parametrize(("fits", "window"), [(256, 256), (255, 128), (128, 128), (100, 64), (1, 64)])
    def test_is_halved_to_what_fits_and_no_further_than_four_selections(
        self, estimate, checkpoints, monkeypatch, fits, window
    ):
        self.layer(monkeypatch, checkpoints, fits)
        assert self.window(estimate, "--dtype", "float32") == window

    def test_says_what_did_not_fit(self, run_cli, checkpoints, monkeypatch):
        self.layer(monkeypatch, checkpoints, 128)
        arguments = ["--model", checkpoints["glm_moe_dsa"], "--keep", 1, "--no-time", "--dtype", "float32"]
        says = "windows have 128 tokens, as windows of 256 do not fit into memory"
        assert says in run_cli("estimate", *arguments)[2]

    def test_leaves_half_the_memory_to_windows_where_weights_would_take_more(
        self, estimate, checkpoints, monkeypatch, tmp_path
    ):
        """Of such weights, layers come one after the other."""
        config = json.loads((checkpoints["glm_moe_dsa"] / "config.json").read_text())
        large = {name: value for name, value in config.items() if not isinstance(value, list)}
        large |= {"num_hidden_layers": 200, "n_routed_experts": 64}
        (tmp_path / "config.json").write_text(json.dumps(large))
        checkpoint = open_checkpoint(str(tmp_path))
        layer = layer_bytes(checkpoint.config, 128, 4, Backends("chunked", "stock"), False)
        assert footprint(checkpoint, 4).in_memory > 2 * layer
        monkeypatch.setattr("indexcache.commands.job.windows.whole_memory", lambda device: 2 * layer / 0.9 + 1024)
        assert self.window(estimate, "--dtype", "float32", model=tmp_path) == 128
