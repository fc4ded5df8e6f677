"""Inspection: the same facts with PyTorch and without, and a word before it is loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from random_models import EMBEDDED, LACKING

from indexcache.commands.inspect import inspect_document
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sizes.count import measure_sizes
from indexcache.dsa.checkpoint.sizes.decoders import DECODERS
from indexcache.dsa.stream.footprint import footprint
from indexcache.system.console import Reporter

CONFIGS = Path(__file__).parents[1] / "assets" / "configs"
# Inspects in a process in which PyTorch cannot be imported.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from indexcache.cli import main

for folder in sys.argv[1:]:
    try:
        main(["inspect", folder, "--json"])
    except SystemExit as stop:
        assert not stop.code, folder
built = {"transformers.modeling_utils", "accelerate", "safetensors.torch"} & set(sys.modules)
assert not built, built
"""
# Inspects, then looks for what is left of the libraries, and whether they would be whole.
WHAT_IS_LEFT = """
import sys
from indexcache.cli import main

try:
    main(["inspect", "recipes/tiny", "--json"])
finally:
    left = [name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")]
    from transformers.utils import is_torch_available

    print(left, is_torch_available(), file=sys.stderr)
"""


def run(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)


def documents(text):
    """The JSON documents that stand one after the other."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text.rstrip()):
        document, place = decoder.raw_decode(text, place)
        place += 1
        yield document


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The embedded model and a config without weights of each family, in the shape of the public one."""
    made = [EMBEDDED]
    for family in sorted(DECODERS.keys() - LACKING):
        folder = tmp_path_factory.mktemp(family)
        shutil.copy(CONFIGS / f"{family}.json", folder / "config.json")
        made.append(folder)
    return made


def test_every_family_is_inspected_without_pytorch(folders):
    done = run(WITHOUT_TORCH, *folders)
    assert done.returncode == 0, done.stderr
    inspected = list(documents(done.stdout))
    assert len(inspected) == len(folders) > 5
    for folder, document in zip(folders, inspected, strict=True):
        checkpoint = open_checkpoint(str(folder))
        assert document == inspect_document(checkpoint, measure_sizes(checkpoint), footprint(checkpoint))


def test_the_libraries_are_whole_for_whoever_imports_them_next():
    done = run(WHAT_IS_LEFT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 4_000_000
    assert done.stderr.splitlines()[-1] == "[] True"


def test_before_pytorch_is_loaded_a_line_says_so(llama, run_cli, monkeypatch):
    said = []
    monkeypatch.setattr(Reporter, "doing", lambda reporter, what: said.append(what))
    code, _, err = run_cli("inspect", llama)
    assert (code, "has no lightning indexer" in err) == (2, True)
    assert said == [f"reading {llama}", "loading PyTorch and transformers"]


def test_bytes_are_shown_on_disk_in_a_sweep_and_in_memory(run_cli):
    document = json.loads(run_cli("inspect", EMBEDDED, "--json")[1])
    assert document["bytes_on_disk"] == (EMBEDDED / "model.safetensors").stat().st_size
    assert document["sizes_from"] == "headers"
    assert document["bytes_in_memory"] == 2 * document["parameters"]
    assert document["bytes_streamed_a_sweep"] == document["bytes_in_memory"] - document["bytes_resident"]
    _, out, _ = run_cli("inspect", CONFIGS.parent.parent / "benchmarks" / "glm_moe_dsa_30b")
    shown = " ".join(out.split())
    assert "59 GB of decoder layers as stored, counted by the config" in shown
    assert "60 GB as it computes, 1.27 GB of them embedding, norm and head" in shown
    assert "on disk" not in shown
