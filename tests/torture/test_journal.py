"""Journals cut at every byte and with flipped bits: resumed to the same plan, or refused in one line."""

import json
import os
import random
import shutil

import pytest
from children import one_line, spread
from paper_model import PaperModel, without_a_model

from indexcache.calibrate.frozen import thaw
from indexcache.errors import IndexcacheError
from indexcache.search.plan.file import read_plan
from indexcache.search.run.journal import read_journal


def breaking_at(call):
    """A model that fails in one of its calls."""

    def trouble(now, pattern, window):
        if now == call:
            raise ArithmeticError("a fault")

    return PaperModel(trouble)


@pytest.fixture
def stop_at(paper, asked, monkeypatch):
    """Runs a search on paper into a folder that fails in its n-th call of the model."""

    def run(out, call):
        without_a_model(monkeypatch, asked[1], breaking_at(call))
        code, err = paper(out)
        without_a_model(monkeypatch, asked[1])
        return code, err

    return run


@pytest.fixture
def half(stop_at, tmp_path):
    """A run that broke off half way."""
    code, err = stop_at(tmp_path / "half", 12)
    assert (code, one_line(err)) == (2, True)
    return tmp_path / "half"


def cut(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])


@pytest.mark.reliability("R4")
def test_cut_at_every_byte_of_the_last_two_records(half, finished, paper, stop_at, cases, full, tmp_path):
    plan = (finished / "plan.json").read_bytes()
    lines = (half / "journal.jsonl").read_bytes().splitlines(keepends=True)
    end = sum(map(len, lines))
    first = end - len(lines[-1]) - len(lines[-2])
    for size in [first + at for at in spread(end - first, end - first if full else 12)]:
        out = shutil.copytree(half, tmp_path / str(size))
        journal = out / "journal.jsonl"
        cut(journal, size)
        wrong = None
        # A second and a third sitting go on where the one before it broke off, each with a torn end again.
        for torn in (1, 7):
            if (ended := stop_at(out, 3))[0] != 2 or not one_line(ended[1]):
                wrong = f"exit {ended}"
            cut(journal, journal.stat().st_size - torn)
        code, err = paper(out)
        if code or (out / "plan.json").read_bytes() != plan:
            wrong = f"exit {code}, or another plan: {err[-300:]}"
        if "are left out" not in err:
            wrong = wrong or "not a word of what was torn"
        cases.check(wrong is None, f"cut to {size} bytes: {wrong}")
        shutil.rmtree(out)


@pytest.mark.reliability("R5")
def test_flipped_bits_in_the_journal(half, finished, paper, cases, full, tmp_path):
    content, plan = (half / "journal.jsonl").read_bytes(), (finished / "plan.json").read_bytes()
    for seed in range(600 if full else 40):
        draw, out = random.Random(seed), tmp_path / "flipped"
        out.mkdir()
        flipped = flip(content, draw)
        (out / "journal.jsonl").write_bytes(flipped)
        code, err = paper(out)
        if code == 0:
            said = "are left out" in err
            cases.check(said and (out / "plan.json").read_bytes() == plan, f"seed {seed}: another plan, or unsaid")
        else:
            named = "journal.jsonl" in err and ("at byte" in err or ", line" in err)
            kept = (out / "journal.jsonl").read_bytes() == flipped and not (out / "plan.json").exists()
            cases.check(code == 2 and one_line(err) and named and kept, f"seed {seed}: exit {code}: {err}")
        shutil.rmtree(out)


@pytest.mark.reliability("R5")
def test_flipped_bits_in_a_plan(searched, run_cli, cases, full, tmp_path):
    content = (searched / "plan.json").read_bytes()
    (tmp_path / "plan.json").write_bytes(content)
    commands = (["export", tmp_path, "--to", "vllm"], ["cut", tmp_path, "--keep", 0.25, "--json"])
    expected = [run_cli(*command) for command in commands]
    for seed in range(200 if full else 20):
        (tmp_path / "plan.json").write_bytes(flip(content, random.Random(seed)))
        for command, same in zip(commands, expected, strict=True):
            code, out, err = run_cli(*command)
            refused = code == 2 and one_line(err) and "plan.json" in err
            cases.check(refused or (code, out, err) == same, f"seed {seed}, {command[0]}: exit {code}: {err}")
    for command in ("eval", "report"):
        code, _, err = run_cli(command, tmp_path)
        cases.check(code == 2 and one_line(err), f"{command}: exit {code}: {err}")


@pytest.mark.reliability("R5")
def test_flipped_bits_in_the_frozen_tokens(searched, cases, full, tmp_path):
    plan, content = read_plan(searched), (searched / "windows.safetensors").read_bytes()
    same = thaw(searched / "windows.safetensors", plan.tokens.sha256)
    path = tmp_path / "windows.safetensors"
    for seed in range(200 if full else 20):
        path.write_bytes(flip(content, random.Random(seed)))
        try:
            windows = thaw(path, plan.tokens.sha256)
        except IndexcacheError as error:
            cases.check(error.exit_code == 2 and "windows.safetensors" in str(error), f"seed {seed}: {error}")
        else:
            equal = (windows.calibration == same.calibration).all() and (windows.heldout == same.heldout).all()
            cases.check(equal, f"seed {seed}: other tokens")


def flip(content, draw):
    """``content`` with one bit the other way."""
    flipped = bytearray(content)
    flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines[:5], *lines[6:]],
        lambda lines: [*lines[:6], lines[5], *lines[6:]],
        lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]],
        lambda lines: lines[1:],
        lambda lines: [*lines[:5], b"\n", *lines[5:]],
    ],
    ids=["lost", "doubled", "swapped", "without the first", "with an empty one"],
)
def test_lines_that_were_lost_or_moved_are_noticed(half, paper, change):
    lines = (half / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (half / "journal.jsonl").write_bytes(b"".join(change(lines)))
    code, err = paper(half)
    assert (code, one_line(err)) == (2, True)
    assert "is damaged in line" in err


@pytest.mark.reliability("R4")
@pytest.mark.parametrize("size", [1, 17, 40])
def test_a_header_that_was_cut_off_is_written_again(half, finished, paper, size):
    cut(half / "journal.jsonl", size)
    code, err = paper(half)
    assert code == 0, err
    assert "are left out" in err
    assert (half / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()


@pytest.mark.reliability("R4")
def test_what_lies_behind_zeros_is_measured_again(half, finished, paper, cases, tmp_path):
    """A power loss can leave a hole where a page was not yet written, with later ones behind it."""
    content, plan = (half / "journal.jsonl").read_bytes(), (finished / "plan.json").read_bytes()
    lines = content.splitlines(keepends=True)
    for number in range(3, len(lines) - 1):
        begin = sum(map(len, lines[:number]))
        for at, size in ((begin, len(lines[number]) + 20), (begin + 30, 16), (begin - 8, 40)):
            out = tmp_path / f"{number}-{at}"
            out.mkdir()
            (out / "journal.jsonl").write_bytes(content[:at] + bytes(size) + content[at + size :])
            code, err = paper(out)
            same = code == 0 and (out / "plan.json").read_bytes() == plan and "are left out" in err
            cases.check(same, f"{size} zeros at {at}: exit {code}: {err}")


@pytest.mark.reliability("R4")
@pytest.mark.parametrize("content", [b"notes\n", b"notes", b'{"a": 1}\n', bytes(100), b"{\n"])
@pytest.mark.parametrize("resume", ["auto", "required"])
def test_a_file_that_is_no_journal_is_left_alone(paper, tmp_path, content, resume):
    (tmp_path / "journal.jsonl").write_bytes(content)
    code, err = paper(tmp_path, resume=resume)
    assert (code, one_line(err), "is damaged in line 1" in err) == (2, True, True), err
    assert (tmp_path / "journal.jsonl").read_bytes() == content


@pytest.mark.reliability("R4")
def test_what_cannot_be_read_as_a_file_is_one_line(paper, cases, tmp_path):
    for what, make in {
        "a pipe": os.mkfifo,
        "a folder": os.mkdir,
        "a device": lambda path: path.symlink_to("/dev/zero"),
    }.items():
        out = tmp_path / what
        out.mkdir()
        make(out / "journal.jsonl")
        code, err = paper(out)
        cases.check((code, one_line(err)) == (2, True) and str(out) in err, f"{what}: {code} {err}")


def test_an_empty_journal_is_none_to_resume_from(paper, tmp_path):
    (tmp_path / "journal.jsonl").touch()
    code, err = paper(tmp_path, resume="required")
    assert (code, "no journal" in err) == (2, True), err
    assert paper(tmp_path)[0] == 0


def test_losses_beyond_reason_are_kept_as_they_are(asked, search_on_paper, monkeypatch, tmp_path):
    """No plan could hold them, but a candidate that explodes must not end the search."""

    def explode(call, pattern, window):
        return 3e9 if str(pattern) == "FSFFFF" else None

    without_a_model(monkeypatch, asked[1], PaperModel(explode))
    code = search_on_paper(tmp_path)
    assert code == 0
    assert read_journal(tmp_path / "journal.jsonl").content.losses["calibration", False]["FSFFFF"][0].loss == 3e9


def test_records_are_lines_of_json_with_exact_floats(half):
    records = [json.loads(line) for line in (half / "journal.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records[:3]] == ["journal", "began", "ran"]
    assert records[-1]["kind"] == "ended"
    measured = [record for record in records if record["kind"] == "losses"]
    content = read_journal(half / "journal.jsonl").content
    assert len(measured) == 11
    for record in measured:
        known = content.losses[record["group"], record["last_token"]]
        for pattern, sums in zip(record["patterns"], record["sums"], strict=True):
            assert [list(known[pattern][window]) for window in record["windows"]] == sums
