"""The highest scores of each row, read about once: a sample gives a threshold, what passes it is chosen from."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 2048
# A threshold aims at this many times ``width`` scores, so that it seldom lets through too few.
_MARGIN = 1.4


@triton.jit
def _ordered(values):
    """Integers in the order of the fp32 ``values``.

    The bits of positive floats are ordered like integers; those of negative ones the other way round, so that all
    but their sign is inverted.
    """
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _between(low, high):
    """Half-way from ``low`` to ``high``, rounded down: the bits both have, and half the others; no overflow."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _at_rank(values, rank):
    """The largest integer that at least ``rank`` of ``values`` reach, by bisection over all 2^32."""
    low = tl.full((), -2147483648, tl.int32)
    high = tl.full((), 2147483647, tl.int32)
    while low < high:
        middle = _between(low, high) + ((low ^ high) & 1)  # rounded up, so that ``low`` moves in each turn
        enough = tl.sum((values >= middle).to(tl.int32)) >= rank
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit
def _pass_through(
    scores, values, places, length, threshold, low, high, above, width, ROOM: tl.constexpr, BLOCK: tl.constexpr
):
    """Stores what reaches ``threshold``, in order, and returns how much that is; it may be more than ROOM.

    Once ``high`` follows on ``low``, everything at ``low`` is tied at the threshold: the first of them fill up.
    """
    passed = 0
    tied = 0
    only_ties = _between(low, high) == low
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < length
        value = _ordered(tl.load(scores + place, mask=inside, other=float("-inf")))
        take = inside & (value >= threshold)
        if only_ties:
            equal = (inside & (value == low)).to(tl.int32)
            take = inside & ((value >= high) | ((value == low) & (tied + tl.cumsum(equal, 0) <= width - above)))
            tied += tl.sum(equal)
        ones = take.to(tl.int32)
        slot = passed + tl.cumsum(ones, 0) - ones  # how many before it pass
        tl.store(values + slot, value, mask=take & (slot < ROOM))
        tl.store(places + slot, place, mask=take & (slot < ROOM))
        passed += tl.sum(ones)
    return passed


@triton.jit
def _select(
    scores, stride, chosen, values, places, first, width, aim,
    ROOM: tl.constexpr, SAMPLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program: one row of scores [rows, keys], of which the first ``length`` count, to chosen [rows, width].
    # Whatever reaches a threshold is copied to values and places [rows, ROOM]; the threshold fits when that is at
    # least ``width`` and at most ROOM. It is guessed from a sample, then bisected between ``low`` and ``high``:
    # it always ends, as these come nearer in each turn and ties at the last value are cut off by place.
    row = tl.program_id(0)
    length = first + row + 1
    scores += row.to(tl.int64) * stride
    values += row.to(tl.int64) * ROOM
    places += row.to(tl.int64) * ROOM
    slot = tl.arange(0, ROOM)
    lowest = tl.full((), -2147483648, tl.int32)
    if length <= ROOM:
        value = tl.where(slot < length, _ordered(tl.load(scores + slot, mask=slot < length, other=0.0)), lowest)
        place = slot
    else:
        part = tl.arange(0, SAMPLE)
        # Runs of 32 neighbours, evenly spread: whole cache lines are read.
        sample = _ordered(tl.load(scores + part // 32 * (length // (SAMPLE // 32)) + part % 32))
        rank = tl.maximum((aim * (SAMPLE / length)).to(tl.int32), 1)
        low = lowest  # reached by more than there is room for
        high = tl.full((), 2147483647, tl.int32)  # reached by ``above``, fewer than ``width``
        above = 0
        passed = 0
        stepped = 0
        threshold = _at_rank(sample, rank)
        while (passed < width) | (passed > ROOM):
            passed = _pass_through(scores, values, places, length, threshold, low, high, above, width, ROOM, BLOCK)
            if passed < width:
                high = threshold
                above = passed
                rank = tl.minimum(rank * 2, SAMPLE)
            elif passed > ROOM:
                low = threshold
                rank = tl.maximum(rank // 2, 1)
            if (passed < width) | (passed > ROOM):
                guess = _at_rank(sample, rank)
                threshold = tl.where((guess > low) & (guess < high), guess, _between(low, high))
                # A sample that knows nothing above a threshold may be full of scores equal to it.
                if (guess <= low) & (stepped == 0):
                    threshold = low + 1
                    stepped = 1
        tl.debug_barrier()  # values and places were written by other threads of the program
        value = tl.load(values + slot, mask=slot < passed, other=-2147483648)
        place = tl.load(places + slot, mask=slot < passed, other=0)
    # The ``width`` highest of what is left, at most ROOM: all above the last one's value, and its first ties.
    last = _at_rank(value, width)
    higher = (value > last).to(tl.int32)
    equal = (value == last).to(tl.int32)
    take = (value > last) | ((value == last) & (tl.cumsum(equal, 0) <= width - tl.sum(higher)))
    ones = take.to(tl.int32)
    tl.store(chosen + row.to(tl.int64) * width + tl.cumsum(ones, 0) - ones, place, mask=take)


def select_top(scores: torch.Tensor, first: int, width: int) -> torch.Tensor:
    """Where the ``width`` highest scores of each row are, ascending: ``[rows, width]`` int32.

    For row ``n``: ``sorted(topk(scores[n, : first + n + 1], width).indices)``, but that among equal scores the
    first ones win. The PyTorch reference is the ``topk`` of ``select_tokens`` in ``dsa/long/scores.py``.

    Args:
        scores: ``[rows, keys]`` fp32; undefined behind a row's own place.
        first: place of the first row, at least ``width - 1``.
        width: how many.
    """
    rows = len(scores)
    room = max(64, triton.next_power_of_2(2 * width))
    chosen = torch.empty(rows, width, dtype=torch.int32, device=scores.device)
    values, places = (torch.empty(rows, room, dtype=torch.int32, device=scores.device) for _ in range(2))
    with torch.cuda.device_of(scores):  # Triton launches on the current one
        _select[(rows,)](
            scores, scores.stride(0), chosen, values, places, first, width, _MARGIN * width,
            room, room, min(_BLOCK, room), num_warps=4,
        )  # fmt: skip
    return chosen
