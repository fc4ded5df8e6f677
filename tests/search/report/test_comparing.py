"""Several plans in one file: told apart by name, side by side, and one line for whatever cannot be compared."""

import shutil
from pathlib import Path

import pytest

from indexcache.search.plan.file import read_plan
from indexcache.search.report.comparing.plans import compared, short_names


@pytest.fixture
def folder(searched, run_cli, tmp_path):
    """A finished run with a cut beside it."""
    folder = shutil.copytree(searched, tmp_path / "run")
    assert run_cli("cut", folder, "--keep", "0.25")[0] == 0
    return folder


def test_names_are_as_short_as_tells_them_apart():
    paths = [Path("/a/x/plan.json"), Path("/b/x/plan.json"), Path("/b/x/plan-2of8.json")]
    assert short_names(paths) == ["a/x", "b/x", "x/plan-2of8"]
    assert short_names([Path("/a/x/plan.json"), Path("/a/y/plan.json")]) == ["x", "y"]


def test_plans_stand_side_by_side(folder, run_cli, tmp_path):
    page = tmp_path / "both.html"
    code, out, err = run_cli("report", folder, folder / "plan-2of8.json", "--out", page)
    assert (code, out.strip()) == (0, str(page)), err
    text = page.read_text()
    for words in ("4 of 8", "2 of 8", "run</th>", "plan-2of8</th>", "The plans differ in layers", "<svg"):
        assert words in text, f"the comparison lacks {words!r}"
    assert run_cli("report", folder, folder / "plan-2of8.json", "--out", tmp_path / "both.md")[0] == 0
    assert "| indexers kept | 4 of 8 | 2 of 8 |" in (tmp_path / "both.md").read_text()


def test_plans_of_other_text_are_said_to_be(folder, tmp_path):
    paths = [folder / "plan.json", folder / "plan-2of8.json"]
    plans = [read_plan(path) for path in paths]
    other = plans[1].model_copy(update={"tokens": plans[1].tokens.model_copy(update={"sha256": "0" * 64})})
    from indexcache.search.report.comparing.page import comparison

    alike = comparison(compared(list(zip(paths, plans, strict=True)), print))
    unlike = comparison(compared(list(zip(paths, [plans[0], other], strict=True)), print))
    assert "Not measured alike" not in alike
    assert "the plans differ in tokens" in unlike


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "PLAN", "CUT"], "several plans are compared in one file"),
        (["report", "PLAN", "PLAN", "--out", "both.html"], "was given twice"),
        (["report", "PLAN", "CUT", "--out", "both.pdf"], "no name for a comparison"),
        (["report", "PLAN", "missing.json", "--out", "both.html"], "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(folder, run_cli, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    places = {"PLAN": folder, "CUT": folder / "plan-2of8.json"}
    code, out, err = run_cli(*(places.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "both.html").exists()
