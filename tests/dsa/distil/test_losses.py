"""Distilled indexers measured beside the model's own, in one sweep."""

import pytest
import torch
from random_models import build

from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.distil.losses import DistilledLosses
from indexcache.dsa.distil.segments import Segment
from indexcache.dsa.distil.train import put
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.errors import PatternError
from indexcache.pattern import DistilledPattern, Pattern

LAYERS = tuple(range(6))
FULL, PATTERN = Pattern("FFFFFF"), Pattern("FSSFSS")


@pytest.fixture(scope="module")
def model():
    return build("glm_moe_dsa")


@pytest.fixture(scope="module")
def window():
    return Window(0, torch.randint(0, 4096, (48,), generator=torch.Generator().manual_seed(3)).tolist())


@pytest.fixture(scope="module")
def parameters(model):
    """Other parameters for the segments of sites 0 and 3."""
    draw = torch.Generator().manual_seed(5)
    _, indexers = find_indexers(model)
    return {
        segment: {
            name: torch.randn(value.shape, generator=draw)
            for name, value in indexers[segment.site].named_parameters()
        }
        for segment in map(Segment._make, ((0, 3), (3, 6), (0, 1)))
    }


def test_a_distilled_pattern_is_the_pattern_with_those_parameters_put(model, window, parameters):
    both = DistilledPattern(PATTERN.roles, frozenset({0, 3}))
    one = DistilledPattern(PATTERN.roles, frozenset({3}))
    losses = DistilledLosses(model, LAYERS, parameters)
    full, plain, with_both, with_one = losses.compare([FULL, PATTERN, both, one], [window])[0]
    assert len({plain.loss, with_both.loss, with_one.loss}) == 3
    for sites, loss in (((0, 3), with_both), ((3,), with_one), ((), plain)):
        give_back = [put(model, site, parameters[site, site + 3]) for site in sites]
        expected = PatternLosses(model, LAYERS).measure([PATTERN], [window])[0][0]
        for back in give_back:
            back()
        assert loss.loss == pytest.approx(expected, rel=1e-6)
    again = PatternLosses(model, LAYERS).compare([FULL, PATTERN], [window])[0]
    assert (again[0].loss, again[1].divergence) == pytest.approx((full.loss, plain.divergence), rel=1e-6)


def test_everything_is_compared_with_the_model_as_it_was(model, window, parameters):
    """All full with other indexers is not what diverges by nothing."""
    other = DistilledPattern(FULL.roles, frozenset({0}))
    full, changed = DistilledLosses(model, LAYERS, parameters).compare([FULL, other], [window])[0]
    assert full.divergence == 0
    assert changed.divergence > 0


def test_a_shared_site_runs_no_distilled_indexer():
    with pytest.raises(PatternError, match="site 1"):
        DistilledPattern("FSF", frozenset({1, 2}))
