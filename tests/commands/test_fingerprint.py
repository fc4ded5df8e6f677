"""The fingerprint that search and eval leave beside a plan: exact, and the same bytes each time."""

import json
import shutil

import pytest
import torch
from command_lines import lines, search_arguments

from indexcache.dsa.model.switch import Switch
from indexcache.pattern import Pattern
from indexcache.search.fingerprint.document import read_fingerprint
from indexcache.search.fingerprint.trial import Trial
from indexcache.search.plan.file import read_plan


@pytest.fixture(scope="module")
def fingerprinted(made_once, trimmed, embedded_text):
    """A finished run on the embedded model's first layers, with its fingerprint."""

    def make(out):
        from indexcache.cli import main

        text = out.parent / "fingerprinted.jsonl"
        text.write_text("".join(json.dumps({"text": document}) + "\n" for document in embedded_text))
        arguments = [
            "search",
            "--model",
            trimmed,
            "--dataset",
            text,
            "--keep",
            "0.5",
            "--window",
            110,
            "--dtype",
            "float32",
        ]
        arguments += ["--windows", 2, "--heldout", 4, "--probes", 0, "--fingerprint", "--out", out, "--quiet"]
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert not stop.value.code, "the search that these tests start from failed"

    return made_once("fingerprinted", make)


@pytest.fixture(scope="module")
def stock(trimmed):
    """transformers' own model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(trimmed, dtype=torch.float32).eval()


def stock_logprobs(model, layers, tokens):
    """What transformers' own model under a pattern says of the next token."""
    switch = Switch(model, range(len(layers)))
    switch.use(Pattern(layers))
    with torch.inference_mode():
        logprobs = model(input_ids=torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)
    switch.remove()
    return logprobs


def test_log_probabilities_are_those_of_transformers(fingerprinted, stock):
    fingerprint = read_fingerprint(fingerprinted / "fingerprint.json")
    assert fingerprint.patterns[0].layers == read_plan(fingerprinted).result.layer_pattern
    for prefix in (fingerprint.prefixes[0], fingerprint.prefixes[-1]):
        for number, pattern in enumerate(fingerprint.patterns):
            exact = stock_logprobs(stock, pattern.layers, prefix.tokens)
            given = {candidate.token: candidate.logprobs[number] for candidate in prefix.candidates}
            assert set(exact.topk(fingerprint.top).indices.tolist()) <= given.keys(), (
                f"{pattern.name}'s top tokens"
            )
            assert max(abs(exact[token].item() - value) for token, value in given.items()) < 2e-4


def test_the_card_of_a_search_tells_how_to_check_a_server(fingerprinted):
    assert "indexcache check REPOSITORY" in (fingerprinted / "card.md").read_text()


def test_prefixes_are_held_out_and_their_texts_give_them_back(fingerprinted, tokenizer):
    from indexcache.calibrate.frozen import thaw

    fingerprint = read_fingerprint(fingerprinted / "fingerprint.json")
    windows = thaw(fingerprinted / "windows.safetensors").heldout.tolist()
    lengths = [len(prefix.tokens) for prefix in fingerprint.prefixes]
    assert max(lengths) >= fingerprint.model.selection_width + 2
    for prefix in fingerprint.prefixes:
        assert any(list(prefix.tokens) == window[: len(prefix.tokens)] for window in windows)
        assert prefix.spread > 0
        if prefix.text is not None:
            assert tokenizer(prefix.text)["input_ids"] == list(prefix.tokens)
    assert any(prefix.text is not None for prefix in fingerprint.prefixes)


def test_a_server_in_another_dtype_is_told(fingerprinted, trimmed):
    from transformers import AutoModelForCausalLM

    fingerprint = read_fingerprint(fingerprinted / "fingerprint.json")
    model = AutoModelForCausalLM.from_pretrained(trimmed, dtype=torch.bfloat16).eval()
    named = [pattern for pattern in fingerprint.patterns if not pattern.near]
    kinds = set()
    for known in named:
        trial = Trial(fingerprint, 200)
        while (number := trial.next_prefix()) is not None:
            logprobs = stock_logprobs(model, known.layers, fingerprint.prefixes[number].tokens)
            values, ids = logprobs.topk(fingerprint.top)
            trial.observe(number, dict(zip(ids.tolist(), values.tolist(), strict=True)))
        kind, name = trial.verdict().kind, trial.verdict().pattern
        assert (kind, name) in (("plan" if known.name == "plan" else "other", known.name), ("unsure", None))
        kinds.add(kind)
    assert kinds & {"plan", "other"}, "nothing at all was told"


def test_eval_and_a_resumed_search_write_the_same_bytes(run_cli, fingerprinted, tmp_path):
    run = shutil.copytree(fingerprinted, tmp_path / "run")
    plan, before = (run / "plan.json").read_bytes(), (run / "fingerprint.json").read_bytes()
    (run / "fingerprint.json").unlink()
    code, out, _ = run_cli("eval", run / "plan.json", "--fingerprint", "--json", "-q")
    assert (code, json.loads(out)["passed"]) == (0, None)
    assert (run / "fingerprint.json").read_bytes() == before, "eval --fingerprint gives other bytes than search"
    assert (run / "plan.json").read_bytes() == plan


def test_search_without_it_writes_none(searched):
    assert not (searched / "fingerprint.json").exists()


def test_other_windows_and_a_fingerprint_do_not_go_together(run_cli, searched):
    code, out, err = run_cli("eval", searched / "plan.json", "--fingerprint", "--window", 64)
    assert (code, out, len(lines(err))) == (2, "", 1)
    assert "--fingerprint is of the plan's own windows" in err


def test_a_plan_that_drops_nothing_has_none(run_cli, checkpoints, text_file, tmp_path):
    arguments = search_arguments(checkpoints, text_file, tmp_path / "run", keep=1.0)
    code, _, err = run_cli(*arguments, "--fingerprint")
    assert code == 0
    assert "no fingerprint" in err or (tmp_path / "run/fingerprint.json").exists()
