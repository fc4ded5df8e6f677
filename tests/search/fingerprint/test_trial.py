"""The trial of a server: right where the truth is known, and not sure rather than wrong where noise is large."""

import math

import numpy as np
import pytest
from drawn_fingerprints import PATTERNS, QUIET, another_truth, answers, drawn_fingerprint, truth_of

from indexcache.search.fingerprint.trial import MISTAKES, Trial

BUDGET = 200
RUNS = 25


def right(known):
    """The verdict on a server that runs a known pattern: its kind and name."""
    if known.near:
        return "none", None
    return "plan" if known.name == "plan" else "other", known.name


@pytest.fixture(scope="module")
def fingerprint():
    return drawn_fingerprint()


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05, 0.1])
@pytest.mark.parametrize(("number", "kind"), [(0, "plan"), (1, "other"), (2, "other"), (3, "none"), (4, "none")])
def test_known_patterns_are_told(fingerprint, number, kind, noise):
    verdict = answers(
        Trial(fingerprint, BUDGET), truth_of(fingerprint, number), noise, np.random.default_rng(number)
    )
    named = PATTERNS[number].name if kind in ("plan", "other") else None
    assert (verdict.kind, verdict.pattern) == (kind, named)
    assert verdict.evidence.requests <= 40, "few requests are enough where patterns differ by ten times the noise"
    if kind == "plan":
        assert max(verdict.evidence.log_ratios.values()) == 0, "no pattern is likelier than the plan"


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_an_unknown_pattern_is_none_of_the_known_ones(fingerprint, noise):
    verdict = answers(Trial(fingerprint, BUDGET), another_truth(fingerprint), noise, np.random.default_rng(0))
    assert (verdict.kind, verdict.pattern) == ("none", None)
    assert verdict.evidence.deviations > 2, "it is further off the best of them than noise is"


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.8, 3.0])
def test_more_noise_makes_it_unsure_and_not_wrong(noise):
    outcomes = []
    for seed in range(RUNS):
        fingerprint = drawn_fingerprint(prefixes=32, gap=0.3, seed=seed)
        draw = np.random.default_rng(seed)
        number = seed % len(PATTERNS)
        verdict = answers(Trial(fingerprint, BUDGET), truth_of(fingerprint, number), noise, draw)
        outcomes.append((number, verdict.kind, verdict.pattern))
    wrong = [outcome for outcome in outcomes if outcome[1:] not in (("unsure", None), right(PATTERNS[outcome[0]]))]
    assert len(wrong) <= math.ceil(MISTAKES * RUNS), f"wrong verdicts at noise {noise}: {wrong}"
    if noise >= 3:
        assert all(outcome[1] == "unsure" for outcome in outcomes), "noise of ten gaps tells nothing"


def test_garbage_is_none_of_the_known_patterns(fingerprint):
    draw = np.random.default_rng(0)
    truth = [np.log(draw.dirichlet(np.ones(len(row)))) - 6 for row in truth_of(fingerprint, 0)]
    assert answers(Trial(fingerprint, BUDGET), truth, 0.0, draw).kind in ("none", "unsure")


def test_another_models_tokens_are_counted_and_never_the_plan(fingerprint):
    trial = Trial(fingerprint, BUDGET)
    while (number := trial.next_prefix()) is not None:
        trial.observe(number, {1000 + token: -0.5 - token for token in range(5)})
    verdict = trial.verdict()
    assert verdict.kind in ("none", "unsure")
    assert verdict.evidence.unknown == 5 * verdict.evidence.requests


@pytest.mark.parametrize(
    "answer", [{}, {0: math.nan}, {0: -math.inf}, {0: 0.0}, {-7: -1.0}, {5: -1e30}, {0: 1e30}]
)
def test_whatever_a_server_gives_is_taken_and_proves_no_plan(fingerprint, answer):
    trial = Trial(fingerprint, 30)
    while (number := trial.next_prefix()) is not None:
        trial.observe(number, answer)
    verdict = trial.verdict()
    assert verdict.kind != "plan"
    assert all(map(math.isfinite, verdict.evidence.log_ratios.values()))


def test_fewer_log_probabilities_do(fingerprint):
    verdict = answers(Trial(fingerprint, BUDGET), truth_of(fingerprint, 0), 0.02, np.random.default_rng(0), top=1)
    assert verdict.kind == "plan"


def test_no_prefix_is_asked_twice_and_the_budget_holds(fingerprint):
    trial, asked = Trial(fingerprint, 5), []
    while (number := trial.next_prefix()) is not None:
        asked.append(number)
        trial.observe(number, {})
    assert len(asked) == len(set(asked)) == 5
    assert trial.verdict().kind == "unsure"
    with pytest.raises(ValueError, match="answered before"):
        trial.observe(asked[0], {})


@pytest.mark.parametrize("budget", [1, 7, 8])
def test_a_few_answers_decide_nothing(fingerprint, budget):
    verdict = answers(Trial(fingerprint, budget), truth_of(fingerprint, 0), 0.0, np.random.default_rng(0))
    assert (verdict.kind == "unsure") == (budget < 8)


def test_prefixes_within_the_selection_are_quiet_though_patterns_were_rounded_otherwise(fingerprint):
    rounded = [
        prefix.model_copy(
            update={
                "candidates": tuple(
                    candidate.model_copy(
                        update={"logprobs": (candidate.logprobs[0] - 1e-4, *candidate.logprobs[1:])}
                    )
                    for candidate in prefix.candidates
                )
            }
        )
        for prefix in fingerprint.prefixes
    ]
    trial = Trial(fingerprint.model_copy(update={"prefixes": tuple(rounded)}), BUDGET)
    assert trial.next_prefix() == len(rounded) - QUIET


def test_some_of_the_first_prefixes_are_quiet(fingerprint):
    trial = Trial(fingerprint, BUDGET)
    truth, first = truth_of(fingerprint, 0), []
    for _ in range(8):
        number = trial.next_prefix()
        first.append(number)
        trial.observe(number, dict(enumerate(truth[number])))
    assert sum(number >= len(truth) - QUIET for number in first) == 2, "the server's noise is seen where all agree"
