"""What weights take, by their headers alone, against the tensors themselves."""

import shutil

from safetensors.torch import load_file, save_file

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights

RESIDENT = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def test_a_sweep_reads_the_decoders_layers_and_nothing_else(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    layers = sum(tensor.nbytes for name, tensor in tensors.items() if name not in RESIDENT)
    checkpoint = open_checkpoint(str(folder))
    # A layer behind the decoder's, which predicts further tokens, and one of a tower beside it.
    beside = {
        f"model.layers.{checkpoint.layers}.eh_proj.weight": tensors["model.norm.weight"].clone(),
        "model.visual.layers.0.weight": tensors["model.norm.weight"].clone(),
    }
    save_file(tensors | beside, folder / "model.safetensors", {"format": "pt"})
    assert find_weights(checkpoint).sweep_bytes(checkpoint.layers) == layers
