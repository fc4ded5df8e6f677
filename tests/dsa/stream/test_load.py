"""A layer at a time, stored tensors become what transformers makes of the whole checkpoint, in every family."""

import functools
import weakref
from collections import Counter

import eight_bit
import pytest
import torch
from conftest import save
from random_models import FAMILIES, LAYERS, build, least_room, load_streamed
from torch.utils._python_dispatch import TorchDispatchMode

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.load import Placement, load_model
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.stream.conversion import Conversion
from indexcache.dsa.stream.fetch import part_size
from indexcache.dsa.stream.footprint import footprint
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.room import Room, least_on_device
from indexcache.dsa.stream.slots import Slots
from indexcache.errors import ModelError


@pytest.fixture
def half_precision(made_once):
    """A checkpoint of a family in bfloat16, as far as the family keeps that."""

    def make(family):
        return made_once(f"{family}-bf16", lambda folder: save(build(family).bfloat16(), folder))

    return make


def assert_equal_states(model, wanted):
    state, expected = model.state_dict(), wanted.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name
    buffers = dict(wanted.named_buffers())
    for name, buffer in model.named_buffers():  # those that no file holds too
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_loaded_a_layer_at_a_time_is_transformers_own(family, dtype, half_precision):
    """Types too: some families keep a few tensors of a bfloat16 checkpoint in full precision."""
    checkpoint = open_checkpoint(str(half_precision(family)))
    wanted = load_model(checkpoint, find_weights(checkpoint), dtype, Placement())
    model = load_streamed(checkpoint.folder, Room(), dtype)
    assert stream_of(model) is None
    assert_equal_states(model, wanted)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_streams_is_the_same_when_it_is_there_and_takes_nothing_else(family, half_precision):
    folder = half_precision(family)
    there = load_streamed(folder, Room())
    away = load_streamed(folder, Room(least_room(there), 0))
    expected, present = there.state_dict(), []
    for number in stream_of(away).sweep(0):
        here = {name: value for name, value in away.state_dict().items() if not value.is_meta}
        assert all(torch.equal(value, expected[name]) for name, value in here.items()), f"layer {number}"
        present.append(frozenset(here))
    assert not any(part >= expected.keys() for part in present)
    assert frozenset.union(*present) == expected.keys()
    resident = frozenset(name for name, value in away.state_dict().items() if not value.is_meta)
    assert len({part - resident for part in present}) == LAYERS, "each layer alone is there in its turn"


def test_slots_are_filled_and_emptied_over_and_over():
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"a": torch.nn.BatchNorm1d(3), "b": torch.nn.Linear(2, 2)})
    model["a"].register_buffer("computed", torch.ones(2), persistent=False)
    slots = Slots(model, "a.")
    types = {f"a.{name}": value.dtype for name, value in model["a"].state_dict().items()}
    assert slots.bytes(types) == 4 * 3 * 4 + 8
    for number in (1.0, 2.0):
        slots.fill((name, torch.full((3,), number)) for name in ("a.weight", "a.running_mean"))
        assert model["a"].weight.tolist() == model["a"].running_mean.tolist() == [number] * 3
        assert not model["a"].weight.requires_grad
        slots.empty()
        assert model["a"].weight.is_meta
        assert model["a"].running_mean.is_meta
        assert model["a"].computed.tolist() == [1.0, 1.0], "what no file holds is left alone"
    assert model["b"].weight.is_meta


@functools.cache
def a_linear():
    model = build("glm_moe_dsa", layers=1)
    return model, Conversion(model, {"lm_head.weight": torch.float64}, {"lm_head.weight": ["lm_head.weight"]})


def test_what_is_made_shares_no_memory_with_what_is_stored():
    """A run of bytes is filled again while its parameters are in use."""
    model, conversion = a_linear()
    stored = model.lm_head.weight.double()
    ((name, value),) = conversion.parameters(conversion.targets(), {"lm_head.weight": stored})
    assert (name, value.dtype) == ("lm_head.weight", torch.float64)
    assert torch.equal(value, stored)
    assert value.data_ptr() != stored.data_ptr()


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made within it took at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._holders = Counter()

    def __torch_dispatch__(self, function, types, given=(), named=None):
        made = function(*given, **(named or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor):
        place, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if place in self._before:
            return
        self._holders[place] += 1
        self.now += size if self._holders[place] == 1 else 0
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._let_go, place, size)

    def _let_go(self, place, size):
        self._holders[place] -= 1
        self.now -= 0 if self._holders[place] else size

    def beside(self, tensors):
        """Those that are there already are not counted."""
        self._before = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return self


@pytest.mark.parametrize("quantised", [False, True])
def test_nothing_of_a_layer_is_there_twice_while_it_is_made(quantised, tmp_path):
    """Beside what is stored, a layer as it computes; one quantised weight at a time takes 8 bytes a number."""
    folder = eight_bit.make(tmp_path, layers=4)[0 if quantised else 1]
    sizes = footprint(open_checkpoint(str(folder)))
    model = load_streamed(folder, Room(least_on_device(sizes) + 1000, 0))
    stream = stream_of(model)
    number = max(stream._stored)
    tensors = stream._fetcher.alone(stream._stored[number])
    targets, conversion = stream._targets[number], stream._conversion
    fused = [target.name for target in targets if target.places]
    assert [name.rpartition(".")[2] for name in fused] == ["down_proj", "gate_up_proj"]
    with LiveBytes().beside(tensors.values()) as live:
        made = dict(conversion.parameters(targets, tensors))
    assert live.now == live.most or quantised
    size = sum(value.nbytes for value in made.values())
    bound = max(map(conversion.making, targets))
    assert bound == sizes.making
    assert size <= live.most <= size + bound
    assert (bound > 0) is quantised


def test_another_shape_than_the_models_is_named():
    _, conversion = a_linear()
    with pytest.raises(ModelError, match=r"lm_head\.weight comes out with the shape \[2, 2\], not \[4096, 64\]"):
        list(conversion.parameters(conversion.targets(), {"lm_head.weight": torch.ones(2, 2)}))


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 4096])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_equal_aligned_parts_cover_a_run(size, processes):
    part = part_size(size, processes)
    assert part % 64 == 0
    assert size <= processes * part < size + processes * 128
