"""A small model that was trained, for commands that train."""

import json
import re
import shutil

import pytest
from random_models import EMBEDDED
from safetensors.torch import load_file, save_file

LAYERS = 6


@pytest.fixture(scope="session")
def trimmed(made_once):
    """The first layers of the embedded model: what its indexers choose and its layers attend to is learned."""

    def make(folder):
        config = json.loads((EMBEDDED / "config.json").read_text())
        by_layer = {
            name: value[:LAYERS] for name, value in config.items() if isinstance(value, list) and len(value) == 16
        }
        (folder / "config.json").write_text(json.dumps(config | by_layer | {"num_hidden_layers": LAYERS}))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EMBEDDED / name, folder / name)
        tensors = load_file(EMBEDDED / "model.safetensors")
        kept = {
            name: tensor for name, tensor in tensors.items()
            if (layer := re.search(r"layers\.(\d+)\.", name)) is None or int(layer[1]) < LAYERS
        }  # fmt: skip
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return made_once("trimmed", make)
