"""bench: prefill times beside the plan, in its report, and one line for whatever goes wrong."""

import json
import shutil

import pytest

from indexcache.commands import bench as bench_command
from indexcache.errors import PlanError
from indexcache.search.plan.file import read_plan
from indexcache.search.price.prefills import PrefillPoint, PrefillTime, prefill_file, read_prefills
from indexcache.search.report.pages import render


@pytest.fixture
def run(searched, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(searched, tmp_path / "run")


def test_times_are_printed_written_and_reported(run, run_cli):
    code, out, _ = run_cli("bench", run / "plan.json", "--context", "48,64", "--repeats", 1, "--json", "-q")
    assert code == 0
    record = json.loads(out)
    assert [point["context"] for point in record["points"]] == [48, 64]
    assert (record["indexer"], record["attention"], record["random_weights"]) == ("chunked", "stock", False)
    assert json.loads((run / "bench.json").read_text()) == record
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert "<h2>Prefill</h2>" in page
    assert "all full: indexers" in page, "the figure is missing"
    assert "![Prefill seconds" in text
    assert (run / "prefill.svg").read_text().startswith("<svg")
    rows = [line for line in text.splitlines() if line.startswith(("| 48 ", "| 64 "))]
    assert len(rows) == 2
    assert rows[0].rstrip().endswith("x |")


def test_random_weights_and_the_table(run, run_cli, checkpoints, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(checkpoints["eight"] / "config.json", tmp_path / "bare")
    code, out, err = run_cli(
        "bench", run / "plan.json", "--context", "64", "--repeats", 1, "--random-weights", "--model",
        tmp_path / "bare", "--indexer", "stock", "--attention", "sparse", "--dtype", "bfloat16",
    )  # fmt: skip
    assert code == 0, err
    assert "random weights; stock indexers, sparse attention" in out
    assert "bfloat16" in out


def test_a_length_that_does_not_fit_is_said_and_the_others_stay(run, run_cli, monkeypatch):
    stock = bench_command._timed
    monkeypatch.setattr(bench_command, "_timed", lambda *args: None if len(args[2]) == 64 else stock(*args))
    code, out, err = run_cli("bench", run / "plan.json", "--context", "48,64", "--repeats", 1)
    assert code == 0
    assert "a prefill of 64 tokens does not fit here" in err
    assert "does not fit" in out
    assert "does not fit" in (run / "report.html").read_text()
    monkeypatch.setattr(bench_command, "_timed", lambda *args: None)
    before = (run / "bench.json").read_text()
    code, _, err = run_cli("bench", run / "plan.json", "--context", "48", "--repeats", 1)
    assert code == 2
    assert "a prefill of 48 tokens does not fit" in err
    assert (run / "bench.json").read_text() == before, "the last result was lost"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--context", "0"], "--context is '0' (give lengths"),
        (["--context", "8k,x"], "--context is '8k,x'"),
        (
            ["--context", "100k"],
            "a context of 102400 tokens is longer than the model's 512 positions (lower --context",
        ),
        (["--context", "48", "--indexer", "fast"], "indexer is 'fast': it should be 'auto', 'stock' or 'chunked'"),
        (["--context", "48", "--random-weights", "--device-map", "auto"], "random weights are made on one device"),
    ],
)
def test_wrong_options_give_one_line(run, run_cli, options, said):
    code, out, err = run_cli("bench", run / "plan.json", *options)
    assert code == 2
    assert said in err
    assert not out
    assert len(err.strip().splitlines()) == 1


def test_another_models_sites_are_refused(run, run_cli, checkpoints):
    code, _, err = run_cli("bench", run, "--context", 48, "--model", checkpoints["glm_moe_dsa"])
    assert code == 2
    assert "has 6 layers and 6 sites, not the plan's 8 and 8" in err


def test_times_of_another_pattern_are_not_shown(run, run_cli):
    run_cli("bench", run, "--context", 48, "--repeats", 1)
    assert read_prefills(run / "bench.json", read_plan(run).result.pattern)
    assert read_prefills(run / "bench.json", "F" * 8) is None
    assert read_prefills(run / "nothing.json", "F" * 8) is None
    assert "Prefill" not in render(read_plan(run))["report.md"]
    assert prefill_file(run / "plan-0.5.json").name == "plan-0.5-bench.json"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema_version": 2}', "\x00"])
def test_a_broken_result_is_named(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(PlanError, match=r"bench\.json' is not"):
        read_prefills(tmp_path / "bench.json", "F")


def test_speedup_needs_both():
    timed = PrefillTime(seconds=2.0, indexer_share=0.5)
    assert PrefillPoint(context=8, all_full=timed, plan=PrefillTime(seconds=1.0, indexer_share=0.1)).speedup == 2.0
    assert PrefillPoint(context=8, all_full=timed, plan=None).speedup is None


def test_a_search_records_its_backends_and_eval_repeats_them(
    run_cli, checkpoints, text_file, tmp_path, monkeypatch
):
    given = ["--model", checkpoints["deepseek_v32"], "--dataset", text_file, "--window", 48, "--windows", 3]
    plans = {}
    for indexer, attention in (("stock", "stock"), ("chunked", "sparse")):
        out = tmp_path / indexer
        options = [
            "--heldout",
            2,
            "--keep",
            0.5,
            "--indexer",
            indexer,
            "--attention",
            attention,
            "--out",
            out,
            "-q",
        ]
        code, _, err = run_cli("search", *given, *options)
        assert code == 0, err
        plans[indexer] = read_plan(out)
        assert (plans[indexer].run.indexer, plans[indexer].run.attention) == (indexer, attention)
    assert plans["chunked"].search.baseline_loss == pytest.approx(plans["stock"].search.baseline_loss, rel=1e-5)
    installed = []
    monkeypatch.setattr(
        "indexcache.commands.job.measure.install", lambda model, backends, told: installed.append(backends)
    )
    assert run_cli("eval", tmp_path / "chunked", "-q")[0] == 0
    assert [(backends.indexer, backends.attention) for backends in installed] == [("chunked", "sparse")]


def test_windows_beyond_the_models_positions_have_to_be_asked_for(run_cli, checkpoints, text_file, tmp_path):
    given = ["search", "--model", checkpoints["glm_moe_dsa"], "--dataset", text_file, "--window", 600]
    given += ["--windows", 1, "--heldout", 0, "--keep", 0.9, "--out", tmp_path / "run"]
    code, _, err = run_cli(*given)
    assert code == 2
    assert "longer than the model's 512 positions (lower --window, or allow it with --beyond-positions)" in err
    _, _, err = run_cli(*given, "--beyond-positions", "-q")
    assert "warning: windows of 600 tokens are longer than the model's 512 positions" in err


def test_a_broken_result_does_not_cost_a_search(run_cli, checkpoints, text_file, tmp_path):
    (tmp_path / "bench.json").write_text("{}")
    given = ["--model", checkpoints["glm_moe_dsa"], "--dataset", text_file, "--window", 48, "--windows", 2]
    code, _, err = run_cli("search", *given, "--heldout", 0, "--keep", 0.9, "--out", tmp_path, "-q")
    assert code == 0, err
    assert read_plan(tmp_path).result.kept == 6


def test_another_config_is_named_in_the_report(run, run_cli, checkpoints, tmp_path):
    config = json.loads((checkpoints["eight"] / "config.json").read_text()) | {"vocab_size": 500}
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    options = ["--random-weights", "--model", tmp_path / "small", "--repeats", 1]
    code, out, err = run_cli("bench", run, *options)
    assert code == 0, err
    assert "512" in out, "the default should be the model's positions where they are fewer than 8k"
    assert "whose config is not the one searched" in (run / "report.html").read_text()
