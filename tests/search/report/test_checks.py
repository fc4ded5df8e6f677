"""What eval measured stays beside the plan it is of, and in its report."""

import json
import shutil

import pytest

from indexcache.errors import PlanError
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import HeldOutRecord, MeasuredPattern
from indexcache.search.report.checks import Check, CheckRecord, check_file, checks_of, plan_sha256, with_check
from indexcache.search.report.pages import render


@pytest.fixture
def folder(searched, tmp_path):
    return shutil.copytree(searched, tmp_path / "run")


def check(plan, pattern=None, loss=2.5):
    roles = pattern or plan.result.pattern
    kept = roles.count("F")

    def measured(roles):
        return MeasuredPattern(kept=kept, pattern=roles, loss=loss, delta=loss - 2.0, standard_error=None)

    return Check(
        when="2026-11-26T00:00:00Z",
        model="m",
        device="cpu",
        dtype="float32",
        windows=4,
        losses=HeldOutRecord(baseline_loss=2.0, plan=measured(roles), uniform=measured("F" * 8)),
        max_delta=0.1,
        passed=False,
        versions={},
    )


class TestFile:
    def test_each_group_keeps_its_latest(self, folder):
        plan, path = read_plan(folder), check_file(folder / "plan.json")
        for group, loss in (("heldout", 2.1), ("calibration", 2.2), ("heldout", 2.3)):
            path.write_text(with_check(plan, path, group, check(plan, loss=loss)).as_json())
        record, left_out = checks_of(plan, path)
        assert (record.heldout.losses.plan.loss, record.calibration.losses.plan.loss) == (2.3, 2.2)
        assert left_out == ""

    def test_those_of_another_plan_are_left_out_and_replaced(self, folder):
        plan, path = read_plan(folder), check_file(folder / "plan.json")
        other = cut(plan, keep=0.25)
        path.write_text(with_check(other, path, "heldout", check(other)).as_json())
        record, left_out = checks_of(plan, path)
        assert record is None
        assert "another plan" in left_out
        assert with_check(plan, path, "calibration", check(plan)).heldout is None

    def test_a_file_that_is_somebodys_own_is_not_replaced(self, folder):
        plan, path = read_plan(folder), check_file(folder / "plan.json")
        for content in ("", "[]", "{}", '{"schema_version": 1}', "not JSON"):
            path.write_text(content)
            with pytest.raises(PlanError):
                with_check(plan, path, "heldout", check(plan))
            assert checks_of(plan, path)[0] is None

    def test_losses_of_another_pattern_are_no_record_of_this_one(self, folder):
        plan, path = read_plan(folder), check_file(folder / "plan.json")
        record = CheckRecord(plan_sha256=plan_sha256(plan), pattern=plan.result.pattern, heldout=check(plan))
        document = json.loads(record.as_json())
        document["heldout"]["losses"]["plan"]["pattern"] = "F" * 8
        path.write_text(json.dumps(document))
        assert "not what eval writes" in checks_of(plan, path)[1]


class TestHeadline:
    def lead(self, plan, checks=None):
        return render(plan, checks=checks)["report.md"].split("\n\n")[4]

    def test_it_is_of_held_out_windows_only_where_this_pattern_was_measured_on_them(self, folder):
        plan = read_plan(folder)
        assert "Loss increase, held out" in self.lead(plan)
        other = cut(plan, keep=0.25)
        assert "Loss increase, in sample" in self.lead(other)
        forged = other.model_copy(update={"heldout": plan.heldout})
        assert "Loss increase, in sample" in self.lead(forged)
        checks = CheckRecord(plan_sha256=plan_sha256(other), pattern=other.result.pattern, heldout=check(other))
        assert "Loss increase, held out: +0.5000" in self.lead(other, checks)


class TestEval:
    def lines(self, text):
        return [line for line in text.splitlines() if line.startswith("warning:")]

    def test_what_was_measured_is_in_the_report(self, run_cli, folder):
        code, out, err = run_cli("eval", folder, "--json", "-q")
        assert (code, err) == (0, "")
        measured = json.loads(out)
        assert run_cli("eval", folder, "--on", "calibration", "--max-delta", "0", "-q")[0] in (0, 1)
        record, _ = checks_of(read_plan(folder), folder / "evaluation.json")
        assert record.heldout.losses.plan.loss == measured["plan"]["loss"]
        assert record.calibration.max_delta == 0
        for report in ("report.md", "report.html"):
            text = (folder / report).read_text()
            assert "Measured again" in text
            assert "6 calibration" in text
            assert f"{measured['plan']['loss']:.4f}" in text
        before = (folder / "report.html").read_text()
        assert run_cli("report", folder)[0] == 0
        assert (folder / "report.html").read_text() == before

    def test_a_cut_gets_its_held_out_figures_from_eval(self, run_cli, folder):
        code, out, _ = run_cli("cut", folder, "--keep", "0.25")
        path = out.strip()
        assert code == 0
        assert run_cli("report", path)[0] == 0
        report = folder / "plan-2of8-report.md"
        assert "Loss increase, in sample" in report.read_text()
        code, out, _ = run_cli("eval", path, "--json", "-q")
        text = " ".join(report.read_text().split())
        assert f"Loss increase, held out: {json.loads(out)['plan']['delta']:+.4f}" in text
        assert "On 4 windows of documents that the search did not see, measured by `indexcache eval`." in text

    def test_where_it_cannot_be_kept_the_result_is_printed_all_the_same(self, run_cli, folder):
        (folder / "evaluation.json").write_text("mine")
        code, out, err = run_cli("eval", folder, "--json", "-q")
        assert (code, "plan" in json.loads(out)) == (0, True)
        assert ["not kept" in line for line in self.lines(err)] == [True]
        assert (folder / "evaluation.json").read_text() == "mine"

    def test_a_folder_that_cannot_be_written_is_said_in_a_line(self, run_cli, folder, monkeypatch):
        from indexcache.system import files

        def full(*arguments):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(files, "_write_beside", full)
        code, out, err = run_cli("eval", folder, "--json", "-q")
        assert (code, "plan" in json.loads(out)) == (0, True)
        assert ["Read-only file system" in line for line in self.lines(err)] == [True]

    def test_report_says_that_another_plans_evaluation_is_left_out(self, run_cli, folder):
        assert run_cli("eval", folder, "-q")[0] == 0
        kept = (folder / "evaluation.json").read_text()
        assert run_cli("cut", folder, "--keep", "0.25", "--out", folder / "new.json")[0] == 0
        (folder / "new-evaluation.json").write_text(kept)
        code, _, err = run_cli("report", folder / "new.json")
        assert code == 0
        assert ["another plan" in line for line in self.lines(err)] == [True]
        assert "Measured again" not in (folder / "new-report.md").read_text()


class TestCut:
    @pytest.mark.parametrize(
        "wish", [{"keep": 1.0}, {"keep": 0.5}, {"keep": 1e-9}, {"max_delta": 0.0}, {"max_delta": 1e9}]
    )
    def test_what_is_written_is_read_back(self, run_cli, folder, wish):
        ((name, value),) = wish.items()
        out = folder / "new.json"
        code, _, err = run_cli("cut", folder, f"--{name.replace('_', '-')}", value, "--out", out)
        assert code == 0, err
        assert read_plan(out) == cut(read_plan(folder), **wish)

    @pytest.mark.parametrize("value", ["1e10", "1e300", "inf", "nan", "-1"])
    def test_an_increase_that_no_plan_can_hold_is_refused(self, run_cli, folder, value):
        code, _, err = run_cli("cut", folder, "--max-delta", value)
        assert code == 2
        assert "unexpected" not in err
        assert "e.g. 0.01" in err

    def test_a_plan_that_contradicts_itself_is_not_cut(self, folder):
        plan = read_plan(folder)
        wrong = plan.model_copy(update={"tokens": plan.tokens.model_copy(update={"labels": 3})})
        with pytest.raises(PlanError, match=r"tokens\.labels"):
            cut(wrong, keep=0.5)

    @pytest.mark.parametrize("name", ["evaluation.json", "timing.json", "x-evaluation.json", "x-bench.json"])
    def test_a_cut_never_takes_the_name_of_what_stands_beside_a_plan(self, run_cli, folder, name):
        code, _, err = run_cli("cut", folder, "--keep", "0.25", "--out", folder / name)
        assert (code, "no name for a plan" in err) == (2, True)
