"""The command line: results, streams, exit codes, and one line for every kind of wrong input."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from golden_options import OPTIONS, options_text
from paper_model import on_paper
from random_models import EMBEDDED

from indexcache import __version__
from indexcache.cli import main
from indexcache.search.run.journal import read_journal


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def search_arguments(checkpoints, text_file, out, **changes):
    options = {"model": checkpoints["glm_moe_dsa"], "dataset": text_file, "keep": 0.5, "window": 48, "windows": 3}
    options |= {"heldout": 2, "out": out} | changes
    given = [(f"--{name.replace('_', '-')}", value) for name, value in options.items() if value is not None]
    return ["search", *(word for pair in given for word in pair)]


@pytest.fixture
def paper(monkeypatch):
    """Searches and checks whose losses come from a formula: all is as it is but the model."""
    return on_paper(monkeypatch)


class TestSearch:
    """What names, precedence and options mean is asked on paper; a few searches here run a model."""

    @pytest.fixture(scope="class")
    def first(self, checkpoints, text_file, tmp_path_factory):
        """A search on a model: its folder, exit code, stdout and stderr."""
        folder, out, err = tmp_path_factory.mktemp("first"), io.StringIO(), io.StringIO()
        arguments = [str(argument) for argument in search_arguments(checkpoints, text_file, folder)]
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            main(arguments)
        return folder, stop.value.code or 0, out.getvalue(), err.getvalue()

    def test_prints_the_plans_path_and_nothing_else_on_stdout(self, first):
        folder, code, out, err = first
        assert (code, out) == (0, f"{folder / 'plan.json'}\n")
        assert "step 3/3" in err
        assert "3 of 6 indexers kept" in err
        assert "\x1b" not in err

    def test_twice_gives_the_same_plan(self, first, run_cli, checkpoints, text_file, tmp_path):
        code, out, _ = run_cli(*search_arguments(checkpoints, text_file, tmp_path), "--json", "-q")
        plan = (tmp_path / "plan.json").read_bytes()
        assert (code, json.loads(out)) == (0, json.loads(plan))
        assert plan == (first[0] / "plan.json").read_bytes()

    @pytest.mark.parametrize("strategy", ["fast", "exact", "blocks"])
    def test_pinned_layers_stay_full_and_stand_in_the_plan(
        self, run_cli, checkpoints, text_file, tmp_path, monkeypatch, strategy
    ):
        if strategy != "fast":
            on_paper(monkeypatch)
        changes = {"strategy": strategy, "pin": "5", "pp_layers": "2,4", "keep": 0.67, "refine_rounds": 2}
        arguments = search_arguments(checkpoints, text_file, tmp_path, **changes, baselines="overlap")
        code, out, err = run_cli(*arguments, "--json")
        assert code == 0, err
        plan = json.loads(out)
        assert plan["search"]["pinned_layers"] == [0, 2, 5]
        measured = [*plan["search"]["uniform"], *plan["search"]["overlap"], *plan["search"]["steps"]]
        assert {each["pattern"][site] for each in [*measured, plan["result"]] for site in (0, 2, 5)} == {"F"}
        assert "pinned   layers 0, 2, 5" in err
        assert "Pinned to stay full, in the uniform patterns too: layers 0, 2, 5" in (
            (tmp_path / "report.md").read_text()
        )
        again = json.loads(run_cli("eval", tmp_path / "plan.json", "--json", "-q")[1])
        assert again["uniform"] == plan["heldout"]["uniform"]

    @pytest.mark.usefixtures("paper")
    def test_stages_on_the_command_line_win_over_the_recipes(self, run_cli, checkpoints, text_file, tmp_path):
        recipe = tmp_path / "mine.yaml"
        recipe.write_text("pp_size: 3\npin: [1]\n")
        arguments = search_arguments(checkpoints, text_file, tmp_path, recipe=recipe, pp_layers="4,2", keep=0.67)
        code, out, err = run_cli(*arguments, "--json", "-q")
        assert code == 0, err
        assert json.loads(out)["search"]["pinned_layers"] == [0, 1, 4]

    @pytest.mark.usefixtures("paper")
    def test_a_recipe_gives_what_the_options_leave_open(self, run_cli, checkpoints, text_file, tmp_path):
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(f"model: {checkpoints['deepseek_v32']}\nwindow: 40\nwindows: 2\nheldout: 0\nkeep: 1.0\n")
        arguments = ["search", "--recipe", recipe, "--dataset", text_file, "--window", 44, "--max-delta", 100]
        code, out, _ = run_cli(*arguments, "--out", tmp_path / "out", "--json", "-q")
        plan = json.loads(out)
        assert code == 0
        assert (plan["tokens"]["window"], plan["tokens"]["windows"]) == (44, 2)
        assert plan["result"]["kept"] == 1, "--max-delta did not win over the recipe's keep"
        assert plan["heldout"] is None

    @pytest.mark.usefixtures("paper")
    def test_the_environment_sets_options(self, run_cli, checkpoints, text_file, tmp_path, monkeypatch):
        monkeypatch.setenv("INDEXCACHE_SEARCH_KEEP", "1.0")
        code, out, _ = run_cli(*search_arguments(checkpoints, text_file, tmp_path, keep=None), "--json", "-q")
        assert code == 0
        assert json.loads(out)["result"]["pattern"] == "FFFFFF"

    @pytest.mark.usefixtures("paper")
    def test_an_option_wins_over_the_environment(self, run_cli, checkpoints, text_file, tmp_path, monkeypatch):
        monkeypatch.setenv("INDEXCACHE_SEARCH_KEEP", "0.5")
        arguments = search_arguments(checkpoints, text_file, tmp_path, keep=None, max_delta=1000)
        code, out, _ = run_cli(*arguments, "--json", "-q")
        assert (code, json.loads(out)["result"]["keep"]) == (0, None)

    @pytest.mark.usefixtures("paper")
    @pytest.mark.parametrize("strategy", ["fast", "blocks"])
    def test_every_strategy_writes_a_plan(self, run_cli, checkpoints, text_file, tmp_path, strategy):
        changes = {"strategy": strategy, "windows": 8, "refine_rounds": 2, "baselines": "overlap"}
        code, out, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path, **changes), "--json", "-q")
        assert code == 0, err
        plan = json.loads(out)
        assert plan["search"]["strategy"] == strategy
        assert [each["kept"] for each in plan["search"]["overlap"]] == [5, 4, 3]
        assert len(plan["search"]["overlap_matrix"]) == 6
        assert plan["cost"]["algorithm_1_layer_windows"] == 12 * 8 * 6

    @pytest.mark.usefixtures("paper")
    def test_a_search_from_an_older_plan_says_what_changed(self, run_cli, checkpoints, text_file, tmp_path):
        first = search_arguments(checkpoints, text_file, tmp_path / "one", strategy="fast", windows=8)
        code, path, _ = run_cli(*first, "-q")
        assert code == 0
        again = search_arguments(
            checkpoints, text_file, tmp_path / "two", strategy="fast", windows=8, init=path.strip()
        )
        code, out, _ = run_cli(*again, "--json", "-q")
        plan = json.loads(out)
        old = json.loads(Path(path.strip()).read_text())
        changed = [
            step["kept"]
            for step, before in zip(plan["search"]["steps"], old["search"]["steps"], strict=True)
            if step["removed_layer"] != before["removed_layer"]
        ]
        assert (code, plan["search"]["init"]["changed_steps"]) == (0, changed)
        assert plan["cost"]["search_layer_windows"] <= old["cost"]["search_layer_windows"]

    @pytest.mark.usefixtures("paper")
    def test_runs_of_versions_of_a_model_do_not_share_a_folder(
        self, run_cli, checkpoints, text_file, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        for name in ("glm-5.1", "glm-5.2"):
            shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / name)
            arguments = search_arguments(checkpoints, text_file, None, model=name, keep=1.0)
            code, out, _ = run_cli(*arguments, "-q")
            assert (code, out) == (0, f"outputs/{name}/plan.json\n")
        # A recipe for another model does not lend its folder.
        code, out, _ = run_cli(*search_arguments(checkpoints, text_file, None, keep=1.0, recipe="tiny"), "-q")
        assert (code, out) == (0, "outputs/glm_moe_dsa/plan.json\n")

    @pytest.mark.usefixtures("paper")
    def test_another_budget_is_answered_from_the_journal(self, run_cli, checkpoints, text_file, tmp_path):
        code, *_ = run_cli(*search_arguments(checkpoints, text_file, tmp_path), "-q")
        first = read_journal(tmp_path / "journal.jsonl").content.window_evaluations
        arguments = search_arguments(checkpoints, text_file, tmp_path, keep=0.3, resume="required")
        code, _, err = run_cli(*arguments)
        assert code == 0, err
        assert f"{first} window evaluations are there" in err
        fresh = search_arguments(checkpoints, text_file, tmp_path / "fresh", keep=0.3)
        assert run_cli(*fresh, "-q")[0] == 0
        assert (tmp_path / "plan.json").read_bytes() == (tmp_path / "fresh" / "plan.json").read_bytes()
        found = [read_journal(folder / "journal.jsonl").content for folder in (tmp_path, tmp_path / "fresh")]
        assert first < found[1].window_evaluations <= found[0].window_evaluations

    @pytest.mark.usefixtures("paper")
    def test_a_finished_journal_gives_its_plan_without_the_model(
        self, run_cli, checkpoints, text_file, tmp_path, monkeypatch
    ):
        arguments = search_arguments(checkpoints, text_file, tmp_path, baselines="overlap")
        assert run_cli(*arguments, "-q")[0] == 0
        plan = (tmp_path / "plan.json").read_bytes()
        (tmp_path / "plan.json").unlink()
        monkeypatch.setattr("indexcache.commands.search.load", lambda *_: pytest.fail("the model was loaded"))
        assert run_cli(*arguments, "-q")[0] == 0
        assert (tmp_path / "plan.json").read_bytes() == plan

    def test_resume_wants_a_journal_where_it_is_required(self, run_cli, checkpoints, text_file, tmp_path):
        arguments = search_arguments(checkpoints, text_file, tmp_path / "run", resume="required")
        code, out, err = run_cli(*arguments, "-q")
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "no journal" in err
        assert not (tmp_path / "run").exists()

    @pytest.mark.usefixtures("paper")
    def test_resume_never_moves_the_old_run_aside(self, run_cli, checkpoints, text_file, tmp_path):
        assert run_cli(*search_arguments(checkpoints, text_file, tmp_path), "-q")[0] == 0
        old = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".lock"}
        code, _, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path, resume="never", seed=1))
        assert code == 0, err
        aside = next(path for path in tmp_path.iterdir() if path.is_dir())
        assert f"is now in {aside}" in err
        assert {path.name: path.read_bytes() for path in aside.iterdir()} == old

    def test_remote_code_is_not_trusted_by_the_environment(self, monkeypatch):
        import typer

        from indexcache.cli import app

        command = typer.main.get_command(app).commands["search"]
        trust = next(each for each in command.params if each.name == "trust_remote_code")
        assert not trust.allow_from_autoenv

    @pytest.mark.usefixtures("paper")
    def test_a_small_informative_share_is_warned_about(self, run_cli, checkpoints, text_file, tmp_path):
        _, _, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path, window=24, keep=1.0), "-q")
        assert "warning: only 30.4% of the positions" in err


WRONG = {
    "a model that does not exist": ({"model": "./nowhere"}, "'./nowhere' does not exist"),
    "a hub model out of reach": ({"model": "nobody/nothing"}, "'nobody/nothing'"),
    "keep 0": ({"keep": 0}, "keep is 0"),
    "keep 1.5": ({"keep": 1.5}, "keep is 1.5"),
    "keep and max-delta": ({"max_delta": 0.1}, "both --keep and --max-delta"),
    "neither": ({"keep": None}, "how much to keep"),
    "negative max-delta": ({"keep": None, "max_delta": -1}, "max-delta is -1"),
    "no model": ({"model": None}, "no model was given"),
    "no dataset": ({"dataset": None}, "no dataset was given"),
    "a window shorter than the selection": ({"window": 16}, "measure nothing"),
    "a window longer than the model": ({"window": 4096}, "longer than the model's 512 positions"),
    "a window of one": ({"window": 1}, "window"),
    "a missing dataset": ({"dataset": "./none.jsonl"}, "does not exist"),
    "more windows than text": ({"windows": 5000}, "5000 calibration windows"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a split of a local file": ({"dataset_split": "test"}, "is local and has no split"),
    "a revision of a local folder": ({"revision": "main"}, "no revision"),
    "an older plan without fast": ({"init": "PLAN", "strategy": "exact"}, "gives no head start"),
    "too many blocks": ({"strategy": "blocks", "blocks": 9}, "9 blocks"),
    "a pinned layer that is not there": ({"pin": "0,6"}, "layer 6 cannot be pinned"),
    "a pin that is no number": ({"pin": "0,x"}, "--pin is '0,x'"),
    "a negative pin": ({"pin": "-1"}, "pin"),
    "stages of another model": ({"pp_layers": "20,20,21"}, "add up to 61 layers, but the model has 6"),
    "more stages than layers": ({"pp_size": 7}, "pp-size is 7"),
    "stages given twice": ({"pp_size": 2, "pp_layers": "3,3"}, "both pp-size and pp-layers"),
    "more stages than sites to keep": ({"pp_size": 4}, "4 of 6 sites have to stay full"),
    "an unknown dtype": ({"dtype": "int4"}, "dtype"),
    "an unknown strategy": ({"strategy": "magic"}, "strategy"),
    "an unknown option": ({"wat": 1}, "--wat"),
    "a word for a number": ({"windows": "many"}, "valid integer"),
    "another way to resume": ({"resume": "maybe"}, "--resume is 'maybe'"),
    "a missing recipe": ({"recipe": "nonesuch"}, "'nonesuch' does not exist"),
}


class TestWrongInput:
    @pytest.mark.reliability("R19")
    @pytest.mark.parametrize("case", WRONG)
    def test_is_one_line_and_a_json_document_and_exit_2(
        self, run_cli, checkpoints, text_file, searched, tmp_path, case
    ):
        """One run gives both: --json adds the document on stdout, and without it nothing is printed there."""
        changes, says = WRONG[case]
        changes = {name: searched / "plan.json" if value == "PLAN" else value for name, value in changes.items()}
        arguments = search_arguments(checkpoints, text_file, tmp_path / "out", **changes)
        code, out, err = run_cli(*arguments, "--json")
        error = json.loads(out)["error"]
        assert (code, error["exit_code"]) == (2, 2)
        assert says in error["message"]
        assert len(lines(err)) == 1, err
        assert says in err
        assert not (tmp_path / "out" / "plan.json").exists()

    @pytest.mark.parametrize("case", ["keep 0", "an unknown option", "a missing dataset", "a missing recipe"])
    def test_without_json_stdout_stays_empty(self, run_cli, checkpoints, text_file, tmp_path, case):
        changes, says = WRONG[case]
        code, out, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path / "out", **changes))
        assert (code, out, len(lines(err)), says in err) == (2, "", 1, True)

    def test_a_model_without_indexers(self, run_cli, checkpoints, text_file, tmp_path, llama):
        code, out, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path, model=llama))
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "glm_moe_dsa" in err

    def test_an_empty_dataset(self, run_cli, checkpoints, tmp_path):
        empty = tmp_path / "empty.jsonl"
        empty.write_text("")
        code, out, err = run_cli(*search_arguments(checkpoints, empty, tmp_path / "out"))
        assert (code, out, len(lines(err))) == (2, "", 1), err
        assert "is empty" in err

    def test_an_unwritable_output(self, run_cli, checkpoints, text_file, tmp_path):
        (tmp_path / "file").write_text("")
        code, _, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path / "file" / "run"))
        assert (code, len(lines(err))) == (2, 1)

    @pytest.mark.reliability("R19")
    @pytest.mark.parametrize("arguments", [["wat"], ["eval"], ["search", "--keep"], ["cut"]])
    def test_wrong_use_is_one_line(self, run_cli, arguments):
        code, out, err = run_cli(*arguments)
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "--help" in err


class TestEstimate:
    def test_counts_from_the_config_alone(self, run_cli, checkpoints, tmp_path):
        shutil.copy(checkpoints["glm_moe_dsa"] / "config.json", tmp_path)
        arguments = ["--model", tmp_path, "--keep", "0.5", "--windows", 8, "--strategy", "exact", "--no-time"]
        code, out, _ = run_cli("estimate", *arguments, "--json", "-q")
        document = json.loads(out)
        assert code == 0
        assert document["algorithm_1_layer_windows"] == 12 * 8 * 6
        assert document["seconds"] is None
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

    def test_the_gate_passes_and_fails(self, run_cli, searched, tmp_path):
        folder = shutil.copytree(searched, tmp_path / "run")
        for kept in range(1, 8):  # a plan with few full sites is the likeliest to be worse
            path = run_cli("cut", folder / "plan.json", "--keep", kept / 8)[1].strip()
            delta = json.loads(run_cli("eval", path, "--json", "-q")[1])["plan"]["delta"]
            if delta > 0:
                break
        assert delta > 0, "no step of the plan is worse than all full on held-out windows"
        code, out, _ = run_cli("eval", path, "--max-delta", delta, "--json", "-q")
        assert (code, json.loads(out)["passed"]) == (0, True)
        code, out, err = run_cli("eval", path, "--max-delta", delta / 2, "--json", "-q")
        assert (code, json.loads(out)["passed"], len(lines(err))) == (1, False, 1)

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


def test_cut_writes_a_plan_beside_the_old_one(run_cli, searched, tmp_path):
    folder = shutil.copytree(searched, tmp_path / "run")
    code, out, _ = run_cli("cut", folder / "plan.json", "--keep", 0.25)
    assert (code, out) == (0, f"{folder / 'plan-2of8.json'}\n")
    code, out, _ = run_cli("eval", folder / "plan-2of8.json", "--json", "-q")
    assert (code, json.loads(out)["plan"]["kept"]) == (0, 2)


def test_export_prints_settings_on_stdout_and_notes_on_stderr(run_cli, searched):
    code, out, err = run_cli("export", searched / "plan.json", "--to", "vllm")
    assert code == 0
    assert out.startswith("vllm serve ")
    assert {line.split(":")[0] for line in lines(err)} == {"note", "warning"}
    code, out, _ = run_cli("export", searched / "plan.json", "--to", "sglang", "--json")
    assert set(json.loads(out)["settings"]) == {"index_topk_pattern", "indexer_types"}
    arguments = ["--to", "vllm", "--engine-version", "0.30.0", "--pp-layers", "1,7", "--json"]
    code, out, _ = run_cli("export", searched, *arguments)
    assert (code, "--force" in json.loads(out)["error"]["hint"]) == (2, True)
    code, out, err = run_cli("export", searched, *arguments, "--force")
    document = json.loads(out)
    plan = json.loads((searched / "plan.json").read_text())
    assert (code, document["pattern"], document["written"]) == (0, plan["result"]["layer_pattern"], None)
    assert [each["text"] for each in document["warnings"]] == [line.partition(": ")[2] for line in lines(err)]
    failing = [remark["text"] for remark in document["warnings"] if remark["severity"] == "error"]
    assert len(failing) == 1
    assert "get no selection" in failing[0]
    code, out, err = run_cli("export", searched / "plan.json", "--to", "tgi", "--json")
    assert (code, "tgi" in json.loads(out)["error"]["message"]) == (2, True)


def test_inspect_reads_a_config_without_weights(run_cli, tmp_path):
    shutil.copy(EMBEDDED / "config.json", tmp_path)
    code, out, _ = run_cli("inspect", tmp_path, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["sites"], found["selection_width"], found["kept_at_quarter"]) == (16, 64, 4)
    assert 3_500_000 < found["parameters"] < 4_500_000
    code, out, _ = run_cli("inspect", tmp_path)
    assert "16, 16 of them sites" in out


def test_report_renders_again(run_cli, searched, tmp_path):
    code, out, _ = run_cli("report", searched / "plan.json", "--out", tmp_path)
    assert code == 0
    for line in lines(out):
        assert Path(line).read_text() == (searched / Path(line).name).read_text()


def test_version_and_help(run_cli):
    assert run_cli("--version")[1] == f"indexcache {__version__}\n"
    for arguments in ([], ["--help"], ["-h"], ["search", "--help"]):
        code, out, _ = run_cli(*arguments)
        assert code == 0
        assert "Usage" in out


def run_python(code, **changes):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | changes
    return subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom indexcache.cli import main\n"
        "try:\n    main(['search', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = run_python(code)
    assert done.returncode == 0, "--help imported torch or transformers"


class TestOptions:
    """Every option is frozen: command, flags, default and environment variable."""

    def test_are_those_of_the_golden_file(self):
        """``python tests/golden_options.py --write`` after a change that is meant."""
        assert options_text() == OPTIONS.read_text("utf-8")
