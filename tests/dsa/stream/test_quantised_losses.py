"""Quantised layers are dequantised as they come: losses are those of the dequantised checkpoint, bit for bit."""

import eight_bit
import packed_integers
import pytest
import torch
from random_models import load_streamed

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.shards import read_shards
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.dsa.stream.footprint import footprint
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.room import Room, least_on_device
from indexcache.pattern import Pattern

LAYERS = 4
PATTERNS = [Pattern("FFFF"), Pattern("FSFS")]
FORMATS = {
    "fp8": {},
    "int4": {"settings": packed_integers.SETTINGS, "quantise": packed_integers.in_packed_integers},
}


@pytest.fixture(scope="module", params=FORMATS)
def folders(request, tmp_path_factory):
    """A checkpoint whose weights no block divides, and a layer behind the decoder, and its plain twin."""
    folder = tmp_path_factory.mktemp("quantised")
    return eight_bit.make(folder, predicts=True, layers=LAYERS, **FORMATS[request.param], **eight_bit.RAGGED)


def losses(model):
    ids = torch.randint(0, 4000, (48,), generator=torch.Generator().manual_seed(2)).tolist()
    return PatternLosses(model, range(LAYERS)).measure(PATTERNS, [Window("window", ids)])


def least(folder, value_bytes):
    """Bytes of a device on which a checkpoint can stream; headers leave out a few of buffers."""
    return least_on_device(footprint(open_checkpoint(str(folder)), value_bytes)) + 4096


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_they_are_those_of_the_dequantised_twin_from_memory_host_and_files(folders, dtype):
    quantised, plain = folders
    model = load_streamed(quantised, Room(), dtype)
    assert stream_of(model) is None
    measured = losses(model)
    if dtype == "auto":  # the twin holds bfloat16, of which full precision would make less
        assert measured == losses(load_streamed(plain, Room()))
    for host in (0, 1 << 30):
        away = load_streamed(quantised, Room(least(quantised, model.dtype.itemsize), host), dtype)
        stream = stream_of(away)
        # What is stored in less leaves room for one that stays.
        assert len(stream.host or stream.files) >= LAYERS - 1
        assert (bool(stream.host), bool(stream.files)) == (host > 0, host == 0)
        assert losses(away) == measured


def test_they_come_as_stored(folders):
    """What moves is what files hold, not what is made of it, and nothing of the layer behind the decoder."""
    moved = []
    for folder in folders:
        stream = stream_of(load_streamed(folder, Room(least(folder, 2), 0)))
        (shard,) = read_shards(folder, ["model.safetensors"])
        layers = tuple(f"model.layers.{layer}." for layer in stream.files)
        stored = sum(tensor.size for name, tensor in shard.tensors.items() if name.startswith(layers))
        assert stream.sweep_bytes == stored
        moved.append(stored / len(layers))
    assert moved[0] < moved[1]
