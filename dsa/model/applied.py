"""Keeps a loaded model under a pattern for its own forward and generate, and guards its caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import CacheError, ModelError
from ...pattern import Pattern
from ..caches import CacheArgument, cache_in
from ..checkpoint.families import family_of
from ..checkpoint.sites import expected_indexers
from .switch import Switch

# On the cache itself, so that copies of it (a shared prompt, say) are known too: a pattern and how many tokens.
_FILLED_UNDER = "indexcache_filled_under"


class AppliedPattern:
    """A transformers model under a pattern: prefill, cached decoding and ``generate`` all follow it.

    It stands in ``model.indexcache`` and takes the place of one that stood there. A layer that shares
    writes no indexer keys into a cache, so a cache can only be continued under the pattern that filled
    it; any other is refused. One forward at a time, as selections are handed on through the model.

    Args:
        model: a transformers DSA model.
        site_layers: absolute ids of its sites.
        pattern: over the sites.

    Raises:
        ModelError: the model's indexers are not those of ``site_layers``, or it takes its cache under
            a name that is not known.
    """

    def __init__(self, model: Any, site_layers: Sequence[int], pattern: Pattern) -> None:
        # Checked first, so that a refusal leaves the earlier pattern in place.
        stack_name, _ = expected_indexers(model, site_layers)
        decoder = model.get_submodule(stack_name.rpartition(".")[0])
        of_known_family = getattr(model, "config", None) is not None and family_of(model.config) is not None
        self._cache = CacheArgument(decoder.forward, "the decoder", needed=of_known_family)
        earlier = getattr(model, "indexcache", None)
        if isinstance(earlier, AppliedPattern):
            earlier.remove()
        self._model = model
        self._switch = Switch(model, site_layers)
        self._hooks = [
            decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            decoder.register_forward_hook(self._after, with_kwargs=True),
        ]
        model.indexcache = self
        self.use(pattern)

    @property
    def pattern(self) -> Pattern:
        """The pattern in force."""
        return self._pattern

    def use(self, pattern: Pattern | str) -> None:
        """Runs the model under ``pattern`` from the next forward on; caches filled before are then refused.

        Raises:
            PatternError: it is none.
            ModelError: the pattern is of another length, or this was removed from the model.
        """
        pattern = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
        if not self._hooks:
            raise ModelError("the pattern was removed from the model", hint="put it under a plan with apply")
        self._switch.use(pattern)
        self._switch.forget()
        self._pattern = pattern

    def remove(self) -> None:
        """Gives the model its own forwards back; what it filled under the pattern must not be used any more.

        Raises:
            ModelError: something else overrides the indexers since, and has to be removed first.
        """
        self._switch.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if getattr(self._model, "indexcache", None) is self:
            del self._model.indexcache

    def _before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if decoder.training and getattr(decoder, "gradient_checkpointing", False):
            raise ModelError(
                "gradient checkpointing runs layers a second time, when shared ones find another selection",
                hint="call model.eval(), or switch checkpointing off",
            )
        cache = self._cache.cache_of(args, kwargs)
        if cache is None:
            return
        filled_under, filled_length = getattr(cache, _FILLED_UNDER, (None, 0))
        length = _length(cache)
        if length is None:
            raise CacheError(
                f"the model's cache, a {type(cache).__name__}, does not say how much it holds, and so not whether "
                "this pattern filled it",
                hint="call the model with use_cache=False",
            )
        if length > (filled_length if filled_under == str(self._pattern) else 0):
            history = f"under the pattern {filled_under}" if filled_under else "without a pattern"
            history += ", and went on without it" if filled_under == str(self._pattern) else ""
            raise ModelError(
                f"the cache was filled {history}; the model now runs under {self._pattern}",
                hint=f"begin with a new cache: leave {self._cache.name} out",
            )

    def _after(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # The cache of the call is filled, whether or not the output names it too.
        for cache in (self._cache.cache_of(args, kwargs), cache_in(output)):
            if cache is not None and (length := _length(cache)) is not None:
                setattr(cache, _FILLED_UNDER, (str(self._pattern), length))
        # Nothing reads it between forwards, and it is as long as the prompt.
        self._switch.forget()


def _length(cache: Any) -> int | None:
    """How many tokens ``cache`` holds; None where it cannot say, as one without attention layers."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return None
