"""The search command: its plan, which setting wins, and how a run goes on."""

import io
import json
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from command_lines import lines, search_arguments
from paper_model import on_paper

from indexcache.cli import main
from indexcache.search.run.journal import read_journal
from indexcache.system.signals import Stop


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
        patterns = [pattern["pattern"] for pattern in [*measured, plan["result"]]]
        assert {roles[site] for roles in patterns for site in (0, 2, 5)} == {"F"}
        assert "pinned   layers 0, 2, 5" in err
        report = " ".join((tmp_path / "report.md").read_text().split())
        assert "Pinned to stay full, in the uniform patterns too: layers 0, 2, 5" in report
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
        assert [pattern["kept"] for pattern in plan["search"]["overlap"]] == [5, 4, 3]
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
        contents = [read_journal(folder / "journal.jsonl").content for folder in (tmp_path, tmp_path / "fresh")]
        assert first < contents[1].window_evaluations <= contents[0].window_evaluations

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

    @pytest.mark.usefixtures("paper")
    def test_a_plan_that_is_chosen_is_named_and_warned_of_until_it_is_complete(
        self, run_cli, checkpoints, text_file, tmp_path, monkeypatch
    ):
        def stop(*_):
            raise Stop(signal.SIGTERM)

        path, arguments = tmp_path / "plan.json", search_arguments(checkpoints, text_file, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("indexcache.commands.search.complete", stop)
            code, _, err = run_cli(*arguments)
        assert code == 75, err
        assert f"plan chosen and written to {path}; measuring baselines, held-out windows and probes" in err
        assert f"'{path}' is chosen, but not complete" in lines(err)[-1]
        warning = "warning: the plan is not complete: its baselines and held-out check were not measured"
        for command in (["eval", path, "-q"], ["export", path, "--to", "none"]):
            code, _, err = run_cli(*command)
            assert (code, " ".join(err.split()).count(warning)) == (0, 1), f"{command}: {err}"
        assert run_cli(*arguments, "-q")[0] == 0
        for command in (["eval", path, "-q"], ["export", path, "--to", "none"]):
            assert "not complete" not in " ".join(run_cli(*command)[2].split()), command

    @pytest.mark.usefixtures("paper")
    def test_a_limit_that_no_step_is_within_is_said(self, run_cli, checkpoints, text_file, tmp_path):
        changes = {"keep": None, "max_delta": 1e-12, "windows": 4}
        code, out, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path, **changes), "--json", "-q")
        plan = json.loads(out)
        assert (code, plan["result"]["kept"]) == (0, 6)
        (line,) = lines(err)
        assert line.startswith(
            "warning: no step is within --max-delta 1e-12: all 6 indexers stay; the least increase"
        )
        least = min(step["delta"] for step in plan["search"]["steps"])
        assert f"is {least:+.4f}" in line
        changes = {"keep": None, "max_delta": 100, "windows": 4}
        assert run_cli(*search_arguments(checkpoints, text_file, tmp_path, **changes), "-q")[2] == ""

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
        trust = next(option for option in command.params if option.name == "trust_remote_code")
        assert not trust.allow_from_autoenv

    @pytest.mark.usefixtures("paper")
    def test_a_small_informative_share_is_warned_about(self, run_cli, checkpoints, text_file, tmp_path):
        _, _, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path, window=24, keep=1.0), "-q")
        assert "warning: only 30.4% of the positions" in err
