"""Losses of the embedded model at full precision, frozen in a file: measured again, they are the same.

python tests/golden_losses.py            compares
python tests/golden_losses.py --write    writes them anew
"""

import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import transformers
from random_models import load_checkpoint

from indexcache.calibrate.windows import WindowRequest, pack
from indexcache.commands.job.identity import processor
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.pattern import Pattern

TESTS = Path(__file__).resolve().parent
EMBEDDED = TESTS.parent / "recipes" / "tiny"
GOLDEN = TESTS / "assets" / "losses" / "tiny.txt"

LENGTH, WINDOWS, SEED = 512, 4, 11
# What ``indexcache search --recipe tiny`` finds, here on other windows.
SEARCHED = Pattern("FSFSSSSFSFSSSSSS")
PATTERNS = {"full": Pattern.all_full(16), "searched": SEARCHED, "uniform": Pattern.uniform(16, 4)}
# Elsewhere products are rounded otherwise, and a key whose score is nearly the same may be selected instead:
# with the plainest instructions of the same processor a loss was off by 1.9e-6.
CLOSE = 1e-5


def circumstances():
    """What decides how a CPU rounds; where all of it is the same, so is every bit of a loss."""
    return {
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def windows():
    """Token ids of the windows, from the embedded calibration text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED)
    with (EMBEDDED / "calibration.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return pack(texts, tokenizer, WindowRequest(LENGTH, WINDOWS, 0, seed=SEED)).calibration.tolist()


def measured(patterns, windows, **config):
    """Losses in nats per label, [pattern][window], in float32; ``config`` changes attributes of all modules."""
    model = load_checkpoint(open_checkpoint(str(EMBEDDED)), "float32")
    for module in model.modules():
        for name, value in config.items():
            if hasattr(module, name):
                setattr(module, name, value)
    losses = PatternLosses(model, range(16))
    sums = [losses.measure(patterns, [Window(tuple(ids), ids)])[0] for ids in windows]
    return [[row[index] / (LENGTH - 1) for row in sums] for index in range(len(patterns))]


def read():
    """The frozen losses by name, and what they hold for."""
    held, losses = {}, {}
    for line in GOLDEN.read_text("utf-8").splitlines():
        if line.startswith("# ") and ": " in line:
            name, _, value = line[2:].partition(": ")
            held[name] = value
        elif not line.startswith("#"):
            name, _, *numbers = line.split()
            losses[name] = [float(number) for number in numbers]
    return losses, held


def write(losses):
    lines = ["# Losses of the embedded model in nats per label: a name, its pattern, a loss a window."]
    lines += [f"# Made by tests/golden_losses.py --write, on {WINDOWS} windows of {LENGTH} tokens, seed {SEED}."]
    lines += [f"# {name}: {value}" for name, value in circumstances().items()]
    lines += [f"{name} {PATTERNS[name]} {' '.join(map(repr, losses[name]))}" for name in PATTERNS]
    GOLDEN.write_text("\n".join(lines) + "\n", "utf-8")


def differences(losses):
    """A line for every loss that is not the frozen one: to the bit in the same circumstances, else nearly."""
    frozen, held = read()
    close = 0.0 if held == circumstances() else CLOSE
    lines = []
    for name, numbers in frozen.items():
        for window, (old, new) in enumerate(zip(numbers, losses[name], strict=True)):
            if not abs(new - old) <= close * abs(old):
                off = abs(new - old) / old
                lines.append(f"{name}, window {window}: {new!r}, frozen {old!r}, off by {off:.1e}")
    return lines


def main():
    torch.set_num_threads(1)
    losses = dict(zip(PATTERNS, measured(list(PATTERNS.values()), windows()), strict=True))
    if "--write" in sys.argv[1:]:
        write(losses)
        return
    lines = differences(losses)
    print("\n".join(lines) or f"the losses are those of {GOLDEN.name}")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
