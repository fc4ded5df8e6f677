"""Atomic writes: whole or not at all, and nothing left behind."""

import errno
import os

import pytest

from indexcache.errors import OutputError
from indexcache.system.files import find_path, write_atomically


def test_writes_text_and_bytes_into_new_folders(tmp_path):
    write_atomically(tmp_path / "a" / "b.txt", "é")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é".encode()
    write_atomically(tmp_path / "a" / "b.txt", b"new")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "os.open", "os.write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, code):
    target = tmp_path / "plan.json"
    target.write_text("old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(call, fail)
        with pytest.raises(OutputError, match=r"plan\.json"):
            write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_where_a_folder_should_be_is_one_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path / "out" / "plan.json", "x")


def test_written_files_follow_the_umask(tmp_path):
    write_atomically(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_the_packages_own_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_path("recipes/tiny").is_dir()
    assert find_path("no/such/thing") is None
