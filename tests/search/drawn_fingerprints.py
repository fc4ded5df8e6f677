"""Fingerprints of a model that does not exist, drawn at random, and answers of servers that run it."""

import numpy as np

from indexcache.search.fingerprint.document import (
    Candidate,
    Fingerprint,
    FingerprintModel,
    FingerprintRun,
    FingerprintTokenizer,
    KnownPattern,
    Prefix,
)

PATTERNS = (
    KnownPattern(name="plan", layers="FSFSSS"),
    KnownPattern(name="all full", layers="FFFFFF"),
    KnownPattern(name="uniform", layers="FSSFSS"),
    KnownPattern(name="layer 5 full instead of 2", layers="FSSSSF", near=True),
    KnownPattern(name="layer 4 full instead of 2", layers="FSSSFS", near=True),
)
TOKENS, QUIET = 8, 4


def drawn_logprobs(draw, gap, count=len(PATTERNS)):
    """Log-probabilities ``[tokens, patterns]`` that are about ``gap`` nats apart."""
    return np.round(np.minimum(-0.01, -2 - draw.random((TOKENS, 1)) + gap * draw.standard_normal((1, count))), 4)


def drawn_fingerprint(prefixes=64, gap=0.6, spread=0.05, seed=0):
    """A fingerprint whose last prefixes are quiet: all patterns agree there."""
    draw = np.random.default_rng(seed)
    return Fingerprint(
        model=FingerprintModel(
            id="drawn", weights_sha256="0" * 64, plan_sha256="1" * 64, pattern="FSFSSS", selection_width=8
        ),
        tokenizer=FingerprintTokenizer(sha256=None, vocabulary=4096, opening=(), opens=True),
        run=FingerprintRun(dtype="float32", device="cpu", versions={}, compared=("bfloat16",)),
        patterns=PATTERNS,
        prefixes=tuple(
            Prefix(
                tokens=(number, *range(7 if number >= prefixes - QUIET else 9)),
                text=f"{number}\nand so on",
                candidates=tuple(
                    Candidate(token=token, text=f"t{token}", logprobs=tuple(map(float, row)))
                    for token, row in enumerate(drawn_logprobs(draw, 0 if number >= prefixes - QUIET else gap))
                ),
                spread=spread,
            )
            for number in range(prefixes)
        ),
    )


def truth_of(fingerprint, pattern):
    """What a server computes that runs the known pattern of that number, ``[prefixes][tokens]``."""
    return [
        np.array([candidate.logprobs[pattern] for candidate in prefix.candidates])
        for prefix in fingerprint.prefixes
    ]


def another_truth(fingerprint, seed=1, gap=0.6):
    """What a server computes that runs a pattern nobody knows: the same where patterns agree, else another."""
    draw, plan = np.random.default_rng(seed), truth_of(fingerprint, 0)
    quiet = len(plan) - QUIET
    return [
        row if number >= quiet else np.minimum(-0.01, row + gap * draw.standard_normal())
        for number, row in enumerate(plan)
    ]


def answers(trial, truth, noise, draw, top=5):
    """Asks ``trial`` to its end, each answer with Student's t noise of that scale in nats; its verdict."""
    while (number := trial.next_prefix()) is not None:
        row = truth[number] + noise * draw.standard_t(3, len(truth[number]))
        likeliest = np.argsort(-row)[:top]
        trial.observe(number, {int(token): float(row[token]) for token in likeliest})
    return trial.verdict()
