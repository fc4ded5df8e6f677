"""bench --decode: seconds an output token beside the plan, and one line for whatever goes wrong."""

import json
import shutil

import pytest

from indexcache.commands import bench_decode


@pytest.fixture
def run(searched, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(searched, tmp_path / "run")


def test_steps_are_printed_written_and_reported(run, run_cli):
    options = ["--decode", "--lengths", "48,64", "--batch", "1,2", "--repeats", 1, "--steps", 2, "--uniform"]
    code, out, err = run_cli("bench", run / "plan.json", *options, "--json", "-q")
    assert code == 0, err
    record = json.loads(out)
    places = [(point["context"], point["batch"]) for point in record["points"]]
    assert places == [(48, 1), (48, 2), (64, 1), (64, 2)]
    assert (record["filled"], record["launched"], record["attention"]) == ("random", "eager", "sparse")
    assert json.loads((run / "bench-decode.json").read_text()) == record
    for point in record["points"]:
        for name in ("all_full", "plan", "uniform"):
            assert 0 < point[name]["least"] <= point[name]["seconds"] <= point[name]["most"]
        assert point["plan"]["read_bytes"] < point["all_full"]["read_bytes"]
    assert "<h3>Output tokens, measured here</h3>" in (run / "report.html").read_text()
    rows = [line for line in (run / "report.md").read_text().splitlines() if line.startswith(("| 48 ", "| 64 "))]
    assert len(rows) == 4


def test_what_does_not_fit_is_said_and_the_rest_stays(run, run_cli, monkeypatch):
    stock = bench_decode._Steps._timed
    monkeypatch.setattr(
        bench_decode._Steps,
        "_timed",
        lambda self, context, *rest: None if context == 64 else stock(self, context, *rest),
    )
    options = ["--decode", "--repeats", 1, "--steps", 1]
    code, out, err = run_cli("bench", run, *options, "--lengths", "48,64")
    assert code == 0, err
    assert "a cache of 64 tokens for 1 sequences does not fit here" in err
    assert "does not fit" in out
    before = (run / "bench-decode.json").read_text()
    code, _, err = run_cli("bench", run, *options, "--lengths", "64")
    assert (code, "a cache of 64 tokens does not fit" in err) == (2, True)
    assert (run / "bench-decode.json").read_text() == before, "the last result was lost"


def test_a_busy_machine_is_told(run, run_cli, monkeypatch):
    monkeypatch.setattr(bench_decode, "watch", lambda device: lambda: "other programs kept 1.5 of 2 CPUs busy")
    code, _, err = run_cli("bench", run, "--decode", "--lengths", "48", "--repeats", 1, "--steps", 1)
    assert code == 0
    assert "warning: the machine was not idle: other programs kept 1.5 of 2 CPUs busy" in err
    assert "Meanwhile other programs kept 1.5" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--decode", "--batch", "0"], "--batch is '0' (give numbers of sequences, e.g. 1,8)"),
        (["--decode", "--batch", "1;8"], "--batch is '1;8'"),
        (["--batch", "8"], "--batch goes with --decode"),
        (["--uniform"], "--uniform goes with --decode"),
        (["--decode", "--lengths", "1m"], "--context is '1m'"),
        (["--decode", "--lengths", "100k"], "is longer than the model's 512 positions"),
        (["--decode", "--lengths", "48", "--random-weights", "--device-map", "auto"], "made on one device"),
    ],
)
def test_wrong_options_give_one_line(run, run_cli, options, said):
    code, out, err = run_cli("bench", run, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
