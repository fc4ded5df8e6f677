"""A warning for indexers that choose no better than chance: noise draws it, the embedded model does not."""

import json

import pytest
import torch
from random_models import EMBEDDED, load_checkpoint

from indexcache.dsa.checkpoint.config import load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.checks.selections import unskilled_indexers
from indexcache.dsa.long.backends import Backends, install

TOKENS = 256


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint(str(EMBEDDED))


@pytest.fixture(scope="module")
def windows(checkpoint):
    with (EMBEDDED / "calibration.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line)["text"] for line in lines]
    tokenizer = load_tokenizer(checkpoint)
    return [tokenizer(text)["input_ids"][:TOKENS] for text in documents[:2]]


@pytest.fixture
def model(checkpoint):
    return load_checkpoint(checkpoint, "float32")


def broken(model):
    noise = torch.Generator().manual_seed(1)
    for indexer in find_indexers(model)[1].values():
        for weight in indexer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=noise) * weight.std().nan_to_num(1.0))
    return model


@pytest.mark.parametrize("backends", [Backends(), Backends("chunked", "sparse")], ids=str)
class TestIndexers:
    def test_that_were_trained_draw_no_warning(self, model, checkpoint, windows, backends):
        install(model, backends)
        assert [unskilled_indexers(model, checkpoint, window) for window in windows] == [None] * 2

    def test_that_are_noise_do(self, model, checkpoint, windows, backends):
        install(broken(model), backends)
        for window in windows:
            assert "choose hardly better than chance" in unskilled_indexers(model, checkpoint, window)


def test_nothing_is_said_where_no_query_chooses(model, checkpoint, windows):
    short = windows[0][: checkpoint.selection_width + 1]
    assert unskilled_indexers(broken(model), checkpoint, short) is None


def test_the_model_is_left_as_it_was(model, checkpoint, windows):
    unskilled_indexers(model, checkpoint, windows[0])
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]


def test_a_search_says_so_and_goes_on(checkpoint, text_file, run_cli, tmp_path, monkeypatch):
    line = "the indexers of tiny choose hardly better than chance"
    monkeypatch.setattr("indexcache.commands.search.unskilled_indexers", lambda *_: line)
    monkeypatch.delenv("INDEXCACHE_SEARCH_UNTRAINED")
    options = [
        "--keep",
        1,
        "--window",
        96,
        "--windows",
        3,
        "--heldout",
        1,
        "--selfcheck",
        "--out",
        tmp_path / "run",
    ]
    code, _, err = run_cli("search", "--model", EMBEDDED, "--dataset", text_file, *options)
    assert (code, err.count("hardly better than chance")) == (0, 1)
