"""The distill command: what it writes, what it measures, what it goes on from, and what it refuses."""

import json
import os
import shutil
import signal

import pytest
import torch
from children import Child, run_together
from command_lines import lines
from eight_bit import SETTINGS, in_eight_bits
from random_models import EMBEDDED
from safetensors.torch import load_file, save_file

import indexcache
from indexcache.commands import distil as distil_command
from indexcache.commands import distil_write
from indexcache.dsa.distil.train import Trained
from indexcache.errors import GateError
from indexcache.search.plan.file import read_plan
from indexcache.system.signals import Stop

WINDOW = 112
OPTIONS = ["--steps", "20", "--rows", "32", "--lr", "0.01", "-q"]


def distil(run_cli, planned, out, *more):
    return run_cli("distill", planned, "--out", out, *OPTIONS, *more)


@pytest.fixture(scope="session")
def planned(made_once, trimmed):
    """The folder of a plan for that model, by layer costs: two of six indexers stay."""

    return made_once("planned_to_distil", lambda out: search(trimmed, out))


def search(model, out):
    from indexcache.cli import main

    arguments = ["search", "--model", model, "--dataset", EMBEDDED / "calibration.jsonl", "--keep", "1/3"]
    arguments += ["--strategy", "dp", "--window", WINDOW, "--windows", 6, "--heldout", 4, "--probes", 0]
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in [*arguments, "--out", out, "-q"]])
    assert not stop.value.code, "the plan that these tests distil"


@pytest.fixture(scope="session")
def distilled(made_once, planned):
    """That model, distilled for uniform interleaving."""

    def make(folder):
        from indexcache.cli import main

        with pytest.raises(SystemExit) as stop:
            main(["distill", str(planned), "--out", str(folder / "model"), "--uniform", *OPTIONS])
        assert not stop.value.code, "the held-out loss falls"

    return made_once("distilled", make) / "model"


def written_layers(plan):
    return {segment["layer"] for segment in plan["distilled"]["segments"] if segment["written"]}


class TestCheckpoint:
    def test_only_the_kept_indexers_tensors_differ(self, distilled, trimmed):
        before, after = (load_file(folder / "model.safetensors") for folder in (trimmed, distilled))
        assert list(before) == list(after)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        plan = json.loads((distilled / "plan.json").read_text())
        of_written = {
            name
            for name in before
            for layer in written_layers(plan)
            if f"layers.{layer}.self_attn.indexer." in name
        }
        assert changed
        assert changed <= of_written
        assert all(before[name].dtype == after[name].dtype for name in before)

    def test_every_other_byte_is_the_same(self, distilled, trimmed):
        source = trimmed
        for path in source.iterdir():
            if path.name != "model.safetensors":
                assert (distilled / path.name).read_bytes() == path.read_bytes(), path.name
        old, new = (folder / "model.safetensors" for folder in (source, distilled))
        header = 8 + int.from_bytes(old.read_bytes()[:8], "little")
        assert old.stat().st_size == new.stat().st_size
        assert old.read_bytes()[:header] == new.read_bytes()[:header]

    def test_nothing_of_the_work_is_left(self, distilled):
        assert [path.name for path in distilled.parent.iterdir()] == ["model"]

    def test_engines_meet_no_other_safetensors(self, distilled):
        """vLLM loads every file of that kind: the plan's tokens must not be one."""
        assert [path.name for path in distilled.glob("*.safetensors")] == ["model.safetensors"]


class TestPlan:
    def test_it_is_bound_to_the_new_weights(self, distilled, planned):
        old, new = read_plan(planned / "plan.json"), read_plan(distilled / "plan.json")
        assert new.model.id == str(distilled)
        assert new.model.weights_sha256 != old.model.weights_sha256
        assert new.distilled.source_weights_sha256 == old.model.weights_sha256
        assert new.search == old.search.model_copy(update={"kept_chances": new.search.kept_chances})

    def test_eval_of_it_gives_the_loss_that_it_says(self, distilled, run_cli):
        """The written indexers, loaded as any checkpoint's, cost what was measured before they were written."""
        code, out, _ = run_cli("eval", distilled / "plan.json", "--json", "-q")
        assert code == 0
        plan = read_plan(distilled / "plan.json")
        assert json.loads(out)["plan"]["loss"] == pytest.approx(plan.heldout.plan.loss, abs=1e-6)

    def test_what_was_before_is_what_eval_measures_on_the_source(self, distilled, planned, run_cli):
        _, out, _ = run_cli("eval", planned / "plan.json", "--json", "-q")
        again, plan = json.loads(out), read_plan(distilled / "plan.json")
        assert plan.distilled.heldout.baseline_loss == pytest.approx(again["baseline_loss"], abs=1e-6)
        assert plan.distilled.heldout.before.loss == pytest.approx(again["uniform"]["loss"], abs=1e-6)

    def test_a_segment_is_written_where_its_divergence_fell_and_only_there(self, distilled):
        for segment in read_plan(distilled / "plan.json").distilled.segments:
            fell = segment.divergence_after is not None and segment.divergence_after < segment.divergence_before
            assert segment.written == fell

    def test_cut_is_refused_with_the_reason(self, distilled, run_cli):
        code, out, err = run_cli("cut", distilled / "plan.json", "--keep", "0.5")
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "distilled for its own pattern" in err
        assert "distill that cut" in err

    def test_it_is_not_distilled_again(self, distilled, run_cli, tmp_path):
        code, _, err = run_cli("distill", distilled / "plan.json", "--out", tmp_path / "again")
        assert (code, len(lines(err))) == (2, 1)
        assert "distilled already" in err

    def test_export_points_at_the_new_weights(self, distilled, run_cli, tmp_path):
        target = tmp_path / "stripped"
        strip = ["--to", "vllm", "--engine-version", "0.31.0", "--write", target, "--strip-weights"]
        code, out, err = run_cli("export", distilled / "plan.json", *strip)
        assert code == 0, err
        assert str(target) in out
        assert str(distilled) in err
        kept = load_file(target / "model.safetensors")
        whole = load_file(distilled / "model.safetensors")
        assert all(torch.equal(kept[name], whole[name]) for name in kept)
        assert len(kept) < len(whole)
        assert not (target / "plan.json").exists()

    def test_the_report_shows_before_and_after(self, distilled):
        plan, text = read_plan(distilled / "plan.json"), (distilled / "report.md").read_text()
        assert "## Distilled indexers" in text
        assert f"{plan.distilled.heldout.before.delta:+.4f}" in text
        assert f"{plan.distilled.heldout.after.delta:+.4f}" in text
        assert "uniform, distilled" in (distilled / "curve.svg").read_text()


class TestResume:
    def test_a_killed_run_goes_on_to_the_same_bytes(self, run_cli, planned, distilled, tmp_path, monkeypatch):
        out, trained = tmp_path / "model", []
        train = distil_command.train

        def stopping(model, stored, segment, settings, on_step):
            if len(trained) == 1:
                raise Stop(signal.SIGTERM)
            trained.append(segment)
            return train(model, stored, segment, settings, on_step)

        monkeypatch.setattr(distil_command, "train", stopping)
        code, stdout, err = distil(run_cli, planned, out, "--uniform", "--json")
        assert code == 75
        assert json.loads(stdout)["stopped"] is True
        assert not out.exists()
        again = []

        def counted(model, stored, segment, settings, on_step):
            again.append(segment)
            return train(model, stored, segment, settings, on_step)

        monkeypatch.setattr(distil_command, "train", counted)
        code, _, err = distil(run_cli, planned, out, "--uniform")
        assert code == 0, err
        assert not set(trained) & set(again), "what was trained is not trained again"
        assert (out / "model.safetensors").read_bytes() == (distilled / "model.safetensors").read_bytes()

    def test_other_settings_are_refused_by_name(self, run_cli, planned, tmp_path, monkeypatch):
        out = tmp_path / "model"
        monkeypatch.setattr(distil_command, "train", _stop)
        assert distil(run_cli, planned, out)[0] == 143
        code, _, err = distil(run_cli, planned, out, "--seed", "7")
        assert (code, len(lines(err))) == (2, 1)
        assert "distill_seed is 7" in err

    def test_a_process_killed_at_the_end_leaves_nothing_that_looks_finished(
        self, run_cli, planned, distilled, tmp_path
    ):
        out = tmp_path / "model"

        def killed():
            distil_write.write_plan = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)

        outcome = Child(["distill", planned, "--out", out, "--uniform", *OPTIONS], tmp_path, killed).wait()
        assert outcome.code == -signal.SIGKILL, outcome
        assert not out.exists()
        assert (tmp_path / "model.unfinished" / "distil.json").exists()
        code, _, err = distil(run_cli, planned, out, "--uniform")
        assert code == 0, err
        assert (out / "model.safetensors").read_bytes() == (distilled / "model.safetensors").read_bytes()

    @pytest.mark.reliability("R18")
    def test_two_processes_share_the_indexers_and_give_the_same_bytes(self, planned, distilled, tmp_path):
        out = tmp_path / "model"
        outcomes = run_together(["distill", planned, "--out", out, "--uniform", *OPTIONS], tmp_path, 2)
        assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
        assert (out / "model.safetensors").read_bytes() == (distilled / "model.safetensors").read_bytes()


def _stop(*arguments, **options):
    raise Stop(signal.SIGTERM)


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "word"),
        [
            (["--pattern", "FSSSS"], "5 letters"),
            (["--pattern", "FFFFFF"], "nothing to distil"),
            (["--pattern", "FSSSSS", "--uniform"], "two patterns"),
            (["--lr", "fast"], "--lr is 'fast'"),
            (["--steps", "0"], "--steps is 0"),
            (["--windows", "4"], "give --dataset"),
            (["--max-delta", "nan"], "--max-delta"),
        ],
    )
    def test_impossible_options_in_one_line(self, run_cli, planned, tmp_path, more, word):
        code, out, err = distil(run_cli, planned, tmp_path / "model", *more)
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert word in err
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_in_use_and_one_inside_the_checkpoint(self, run_cli, planned, trimmed, tmp_path):
        (tmp_path / "file").touch()
        code, _, err = distil(run_cli, planned, tmp_path)
        assert (code, len(lines(err)), "there already" in err) == (2, 1, True)
        code, _, err = distil(run_cli, planned, trimmed / "inside")
        assert (code, len(lines(err)), "inside the checkpoint" in err) == (2, 1, True)

    def test_a_small_disk_is_told_how_much_is_needed(self, run_cli, planned, tmp_path, monkeypatch):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        code, _, err = distil(run_cli, planned, tmp_path / "model")
        assert (code, len(lines(err))) == (2, 1)
        assert "GiB" in err

    def test_another_familys_name_is_said_before_anything_is_loaded(
        self, run_cli, checkpoints, text_file, tmp_path
    ):
        search = ["search", "--model", checkpoints["deepseek_v4"], "--dataset", text_file, "--keep", "0.5"]
        code, _, err = run_cli(
            *search, "--window", "64", "--windows", "2", "--heldout", "2", "--out", tmp_path / "run", "-q"
        )
        assert code == 0, err
        code, _, err = distil(run_cli, tmp_path / "run", tmp_path / "model")
        assert (code, len(lines(err))) == (2, 1)
        assert "deepseek_v4" in err

    def test_changed_weights_are_refused(self, run_cli, planned, trimmed, tmp_path):
        folder = shutil.copytree(trimmed, tmp_path / "eight")
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        code, _, err = distil(run_cli, planned, tmp_path / "model", "--model", folder)
        assert (code, len(lines(err))) == (2, 1)
        assert "weights_sha256" in err


class TestGate:
    def test_what_stays_above_the_limit_is_written_and_ends_with_1(self, run_cli, planned, tmp_path):
        out = tmp_path / "model"
        code, _, err = distil(run_cli, planned, out, "--uniform", "--max-delta", "0", "--gate", "estimate")
        assert (code, (out / "plan.json").exists()) == (1, True)
        assert "--max-delta" in err

    def test_indexers_that_came_no_nearer_are_not_written(self, run_cli, planned, tmp_path, monkeypatch):
        """Every student is thrown off: its KL grows, so its start stays, and nothing is left to write."""
        train = distil_command.train

        def spoiled(*arguments, **options):
            trained = train(*arguments, **options)
            worse = {name: -value for name, value in trained.parameters.items()}
            return Trained(worse, trained.curve, trained.learning_rate)

        monkeypatch.setattr(distil_command, "train", spoiled)
        out = tmp_path / "model"
        code, stdout, err = distil(run_cli, planned, out, "--uniform", "--json")
        assert (code, out.exists()) == (1, False)
        assert json.loads(stdout)["error"]["type"] == "GateError"
        assert "nothing is written" in err


def test_other_text_without_the_held_out_documents(run_cli, planned, tmp_path):
    out = tmp_path / "model"
    code, _, err = distil(
        run_cli, planned, out, "--uniform", "--dataset", EMBEDDED / "calibration.jsonl", "--windows", "5"
    )
    assert code == 0, err
    distilled = read_plan(out / "plan.json").distilled
    assert (distilled.windows, distilled.tokens, distilled.dataset) == (
        5,
        5 * WINDOW,
        str(EMBEDDED / "calibration.jsonl"),
    )


def test_python_gives_the_same_bytes(planned, distilled, tmp_path):
    out = tmp_path / "model"
    plan = indexcache.distill(planned, out, uniform=True, steps=20, rows=32, learning_rate=0.01)
    assert plan.model.id == str(out)
    assert (out / "model.safetensors").read_bytes() == (distilled / "model.safetensors").read_bytes()
    with pytest.raises(GateError, match="max-delta"):
        indexcache.distill(
            planned, tmp_path / "other", uniform=True, steps=20, rows=32, learning_rate=0.01, max_delta=0
        )


def test_fp8_indexers_are_written_back_in_fp8(run_cli, trimmed, tmp_path):
    """What eval measures on the written FP8 numbers is what was measured before they were written."""
    source, out = shutil.copytree(trimmed, tmp_path / "source"), tmp_path / "model"
    stored, _ = in_eight_bits(load_file(source / "model.safetensors"))
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": SETTINGS}))
    search(source, tmp_path / "run")
    code, _, err = distil(run_cli, tmp_path / "run", out, "--uniform")
    assert code in (0, 1), err
    plan, after = read_plan(out / "plan.json"), load_file(out / "model.safetensors")
    changed = {
        name for name in stored if not torch.equal(stored[name].view(torch.uint8), after[name].view(torch.uint8))
    }
    assert {after[name].dtype for name in changed} == {torch.float8_e4m3fn, torch.float32, torch.bfloat16}
    assert all(".indexer." in name for name in changed)
    _, printed, _ = run_cli("eval", out, "--json", "-q")
    assert json.loads(printed)["plan"]["loss"] == pytest.approx(plan.heldout.plan.loss, abs=1e-5)


def test_streamed_weights_give_the_same_indexers(run_cli, planned, distilled, tmp_path):
    out = tmp_path / "model"
    code, _, err = distil(run_cli, planned, out, "--uniform", "--max-memory", "5MB")
    assert code == 0, err
    assert (out / "model.safetensors").read_bytes() == (distilled / "model.safetensors").read_bytes()
