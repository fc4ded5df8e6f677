"""What export and docs/engines.md say of the evidence is what the results say."""

import json

import pytest
from conformance import evidence_table
from conformance.environments import ENGINES as PINNED
from conformance.verdict import SHARE_OFF

from indexcache.search.export.engines import ENGINES
from indexcache.search.export.evidence import evidence, evidence_line

FAMILY = "glm_moe_dsa"
RESULTS = evidence_table.results()
RAN = [name for name, result in RESULTS.items() if result["evidence"] == "ran"]


def test_the_table_and_what_is_shipped_are_current():
    document = evidence_table.DOCUMENT.read_text("utf-8")
    again = "run python tests/conformance/evidence_table.py --write"
    assert document == evidence_table.updated(document), again
    assert evidence_table.evidence.FILE.read_text("utf-8") == evidence_table.shipped_text(), again


def test_a_result_that_changes_is_seen(monkeypatch):
    changed = {**RESULTS["mlx-vlm"], "version": "99.0"}
    monkeypatch.setattr(evidence_table, "results", lambda: {**RESULTS, "mlx-vlm": changed})
    document = evidence_table.DOCUMENT.read_text("utf-8")
    assert "| 99.0 |" in evidence_table.updated(document)
    assert document != evidence_table.updated(document)


def test_every_result_is_of_an_engine_that_export_knows():
    assert set(RESULTS) <= set(ENGINES)
    for name, result in RESULTS.items():
        assert result["evidence"] in ("ran", "parsed", "read"), name
        assert (result["evidence"] != "read") == (name in PINNED), f"{name}: what is pinned is run"


@pytest.mark.parametrize("name", PINNED)
def test_what_is_pinned_is_what_the_result_is_of(name):
    assert RESULTS[name]["version"] == PINNED[name].version, f"run make conformance ARGS='--write {name}'"
    assert RESULTS[name]["evidence"] == PINNED[name].evidence
    assert RESULTS[name]["fault"] is None
    assert RESULTS[name]["roles"] == RESULTS[name]["plan"]
    assert PINNED[name].program.is_file()


@pytest.mark.parametrize("name", RAN)
def test_an_engine_that_ran_tells_the_plan_from_other_patterns(name):
    rows, off = RESULTS[name]["rows"], RESULTS[name]["rows_off"]
    assert rows >= 1000
    assert off["plan"] < SHARE_OFF * rows
    assert min(off["all full"], off["off by one"]) >= SHARE_OFF * rows


@pytest.mark.parametrize("name", ENGINES)
def test_the_line_says_what_was_done(name):
    engine = ENGINES[name]
    known, line = evidence(engine), evidence_line(engine, None, FAMILY)
    assert known.kind == RESULTS.get(name, {"evidence": "read"})["evidence"]
    words = {"ran": "ran the embedded model's plan", "parsed": "no model ran in it", "read": "nothing of it ran"}
    assert words[known.kind] in line
    assert line.count("ran the embedded") == (known.kind == "ran")


def test_other_versions_and_families_were_not_tried():
    engine, version = ENGINES["vllm"], PINNED["vllm"].version
    assert "not tried" not in evidence_line(engine, version, FAMILY)
    assert evidence_line(engine, "0.33.0", FAMILY).endswith("; not tried: 0.33.0")
    assert evidence_line(engine, version, "deepseek_v32").endswith("; not tried: deepseek_v32")
    assert evidence_line(engine, "0.33.0", "deepseek_v32").endswith("; not tried: 0.33.0, deepseek_v32")
    # What was read was tried in none.
    assert "not tried" not in evidence_line(ENGINES["xllm"], "0.9.0", "deepseek_v32")


def test_export_prints_it(run_cli, searched):
    plan = searched / "plan.json"
    code, out, err = run_cli("export", plan, "--to", "xllm")
    assert code == 0
    line = evidence_line(ENGINES["xllm"], None, FAMILY)
    assert f"evidence: {line}" in " ".join(err.split())
    assert "evidence" not in out
    document = json.loads(run_cli("export", plan, "--to", "xllm", "--json")[1])
    assert document["evidence"] == line
    assert json.loads(run_cli("export", plan, "--to", "none", "--json")[1])["evidence"] == ""
