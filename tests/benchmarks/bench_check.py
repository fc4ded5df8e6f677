"""Tries the trial of a running server where the truth is known: patterns, half-split rotary, noise on answers.

Run by hand or with ``make bench-check``; some minutes on one core. Answers are those of transformers' own model
under a pattern, in float32, in bfloat16 and with weights rounded to eight bits, and again with noise on top.
"""

import argparse
import random
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as stock

from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.model.switch import Switch
from indexcache.pattern import FULL, SHARED, Pattern
from indexcache.search.fingerprint.document import fingerprint_file, read_fingerprint
from indexcache.search.fingerprint.trial import Trial
from indexcache.search.plan.file import plan_file, read_plan

ARITHMETIC = ("float32", "bfloat16", "8-bit weights")
# In spreads that the fingerprint measured, drawn from Student's t with three degrees of freedom; or the steps in
# nats that a server rounds its answers to.
NOISE = (
    ("none on top", 0.0, 0.0),
    ("1 x spread", 1.0, 0.0),
    ("4 x spread", 4.0, 0.0),
    ("steps of 0.125", 0.0, 0.125),
)
NEIGHBOURS, OTHERS = 20, 5


def swapped(roles, draw):
    """``roles`` with a full site shared and a shared one full."""
    gone = draw.choice([site for site, role in enumerate(roles) if site and role == FULL])
    come = draw.choice([site for site, role in enumerate(roles) if role == SHARED])
    letters = list(roles)
    letters[gone], letters[come] = SHARED, FULL
    return "".join(letters)


def distinct(make, count, taken):
    """``count`` patterns that ``make`` gives and that are not ``taken``."""
    patterns = set()
    while len(patterns) < count:
        patterns |= {make()} - taken
    return sorted(patterns)


def named_patterns(plan, fingerprint):
    """The roles of the known patterns that a verdict may name."""
    sites = plan.model.site_layers
    known = [pattern for pattern in fingerprint.patterns if not pattern.near]
    return {pattern.name: "".join(pattern.layers[layer] for layer in sites) for pattern in known}


def truths(plan, named):
    """What a server may run: (kind of truth, roles, the verdict that is right, half-split rotary)."""
    draw, roles = random.Random(0), plan.result.pattern
    for name, known in named.items():
        yield name, known, ("plan" if known == roles else "other", name), False
    none = ("none", None)
    yield "half-split rotary", roles, none, True
    taken = set(named.values())
    near = distinct(lambda: swapped(roles, draw), NEIGHBOURS, taken)
    two = distinct(lambda: swapped(swapped(roles, draw), draw), OTHERS, taken | set(near))
    shuffled = distinct(
        lambda: FULL + "".join(draw.sample(roles[1:], len(roles) - 1)), OTHERS, taken | set(near + two)
    )
    for kind, patterns in (("one swap away", near), ("two swaps away", two), ("as many at random", shuffled)):
        yield from ((kind, pattern, none, False) for pattern in patterns)


def half_split(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    """Rotary embedding that pairs dimension i with i + half, as engines do that miss indexer_rope_interleave."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turned(states):
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin

    return turned(q), turned(k)


@contextmanager
def misread_rotary(model, is_misread):
    """The model whose indexers, and they alone, turn halves where ``is_misread``."""
    _, indexers = find_indexers(model)
    interleaved, before = stock.apply_rotary_pos_emb_interleave, {}
    for indexer in indexers.values() if is_misread else ():
        before[indexer] = indexer.forward

        def forward(*args, stock_forward=indexer.forward, **kwargs):
            stock.apply_rotary_pos_emb_interleave = half_split
            try:
                return stock_forward(*args, **kwargs)
            finally:
                stock.apply_rotary_pos_emb_interleave = interleaved

        indexer.forward = forward
    try:
        yield
    finally:
        for indexer, forward in before.items():
            indexer.forward = forward


def loaded(folder, arithmetic):
    """The model in eval mode; matrices rounded to e4m3 by rows and computed in bfloat16 for 8-bit weights."""
    dtype = torch.float32 if arithmetic == "float32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    if arithmetic == "8-bit weights":
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
                scale = weight.data.abs().amax(dim=1, keepdim=True).float() / 448
                codes = (weight.data.float() / scale).to(torch.float8_e4m3fn)
                weight.data = (codes.float() * scale).to(dtype)
    return model


@torch.inference_mode()
def answers(model, switch, roles, is_misread, fingerprint):
    """The ``top`` log-probabilities after every prefix; one run gives those of all prefixes of a window."""
    switch.use(Pattern(roles))
    given, longest = {}, sorted((prefix.tokens for prefix in fingerprint.prefixes), key=len, reverse=True)
    with misread_rotary(model, is_misread):
        for tokens in longest:
            if tokens in given:
                continue
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].float().log_softmax(-1)
            for prefix in fingerprint.prefixes:
                length = len(prefix.tokens)
                if prefix.tokens == tokens[:length]:
                    values, ids = logprobs[length - 1].topk(4 * fingerprint.top)
                    given[prefix.tokens] = ids.numpy(), values.numpy().astype(float)
    return [given[prefix.tokens] for prefix in fingerprint.prefixes]


def tried(fingerprint, given, scale, step, seed, budget):
    """The verdict on answers with noise on top; a server sorts after it errs, and gives the likeliest."""
    draw, trial = np.random.default_rng(seed), Trial(fingerprint, budget)
    while (number := trial.next_prefix()) is not None:
        ids, values = given[number]
        noisy = values + scale * fingerprint.prefixes[number].spread * draw.standard_t(3, len(values))
        noisy = np.minimum(0.0, np.round(noisy / step) * step if step else noisy)
        likeliest = np.argsort(-noisy, kind="stable")[: fingerprint.top]
        trial.observe(number, {int(ids[place]): float(noisy[place]) for place in likeliest})
    return trial.verdict()


def outcome_of(verdict, right):
    """How a verdict is right or wrong; "misnamed" takes another pattern than the plan for one that it is not."""
    if (verdict.kind, verdict.pattern) == right:
        return "right"
    if verdict.kind == "unsure":
        return "unsure"
    is_plan = (verdict.kind == "plan", right[0] == "plan")
    return "wrong" if any(is_plan) else "misnamed"


def report(counts, requests):
    """A line for each kind of truth and each noise."""
    print(f"{'truth':28} {'arithmetic':14} {'noise':15} right unsure misnamed wrong  requests median, most")
    for (truth, arithmetic, noise), outcomes in counts.items():
        asked = requests[truth, arithmetic, noise]
        figures = "".join(f"{outcomes[name]:6}" for name in ("right", "unsure", "misnamed", "wrong"))
        print(f"{truth:28} {arithmetic:14} {noise:15}{figures}  {median(asked):g}, {max(asked)}")
    total = sum((outcomes for outcomes in counts.values()), Counter())
    print(f"all: {dict(total)}, {100 * total['wrong'] / total.total():.2f} % wrong")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="a plan with a fingerprint beside it")
    parser.add_argument("--runs", type=int, default=10, help="draws of noise for each truth; 10 by default")
    parser.add_argument("--max-requests", type=int, default=200, help="200 by default")
    options = parser.parse_args()
    path, began = plan_file(options.plan), time.monotonic()
    plan, fingerprint = read_plan(path), read_fingerprint(fingerprint_file(path))
    near = sum(pattern.near for pattern in fingerprint.patterns)
    print(f"{len(fingerprint.prefixes)} prefixes, {len(fingerprint.patterns)} known patterns, {near} of them near")
    counts, requests, named = {}, {}, named_patterns(plan, fingerprint)
    for arithmetic in ARITHMETIC:
        model = loaded(plan.model.id, arithmetic)
        switch = Switch(model, plan.model.site_layers)
        for truth, roles, right, is_misread in truths(plan, named):
            given = answers(model, switch, roles, is_misread, fingerprint)
            for noise, scale, step in NOISE:
                for seed in range(options.runs if scale else 1):
                    verdict = tried(fingerprint, given, scale, step, seed, options.max_requests)
                    outcome = outcome_of(verdict, right)
                    counts.setdefault((truth, arithmetic, noise), Counter())[outcome] += 1
                    requests.setdefault((truth, arithmetic, noise), []).append(verdict.evidence.requests)
    report(counts, requests)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
