"""Which layers a segment serves, and which pieces of attention overlapping segments share."""

import pytest

from indexcache.dsa.distil.rows import pieces_of
from indexcache.dsa.distil.segments import Segment, served_layers
from indexcache.errors import SettingError


@pytest.mark.parametrize(
    ("segment", "layers"),
    [(Segment(0, 1), (2,)), (Segment(1, 3), (4, 5, 6, 8)), (Segment(2, 4), (8, 9, 10)), (Segment(3, 4), (9, 10))],
)
def test_layers_that_share_in_the_checkpoint_are_served_and_others_are_not(segment, layers):
    # Sites 2, 4, 8, 9; layers 5, 6 and 10 share in the checkpoint; 3 and 7 own no indexer and read no selection.
    assert served_layers(segment, (2, 4, 8, 9), (5, 6, 10)) == layers


@pytest.mark.parametrize("segment", [Segment(1, 1), Segment(-1, 2), Segment(3, 5)])
def test_a_segment_that_the_model_does_not_have_is_refused(segment):
    with pytest.raises(SettingError, match="no segment of 4 sites"):
        served_layers(segment, (0, 1, 2, 3))


def test_segments_that_overlap_are_cut_where_any_begins_or_ends():
    segments = [Segment(0, 4), Segment(2, 6), Segment(8, 9)]
    assert pieces_of(segments) == [Segment(0, 2), Segment(2, 4), Segment(4, 6), Segment(8, 9)]
