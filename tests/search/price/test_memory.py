"""Memory that shared layers spare, counted by hand."""

import pytest

from indexcache.errors import PlanError
from indexcache.search.plan.file import read_plan
from indexcache.search.price.memory import (
    IndexerSizes,
    index_cache_bytes_per_token,
    memory_of,
    read_sizes,
    sizes_file,
    spared_line,
)

SIZES = IndexerSizes(config_sha256="0" * 64, key_values=[128.0] * 4, parameters=[1000, 2000, 3000, 4000])


def test_a_key_in_fp8_has_a_scale_for_each_128_values():
    assert index_cache_bytes_per_token([128.0], "fp8") == 132
    assert index_cache_bytes_per_token([129.0], "fp8") == 137
    assert index_cache_bytes_per_token([128.0, 32.0], "bf16") == 320


def test_shared_layers_spare_their_keys_and_weights():
    every, spared = memory_of(SIZES), memory_of(SIZES, "FSFS")
    assert every.token_bytes == {"fp8": 528, "bf16": 1024}
    assert spared.token_bytes == {"fp8": 264, "bf16": 512}
    assert (every.weight_bytes, spared.weight_bytes) == (20_000, 12_000)
    assert spared.cache_bytes("fp8", 1000) == 264_000
    assert memory_of(SIZES, "FFFF").token_bytes == {"fp8": 0, "bf16": 0}


def test_sizes_of_another_model_are_left_out(searched, tmp_path):
    plan, path = read_plan(searched), tmp_path / "sizes.json"
    assert sizes_file(tmp_path / "plan-2of8.json") == path
    assert read_sizes(path, plan) is None
    path.write_text(SIZES.as_json())
    assert read_sizes(path, plan) is None, "another config's"
    right = {"config_sha256": plan.model.config_sha256, "key_values": [16.0] * 8, "parameters": [10] * 8}
    path.write_text(IndexerSizes(**right).as_json())
    assert "shared layers spare" in spared_line(read_sizes(path, plan), plan)
    path.write_text(IndexerSizes(**right | {"parameters": [10]}).as_json())
    assert read_sizes(path, plan) is None, "another number of sites"
    path.write_text("{}")
    with pytest.raises(PlanError, match=r"sizes\.json' is not what search writes"):
        read_sizes(path, plan)


def test_a_search_leaves_sizes_and_its_report_says_what_is_spared(searched):
    plan = read_plan(searched)
    sizes = read_sizes(sizes_file(searched / "plan.json"), plan)
    shared = plan.result.pattern.count("S")
    spared = memory_of(sizes, plan.result.pattern)
    assert spared.token_bytes["bf16"] == 2 * 16 * shared, "index_head_dim is 16"
    assert spared.token_bytes["fp8"] == (16 + 4) * shared
    for name in ("report.md", "report.html"):
        assert f"spare {20 * shared} of 160 bytes" in (searched / name).read_text()
