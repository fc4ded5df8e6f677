"""What weights, rows and kept states may take of a machine's memory, decided when a model is loaded."""

import pytest
import torch
from random_models import ALL_STREAM, load_streamed

from indexcache.calibrate.windows import WindowGroup, Windows
from indexcache.commands.job import measure
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.long import capacity
from indexcache.dsa.long.backends import Backends
from indexcache.dsa.stream.layers import stream_of
from indexcache.dsa.stream.room import Room
from indexcache.evaluate import CALIBRATION, HELD_OUT
from indexcache.system.console import Reporter

LENGTH, FREE = 48, 1 << 30
# Of what is free when a model is loaded, states that later patterns start from.
SHARE_FOR_PATHS = 0.25


@pytest.fixture
def checkpoint(checkpoints):
    return open_checkpoint(str(checkpoints["glm_moe_dsa"]))


def running(room):
    return measure.Running("auto", torch.float32, room, Backends())


def budget_for_paths(checkpoint, room):
    """Of an evaluator on a machine with ``FREE`` bytes, and the model's stream."""
    ids = torch.randint(0, 4000, (2, LENGTH)).numpy()
    group = WindowGroup(ids, ids[:, 0])
    model = load_streamed(checkpoint.folder, room)
    loaded = measure.Loaded(model, checkpoint, running(room))
    evaluator = measure.evaluator(loaded, Windows({CALIBRATION: group, HELD_OUT: group}), Reporter(quiet=True))
    return evaluator._losses.memory.budget, stream_of(model)


def test_states_leave_room_for_the_layer_that_comes_and_for_its_work(checkpoint, monkeypatch):
    monkeypatch.setattr(capacity, "free_memory", lambda device: FREE)
    whole, stream = budget_for_paths(checkpoint, Room())
    assert (whole, stream) == (SHARE_FOR_PATHS * FREE, None)
    streamed, stream = budget_for_paths(checkpoint, ALL_STREAM)
    # Its parameters, of plain weights as many bytes as are stored; the memory that it comes to is taken already.
    layer = max(part.layout.stored for part in stream._stored.values())
    work = capacity.layer_bytes(checkpoint.config, LENGTH, 4, Backends(), on_gpu=False)
    # Sizes by headers leave out a few bytes of buffers.
    assert streamed == pytest.approx(SHARE_FOR_PATHS * (FREE - layer - work), abs=100)


def test_what_layers_may_take_of_a_host_counts_on_all_hosts(checkpoint, monkeypatch):
    rooms = {}
    for hosts in (1, 3):
        monkeypatch.setattr(measure.processes, "host_count", lambda hosts=hosts: hosts)
        rooms[hosts] = measure._room(checkpoint, running(Room(FREE, 1000)), LENGTH)
    assert rooms == {1: Room(FREE, 1000), 3: Room(FREE, 3000)}
