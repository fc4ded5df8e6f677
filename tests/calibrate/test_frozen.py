"""Frozen tokens: what is read is what was written, or it is refused."""

from dataclasses import replace

import numpy as np
import pytest

from indexcache.calibrate.frozen import frozen_bytes, thaw, token_sha256
from indexcache.calibrate.windows import Windows
from indexcache.errors import DatasetError, IdentityError

NONE = np.zeros(0, dtype=np.int32)
WINDOWS = Windows(
    np.arange(12, dtype=np.int32).reshape(3, 4),
    np.zeros((0, 4), dtype=np.int32),
    np.array([5, 5, 7], dtype=np.int32),
    NONE,
)


def test_a_round_trip_keeps_ids_and_hash(tmp_path):
    path = tmp_path / "windows.safetensors"
    path.write_bytes(frozen_bytes(WINDOWS))
    back = thaw(path, token_sha256(WINDOWS))
    assert np.array_equal(back.calibration, WINDOWS.calibration)
    assert back.heldout.shape == (0, 4)
    assert back.documents("calibration") == (5, 5, 7)


@pytest.mark.reliability("R5")
def test_one_changed_id_is_refused(tmp_path):
    path = tmp_path / "windows.safetensors"
    changed = WINDOWS.calibration.copy()
    changed[1, 2] += 1
    path.write_bytes(frozen_bytes(replace(WINDOWS, calibration=changed)))
    with pytest.raises(IdentityError, match="not the plan's"):
        thaw(path, token_sha256(WINDOWS))


def test_moving_a_window_between_groups_changes_the_hash():
    ids, documents = WINDOWS.calibration, WINDOWS.calibration_documents
    moved = Windows(ids[:2], ids[2:], documents[:2], documents[2:])
    assert token_sha256(moved) != token_sha256(WINDOWS)


@pytest.mark.reliability("R5")
@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 64])
def test_what_is_no_token_file_is_one_error(tmp_path, content):
    path = tmp_path / "windows.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"windows\.safetensors"):
        thaw(path)
