"""Losses of many patterns on many windows of one length, each measured once, a layer's rows in one batch.

It runs the package's own layer stack, switch and objectives. The package measures window by window, as its windows
are long; a benchmark's are short and many, and a GPU idles with one at a time. ``difference_from_package`` says
how far the two are apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from indexcache.dsa.model.losses import PatternLosses, input_device
from indexcache.dsa.model.objectives import divergences, key_weights, label_losses, short_pieces
from indexcache.dsa.model.stack import LayerCalls, Stack, State
from indexcache.dsa.model.switch import Switch
from indexcache.dsa.model.tail import Window
from indexcache.evaluate import WindowLoss
from indexcache.pattern import Pattern

# The largest tensors of a layer are [rows, heads, tokens, tokens] in fp32; so many bytes of them at a time.
_ROW_BYTES_ON_CPU, _ROW_BYTES_ON_GPU = 1 << 28, 12 << 30
# Positions whose logits are made at a time, and the length of the pieces that they go through the tail in.
_POSITIONS_ON_CPU, _POSITIONS_ON_GPU, _PIECE = 1 << 11, 1 << 15, 128


class LayerStack:
    """A loaded model's layers under patterns, many windows at once.

    Args:
        model: of a family whose indexers select tokens and whose layers hand on nothing else.
        site_layers: absolute ids of its sites.
    """

    def __init__(self, model: Any, site_layers: Sequence[int]) -> None:
        self.model = model
        self.site_layers = tuple(site_layers)
        self.switch = Switch(model, site_layers)
        self.stack = Stack(model, self.switch.stack_name)
        self.device = input_device(model)
        self.site_of = {layer: site for site, layer in enumerate(site_layers)}
        config = model.config.get_text_config()
        self.heads = 4 * config.num_attention_heads + 3 * getattr(config, "index_n_heads", 0)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def run(self, layer: int, hidden: Any, selection: Any, full: bool, calls: LayerCalls) -> tuple[Any, Any]:
        """What leaves ``layer`` for ``hidden`` ``[rows, tokens, ...]``, and the selection in force there."""
        self.switch.selection = selection
        self.switch.share_only(None if full else layer)
        hidden, carried = self.stack.run_layer(layer, State(hidden, selection), calls)
        if carried or not isinstance(self.switch.selection, torch.Tensor):
            raise SystemExit("this benchmark runs families whose layers hand on token indices only")
        return hidden, self.switch.selection


@dataclass(frozen=True)
class _Rows:
    """Windows in states that several patterns share so far: of row r, ``members[r]`` of the patterns."""

    hidden: Any
    selection: Any
    windows: Sequence[int]
    members: Sequence[tuple[int, ...]]

    def subset(self, rows: Sequence[int], members: Sequence[tuple[int, ...]]) -> "_Rows":
        if len(rows) == len(self.windows):
            return _Rows(self.hidden, self.selection, self.windows, members)
        index = torch.as_tensor(rows, device=self.hidden.device)
        selection = None if self.selection is None else self.selection[index]
        return _Rows(self.hidden[index], selection, [self.windows[row] for row in rows], members)


class BatchedLosses:
    """``WindowLoss`` of patterns on windows, remembered.

    Args:
        layers: the model.
        ids: windows of one length.
        blind: leading positions that no pattern changes: measured once, of all full, as the package does.
        answers: of each window the labels that count; None for all.
        weighs_keys: whether the loss on key tokens is measured too.
        on_batch: called before each batch; may raise.
    """

    def __init__(
        self,
        layers: LayerStack,
        ids: Sequence[Sequence[int]],
        blind: int,
        answers: Sequence[Sequence[int]] | None = None,
        weighs_keys: bool = False,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._layers = layers
        self.ids = torch.as_tensor(ids, device=layers.device).long()
        self.labels = self.ids.shape[1] - 1
        self._answers = None if answers is None else [torch.as_tensor(list(row)) for row in answers]
        self._blind = 0 if answers is not None else min(blind, self.labels)
        self.weighs_keys = weighs_keys
        self._on_batch = on_batch
        self._full = Pattern.all_full(len(layers.site_layers))
        self._known: dict[tuple[Pattern, bool], dict[int, WindowLoss]] = {}
        self._reference: dict[int, Any] = {}
        self._blind_loss: dict[int, WindowLoss] = {}
        self._key_weights: dict[int, Any] = {}
        self._calls: dict[int, LayerCalls] = {}
        self.measured = 0
        """Pattern x window pairs measured so far."""

    def labels_of(self, window: int) -> int:
        """How many labels of a window count."""
        return self.labels if self._answers is None else len(self._answers[window])

    def __call__(
        self, patterns: Sequence[Pattern], windows: Sequence[int], last_token: bool = False
    ) -> list[tuple[WindowLoss, ...]]:
        """Each pattern's summed losses on each of the windows; what is known is not measured again."""
        lacking: dict[tuple[Pattern, ...], list[int]] = {}
        for window in dict.fromkeys(windows):
            missing = tuple(
                pattern
                for pattern in dict.fromkeys(patterns)
                if window not in self._known.setdefault((pattern, last_token), {})
            )
            if missing:
                lacking.setdefault(missing, []).append(window)
        for missing, alike in lacking.items():
            self._measure(missing, alike, last_token)
        known = [self._known.get((pattern, last_token), {}) for pattern in patterns]
        return [tuple(losses[window] for window in windows) for losses in known]

    def _measure(self, patterns: Sequence[Pattern], windows: Sequence[int], last_token: bool) -> None:
        tokens = self.ids.shape[1]
        budget = _ROW_BYTES_ON_GPU if self._layers.on_gpu else _ROW_BYTES_ON_CPU
        rows = max(1, budget // (4 * tokens * tokens * self._layers.heads))
        self._refer(windows, rows)
        for some in _portions(patterns, rows):
            for few in _portions(windows, max(1, rows // len(some))):
                self._on_batch()
                self._keep(some, self._sweep(some, few, tokens if last_token else tokens - 1), last_token)
                self.measured += len(some) * len(few)

    def _refer(self, windows: Sequence[int], rows: int) -> None:
        """Runs all full on windows where it has not run, for what it alone gives."""
        for few in _portions([window for window in windows if window not in self._reference], rows):
            self._on_batch()
            swept = self._sweep([self._full], few, self.labels)
            self._reference |= dict(zip(swept.windows, swept.hidden, strict=True))
            if self._blind:
                positions = [torch.arange(self._blind)] * len(few)
                losses, _, correct = self._totals(swept.hidden, few, positions, compares=False)
                for window, loss, count in zip(few, losses, correct, strict=True):
                    self._blind_loss[window] = WindowLoss(loss, 0.0, 0.0, float(self._blind), count)
            if self.weighs_keys:
                self._weigh_keys(few)

    @torch.inference_mode()
    def _sweep(self, patterns: Sequence[Pattern], windows: Sequence[int], tokens: int) -> _Rows:
        """The rows that leave the last layer; what patterns have in common runs once."""
        layers, ids = self._layers, self.ids[list(windows), :tokens]
        everyone = tuple(range(len(patterns)))
        rows = _Rows(layers.stack.record(ids).hidden, None, windows, [everyone] * len(windows))
        try:
            for layer in range(len(layers.stack)):
                parts = [
                    self._run(layer, rows.subset(places, members), full, self._arguments(tokens))
                    for full, places, members in _split(rows.members, patterns, layers.site_of.get(layer))
                ]
                rows = parts[0] if len(parts) == 1 else _joined(parts)
        finally:
            layers.switch.share_only(None)
            layers.switch.forget()
        return rows

    def _run(self, layer: int, rows: _Rows, full: bool, calls: LayerCalls) -> _Rows:
        hidden, selection = self._layers.run(layer, rows.hidden, rows.selection, full, calls)
        return _Rows(hidden, selection, rows.windows, rows.members)

    def _arguments(self, tokens: int) -> LayerCalls:
        """How the model calls its layers for one window: masks and positions, which hold for all rows."""
        if tokens not in self._calls:
            self._calls[tokens] = self._layers.stack.record(self.ids[:1, :tokens])
        return self._calls[tokens]

    def _keep(self, patterns: Sequence[Pattern], rows: _Rows, last_token: bool) -> None:
        """Makes losses of the rows and remembers them."""
        first = 0 if last_token else self._blind
        every = torch.arange(first, self.labels)
        positions = [every if self._answers is None else self._answers[window] for window in rows.windows]
        losses, others, correct = self._totals(rows.hidden, rows.windows, positions, compares=True)
        for row, (window, members) in enumerate(zip(rows.windows, rows.members, strict=True)):
            divergence, agreement, key_loss = others[row]
            measured = WindowLoss(losses[row], divergence, key_loss, agreement, correct[row])
            if first:
                measured = WindowLoss(*map(sum, zip(self._blind_loss[window], measured, strict=True)))
            for member in members:
                self._known[patterns[member], last_token][window] = measured

    @torch.inference_mode()
    def _totals(
        self, hidden: Any, windows: Sequence[int], positions: Sequence[Any], compares: bool
    ) -> tuple[list[float], list[tuple[float, ...]], list[float]]:
        """Sums over each row's positions: cross entropy; divergence, agreement and key loss; correct labels."""
        device = self._layers.device
        row_of = torch.repeat_interleave(
            torch.arange(len(windows)), torch.as_tensor([len(some) for some in positions])
        ).to(device)
        place = torch.cat(list(positions)).to(device)
        window_of = torch.as_tensor(list(windows), device=device)[row_of]
        sums = torch.zeros(5, len(windows), dtype=torch.float64, device=device)
        known = sorted(set(windows)) if compares else []
        at = {window: number for number, window in enumerate(known)}
        reference = torch.stack([self._reference[window] for window in known]) if known else None
        weights = (
            torch.stack([self._key_weights[window] for window in known]) if known and self._key_weights else None
        )
        of_known = torch.as_tensor([at.get(window, 0) for window in windows], device=device)[row_of]
        for first in range(0, len(place), self._chunk):
            part = slice(first, first + self._chunk)
            rows, here, labels = row_of[part], place[part], self.ids[window_of[part], place[part] + 1]
            logits = self._logits(hidden[rows, here])
            loss, likeliest = label_losses(logits, labels), logits.argmax(-1)
            sums[0].index_add_(0, rows, loss.double())
            sums[4].index_add_(0, rows, (likeliest == labels).double())
            if reference is not None:
                other = self._logits(reference[of_known[part], here])
                sums[1].index_add_(0, rows, divergences(other, logits).double())
                sums[2].index_add_(0, rows, (likeliest == other.argmax(-1)).double())
            if weights is not None:
                sums[3].index_add_(0, rows, (loss * weights[of_known[part], here]).double())
        if weights is None:
            sums[3].fill_(torch.nan)
        totals = sums.cpu().tolist()
        return totals[0], list(zip(*totals[1:4], strict=True)), totals[4]

    def _logits(self, states: Any) -> Any:
        """Logits ``[positions, vocabulary]`` of ``states`` ``[positions, ...]``; the tail knows no neighbours."""
        count = len(states)
        padded = torch.cat([states, states[:1].expand(-count % _PIECE, *states.shape[1:])])
        pieces = padded.unflatten(0, (-1, _PIECE))
        ids = torch.zeros(pieces.shape[:2], dtype=torch.long, device=states.device)
        return self._layers.stack.logits(pieces, ids).flatten(0, 1)[:count].float()

    @torch.inference_mode()
    def _weigh_keys(self, windows: Sequence[int]) -> None:
        """The weight of each label, as the package finds it, for many windows at once."""
        ids, stack = self.ids[list(windows)], self._layers.stack
        long_losses = self._losses(torch.stack([self._reference[window] for window in windows]), ids[:, 1:])
        short_losses = long_losses.clone()
        for start, first, end in short_pieces(self.labels):
            piece = ids[:, start:end]
            calls, hidden, selection = stack.record(piece[:1]), stack.record(piece).hidden, None
            for layer in range(len(stack)):
                hidden, selection = self._layers.run(layer, hidden, selection, True, calls)
            short_losses[:, first:end] = self._losses(hidden[:, first - start :], ids[:, first + 1 : end + 1])
        self._layers.switch.forget()
        short_losses[:, : self._blind] = long_losses[:, : self._blind]
        for window, long_loss, short_loss in zip(windows, long_losses, short_losses, strict=True):
            self._key_weights[window] = key_weights(long_loss, short_loss)

    def _losses(self, hidden: Any, labels: Any) -> Any:
        """Cross entropy ``[windows, tokens]`` of ``labels`` after the states ``[windows, tokens, ...]``."""
        states, chunk = hidden.flatten(0, 1), self._chunk
        parts = [
            label_losses(self._logits(states[first : first + chunk]), labels.flatten()[first : first + chunk])
            for first in range(0, len(states), chunk)
        ]
        return torch.cat(parts).view(labels.shape)

    @property
    def _chunk(self) -> int:
        """Positions whose logits are made at a time."""
        return _POSITIONS_ON_GPU if self._layers.on_gpu else _POSITIONS_ON_CPU


def _portions(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


def _split(
    members: Sequence[tuple[int, ...]], patterns: Sequence[Pattern], site: int | None
) -> list[tuple[bool, list[int], list[tuple[int, ...]]]]:
    """Rows by the role that their patterns give a site: (full, rows, members of each)."""
    if site is None:
        return [(True, list(range(len(members))), list(members))]
    parts = []
    for full in (True, False):
        role = {
            row: tuple(member for member in row if patterns[member].is_full(site) is full) for row in set(members)
        }
        places = [place for place, row in enumerate(members) if role[row]]
        if places:
            parts.append((full, places, [role[members[place]] for place in places]))
    return parts


def _joined(parts: Sequence[_Rows]) -> _Rows:
    return _Rows(
        torch.cat([part.hidden for part in parts]),
        torch.cat([part.selection for part in parts]),
        [window for part in parts for window in part.windows],
        [members for part in parts for members in part.members],
    )


def difference_from_package(
    layers: LayerStack, losses: BatchedLosses, patterns: Sequence[Pattern], windows: Sequence[int], blind: int
) -> WindowLoss:
    """The largest difference, a label, between ``losses`` and what the package's own evaluator measures."""
    package = PatternLosses(layers.model, layers.site_layers, blind=blind)
    wanted = [Window(number, losses.ids[number].tolist(), weighs_keys=losses.weighs_keys) for number in windows]
    by_window = package.compare(patterns, wanted)
    package.switch.remove()
    differences = [
        [abs(a - b) / losses.labels for a, b in zip(ours, theirs, strict=True)]
        for ours_of, theirs_of in zip(losses(patterns, windows), zip(*by_window, strict=True), strict=True)
        for ours, theirs in zip(ours_of, theirs_of, strict=True)
    ]
    return WindowLoss(*torch.tensor(differences).amax(0).tolist())  # NaN where one is
