"""Which devices a model computes on: counted by kind, wherever its weights wait."""

from types import SimpleNamespace

import pytest
import torch
from random_models import ALL_STREAM, load_streamed

from indexcache.dsa.checkpoint.load import device_kinds
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.room import Room


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
        "one, and the disk": (spread_over("cuda:0", "meta", fetched_to="cuda:0"), "cuda: card"),
        "all fetched": (spread_over("meta", fetched_to="cuda:0"), "cuda: card"),
        "all fetched to the CPU": (spread_over("meta", fetched_to="cpu"), "cpu"),
        "a card and the CPU": (spread_over("cuda:0", "cpu"), "cpu, cuda: card"),
    }.values(),
)
def test_devices_are_counted_by_kind(model, kinds, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    assert device_kinds(model) == kinds


def test_layers_that_stream_compute_where_the_others_do(checkpoints):
    there = load_streamed(checkpoints["glm_moe_dsa"], Room())
    away = load_streamed(checkpoints["glm_moe_dsa"], ALL_STREAM)
    assert stream_of(there) is None
    assert len(stream_of(away).files) == 6
    assert device_kinds(there) == device_kinds(away) == "cpu"
