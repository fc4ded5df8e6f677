"""What lm-eval's HFLM makes of the embedded model under a plan, all full and under uniform interleaving."""

import argparse
import json
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import indexcache
from indexcache import Pattern


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--plan", default="outputs/tiny/plan.json")
    arguments.add_argument("--documents", type=int, default=6)
    given = arguments.parse_args()
    model = indexcache.load("recipes/tiny", plan=given.plan)
    harness = HFLM(pretrained=model, batch_size=2)
    with Path("recipes/tiny/calibration.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:1800] for _, line in zip(range(given.documents), lines, strict=False)]
    plan = model.indexcache.pattern
    sites = len(plan)
    for name, pattern in (
        ("all full", Pattern.all_full(sites)),
        ("plan", plan),
        ("uniform", Pattern.uniform(sites, plan.kept)),
    ):
        model.indexcache.use(pattern)
        asked = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]
        sums = harness.loglikelihood_rolling(asked, disable_tqdm=True)
        print(f"{name:9} {pattern} {sum(sums):12.1f} nats", flush=True)


if __name__ == "__main__":
    main()
