"""Searches killed with SIGKILL at every evaluation boundary and at random instants end in the same plan."""

import json
import os
import random
import signal
import time

import pytest
from children import Child, run_child, spread

from indexcache.search.run.journal import Journal, read_journal
from indexcache.search.run.records import LossesRecord


def losses_measured(path):
    """Every (group, shape, pattern, window) in a journal's records, in order."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (record["group"], record["last_token"], pattern, window)
        for record in records
        if record["kind"] == "losses"
        for pattern in record["patterns"]
        for window in record["windows"]
    ]


def killed_at(boundary):
    """Makes this process kill itself before it writes down piece number ``boundary``."""
    append, written = Journal.append, []

    def append_or_die(self, record):
        if isinstance(record, LossesRecord):
            if len(written) == boundary:
                os.kill(os.getpid(), signal.SIGKILL)
            written.append(record)
        append(self, record)

    Journal.append = append_or_die


def what_is_wrong(real, out, ended):
    """What a resumed run's end shows to be wrong; None if nothing."""
    _, reference = real
    if ended.code or "Traceback" in ended.err:
        return f"exit {ended.code}: {ended.err[-300:]}"
    if (out / "plan.json").read_bytes() != (reference / "plan.json").read_bytes():
        return "another plan"
    if (out / "windows.safetensors").read_bytes() != (reference / "windows.safetensors").read_bytes():
        return "other tokens"
    measured = losses_measured(out / "journal.jsonl")
    if len(measured) != len(set(measured)):
        return "a loss was measured although the journal had it"
    if set(measured) != set(losses_measured(reference / "journal.jsonl")):
        return "other losses than those of a run that nobody stopped"
    return None


@pytest.mark.reliability("R1")
def test_at_every_evaluation_boundary(real, cases, full, tmp_path):
    arguments, reference = real
    pieces = sum('"kind":"losses"' in line for line in (reference / "journal.jsonl").read_text().splitlines())
    for boundary in spread(pieces, pieces if full else 2):
        out = tmp_path / str(boundary)
        killed = run_child([*arguments, "--out", out], tmp_path, lambda at=boundary: killed_at(at))
        kept = read_journal(out / "journal.jsonl").content.window_evaluations
        ended = run_child([*arguments, "--out", out], tmp_path)
        wrong = what_is_wrong(real, out, ended)
        if killed.code != -signal.SIGKILL or (boundary and not kept):
            wrong = f"not killed as planned: {killed}"
        cases.check(wrong is None, f"killed before piece {boundary}: {wrong}")


@pytest.mark.reliability("R2")
def test_at_random_instants(real, cases, full, tmp_path):
    arguments, _ = real
    began = time.monotonic()
    assert run_child([*arguments, "--out", tmp_path / "clock"], tmp_path).code == 0
    length = time.monotonic() - began
    for seed in range(200 if full else 2):
        draw, out = random.Random(seed), tmp_path / f"seed{seed}"
        for _ in range(1 + seed % 2):  # some are killed twice
            child = Child([*arguments, "--out", out], tmp_path)
            time.sleep(draw.random() * length)
            child.kill()
            child.wait()
        wrong = what_is_wrong(real, out, run_child([*arguments, "--out", out], tmp_path))
        cases.check(wrong is None, f"seed {seed}: {wrong}")
