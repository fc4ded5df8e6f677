"""What the curve of a plan shows, as numbers: origins, in sample and held out."""

from pathlib import Path

import pytest

from indexcache.pattern import Pattern
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import (
    DistilledLosses,
    DistilledRecord,
    DistilledSegment,
    MeasuredPattern,
    StudentsRecord,
)
from indexcache.search.report.series import Point, series

SOURCE = Path(__file__).parents[2] / "assets" / "plan-v3.json"


@pytest.fixture
def plan():
    return read_plan(SOURCE)


def joint(plan):
    students = StudentsRecord(count=9, steps=50, windows_a_step=4, rows=128, windows=4)
    return plan.model_copy(update={"search": plan.search.model_copy(update={"students": students})})


def distilled(plan, pattern, delta):
    """``plan`` as if its indexers had been distilled for ``pattern``."""
    full = plan.heldout.baseline_loss
    measured = [
        MeasuredPattern(
            kept=pattern.kept,
            pattern=str(pattern),
            loss=full + increase,
            delta=increase,
            standard_error=0.01,
            low=increase - 0.02,
            high=increase + 0.03,
        )
        for increase in (5 * delta, delta)
    ]
    losses = DistilledLosses(baseline_loss=full, before=measured[0], after=measured[1])
    segment = DistilledSegment(
        layer=0, last_layer=7, written=True, learning_rate=None, curve=[],
        divergence_before=None, divergence_after=None,
    )  # fmt: skip
    record = DistilledRecord(
        source="source", source_revision=None, source_weights_sha256="0" * 64, source_plan_sha256="0" * 64,
        dataset="text", windows=1, tokens=1, steps=1, windows_a_step=1, rows=1, seed=0, learning_rate=None,
        segments=[segment], calibration=losses, heldout=losses,
    )  # fmt: skip
    result = plan.result.model_copy(update=measured[1].model_dump())
    heldout = plan.heldout.model_copy(update={"plan": measured[1]})
    return plan.model_copy(update={"distilled": record, "result": result, "heldout": heldout})


def by_name(plan):
    return {part.name: part for part in series(plan)}


def test_a_search_gives_its_steps_and_baselines(plan):
    measured = by_name(plan)
    assert next(iter(measured)) == "searched"
    steps = plan.search.steps
    assert [point.kept for point in measured["searched"].points] == [step.kept for step in steps]
    assert measured["searched"].points[0] == Point(steps[0].kept, steps[0].delta, steps[0].low, steps[0].high)
    heldout = measured["searched, held out"]
    assert (heldout.origin, heldout.is_held_out) == ("searched", True)
    assert heldout.points[0].increase == plan.heldout.plan.delta
    assert measured["uniform interleaving, held out"].points[0].increase == plan.heldout.uniform.delta


def test_an_older_plan_has_standard_errors_for_ends(plan):
    step = plan.search.steps[0].model_copy(update={"low": None, "high": None, "standard_error": 0.5})
    older = plan.model_copy(update={"search": plan.search.model_copy(update={"steps": [step]})})
    point = by_name(older)["searched"].points[0]
    assert (point.low, point.high) == (step.delta - 0.5, step.delta + 0.5)


def test_a_joint_search_measures_uniform_distilled_too(plan):
    measured = by_name(joint(plan))
    assert {"searched jointly", "uniform, distilled", "searched jointly, held out"} <= measured.keys()
    assert not {"searched", "uniform interleaving"} & measured.keys()


@pytest.mark.parametrize(
    ("of", "pattern", "name"),
    [
        (lambda plan: plan, None, "distilled after search"),
        (joint, None, "searched jointly, distilled"),
        (lambda plan: plan, Pattern("FFSSFSSS"), "given pattern, distilled"),
        (lambda plan: plan, Pattern.uniform(8, 4), "uniform, distilled"),
    ],
)
def test_a_distilled_pattern_is_named_after_where_it_comes_from(plan, of, pattern, name):
    source = of(plan)
    measured = by_name(distilled(source, pattern or source.pattern, 0.1))
    assert (measured[name].points[-1].increase, measured[f"{name}, held out"].points[0].low) == (0.1, 0.1 - 0.02)
    before = measured.get("searched, held out")
    searched_before = pattern is None and of is not joint
    assert (before is not None and before.points[0].increase == 0.5) == searched_before
