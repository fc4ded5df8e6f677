"""Simulates documents with known means: coverage of intervals, and how often decided, dropped, refined is wrong.

Run by hand or with ``make bench-intervals``; two minutes on one core, no torch. ``RUNS`` replications, or five
times as many for the coverage, leave a standard error of 0.3 % and 0.15 % at 5 %.
"""

import argparse
import itertools
import math
import time
from statistics import NormalDist

import numpy as np

from indexcache.search.intervals import Interval, Margin, critical_value, interval
from indexcache.search.losses import Difference, effective_documents
from indexcache.search.resamples import document_resamples
from indexcache.search.sample_size import Choice, look_confidence, look_count, outlook

RUNS = 4000
EQUAL = [(1,) * count for count in (2, 3, 4, 6, 8, 16, 32, 64)]
UNEQUAL = [
    (1, 3), (1, 15), (1, 2, 4, 8), (1, 1, 1, 29), (2, 2, 60), (2, 2, 5, 5, 9, 9), (1, 1, 1, 2, 4, 7),
    (1,) * 6 + (26,), (1,) * 4 + (4,) * 4, (1,) * 8 + (8, 8), (1,) * 16 + (16,),
]  # fmt: skip
"""Windows of each document."""


def effects(kind, shape, draw):
    """Document effects with mean zero and variance one."""
    if kind == "normal":
        return draw.standard_normal(shape)
    if kind == "t3":
        return draw.standard_t(3, shape) / math.sqrt(3)
    if kind == "exponential":
        return draw.exponential(1.0, shape) - 1
    spread = float(kind.removeprefix("lognormal "))
    values = np.exp(spread * draw.standard_normal(shape) - spread**2 / 2) - 1
    return values / math.sqrt(math.exp(spread**2) - 1)


def statistics_of(sums, sizes):
    """Mean, jackknife standard error and skewness of the mean, from sums over documents ``[..., documents]``."""
    sizes = np.asarray(sizes, dtype=float)
    n, count = sizes.sum(), len(sizes)
    mean = sums.sum(-1) / n
    pulls = (sums - sizes * mean[..., None]) / (n - sizes)
    error = np.sqrt((count - 1) / count * (pulls**2).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        cubes = ((pulls / error[..., None]) ** 3).sum(-1)
    skewness = (count - 1) ** 2 / (count * (count - 2)) * cubes if count > 2 else np.zeros_like(mean)
    return mean, error, np.nan_to_num(skewness)


def reach(tail, sizes, skewness):
    """How many standard errors an end is away, on the side to which ``skewness`` is positive."""
    z = NormalDist().inv_cdf(1 - tail)
    return critical_value(tail, tuple(sorted(sizes))) + np.maximum(skewness, 0) * (1 + 2 * z * z) / 6


def check_against_the_package(draw):
    """The arrays here compute what the package does."""
    for sizes in (*EQUAL[1:5], *UNEQUAL):
        documents = np.repeat(np.arange(len(sizes)), sizes)
        losses = draw.exponential(1.0, len(documents))
        mean, error, skewness = statistics_of(np.bincount(documents, losses), sizes)
        ends = interval(losses.tolist(), documents.tolist())
        np.testing.assert_allclose(ends.high, mean + reach(0.025, sizes, skewness) * error, rtol=1e-9)
        np.testing.assert_allclose(ends.low, mean - reach(0.025, sizes, -skewness) * error, rtol=1e-9)


def coverage(draw):
    """Coverage of what ships, and of what was not taken."""
    print("\n## Coverage of 95 % intervals: two-sided, and of the upper bound alone, in %")
    print("shared: the part of a window's variance that all windows of a document have in common")
    rules = ("ships", "no skewness", "t, G - 1", "t, Kish - 1", "normal")
    print(f"{'documents of sizes':21} {'effects':13} shared | " + " | ".join(f"{rule:11}" for rule in rules))
    kinds = ("normal", "t3", "exponential", "lognormal 0.5", "lognormal 1")
    cases = [(sizes, kind, 1.0) for sizes in EQUAL for kind in kinds]
    cases += [(sizes, "normal", shared) for sizes in UNEQUAL for shared in (1.0, 0.3, 0.0)]
    cases += [(sizes, kind, 1.0) for sizes in UNEQUAL for kind in ("t3", "exponential")]
    for sizes, kind, shared in cases:
        columns = " | ".join(covered(sizes, kind, shared, draw))
        print(f"{short(sizes):21} {kind:13} {shared:6} | {columns}")


def covered(sizes, kind, shared, draw, tails=(0.025, 0.025, 0.05)):
    """One row: for each rule the share of intervals, and of upper bounds, that hold the mean."""
    count, windows = len(sizes), np.asarray(sizes, dtype=float)
    sums = math.sqrt(shared) * windows * effects(kind, (5 * RUNS, count), draw)
    sums += np.sqrt((1 - shared) * windows) * draw.standard_normal((5 * RUNS, count))
    mean, error, skewness = statistics_of(sums, sizes)
    kish = effective_documents(np.repeat(np.arange(count), sizes).tolist(), sum(sizes))
    for low, high, upper in (
        [reach(tail, sizes, side * skewness) for tail, side in zip(tails, (-1, 1, 1), strict=True)],
        [critical_value(tail, sizes) for tail in tails],
        [t_quantile(tail, count - 1) for tail in tails],
        [t_quantile(tail, max(1.0, kish - 1)) for tail in tails],
        [NormalDist().inv_cdf(1 - tail) for tail in tails],
    ):
        both = np.mean((mean - low * error <= 0) & (mean + high * error >= 0))
        yield f"{100 * both:5.1f} {100 * np.mean(mean + upper * error >= 0):5.1f}"


def t_quantile(tail, degrees):
    """Student's t quantile for degrees of freedom that are no whole number, between those that are."""
    low = math.floor(degrees)
    ends = [1 / critical_value(tail, (1,) * (count + 1)) for count in (low, low + 1)]
    return 1 / (ends[0] + (degrees - low) * (ends[1] - ends[0]))


def short(sizes):
    """``(1, 1, 1, 29)`` as ``3 x 1, 29``."""
    runs = [(size, len(list(group))) for size, group in itertools.groupby(sizes)]
    return ", ".join(f"{count} x {size}" if count > 1 else f"{size}" for size, count in runs)


def steps(draw):
    """How often a step is called decided, and wrongly, against the runner-up alone and against every rival."""
    print("\n## Steps called decided / where the winner is not the best one, in % of all steps (of those decided)")
    print("spread: of the true increases, in standard errors of a mean; 0: all are equal, all decisions wrong")
    rules = ("ships: all rivals", "runner-up alone", "all, one-sided")
    print("candidates documents spread scales        effects     | " + " | ".join(f"{rule:19}" for rule in rules))
    cases = [(0, "alike"), (0, "unlike"), (10, "alike"), (2, "alike"), (50, "alike"), (50, "unlike")]
    cases += [(1, "best is noisy")]
    for kind, count, documents in itertools.product(("normal", "exponential"), (2, 10, 60), (3, 8, 32)):
        for spread, scales in cases if kind == "normal" else cases[:3]:
            columns = " | ".join(step(kind, count, documents, spread, scales, draw))
            print(f"{count:10} {documents:9} {spread:6} {scales:13} {kind:11} | {columns}")


def candidates(kind, count, documents, spread, scales, draw):
    """True increases ``[runs, candidates]``, and values on documents ``[runs, candidates, documents]``."""
    true = draw.exponential(spread, (RUNS, count)) / math.sqrt(documents)
    scale = np.exp(draw.standard_normal((RUNS, count))) if scales == "unlike" else np.ones((RUNS, count))
    if scales == "best is noisy":
        true, scale = np.zeros((RUNS, count)), np.full((RUNS, count), 0.05)
        true[:, 0], scale[:, 0] = -spread / math.sqrt(documents), 3.0
    return true, true[..., None] + scale[..., None] * effects(kind, (RUNS, count, documents), draw)


def step(kind, count, documents, spread, scales, draw):
    """One row: for each rule how often it decides, and wrongly."""
    true, values = candidates(kind, count, documents, spread, scales, draw)
    winner, second = values.mean(2).argsort(1)[:, :2].T
    rows, sizes = np.arange(RUNS), (1,) * documents
    mean, error, skewness = statistics_of(values - values[rows, winner][:, None], sizes)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(error > 0, mean / error, np.inf)
    wrong = true[rows, winner] > true.min(1) if spread else np.ones(RUNS, bool)
    beaten = ratio > reach(0.025, sizes, -skewness)
    for call in (beaten.all(1), beaten[rows, second], (ratio > reach(0.05, sizes, -skewness)).all(1)):
        among = 100 * wrong[call].mean() if call.any() else 0.0
        yield f"{100 * call.mean():4.1f} / {100 * (call & wrong).mean():4.1f} ({among:5.1f})"


def looking_again(draw):
    """Two equal candidates, windows doubled until they seem decided."""
    print("\n## Two equal candidates, windows doubled until decided: ever called decided, in %")
    for start, end in ((4, 32), (8, 128), (16, 256)):
        values, looks = draw.standard_normal((RUNS, end)), look_count(start, end)
        shares = []
        for confidence in (0.95, look_confidence(0.95, looks)):
            ever = np.zeros(RUNS, bool)
            for count in [min(end, start << look) for look in range(looks)]:
                mean, error, skewness = statistics_of(values[:, :count], (1,) * count)
                ever |= np.abs(mean) > reach((1 - confidence) / 2, (1,) * count, -np.sign(mean) * skewness) * error
            shares.append(f"{100 * ever.mean():4.1f}")
        print(f"{start:2} to {end:3} windows, {looks} looks: 95 % a look {shares[0]}, look_confidence {shares[1]}")


def forecasts(draw):
    """How often a difference is decided at the number of windows that its forecast names; half is right."""
    print("\n## Two candidates at the forecast number of windows: decided, in %")
    for windows, ratio in itertools.product((4, 16), (0.5, 1.0, 1.5)):
        difference = Difference(ratio / math.sqrt(windows), 1 / math.sqrt(windows))
        margin = Margin(difference, Interval(-1.0, 1.0, 0.95))
        count = int(outlook([Choice(1, {2: margin})], windows, windows, 10**6).ties[0].windows)
        mean, error, skewness = statistics_of(difference.delta + draw.standard_normal((RUNS, count)), (1,) * count)
        share = 100 * np.mean(mean > reach(0.025, (1,) * count, -skewness) * error)
        print(f"{ratio} standard errors on {windows:2} windows: forecast {count:3}, decided there {share:4.1f}")


def refinement(draw):
    """The best of many swaps that change nothing, tested against the pattern in force."""
    print("\n## The best of equal swaps against the pattern in force, 5 % test: called better, in %")
    for choices, documents in itertools.product((1, 10, 100), (4, 16)):
        change = draw.standard_normal((RUNS, choices, documents)) - draw.standard_normal((RUNS, 1, documents))
        best = change[np.arange(RUNS), change.mean(2).argmin(1)]
        mean, error, _ = statistics_of(best, (1,) * documents)
        once, times = (
            100 * np.mean(mean < -critical_value(tail, (1,) * documents) * error)
            for tail in (0.05, 0.05 / choices)
        )
        print(f"{choices:3} swaps, {documents:2} documents: one test {once:4.1f}, times the swaps {times:4.1f}")


def students(standard_errors):
    """The rule that is as unlikely as ``standard_errors`` of a normal, as ``clearly_worse`` has it."""
    return lambda sizes: critical_value(NormalDist().cdf(-standard_errors), tuple(sorted(map(int, sizes))))


RULES = {
    "t as 3": students(3.0),
    "t as 2": students(2.0),
    "3, of 4 documents at least": lambda sizes: 3.0 if sizes.sum() ** 2 / (sizes**2).sum() >= 4 else 1e9,
    "3": lambda sizes: 3.0,
}
"""By how many standard errors a pattern has to be worse than the best to leave a race."""


def races(draw):
    """Races as search/strategies/race.py runs them: at 4, 8, 16, ... windows, each against the best."""
    print("\n## Races: best one dropped %, regret in thousandths of a window's noise, windows measured %")
    print("candidates windows documents spread | " + " | ".join(f"{name:26}" for name in RULES))
    for count, windows, spread in itertools.product((16, 60), (16, 32), (0.1, 0.5, 2.0)):
        for documents in (windows, windows // 4):
            columns = " | ".join(race(count, windows, documents, spread, draw))
            print(f"{count:10} {windows:7} {documents:9} {spread:6} | {columns}")


def race(count, windows, documents, spread, draw):
    """Half of a window's variance is its document's, all of one size; ``spread`` is in a window's noise."""
    origin = np.eye(documents, dtype=np.float32)[draw.permutation(np.arange(windows) % documents)]
    true = draw.exponential(spread, (RUNS, count)).astype(np.float32)
    values = draw.standard_normal((RUNS, count, documents), dtype=np.float32) @ origin.T
    values += draw.standard_normal((RUNS, count, windows), dtype=np.float32)
    values = true[..., None] + math.sqrt(0.5) * values
    return [raced(true, values, origin, rule) for rule in RULES.values()]


def raced(true, values, origin, rule):
    """One rule's races on these values."""
    windows, rows = values.shape[2], np.arange(RUNS)
    alive, measured, looked, before = np.ones(true.shape, bool), 0.0, 4, 0
    while True:
        best = np.where(alive, values[..., :looked].mean(2), np.inf).argmin(1)
        measured += alive.mean() * (looked - before) / windows
        if looked == windows:
            break
        seen = origin[:looked][:, origin[:looked].any(0)]
        if seen.shape[1] > 1:
            difference = values[..., :looked] - values[rows, best][:, None, :looked]
            mean, error, _ = statistics_of(difference @ seen, seen.sum(0))
            alive &= mean <= rule(seen.sum(0)) * error
        looked, before = min(2 * looked, windows), looked
    dropped = 1 - alive[rows, true.argmin(1)].mean()
    regret = (true[rows, best] - true.min(1)).mean()
    return f"{100 * dropped:8.1f} {1000 * regret:8.1f} {100 * measured:8.1f}"


def chances(draw):
    """Whether a winner of 60 to 80 % of the resamples, say, is the best one as often."""
    print("\n## Share of resamples that the winner wins: how often it is the best one, in % (steps of 4000)")
    print("of true increases that spread by 3 standard errors; ships: G - 1 of G documents drawn")
    for count, documents in itertools.product((2, 10), (4, 8, 32)):
        true, values = candidates("normal", count, documents, 3, "alike", draw)
        winner = values.mean(2).argmin(1)
        for name, weights in (
            ("G - 1", np.array(document_resamples((), documents, 400), dtype=float)),
            ("G", draw.multinomial(documents, [1 / documents] * documents, 400).astype(float)),
        ):
            winners = np.array([(part @ weights.T).argmin(0) for part in values])
            row = truth((winners == winner[:, None]).mean(1), winner == true.argmin(1))
            print(f"{count:2} candidates, {documents:2} documents, {name:5}: {row}")


def truth(share, right):
    """How often ``right``, by classes of ``share``."""
    cells = []
    for low, high in itertools.pairwise((0.0, 0.4, 0.6, 0.8, 0.95, 1.01)):
        inside = (share >= low) & (share < high)
        if inside.sum() >= 50:
            cells.append(f"{100 * share[inside].mean():3.0f}: {100 * right[inside].mean():2.0f} ({inside.sum()})")
    return "  ".join(cells)


PARTS = {part.__name__: part for part in (coverage, steps, looking_again, forecasts, refinement, races, chances)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="all by default")
    for name in parser.parse_args().parts:
        began = time.perf_counter()
        draw = np.random.default_rng(20261126)
        check_against_the_package(draw)
        PARTS[name](draw)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
