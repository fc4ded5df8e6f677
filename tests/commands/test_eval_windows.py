"""eval on probes and on other windows than a plan's own: what is measured and kept, and what does not pass."""

import json
import shutil

import pytest
from command_lines import lines
from paper_model import NoWeights

from indexcache.commands.eval_settings import eval_settings
from indexcache.commands.job.measure import Loaded
from indexcache.errors import SettingError
from indexcache.evaluate import HELD_OUT_PROBES, WindowLoss
from indexcache.search.plan.file import read_plan
from indexcache.search.report.checks import read_checks


@pytest.fixture
def folder(probed, tmp_path):
    return shutil.copytree(probed, tmp_path / "run")


class Measured:
    """Stands where a model would: shared sites add ``increase(group, window)`` to a window's loss per label."""

    def __init__(self, increase):
        self.increase = increase
        self.windows = None

    def stand_in(self, loaded, windows, reporter):
        self.windows = windows
        return self

    def sweep(self, requests):
        return [self.losses(request.patterns, request.windows, request.group) for request in requests]

    def losses(self, patterns, windows, group):
        labels = self.windows.groups[group].labels()

        def loss(pattern, window):
            increase = self.increase(group, window) if "S" in pattern.roles else 0.0
            count = labels[window]
            return WindowLoss((2.0 + increase) * count, increase * count, agreement=count, correct=count)

        return [tuple(loss(pattern, window) for window in windows) for pattern in patterns]


@pytest.fixture
def measured(monkeypatch):
    """Puts losses by a formula where eval loads a model."""

    def put(increase=lambda group, window: 0.01 * (1 + window)):
        model = Measured(increase)
        monkeypatch.setattr("indexcache.commands.eval.load", lambda *args: Loaded(NoWeights(), args[0], args[2]))
        monkeypatch.setattr("indexcache.commands.eval.evaluator", model.stand_in)
        return model

    return put


class TestProbes:
    def test_are_measured_as_in_the_search(self, run_cli, folder):
        code, out, _ = run_cli("eval", folder, "--probes", "--json", "-q")
        document, plan = json.loads(out), json.loads((folder / "plan.json").read_text())
        assert code == 0, out
        assert (document["plan"], document["group"]) == (plan["heldout"]["plan"], "heldout")

        def without_dp(record):
            return {name: value for name, value in record.items() if name != "dp"}

        for ours, theirs in zip(document["probes"]["kinds"], plan["probes"]["kinds"], strict=True):
            assert without_dp(ours) == without_dp(theirs)
        assert [record["probes"] for record in document["probes"]["kinds"]] == [1] * 6
        kept = read_checks(folder / "evaluation.json")
        assert kept.probes.scores.model_dump() == document["probes"]
        for report in ("report.md", "report.html"):
            assert "Probes of 240 tokens" in (folder / report).read_text()

    def test_have_a_table_of_their_own(self, run_cli, folder, measured):
        measured()
        code, out, _ = run_cli("eval", folder, "--probes", "-q")
        assert code == 0, out
        assert "6 probes of 240 tokens: nats per answer token" in out
        for kind in ("recall", "needles", "order", "variables", "two-hop", "copy", "all"):
            assert any(line.split()[:1] == [kind] and "100 %" in line for line in lines(out))

    def test_a_plan_without_them_says_where_to_get_some(self, run_cli, searched):
        code, out, err = run_cli("eval", searched, "--probes", "-q")
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "the plan has no probes" in err
        assert "--window 48" in err

    def test_a_limit_on_them_measures_them(self, run_cli, folder, measured):
        measured(lambda group, window: 0.3 if group == HELD_OUT_PROBES else 0.01)
        limits = ["--max-delta", "0.02", "--json", "-q"]
        code, out, _ = run_cli("eval", folder, "--max-probe-delta", "0.4", "--gate", "estimate", *limits)
        document = json.loads(out)
        assert (code, document["passed"], document["probes_passed"]) == (0, True, True)
        code, out, err = run_cli("eval", folder, "--max-probe-delta", "0.2", *limits)
        assert (code, json.loads(out)["passed"], json.loads(out)["probes_passed"]) == (1, True, False)
        assert len(lines(err)) == 1
        assert "on probes increases by +0.30000, above --max-probe-delta 0.2" in err
        assert read_checks(folder / "evaluation.json").probes.passed is False

    def test_in_one_document_alone_pass_by_their_estimate_only(self, run_cli, folder, measured):
        measured(lambda group, window: 0.3)
        arguments = ["eval", folder, "--max-probe-delta", "0.4", "--windows", "1"]
        document = json.loads(run_cli(*arguments, "--gate", "estimate", "--json", "-q")[1])
        assert document["probes"]["all"]["high"] is None
        assert "one document: no interval" in run_cli(*arguments, "--gate", "estimate", "-q")[1]
        code, out, err = run_cli(*arguments, "-q")
        assert (code, out, len(lines(err))) == (2, "", 1), err
        assert "all held-out probe windows are of one document" in err
        assert "--gate estimate" in err

    def test_a_gate_without_a_limit_does_nothing_and_says_so(self, run_cli, folder, measured):
        measured()
        warning = "warning: --gate does nothing without --max-delta or --max-probe-delta"
        warning += " [docs/troubleshooting.md#warnings]"
        assert lines(run_cli("eval", folder, "--gate", "estimate", "-q")[2]) == [warning]
        assert lines(run_cli("eval", folder, "--confidence", "0.9", "-q")[2]) == []


class TestGate:
    """Of three windows of three documents or fewer with increases of .01, .02 and .03."""

    def test_holds_the_upper_end_of_the_interval(self, run_cli, folder, measured):
        measured()
        document = json.loads(run_cli("eval", folder, "--json", "-q")[1])
        high = document["plan"]["high"]
        assert document["plan"]["delta"] == pytest.approx(0.02)
        assert high > 0.025
        assert (document["confidence"], document["gate"], document["passed"]) == (0.95, "interval", None)
        assert run_cli("eval", folder, "--max-delta", high, "-q")[0] == 0
        code, out, err = run_cli("eval", folder, "--max-delta", "0.025", "--json", "-q")
        assert (code, json.loads(out)["passed"], len(lines(err))) == (1, False, 1)
        assert (
            f"increases by +0.02000, but at 95 % confidence perhaps by {high:+.5f}, above --max-delta 0.025" in err
        )

    def test_or_the_estimate(self, run_cli, folder, measured):
        measured()
        code, out, _ = run_cli("eval", folder, "--max-delta", "0.025", "--gate", "estimate", "--json", "-q")
        assert (code, json.loads(out)["passed"], json.loads(out)["gate"]) == (0, True, "estimate")
        code, _, err = run_cli("eval", folder, "--max-delta", "0.015", "--gate", "estimate", "-q")
        assert (code, "increases by +0.02000, above --max-delta 0.015" in err) == (1, True)

    def test_less_confidence_is_a_narrower_interval(self, run_cli, folder, measured):
        measured()
        ends = [
            json.loads(run_cli("eval", folder, "--confidence", confidence, "--json", "-q")[1])["plan"]["high"]
            for confidence in ("0.5", "0.95", "0.99")
        ]
        assert ends == sorted(ends)
        assert ends[0] < ends[1] < ends[2]


class TestOtherWindows:
    def test_hold_no_document_that_the_search_has_seen(self, run_cli, folder, measured, text_file, tokenizer):
        model = measured()
        code, out, err = run_cli("eval", folder, "--window", 250, "--windows", 4, "--json")
        document = json.loads(out)
        assert (code, document["group"], document["window"], document["windows"]) == (0, "unseen", 250, 4)
        assert "documents that the search has seen are left out: " in err
        texts = [json.loads(line)["text"] for line in text_file.read_text().splitlines()]
        seen = calibration_texts(folder, texts, tokenizer)
        assert 2 <= len(seen) < 8
        for ids in model.windows.heldout.tolist():
            pieces = [tokenizer.decode(ids[start : start + 30]) for start in range(0, 240, 30)]
            assert any(piece in text for piece in pieces for text in texts)
            assert not any(piece in text for piece in pieces for text in seen)

    def test_are_as_many_as_the_plan_has_held_out_and_as_long(self, run_cli, folder, measured, text_file):
        measured()
        document = json.loads(run_cli("eval", folder, "--dataset", text_file, "--json", "-q")[1])
        assert (document["window"], document["windows"]) == (240, 3)
        assert document["dataset"]["dataset"] == str(text_file)

    def test_are_kept_one_for_each_length_and_text(self, run_cli, folder, measured, text_file, tmp_path):
        measured()
        other = shutil.copy(text_file, tmp_path / "other.jsonl")
        for arguments in (["--window", 250], ["--window", 80], ["--dataset", other], ["--window", 250]):
            assert run_cli("eval", folder, *arguments, "-q")[0] == 0
        kept = read_checks(folder / "evaluation.json").others
        assert [(check.length, check.dataset) for check in kept] == [
            (80, str(text_file)),
            (240, str(other)),
            (250, str(text_file)),
        ]
        assert run_cli("eval", folder, "-q")[0] == 0
        assert len(read_checks(folder / "evaluation.json").others) == 3
        for name in ("report.md", "report.html"):
            report = (folder / name).read_text()
            assert "On other windows" in report
            assert "3 of 250 tokens" in report
            assert "Measured again" in report

    def test_have_probes_in_their_own_text(self, run_cli, folder, measured):
        model = measured()
        code, out, _ = run_cli("eval", folder, "--window", 256, "--probes", "--json", "-q")
        document = json.loads(out)
        assert (code, document["probes"]["all"]["probes"]) == (0, 6)
        assert model.windows.group(HELD_OUT_PROBES).shape == (6, 256)
        kept = read_checks(folder / "evaluation.json")
        assert kept.probes is None
        assert kept.others[0].probes.scores.model_dump() == document["probes"]
        assert "Probes of 256 tokens" in (folder / "report.html").read_text()

    def test_run_on_a_model(self, run_cli, folder):
        code, out, _ = run_cli("eval", folder, "--window", 320, "--windows", 2, "--json", "-q")
        document = json.loads(out)
        assert code == 0, out
        assert document["baseline_loss"] > 0
        assert document["plan"]["delta"] == pytest.approx(document["plan"]["loss"] - document["baseline_loss"])


def calibration_texts(folder, texts, tokenizer):
    """The documents that calibration windows were cut from."""
    from indexcache.calibrate.frozen import thaw

    windows = thaw(folder / "windows.safetensors").calibration.tolist()
    pieces = [tokenizer.decode(ids[start : start + 12]) for ids in windows for start in range(0, 216, 12)]
    return [text for text in texts if any(piece in text for piece in pieces)]


REFUSED = {
    "no longer than the selection": (["--window", 16], "measure nothing"),
    "longer than the model": (["--window", 4096], "longer than the model's 512 positions"),
    "a dataset that is not there": (
        ["--dataset", "./none.jsonl"],
        "give --dataset a file, a folder or a hub name",
    ),
    "too few unseen documents": (["--window", 500, "--windows", 500], "more are left out, as the search has seen"),
    "too short for probes": (["--window", 60, "--probes"], "filler"),
    "own windows and others": (["--on", "calibration", "--window", 250], "leave --on out"),
    "own windows that are none": (["--on", "probes"], "give heldout or calibration"),
    "auto": (["--windows", "auto"], "--windows is auto"),
    "a limit that none can be": (["--max-probe-delta", "-1"], "--max-probe-delta is -1"),
    "a column that is not there": (["--window", 250, "--column", "none"], "no column 'none'"),
    "a confidence that is none": (["--confidence", "1"], "--confidence is 1"),
    "another gate": (["--gate", "guess"], "--gate is 'guess'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_one_line_before_the_load(run_cli, folder, monkeypatch, case):
    arguments, says = REFUSED[case]
    monkeypatch.setattr("indexcache.commands.eval.load", lambda *_: pytest.fail("the model was loaded"))
    code, out, err = run_cli("eval", folder, *arguments, "-q")
    assert (code, out, len(lines(err))) == (2, "", 1), err
    assert says in err


def test_beyond_the_models_positions_on_request(run_cli, folder, measured):
    measured()
    code, _, err = run_cli("eval", folder, "--window", 520, "--windows", 2, "--beyond-positions", "-q")
    assert code == 0
    assert "warning: windows of 520 tokens are longer than the model's 512 positions" in err


class TestSettings:
    """Where options are silent, the plan says it; nothing that it says of its text holds for another one."""

    @pytest.fixture
    def plan(self, probed):
        plan = read_plan(probed)
        named = {"dataset": "acme/books", "subset": "en", "split": "test", "column": "page", "revision": "c1"}
        return plan.model_copy(update={"tokens": plan.tokens.model_copy(update=named)})

    def test_the_plans_own_windows_by_default(self, plan):
        settings = eval_settings(plan, "heldout", False, {"max_delta": 0.1})
        assert (settings.text, settings.with_probes, settings.gate.confidence) == (None, False, 0.95)
        assert eval_settings(plan, "heldout", False, {"beyond_positions": True}).text is None

    def test_a_length_alone_leaves_the_plans_text(self, plan):
        text = eval_settings(plan, "heldout", False, {"window": 300}).text
        assert (text.length, text.count) == (300, 3)
        assert vars(text.source) == {
            "dataset": "acme/books",
            "subset": "en",
            "split": "test",
            "column": "page",
            "revision": "c1",
        }

    def test_another_split_of_the_plans_text(self, plan):
        source = eval_settings(plan, "heldout", False, {"dataset_split": "train", "windows": 5}).text.source
        assert (source.dataset, source.split, source.column) == ("acme/books", "train", "page")

    def test_another_text_takes_nothing_of_the_plans(self, plan):
        source = eval_settings(plan, "heldout", False, {"dataset": "acme/code", "dataset_subset": "c"}).text.source
        assert vars(source) == {
            "dataset": "acme/code",
            "subset": "c",
            "split": None,
            "column": None,
            "revision": None,
        }

    def test_a_plan_without_held_out_windows_or_probes_gives_no_number(self, plan):
        tokens = plan.tokens.model_copy(update={"heldout_windows": 0, "probes": 0})
        settings = eval_settings(plan.model_copy(update={"tokens": tokens}), "heldout", True, {"window": 300})
        assert (settings.text.count, settings.probes) == (16, 4)

    def test_own_and_other_windows_at_once_are_refused(self, plan):
        with pytest.raises(SettingError, match="other windows were asked for"):
            eval_settings(plan, "calibration", False, {"dataset": "acme/code"})
