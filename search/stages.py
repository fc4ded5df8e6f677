"""Which sites stay full whatever is measured: the pinned ones, and the first of each pipeline stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate

from ..errors import SettingError

Split = Callable[[int, int], list[int]]


def split_before_last(layers: int, stages: int) -> list[int]:
    """Even stages; what remains goes to one stage each, from the last but one backwards.

    As vLLM's ``get_pp_indices`` does unless ``VLLM_PP_LAYER_PARTITION`` is set: 61 over 4 gives 15, 15, 16, 15.
    """
    sizes = [layers // stages] * stages
    for stage in range(layers % stages):
        sizes[-2 - stage] += 1
    return sizes


def split_first(layers: int, stages: int) -> list[int]:
    """Even stages; what remains goes to the first ones, as TensorRT-LLM's ``Mapping.pp_layers`` does."""
    return [layers // stages + (stage < layers % stages) for stage in range(stages)]


def stage_sizes(
    layers: int,
    size: int | None,
    stages: Sequence[int] | None,
    split: Split = split_before_last,
) -> list[int] | None:
    """Layers of each pipeline stage; None where neither a number of stages nor their layers were given.

    Args:
        layers: decoder layers of the model.
        size: how many stages, split by ``split``.
        stages: instead, the layers of each stage.
        split: an engine's own rule.

    Raises:
        SettingError: both were given, or they do not fit the model.
    """
    if size is not None and stages is not None:
        raise SettingError("both pp-size and pp-layers were given", hint="give one of them")
    if size is not None:
        if not 1 <= size <= layers:
            raise SettingError(f"pp-size is {size}, but the model has {layers} layers")
        return split(layers, size)
    if stages is not None and (sum(stages) != layers or min(stages) < 1):
        raise SettingError(
            f"pp-layers {','.join(map(str, stages))} add up to {sum(stages)} layers, but the model has {layers}",
            hint="give every stage's layers, each at least 1",
        )
    return list(stages) if stages is not None else None


def pinned_sites(
    pin: Collection[int],
    stages: Sequence[int] | None,
    site_layers: Sequence[int],
    shared_layers: Collection[int],
    layers: int,
) -> tuple[int, ...]:
    """The sites that stay full: those of the layers ``pin``, and the first of each pipeline stage.

    Args:
        pin: absolute decoder layers.
        stages: layers of each stage; None without pipeline parallelism.
        site_layers: absolute ids of the model's sites.
        shared_layers: layers that share in the checkpoint itself.
        layers: decoder layers of the model.

    Raises:
        SettingError: a layer that is no site, or a stage that starts on one that can only share.
    """
    pinned = set(pin)
    for layer in sorted(pinned):
        if layer not in site_layers:
            reason = "shares in the checkpoint itself" if layer in shared_layers else "owns no indexer"
            if layer >= layers:
                reason = f"does not exist: the model has {layers}"
            raise SettingError(f"layer {layer} cannot be pinned: it {reason}", hint="inspect lists the sites")
    for layer in stage_starts(stages or (), [*site_layers, *shared_layers]):
        if layer in shared_layers:
            raise SettingError(
                f"a pipeline stage starts with layer {layer}, which shares in the checkpoint itself",
                hint="give another split with --pp-layers",
            )
        pinned.add(layer)
    return tuple(site for site, layer in enumerate(site_layers) if layer in pinned)


def stage_starts(stages: Sequence[int], selecting: Collection[int]) -> Iterator[int]:
    """The first layer of each stage that uses a selection, of the layers ``selecting`` that do."""
    ends = list(accumulate(stages))
    # A stage begins where the one before it ends.
    for first, end in zip([0, *ends], ends, strict=False):
        inside = [layer for layer in selecting if first <= layer < end]
        if inside:
            yield min(inside)
