"""Writes checkpoints of random weights of any size: bytes of one layer, made once, under the names of all."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from indexcache.dsa.stream.layout import TYPES

CONFIG = Path(__file__).parent / "glm_moe_dsa_30b"
SMALL = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 8, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "index_n_heads": 8,
    "index_head_dim": 32, "index_topk": 16,
}  # fmt: skip
"""Sizes for a trial on a CPU."""
_NAMES = {dtype: name for name, dtype in TYPES.items()}


def write_checkpoint(folder: Path, layers: int, **changes: Any) -> int:
    """Writes a ``glm_moe_dsa`` with the layers of the 30B model, a file each, experts apart as in real ones.

    Args:
        folder: new.
        layers: how many.
        changes: to its config.

    Returns:
        Bytes of all files.
    """
    settings = json.loads((CONFIG / "config.json").read_text("utf-8"))
    settings |= {"num_hidden_layers": layers, "vocab_size": 32768, **changes}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in model.state_dict().items():
        match = re.match(r"model\.layers\.(\d+)\.", name)
        part = f"layer-{int(match[1]):03d}" if match else "rest"
        parts.setdefault(part, {}).update(_stored(name, value))
    made: dict[tuple[tuple[torch.dtype, tuple[int, ...]], ...], bytes] = {}
    weight_map = {}
    jobs = []
    for part, tensors in sorted(parts.items()):
        shapes = tuple((value.dtype, tuple(value.shape)) for value in tensors.values())
        if shapes not in made:
            made[shapes] = b"".join(map(_random_bytes, tensors.values()))
        file = f"{part}.safetensors"
        weight_map |= dict.fromkeys(tensors, file)
        jobs.append((folder / file, _header(tensors), made[shapes]))
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_write, jobs))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return sum(sizes)


def first_layers(folder: Path, layers: int) -> Path:
    """A checkpoint beside ``folder`` that is its first ``layers`` layers, of links to its files.

    Args:
        folder: as ``write_checkpoint`` made it.
        layers: how many of it, at most as many as it has.
    """
    part = folder.with_name(f"{folder.name}-first-{layers}")
    if (part / "config.json").exists():
        return part
    part.mkdir()
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    weight_map = {
        name: file
        for name, file in index["weight_map"].items()
        if (match := re.match(r"layer-(\d+)", file)) is None or int(match[1]) < layers
    }
    for file in sorted(set(weight_map.values())):
        (part / file).symlink_to((folder / file).resolve())
    (part / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": weight_map}), "utf-8")
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    settings |= {"num_hidden_layers": layers}
    settings |= {name: value[:layers] for name, value in settings.items() if isinstance(value, list)}
    (part / "config.json").write_text(json.dumps(settings), "utf-8")
    return part


def _stored(name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a checkpoint holds for a parameter: of fused experts, those of each."""
    head, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        experts, twice, width = value.shape
        part = value.new_empty(twice // 2, width)
        for expert in range(experts):
            yield f"{head}.{expert}.gate_proj.weight", part
            yield f"{head}.{expert}.up_proj.weight", part
    elif last == "down_proj" and value.dim() == 3:
        for expert in range(len(value)):
            yield f"{head}.{expert}.down_proj.weight", value[0]
    else:
        yield name, value


def _random_bytes(like: torch.Tensor) -> bytes:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = torch.randn(like.shape, device=device, dtype=torch.float32).mul_(0.02).to(like.dtype)
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _header(tensors: dict[str, torch.Tensor]) -> bytes:
    entries, start = {}, 0
    for name, value in tensors.items():
        end = start + value.numel() * value.element_size()
        entries[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write(job: tuple[Path, bytes, bytes]) -> int:
    path, header, content = job
    with path.open("wb") as file:
        file.write(header)
        file.write(content)
    return len(header) + len(content)
