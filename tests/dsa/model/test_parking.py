"""Rows that wait on the device while it has room, else as bytes in host memory, and come back the same."""

import gc
import weakref

import pytest
import torch
from random_models import LAYERS, build

from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.stack import State
from indexcache.dsa.model.states import parking
from indexcache.dsa.model.states.parking import ParkedState, Parking
from indexcache.dsa.model.tail import Window
from indexcache.dsa.stream import memory
from indexcache.pattern import Pattern

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def states(count, device="cpu"):
    """States as families have them: with a selection of tokens, of blocks, or none, and with what is carried."""
    for number in range(count):
        hidden = torch.randn(1, 7 + number, 5, dtype=torch.bfloat16, device=device)
        selection = [
            None,
            torch.randint(0, 9, (1, 7, 3), device=device),
            torch.rand(1, 2, 7, 3, device=device) > 0.5,
        ]
        carried = (
            {}
            if number % 2
            else {"shared_kv_states": {"2": (torch.randn(1, 3, device=device), hidden[0].float())}}
        )
        yield State(hidden, selection[number % 3], carried)


def tensors(state):
    return parking._emptied(state)[0]


def assert_same(state, wanted):
    assert len(tensors(state)) == len(tensors(wanted))
    for tensor, other in zip(tensors(state), tensors(wanted), strict=True):
        assert (tensor.dtype, tensor.device) == (other.dtype, other.device)
        assert torch.equal(tensor, other)
    assert {name: list(store) for name, store in state.carried.items()} == {
        name: list(store) for name, store in wanted.carried.items()
    }


def test_a_state_packed_into_a_run_of_bytes_is_the_same_when_unpacked():
    for state in states(6):
        content, emptied = parking._emptied(state)
        assert emptied.hidden.is_meta
        run = torch.zeros(sum(map(parking._room, content)), dtype=torch.uint8)
        for tensor, place in zip(content, parking._views(run, content), strict=True):
            assert place.data_ptr() % 16 == run.data_ptr() % 16
            place.copy_(tensor)
        assert_same(parking._with(emptied, iter(parking._views(run, content))), state)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_rows_come_back_in_order_and_once(device):
    waiting = list(states(4, device))
    parked = Parking(torch.device(device), 0)
    rows = [(number, parked.park(state)) for number, state in enumerate(waiting)]
    for number, (row, state) in enumerate(parked.states(rows, lambda row: row[1])):
        assert row[0] == number
        assert_same(state, waiting[number])
    with pytest.raises(AssertionError, match="taken once"):
        parked._take(rows[0][1])


@pytest.mark.parametrize("device", [GPU])
def test_what_the_device_has_no_room_for_waits_in_host_memory(device):
    """The budget holds the first of five; each sweep of a layer parks them again, in the memory that was freed."""
    torch.manual_seed(0)
    waiting = list(states(5, device))
    wanted = [State(state.hidden.clone(), state.selection, state.carried) for state in waiting]
    parked = Parking(torch.device(device), waiting[0].bytes)
    rows = [parked.park(state) for state in waiting]
    assert [row.host is None for row in rows] == [True, False, False, False, False]
    del waiting
    for _ in range(3):
        left = []
        for _, state in parked.states(rows, lambda row: row):
            assert_same(state, wanted[len(left)])
            left.append(parked.park(state))
        rows = left
    assert sum(row.host is not None for row in rows) == 4


class Copied:
    """An event of a GPU."""

    waited = 0

    def synchronize(self):
        self.waited += 1


def test_runs_of_host_memory_serve_over_and_over(monkeypatch):
    """Three sweeps of four rows, which are smaller before the first site, as they have no selection yet."""
    made = []
    monkeypatch.setattr(memory, "host_run", lambda size, device: made.append(size) or torch.empty(size))
    runs = memory.HostRuns(torch.device("cpu"))
    for _ in range(3):
        for size in (10, 30, 20, 30):
            taken = [runs.take(size)[0] for _ in range(4)]
            assert all(len(run) >= size for run in taken)
            assert len({run.data_ptr() for run in taken}) == 4, "two rows wait in the same memory"
            for run in taken:
                runs.give(run)
    assert made == [10] * 4 + [30] * 4, "a run is registered again in later sweeps"


def test_a_run_comes_with_what_is_still_copied_from_it_and_is_not_let_go_before():
    runs, copied = memory.HostRuns(torch.device("cpu")), Copied()
    run, event = runs.take(10)
    assert event is None
    runs.give(run, copied)
    assert runs.take(8) == (run, copied)
    runs.give(run, copied)
    larger, event = runs.take(11)
    assert (len(larger), event, copied.waited) == (11, None, 1)


def test_a_run_that_is_too_small_is_let_go_before_a_larger_one_is_taken(monkeypatch):
    runs = memory.HostRuns(torch.device("cpu"))
    small = [runs.take(size)[0] for size in (5, 10)]
    largest = weakref.ref(small[1])
    for run in small:
        runs.give(run)
    del run, small
    gone = []
    monkeypatch.setattr(
        memory, "host_run", lambda size, device: gone.append(largest() is None) or torch.empty(size)
    )
    runs.take(11)
    assert gone == [True], "both are in the host's memory at a time"


class CopyingParking:
    """Rows wait as copies, as if in host memory; counts how many states there are beside the copies."""

    most = parked = 0

    def __init__(self, device, budget, runs):
        self._there = []

    def _noted(self, state):
        self._there = [reference for reference in self._there if reference() is not None]
        self._there.append(weakref.ref(state.hidden))
        CopyingParking.most = max(CopyingParking.most, len(self._there))
        return state

    def park(self, state):
        CopyingParking.parked += 1
        copies, _ = parking._emptied(self._noted(state))
        return ParkedState(state.bytes, parking._with(state, iter([tensor.clone() for tensor in copies])))

    def states(self, rows, of):
        for row in rows:
            copies, meta = parking._emptied(of(row).state)
            yield row, self._noted(parking._with(meta, iter([tensor.clone() for tensor in copies])))


def test_of_many_windows_only_the_one_that_computes_has_its_states_on_the_device(monkeypatch):
    """Ten windows, compared with all full and with key tokens weighed: the states of no phase pile up.

    Beside one that enters a layer and the one that leaves it, two that went before may not be let go yet.
    """
    patterns = [Pattern.all_full(LAYERS), Pattern.all_full(LAYERS).share(2)]
    draw = torch.Generator().manual_seed(3)
    windows = [
        Window(number, torch.randint(0, 4000, (60,), generator=draw).tolist(), weighs_keys=True)
        for number in range(10)
    ]
    expected = PatternLosses(build("glm_moe_dsa"), range(LAYERS), blind=16).compare(patterns, windows)
    monkeypatch.setattr("indexcache.dsa.model.losses.Parking", CopyingParking)
    gc.collect()
    losses = PatternLosses(build("glm_moe_dsa"), range(LAYERS), blind=16)
    assert losses.compare(patterns, windows) == expected
    assert CopyingParking.most <= 4
    # Embedded and from each layer: all full, once for itself and once beside the other, and two pieces a window.
    assert CopyingParking.parked > 10 * 4 * LAYERS
