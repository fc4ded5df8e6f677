"""What the journal does not hold is measured in one sweep, piece by piece, and written down by request."""

import pytest
from loss_tables import LossTable

from indexcache.evaluate import Request, WindowLoss
from indexcache.pattern import Pattern
from indexcache.search.cost import LayerCount, Shape
from indexcache.search.run.records import JournalContent
from indexcache.search.run.replay import MissingLoss, ReplayedEvaluator

SITES, WINDOWS = 5, 4
FULL = Pattern.all_full(SITES)


class Streamed:
    """A model that is asked for everything at once, and remembers what it was asked for."""

    def __init__(self):
        self.table, self.asked = LossTable(0, SITES, WINDOWS), []

    def sweep(self, requests):
        self.asked.append(list(requests))
        return [losses_of(self.table, request) for request in requests]

    def pieces(self, requests):
        return [requests]

    def follow(self, pattern):
        """Nothing is kept."""


def losses_of(table, request):
    return [
        tuple(WindowLoss(table.loss(pattern, window)) for window in request.windows)
        for pattern in request.patterns
    ]


def replayed(content, model=None, write=lambda *record: None):
    return ReplayedEvaluator(content, LayerCount(Shape(range(SITES), SITES, WINDOWS, 0)), model, write)


def test_requests_of_one_call_reach_the_model_together_and_are_written_apart():
    requests = [Request([FULL.share(1)], [0, 1]), Request([FULL.share(2), FULL.share(3)], range(WINDOWS))]
    model, written = Streamed(), []
    measure = replayed(JournalContent(), model, lambda *record: written.append(record))
    assert repr(measure(requests)) == repr([losses_of(model.table, request) for request in requests])
    assert [len(asked) for asked in model.asked] == [2]
    assert measure.count.sweeps == 1
    assert [(list(windows), list(patterns)) for _, _, windows, patterns, _ in written] == [
        ([0, 1], [FULL.share(1)]),
        ([0, 1, 2, 3], [FULL.share(2), FULL.share(3)]),
    ]


def test_only_what_is_missing_is_measured_but_all_is_counted():
    content, model = JournalContent(), Streamed()
    replayed(content, model)([Request([FULL.share(1)], [0, 1])])
    measure = replayed(content, model)
    measure([Request([FULL.share(1), FULL.share(2)], range(WINDOWS))])
    missing = {
        (pattern, window) for asked in model.asked[1] for pattern in asked.patterns for window in asked.windows
    }
    assert missing == {(FULL.share(2), 0), (FULL.share(2), 1)} | {
        (pattern, window) for pattern in (FULL.share(1), FULL.share(2)) for window in (2, 3)
    }
    assert (measure.window_evaluations, measure.count.sweeps) == (8, 1)
    # All of it is known by now.
    measure([Request([FULL.share(1)], range(WINDOWS))])
    assert len(model.asked) == 2


def test_without_a_model_what_is_missing_is_an_error():
    with pytest.raises(MissingLoss):
        replayed(JournalContent())([Request([FULL], [0])])
