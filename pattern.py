"""A pattern: which sites run their indexer (F) and which reuse an earlier selection (S)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from .errors import PatternError, SettingError

FULL = "F"
SHARED = "S"
DISTILLED = "D"
"""How the role begins of a full site that runs a distilled indexer; no pattern is spelled with it."""
_ROUNDING = Fraction(1, 10**12)


@dataclass(frozen=True)
class Pattern:
    """Roles of a model's sites in layer order, e.g. ``Pattern("FSSF")``.

    A full site (F) runs its indexer; a shared one (S) reuses the selection of the nearest full site
    before it, so the first site is always full (arXiv 2603.12201, section 3).

    Raises:
        PatternError: empty, a letter other than F and S, or a first site that is shared.
    """

    roles: str

    def __post_init__(self) -> None:
        if not self.roles:
            raise PatternError("the pattern is empty")
        for site, role in enumerate(self.roles):
            if role not in (FULL, SHARED) and role.upper() in (FULL, SHARED):
                raise PatternError(
                    f"site {site} of the pattern is {role!r}, not a capital F or S",
                    hint="write it in capitals: engines disagree on small letters",
                )
            if role not in (FULL, SHARED):
                raise PatternError(f"site {site} of the pattern is {role!r}, not F or S")
        if self.roles[0] != FULL:
            raise PatternError("the first site of the pattern is S, but there is no earlier selection to reuse")

    def __str__(self) -> str:
        return self.roles

    def __len__(self) -> int:
        return len(self.roles)

    @classmethod
    def parse(cls, text: str, sites: int | None = None) -> Pattern:
        """The pattern in ``text``; with ``sites``, its length must be that."""
        pattern = cls(text.strip())
        if sites is not None and len(pattern) != sites:
            raise PatternError(f"the pattern has {len(pattern)} letters, but the model has {sites} sites")
        return pattern

    @classmethod
    def all_full(cls, sites: int) -> Pattern:
        """The model as it was trained: every site runs its indexer."""
        return cls(FULL * sites)

    @classmethod
    def from_full(cls, sites: int, full: Iterable[int]) -> Pattern:
        """The pattern in which exactly the sites ``full`` keep their indexer."""
        full_sites = set(full)
        return cls("".join(FULL if site in full_sites else SHARED for site in range(sites)))

    @classmethod
    def uniform(cls, sites: int, kept: int, pinned: Iterable[int] = ()) -> Pattern:
        """``kept`` full sites spread evenly, e.g. 4 of 16 gives FSSSFSSSFSSSFSSS.

        With ``pinned`` sites that have to be full, the others are spread over the stretches between
        them, each going where a full site serves most.
        """
        starts = sorted({0, *pinned})
        if not len(starts) <= kept <= sites or starts[-1] >= sites:
            raise PatternError(f"cannot keep {kept} of {sites} sites, {len(starts)} of them fixed")
        lengths = [end - start for start, end in zip(starts, (*starts[1:], sites), strict=True)]
        counts = [1] * len(starts)
        for _ in range(kept - len(starts)):
            # Fractions compare exactly; of equally wide gaps the earlier stretch is served first.
            widest = max(
                range(len(starts)), key=lambda stretch: (Fraction(lengths[stretch], counts[stretch]), -stretch)
            )
            counts[widest] += 1
        stretches = zip(starts, lengths, counts, strict=True)
        # The full sites of a stretch stand at ceil(j * length / count) behind its start.
        return cls.from_full(
            sites, (start + -(-j * length // count) for start, length, count in stretches for j in range(count))
        )

    @property
    def full(self) -> tuple[int, ...]:
        """Sites that run their indexer, ascending."""
        return tuple(site for site, role in enumerate(self.roles) if role == FULL)

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """Each full site with the first site that it does not serve, in order; every site is in one of them."""
        return tuple(pairwise((*self.full, len(self))))

    @property
    def serving(self) -> tuple[tuple[int, int], ...]:
        """The segments that distillation can change for the better: those whose full site serves others too.

        A site that serves itself alone selects as all full does, and nothing is nearer to all full than that.
        """
        return tuple((site, end) for site, end in self.segments if end > site + 1)

    def common_length(self, other: Pattern) -> int:
        """How many leading sites run alike in both patterns; all of them, if the patterns are equal."""
        pairs = enumerate(zip(self.path, other.path, strict=True))
        return next((site for site, (role, other_role) in pairs if role != other_role), len(self))

    @property
    def kept(self) -> int:
        """How many sites are full."""
        return self.roles.count(FULL)

    def is_full(self, site: int) -> bool:
        """Whether ``site`` runs its indexer."""
        return self.roles[site] == FULL

    @property
    def path(self) -> str | tuple[str, ...]:
        """How all sites run, in order."""
        return self.roles

    def role(self, site: int) -> str:
        """How ``site`` runs: its letter."""
        return self.path[site]

    def share(self, site: int) -> Pattern:
        """This pattern with the full ``site`` turned shared."""
        if not self.is_full(site):
            raise PatternError(f"site {site} is shared already")
        return Pattern(self.roles[:site] + SHARED + self.roles[site + 1 :])

    def sources(self) -> tuple[int, ...]:
        """For each site, the site whose selection it uses (itself where full)."""
        sources: list[int] = []
        for site, role in enumerate(self.roles):
            sources.append(site if role == FULL else sources[-1])
        return tuple(sources)

    def over_layers(self, site_layers: Sequence[int], layers: int, shared_layers: Iterable[int] = ()) -> str:
        """The pattern spelled over all ``layers`` decoder layers, as engines want it.

        Layers that are no sites read F, except ``shared_layers``: those own no indexer and reuse a
        selection in the checkpoint itself.
        """
        if len(site_layers) != len(self):
            raise PatternError(f"the pattern has {len(self)} letters, but the model has {len(site_layers)} sites")
        letters = [FULL] * layers
        for layer in shared_layers:
            letters[layer] = SHARED
        for layer, role in zip(site_layers, self.roles, strict=True):
            letters[layer] = role
        return "".join(letters)


@dataclass(frozen=True)
class DistilledPattern(Pattern):
    """A pattern some of whose full sites run distilled indexers in the place of the checkpoint's.

    An indexer is distilled for the sites from its own to the next full one, so that where this is belongs to the
    role: ``D3`` is the role of a site whose indexer is distilled for all sites before site 3.

    Args:
        distilled: those sites.

    Raises:
        PatternError: one of them is shared.
    """

    distilled: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        if shared := sorted(site for site in self.distilled if not self.is_full(site)):
            raise PatternError(f"site {shared[0]} of the pattern is shared, and so runs no distilled indexer")

    @classmethod
    def of(cls, pattern: Pattern) -> DistilledPattern:
        """``pattern`` with a distilled indexer at each full site that serves others too."""
        return cls(pattern.roles, frozenset(site for site, _ in pattern.serving))

    @cached_property
    def path(self) -> tuple[str, ...]:
        """How all sites run, in order: letters, or ``DISTILLED`` and the first site that is not served."""
        ends = dict(self.segments)
        return tuple(
            f"{DISTILLED}{ends[site]}" if site in self.distilled else role for site, role in enumerate(self.roles)
        )


def indexer_types(layer_pattern: str) -> list[str]:
    """``FS`` as transformers spells it: ``["full", "shared"]``."""
    return ["full" if letter == FULL else "shared" for letter in layer_pattern]


def kept_sites(sites: int, keep: float) -> int:
    """How many of ``sites`` the fraction ``keep`` leaves full: ``max(1, ceil(keep * sites))``.

    ``keep`` is taken as the decimal it was written as, so 0.1 of 30 is 3 and not 4.

    Raises:
        SettingError: ``keep`` is not above 0 and at most 1.
    """
    if not (math.isfinite(keep) and 0 < keep <= 1):
        raise SettingError(
            f"--keep is {keep:g}, but it is the fraction of sites that stay full",
            hint=f"give a number above 0 and at most 1, e.g. {_likely_fraction(keep, sites)}",
        )
    share = Fraction(repr(float(keep))) * sites
    # 5/6 is a little more than its decimals or a little less, which must not cost a site.
    return max(1, round(share) if abs(share - round(share)) < _ROUNDING else math.ceil(share))


def _likely_fraction(keep: float, sites: int) -> str:
    """The fraction that whoever wrote ``keep`` may have meant: 12 is none, but 12 of the sites and 12% are."""
    if 1 < keep <= 100:
        count = f"{keep:g}/{sites} or " if keep <= sites and float(keep).is_integer() else ""
        return f"{count}{keep / 100:g} or {keep:g}%"
    return "0.25, 25% or 1/4"


def layer_ranges(layers: Sequence[int]) -> str:
    """``0-2, 5`` for the ascending layers 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
