"""Pipeline stages and pinned layers: which sites they hold full, and which wishes cannot be met."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexcache.errors import SettingError
from indexcache.search.stages import pinned_sites, split_before_last, split_first, stage_sizes, stage_starts


def vllm_rule(layers, stages):
    """vLLM 0.33.0, ``get_pp_indices``: the last but one stage and those before it take what remains."""
    sizes = [layers // stages for _ in range(stages)]
    for nth in range(2, layers % stages + 2):
        sizes[-nth] += 1
    return sizes


@given(st.integers(1, 100), st.integers(1, 16))
def test_even_splits_follow_the_engines_rules(layers, stages):
    stages = min(stages, layers)
    assert split_before_last(layers, stages) == vllm_rule(layers, stages)
    assert split_first(layers, stages) == [len(range(stage, layers, stages)) for stage in range(stages)]


def test_the_known_models_split_as_vllm_splits_them():
    assert stage_sizes(61, 2, None) == [31, 30]
    assert stage_sizes(61, 4, None) == [15, 15, 16, 15]
    assert stage_sizes(78, 4, None) == [19, 20, 20, 19]
    assert stage_sizes(61, 4, None, split_first) == [16, 15, 15, 15]
    assert stage_sizes(61, None, [20, 20, 21]) == [20, 20, 21]
    assert stage_sizes(61, None, None) is None


@pytest.mark.parametrize(
    ("size", "given", "says"),
    [
        (2, [30, 31], "both pp-size and pp-layers"),
        (9, None, "pp-size is 9"),
        (None, [4, 5], "4,5 add up to 9 layers, but the model has 8"),
        (None, [8, 0], "8,0"),
    ],
)
def test_splits_that_do_not_fit_are_refused(size, given, says):
    with pytest.raises(SettingError, match=says):
        stage_sizes(8, size, given)


def test_the_first_site_of_each_stage_stays_full():
    every = range(8)
    assert pinned_sites((), [3, 3, 2], every, (), 8) == (0, 3, 6)
    assert pinned_sites((0, 5), None, every, (), 8) == (0, 5)
    # Layers 2, 3, 6 and 7 own an indexer; the second stage starts on a layer that does not, the third holds none.
    assert pinned_sites((7,), [2, 3, 1, 2], (2, 3, 6, 7), (), 8) == (0, 2, 3)


@pytest.mark.parametrize(
    ("pin", "stages", "says"),
    [
        ((1,), None, "layer 1 cannot be pinned: it owns no indexer"),
        ((3,), None, "layer 3 cannot be pinned: it shares in the checkpoint itself"),
        ((9,), None, "layer 9 cannot be pinned: it does not exist: the model has 6"),
        ((), [3, 3], "starts with layer 3, which shares in the checkpoint itself"),
    ],
)
def test_layers_that_cannot_stay_full_are_refused(pin, stages, says):
    with pytest.raises(SettingError, match=says):
        pinned_sites(pin, stages, (0, 2, 4, 5), (3,), 6)


def test_stages_start_where_the_first_selection_is_used():
    assert list(stage_starts([2, 2, 2], [5, 1, 4])) == [1, 4]
    assert list(stage_starts([], [1])) == []
