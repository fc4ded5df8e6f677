"""The checks before a search, of a model whose layers come and go: they pass, and few sweeps are all they take."""

import pytest
import torch

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.checks.selections import unskilled_indexers
from indexcache.dsa.checks.selfcheck import check_backends, check_tokens, self_check
from indexcache.dsa.long.backends import Backends
from indexcache.dsa.model.agreement import selection_overlap
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.stream.footprint import footprint
from indexcache.dsa.stream.layers import stream_of, whole_forward
from indexcache.dsa.stream.load import load_layers
from indexcache.dsa.stream.room import Room, least_on_device
from indexcache.errors import LostProcessError, ModelError, StorageError

IDS = torch.randint(0, 4000, (96,), generator=torch.Generator().manual_seed(1)).tolist()


def loaded(checkpoint, room=Room()):
    return load_layers(checkpoint, find_weights(checkpoint), "auto", room)


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return open_checkpoint(str(checkpoints["eight"]))


@pytest.fixture
def streamed(checkpoint):
    """All layers are read for each sweep, together with other processes, as far as the model knows."""
    few = 1 << 10  # bytes of buffers, which sizes by the config leave out
    model = loaded(checkpoint, Room(least_on_device(footprint(checkpoint)) + few, 0))
    stream = stream_of(model)
    assert len(stream.files) == stream.layers
    stream._least = lambda number: number
    return model


@pytest.fixture
def sweeps(streamed):
    """Says how many sweeps' bytes came since the test began."""
    stream = stream_of(streamed)
    before = stream.weight_bytes
    return lambda: (stream.weight_bytes - before) / stream.sweep_bytes


def test_a_forward_of_the_whole_model_is_one_sweep_and_gives_the_same_logits(checkpoint, streamed, sweeps):
    ids = torch.tensor([IDS])
    with whole_forward(streamed):
        logits = streamed(input_ids=ids, use_cache=False).logits
    assert sweeps() == 1
    assert torch.equal(logits, loaded(checkpoint)(input_ids=ids, use_cache=False).logits)
    assert torch.equal(streamed(input_ids=ids, use_cache=False).logits, logits), "outside, layers come when called"


def test_a_forward_that_breaks_leaves_the_stream_at_rest(streamed, sweeps):
    def broken(module, args):
        raise RuntimeError("broken")

    handle = streamed.model.layers[3].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken"), whole_forward(streamed):
        streamed(input_ids=torch.tensor([IDS]), use_cache=False)
    handle.remove()
    before = sweeps()
    with whole_forward(streamed):
        streamed(input_ids=torch.tensor([IDS]), use_cache=False)
    assert sweeps() - before == pytest.approx(1)


def test_the_self_check_takes_seven_sweeps(checkpoint, streamed, sweeps):
    self_check(streamed, checkpoint, IDS)
    # Four forwards of the whole model, two layer by layer, one for all patterns; and the first layer once more.
    assert 7 < sweeps() < 8.5


def test_the_self_check_still_finds_that_sharing_changes_nothing(checkpoint, streamed):
    heads = [layer.self_attn.o_proj for layer in streamed.model.layers]
    handles = [head.register_forward_hook(lambda module, args, out: torch.zeros_like(out)) for head in heads]
    with pytest.raises(ModelError, match="sharing a selection changes nothing in layers 1-7"):
        self_check(streamed, checkpoint, IDS)
    for handle in handles:
        handle.remove()


def test_backends_are_held_against_the_models_own_in_one_sweep(checkpoint, streamed, sweeps):
    tokens = check_tokens(checkpoint.selection_width)
    check_backends(streamed, checkpoint, Backends("chunked", "sparse"), IDS, tokens)
    assert 1 <= sweeps() < 1.5


def test_a_process_that_is_short_of_memory_compares_on_less_and_brings_its_part(checkpoint, streamed, sweeps):
    asked, shortest = 96, check_tokens(checkpoint.selection_width)
    lengths = []

    def short(module, args, kwargs):
        lengths.append(kwargs.get("hidden_states", args[0] if args else None).shape[1])
        if lengths[-1] == asked:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = streamed.model.layers[2].register_forward_pre_hook(short, with_kwargs=True)
    check_backends(streamed, checkpoint, Backends("chunked", "sparse"), IDS, asked)
    handle.remove()
    assert set(lengths) == {asked, shortest}
    assert 2 <= sweeps() < 2.5, "others would wait for the layers that it left out"


@pytest.mark.parametrize("error", [LostProcessError("gone"), StorageError("ends in the middle of a tensor")])
def test_what_ends_a_check_and_is_no_fault_of_the_model_passes(checkpoint, streamed, monkeypatch, error):
    def broken(fetched, layer):
        raise error

    monkeypatch.setattr(stream_of(streamed)._fetcher, "tensors", broken)
    with pytest.raises(type(error), match=str(error)):
        self_check(streamed, checkpoint, IDS)
    with pytest.raises(type(error), match=str(error)):
        check_backends(streamed, checkpoint, Backends("chunked", "sparse"), IDS, 96)


def test_whether_indexers_choose_at_all_is_told_alike(checkpoint, streamed):
    assert unskilled_indexers(streamed, checkpoint, IDS) == unskilled_indexers(loaded(checkpoint), checkpoint, IDS)


def test_overlap_of_four_windows_takes_one_sweep(checkpoint, streamed, sweeps):
    windows, width = [IDS[start : start + 48] for start in (0, 10, 20, 30)], checkpoint.selection_width
    expected = selection_overlap(PatternLosses(loaded(checkpoint), checkpoint.site_layers), windows, width)
    assert selection_overlap(PatternLosses(streamed, checkpoint.site_layers), windows, width) == expected
    assert 1 <= sweeps() < 1.5
