"""A journal of other weights, tokens, settings or code is refused, the field named, and nothing is lost."""

import json
import re
import shutil

import pytest
from children import one_line
from paper_model import on_paper
from random_models import STREAMS

import indexcache
from indexcache.cli import main

pytestmark = pytest.mark.reliability("R8")


def options_in(folder, **changes):
    """Arguments of a search of the checkpoint and the text in ``folder``, with options changed."""
    options = {"model": folder / "model", "dataset": folder / "text.jsonl", "keep": 0.67, "window": 40}
    options |= {"windows": 2, "heldout": 1, "out": folder / "run"} | changes
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def start(checkpoints, text_file, tmp_path_factory):
    """A copy of a checkpoint and of text, and a search of them on paper."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copytree(checkpoints["glm_moe_dsa"], folder / "model")
    shutil.copy(text_file, folder / "text.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        on_paper(patch)
        with pytest.raises(SystemExit) as stop:
            main(["search", *options_in(folder), "-q"])
    assert not stop.value.code, "the search that all tests here go on from failed"
    return folder


@pytest.fixture
def measured(start, run_cli, tmp_path):
    """Searches again into the same folder, with options changed and with the model: exit code, stdout, stderr."""
    shutil.copytree(start, tmp_path, dirs_exist_ok=True)

    def search(*more, **changes):
        return run_cli("search", *options_in(tmp_path, **changes), *more, "-q")

    return search


@pytest.fixture
def run(measured, monkeypatch):
    """Likewise on paper: what a journal may go on with is decided before a model is loaded."""
    on_paper(monkeypatch)
    return measured


def flip_a_weight(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def change_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2e-6}))


def change_the_tokenizer(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.get)[300:2300]
    vocabulary |= dict(zip(words, [vocabulary[word] for word in reversed(words)], strict=True))
    path.write_text(json.dumps(tokenizer))


def change_the_text(path):
    path.write_text(path.read_text().replace("the ", "a "))


def turn_the_documents_round(path):
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def in_the_model(change):
    return lambda tmp_path, patch: change(tmp_path / "model") and None


def in_the_text(change):
    return lambda tmp_path, patch: change(tmp_path / "text.jsonl")


def elsewhere(tmp_path, patch):
    """Other weights under the same folder name."""
    shutil.copytree(tmp_path / "model", tmp_path / "other" / "model")
    flip_a_weight(tmp_path / "other" / "model")
    return {"model": tmp_path / "other" / "model"}


def other_versions(**changes):
    def change(tmp_path, patch):
        from indexcache.system.versions import computing_versions

        patch.setattr(
            "indexcache.commands.job.identity.computing_versions", lambda: computing_versions() | changes
        )

    return change


def on_another_device(tmp_path, patch):
    import torch

    patch.setattr("indexcache.commands.job.identity.processes.process_device", lambda: torch.device("meta"))


def other_code(tmp_path, patch):
    copy = tmp_path / "package"
    for folder in ("calibrate", "dsa", "search"):
        shutil.copytree(indexcache.__path__[0] + "/" + folder, copy / folder)
    (copy / "dsa" / "losses.py").write_text("# another one\n")
    patch.setattr("indexcache.commands.job.identity._PACKAGE", copy)


def other_processor(tmp_path, patch):
    patch.setattr("indexcache.commands.job.identity.processor", lambda: "another, AVX2")


def other_products(tmp_path, patch):
    patch.setenv("NVIDIA_TF32_OVERRIDE", "1")


def another_release(tmp_path, patch):
    patch.setattr("indexcache.commands.job.identity.__version__", "9.0")


def another_schema(tmp_path, patch):
    path = tmp_path / "run" / "journal.jsonl"
    from indexcache.search.run.journal import SCHEMA, _check

    version = f'"schema_version":{SCHEMA}'.encode()
    body = path.read_bytes().splitlines()[0].replace(version, b'"schema_version":9')
    body = re.sub(rb',"check":"[0-9a-f]+"\}$', b"", body)
    path.write_bytes(body + f',"check":"{_check("", body)}"}}\n'.encode())


CASES = {
    "weights": (in_the_model(flip_a_weight), {}, "weights"),
    "weights under the same name": (elsewhere, {}, "weights"),
    "config": (in_the_model(change_the_config), {}, "config"),
    "tokenizer": (in_the_model(change_the_tokenizer), {}, "tokens"),
    "text": (in_the_text(change_the_text), {}, "tokens"),
    "order of documents": (in_the_text(turn_the_documents_round), {}, "tokens"),
    "seed": (None, {"seed": 1}, "seed"),
    "window": (None, {"window": 44}, "window"),
    "windows": (None, {"windows": 3}, "windows"),
    "held-out windows": (None, {"heldout": 2}, "heldout"),
    "dtype": (None, {"dtype": "bfloat16"}, "dtype"),
    "indexer": (None, {"indexer": "stock"}, "indexer"),
    "attention": (None, {"attention": "sparse"}, "attention"),
    "device": (on_another_device, {}, "device"),
    "processor": (other_processor, {}, "processor"),
    "float32 products": (other_products, {}, "float32_products"),
    "how weights are hashed": (None, {"weights-hash": "sampled"}, "weights_hash"),
    "Python": (other_versions(python="9.0"), {}, "python"),
    "triton": (other_versions(triton="9.0"), {}, "triton"),
    "release": (another_release, {}, "indexcache"),
    "torch": (other_versions(torch="9.0"), {}, "torch"),
    "transformers": (other_versions(transformers="9.0"), {}, "transformers"),
    "code": (other_code, {}, "code"),
    "schema": (another_schema, {}, "schema version"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_by_field(case, run, tmp_path, monkeypatch):
    change, options, field = CASES[case]
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        options = (change and change(tmp_path, patch)) or options
        before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
        code, printed, err = run(**options)
        assert (code, printed, one_line(err)) == (2, "", True), err
        assert f"{field} is " in err or f"{field} 9, " in err
        assert "--resume never" in err
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"} == before
        code, _, err = run("--resume", "never", **options)
    # Nothing is lost by beginning anew, either.
    if change is not on_another_device:
        assert code == 0, err
    aside = next(path for path in out.iterdir() if path.is_dir())
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before


def test_the_same_from_another_place_is_the_same(run, tmp_path):
    shutil.move(tmp_path / "model", tmp_path / "moved")
    shutil.move(tmp_path / "text.jsonl", tmp_path / "moved.jsonl")
    code, _, err = run("--resume", "required", model=tmp_path / "moved", dataset=tmp_path / "moved.jsonl")
    assert code == 0, err


def test_the_same_spelt_out_is_the_same(run):
    options = {"dtype": "float32", "indexer": "chunked", "attention": "stock", "weights-hash": "whole"}
    code, _, err = run("--resume", "required", **options)
    assert code == 0, err


CODE = """
from transformers import GlmMoeDsaForCausalLM
from .part import SCALE

class Mine(GlmMoeDsaForCausalLM):
    def forward(self, *given, **named):
        found = super().forward(*given, **named)
        found.logits = found.logits * SCALE
        return found
"""


def test_code_that_a_checkpoint_brings(measured, run_cli, tmp_path):
    model, options = tmp_path / "model", {"out": tmp_path / "brought"}
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "mine.Mine"}}))
    (model / "mine.py").write_text(CODE)
    (model / "part.py").write_text("SCALE = 1.0\n")
    assert measured("--trust-remote-code", **options)[0] == 0
    assert run_cli("eval", tmp_path / "brought", "-q", "--trust-remote-code")[0] == 0
    assert measured("--trust-remote-code", "--resume", "required", **options)[0] == 0
    journal = (tmp_path / "brought" / "journal.jsonl").read_bytes()
    for change in ("none of it", "another part"):
        trust = ["--trust-remote-code"] if change == "another part" else []
        if change == "another part":
            (model / "part.py").write_text("SCALE = 2.0\n")
        code, printed, err = measured(*trust, **options)
        assert (code, printed, one_line(err), "remote_code is " in err) == (2, "", True, True), err
        code, printed, err = run_cli("eval", tmp_path / "brought", "-q", *trust)
        assert (code, printed, one_line(err), "code_sha256 is " in err) == (2, "", True, True), err
    assert (tmp_path / "brought" / "journal.jsonl").read_bytes() == journal


def test_a_journal_without_a_self_check_does_not_spare_one(run, tmp_path, monkeypatch):
    checks = []
    out = {"out": tmp_path / "unchecked"}
    monkeypatch.setattr("indexcache.commands.search.self_check", lambda *_: checks.append(1))
    assert run("--no-selfcheck", **out)[0] == 0
    assert (run("--selfcheck", **out)[0], len(checks)) == (0, 1)
    assert (run("--selfcheck", **out)[0], len(checks)) == (0, 1)


@pytest.mark.parametrize("pins", [{"pin": "2"}, {"pp-layers": "2,4"}])
def test_pins_ask_for_other_losses_and_change_none(pins, run, tmp_path):
    assert run("--resume", "required", **pins)[0] == 0
    resumed = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert resumed["search"]["pinned_layers"]
    assert run(**pins, out=tmp_path / "anew")[0] == 0
    anew = json.loads((tmp_path / "anew" / "plan.json").read_text())
    assert (resumed["search"], resumed["result"]) == (anew["search"], anew["result"])


def test_devices_are_compared_once_the_model_is_loaded(measured, monkeypatch):
    """Another device changes losses; layers that come to it from files change none."""
    assert measured("--resume", "never")[0] == 0
    for device in ("2 x cpu", "cuda: another one"):
        with monkeypatch.context() as patch:
            patch.setattr("indexcache.commands.job.measure.device_kinds", lambda model, device=device: device)
            code, printed, err = measured(keep=0.34)
        assert (code, printed, one_line(err)) == (2, "", True)
        assert f"device is {device}, the journal has cpu" in err
    code, _, err = measured("--resume", "required", "--max-memory", STREAMS, keep=0.34)
    assert code == 0, err
