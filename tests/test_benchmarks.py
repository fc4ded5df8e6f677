"""What the benchmarks of searches stand on: losses in batches, results that outlive a stop, ranks of sites."""

import importlib

import pytest
import torch
from batched_losses import BatchedLosses, LayerStack, difference_from_package
from bench_results import Book, Deadline, OutOfTimeError, Row, run_parts
from bench_search import rank_correlation, ranks
from random_models import ROOT, build

from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.pattern import Pattern

SITES, WIDTH = 6, 16
PATTERNS = [Pattern("FFFFFF"), Pattern("FSFFSF"), Pattern("FSFSSF"), Pattern("FSSSSS")]


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "tests/benchmarks").glob("bench_*.py")))
def test_a_script_finds_all_that_it_takes_from_others(script):
    """Nothing runs them here, so that a change of one would be seen only on the day when another is needed."""
    importlib.import_module(script)


@pytest.fixture(scope="module")
def layers():
    return LayerStack(build("glm_moe_dsa", layers=SITES, first_k_dense_replace=SITES, seed=3), range(SITES))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 4096, (3, 160), generator=torch.Generator().manual_seed(1))


def test_batches_measure_what_the_program_measures(layers, ids):
    losses = BatchedLosses(layers, ids.tolist(), WIDTH, weighs_keys=True)
    losses(PATTERNS[1:2], [2])
    assert max(difference_from_package(layers, losses, PATTERNS, [2, 0, 1], WIDTH)) < 1e-6
    assert losses.measured == len(PATTERNS) * 3


def test_answers_of_probes_are_measured_as_the_program_does(layers, ids):
    answers = [(40, 41, 90), (100,), (20, 130)]
    losses = BatchedLosses(layers, ids.tolist(), WIDTH, answers)
    package = PatternLosses(layers.model, layers.site_layers, blind=WIDTH)
    windows = [Window(number, ids[number].tolist(), answers[number]) for number in range(3)]
    wanted = package.compare(PATTERNS, windows)
    package.switch.remove()
    for place, of_pattern in enumerate(losses(PATTERNS, range(3))):
        for number, measured in enumerate(of_pattern):
            assert measured[:2] == pytest.approx(wanted[number][place][:2], rel=1e-5, abs=1e-9)
            assert measured.correct == wanted[number][place].correct


def test_another_shape_changes_nothing_but_rounding(layers, ids):
    losses = BatchedLosses(layers, ids.tolist(), WIDTH)
    (usual,), (other,) = losses(PATTERNS[3:], [0]), losses(PATTERNS[3:], [0], last_token=True)
    assert other[0].loss == pytest.approx(usual[0].loss, rel=1e-5)
    assert losses.measured == 2


def test_results_outlive_a_stop_and_go_with_their_settings(tmp_path):
    path = tmp_path / "results.jsonl"
    assert Book(path, {"windows": 4}).result("plan", lambda: {"order": (3, 1)}) == {"order": [3, 1]}
    with path.open("a") as file:
        file.write('{"name": "half a li')
    again = Book(path, {"windows": 4})
    assert again.result("plan", lambda: pytest.fail("measured again")) == {"order": [3, 1]}
    again.result("more", lambda: 1)
    assert Book(path, {"windows": 4}).result("more", lambda: pytest.fail("measured again")) == 1
    with pytest.raises(SystemExit, match="other settings"):
        Book(path, {"windows": 8})


def test_a_part_that_fails_or_runs_out_of_time_leaves_the_others_theirs(tmp_path, capsys):
    def late():
        raise OutOfTimeError

    def wrong():
        raise ValueError("no such window")

    parts = {"late": late, "wrong": wrong, "right": lambda: [Row.judged("cost", "<= 1/50", "1/60", True)]}
    with pytest.raises(SystemExit):
        run_parts(parts, list(parts), Book(tmp_path / "results.jsonl", {}), Deadline(1000))
    table = capsys.readouterr().out
    assert "| (late) |  | no time left |  |" in table
    assert "| (wrong) |  | failed: no such window |  |" in table
    assert "| cost | <= 1/50 | 1/60 | met |" in table


def test_sites_that_stayed_share_the_last_ranks():
    assert ranks((3, 1), 5) == [1.0, 2.5, 0.0, 2.5]
    assert rank_correlation(ranks((3, 1), 5), ranks((3, 1), 5)) == pytest.approx(1.0)
    assert rank_correlation([0, 1, 2, 3], [3, 2, 1, 0]) == pytest.approx(-1.0)
