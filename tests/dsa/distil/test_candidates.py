"""Patterns measured with students of their segments: as if these were put into the model, whatever came before."""

import pytest
import torch
from random_models import LAYERS, build

from indexcache.dsa.distil import candidates
from indexcache.dsa.distil.candidates import StudentEvaluator, Students, single_sites
from indexcache.dsa.distil.losses import DistilledLosses
from indexcache.dsa.distil.segments import Segment
from indexcache.dsa.distil.train import RATES, Settings, collect, put, train
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.states.paths import PathMemory
from indexcache.dsa.model.tail import Window
from indexcache.evaluate import CALIBRATION, Request
from indexcache.pattern import Pattern
from indexcache.search.cost import LayerCount, Shape

SITES = tuple(range(LAYERS))
IDS = torch.randint(0, 4000, (3, 41), generator=torch.Generator().manual_seed(4)).tolist()
WINDOWS = [Window((CALIBRATION, number), ids) for number, ids in enumerate(IDS)]
SETTINGS = Settings(steps=6, rows=16, windows_a_step=2, learning_rate=0.05)
FULL = Pattern.all_full(LAYERS)


@pytest.fixture(scope="module")
def model():
    return build("glm_moe_dsa")


@pytest.fixture(scope="module")
def stored(model):
    return collect(model, SITES, IDS, single_sites(LAYERS), SETTINGS)


def evaluator(model, stored, memory=False):
    students = Students(model, stored, SETTINGS)
    settings = {"memory": PathMemory(SITES, len(WINDOWS), 1 << 30)} if memory else {}
    losses = DistilledLosses(model, SITES, students.parameters, **settings)
    return StudentEvaluator(students, losses, {CALIBRATION: WINDOWS}), students, losses


def test_each_pattern_is_measured_with_the_students_of_its_segments(model, stored):
    patterns = [FULL, Pattern("FFSSFF"), Pattern("FSSFFS"), Pattern("FSSSSS")]
    measured, students, losses = evaluator(model, stored)
    full, *rest = measured(patterns, CALIBRATION)
    losses.switch.remove()
    assert sum(loss.divergence for loss in full) == 0, "all full is the model as it is"
    plain = PatternLosses(model, SITES)
    for pattern, losses_of in zip(patterns[1:], rest, strict=True):
        segments = [Segment(*ends) for ends in pattern.serving]
        backs = [
            put(model, segment.site, train(model, stored, segment, SETTINGS).parameters) for segment in segments
        ]
        expected = [window[0] for window in plain.measure([pattern], WINDOWS)]
        for back in backs:
            back()
        assert [loss.loss for loss in losses_of] == pytest.approx(expected, rel=1e-6)
        assert [loss.loss for loss in losses_of] != pytest.approx(
            [window[0] for window in plain.measure([pattern], WINDOWS)], rel=1e-6
        ), "the students change something"
    assert set(students.parameters) == {Segment(1, 4), Segment(0, 3), Segment(4, 6), Segment(0, 6)}


def test_kept_states_are_of_the_same_students(model, stored):
    """One pattern after the other, each starting from kept states where it may, as it is counted."""
    order = [FULL, Pattern("FFFSFF"), Pattern("FFFSSF"), Pattern("FFFFSF"), Pattern("FFFSSS"), Pattern("FFSSSF")]
    with_memory, _, remembering = evaluator(model, stored, memory=True)
    count = LayerCount(Shape(SITES, LAYERS, len(WINDOWS), 0, distils=True))
    remembered = []
    for pattern in order:
        count.sweep([Request([pattern], range(len(WINDOWS)))])
        remembered += with_memory([pattern], CALIBRATION)
    remembering.switch.remove()
    assert remembering.layer_runs == count.layer_windows
    assert remembering.layer_runs < len(order) * LAYERS * len(WINDOWS), "states were used"
    without, _, forgetting = evaluator(model, stored)
    expected = without(order, CALIBRATION)
    forgetting.switch.remove()
    for before, after in zip(remembered, expected, strict=True):
        assert [loss[:2] for loss in before] == [loss[:2] for loss in after]


def test_students_are_made_once_each_and_do_not_depend_on_their_order(model, stored, monkeypatch):
    made = []

    def counted(model, stored, segment, settings, on_step):
        made.append(segment)
        return train(model, stored, segment, settings, on_step)

    monkeypatch.setattr(candidates, "train", counted)
    segments = [Segment(1, 4), Segment(0, 3)]
    forwards, backwards = Students(model, stored, SETTINGS), Students(model, stored, SETTINGS)
    forwards.make(segments)
    forwards.make([*segments, Segment(4, 6)])
    assert sorted(made) == sorted([*segments, Segment(4, 6)])
    for segment in reversed(segments):
        backwards.make([segment])
    for segment in segments:
        for name, value in forwards.parameters[segment].items():
            assert torch.equal(value, backwards.parameters[segment][name])


def test_one_learning_rate_is_probed_for_all(model, stored, monkeypatch):
    rates = []

    def watched(model, stored, segment, settings, on_step):
        rates.append(settings.learning_rate)
        return train(model, stored, segment, settings, on_step)

    monkeypatch.setattr(candidates, "train", watched)
    Students(model, stored, Settings(steps=2, rows=16, windows_a_step=2)).make([Segment(0, 2), Segment(1, 3)])
    assert len(set(rates)) == 1
    assert rates[0] in RATES
