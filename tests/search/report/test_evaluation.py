"""Checks on probes and on other windows: how they are kept beside a plan, and how its report tells them."""

import json

import pytest

from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import HeldOutRecord, MeasuredPattern, ProbeRecord, ProbeScores, ProbesRecord
from indexcache.search.report.checks import (
    Check,
    CheckRecord,
    ProbesCheck,
    UnseenCheck,
    check_file,
    checks_of,
    plan_sha256,
    with_check,
    with_unseen_check,
)
from indexcache.search.report.pages import render

HOW = {
    "when": "2026-11-26T00:00:00Z",
    "model": "m",
    "device": "cpu",
    "dtype": "float32",
    "versions": {},
    "confidence": 0.95,
    "gate": "interval",
}


@pytest.fixture
def plan(searched):
    return read_plan(searched)


@pytest.fixture
def path(tmp_path):
    return check_file(tmp_path / "plan.json")


def losses(roles, loss=2.5):
    def measured(roles):
        delta, kept = loss - 2.0, roles.count("F")
        return MeasuredPattern(
            kept=kept, pattern=roles, loss=loss, delta=delta, standard_error=0.1, low=delta - 0.2, high=delta + 0.3
        )

    return HeldOutRecord(baseline_loss=2.0, plan=measured(roles), uniform=measured("F" * len(roles)))


def check(plan, loss=2.5):
    return Check(windows=4, losses=losses(plan.result.pattern, loss), max_delta=None, passed=None, **HOW)


def probes(plan, passed=None, limit=None, roles=None):
    def record(kind):
        scores = {name: ProbeScores(loss=1.5, accuracy=0.5) for name in ("full", "plan", "uniform")}
        return ProbeRecord(kind=kind, probes=3, **scores, delta=0.25, standard_error=0.1, low=-0.125, high=0.625)

    scores = ProbesRecord(pattern=roles or plan.result.pattern, kinds=[record("recall")], all=record("all"))
    return ProbesCheck(scores=scores, max_probe_delta=limit, passed=passed, **HOW)


def unseen(plan, length=96, dataset="books", loss=2.5, **more):
    source = {"subset": None, "split": None, "column": None, "revision": None} | more
    fields = dict(check(plan, loss)) | source | {"dataset": dataset, "length": length, "sha256": "0" * 64}
    return UnseenCheck(**{"probes": None, **fields})


class TestFile:
    def test_keeps_the_latest_of_each_length_and_text(self, plan, path):
        measured = [
            unseen(plan, 96),
            unseen(plan, 128),
            unseen(plan, 96, split="test"),
            unseen(plan, 96, loss=2.25),
        ]
        for one in measured:
            path.write_text(with_unseen_check(plan, path, one).as_json())
        others = checks_of(plan, path)[0].others
        assert [(one.length, one.split, one.losses.plan.loss) for one in others] == [
            (128, None, 2.5),
            (96, "test", 2.5),
            (96, None, 2.25),
        ]

    def test_a_check_without_probes_leaves_those_that_are_there(self, plan, path):
        path.write_text(with_check(plan, path, "heldout", check(plan), probes(plan)).as_json())
        path.write_text(with_unseen_check(plan, path, unseen(plan)).as_json())
        path.write_text(with_check(plan, path, "calibration", check(plan)).as_json())
        record, _ = checks_of(plan, path)
        assert record.probes == probes(plan)
        assert (len(record.others), record.heldout, record.calibration) == (1, check(plan), check(plan))

    def test_one_that_was_written_before_there_were_others_is_read(self, plan, path):
        record = CheckRecord(plan_sha256=plan_sha256(plan), pattern=plan.result.pattern, heldout=check(plan))
        document = json.loads(record.as_json())
        del document["probes"], document["others"], document["heldout"]["confidence"], document["heldout"]["gate"]
        path.write_text(json.dumps(document))
        record, left_out = checks_of(plan, path)
        assert (left_out, record.others, record.probes, record.heldout.confidence) == ("", [], None, None)
        assert "Measured again" in render(plan, checks=record)["report.md"]

    @pytest.mark.parametrize("where", ["probes", "others", "probes of others"])
    def test_another_patterns_measurements_are_refused(self, plan, path, where):
        other = "F" * len(plan.result.pattern)
        parts = {
            "probes": {"probes": probes(plan, roles=other)},
            "others": {"others": [unseen(plan).model_copy(update={"losses": losses(other)})]},
            "probes of others": {"others": [unseen(plan, probes=probes(plan, roles=other))]},
        }
        record = CheckRecord(plan_sha256=plan_sha256(plan), pattern=plan.result.pattern)
        path.write_text(record.model_copy(update=parts[where]).as_json())
        assert "pattern is not pattern" in checks_of(plan, path)[1]


class TestReport:
    def record(self, plan, **parts):
        return CheckRecord(plan_sha256=plan_sha256(plan), pattern=plan.result.pattern, **parts)

    @pytest.mark.parametrize("name", ["report.md", "report.html"])
    def test_tells_probes_and_whether_they_passed(self, plan, name):
        text = render(plan, checks=self.record(plan, probes=probes(plan, False, 0.5)))[name]
        assert "Measured again" in text
        assert "Probes of 48 tokens. On all of them 0.5 was allowed: failed." in text
        assert "+0.2500 (-0.1250 to 0.6250)" in text
        assert "On other windows" not in text

    @pytest.mark.parametrize("name", ["report.md", "report.html"])
    def test_tells_other_windows_with_their_text(self, plan, name):
        others = [unseen(plan, 4096, "books", subset="en", probes=probes(plan)), unseen(plan, 96, "code")]
        text = render(plan, checks=self.record(plan, others=others))[name]
        assert "On other windows" in text
        assert "4 of 4,096 tokens" in text
        assert "books, en" in text
        assert "Probes of 4,096 tokens. Text: books, en." in text
        assert "+0.5000 (95 %: 0.3000 to 0.8000)" in text
        assert "Measured again" not in text

    def test_a_texts_name_cannot_become_markup(self, plan):
        evil = "<script>alert(1)</script>|`x`[x](javascript:1)\n# heading"
        others = [unseen(plan, 96, evil, probes=probes(plan))]
        files = render(plan, checks=self.record(plan, others=others))
        assert "<script>alert" not in files["report.html"]
        assert "<script" not in files["report.md"]
        assert "\n# heading" not in files["report.md"]
        assert "|[x]" not in files["report.md"]

    @pytest.mark.parametrize("name", ["report.md", "report.html"])
    def test_says_where_the_windows_are_shorter_than_the_model_takes(self, plan, name):
        assert (plan.tokens.window, plan.model.positions) == (48, 512)
        said = " ".join(render(plan)[name].split())
        assert "made on windows of 48 tokens; the model takes 512: " in said
        for positions in (None, 48, 40):
            model = plan.model.model_copy(update={"positions": positions})
            assert "Short windows" not in render(plan.model_copy(update={"model": model}))[name]
