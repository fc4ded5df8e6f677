"""The identity of code in a journal: it changes with what decides losses, and with nothing else."""

import shutil

import pytest
from random_models import ROOT

from indexcache.commands.job import identity


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's own rooms, whose files a test may edit."""
    for room in ("calibrate", "commands", "dsa", "search"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pattern.py", "evaluate.py"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(identity, "_PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("dsa/model/losses.py", True),
        ("calibrate/windows.py", True),
        ("search/losses.py", True),
        ("search/run/replay.py", True),
        ("search/run/records.py", True),
        ("pattern.py", True),
        ("search/run/folder.py", False),
        ("search/run/journal.py", False),
        ("search/report/timing.py", False),
        ("search/report/pages.py", False),
        ("search/export/engines.py", False),
        ("commands/export.py", False),
    ],
)
def test_a_journal_is_refused_for_code_that_decides_losses_only(package, file, matters):
    before = identity.code_sha256()
    with (package / file).open("a", encoding="utf-8") as code:
        code.write("# edited\n")
    assert (identity.code_sha256() != before) == matters
