"""Windows: deterministic, disjoint by document, of one length, and refused when they measure nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_text import END, Words, document, origins

from indexcache.calibrate.windows import (
    WindowRequest,
    check_length,
    informative_positions,
    informative_share,
    pack,
)
from indexcache.errors import DatasetError, WindowError
from indexcache.evaluate import LEARNING
from indexcache.search.losses import mean_difference


@settings(deadline=None)
@given(st.lists(st.integers(1, 120), min_size=30, max_size=60), st.integers(4, 20), st.integers(0, 5))
def test_groups_are_disjoint_by_document_and_repeatable(lengths, length, seed):
    documents = [document(number, size) for number, size in enumerate(lengths)]
    request = WindowRequest(length, 3, 2, seed)
    try:
        windows = pack(documents, Words(), request)
    except DatasetError:
        assert sum(lengths) < 8 * length + 60, "there was text enough"
        return
    assert windows.calibration.shape == (3, length)
    assert windows.heldout.shape == (2, length)
    assert not origins(windows.calibration) & origins(windows.heldout)
    again = pack(documents, Words(), request)
    assert np.array_equal(windows.calibration, again.calibration)
    assert np.array_equal(windows.heldout, again.heldout)


def test_each_document_gives_one_window_while_there_are_others():
    documents = [document(number, 200) for number in range(40)]
    windows = pack(documents, Words(), WindowRequest(10, 16, 8))
    assert len(origins(windows.calibration)) == 16
    assert len(origins(windows.heldout)) == 8


def test_as_many_windows_as_there_are_leave_the_others_as_many_documents_as_the_default_does():
    documents = [document(number, 400) for number in range(24)]
    shares = []
    for calibration, takes_all in ((32, False), (128, True)):
        request = WindowRequest(10, calibration, 16, 0, 8, as_many_as_there_are=takes_all)
        windows = pack(documents, Words(), request)
        assert len(windows.calibration) == calibration
        shares.append({name: len(origins(windows.group(name))) for name in windows.groups})
    assert shares[0] == shares[1]


def test_windows_to_learn_from_are_of_documents_of_their_own_and_fewer_will_do():
    documents = [document(number, 10) for number in range(40)]
    windows = pack(documents, Words(), WindowRequest(10, 8, 8, learning=16))
    assert len(windows.group(LEARNING)) == 16
    seen = [origins(windows.group(name)) for name in windows.groups]
    assert sum(map(len, seen)) == len(set().union(*seen)), "a document is in two groups"
    few = pack(documents[:24], Words(), WindowRequest(10, 8, 8, learning=64))
    assert (len(few.calibration), len(few.heldout)) == (8, 8)
    assert 0 < len(few.group(LEARNING)) < 64


def test_as_many_windows_as_there_are_go_on_where_the_others_are_full():
    documents = [document(number, 10) for number in range(100)]
    windows = pack(documents, Words(), WindowRequest(10, 128, 16, as_many_as_there_are=True))
    assert (len(windows.calibration), len(windows.heldout)) == (84, 16)


def test_few_long_documents_give_more_in_turn():
    windows = pack([document(number, 200) for number in range(6)], Words(), WindowRequest(10, 16, 4))
    firsts = [int(window[0]) // 1000 for window in windows.calibration]
    counts = list(Counter(firsts).values())
    assert max(counts) - min(counts) <= 1, counts


def test_each_window_knows_its_document():
    windows = pack([document(number, 200) for number in range(6)], Words(), WindowRequest(10, 16, 4))
    for name in ("calibration", "heldout"):
        expected = tuple(int(window[0]) // 1000 - 1 for window in windows.group(name))
        assert windows.documents(name) == expected


def test_the_seed_decides_where_documents_are_cut():
    documents = [document(number, 200) for number in range(6)]
    one, same, other = (pack(documents, Words(), WindowRequest(10, 4, 2, seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.calibration, same.calibration)
    assert not np.array_equal(one.calibration, other.calibration)


def test_windows_of_one_document_do_not_overlap():
    windows = pack([document(0, 205)], Words(), WindowRequest(10, 20, 0))
    assert len(np.unique(windows.calibration)) == 200


def test_short_documents_are_joined_by_the_end_token():
    windows = pack([document(0, 3), document(1, 3), document(2, 3)], Words(), WindowRequest(8, 1, 0))
    assert windows.calibration[0].tolist() == [1000, 1001, 1002, END, 2000, 2001, 2002, END]


@pytest.mark.parametrize("opening", [(1,), (1, 2), ()])
@pytest.mark.parametrize("closing", [(), (END,)])
def test_every_window_opens_with_what_the_tokenizer_puts_before_a_text(opening, closing):
    windows = pack([document(0, 60)], Words(*opening, closing=closing), WindowRequest(10, 4, 0))
    count = len(opening)
    assert windows.calibration[:, :count].tolist() == [list(opening)] * 4
    assert (windows.calibration[:, count:] >= 1000).all()


def test_a_text_that_brings_its_own_opening_is_not_opened_twice():
    windows = pack(["1 " + document(0, 9)], Words(1), WindowRequest(10, 1, 0))
    assert windows.calibration[0].tolist() == [1, *range(1000, 1009)]


@pytest.mark.reliability("R12")
def test_too_little_text_says_how_many_windows_there_are():
    with pytest.raises(DatasetError, match=r"8 calibration windows of 10 tokens .* give 3"):
        pack([document(0, 39)], Words(), WindowRequest(10, 8, 0))


@pytest.mark.reliability("R12")
def test_no_text_at_all_is_an_error():
    with pytest.raises(DatasetError, match=r"0 documents .* give 0"):
        pack([], Words(), WindowRequest(10, 1, 1))


@pytest.mark.reliability("R12")
def test_one_document_cannot_be_on_both_sides():
    with pytest.raises(DatasetError, match="held-out windows"):
        pack([document(0, 500)], Words(), WindowRequest(10, 2, 2))


def test_real_text_through_the_real_tokenizer(embedded_text, tokenizer):
    windows = pack(embedded_text, tokenizer, WindowRequest(256, 8, 4, seed=1))
    assert windows.calibration.shape == (8, 256)
    assert all(tokenizer.decode(ids) in "".join(embedded_text) for ids in windows.calibration.tolist())


@pytest.mark.parametrize(("length", "positions"), [(65, 0), (66, 1), (67, 2), (1024, 959)])
def test_informative_positions_start_two_past_the_selection(length, positions):
    assert informative_positions(length, 64) == positions
    assert informative_share(length, 64) == positions / (length - 1)


@pytest.mark.reliability("R13")
@pytest.mark.parametrize("length", [1, 2, 64, 65])
def test_blind_lengths_are_refused(length):
    with pytest.raises(WindowError, match="measure nothing") as caught:
        check_length(length, 64)
    assert "66" in caught.value.hint


@pytest.mark.reliability("R13")
def test_the_first_informative_length_is_allowed():
    check_length(66, 64)


def sharing(windows):
    """Pairs of windows with a token of the same document in both."""
    held = [{int(token) // 1000 for token in window if token >= 1000} for window in windows]
    return [(one, two) for two in range(len(held)) for one in range(two) if held[one] & held[two]]


def test_joined_windows_share_no_document_while_there_are_others():
    windows = pack([document(number, 6) for number in range(40)], Words(), WindowRequest(10, 20, 0))
    assert sharing(windows.calibration) == []
    assert len(set(windows.documents("calibration"))) == 20


def test_windows_that_share_a_document_are_of_one_cluster():
    # Of eight documents of 7 tokens, four windows take two each; a fifth has the rests of the first three seconds.
    windows = pack([document(number, 6) for number in range(8)], Words(), WindowRequest(10, 5, 0))
    clusters = windows.documents("calibration")
    assert len(sharing(windows.calibration)) == 3
    assert sorted(clusters) == [0, 0, 0, 0, 6]


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=5, max_size=60), st.integers(4, 20), st.integers(1, 2))
def test_sharing_windows_are_clustered_and_no_token_is_lost_or_used_twice(lengths, length, groups):
    documents = [document(number, size) for number, size in enumerate(lengths)]
    short = sum(size + 1 for size in lengths if size < length)
    long = sum((size - size % length) // length for size in lengths if size >= length)
    try:
        windows = pack(documents, Words(), WindowRequest(length, max(1, short // length), (groups - 1) * 3))
    except DatasetError:
        assert groups == 2 or (long and short // length > 0), "one group gets every window that there is text for"
        return
    for name in ("calibration", "heldout"):
        clusters = windows.documents(name)
        for one, two in sharing(windows.group(name)):
            assert clusters[one] == clusters[two]
    tokens = [
        int(token) for name in ("calibration", "heldout") for token in windows.group(name).flat if token >= 1000
    ]
    assert len(tokens) == len(set(tokens))
    assert not origins(windows.calibration) & origins(windows.heldout)


def test_the_standard_error_of_windows_that_share_documents_is_the_error_they_have():
    # Documents differ in difficulty by a standard deviation of 1: a window's loss is the mean over its tokens'.
    count, length = 240, 10
    documents = [document(number, 7) for number in range(count)]
    windows = pack(documents, Words(), WindowRequest(length, 170, 0))
    shares = np.zeros((170, count))
    for window, ids in enumerate(windows.calibration):
        for token in ids:
            if token >= 1000:
                shares[window, token // 1000 - 1] += 1 / length
    true = np.linalg.norm(shares.mean(axis=0))
    generator = np.random.default_rng(0)
    drawn = [(shares @ generator.normal(size=count)).tolist() for _ in range(300)]
    clustered = [mean_difference(losses, windows.documents("calibration")).standard_error for losses in drawn]
    independent = [mean_difference(losses).standard_error for losses in drawn]
    assert np.sqrt(np.mean(np.square(clustered))) == pytest.approx(true, rel=0.06)
    assert np.sqrt(np.mean(np.square(independent))) < 0.93 * true
