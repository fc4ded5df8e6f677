"""Runs vLLM's general model class on a CPU: its options, config, registry, loader and forward, not its kernels."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from task import given

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1"
)

import torch
import vllm
import vllm_kernels
from safetensors.torch import load_file
from vllm.config import set_current_vllm_config
from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.model_loader.utils import (
    get_model_architecture,
    process_weights_after_loading,
)
from vllm.utils.argparse_utils import FlexibleArgumentParser

# Beside what was pasted: this machine's part.
HERE = ["--dtype", "float32", "--max-model-len", "512", "--max-num-batched-tokens", "512", "--enforce-eager"]


def configured(paste: str) -> Any:
    """vLLM's config from the command as it was pasted."""
    command, serve, model, *options = shlex.split(paste)
    assert (command, serve) == ("vllm", "serve"), paste
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = parser.parse_args(["--model", model, *options, *HERE, "--no-enable-prefix-caching"])
    return EngineArgs.from_cli_args(arguments).create_engine_config()


def loaded(config: Any, folder: Path) -> Any:
    """The model class that vLLM's registry gives, with the checkpoint's weights."""
    torch.set_default_dtype(torch.float32)
    model = get_model_architecture(config.model_config)[0](vllm_config=config).eval()
    names = model.load_weights(load_file(folder / "model.safetensors").items())
    missing = {name for name, _ in model.named_parameters()} - names
    if missing:
        raise RuntimeError(f"vLLM left {sorted(missing)[0]} without weights")
    process_weights_after_loading(model, config.model_config, torch.device("cpu"))
    return model


def skips(layer: Any) -> bool:
    """Whether vLLM's code makes a layer take the selection that stands in the buffer."""
    wrapper = getattr(layer.self_attn, "mla_attn", None)
    return layer.self_attn.indexer is None or bool(getattr(wrapper, "skip_topk", False))


def main() -> None:
    """Loads the model of the command, and runs the windows."""
    task = given()
    torch.set_num_threads(1)
    config = configured(task.paste)
    vllm_kernels.replace()
    with set_current_vllm_config(config):
        rendezvous = f"file://{task.place / 'rendezvous'}"
        init_distributed_environment(1, 0, rendezvous, 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        model = loaded(config, Path(config.model_config.model))
        roles = "".join("S" if skips(layer) else "F" for layer in model.model.layers)
        rows = []
        with torch.no_grad(), set_forward_context(None, config):
            for window in torch.from_numpy(task.windows):
                vllm_kernels.RAN.clear()
                states = model.model(window, torch.arange(len(window)), None, None)
                rows.append(model.compute_logits(states))
    ran = "".join(
        "F" if any(f".layers.{layer}." in prefix for prefix in vllm_kernels.RAN) else "S"
        for layer in range(len(roles))
    )
    if ran != roles:
        raise RuntimeError(f"vLLM says that its layers are {roles}, and those that chose are {ran}")
    task.answer(vllm.__version__, roles, torch.stack(rows).numpy())


if __name__ == "__main__":
    main()
