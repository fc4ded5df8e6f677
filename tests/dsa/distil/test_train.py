"""Training lowers what it is to lower, gives the same twice, and leaves the model as it was."""

import pytest
import torch
from random_models import ALL_STREAM, LAYERS, build, load_streamed

from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.distil.segments import Segment
from indexcache.dsa.distil.train import RATES, Settings, collect, divergence, put, schedule, train
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.tail import Window
from indexcache.errors import MeasurementError, ModelError, SettingError
from indexcache.pattern import Pattern
from indexcache.system.processes import process_device

WINDOWS = torch.randint(0, 4000, (6, 41), generator=torch.Generator().manual_seed(2)).tolist()
SEGMENT = Segment(1, 4)
SETTINGS = Settings(steps=25, rows=16, windows_a_step=2, learning_rate=0.01)
SHARING = Pattern("FFSSFF")


@pytest.fixture(scope="module")
def model():
    return build("glm_moe_dsa")


@pytest.fixture(scope="module")
def stored(model):
    return collect(model, range(LAYERS), WINDOWS, [SEGMENT], SETTINGS)


def losses(model, patterns=(Pattern.all_full(LAYERS), SHARING)):
    measured = PatternLosses(model, range(LAYERS))
    result = measured.measure(patterns, [Window(("t", 0), WINDOWS[0])])[0]
    measured.switch.remove()
    return result


def test_the_divergence_falls_and_the_model_is_untouched(model, stored):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = []
    trained = train(model, stored, SEGMENT, SETTINGS, lambda step, value: steps.append((step, value)))
    start, end = divergence(model, stored, SEGMENT), divergence(model, stored, SEGMENT, trained.parameters)
    assert end < 0.7 * start
    assert [step for step, _ in steps] == list(range(1, 26))
    assert trained.curve[0] == (1, pytest.approx(steps[0][1]))
    assert trained.curve[-1] == (25, pytest.approx(steps[-1][1]))
    assert trained.learning_rate == 0.01
    assert all(value.dtype == torch.float32 for value in trained.parameters.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_parameters_whatever_else_is_collected(model, stored):
    first = train(model, stored, SEGMENT, SETTINGS)
    wider = collect(model, range(LAYERS), WINDOWS, [Segment(0, 1), SEGMENT, Segment(4, 6)], SETTINGS)
    train(model, wider, Segment(4, 6), SETTINGS)
    again = train(model, wider, SEGMENT, SETTINGS)
    assert again.curve == first.curve
    assert all(torch.equal(value, again.parameters[name]) for name, value in first.parameters.items())
    other = train(
        model, stored, SEGMENT, Settings(steps=25, rows=16, windows_a_step=2, learning_rate=0.01, seed=1)
    )
    assert other.curve != first.curve, "another seed gives another order of windows"


def test_a_rate_is_probed_where_none_is_given(model, stored):
    trained = train(model, stored, SEGMENT, Settings(steps=20, rows=16, windows_a_step=2))
    assert trained.learning_rate in RATES
    fixed = Settings(steps=20, rows=16, windows_a_step=2, learning_rate=trained.learning_rate)
    assert trained.curve == train(model, stored, SEGMENT, fixed).curve, "a probe leaves no trace"


def test_the_rate_goes_up_over_a_tenth_and_down_to_a_tenth():
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.55)
    assert 0.1 < rates[99] < 0.101


def test_put_changes_what_sharing_layers_select_and_gives_it_back(model, stored):
    trained = train(model, stored, SEGMENT, SETTINGS)
    stock = losses(model)
    indexer = find_indexers(model)[1][1]
    give_back = put(model, 1, trained.parameters)
    assert all(torch.equal(value, trained.parameters[name]) for name, value in indexer.named_parameters())
    assert losses(model) != stock
    give_back()
    assert losses(model) == stock


def test_put_rounds_to_the_models_dtype(stored):
    half = build("glm_moe_dsa").bfloat16()
    parameters = {name: value + 1e-3 for name, value in stored.sites[1].parameters.items()}
    put(half, 1, parameters)
    for name, value in find_indexers(half)[1][1].named_parameters():
        assert torch.equal(value, parameters[name].bfloat16())


def test_layers_that_come_and_go_are_collected_trained_and_set_alike(checkpoints):
    folder = checkpoints["glm_moe_dsa"]
    streamed, whole = load_streamed(folder, ALL_STREAM), build("glm_moe_dsa").to(process_device())
    assert all(value.is_meta for value in find_indexers(streamed)[1][1].parameters())
    trained = []
    for model in (streamed, whole):
        rows = collect(model, range(LAYERS), WINDOWS, [SEGMENT], SETTINGS)
        trained.append(train(model, rows, SEGMENT, SETTINGS))
    assert trained[0].curve == trained[1].curve
    assert all(torch.equal(value, trained[1].parameters[name]) for name, value in trained[0].parameters.items())
    stock = losses(streamed)
    returns = [put(model, 1, trained[0].parameters) for model in (streamed, whole)]
    assert losses(streamed) == losses(whole) != stock
    returns[0]()
    assert losses(streamed) == stock


def test_what_is_not_an_indexers_parameters_is_refused(model, stored):
    with pytest.raises(ModelError, match="site 2 are not those of the indexer in layer 2"):
        put(model, 2, {"wq_b.weight": torch.zeros(2, 2)})
    with pytest.raises(SettingError, match="nothing is stored"):
        train(model, stored, Segment(1, 5), SETTINGS)


def test_a_rate_that_is_far_too_high_ends_in_words(model, stored):
    with pytest.raises(MeasurementError, match="site 1 is NaN or infinite after"):
        train(model, stored, SEGMENT, Settings(steps=25, rows=16, learning_rate=1e30))


def test_a_collection_that_fails_leaves_the_stream_usable(checkpoints):
    model = load_streamed(checkpoints["glm_moe_dsa"], ALL_STREAM)
    stock = losses(model)
    with pytest.raises(MeasurementError, match=f"may be used on {process_device()}"):
        collect(model, range(LAYERS), WINDOWS, [SEGMENT], SETTINGS, memory=1000)
    assert losses(model) == stock


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rows": -1}, {"windows_a_step": 0}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SettingError):
        Settings(**wrong)
