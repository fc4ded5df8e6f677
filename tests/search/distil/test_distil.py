"""What distilled indexers change, on losses from a formula: which stay, what the plan says, what passes."""

from functools import partial
from pathlib import Path

import pytest

from indexcache.errors import PlanError
from indexcache.evaluate import CALIBRATION, HELD_OUT, WindowLoss
from indexcache.pattern import DistilledPattern, Pattern
from indexcache.search.distil.findings import alone, measure_distilled, measure_segments
from indexcache.search.distil.record import Training, distilled_plan, hold_distilled
from indexcache.search.gate import Gate
from indexcache.search.goal import Goal, Method
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import check_plan, read_plan, write_plan
from indexcache.search.plan.older import old_order, old_patterns
from indexcache.search.report.pages import render
from indexcache.search.search import Problem

SOURCE = Path(__file__).parents[2] / "assets" / "plan-v3.json"
PATTERN, LABELS = Pattern("FFSSFSSS"), 47
# Sites whose distilled indexer is better than the old one; the others' is worse.
BETTER = {4}
HELD = Gate("interval", 0.95)


def cost(pattern, better):
    """A shared site costs a tenth of its distance to its source; half or twice of it where that is distilled."""
    distilled = pattern.distilled if isinstance(pattern, DistilledPattern) else frozenset()
    total = 0.0
    for site, source in enumerate(pattern.sources()):
        factor = (0.5 if source in better else 2.0) if source in distilled else 1.0
        total += 0.1 * factor * (site - source)
    return total


@pytest.fixture
def evaluate():
    """Losses from that formula, and how many sweeps they took."""
    sweeps = []

    def measured(requests, better=frozenset(BETTER)):
        sweeps.append(requests)
        return [
            [
                tuple(
                    WindowLoss(
                        LABELS * (3.0 + 0.01 * window + cost(pattern, better) * (1 + 0.1 * window)),
                        LABELS * cost(pattern, better),
                        agreement=LABELS,
                    )
                    for window in request.windows
                )
                for pattern in request.patterns
            ]
            for request in requests
        ]

    measured.sweeps = sweeps
    return measured


def problem_of(evaluate):
    documents = {CALIBRATION: range(6), HELD_OUT: range(4)}
    labels = {name: [LABELS] * len(numbers) for name, numbers in documents.items()}
    return Problem(evaluate, labels, documents, 8, Goal(keep=1.0), Method())


def findings_of(evaluate, pattern=PATTERN):
    problem = problem_of(evaluate)
    return measure_distilled(problem, pattern, measure_segments(problem, pattern.serving), 6)


def plan_of(findings, pattern=PATTERN):
    source = read_plan(SOURCE)
    training = Training(
        "text", 6, 20, 4, 32, 0, None, {1: 0.005, 4: 0.005}, {1: ((20, 0.5),), 4: ((10, 0.7), (20, 0.2))}
    )
    model = source.model.model_copy(update={"id": "new", "weights_sha256": "f" * 64})
    return distilled_plan(source, model, source.run, pattern, training, findings, 0.95, "windows.tokens")


class TestFindings:
    def test_a_segment_alone_leaves_every_other_site_full(self):
        assert str(alone(8, 1, 4)) == "FFSSFFFF"
        assert str(alone(8, 4, 8)) == "FFFFFSSS"

    def test_what_came_nearer_is_written_and_nothing_else(self, evaluate):
        findings = findings_of(evaluate)
        by_site = {trial.site: (trial.before, trial.after) for trial in findings.trials}
        assert by_site[1] == pytest.approx((0.3, 0.6))
        assert by_site[4] == pytest.approx((0.6, 0.3))
        assert findings.written == {4}

    def test_after_is_with_those_alone(self, evaluate):
        findings = findings_of(evaluate)
        # 0.3 of the segment that keeps its indexer, half of 0.6 of the other.
        assert findings.heldout.after.mean("divergence") == pytest.approx(0.6)
        assert findings.heldout.before.mean("divergence") == pytest.approx(0.9)

    def test_two_sweeps_do_it(self, evaluate):
        findings_of(evaluate)
        assert len(evaluate.sweeps) == 2


class TestPlan:
    def test_it_reads_back_and_says_what_was_measured(self, evaluate, tmp_path):
        plan = plan_of(findings_of(evaluate))
        write_plan(tmp_path / "plan.json", plan)
        assert read_plan(tmp_path / "plan.json") == plan
        assert plan.heldout.plan == plan.distilled.heldout.after
        assert plan.result.loss == plan.distilled.calibration.after.loss
        assert [segment.written for segment in plan.distilled.segments] == [False, False, True]
        assert [segment.last_layer for segment in plan.distilled.segments] == [0, 3, 7]

    def test_a_plan_that_is_not_distilled_is_the_file_that_it_was(self):
        assert "distilled" not in read_plan(SOURCE).as_json()

    def test_nothing_can_be_cut_from_it(self, evaluate):
        with pytest.raises(PlanError, match="distilled for its own pattern"):
            cut(plan_of(findings_of(evaluate)), keep=0.5)

    def test_a_search_may_start_from_it(self, evaluate):
        plan, source = plan_of(findings_of(evaluate)), read_plan(SOURCE)
        assert old_order(plan, range(8)) == old_order(source, range(8))
        assert old_patterns(plan)[PATTERN.kept] == PATTERN

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (
                lambda document: document["result"].update(loss=1.0, delta=1.0 - 3.025),
                "distilled.calibration.after",
            ),
            (lambda document: document["distilled"]["segments"].pop(), "full sites"),
            (
                lambda document: [part.update(written=False) for part in document["distilled"]["segments"]],
                "none that",
            ),
            (
                lambda document: document["distilled"]["heldout"]["after"].update(delta=0.5),
                "distilled.heldout.after",
            ),
            (lambda document: document.update(heldout=None), "heldout.plan is not"),
        ],
    )
    def test_parts_that_contradict_each_other_are_refused(self, evaluate, change, word):
        document = plan_of(findings_of(evaluate)).model_dump()
        change(document)
        with pytest.raises(PlanError, match=word):
            check_plan(document, "the plan")


class TestGate:
    def test_a_loss_that_fell_below_the_limit_passes(self, evaluate):
        plan = plan_of(findings_of(evaluate))
        assert hold_distilled(plan, HELD, 2.0) is None
        assert hold_distilled(plan, HELD, None) is None

    def test_one_above_the_limit_does_not(self, evaluate):
        assert "above --max-delta 0.01" in hold_distilled(plan_of(findings_of(evaluate)), HELD, 0.01)

    def test_one_that_did_not_fall_never_does(self, evaluate):
        """The segments' divergence fell, and yet the whole loss did not."""
        plan = plan_of(findings_of(evaluate))
        losses = plan.distilled.heldout
        worse = losses.model_copy(update={"after": losses.before})
        plan = plan.model_copy(update={"distilled": plan.distilled.model_copy(update={"heldout": worse})})
        assert "did not lower" in hold_distilled(plan, HELD, 5.0)


class TestReport:
    def test_the_pair_stands_in_text_and_picture(self, evaluate):
        plan = plan_of(findings_of(evaluate))
        files = render(plan)
        for name in ("report.md", "report.html"):
            assert "Distilled indexers" in files[name]
            assert "before distilling" in files[name]
            assert "windows of text" in files[name], "what was learned from"
        assert ">given pattern, distilled<" in files["curve.svg"]

    def test_steps_of_a_search_lead_only_where_it_chose_the_pattern(self, evaluate):
        source, helps = read_plan(SOURCE), partial(evaluate, better=frozenset(range(8)))
        chosen = plan_of(findings_of(helps, source.pattern), source.pattern)
        assert "steps decided" in render(chosen)["report.md"]
        given = render(plan_of(findings_of(evaluate)))["report.md"]
        assert "steps decided" not in given
        assert "The search did not pick this pattern, so its steps say nothing" in given

    def test_a_uniform_pattern_is_called_so(self, evaluate):
        pattern = Pattern.uniform(8, 2)
        trained = findings_of(evaluate, pattern)
        assert trained.written == {4}
        source = read_plan(SOURCE)
        training = Training("text", 6, 20, 4, 32, 0, 0.01, {0: 0.01, 4: 0.01}, {0: ((20, 0.5),), 4: ((20, 0.2),)})
        plan = distilled_plan(source, source.model, source.run, pattern, training, trained, 0.95, "windows.tokens")
        assert "uniform, distilled" in render(plan)["curve.svg"]
