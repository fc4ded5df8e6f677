"""The two groups of windows: those that a search sees, and those kept back to check its result."""

from __future__ import annotations

CALIBRATION = "calibration"
HELD_OUT = "heldout"
SPOKEN = {CALIBRATION: "calibration", HELD_OUT: "held-out"}
