"""Memory stays flat over hundreds of evaluations."""

import itertools

import psutil
import pytest
from random_models import build

from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.states.paths import PathMemory
from indexcache.dsa.model.tail import Window
from indexcache.evaluate import Request
from indexcache.pattern import Pattern
from indexcache.search.cost import LayerCount, Shape
from indexcache.search.run.journal import Journal
from indexcache.search.run.records import JournalContent, losses_record
from indexcache.search.run.replay import ReplayedEvaluator

SITES, WINDOWS, LENGTH = 6, 4, 40


@pytest.mark.reliability("R25")
def test_over_500_evaluations(cases, full, tmp_path):
    model = build("glm_moe_dsa")
    windows = [
        Window(("calibration", window), [(7 * window + 13 * place) % 4096 for place in range(LENGTH)])
        for window in range(WINDOWS)
    ]
    memory = PathMemory(range(SITES), WINDOWS, 1 << 20)
    evaluator = Evaluator(PatternLosses(model, range(SITES), blind=16, memory=memory), {"calibration": windows})
    journal = Journal(tmp_path / "journal.jsonl", {}, None)
    shape = Shape(range(SITES), SITES, WINDOWS, 0)

    def write(group, last_token, numbers, patterns, sums):
        journal.append(losses_record(0.0, group, last_token, numbers, list(map(str, patterns)), sums))

    patterns = [Pattern("F" + "".join(roles)) for roles in itertools.product("FS", repeat=SITES - 1)]
    sizes = []
    for number in range(550 if full else 120):
        if number % len(patterns) == 0:  # all known by now: begin anew, as a search of other windows would
            count = LayerCount(shape)
            measure = ReplayedEvaluator(JournalContent(), count, evaluator, write)
        pattern = patterns[number % len(patterns)]
        measure([Request([pattern], range(WINDOWS))])
        measure.follow(pattern)
        sizes.append(psutil.Process().memory_info().rss)
    journal.close()
    before, after = max(sizes[30:50]), max(sizes[-20:])
    cases.check(after < 1.01 * before, f"{before / 1e6:.1f} MB became {after / 1e6:.1f} MB")
