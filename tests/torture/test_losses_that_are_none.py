"""NaN, infinity, errors and memory that runs out at each candidate are never picked and spoil no journal."""

import math
from dataclasses import replace

import pytest
import torch
from children import one_line, spread
from paper_model import PaperModel, without_a_model

from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.tail import Window
from indexcache.errors import MeasurementError
from indexcache.pattern import Pattern
from indexcache.search.goal import Goal, Method
from indexcache.search.search import Problem, run_search

pytestmark = pytest.mark.reliability("R10")

SITES, WINDOWS = 6, 8
NONE = {"NaN": math.nan, "+Inf": math.inf, "-Inf": -math.inf}
METHODS = {
    "fast": Method("fast", refine_rounds=3),
    "a warm start": Method("fast", order=(3, 1, 4, 2, 5)),
    "exact": Method("exact", refine_rounds=3),
    "blocks": Method("blocks", blocks=2, refine_rounds=3),
}
OVERLAP = [[1 / (1 + abs(a - b)) for a in range(SITES)] for b in range(SITES)]


def search(trouble, method, **wish):
    documents = {"calibration": range(WINDOWS), "heldout": range(WINDOWS)}
    layers = [10 * site for site in range(SITES)]
    labels = {name: [10] * WINDOWS for name in documents}
    goal = Goal(**(wish or {"keep": 0.34}))
    return run_search(
        Problem(PaperModel(trouble).sweep, labels, documents, SITES, goal, method, site_layers=layers)
    )


def what_is_wrong(trouble, method, wrong, **wish):
    """Whether a search picks something of which ``wrong`` holds; None if not.

    Where nothing else is left it may stop instead, if it names what it tried.
    """
    try:
        findings = search(trouble, method, **wish)
    except MeasurementError as error:
        return None if "; layers tried: " in str(error) else str(error)
    evaluations = [*(step.evaluation for step in [*findings.steps, *findings.swaps]), findings.chosen]
    faulty = [one for one in evaluations if wrong(one.pattern) or not one.finite]
    return [str(evaluation.pattern) for evaluation in faulty] or None


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("value", NONE)
def test_what_is_no_number_is_never_picked(how, value, cases):
    for site in range(1, SITES):
        for window in (None, 0, WINDOWS - 1):

            def trouble(call, pattern, number, site=site, window=window):
                wrong = not pattern.is_full(site) and (window is None or number == window)
                return NONE[value] if wrong else None

            for wish in ({"keep": 0.34}, {"keep": 0.67}, {"max_delta": 100.0}):
                wrong = what_is_wrong(
                    trouble, METHODS[how], lambda pattern, site=site: not pattern.is_full(site), **wish
                )
                cases.check(wrong is None, f"site {site}, window {window}, {wish}: {wrong}")


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("value", NONE)
def test_at_each_single_candidate(how, value, cases):
    seen = []
    search(lambda call, pattern, window: seen.append(pattern), METHODS[how])
    for one in [pattern for pattern in dict.fromkeys(seen) if pattern.kept < SITES]:

        def trouble(call, pattern, window, one=one):
            return NONE[value] if pattern == one else None

        wrong = what_is_wrong(trouble, METHODS[how], lambda pattern, one=one: pattern == one)
        cases.check(wrong is None, f"{one}: {wrong}")


def test_a_search_goes_on_while_any_candidate_is_a_number():
    for how in ("fast", "a warm start", "exact"):
        for site in range(1, SITES):
            findings = search(
                lambda call, pattern, window, s=site: None if pattern.is_full(s) else math.nan, METHODS[how]
            )
            assert findings.chosen.pattern.kept == 3


def test_a_race_won_by_what_turns_out_to_be_none_is_run_again():
    """Site 3 leads on the first windows, the others leave for it, and its last window is no number."""

    def trouble(call, pattern, window):
        if pattern.kept < SITES - 1:
            return None
        if not pattern.is_full(3):
            return math.nan if window == WINDOWS - 1 else 50.0
        return None if pattern.kept == SITES else 200.0

    assert not search(trouble, METHODS["fast"], keep=0.8).chosen.pattern.is_full(1)


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("value", NONE)
def test_if_none_is_a_number_the_layers_are_named(how, value):
    with pytest.raises(MeasurementError, match="layers tried: 10") as error:
        search(lambda call, pattern, window: NONE[value] if pattern.kept < SITES else None, METHODS[how])
    assert "sites" not in str(error.value)


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize("shape", [False, True])
def test_a_model_without_a_loss_of_its_own_is_refused(value, shape):
    calls = []

    def trouble(call, pattern, window):
        calls.append(window)
        # The second time is that of the noise floor, in another shape: all full's where the loss chooses.
        return NONE[value] if (len(calls) > WINDOWS) == shape and pattern.kept == SITES else None

    with pytest.raises(MeasurementError, match="the model's own loss"):
        search(trouble, replace(METHODS["exact"], objective="loss"))


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("a\nfault"),
        ValueError(),
        MeasurementError("out of memory on a window of 40 tokens"),
        OSError(5, "EIO"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_an_error_at_each_call_leaves_a_journal(fault, asked, paper, finished, cases, full, tmp_path, monkeypatch):
    model = without_a_model(monkeypatch, asked[1])
    assert paper(tmp_path / "counted")[0] == 0
    calls = model.calls
    for call in [1 + at for at in spread(calls, calls if full else 4)]:

        def trouble(now, pattern, window, call=call):
            if now == call:
                raise fault

        out = tmp_path / str(call)
        without_a_model(monkeypatch, asked[1], PaperModel(trouble))
        code, err = paper(out)
        again = without_a_model(monkeypatch, asked[1])
        resumed, said = paper(out)
        same = resumed == 0 and (out / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()
        rest = again.calls == calls - (call - 1)
        cases.check(
            code == 2 and one_line(err) and same and rest, f"call {call}: {code}: {err} then {resumed}: {said}"
        )


class Remembering:
    """Stands for a model's losses; runs out of memory in one of its calls, or whenever there are many rows."""

    streams = False
    memory = None
    layer_runs = 0

    def __init__(self, error, call=None, rows=10**9):
        self.error, self.call, self.rows, self.calls = error, call, rows, 0

    def compare_all(self, asked, last_token=False):
        self.calls += 1
        if self.calls == self.call or sum(len(one.patterns) * len(one.windows) for one in asked) > self.rows:
            raise self.error
        return [
            [[hash((str(pattern), window.name[1])) / 1e9 for pattern in one.patterns] for window in one.windows]
            for one in asked
        ]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_makes_the_sweeps_smaller(error, cases):
    patterns = [Pattern.from_full(SITES, [0, site]) for site in range(SITES)]
    groups = {"calibration": [Window(("calibration", number), [1, 2, 3]) for number in range(WINDOWS)]}
    expected = Evaluator(Remembering(error), groups, max_rows=12)(patterns, "calibration")
    calls = Remembering(error)
    Evaluator(calls, groups, max_rows=12)(patterns, "calibration")
    for call in range(1, calls.calls + 1):
        warnings = []
        measure = Evaluator(Remembering(error, call), groups, 12, on_shortage=warnings.append)
        losses = measure(patterns, "calibration")
        cases.check(losses == expected and len(warnings) == 1, f"call {call}: {warnings}")
    cases.check(
        Evaluator(Remembering(error, rows=1), groups, 12)(patterns, "calibration") == expected, "one row at a time"
    )
    with pytest.raises(MeasurementError, match="out of memory on a window of 3 tokens"):
        Evaluator(Remembering(error, rows=0), groups, 12)(patterns, "calibration")
    with pytest.raises(RuntimeError, match="something else"):
        Evaluator(Remembering(RuntimeError("something else"), 1), groups, 12)(patterns, "calibration")
