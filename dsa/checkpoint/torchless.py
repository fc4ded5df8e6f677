"""Transformers as it is where PyTorch is not installed: it reads configs, and is there in half a second."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@contextmanager
def without_torch() -> Iterator[None]:
    """Leaves PyTorch out while transformers is imported and used; where either is there already, changes nothing.

    Transformers then takes PyTorch for not installed, and goes on so. So it is forgotten at the end, and whoever
    imports it next has it whole: nothing of it may be kept that long.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        yield
        return
    advice = os.environ.get(_ADVICE)
    os.environ[_ADVICE] = "1"  # that PyTorch is missing
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails
    try:
        yield
    finally:
        del sys.modules["torch"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        # The next import sets up its log again.
        logging.getLogger("transformers").handlers.clear()
        if advice is None:
            del os.environ[_ADVICE]
        else:
            os.environ[_ADVICE] = advice
