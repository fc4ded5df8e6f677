"""What a user says of memory, and of quantised weights, where a search, an estimate or an eval measures."""

import json
import shutil

import eight_bit
import pytest
import torch
from command_lines import search_arguments
from safetensors.torch import load_file

from indexcache.commands.job.settings import room_of
from indexcache.dsa.stream.room import Room
from indexcache.errors import SettingError


def test_a_host_may_hold_none_and_a_device_has_to_hold_some():
    assert room_of({"max_memory": "4MB", "max_host_memory": "0GB"}) == Room(4_000_000, 0)
    with pytest.raises(SettingError, match="--max-memory is '0GB'"):
        room_of({"max_memory": "0GB"})


def test_too_little_for_one_layer_names_it_and_how_much(run_cli, checkpoints, text_file, tmp_path):
    arguments = search_arguments(checkpoints, text_file, tmp_path / "run", max_memory="1KB")
    code, out, err = run_cli(*arguments, "-q", "--json")
    assert code == 2
    message = json.loads(out)["error"]["message"]
    assert "layer 1 takes 0.4 MB" in message
    assert "with 2.1 MB that always stay, as embedding and head" in message
    assert "raise --max-memory" in err


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    return eight_bit.make(tmp_path_factory.mktemp("fp8"))[0]


def test_a_plan_says_how_quantised_weights_ran(run_cli, checkpoints, fp8, text_file, tmp_path):
    arguments = search_arguments(checkpoints, text_file, tmp_path / "run", model=fp8, windows=1, heldout=1)
    code, out, err = run_cli(*arguments, "-q", "--json", "--max-memory", "20MB")
    assert code == 0, err
    run = json.loads(out)["run"]
    assert (run["dtype"], run["weights"]) == ("bfloat16", "FP8 in 128 x 128 blocks, dequantised")
    for page in ("report.md", "report.html"):
        assert "bfloat16 (FP8 in 128 x 128 blocks, dequantised) on cpu" in (tmp_path / "run" / page).read_text()
    begin = json.loads((tmp_path / "run" / "journal.jsonl").read_text().splitlines()[0])
    assert "FP8 in 128 x 128 blocks, dequantised" in json.dumps(begin)


def test_an_estimate_of_a_format_without_its_package_names_both(run_cli, fp8, tmp_path):
    folder = shutil.copytree(fp8, tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = run_cli("estimate", "--model", folder, "--keep", 0.5, "--window", 48, "--time")
    line = err.strip().splitlines()[-1]
    assert (code, "in the format 'gptq'" in line, "pip install optimum gptqmodel" in line) == (2, True, True), line


def test_weights_that_are_loaded_whole_say_that_sizes_do_nothing(run_cli, checkpoints, text_file, tmp_path):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    arguments = search_arguments(checkpoints, text_file, tmp_path / "run", model=folder, max_memory="4MB")
    code, _, err = run_cli(*arguments, "--allow-pickle", "-q")
    assert code == 0, err
    assert "--max-memory and --max-host-memory do nothing" in err
