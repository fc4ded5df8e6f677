"""cut and export for two kinds of servers: what decodes keeps no layer that prefill did not keep."""

import json
import shutil

import pytest

from indexcache.errors import PlanError
from indexcache.search.plan import cut
from indexcache.search.plan.file import read_plan


@pytest.fixture
def run(searched, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(searched, tmp_path / "run")


def test_two_plans_from_one_search_and_their_settings(run, run_cli, tmp_path):
    pair = tmp_path / "pair"
    code, out, err = run_cli("cut", run, "--prefill-keep", "0.5", "--decode-keep", "25%", "--out", pair)
    assert code == 0, err
    assert out.split() == [str(pair / "prefill.json"), str(pair / "decode.json")]
    prefill, decode = read_plan(pair / "prefill.json").pattern, read_plan(pair / "decode.json").pattern
    assert (prefill.kept, decode.kept) == (4, 2)
    assert set(decode.full) < set(prefill.full)
    assert (pair / "windows.safetensors").is_file(), "eval needs the tokens"
    code, out, err = run_cli("export", pair, "--to", "sglang")
    assert code == 0, err
    first, second = out.split("# servers that decode")
    assert first.startswith("# servers that prefill")
    assert str(prefill) in first
    assert str(decode) in second
    document = json.loads(run_cli("export", pair, "--to", "sglang", "--json")[1])
    assert [document[role]["site_pattern"] for role in ("prefill", "decode")] == [str(prefill), str(decode)]
    code, _, err = run_cli("export", pair, "--to", "vllm", "--write", tmp_path / "both")
    assert (code, "--write was given for two plans" in err) == (2, True)


def test_every_pair_of_budgets_is_nested(searched):
    plan = read_plan(searched)
    for more in range(1, 9):
        for less in range(1, more + 1):
            prefill, decode = cut.cut_pair(plan, more / 8, less / 8)
            assert set(decode.pattern.full) <= set(prefill.pattern.full)


def test_patterns_that_are_not_nested_are_refused(searched, monkeypatch):
    patterns = {0.5: "FSFSFSFS", 0.25: "FFSSSSSS"}

    def refined(plan, keep):
        fields = {"pattern": patterns[keep], "kept": patterns[keep].count("F")}
        return plan.model_copy(update={"result": plan.result.model_copy(update=fields)})

    monkeypatch.setattr(cut, "cut", refined)
    with pytest.raises(PlanError, match="the pattern of 2 sites keeps layers 1, that of 4 does not"):
        cut.cut_pair(read_plan(searched), 0.5, 0.25)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prefill-keep", "0.5"], "--prefill-keep was given without --decode-keep"),
        (["--decode-keep", "0.5"], "--decode-keep was given without --prefill-keep"),
        (["--prefill-keep", "0.25", "--decode-keep", "0.5", "--out", "x"], "keeps more than --prefill-keep 0.25"),
        (["--prefill-keep", "0.5", "--decode-keep", "0.25"], "--out was not given"),
        (["--prefill-keep", "0.5", "--decode-keep", "x", "--out", "x"], "--decode-keep is 'x'"),
        (
            ["--prefill-keep", "0.5", "--decode-keep", "0.25", "--keep", "0.5", "--out", "x"],
            "--keep is for one plan",
        ),
    ],
)
def test_wrong_pairs_give_one_line(run, run_cli, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli("cut", run, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
