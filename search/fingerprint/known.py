"""The patterns that a server may run instead of a plan: all full, misread ones, published ones, and near ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ...pattern import FULL, SHARED, Pattern
from ..plan.schema import Plan
from .document import KnownPattern

ALL_FULL: Final = "all full"
"""What a server runs that ignores the plan."""
NEAR: Final = 64
"""How many patterns one swap away from the plan are known at most: all of them on a small model."""
# People paste these on checkpoints that they are not for. The first five are in IndexCache's README and in
# arXiv 2603.12201, appendix B, the last in the config.json of zai-org/GLM-5.2.
_PUBLISHED: Final = {
    "GLM-5's published half": "FFSFSSSFSSFFFSSSFFFSFSSSSSSFFSFFSFFSSFFFFFFSFFFFFSFFSSSSSSFSFFFSFSSSFSFFSFFSSS",
    "GLM-5's published quarter": "FFSFSSSFSSFSFSSSSSSSFSSSSSSFSSSFSFSSSSFFFFFSSSFFSSSFSSSSSSSSFSSSFSSSSSSFSFSSSS",
    "the 30B model's published half": "FSFSFSSSSFSFFFFSFFSSFFSFFFSSFFSSFSSSSFSFFFSFSSF",
    "the 30B model's published quarter": "FSFSFSSSSFSSSFSSFFSSFSSFSSSSFSSSFSSSSFSSSSSSSSS",
    "the 30B model's published eighth": "FSSSFSSSSSSSSFSSSFSSSSSFSSSSFSSSSSSSSFSSSSSSSSS",
    "GLM-5.2's shipped quarter": "FFFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSSFSSS",
}


@dataclass(frozen=True)
class NamedPattern:
    """A pattern over a model's sites and what it is called; ``near`` where it is one swap away from the plan."""

    name: str
    pattern: Pattern
    near: bool = False


def known_patterns(plan: Plan, near: int = NEAR) -> list[NamedPattern]:
    """The plan's pattern first, then what a server may run in its place; all different.

    Args:
        plan: whose server it is to be.
        near: how many patterns one swap away from the plan there are at most.
    """
    known: dict[str, NamedPattern] = {}
    for named in (*_others(plan), *_near(plan, near)):
        known.setdefault(named.pattern.roles, named)
    return list(known.values())


def over_layers(plan: Plan, named: NamedPattern) -> KnownPattern:
    """The pattern as a fingerprint names it, a letter for each decoder layer."""
    model = plan.model
    letters = named.pattern.over_layers(model.site_layers, model.layers, model.shared_layers)
    return KnownPattern(name=named.name, layers=letters, near=named.near)


def _others(plan: Plan) -> Iterator[NamedPattern]:
    model, pattern = plan.model, plan.pattern
    yield NamedPattern("plan", pattern)
    yield NamedPattern(ALL_FULL, Pattern.all_full(len(pattern)))
    yield NamedPattern("uniform", Pattern.uniform(len(pattern), pattern.kept, plan.pinned_sites))
    letters = plan.result.layer_pattern
    # An engine that counts layers otherwise is off by one, mostly.
    yield NamedPattern("shifted by one layer", _at_sites(f"{FULL}{letters[:-1]}", model.site_layers))
    yield NamedPattern("shifted back by one layer", _at_sites(f"{letters[1:]}{letters[-1]}", model.site_layers))
    for name, published in _PUBLISHED.items():
        if len(published) == model.layers:
            yield NamedPattern(name, _at_sites(published, model.site_layers))


def _at_sites(letters: str, site_layers: Sequence[int]) -> Pattern:
    """``letters`` of layers at the sites, of which the first is full in any case."""
    return Pattern(FULL + "".join(letters[layer] for layer in site_layers[1:]))


def _near(plan: Plan, count: int) -> list[NamedPattern]:
    """Patterns one swap away: half of ``count`` those that move a full site least, the others drawn at random."""
    sites, roles = plan.model.site_layers, plan.pattern.roles
    full = [site for site, role in enumerate(roles) if site and role == FULL]
    shared = [site for site, role in enumerate(roles) if role == SHARED]
    swaps = [(gone, come) for gone in full for come in shared]
    random.Random(roles).shuffle(swaps)
    chosen = sorted(swaps, key=lambda swap: abs(swap[0] - swap[1]))[: count - count // 2]
    chosen += [swap for swap in swaps if swap not in chosen][: count - len(chosen)]
    near: list[NamedPattern] = []
    for gone, come in sorted(chosen):
        letters = list(roles)
        letters[gone], letters[come] = SHARED, FULL
        name = f"layer {sites[come]} full instead of {sites[gone]}"
        near.append(NamedPattern(name, Pattern("".join(letters)), near=True))
    return near
