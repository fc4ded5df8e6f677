"""Stored tensors read into one run of bytes: whole, in parts, and from files that are not as their headers say."""

import os

import pytest
import torch
from safetensors.torch import save_file

from indexcache.dsa.checkpoint.stored.shards import Shard, Tensor, read_shards
from indexcache.dsa.stream import files
from indexcache.dsa.stream.files import Files
from indexcache.dsa.stream.layout import lay_out
from indexcache.errors import ModelError

TENSORS = {
    "a": torch.arange(300, dtype=torch.bfloat16).view(3, 100),
    "b": torch.arange(7, dtype=torch.int64),
    "c": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn),
    "d": torch.ones(1, dtype=torch.float32),
    "e": torch.tensor([True, False, True]),
    "f": torch.empty(0, 4),
}


@pytest.fixture
def layout(tmp_path):
    """Of all tensors, which two files hold."""
    names = ["one.safetensors", "two.safetensors"]
    for name, part in zip(names, ("ace", "bdf"), strict=True):
        save_file({key: TENSORS[key] for key in part}, tmp_path / name)
    shards = read_shards(tmp_path, names)
    return lay_out({key: (shard, tensor) for shard in shards for key, tensor in shard.tensors.items()})


@pytest.fixture
def reader():
    return Files()


def whole(reader, layout):
    run = torch.zeros(layout.size, dtype=torch.uint8)
    reader.read(layout, run)
    return run


def test_a_run_holds_every_tensor_as_it_is_stored(layout, reader):
    assert layout.stored == sum(tensor.nbytes for tensor in TENSORS.values())
    views = layout.views(whole(reader, layout))
    assert views.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (views[name].dtype, views[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(views[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_files_are_given_back_when_nobody_reads_any_more(layout):
    """A model whose layers all stay has no use for them once it is loaded."""
    reader = Files()
    whole(reader, layout)
    descriptors = list(reader._descriptors.values())
    assert len(descriptors) == 2
    reader._readers.shutdown()  # a thread lets its last read go a moment after that is known to be done
    del reader
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_tensors_are_aligned_in_the_order_of_the_files_and_do_not_overlap(layout):
    assert all(piece.start % 64 == 0 for piece in layout.pieces)
    ends = [piece.start + piece.size for piece in layout.pieces]
    assert all(end <= piece.start for end, piece in zip(ends, layout.pieces[1:], strict=False))
    assert ends[-1] <= layout.size < ends[-1] + 64
    places = [(piece.path.name, piece.offset) for piece in layout.pieces]
    assert places == sorted(places)


@pytest.mark.parametrize("size", [64, 192, 1 << 12])
@pytest.mark.parametrize("read_bytes", [48, 32 << 20])
def test_parts_put_together_are_the_whole(layout, reader, monkeypatch, size, read_bytes):
    """As several processes read it: parts end within tensors, and the last one reaches beyond the run."""
    monkeypatch.setattr(files, "_READ_BYTES", read_bytes)
    parts = []
    for first in range(0, layout.size, size):
        part = torch.zeros(size, dtype=torch.uint8)
        reader.read(layout, part, first)
        parts.append(part)
    assert torch.equal(torch.cat(parts)[: layout.size], whole(reader, layout))


def test_the_rate_is_of_what_was_read(layout, reader, monkeypatch):
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(files.time, "perf_counter", lambda: next(clock))
    whole(reader, layout)
    assert reader.rate == 2 * layout.stored


def test_a_file_that_ends_early_is_named(layout, reader):
    path = layout.pieces[-1].path
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3)
    with pytest.raises(ModelError, match="ends in the middle of a tensor") as error:
        whole(reader, layout)
    assert str(path) in str(error.value)
    assert "restore the file" in error.value.hint


def test_a_file_that_is_gone_is_named(layout, reader):
    path = layout.pieces[0].path
    path.unlink()
    with pytest.raises(ModelError, match=r"one\.safetensors' cannot be read: No such file") as error:
        whole(reader, layout)
    assert str(path) in str(error.value)


def test_a_type_that_torch_does_not_have_is_named(tmp_path):
    tensors = {"x.weight": Tensor("F6_E3M2", (4,), 0, 3)}
    shard = Shard(tmp_path / "one.safetensors", tensors, None, data=8)
    with pytest.raises(ModelError, match=r"x\.weight is stored as F6_E3M2"):
        lay_out({"x.weight": (shard, tensors["x.weight"])})
