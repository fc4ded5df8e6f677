"""Losses by window that the journals of two runs hold, for differences that are taken window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import JournalError
from ...evaluate import CALIBRATION, WindowLoss
from ..plan.schema import Plan
from ..run.journal import JOURNAL_FILE, read_journal
from .difference import WindowIncreases


@dataclass(frozen=True)
class KeptLosses:
    """What the journal beside a plan holds of its patterns.

    Args:
        plan: as read.
        folder: that the plan is in.
    """

    plan: Plan
    folder: Path

    @cached_property
    def _losses(self) -> Mapping[tuple[str, bool], Mapping[str, Mapping[int, WindowLoss]]]:
        """The journal's losses; none where it is gone, damaged, or of another search than the plan's."""
        try:
            stored = read_journal(self.folder / JOURNAL_FILE)
        except JournalError:
            return {}
        plan, identity = self.plan, (stored.identity if stored else None) or {}
        theirs = (identity.get("tokens"), identity.get("weights"), identity.get("dtype"))
        ours = (plan.tokens.sha256, plan.model.weights_sha256, plan.run.dtype)
        return stored.content.losses if stored and theirs == ours else {}

    def increases(self, group: str, pattern: str) -> list[float] | None:
        """By how much ``pattern`` is dearer than all full on each window of ``group``; None if some is lacking.

        In nats per label, of windows of text, not of probes.
        """
        tokens = self.plan.tokens
        count = (self.plan.search.windows or tokens.windows) if group == CALIBRATION else tokens.heldout_windows
        known = self._losses.get((group, False), {})
        losses, baseline = known.get(pattern, {}), known.get("F" * len(self.plan.model.site_layers), {})
        if not count or any(window not in losses or window not in baseline for window in range(count)):
            return None
        labels = tokens.labels  # each loss is divided before they are subtracted, as where patterns are compared
        return [losses[window].loss / labels - baseline[window].loss / labels for window in range(count)]


@dataclass(frozen=True)
class PairedLosses:
    """Losses of two plans' patterns on the same tokens, where both journals hold them.

    Args:
        old: what one plan kept.
        new: what the other kept.
        documents: by group, the document of each window of these tokens; empty where they cannot be read.
    """

    old: KeptLosses
    new: KeptLosses
    documents: Mapping[str, tuple[int, ...]]

    def __call__(self, group: str, old: str, new: str) -> WindowIncreases | None:
        """The increases of both patterns by window; None where they were not measured on the same windows."""
        if self.old.plan.tokens.sha256 != self.new.plan.tokens.sha256:
            return None
        before, after = self.old.increases(group, old), self.new.increases(group, new)
        documents = self.documents.get(group, ())
        if before is None or after is None or len(before) != len(after) or len(documents) < len(before):
            return None
        return WindowIncreases(before, after, documents[: len(before)])
