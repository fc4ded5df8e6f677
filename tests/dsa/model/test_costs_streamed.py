"""Layer costs of a model whose layers come and go: equal bit for bit, in one sweep, on processes alike."""

import pytest
import torch

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.model.costs import ERROR, FISHER, layer_costs
from indexcache.dsa.model.stack import Stack
from indexcache.dsa.model.states.parking import SelectionInHost
from indexcache.dsa.model.switch import Switch
from indexcache.dsa.stream.footprint import footprint
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.load import load_layers
from indexcache.dsa.stream.room import Room, least_on_device
from indexcache.errors import MeasurementError
from indexcache.system import processes

BLIND = 16
WINDOWS = torch.randint(0, 4000, (2, 48), generator=torch.Generator().manual_seed(1)).tolist()


class Opened:
    """A checkpoint of random weights, to be loaded with all layers in memory or all of them on their way."""

    def __init__(self, folder):
        self.checkpoint = open_checkpoint(str(folder))
        self.weights = find_weights(self.checkpoint)

    def model(self, room=Room()):
        return load_layers(self.checkpoint, self.weights, "auto", room)

    def streamed(self, host=0):
        """With room for the resident part and the layers that are on their way."""
        few = 1 << 10  # bytes of buffers, which sizes by the config leave out
        model = self.model(Room(least_on_device(footprint(self.checkpoint)) + few, host))
        stream = stream_of(model)
        assert len(stream.files) + len(stream.host) == stream.layers
        return model

    def costs(self, model, surrogate, windows=WINDOWS):
        return layer_costs(model, Switch(model, self.checkpoint.site_layers), windows, surrogate, BLIND)


@pytest.fixture(scope="module")
def eight(checkpoints):
    return Opened(checkpoints["eight"])


@pytest.fixture(scope="module")
def expected(eight):
    return {surrogate: eight.costs(eight.model(), surrogate) for surrogate in (ERROR, FISHER)}


@pytest.mark.parametrize("surrogate", [ERROR, FISHER])
def test_costs_do_not_depend_on_where_weights_wait(eight, expected, surrogate):
    assert eight.costs(eight.streamed(), surrogate) == expected[surrogate]
    assert eight.costs(eight.streamed(host=1 << 24), surrogate) == expected[surrogate]


def test_errors_of_all_windows_take_one_sweep(eight):
    model = eight.streamed()
    stream = stream_of(model)
    before = stream.weight_bytes
    eight.costs(model, ERROR)
    # The first layer runs once more before, which shows in what form it returns.
    assert stream.weight_bytes - before < stream.sweep_bytes * (1 + 2 / stream.layers)


@pytest.fixture
def gathering(eight, monkeypatch):
    """A model whose stream takes itself for one of several processes'."""
    model = eight.streamed()
    stream = stream_of(model)
    monkeypatch.setattr(stream, "_least", lambda number: number)
    assert stream.gathers
    return model


def test_a_process_without_windows_brings_its_part_all_the_same(eight, gathering):
    stream = stream_of(gathering)
    before = stream.weight_bytes
    assert eight.costs(gathering, ERROR, windows=[]).windows == ()
    assert stream.weight_bytes - before == stream.sweep_bytes


def test_a_process_short_of_memory_brings_its_part_and_all_refuse_alike(eight, gathering, monkeypatch):
    stream, run_layer, together = stream_of(gathering), Stack.run_layer, []

    def short_in_layer_one(stack, index, state, calls):
        if index == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_layer(stack, index, state, calls)

    def merge(part):
        together.append(part)
        return part

    monkeypatch.setattr(Stack, "run_layer", short_in_layer_one)
    monkeypatch.setattr(processes, "merge", merge)
    before = stream.weight_bytes
    with pytest.raises(MeasurementError, match="out of memory for the selections") as caught:
        eight.costs(gathering, ERROR)
    assert caught.value.shared
    assert stream.weight_bytes - before >= stream.sweep_bytes, "others would wait for layers 2 to 7"
    assert len(together) == 1, "the others would wait for what this process measured"


def test_a_selection_in_host_memory_comes_back_as_it_was():
    selection = torch.tensor([[[3, -1], [2**31 - 1, 0]]])
    selection.is_distinct = True
    waiting = SelectionInHost(selection)
    for _ in range(2):
        back = waiting.back()
        assert (back.dtype, back.is_distinct) == (torch.int64, True)
        assert torch.equal(back, selection)
    mask = torch.tensor([[[True, False]]])
    assert torch.equal(SelectionInHost(mask).back(), mask)
    assert SelectionInHost(mask).back().dtype == torch.bool


def test_states_that_layers_carry_on_go_layer_by_layer_too(checkpoints):
    opened = Opened(checkpoints["hy_v4"])
    assert opened.costs(opened.streamed(), ERROR) == opened.costs(opened.model(), ERROR)
