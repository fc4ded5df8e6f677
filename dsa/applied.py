"""Keeps a loaded model under a pattern for its own forward and generate, and guards its caches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ..errors import ModelError
from ..pattern import Pattern
from .switch import Switch

# On the cache itself, so that copies of it (a shared prompt, say) are known too.
_FILLED_UNDER = "indexcache_filled_under"


class AppliedPattern:
    """A transformers model under a pattern: prefill, cached decoding and ``generate`` all follow it.

    A layer that shares writes no indexer keys into a cache, so a cache can only be continued under the
    pattern that it was filled under; any other is refused. One forward at a time, as selections are
    handed on through the model.

    Args:
        model: a transformers DSA model, in evaluation mode.
        site_layers: absolute ids of its sites.
        pattern: over the sites.

    Raises:
        ModelError: the model's indexers are not those of ``site_layers``.
    """

    def __init__(self, model: Any, site_layers: Sequence[int], pattern: Pattern) -> None:
        self._switch = Switch(model, site_layers)
        decoder = model.get_submodule(self._switch.stack_name.rpartition(".")[0])
        self._signature = inspect.signature(decoder.forward)
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after),
        ]
        self.use(pattern)

    @property
    def pattern(self) -> Pattern:
        """The pattern in force."""
        return self._pattern

    def use(self, pattern: Pattern) -> None:
        """Runs the model under ``pattern`` from the next forward on; caches filled before are then refused.

        Raises:
            ModelError: the pattern is of another length.
        """
        self._switch.use(pattern)
        self._switch.forget()
        self._pattern = pattern

    def remove(self) -> None:
        """Gives the model its own forwards back; what it filled under the pattern must not be used any more."""
        for hook in self._hooks:
            hook.remove()
        self._switch.remove()

    def _before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = self._signature.bind_partial(*args, **kwargs).arguments.get("past_key_values")
        if cache is None:
            return
        filled_under = getattr(cache, _FILLED_UNDER, None)
        if filled_under != str(self._pattern) and cache.get_seq_length() > 0:
            how = f"under the pattern {filled_under}" if filled_under else "without a pattern"
            raise ModelError(
                f"the cache was filled {how}, the model now runs under {self._pattern}",
                hint="begin with a new cache: leave past_key_values out",
            )
        setattr(cache, _FILLED_UNDER, str(self._pattern))

    def _after(self, decoder: Any, args: tuple[Any, ...], output: Any) -> None:
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            setattr(cache, _FILLED_UNDER, str(self._pattern))
        # Nothing reads it between forwards, and it is as long as the prompt.
        self._switch.forget()
