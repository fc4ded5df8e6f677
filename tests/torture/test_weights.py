"""Weights are known by their tensors, wherever these are; what is damaged or a program is refused."""

import json
import os
import random
import shutil

import pytest
import torch
from random_models import load_checkpoint
from safetensors.torch import load_file, save_file
from sealed_plans import sealed

from indexcache.dsa.checkpoint.config import Trust, config_sha256, open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights, identify_weights
from indexcache.errors import ModelError

INDEX = "model.safetensors.index.json"


def opened(folder, trust=Trust()):
    return open_checkpoint(str(folder), trust=trust)


def identity(folder, wanted="auto"):
    return identify_weights(find_weights(opened(folder)), wanted)


def with_weights(tensors, folder, source):
    shutil.copytree(source, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def large(checkpoints, tmp_path):
    """The checkpoint with one tensor more, which is larger than what is always read whole."""
    tensors = load_file(checkpoints["glm_moe_dsa"] / "model.safetensors")
    tensors["extra"] = torch.arange(1 << 19, dtype=torch.int32)
    return with_weights(tensors, tmp_path / "large", checkpoints["glm_moe_dsa"])


@pytest.mark.reliability("R8")
@pytest.mark.parametrize("kind", ["sampled", "whole"])
def test_neither_the_place_nor_the_files_matter(checkpoints, tmp_path, cases, kind):
    original = identity(checkpoints["glm_moe_dsa"], kind)
    moved = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "moved")
    cases.check(identity(moved, kind) == original, "another folder gave another identity")
    cases.check(config_sha256(opened(moved)) == config_sha256(opened(checkpoints["glm_moe_dsa"])), "config")
    sharded = tmp_path / "sharded"
    load_checkpoint(opened(moved)).save_pretrained(sharded, max_shard_size="300KB")
    cases.check(len(list(sharded.glob("*.safetensors"))) > 2, "the checkpoint was not sharded")
    cases.check(identity(sharded, kind) == original, "another sharding gave another identity")
    tensors = load_file(moved / "model.safetensors")
    backwards = with_weights(dict(reversed(tensors.items())), tmp_path / "other", checkpoints["glm_moe_dsa"])
    cases.check(identity(backwards, kind) == original, "another order gave another identity")


@pytest.mark.reliability("R8")
@pytest.mark.parametrize("kind", ["sampled", "whole"])
def test_name_type_shape_and_content_matter(checkpoints, tmp_path, cases, kind):
    tensors = load_file(checkpoints["glm_moe_dsa"] / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    held = tensors[name]
    bits = held.contiguous().view(torch.int32)
    changed = bits.clone()
    changed[0, 0] ^= 1
    ways = {
        "name": {**{key: value for key, value in tensors.items() if key != name}, name + "2": held},
        "dtype": {**tensors, name: bits},
        "shape": {**tensors, name: held.reshape(-1)},
        "content": {**tensors, name: changed.view(torch.float32)},
        "one less": {key: value for key, value in tensors.items() if key != name},
    }
    original = identity(checkpoints["glm_moe_dsa"], kind)
    for way, other in ways.items():
        folder = with_weights(other, tmp_path / way, checkpoints["glm_moe_dsa"])
        cases.check(identity(folder, kind) != original, f"another {way} was not seen")


@pytest.mark.reliability("R8")
def test_a_bit_flipped_anywhere_in_a_small_checkpoint_is_seen(checkpoints, tmp_path, cases, full):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "flipped")
    path, original = folder / "model.safetensors", identity(folder)
    assert original[0] == "whole"
    content = path.read_bytes()
    draw = random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(300 if full else 30):
        place = draw.randrange(header, len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        cases.check(identity(folder) != original, f"a flip at byte {place} was not seen")


def test_samples_see_ends_and_say_that_they_are_samples(large, checkpoints):
    kind, before = identity(large, "sampled")
    assert kind == "sampled"
    assert identity(large)[0] == "whole"
    tensors = load_file(large / "model.safetensors")
    for place, seen in ((0, True), (-1, True), (5000, False)):
        changed = tensors["extra"].clone()
        changed[place] ^= 1
        save_file({**tensors, "extra": changed}, large / "model.safetensors", metadata={"format": "pt"})
        assert (identity(large, "sampled")[1] != before) == seen
    assert identity(large, "whole")[1] != identity(checkpoints["glm_moe_dsa"], "whole")[1]


@pytest.mark.reliability("R8")
def test_a_plan_is_checked_in_the_way_it_was_made(run_cli, checkpoints, text_file, tmp_path):
    arguments = ["search", "--model", checkpoints["glm_moe_dsa"], "--dataset", text_file, "--keep", 1]
    arguments += ["--window", 48, "--windows", 2, "--heldout", 1, "--weights-hash", "sampled", "--out", tmp_path]
    code, out, err = run_cli(*arguments, "--json", "-q")
    assert code == 0, err
    assert json.loads(out)["model"]["weights_hash"] == "sampled"
    assert run_cli("eval", tmp_path / "plan.json", "-q")[0] == 0
    document = json.loads((tmp_path / "plan.json").read_text())
    document["model"]["weights_hash"] = "whole"
    (tmp_path / "plan.json").write_text(sealed(document))
    code, _, err = run_cli("eval", tmp_path / "plan.json", "-q")
    assert (code, "weights_sha256" in err) == (2, True)


def damaged(content, header):
    """Ways to damage a safetensors file whose header is ``header``; a name for each."""
    length = 8 + int.from_bytes(content[:8], "little")
    data = content[length:]
    first, *_, last = sorted(header, key=lambda name: header[name]["data_offsets"])

    def packed(changed):
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + data

    def tensor(name, **changes):
        return packed({**header, name: {**header[name], **changes}})

    start, end = header[last]["data_offsets"]
    yield "empty", b""
    yield "a few bytes", content[:5]
    yield "cut in the header", content[: length // 2]
    yield "cut in the data", content[:-1]
    yield "more than its tensors", content + b" "
    yield "an absurd header length", b"\xff" * 8 + content[8:]
    yield "a header length of 2**40", (1 << 40).to_bytes(8, "little") + content[8:]
    yield "no JSON", packed(b"{" * 20)
    yield "deep JSON", packed(b"[" * 100_000)
    yield "no UTF-8", packed(b'{"\xff": 1}')
    yield "a list", packed([1])
    yield "a tensor twice", packed(json.dumps(header).encode()[:-1] + b"," + json.dumps(header).encode()[1:])
    yield "a gap", tensor(last, data_offsets=[start + 4, end + 4])
    yield "an overlap", tensor(last, data_offsets=[start - 4, end - 4])
    yield "beyond the end", tensor(last, data_offsets=[start, end + 4])
    yield "backwards", tensor(last, data_offsets=[end, start])
    yield "negative", tensor(first, data_offsets=[-4, 0])
    yield "huge", tensor(first, data_offsets=[0, 10**30])
    yield "numbers as words", tensor(first, data_offsets=["0", "4"])
    yield "true for a number", tensor(first, data_offsets=[True, 4])
    yield "another shape", tensor(first, shape=[7])
    yield "no shape", tensor(first, shape=None)
    yield "another dtype", tensor(first, dtype="F64")
    yield "no tensor", packed({**header, first: 3})
    yield "an escape sequence as a name", packed({**header, "\x1b[2J": header[first]})


@pytest.mark.reliability("R5")
def test_a_damaged_file_is_named(checkpoints, tmp_path, cases):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "damaged")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__")
    for way, other in damaged(content, header):
        path.write_bytes(other)
        try:
            identity(folder)
            cases.check(False, f"{way} was not seen")
        except ModelError as error:
            line = error.line()
            cases.check("model.safetensors" in line and line.isprintable(), f"{way}: {line}")


def test_a_broken_or_incomplete_set_of_shards_is_one_line(checkpoints, tmp_path):
    load_checkpoint(opened(checkpoints["glm_moe_dsa"])).save_pretrained(tmp_path, max_shard_size="300KB")
    checkpoint = opened(tmp_path)
    names = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    kept = (tmp_path / names[1]).read_bytes()
    (tmp_path / names[1]).write_bytes((tmp_path / names[0]).read_bytes())
    with pytest.raises(ModelError, match=rf"holds tensor .* which '{names[0]}' holds too"):
        find_weights(checkpoint)
    (tmp_path / names[1]).write_bytes(kept)
    outside = {"weight_map": {"a": "../model.safetensors"}}
    for content in ("{", "{}", "[]", '{"weight_map": 1}', '{"weight_map": {}}', json.dumps(outside)):
        index = (tmp_path / INDEX).read_text()
        (tmp_path / INDEX).write_text(content)
        with pytest.raises(ModelError, match="is broken"):
            find_weights(checkpoint)
        (tmp_path / INDEX).write_text(index)
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelError, match=f"lacks '{names[1]}'"):
        find_weights(checkpoint)
    os.mkfifo(tmp_path / names[1])
    with pytest.raises(ModelError, match=f"lacks '{names[1]}'"):
        find_weights(checkpoint)


@pytest.mark.reliability("R8")
def test_what_is_hashed_is_what_is_loaded(checkpoints, tmp_path):
    both = tmp_path / "both"
    load_checkpoint(opened(checkpoints["glm_moe_dsa"])).save_pretrained(both, max_shard_size="300KB")
    tensors = load_file(checkpoints["glm_moe_dsa"] / "model.safetensors")
    halved = {name: tensor * 0.5 for name, tensor in tensors.items()}
    save_file(halved, both / "model.safetensors", metadata={"format": "pt"})
    assert (both / INDEX).exists()
    assert torch.equal(load_checkpoint(opened(both)).lm_head.weight, halved["lm_head.weight"])
    alone = with_weights(halved, tmp_path / "alone", checkpoints["glm_moe_dsa"])
    assert identity(both) == identity(alone)


@pytest.mark.reliability("R8")
def test_weights_that_would_be_loaded_unseen_are_refused(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    for job in (find_weights, load_checkpoint):
        with pytest.raises(ModelError, match=r"holds an adapter, adapter_config\.json"):
            job(opened(folder))
    (folder / "adapter_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    for job in (find_weights, load_checkpoint):
        with pytest.raises(ModelError, match=r"transformers_weights 'other\.safetensors'"):
            job(opened(folder))


@pytest.fixture
def pickled(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_pickles_are_refused_unless_asked_for(pickled, checkpoints):
    for job in (find_weights, load_checkpoint):
        with pytest.raises(ModelError, match="holds pickled weights only") as caught:
            job(opened(pickled))
        assert "--allow-pickle" in caught.value.line()
    allowed = opened(pickled, Trust(pickles=True))
    assert identify_weights(find_weights(allowed))[0] == "whole"
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        logits = load_checkpoint(allowed)(tokens).logits
        assert torch.equal(logits, load_checkpoint(opened(checkpoints["glm_moe_dsa"]))(tokens).logits)


def test_a_pickle_that_is_a_program_does_not_run(pickled, tmp_path):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it ran"),)

    before = identify_weights(find_weights(opened(pickled, Trust(pickles=True))))
    torch.save({"a": Program()}, pickled / "pytorch_model.bin")
    allowed = opened(pickled, Trust(pickles=True))
    assert identify_weights(find_weights(allowed)) != before
    with pytest.raises(ModelError, match="cannot be loaded: they hold more than tensors") as caught:
        load_checkpoint(allowed)
    assert caught.value.line().isprintable()
    assert not (tmp_path / "it ran").exists()


def test_pickles_are_not_read_where_there_are_safetensors(pickled, checkpoints):
    shutil.copy(checkpoints["glm_moe_dsa"] / "model.safetensors", pickled)
    allowed = opened(pickled, Trust(pickles=True))
    assert identify_weights(find_weights(allowed)) == identity(checkpoints["glm_moe_dsa"])
    (pickled / "pytorch_model.bin").write_bytes(b"nothing")
    load_checkpoint(allowed)


def test_a_pickled_checkpoint_is_searched_on_request(run_cli, pickled, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("INDEXCACHE_SEARCH_ALLOW_PICKLE", "1")
    arguments = ["search", "--model", pickled, "--dataset", text_file, "--keep", 1, "--window", 48]
    arguments += ["--windows", 2, "--heldout", 1, "--out", tmp_path / "run", "-q"]
    code, _, err = run_cli(*arguments)
    assert (code, "--allow-pickle" in err) == (2, True), "the environment allowed pickles"
    assert run_cli(*arguments, "--allow-pickle")[0] == 0
    assert run_cli("eval", tmp_path / "run", "-q")[0] == 2
    assert run_cli("eval", tmp_path / "run", "-q", "--allow-pickle")[0] == 0
