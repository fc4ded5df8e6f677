"""What students learn from: stored inputs of indexers and stored attention, of some queries of every window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from ...errors import MeasurementError, SettingError
from .segments import Segment
from .students import IndexerInputs


@dataclass
class SiteRows:
    """What the student of a site learns from, whichever layers it is to serve.

    Args:
        parameters: of the site's indexer, fp32, by name: what a student starts from.
        device: where the indexer runs.
        windows: its inputs, window by window.
    """

    parameters: dict[str, torch.Tensor]
    device: torch.device
    windows: list[IndexerInputs] = field(default_factory=list)


@dataclass
class StoredRows:
    """Inputs and attention of an all-full sweep, for any number of epochs.

    Attention is stored as sums over pieces: stretches of sites between two places at which a segment begins or
    ends, so that segments that overlap share it.

    Args:
        segments: that were asked for.
        sites: inputs, by site; of every segment's.
        layers: of each piece, how many layers' attention is summed.
        attention: of each piece, ``[rows, tokens]`` a window.
        tokens: of all windows.
    """

    segments: tuple[Segment, ...]
    sites: dict[int, SiteRows]
    layers: dict[Segment, int]
    attention: dict[Segment, list[torch.Tensor]]
    tokens: int = 0

    @property
    def windows(self) -> int:
        """How many there are."""
        return len(next(iter(self.attention.values())))

    @property
    def bytes(self) -> int:
        """Memory of what is stored."""
        inputs = sum(window.bytes for site in self.sites.values() for window in site.windows)
        return inputs + sum(part.nbytes for parts in self.attention.values() for part in parts)

    def target(self, segment: Segment, window: int) -> torch.Tensor:
        """Mean attention over the layers that ``segment`` serves: ``[rows, tokens]`` fp32, rows sum to 1."""
        pieces = self._pieces(segment)
        total = sum(self.attention[piece][window].float() for piece in pieces)
        assert isinstance(total, torch.Tensor), "a segment has a piece"
        return total / sum(self.layers[piece] for piece in pieces)

    def check(self, segment: Segment) -> None:
        """Raises ``SettingError`` where a student of ``segment`` cannot be trained from these rows."""
        self._pieces(segment)

    def _pieces(self, segment: Segment) -> list[Segment]:
        pieces = [piece for piece in self.layers if segment.site <= piece.site and piece.end <= segment.end]
        covered = sum(piece.end - piece.site for piece in pieces)
        if segment.site not in self.sites or covered != segment.end - segment.site:
            raise SettingError(
                f"nothing is stored for an indexer that serves sites {segment.site} to {segment.end - 1}",
                hint="collect rows for this segment",
            )
        return pieces


def pieces_of(segments: Iterable[Segment]) -> list[Segment]:
    """The stretches of sites between two neighbouring ends of ``segments`` that one of them covers."""
    known = list(segments)
    ends = sorted({end for segment in known for end in segment})
    return [
        piece
        for piece in map(Segment._make, pairwise(ends))
        if any(segment.site <= piece.site and piece.end <= segment.end for segment in known)
    ]


def chosen_rows(tokens: int, width: int, count: int, seed: int, window: int) -> torch.Tensor:
    """Ascending places of at most ``count`` random queries that see more than ``width`` keys.

    Args:
        tokens: of the window.
        width: how many keys are selected.
        count: of rows.
        seed: of the run.
        window: its number, so that windows differ.
    """
    draw = torch.Generator().manual_seed(1_000_003 * seed + window)
    # The query at place t sees t + 1 keys.
    return (width + torch.randperm(tokens - width, generator=draw)[:count]).sort().values


def stored_bytes(
    lengths: Sequence[int], rows: Sequence[int], sites: int, pieces: int, hidden: int, element_size: int
) -> int:
    """About how much memory rows take; latents of queries, which are small, are left out.

    Args:
        lengths: tokens of each window.
        rows: of each window.
        sites: whose inputs are stored.
        pieces: whose attention is stored.
        hidden: width of the hidden states.
        element_size: bytes of a value.
    """
    return sum(
        element_size * tokens * (sites * hidden + pieces * count)
        for tokens, count in zip(lengths, rows, strict=True)
    )


def home(device: torch.device, needed: int, free_on: dict[torch.device, int]) -> torch.device:
    """Where ``needed`` bytes are stored: on ``device`` if it has room, else in host memory.

    Args:
        device: that computes.
        needed: bytes.
        free_on: bytes that may be used, by device.

    Raises:
        MeasurementError: neither has room.
    """
    for place, free in free_on.items():
        if needed <= free:
            return place
    most = max(free_on.values())
    raise MeasurementError(
        f"the stored rows take about {needed / 1e9:.1f} GB, and {most / 1e9:.1f} GB may be used on {device.type} "
        "or in host memory",
        hint=f"use {max(1, int(100 * most / needed))} % of the windows or of the rows",
    )
