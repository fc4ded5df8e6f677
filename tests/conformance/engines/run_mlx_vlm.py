"""Runs mlx-vlm on the CPU: its own loader and model class, weights as stored and arithmetic in float32."""

from importlib.metadata import version

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_vlm.utils import load_model
from task import given


def main() -> None:
    """Loads the exported folder as it is."""
    task = given()
    mx.set_default_device(mx.cpu)
    model = load_model(task.folder)
    weights = model.parameters()
    model.update(tree_map(lambda x: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x, weights))
    layers = model.language_model.model.layers
    roles = "".join("S" if layer.self_attn.indexer is None else "F" for layer in layers)
    logits = model.language_model(mx.array(task.windows.astype(np.int32))).logits
    task.answer(version("mlx-vlm"), roles, np.array(logits.astype(mx.float32)))


if __name__ == "__main__":
    main()
