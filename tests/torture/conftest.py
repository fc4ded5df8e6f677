"""Small searches to kill, cut and corrupt: one with a model, one whose losses come from a formula."""

from pathlib import Path

import pytest
from paper_model import without_a_model

from indexcache.cli import main
from indexcache.commands import search as search_command
from indexcache.commands.job.prepare import prepare
from indexcache.dsa.checkpoint.config import Trust
from indexcache.recipes.schema import with_options
from indexcache.search.goal import Goal
from indexcache.system.console import Reporter
from indexcache.system.exits import exit_code_of


@pytest.fixture(scope="session")
def real(checkpoints, text_file, full, tmp_path_factory):
    """Arguments of a search on a model, without --out, and the plan that it ends in."""
    folder = tmp_path_factory.mktemp("real")
    arguments = ["search", "--model", checkpoints["glm_moe_dsa"], "--dataset", text_file, "--window", 40]
    arguments += ["--windows", 4, "--heldout", 2, "--keep", 0.34, "-q"]
    arguments += ["--selfcheck"] if full else []
    # In this process, so that what it imports on the way is there in every child that is forked later.
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*arguments, "--out", folder / "run"]])
    assert not stop.value.code
    return arguments, folder / "run"


@pytest.fixture(scope="session")
def asked(checkpoints, text_file):
    """What a search on paper was asked, and what it knows before it loads a model; read once."""
    recipe = {"model": str(checkpoints["glm_moe_dsa"]), "dataset": str(text_file)}
    recipe = with_options(None, recipe | {"window": 40, "windows": 3, "heldout": 1})
    with Reporter(quiet=True) as reporter:
        return recipe, prepare(recipe, Goal(keep=0.34), Path("unused"), Trust(), reporter)


@pytest.fixture
def search_on_paper(asked):
    """Runs a search on paper into a folder, as the command line does, in this process: its exit code."""
    recipe, _ = asked

    def run(out, keep=0.34, resume="auto"):
        def search():
            with Reporter(quiet=True) as reporter:
                search_command.search(recipe, Goal(keep=keep), out, resume, Trust(), reporter)

        return exit_code_of(search, as_json=False)

    return run


@pytest.fixture
def paper(asked, search_on_paper, monkeypatch, capsys):
    """Likewise, with what it says: exit code and stderr."""
    without_a_model(monkeypatch, asked[1])

    def run(out, **wish):
        code = search_on_paper(out, **wish)
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def finished(paper, tmp_path):
    """The folder of a finished search on paper."""
    code, err = paper(tmp_path / "finished")
    assert code == 0, err
    return tmp_path / "finished"
