"""indexcache: finds which layers of a DeepSeek Sparse Attention model can drop their indexer."""

from typing import TYPE_CHECKING, Any

from .pattern import Pattern
from .version import __version__

__all__ = ["Pattern", "__version__", "apply", "distill", "load"]

if TYPE_CHECKING:
    from .commands.apply import apply, load
    from .commands.distil import distill


def __getattr__(name: str) -> Any:
    # Only now: torch takes seconds to import, and --help needs none of it.
    if name in ("apply", "load"):
        from .commands import apply as apply_command

        return getattr(apply_command, name)
    if name == "distill":
        from .commands import distil as distil_command

        return distil_command.distill
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
