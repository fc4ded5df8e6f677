"""Patterns: what is accepted, what it means, and the published strings."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexcache.errors import PatternError, SettingError
from indexcache.pattern import DistilledPattern, Pattern, indexer_types, kept_sites, layer_ranges

PUBLISHED = {
    "30B 1/2": (24, 47, "FSFSFSSSSFSFFFFSFFSSFFSFFFSSFFSSFSSSSFSFFFSFSSF"),
    "30B 1/4": (12, 47, "FSFSFSSSSFSSSFSSFFSSFSSFSSSSFSSSFSSSSFSSSSSSSSS"),
    "30B 1/8": (7, 47, "FSSSFSSSSSSSSFSSSFSSSSSFSSSSFSSSSSSSSFSSSSSSSSS"),
    "GLM-5 1/2": (40, 78, "FFSFSSSFSSFFFSSSFFFSFSSSSSSFFSFFSFFSSFFFFFFSFFFFFSFFSSSSSSFSFFFSFSSSFSFFSFFSSS"),
    "GLM-5 1/4": (22, 78, "FFSFSSSFSSFSFSSSSSSSFSSSSSSFSSSFSFSSSSFFFFFSSSFFSSSFSSSSSSSSFSSSFSSSSSSFSFSSSS"),
    "GLM-5.2": (21, 78, "FFFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSS"),
}

patterns = st.text("FS", max_size=40).map(lambda tail: Pattern("F" + tail))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_patterns_parse(name):
    kept, sites, text = PUBLISHED[name]
    pattern = Pattern.parse(text, sites)
    assert (pattern.kept, len(pattern), str(pattern)) == (kept, sites, text)


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "empty"), ("SFF", "first site"), ("FSx", "site 2"), ("fs", "'f'"), ("F S", "' '")],
)
def test_malformed_patterns_are_refused(text, says):
    with pytest.raises(PatternError, match=says):
        Pattern.parse(text)


def test_small_letters_are_named_as_such():
    with pytest.raises(PatternError, match="not a capital F or S") as caught:
        Pattern.parse("FsF")
    assert "in capitals" in caught.value.hint


def test_a_pattern_of_the_wrong_length_is_refused():
    with pytest.raises(PatternError, match="3 letters, but the model has 4 sites"):
        Pattern.parse("FSF", sites=4)


def test_uniform_keeps_evenly_spread_sites():
    assert str(Pattern.uniform(16, 4)) == "FSSSFSSSFSSSFSSS"
    assert str(Pattern.uniform(5, 5)) == "FFFFF"
    # The interleaving of the paper's 47-layer model: every fourth layer.
    assert Pattern.uniform(47, 12).full == tuple(range(0, 47, 4))


@given(st.integers(1, 90), st.data())
def test_uniform_keeps_as_many_as_asked(sites, data):
    kept = data.draw(st.integers(1, sites))
    full = Pattern.uniform(sites, kept).full
    gaps = [b - a for a, b in zip(full, (*full[1:], sites), strict=True)]
    assert len(full) == kept
    assert max(gaps) - min(gaps) <= 1, f"{kept} of {sites} are not spread evenly: {full}"


@given(st.integers(1, 40), st.data())
def test_uniform_around_pinned_sites_leaves_no_longer_run_than_it_must(sites, data):
    pinned = data.draw(st.sets(st.integers(0, sites - 1), max_size=6))
    fewest = len({0, *pinned})
    kept = data.draw(st.integers(fewest, sites))
    pattern = Pattern.uniform(sites, kept, pinned)
    assert pattern.kept == kept
    assert pinned <= set(pattern.full)
    ends = [*sorted({0, *pinned}), sites]
    gaps = [b - a for a, b in zip(pattern.full, (*pattern.full[1:], sites), strict=True)]
    # With runs shorter by one, each stretch between pinned sites would need more full sites than there are.
    shorter = max(gaps) - 1
    assert shorter == 0 or sum(-(-(b - a) // shorter) for a, b in itertools.pairwise(ends)) > kept


def test_uniform_around_pinned_sites_is_refused_where_they_are_too_many():
    assert str(Pattern.uniform(8, 4, (4,))) == "FSFSFSFS"
    assert str(Pattern.uniform(8, 4, (7,))) == "FSSFSFSF"
    with pytest.raises(PatternError, match="cannot keep 2 of 8 sites, 3 of them fixed"):
        Pattern.uniform(8, 2, (3, 4))


@given(patterns)
def test_sources_are_the_nearest_full_site_before(pattern):
    for site, source in enumerate(pattern.sources()):
        assert pattern.is_full(source)
        assert not any(pattern.is_full(between) for between in range(source + 1, site + 1)) or source == site


@given(patterns)
def test_sharing_a_site_changes_only_that_letter(pattern):
    for site in pattern.full[1:]:
        shared = pattern.share(site)
        assert [a == b for a, b in zip(shared.roles, pattern.roles, strict=True)].count(False) == 1
        assert shared.roles[site] == "S"


def test_the_first_site_cannot_be_shared():
    with pytest.raises(PatternError):
        Pattern.all_full(3).share(0)


def test_over_layers_marks_layers_that_are_no_sites():
    assert Pattern("FSF").over_layers([0, 2, 4], 6, shared_layers=[1]) == "FSSFFF"


def test_layers_are_written_as_ranges():
    assert layer_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert layer_ranges([]) == ""


def test_indexer_types_spell_roles_out():
    assert indexer_types("FSS") == ["full", "shared", "shared"]


@pytest.mark.parametrize(
    ("sites", "keep", "kept"),
    [(16, 0.25, 4), (47, 0.25, 12), (78, 0.25, 20), (30, 0.1, 3), (16, 0.01, 1), (16, 1.0, 16), (3, 0.34, 2)],
)
def test_kept_sites_rounds_the_written_decimal_up(sites, keep, kept):
    assert kept_sites(sites, keep) == kept


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan"), float("inf")])
def test_an_impossible_keep_is_refused(keep):
    with pytest.raises(SettingError, match="keep"):
        kept_sites(16, keep)


class TestDistilled:
    def test_sites_that_serve_others_run_distilled_indexers_for_their_segments(self):
        distilled = DistilledPattern.of(Pattern("FSSFFS"))
        assert [distilled.role(site) for site in range(6)] == ["D3", "S", "S", "F", "D6", "S"]
        assert DistilledPattern.of(Pattern("FFF")).distilled == frozenset()

    def test_a_segment_goes_from_a_full_site_to_the_next_and_some_serve_others(self):
        assert Pattern("FSSFFS").segments == ((0, 3), (3, 4), (4, 6))
        assert Pattern("FSSFFS").serving == ((0, 3), (4, 6))
        assert Pattern("FFF").serving == ()

    def test_a_site_that_serves_others_than_before_runs_otherwise(self):
        """The letters agree on four sites, but site 2 has another student."""
        one, other = Pattern("FFFSSF"), Pattern("FFFSFF")
        assert one.common_length(other) == 4
        assert DistilledPattern.of(one).common_length(DistilledPattern.of(other)) == 2
        assert Pattern("FFFFFF").common_length(DistilledPattern.of(one)) == 2
