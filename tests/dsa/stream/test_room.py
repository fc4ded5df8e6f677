"""Where layers wait: on the device as far as it has room, then in host memory, then in files."""

import pytest

from indexcache.dsa.stream.footprint import Footprint
from indexcache.dsa.stream.room import Homes, LayerSizes, homes, least_on_device
from indexcache.errors import MeasurementError

# Twelve layers of 10 bytes, stored in 6. The next one waits beside one that runs.
LAYERS = [LayerSizes(6, 10)] * 12
RESIDENT, MOVING = 50, 10 + 6


def test_layers_that_fit_stay_and_need_no_room_to_move():
    assert homes(LAYERS, RESIDENT, RESIDENT + 120, 0) == Homes(tuple(range(12)))


@pytest.mark.parametrize("staying", range(10))
def test_as_many_stay_as_leave_room_for_one_that_moves(staying):
    for spare in (0, 3):
        places = homes(LAYERS, RESIDENT, RESIDENT + MOVING + 10 * staying + spare, 0)
        assert len(places.device) == staying
        assert sorted((*places.device, *places.files)) == list(range(12))
        assert not places.host


def test_of_the_others_as_many_as_fit_wait_in_host_memory_and_the_rest_in_files():
    device = RESIDENT + MOVING + 10 * 4
    for host, kept in ((0, 0), (5, 0), (6, 1), (47, 7), (48, 8), (1 << 30, 8)):
        places = homes(LAYERS, RESIDENT, device, host)
        assert (len(places.device), len(places.host), len(places.files)) == (4, kept, 8 - kept)
        assert sorted((*places.device, *places.host, *places.files)) == list(range(12))


@pytest.mark.parametrize("staying", [1, 7, 20, 30, 53])
def test_those_that_stream_are_spread_evenly_between_those_that_stay(staying):
    """So that the next one comes while others compute."""
    layers = [LayerSizes(6, 10)] * 61
    places = homes(layers, RESIDENT, RESIDENT + MOVING + 10 * staying, 0)
    share = len(places.files) / 61
    for count in range(62):
        assert abs(sum(layer < count for layer in places.files) - share * count) < 2


def test_a_layer_too_large_to_stay_does_not_keep_smaller_ones_away():
    large, small = LayerSizes(40, 40), LayerSizes(10, 10)
    places = homes([large, *[small] * 20], 0, 40 + 40 + 35, 0)
    assert len(places.device) == 3
    assert 0 in places.files


def test_where_not_even_one_layer_fits_the_largest_is_named_and_how_much_is_there():
    layers = [LayerSizes(6_000_000, 10_000_000), LayerSizes(200_000_000, 300_000_000, making=300_000_000)]
    with pytest.raises(MeasurementError) as error:
        homes(layers, 50_000_000, 309_000_000, 1 << 40)
    said = "layer 1 takes 0.3 GB, and 0.8 GB with what it is made from; with 50.0 MB that always stay"
    assert said in str(error.value)
    assert "that is 0.8 GB, and weights may take 0.3 GB of the device" in str(error.value)
    assert error.value.hint.startswith("raise --max-memory")


def test_few_layers_can_move():
    """Of three as large as they are stored, one at a time; two need as much as both that stay."""
    plain, eight = LayerSizes(10, 10), LayerSizes(5, 10)
    assert homes([plain] * 3, 1, 21, 0).files == (0, 1, 2)
    with pytest.raises(MeasurementError, match="layer 0"):
        homes([plain] * 2, 1, 20, 0)
    assert homes([plain] * 2, 1, 21, 0).device == (0, 1)
    assert homes([eight] * 2, 1, 16, 0).files == (0, 1)


@pytest.mark.parametrize("layers", [((6, 10),) * 12, ((6, 10), (40, 90), (6, 10)), ((6, 10),)], ids=len)
def test_the_least_that_a_device_needs_is_what_is_enough(layers):
    stored, plain = zip(*layers, strict=True)
    least = least_on_device(Footprint("bf16", None, stored, plain, RESIDENT, quantised=False, making=3))
    sizes = [LayerSizes(*pair, making=3) for pair in layers]
    homes(sizes, RESIDENT, least, 0)
    with pytest.raises(MeasurementError):
        homes(sizes, RESIDENT, least - 1, 0)
    assert least_on_device(None) == 0


class TestSeveralProcesses:
    """Ten layers of 4 bytes stored and 8 plain, 2 resident; the layer that moves takes 8 + 4."""

    def test_share_layers_out_over_their_devices_before_the_host_is_asked(self):
        layers = [LayerSizes(4, 8)] * 10
        places = homes(layers, 2, device=2 + 12 + 20, host=1 << 30, processes=2)
        assert places.shared == tuple(range(10)), "ten parts of 2 bytes fit into the 20 that are left"
        assert (places.device, places.host, places.files) == ((), (), ())

    def test_keep_whole_layers_in_what_is_left_beside_the_parts(self):
        layers = [LayerSizes(4, 8)] * 10
        places = homes(layers, 2, device=2 + 12 + 20 + 13, host=0, processes=2)
        assert len(places.device) == 2, "a layer that stays whole takes 6 bytes more than its part"
        assert len(places.shared) == 8

    def test_send_what_is_too_much_for_their_devices_to_the_host_and_to_files(self):
        layers = [LayerSizes(4, 8)] * 10
        places = homes(layers, 2, device=2 + 12 + 7, host=9, processes=2)
        assert [len(some) for some in (places.device, places.shared, places.host, places.files)] == [0, 3, 2, 5]
