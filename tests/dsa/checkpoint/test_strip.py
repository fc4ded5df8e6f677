"""Stripped checkpoints: the rest is the same byte for byte, and a failure leaves nothing behind."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from indexcache.dsa.checkpoint.stored import copies
from indexcache.dsa.checkpoint.strip import strip_indexers
from indexcache.errors import ModelError, OutputError

CONFIG = b'{"model_type": "anything"}\n'
INDEX = "model.safetensors.index.json"


def weights():
    """Four layers, multi-token prediction by id (4) and by name, and dtypes of quantised checkpoints."""
    made = {}
    for layer in range(5):
        prefix = f"model.layers.{layer}.self_attn."
        made |= {
            f"{prefix}q_a_proj.weight": torch.randn(6, 4).to(torch.bfloat16),
            f"{prefix}indexer.wq_b.weight": torch.randn(8, 4).to(torch.float8_e4m3fn),
            f"{prefix}indexer.wq_b.weight_scale_inv": torch.randn(3),
            f"{prefix}indexer.k_norm.bias": torch.randn(5).to(torch.bfloat16),
        }
    made["model.mtp.layers.1.self_attn.indexer.wk.weight"] = torch.randn(3, 3)
    made["model.embed_tokens.weight"] = torch.randint(0, 255, (7, 3), dtype=torch.uint8)
    return made


@pytest.fixture
def source(tmp_path):
    """A checkpoint of two shards with what else such folders hold."""
    folder = tmp_path / "source"
    folder.mkdir()
    made, shards = weights(), {}
    for name, tensor in made.items():
        shards.setdefault("a.safetensors" if "layers.1." in name else "b.safetensors", {})[name] = tensor
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in made.values())
    index = {
        "metadata": {"total_size": total, "total_parameters": sum(tensor.numel() for tensor in made.values())},
        "weight_map": {name: file for file, tensors in shards.items() for name in tensors},
    }
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text('{"old": true}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "encoding").mkdir()
    (folder / "encoding" / "code.py").write_text("pass\n")
    (folder / ".gitattributes").write_text("")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("")
    (folder / "consolidated.safetensors").write_bytes(b"not named by the index")
    return folder


def everything(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def same(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    )


@pytest.mark.parametrize("piece", [1 << 24, 7])
def test_only_the_named_layers_indexers_are_gone(source, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(copies, "_PIECE", piece)
    done = []
    result = strip_indexers(source, tmp_path / "new", [1, 3], [2, 9], CONFIG, done.append)
    (source / "consolidated.safetensors").unlink()
    before, after = read(source), read(tmp_path / "new")
    omissions = {
        name
        for name in before
        if name.startswith(tuple(f"model.layers.{n}.self_attn.indexer." for n in (1, 2, 3)))
    }
    assert len(omissions) == 9
    assert "model.layers.4.self_attn.indexer.wq_b.weight" in after, "multi-token prediction keeps its indexer"
    assert "model.mtp.layers.1.self_attn.indexer.wk.weight" in after
    assert set(after) == set(before) - omissions
    assert all(same(after[name], before[name]) for name in after)
    assert result.tensors == 9
    assert done == ["a.safetensors", "b.safetensors"]
    assert everything(tmp_path / "new") == {
        "a.safetensors", "b.safetensors", INDEX, "config.json", "tokenizer.json", "encoding/code.py",
    }  # fmt: skip
    assert (tmp_path / "new" / "config.json").read_bytes() == CONFIG
    for file in ("a.safetensors", "b.safetensors"):
        with safe_open(tmp_path / "new" / file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_the_index_counts_what_is_left(source, tmp_path):
    strip_indexers(source, tmp_path / "new", [1, 3], (), CONFIG)
    index, left = json.loads((tmp_path / "new" / INDEX).read_text()), read(tmp_path / "new")
    assert set(index["weight_map"]) == set(left)
    assert index["metadata"] == {
        "total_size": sum(tensor.nbytes for tensor in left.values()),
        "total_parameters": sum(tensor.numel() for tensor in left.values()),
    }


def test_a_shard_of_nothing_else_is_left_out(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    name = "layers.1.attn.indexer.wk.weight"
    save_file({name: torch.ones(2)}, source / "a.safetensors")
    save_file({"head": torch.ones(2)}, source / "b.safetensors")
    (source / INDEX).write_text(json.dumps({"weight_map": {name: "a.safetensors", "head": "b.safetensors"}}))
    strip_indexers(source, tmp_path / "new", [1], (), CONFIG)
    assert everything(tmp_path / "new") == {"b.safetensors", INDEX, "config.json"}


def test_a_checkpoint_of_one_file_needs_no_index(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    save_file(weights(), source / "model.safetensors")
    (tmp_path / "new").mkdir()
    strip_indexers(source, tmp_path / "new", [0], (), CONFIG)
    assert everything(tmp_path / "new") == {"model.safetensors", "config.json"}
    assert len(read(tmp_path / "new")) == len(weights()) - 3


@pytest.mark.parametrize("layers", [[7], [1, 5], [-1]])
def test_a_layer_without_indexer_weights_is_refused(source, tmp_path, layers):
    with pytest.raises(ModelError, match="no indexer weights of layer"):
        strip_indexers(source, tmp_path / "new", layers, (), CONFIG)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 7, b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00[]", b"\x02\x00\x00\x00\x00\x00\x00\x00{x"],
)
def test_a_broken_shard_is_one_line(source, tmp_path, content):
    (source / "b.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"b\.safetensors") as caught:
        strip_indexers(source, tmp_path / "new", [1], (), CONFIG)
    assert "\n" not in caught.value.line()


def test_a_shard_cut_off_is_refused(source, tmp_path):
    content = (source / "b.safetensors").read_bytes()
    (source / "b.safetensors").write_bytes(content[:-1])
    with pytest.raises(ModelError, match="its tensors take 429 bytes, but it holds 428"):
        strip_indexers(source, tmp_path / "new", [1], (), CONFIG)


def test_a_folder_in_use_is_left_alone(source, tmp_path):
    before = everything(source)
    with pytest.raises(OutputError, match="is the checkpoint itself"):
        strip_indexers(source, source, [1], (), CONFIG)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        strip_indexers(source, tmp_path / "used", [1], (), CONFIG)
    assert everything(tmp_path / "used") == {"file"}
    assert everything(source) == before


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="GiB left"):
        strip_indexers(source, tmp_path / "deep" / "new", [1], (), CONFIG)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("call", ["os.fsync", "shutil.copyfile", "pathlib.Path.replace", "pathlib.Path.chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failure_leaves_nothing_behind(source, tmp_path, monkeypatch, call, error, nth):
    calls, before = [], everything(tmp_path)
    module, name = call.rsplit(".", 1)
    owner = {"os": os, "shutil": shutil, "pathlib.Path": Path}[module]
    right = getattr(owner, name)

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) == nth:
            raise error
        return right(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        if call in ("pathlib.Path.replace", "pathlib.Path.chmod") and nth == 2:
            strip_indexers(source, tmp_path / "new", [1], (), CONFIG)
            return
        with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            strip_indexers(source, tmp_path / "new", [1], (), CONFIG)
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
    assert everything(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
