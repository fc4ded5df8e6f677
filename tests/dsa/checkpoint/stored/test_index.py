"""An index beside shards is held against what they hold: a file of another checkpoint is refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.errors import ModelError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(checkpoints, tmp_path):
    """Two shards with a tensor each; headers alone are read."""
    shutil.copy(checkpoints["eight"] / "config.json", tmp_path)
    for name, shard in zip("ab", SHARDS, strict=True):
        save_file({name: torch.ones(2)}, tmp_path / shard)
    write(tmp_path, {"a": SHARDS[0], "b": SHARDS[1]})
    return tmp_path


def write(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def found(folder):
    return [name for shard in find_weights(open_checkpoint(str(folder))).shards for name in shard.tensors]


def test_shards_that_hold_what_it_names_are_taken(folder):
    assert found(folder) == ["a", "b"]


def test_which_of_them_holds_a_tensor_does_not_matter(folder):
    write(folder, {"a": SHARDS[1], "b": SHARDS[0]})
    assert found(folder) == ["a", "b"]


def test_a_shard_of_another_checkpoint_lacks_what_it_names(folder):
    save_file({"c": torch.ones(2)}, folder / SHARDS[1])
    with pytest.raises(ModelError, match=f"names b, which '{SHARDS[1]}' does not hold") as caught:
        found(folder)
    assert "of different checkpoints" in caught.value.hint


def test_a_tensor_that_it_names_twice(folder):
    (folder / INDEX).write_text(f'{{"weight_map": {{"a": "{SHARDS[0]}", "a": "{SHARDS[1]}"}}}}')
    with pytest.raises(ModelError, match="is broken: key 'a' is given twice"):
        found(folder)


def test_all_tensors_that_nobody_holds_are_counted(folder):
    write(folder, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0], "d": SHARDS[0]})
    with pytest.raises(ModelError, match=f"names c and 1 more tensors, which '{SHARDS[0]}' does not hold"):
        found(folder)


def test_it_is_not_read_where_a_whole_file_goes_before_it(folder):
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    write(folder, {"z": SHARDS[0]})
    assert found(folder) == ["a"]
