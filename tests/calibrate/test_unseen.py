"""Documents that a search has seen are left out of what measures its plan on other windows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_text import END, Words, document, origins

from indexcache.calibrate.unseen import PASSAGE, SeenText, UnseenDocuments
from indexcache.calibrate.windows import WindowGroup, WindowRequest, pack
from indexcache.errors import DatasetError


def windows_of(*rows):
    """A group of windows, each of a document of its own."""
    return WindowGroup(np.asarray(rows, dtype=np.int32), np.arange(len(rows), dtype=np.int32))


def text(*numbers):
    return np.asarray(numbers, dtype=np.int32)


def unseen(documents, group, tokenizer=Words()):
    return list(UnseenDocuments(documents, tokenizer, [group]))


def runs(rows, length):
    """The documents, counted from 1, of which ``length`` tokens in a row stand in one of the windows."""
    return {
        int(row[start]) // 1000
        for row in rows
        for start in range(len(row) - length + 1)
        if row[start] >= 1000 and (np.diff(row[start : start + length]) == 1).all()
    }


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 300), min_size=6, max_size=25), st.integers(50, 120), st.integers(0, 9))
def test_no_document_is_left_that_a_window_holds_much_of(lengths, length, seed):
    documents = [document(number, size) for number, size in enumerate(lengths)]
    try:
        windows = pack(documents, Words(1), WindowRequest(length, 2, 1, seed))
    except DatasetError:
        return
    group = windows.groups["calibration"]
    numbers = {int(text.split()[0]) // 1000 for text in unseen(documents, group, Words(1))}
    assert not numbers & runs(group.ids, 2 * PASSAGE - 1), "47 tokens in a row are in a window, and yet unseen"
    untouched = {number + 1 for number in range(len(lengths))} - origins(group.ids)
    assert untouched <= numbers, "a document that no window was cut from is left out"


def test_a_passage_is_found_wherever_the_window_was_cut():
    ids = text(*range(1000, 1400))
    for cut in range(PASSAGE):
        seen = SeenText([windows_of(ids[cut : cut + 2 * PASSAGE])], (), END)
        assert ids in seen, f"cut at {cut}"
    assert text(*range(2000, 2400)) not in seen


def test_what_is_shorter_than_a_passage_tells_nothing():
    group = windows_of(range(1000, 1000 + PASSAGE))
    assert unseen([document(0, 200)], group) == []
    part = [*range(1000, 1000 + PASSAGE - 1), 9]
    assert unseen([document(0, 200)], windows_of(part)) == [document(0, 200)]


def test_short_documents_are_known_where_they_stand_in_a_window_whole():
    documents = [document(number, 12) for number in range(8)]
    windows = pack(documents, Words(), WindowRequest(30, 2, 0))
    # Each window has two of 12 tokens and their ends, and the first 4 tokens of a third.
    assert origins(windows.calibration) == {1, 2, 3, 4, 5, 6}
    left = unseen(documents, windows.groups["calibration"])
    assert [int(text.split()[0]) // 1000 for text in left] == [3, 6, 7, 8]


def test_the_opening_of_a_window_is_no_text():
    windows = pack([document(0, 12)], Words(1, 2), WindowRequest(14, 1, 0))
    stream = UnseenDocuments([document(0, 12), document(1, 60)], Words(1, 2), windows.groups.values())
    assert list(stream) == [document(0, 12), document(1, 60)], "12 tokens, no end of text behind them"


def test_a_form_that_many_documents_share_tells_of_none():
    form = list(range(500, 500 + 2 * PASSAGE))
    rows = [[*form, *range(1000 * number, 1000 * number + PASSAGE)] for number in (1, 2, 3)]
    other = text(*form, *range(9000, 9100))
    assert other in SeenText([windows_of(*rows[:2])], (), END), "two documents may be copies of each other"
    seen = SeenText([windows_of(*rows)], (), END)
    assert other not in seen
    assert all(text(*row) in seen for row in rows), "what is a document's alone still tells of it"


def test_the_stream_counts_what_it_leaves_out_and_says_that_it_ended():
    documents = [document(number, 60) for number in range(4)]
    stream = UnseenDocuments(documents, Words(), [windows_of(range(1000, 1050), range(3000, 3050))])
    first = iter(stream)
    assert next(first) == documents[1]
    assert (stream.left_out, stream.ended) == (1, False)
    assert list(first) == [documents[3]]
    assert (stream.left_out, stream.ended) == (2, True)


def test_no_windows_leave_nothing_out():
    assert unseen([document(0, 60), ""], windows_of()) == [document(0, 60), ""]


def test_real_text_through_the_real_tokenizer(embedded_text, tokenizer):
    texts = [text[:8000] for text in embedded_text[:8]]
    group = pack(texts, tokenizer, WindowRequest(256, 3, 3, seed=1)).groups["calibration"]
    left = unseen(texts, group, tokenizer)
    assert len(left) == len(texts) - 3
    assert not any(tokenizer.decode(ids) in text for ids in group.ids.tolist() for text in left)
