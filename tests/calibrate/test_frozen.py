"""Frozen tokens: what is read is what was written, or it is refused."""

import numpy as np
import pytest

from indexcache.calibrate.frozen import frozen_bytes, thaw, token_sha256
from indexcache.calibrate.windows import WindowGroup, Windows
from indexcache.errors import DatasetError, IdentityError

NONE = np.zeros(0, dtype=np.int32)
IDS = np.arange(12, dtype=np.int32).reshape(3, 4)
DOCUMENTS = np.array([5, 5, 7], dtype=np.int32)


def two_groups(calibration, heldout):
    return Windows({"calibration": calibration, "heldout": heldout})


WINDOWS = two_groups(WindowGroup(IDS, DOCUMENTS), WindowGroup(np.zeros((0, 4), dtype=np.int32), NONE))
PROBES = WindowGroup(
    IDS, DOCUMENTS, np.array([[0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=bool), ("one", "two", "one")
)


def test_probes_keep_answers_and_kinds(tmp_path):
    path = tmp_path / "windows.safetensors"
    windows = WINDOWS.with_groups({"heldout_probes": PROBES})
    path.write_bytes(frozen_bytes(windows))
    back = thaw(path, token_sha256(windows)).groups["heldout_probes"]
    assert back.kinds == ("one", "two", "one")
    assert back.labels() == [1, 1, 3]
    assert token_sha256(windows) != token_sha256(WINDOWS)


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
    path.write_bytes(frozen_bytes(two_groups(WindowGroup(changed, DOCUMENTS), WINDOWS.groups["heldout"])))
    with pytest.raises(IdentityError, match="not the plan's"):
        thaw(path, token_sha256(WINDOWS))


def test_moving_a_window_between_groups_changes_the_hash():
    moved = two_groups(WindowGroup(IDS[:2], DOCUMENTS[:2]), WindowGroup(IDS[2:], DOCUMENTS[2:]))
    assert token_sha256(moved) != token_sha256(WINDOWS)


@pytest.mark.reliability("R5")
@pytest.mark.parametrize("content", [None, b"", b"not safetensors", b"\xff" * 64])
def test_what_is_no_token_file_is_one_error(tmp_path, content):
    path = tmp_path / "windows.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"windows\.safetensors"):
        thaw(path)
