"""The choice of prefixes: every pair of patterns is told apart, by prefixes that are not alike."""

import numpy as np
import pytest

from indexcache.search.fingerprint.choice import (
    QUIET,
    WindowPredictions,
    alike,
    choose,
    distances,
    spreads,
    squared_moves,
)

WIDTH, LENGTH, PATTERNS, TOP = 16, 80, 4, 3


def window(seed, gap=0.5, same=()):
    """Random predictions; patterns ``same`` as the plan's, and all of them up to the selection's width."""
    draw = np.random.default_rng(seed)
    positions = np.arange(WIDTH - 4, LENGTH)
    logprobs = -3 + draw.random((len(positions), 6, 1)) + gap * draw.standard_normal((len(positions), 6, PATTERNS))
    logprobs[positions <= WIDTH] = logprobs[positions <= WIDTH][:, :, :1]
    logprobs[:, :, list(same)] = logprobs[:, :, :1]
    logprobs[:, 5, :], tokens = np.nan, np.tile(np.arange(6), (len(positions), 1))
    tokens[:, 5] = -1
    return WindowPredictions(positions, tokens, logprobs.astype(np.float32), np.full(len(positions), 0.05))


def chosen(windows, count=24, text_of=lambda window, position: "text"):
    return choose(windows, WIDTH, count, TOP, text_of)


def test_prefixes_are_longer_than_the_selection_but_for_the_quiet_ones():
    windows = [window(seed) for seed in range(3)]
    choices = chosen(windows)
    lengths = [int(windows[choice.window].positions[choice.row]) + 1 for choice in choices]
    assert len(choices) <= 24
    assert len(set(choices)) == len(choices)
    assert all(length >= WIDTH + 2 for length in lengths[:-3])
    assert lengths[-3:] == [WIDTH] * 3, "one of each window, and no pattern differs there"
    assert alike(windows, choices, TOP, 15) == []


def test_neighbours_in_a_window_are_not_both_chosen():
    windows = [window(0)]
    ends = sorted(int(windows[0].positions[choice.row]) for choice in chosen(windows) if choice.row > WIDTH)
    assert min(np.diff(ends)) >= 3


def test_patterns_that_no_prefix_tells_are_said_to_be_alike():
    windows = [window(seed, same=(2,)) for seed in range(2)]
    assert alike(windows, chosen(windows), TOP, 15) == [2]


def test_where_nothing_differs_nothing_is_chosen():
    windows = [window(0, gap=0.0)]
    assert len(chosen(windows)) <= QUIET


def test_a_rare_difference_is_found():
    """One pattern differs at three positions only; they are among the few that are chosen."""
    windows = [window(seed, same=(3,)) for seed in range(3)]
    rows = (30, 40, 50)
    for row in rows:
        windows[1].logprobs[row, :5, 3] += 2
    places = {(choice.window, choice.row) for choice in chosen(windows, count=20)}
    assert {(1, row) for row in rows} <= places


def test_prefixes_with_a_text_are_preferred():
    windows = [window(seed) for seed in range(3)]
    choices = chosen(windows, text_of=lambda number, position: "text" if number != 1 else None)
    with_text = sum(choice.text is not None for choice in choices)
    assert with_text > 0.75 * len(choices)


def test_noise_counts_against_a_prefix():
    quiet, loud = window(0), window(0)
    loud = loud._replace(spread=loud.spread * 20)
    choices = [choice for choice in chosen([loud, quiet], count=10) if choice.row > WIDTH]
    assert [choice.window for choice in choices] == [1] * len(choices)


def test_distances_are_root_mean_squares_over_top_tokens():
    logprobs = np.array([[[-1.0, -1.5], [-2.0, -2.0], [-3.0, -9.0], [-9.0, -3.0]]], dtype=np.float32)
    one = WindowPredictions(np.array([20]), np.arange(4)[None], logprobs, np.array([0.1]))
    expected = np.sqrt((0.25 + 0 + 36 + 36) / 4) / 0.1
    assert distances(one, 3)[0, 0, 1] == pytest.approx(expected)
    assert distances(one, 2)[0, 0, 1] == pytest.approx(np.sqrt((0.25 + 0) / 2) / 0.1)


def test_moves_compare_the_tokens_that_both_have():
    tokens, other = np.array([[3, 5, -1]]), np.array([[2, 5]])
    logprobs = np.array([[[-1.0], [-2.0], [np.nan]]], dtype=np.float32)
    assert squared_moves(tokens, logprobs, other, np.array([[[-4.0], [-2.5]]], dtype=np.float32)) == [0.25]
    assert spreads([[np.array([0.25])], [np.array([0.01])]])[0] == pytest.approx([0.5])
