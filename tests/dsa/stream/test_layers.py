"""Sweeps bring each layer's weights once, whatever is measured in them, and leave the stream usable."""

import shutil

import pytest
import torch
from random_models import ALL_STREAM, LAYERS, least_room, load_streamed

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.room import Room
from indexcache.errors import ModelError
from indexcache.evaluate import CALIBRATION, HELD_OUT, Request
from indexcache.pattern import Pattern
from indexcache.system import processes

FULL = Pattern.all_full(LAYERS)
CANDIDATES = [FULL.share(site) for site in range(1, LAYERS)]
ROOMS = {
    "files": ALL_STREAM,
    "host": Room(ALL_STREAM.device, 1 << 30),
    "two stay": Room(ALL_STREAM.device + 2 * 356_000, 0),
    "host and files": Room(ALL_STREAM.device, 3 * 356_000),
}


@pytest.fixture
def folder(checkpoints):
    return checkpoints["glm_moe_dsa"]


def windows(group, count):
    draw = torch.Generator().manual_seed(7)
    return [
        Window((group, number), torch.randint(0, 4000, (40,), generator=draw).tolist()) for number in range(count)
    ]


def groups():
    return {CALIBRATION: windows(CALIBRATION, 4), HELD_OUT: windows(HELD_OUT, 3)}


REQUESTS = [Request([FULL], range(4)), Request(CANDIDATES, range(4)), Request(CANDIDATES[:2], range(3), HELD_OUT)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_sweep_of_many_windows_and_candidates_brings_each_layer_once(room, folder):
    model = load_streamed(folder, ROOMS[room])
    stream = stream_of(model)
    evaluator = Evaluator(PatternLosses(model, range(LAYERS)), groups())
    evaluator.sweep([Request([FULL], range(4))])  # so that all full is known, and asks for no sweep of its own
    before = evaluator.weight_bytes()
    evaluator.sweep([Request(CANDIDATES, range(4))])
    moved = evaluator.weight_bytes() - before
    streamed = {*stream.host, *stream.files}
    assert len(streamed) == (4 if room == "two stay" else LAYERS)
    assert (bool(stream.host), bool(stream.files)) == ("host" in room, room != "host")
    (shard,) = find_weights(open_checkpoint(str(folder))).shards
    layers = {name: int(name.split(".")[2]) for name in shard.tensors if ".layers." in name}
    stored = sum(shard.tensors[name].size for name, layer in layers.items() if layer in streamed)
    assert moved == stream.sweep_bytes == stored


@pytest.mark.parametrize("room", ROOMS)
def test_several_requests_in_one_sweep_have_the_losses_of_a_model_in_memory(room, folder):
    there, away = (
        Evaluator(PatternLosses(load_streamed(folder, given), range(LAYERS)), groups())
        for given in (Room(), ROOMS[room])
    )
    # Key losses are NaN here, and so differ from themselves.
    assert repr(away.sweep(REQUESTS)) == repr(there.sweep(REQUESTS))
    assert repr(away.sweep(REQUESTS)) == repr(there.sweep(REQUESTS)), "a second time, with what is known by then"


@pytest.mark.parametrize("room", ROOMS)
def test_a_sweep_that_is_left_early_leaves_the_stream_usable(room, folder, monkeypatch):
    model = load_streamed(folder, ROOMS[room])
    losses, ids = PatternLosses(model, range(LAYERS)), windows(CALIBRATION, 2)
    expected = losses.measure([FULL, *CANDIDATES], ids)
    for layer in range(LAYERS):

        def fail(number, *given, layer=layer, through=losses._through):
            if number == layer:
                raise KeyboardInterrupt
            return through(number, *given)

        with monkeypatch.context() as patch:
            patch.setattr(losses, "_through", fail)
            with pytest.raises(KeyboardInterrupt):
                losses.measure([FULL, *CANDIDATES], ids)
        there = [name for name, weight in model.named_parameters() if not weight.is_meta and "layers." in name]
        assert len({name.split(".")[2] for name in there}) == (2 if room == "two stay" else 0)
        assert losses.measure([FULL, *CANDIDATES], ids) == expected, f"after layer {layer}"


@pytest.mark.parametrize("room", ROOMS)
def test_the_models_own_forward_brings_what_it_calls(room, folder):
    there, away = load_streamed(folder, Room()), load_streamed(folder, ROOMS[room])
    ids = torch.arange(50, device=processes.process_device())[None]
    with torch.inference_mode():
        expected = there(input_ids=ids, use_cache=False).logits
        for _ in range(2):
            assert torch.equal(away(input_ids=ids, use_cache=False).logits, expected)
        cached = away(input_ids=ids[:, :30], use_cache=True)
        rest = away(input_ids=ids[:, 30:], past_key_values=cached.past_key_values).logits
    torch.testing.assert_close(rest, expected[:, 30:], rtol=0, atol=1e-4)


def test_a_file_that_is_gone_while_a_search_runs_is_named(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "model")
    model = load_streamed(folder, ALL_STREAM)
    losses, ids = PatternLosses(model, range(LAYERS)), windows(CALIBRATION, 1)
    losses.measure([FULL], ids)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelError, match="ends in the middle of a tensor"):
        losses.measure([FULL], ids)


def test_more_room_means_fewer_bytes(folder):
    there = load_streamed(folder, Room())
    least, moved = least_room(there), []
    for more in range(3):
        stream = stream_of(load_streamed(folder, Room(least + more * 356_000, 0)))
        moved.append(stream.sweep_bytes)
    assert moved == sorted(moved, reverse=True)
    assert len(set(moved)) == 3
