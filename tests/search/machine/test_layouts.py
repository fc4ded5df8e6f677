"""Prices of layouts against sums done by hand."""

import pytest

from indexcache.search.cost import SweepRows
from indexcache.search.estimate import ExpectedCost
from indexcache.search.machine import layouts, machine
from indexcache.search.machine.layouts import StreamedModel, price
from indexcache.search.machine.machine import Machine, disk_warning

GB = 10**9
LAYERS = 3
# Two sweeps: one through all layers, one from the second on; the first with 4 windows, the second with 1.
SWEEPS = (SweepRows(4, (4, 4, 4), (0, 2, 2)), SweepRows(1, (0, 1, 0), (0, 0, 1)))


def model(**changes):
    settings = {
        "stored": (10 * GB, 20 * GB, 20 * GB), "plain": (10 * GB, 20 * GB, 20 * GB), "moving": 40 * GB,
        "resident": GB, "is_dequantised": False, "working": GB, "row": GB, "seconds": ((1.0, 0.5),) * LAYERS,
        "windows": 4,
    }  # fmt: skip
    return StreamedModel(**settings | changes)


def expected(kept=None):
    rows = sum(sum(sweep.full) + sum(sweep.shared) for sweep in SWEEPS)
    return ExpectedCost(5, rows, 5, rows, 100, SWEEPS)


def priced(computer, streamed, asked=expected):
    return {layout.name: layout for layout in price(computer, streamed, asked)}


def test_on_one_gpu_with_all_in_memory_only_computing_counts():
    layout = priced(Machine(1, 80 * GB, host_bytes=100 * GB), model())[layouts.MEMORY]
    # 4 + 5 + 5 seconds of the first sweep, 1 + 0.5 of the second.
    assert layout.seconds == pytest.approx(15.5)
    assert (layout.moved_bytes, layout.waits_for, layout.busy, layout.reason) == (0, "compute", 1.0, "")
    assert layout.gpu_bytes == 52 * GB


def test_a_layer_comes_while_the_one_before_computes():
    disk = priced(Machine(1, 80 * GB, host_bytes=100 * GB, disk_rate=2 * GB), model())[layouts.DISK]
    # Each byte from disk and then over the host link; the first layer of either sweep is waited for.
    per_gigabyte = 0.5 + GB / machine.HOST_LINK
    coming = [10 * per_gigabyte, 20 * per_gigabyte]
    first = coming[0] + max(4, coming[1]) + max(5, coming[1]) + 5
    second = coming[1] + max(1, coming[1]) + 0.5
    assert disk.seconds == pytest.approx(first + second)
    assert disk.waits_for == "disk"
    assert disk.busy == pytest.approx(15.5 / (first + second))
    assert disk.moved_bytes == (50 + 40) * GB
    assert disk.sweep_bytes == 45 * GB


def test_several_gpus_share_windows_and_bytes():
    pair = priced(Machine(2, 80 * GB, host_bytes=100 * GB), model())
    # Two windows of four for each; one window keeps one GPU busy, whatever the other does.
    assert pair[layouts.MEMORY].seconds == pytest.approx(14 / 2 + 1.5)
    assert pair[layouts.MEMORY].busy == pytest.approx(15.5 / 2 / 8.5)
    assert pair[layouts.MEMORY].waits_for == "compute"
    assert pair[layouts.SHARED_OUT].gpu_bytes == (25 + 20 + 20 + 2) * GB
    gathered = GB / 2 / machine.GPU_LINK
    first = 10 * gathered + max(2, 20 * gathered) + max(2.5, 20 * gathered) + 2.5
    assert pair[layouts.SHARED_OUT].seconds == pytest.approx(first + 20 * gathered + max(1, 20 * gathered) + 0.5)


def test_quantised_layers_are_dequantised_once_a_sweep():
    small = model(stored=(5 * GB, 10 * GB, 10 * GB), is_dequantised=True)
    computer = Machine(1, 80 * GB, host_bytes=100 * GB, disk_rate=1e18)
    streamed, whole = (priced(computer, small)[name] for name in (layouts.DISK, layouts.MEMORY))
    layers = (15 + 30 + 30) + (30 + 30)
    first = (5 + 10) * GB * computer.host_link_seconds
    assert streamed.seconds == pytest.approx(15.5 + first + layers * GB / machine.DEQUANTISING)
    # What stays on the GPU is dequantised once, as it is loaded, and takes the bytes that it computes with.
    assert whole.seconds == pytest.approx(15.5)
    assert whole.gpu_bytes == (50 + 2) * GB


def test_nodes_share_the_weights_and_the_slower_link_counts():
    settings = {"host_bytes": 100 * GB, "disk_rate": 2 * GB, "network_rate": GB}
    one, two = (priced(Machine(2, 80 * GB, nodes, **settings), model()) for nodes in (1, 2))
    # With four fifths of what a node has for them.
    assert two[layouts.HOST].host_bytes == 25 * GB / 0.8
    assert one[layouts.HOST].host_bytes == 50 * GB / 0.8
    # Half of a layer's bytes come over the network.
    assert Machine(2, 80 * GB, 2, **settings).gather_seconds == pytest.approx(0.5 / GB)
    assert two[layouts.HOST].waits_for == "network"
    slow = priced(Machine(2, 80 * GB, host_bytes=100 * GB), model(stored=(900 * GB,) * LAYERS))
    assert slow[layouts.SHARED_OUT].waits_for == "GPU links"


def test_what_fits_comes_first_and_the_fastest_before():
    order = price(Machine(2, 70 * GB, host_bytes=100 * GB, disk_rate=GB), model(), expected)
    assert [layout.name for layout in order] == [layouts.MEMORY, layouts.SHARED_OUT, layouts.HOST, layouts.DISK]
    order = price(Machine(2, 50 * GB, host_bytes=40 * GB), model(), expected)
    assert [(layout.name, bool(layout.reason)) for layout in order] == [
        (layouts.DISK, False), (layouts.MEMORY, True), (layouts.SHARED_OUT, True), (layouts.HOST, True),
    ]  # fmt: skip
    reasons = {layout.name: layout.reason for layout in order}
    assert reasons[layouts.MEMORY] == "does not fit: it needs 52 GB on each GPU, which has 50 GB"
    assert reasons[layouts.HOST] == "does not fit: it needs 62.5 GB of host memory, a node has 40 GB"
    order = price(Machine(1, 50 * GB), model(), expected)
    assert "--ram" in next(layout.reason for layout in order if layout.name == layouts.HOST)


def test_rows_that_the_gpu_has_no_room_for_wait_in_host_memory():
    # Six rows pass a layer together. Of 46 GB 41 are taken, and half of the rest is for rows: two find room.
    layout = priced(Machine(1, 46 * GB, host_bytes=100 * GB), model())[layouts.DISK]
    assert layout.host_bytes == (20 + 4) * GB
    # A model that is whole on the GPU is measured a window at a time.
    assert priced(Machine(1, 54 * GB, host_bytes=100 * GB), model())[layouts.MEMORY].host_bytes == 0


def test_states_are_kept_as_far_as_memory_goes():
    asked = []

    def counted(kept):
        asked.append(kept)
        return expected()

    # A quarter of 48 GB beside the weights, for up to four paths of four windows of 1 GB: no layer; of 128, two.
    kept = {}
    for left in (48, 128, 10_000):
        layout = priced(Machine(1, (51 + left) * GB, host_bytes=100 * GB), model(), counted)[layouts.MEMORY]
        kept[left] = layout.kept_states
    assert kept == {48: 0, 128: 2, 10_000: None}
    assert {0, 2, None} <= set(asked)


def test_where_no_times_are_known_bytes_are():
    layout = priced(Machine(1, 80 * GB, host_bytes=100 * GB), model(seconds=None))[layouts.HOST]
    assert (layout.seconds, layout.busy, layout.waits_for, layout.moved_bytes) == (None, None, None, 90 * GB)


def test_a_slow_disk_is_told_before():
    assert disk_warning(180 * GB, 6 * GB) is None
    assert disk_warning(0, 0) is None
    line = disk_warning(690 * GB, GB)
    assert "a sweep reads 690.0 GB from files, which takes 12 min at 1 GB/s" in line
