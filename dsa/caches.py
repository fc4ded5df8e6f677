"""Under which name a forward takes the KV cache, and what it was given there; transformers 5.24 renamed it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ModelError

# From transformers 5.24 on, and up to 5.23.
_NAMES = ("cache", "past_key_values")


class CacheArgument:
    """The cache among the arguments of one forward, whose signature is asked once.

    Decorators that take an older name too are seen through, as they keep the signature of what they wrap.

    Args:
        forward: bound to its module.
        owner: whose forward it is, for errors, e.g. "an indexer".
        needed: whether a forward that seems to have no cache at all is refused as well.

    Raises:
        ModelError: it takes a cache under a name that is not known, or under none and one is needed.
    """

    def __init__(self, forward: Callable[..., Any], owner: str, needed: bool = True) -> None:
        self._signature = inspect.signature(forward)
        parameters = self._signature.parameters
        self.name: str | None = next((name for name in _NAMES if name in parameters), None)
        """None for a forward without a cache."""
        if self.name is None and (needed or _seems_cached(parameters)):
            raise ModelError(
                f"the forward of {owner} takes no {' or '.join(_NAMES)}, but {', '.join(parameters)}",
                hint="this release of transformers names its arguments in a way that is not known here; "
                "see the versions that pyproject.toml allows",
            )

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What the forward takes, by name."""
        return self._signature.parameters

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name; a cache under the forward's own name for it, however it came."""
        named = dict(kwargs)
        for name in _NAMES:
            if self.name is not None and name != self.name and name in named:
                value = named.pop(name)
                if named.get(self.name) is None:
                    named[self.name] = value
        return dict(self._signature.bind_partial(*args, **named).arguments)

    def cache_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The cache that a call brings; None if it brings none."""
        return None if self.name is None else self.bound(args, kwargs).get(self.name)


def _seems_cached(parameters: Mapping[str, inspect.Parameter]) -> bool:
    annotations = (str(parameter.annotation) for parameter in parameters.values())
    return "use_cache" in parameters or any("Cache" in annotation for annotation in annotations)


def cache_in(output: Any) -> Any:
    """The cache that a model's ``output`` hands back; None if it holds none.

    Args:
        output: an output of transformers, or the tuple that stands for one with ``return_dict=False``.
    """
    if isinstance(output, tuple):
        from transformers import Cache

        return next((value for value in output if isinstance(value, Cache)), None)
    # In this order: where both can be read, the older name warns.
    return next((getattr(output, name) for name in _NAMES if hasattr(output, name)), None)
