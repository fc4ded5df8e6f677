"""A fingerprint's file: what it says comes back, and what contradicts itself is refused by name."""

import json

import pytest
from drawn_fingerprints import drawn_fingerprint

from indexcache.errors import PlanError
from indexcache.search.fingerprint.document import read_fingerprint, write_fingerprint


@pytest.fixture
def written(tmp_path):
    fingerprint = drawn_fingerprint(prefixes=3)
    write_fingerprint(tmp_path / "fingerprint.json", fingerprint)
    return tmp_path / "fingerprint.json", fingerprint


def changed(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_it_reads_back_as_it_was_written(written):
    path, fingerprint = written
    assert "\n" in fingerprint.prefixes[0].text, "texts hold line ends"
    assert read_fingerprint(path) == fingerprint
    write_fingerprint(path, read_fingerprint(path))
    assert path.read_text() == fingerprint.as_json()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda it: it["prefixes"][0]["candidates"][0]["logprobs"].pop(), "prefix 0 has not one log-probability"),
        (lambda it: it["prefixes"][1].update(it["prefixes"][0]), "a prefix stands there twice"),
        (lambda it: it["patterns"][2].update(name="plan"), "a pattern's name stands there twice"),
        (lambda it: it["patterns"].reverse(), "patterns[0] is not the plan's pattern"),
        (lambda it: it["prefixes"][0].update(spread=-1.0), "prefixes.0.spread"),
        (lambda it: it["prefixes"][0]["candidates"][0].update(token="1"), "prefixes.0.candidates.0.token"),
        (lambda it: it["model"].update(id="\x1b[2J"), "field model.id holds the character"),
        (lambda it: it.update(version=2), "fingerprint version 2, this program reads 1"),
        (lambda it: it.update(top=4), "field checksum: not that of its content"),
        (lambda it: it.pop("patterns"), "patterns"),
    ],
)
def test_what_contradicts_itself_is_refused(written, change, said):
    path, _ = written
    changed(path, change)
    with pytest.raises(PlanError) as error:
        read_fingerprint(path)
    assert said in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000, b'{"version": 1, "version": 1}'])
def test_other_files_are_refused_in_a_line(tmp_path, content):
    path = tmp_path / "fingerprint.json"
    path.write_bytes(content)
    with pytest.raises(PlanError) as error:
        read_fingerprint(path)
    assert "--fingerprint" in error.value.hint


def test_a_missing_one_names_what_writes_it(tmp_path):
    with pytest.raises(PlanError) as error:
        read_fingerprint(tmp_path / "fingerprint.json")
    assert "eval PLAN --fingerprint" in error.value.line()
