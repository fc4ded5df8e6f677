"""Which devices a model computes on: counted by kind, whatever is kept elsewhere."""

from types import SimpleNamespace

import pytest
import torch
from random_models import load_checkpoint

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.load import Placement, device_kinds


def spread_over(*names, fetched_to=None):
    hook = SimpleNamespace(offload=True, execution_device=fetched_to)
    modules = [SimpleNamespace(_hf_hook=hook)] if fetched_to is not None else []
    weights = [SimpleNamespace(device=torch.device(name)) for name in names]
    return SimpleNamespace(parameters=lambda: weights, modules=lambda: modules)


@pytest.mark.parametrize(
    ("model", "kinds"),
    {
        "one": (spread_over("cuda:0"), "cuda: card"),
        "another": (spread_over("cuda:1"), "cuda: card"),
        "two": (spread_over("cuda:0", "cuda:1", "cuda:1"), "2 x cuda: card"),
        "one, and the disk": (spread_over("cuda:0", "meta", fetched_to="cuda:0"), "cuda: card, offloaded"),
        "all fetched": (spread_over("meta", fetched_to="cuda:0"), "cuda: card, offloaded"),
        "all fetched to the CPU": (spread_over("meta", fetched_to="cpu"), "cpu, offloaded"),
        "a card and the CPU": (spread_over("cuda:0", "cpu"), "cpu, cuda: card"),
    }.values(),
)
def test_devices_are_counted_by_kind(model, kinds, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    assert device_kinds(model) == kinds


def test_a_model_on_the_disk_computes_on_the_cpu(checkpoints, tmp_path):
    checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
    assert device_kinds(load_checkpoint(checkpoint)) == "cpu"
    placed = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    placed |= {f"model.layers.{number}": "disk" if number else "cpu" for number in range(checkpoint.layers)}
    placement = Placement(placed, str(tmp_path / "offload"))
    assert device_kinds(load_checkpoint(checkpoint, placement=placement)) == "cpu, offloaded"
