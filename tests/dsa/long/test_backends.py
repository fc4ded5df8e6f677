"""Which backends run, what is said to fit, and what happens when memory runs out all the same."""

import copy
from types import SimpleNamespace

import pytest
import torch
from random_models import ALL_STREAM, build, load_streamed

from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.load import random_model
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.chunks import out_of_memory
from indexcache.dsa.long import feedforward
from indexcache.dsa.long.backends import Backends, choose, install
from indexcache.dsa.long.capacity import check_fits, layer_bytes, longest_window
from indexcache.dsa.model import prefill
from indexcache.dsa.model.evaluator import Evaluator
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.model.prefill import PrefillClock
from indexcache.dsa.model.tail import Window
from indexcache.errors import MeasurementError, SettingError, WindowError
from indexcache.evaluate import CALIBRATION
from indexcache.pattern import Pattern

AUTO = Backends("auto", "auto")
CHUNKED, FAST, STOCK = Backends("chunked", "stock"), Backends("chunked", "sparse"), Backends("stock", "stock")


@pytest.mark.parametrize(
    ("wanted", "tokens", "device", "chosen"),
    [
        (AUTO, 256, "cpu", CHUNKED),
        (AUTO, 8191, "cpu", CHUNKED),
        (AUTO, 8192, "cpu", FAST),
        (AUTO, 4096, "cuda", FAST),
        (AUTO, 4096, "xpu", FAST),
        (Backends("stock", "auto"), 8192, "cpu", Backends("stock", "sparse")),
        (Backends("stock", "stock"), 100_000, "cuda", STOCK),
        (Backends("chunked", "sparse"), 16, "cpu", FAST),
    ],
)
def test_auto_goes_by_length_and_device(wanted, tokens, device, chosen):
    assert choose(wanted, True, tokens, device) == chosen


def test_families_without_token_indices_stay_stock():
    assert choose(AUTO, False, 1 << 20, "cuda") == STOCK
    for wanted in (CHUNKED, Backends("stock", "sparse")):
        with pytest.raises(SettingError, match="families that select single tokens"):
            choose(wanted, False, 256, "cpu")


@pytest.fixture(scope="module")
def glm_5_like():
    """The config of the benchmark's layer, whose memory was measured."""
    return build("glm_moe_dsa", layers=1).config.__class__(
        hidden_size=512, num_attention_heads=16, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256,
        kv_lora_rank=512, q_lora_rank=512, index_n_heads=32, index_head_dim=128, index_topk=2048,
        intermediate_size=512, moe_intermediate_size=32, num_hidden_layers=1, first_k_dense_replace=1,
    )  # fmt: skip


def test_the_estimate_agrees_with_measured_peaks(glm_5_like):
    # By bench_layer_memory.py.
    for backends, tokens, measured in (
        (STOCK, 8192, 18.4e9),
        (STOCK, 4096, 4.9e9),
        (FAST, 8192, 1.08e9),
        (FAST, 16384, 1.5e9),
    ):
        estimate = layer_bytes(glm_5_like, tokens, 4, backends, on_gpu=False)
        assert estimate == pytest.approx(measured, rel=0.25), f"{backends} at {tokens}"


def test_what_cannot_fit_is_refused_with_the_length_that_would(glm_5_like):
    check_fits(glm_5_like, 8192, 4, STOCK, 20 << 30, on_gpu=False)
    with pytest.raises(WindowError, match="8192 tokens do not fit: with stock") as refused:
        check_fits(glm_5_like, 8192, 4, STOCK, 10 << 30, on_gpu=False)
    assert "with --indexer chunked --attention sparse it takes less" in refused.value.hint
    longest = longest_window(glm_5_like, 8192, 4, STOCK, 10 << 30, on_gpu=False)
    assert f"--window {longest} would fit" in refused.value.hint
    check_fits(glm_5_like, longest, 4, STOCK, 10 << 30, on_gpu=False)
    assert layer_bytes(glm_5_like, int(longest * 1.05), 4, STOCK, on_gpu=False) > 10 << 30
    with pytest.raises(WindowError) as refused:
        check_fits(glm_5_like, 200_000, 4, FAST, 1 << 20, on_gpu=False)
    assert "use a larger device" in refused.value.hint


def test_feed_forward_in_chunks_changes_nothing_but_rounding(monkeypatch):
    monkeypatch.setattr(feedforward, "FEED_FORWARD_ROWS", 40)
    model, ids = build("glm_moe_dsa"), torch.arange(100)[None]
    with torch.inference_mode():
        stock = model(input_ids=ids, use_cache=False).logits
        remove = install(model, FAST)
        calls = []
        model.model.layers[3].mlp.gate.register_forward_hook(lambda *args: calls.append(args[1][0].shape[-2]))
        logits = model(input_ids=ids, use_cache=False).logits
        remove()
    assert calls == [40, 40, 20], "the rows did not go through in chunks"
    torch.testing.assert_close(logits, stock, rtol=0, atol=5e-5)


class Scarce(PatternLosses):
    """Runs out of memory with more than ``room`` patterns at a time."""

    room = 2

    def compare_all(self, asked, last_token=False):
        if any(len(one.patterns) > self.room for one in asked):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().compare_all(asked, last_token)


def test_out_of_memory_carries_fewer_patterns_and_goes_on():
    model = build("glm_moe_dsa")
    ids = [Window((CALIBRATION, 0), [number % 250 for number in range(40)])]
    patterns = [Pattern.from_full(6, [0, site]) for site in range(1, 6)]
    wanted = Evaluator(PatternLosses(copy.deepcopy(model), range(6)), {CALIBRATION: ids})(patterns, CALIBRATION)
    lines, counted = [], []
    scarce = Scarce(model, range(6))
    evaluator = Evaluator(scarce, {CALIBRATION: ids}, on_window=counted.append, on_shortage=lines.append)
    assert repr(evaluator(patterns, CALIBRATION)) == repr(wanted)  # key losses are NaN
    assert lines == ["out of memory: going on with 2 patterns at a time"]
    assert sum(counted) == len(patterns)
    scarce.room = 0
    with pytest.raises(MeasurementError, match="out of memory on a window of 40 tokens"):
        evaluator(patterns[:1], CALIBRATION)


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_out_of_memory_is_known_whoever_says_it(said, memory):
    assert out_of_memory(RuntimeError(said)) is memory
    assert out_of_memory(ValueError(said)) is False


def test_prefill_times_count_the_indexers_that_run(monkeypatch):
    """By a clock on which an indexer takes a second, the head four, and all else no time."""
    model = build("glm_moe_dsa")
    indexers = list(find_indexers(model)[1].values())
    seconds = SimpleNamespace(passed=0.0)
    monkeypatch.setattr(prefill, "time", SimpleNamespace(perf_counter=lambda: seconds.passed))

    def taking(duration, forward):
        def run(*args, **kwargs):
            seconds.passed += duration
            return forward(*args, **kwargs)

        return run

    for indexer in indexers:
        indexer.forward = taking(1.0, indexer.forward)
    model.lm_head.forward = taking(4.0, model.lm_head.forward)
    forwards = [indexer.forward for indexer in indexers]
    clock = PrefillClock(model, range(6))
    full, alone = clock.time([Pattern.all_full(6), Pattern.from_full(6, [0])], list(range(50)), 3)
    assert (full.indexer_seconds, full.seconds) == (6.0, 10.0)
    assert (alone.indexer_seconds, alone.seconds, alone.indexer_share) == (1.0, 5.0, 0.2)
    clock.close()
    assert [indexer.forward for indexer in indexers] == forwards


def test_random_weights_need_the_config_alone(checkpoints, tmp_path):
    (tmp_path / "config.json").write_bytes((checkpoints["deepseek_v32"] / "config.json").read_bytes())
    model = random_model(open_checkpoint(str(tmp_path)), "bfloat16")
    assert model.dtype == torch.bfloat16
    assert not any(weight.requires_grad or weight.is_meta for weight in model.parameters())


def test_out_of_memory_in_a_sweep_of_streamed_layers_names_what_leaves_more_room(checkpoints):
    """Fewer rows would make more sweeps: rows that wait go to host memory, and one row has to fit."""
    model = load_streamed(checkpoints["glm_moe_dsa"], ALL_STREAM)
    windows = [Window((CALIBRATION, number), list(range(number, number + 40))) for number in range(3)]
    evaluator = Evaluator(Scarce(model, range(6)), {CALIBRATION: windows})
    evaluator([Pattern.all_full(6)], CALIBRATION)
    with pytest.raises(MeasurementError, match="out of memory on a window of 40 tokens") as error:
        evaluator([Pattern.from_full(6, [0, site]) for site in range(1, 6)], CALIBRATION)
    assert "--max-memory" in error.value.hint


def test_masks_survive_the_moves_of_a_device_map():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model, ids = build("glm_moe_dsa"), torch.arange(90)[None]
    with torch.inference_mode():
        stock = model(input_ids=ids, use_cache=False).logits
        for layer in model.model.layers[3:]:
            add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu:0", io_same_device=True))
        install(model, FAST)
        logits = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits, stock, rtol=0, atol=5e-5)
