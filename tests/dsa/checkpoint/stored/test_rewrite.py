"""A checkpoint written again: the tensors asked for change, and no other byte does."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from indexcache.dsa.checkpoint.stored.rewrite import bytes_needed, rewrite
from indexcache.dsa.checkpoint.stored.shards import read_shards
from indexcache.errors import ModelError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path):
    """Two shards, of which only the first holds what will change."""
    folder = tmp_path / "source"
    folder.mkdir()
    made = {"a.safetensors": {"x": torch.randn(3, 4), "y": torch.randn(5).to(torch.bfloat16)}}
    made["b.safetensors"] = {"z": torch.randn(2, 2)}
    for file, tensors in made.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    places = {name: file for file, tensors in made.items() for name in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{ }\n")
    (folder / "code").mkdir()
    (folder / "code" / "model.py").write_text("pass\n")
    (folder / "plan.json").write_text("{}")
    return folder


@pytest.fixture
def shards(source):
    return read_shards(source, ["a.safetensors", "b.safetensors"])


@pytest.fixture
def target(tmp_path):
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_one_tensor_changes_and_its_header_does_not(source, shards, target):
    values = torch.randn(5).to(torch.bfloat16)
    rewrite(source, shards, {"y": values.view(torch.uint8).numpy().tobytes()}, target)
    old, new = (folder / "a.safetensors" for folder in (source, target))
    assert torch.equal(load_file(new)["y"], values)
    assert torch.equal(load_file(new)["x"], load_file(old)["x"])
    header = 8 + int.from_bytes(old.read_bytes()[:8], "little")
    assert new.read_bytes()[:header] == old.read_bytes()[:header]


def test_everything_else_is_there_byte_for_byte(source, shards, target):
    rewrite(source, shards, {"y": bytes(10)}, target, left_behind=("plan.json",))
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()} - {"plan.json"}
    assert {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()} == files
    for name in files - {"a.safetensors"}:
        assert (target / name).read_bytes() == (source / name).read_bytes(), name


def test_the_source_is_untouched_and_an_unchanged_shard_is_the_same_file(source, shards, target):
    before = (source / "a.safetensors").read_bytes()
    rewrite(source, shards, {"y": bytes(10)}, target)
    assert (source / "a.safetensors").read_bytes() == before
    assert (target / "b.safetensors").samefile(source / "b.safetensors")


def test_where_links_are_not_possible_it_is_copied(source, shards, target, monkeypatch):
    def refused(*arguments):
        raise OSError(18, "another disk")

    monkeypatch.setattr(os, "link", refused)
    rewrite(source, shards, {"y": bytes(10)}, target)
    assert (target / "b.safetensors").read_bytes() == (source / "b.safetensors").read_bytes()
    assert not (target / "b.safetensors").samefile(source / "b.safetensors")


def test_only_changed_shards_take_space_on_the_same_disk(source, shards, target):
    assert bytes_needed(shards, {"y"}, target / "new") == (source / "a.safetensors").stat().st_size


@pytest.mark.parametrize("contents", [{"y": bytes(9)}, {"nobody": bytes(4)}])
def test_other_sizes_and_names_are_refused(source, shards, target, contents):
    with pytest.raises(ModelError, match="bytes in the checkpoint"):
        rewrite(source, shards, contents, target)
    assert list(target.iterdir()) == []
