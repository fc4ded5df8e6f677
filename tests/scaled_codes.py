"""FP8 codes with scales for blocks of them, for tests of what makes plain weights of them."""

import torch

from indexcache.dsa.stream.formats.quantised import QuantisedWeight


def codes_and_scales(shape, block, seed=0):
    """Random FP8 codes and fp32 scales of all magnitudes, and their blocks."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(shape, generator=generator).mul_(40).to(torch.float8_e4m3fn)
    grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    return codes, torch.randn(grid, generator=generator).exp()


def weight(shape, block, **parts):
    return QuantisedWeight("w", tuple(shape), "codes", "scales", block, **parts)


def same(made, wanted):
    assert made.dtype == wanted.dtype
    assert made.shape == wanted.shape
    both = (made == wanted) | (made.isnan() & wanted.isnan())
    assert bool(both.all()), f"{int((~both).sum())} of {both.numel()} differ, e.g. {made[~both][0]}"
