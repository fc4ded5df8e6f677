"""check tells servers of a trained model apart by what its plan's fingerprint says, and needs no model for it."""

import json

import pytest
from model_predictions import ModelPredictions, neighbours
from pattern_servers import Dialect, serving

import indexcache
from indexcache.search.plan.file import read_plan


@pytest.fixture(scope="module")
def fingerprinted(trimmed, text_file, tmp_path_factory):
    """A plan of the embedded model's first layers, with its fingerprint."""
    from indexcache.cli import main

    folder = tmp_path_factory.mktemp("fingerprinted")
    given = ["--model", trimmed, "--dataset", text_file, "--window", 192, "--windows", 2, "--heldout", 6]
    command = ["search", *given, "--keep", 0.5, "--dtype", "float32", "--out", folder / "run", "--quiet"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in command])
    assert not stop.value.code
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(folder / "run" / "plan.json"), "--fingerprint", "--quiet"])
    assert not stop.value.code
    return folder / "run" / "plan.json"


@pytest.mark.torture
def test_servers_of_a_trained_model_are_told_apart(fingerprinted, trimmed, tokenizer, run_cli):
    plan = read_plan(fingerprinted)
    model = indexcache.load(str(trimmed), plan=plan, verify=False).eval()
    pattern = plan.result.pattern

    def told(letters, half_split=False):
        predict = ModelPredictions(model, letters, half_split)
        dialect = Dialect(predict, lambda token: tokenizer.decode([token]), lambda text: tokenizer(text).input_ids)
        with serving(dialect) as url:
            code, out, _ = run_cli("check", fingerprinted, "--url", url, "--json")
        document = json.loads(out)
        return code, document["verdict"], document["pattern"], document["requests"]

    assert told(pattern)[:3] == (0, "plan", "plan")
    assert told("F" * len(pattern))[:3] == (1, "other", "all full")
    others = [told(letters) for letters in neighbours(pattern, 2)] + [told(pattern, half_split=True)]
    assert {code for code, *_ in others} == {1}, f"only the plan's own server passes: {others}"
    assert all(requests <= 200 for *_, requests in others)
