"""Which layers an indexer serves: from its site to the next full one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ...errors import SettingError


class Segment(NamedTuple):
    """A full site and the sites that reuse its selection.

    Args:
        site: the full site.
        end: the first site that it does not serve; the number of sites where it serves to the end.
    """

    site: int
    end: int


def served_layers(
    segment: Segment, site_layers: Sequence[int], shared_layers: Collection[int] = ()
) -> tuple[int, ...]:
    """Absolute ids of the layers whose attention reads the selection of ``segment``, ascending.

    Args:
        segment: over the sites of ``site_layers``.
        site_layers: absolute ids of the layers that own an indexer, ascending.
        shared_layers: layers that reuse an earlier selection in the checkpoint itself.

    Raises:
        SettingError: the model has no such segment.
    """
    if not 0 <= segment.site < segment.end <= len(site_layers):
        raise SettingError(
            f"sites {segment.site} to {segment.end - 1} are no segment of {len(site_layers)} sites",
            hint="a segment begins at a site and ends behind it",
        )
    first = site_layers[segment.site]
    # Layers without indexer and without selection stand between them too, and are served by nobody.
    last = site_layers[segment.end] if segment.end < len(site_layers) else None
    candidates = {*site_layers, *shared_layers}
    return tuple(sorted(layer for layer in candidates if first <= layer and (last is None or layer < last)))
