"""Loads a checkpoint's weights through transformers and accelerate."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError, SettingError, first_line
from .architectures import build, model_class
from .checkpoint import Checkpoint
from .shards import are_pickled, weight_files
from .weights import weights_folder

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Placement:
    """Where weights go.

    Args:
        device_map: transformers' placement, e.g. "auto", or a device for each module; None for one device.
        offload_folder: for "disk", where converted copies of weights are put: fused experts above all, so
            that it can take as much as the checkpoint.
    """

    device_map: str | Mapping[str, str | int] | None = None
    offload_folder: str | None = None


def load_model(checkpoint: Checkpoint, dtype: str = "auto", placement: Placement = Placement()) -> Any:
    """The model in evaluation mode, gradients off.

    Weights larger than the devices are placed by transformers' own ``device_map`` (accelerate's
    loaders cannot fuse experts). Without one, the model goes to this process's device.

    Args:
        checkpoint: what to load.
        dtype: "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
        placement: where its weights go.

    Raises:
        ModelError: weights missing, unreadable, or without the indexers that the config promises.
        SettingError: a dtype that is not one of ``DTYPES``.
    """
    from .processes import process_count, this_device

    if placement.device_map is not None and process_count() > 1:
        raise SettingError(
            "a device map places one model over all devices, which several processes cannot each do",
            hint="run one process, or leave --device-map out",
        )
    torch_dtype = dtype if dtype == "auto" else compute_dtype(checkpoint, dtype)
    auto_class = model_class(checkpoint.config, checkpoint.trust.remote_code)
    folder = weights_folder(checkpoint)
    pickled = are_pickled(weight_files(folder, checkpoint.model_id, checkpoint.trust.pickles))
    try:
        model, loaded = auto_class.from_pretrained(
            folder,
            config=checkpoint.config,
            output_loading_info=True,
            dtype=torch_dtype,
            device_map=placement.device_map,
            offload_folder=placement.offload_folder,
            use_safetensors=not pickled,
            weights_only=True,
            trust_remote_code=checkpoint.trust.remote_code,
        )
    except Exception as error:  # a broken file, a wrong shape, no memory: each library has its own class
        raise _cannot_load(checkpoint, error) from error
    if missing := sorted(loaded["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"the checkpoint {checkpoint.model_id!r} has no weights for {missing[0]}{more}",
            hint="they would be random: fetch or convert the checkpoint again",
        )
    if placement.device_map is None:
        model.to(this_device())
    return model.requires_grad_(False).eval()


def _cannot_load(checkpoint: Checkpoint, error: Exception) -> ModelError:
    if isinstance(error, pickle.UnpicklingError):
        return ModelError(
            f"the pickled weights of {checkpoint.model_id!r} cannot be loaded: they hold more than tensors",
            hint="convert them to safetensors where you trust them",
        )
    return ModelError(f"the weights of {checkpoint.model_id!r} cannot be loaded: {first_line(error)}")


def compute_dtype(checkpoint: Checkpoint, dtype: str) -> Any:
    """The torch dtype that ``dtype`` means for this checkpoint; fp32 where its config names none.

    Raises:
        SettingError: not one of ``DTYPES``.
        ModelError: the config names one that torch does not have.
    """
    import torch

    if dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype!r}", hint=f"give one of {', '.join(DTYPES)}")
    if dtype != "auto":
        return getattr(torch, dtype)
    named = checkpoint.text.dtype or checkpoint.config.dtype
    found = getattr(torch, named, None) if isinstance(named, str) else named or torch.float32
    if not isinstance(found, torch.dtype):
        raise ModelError(f"the config of {checkpoint.model_id!r} names a dtype {named!r}", hint="give --dtype")
    return found


def random_model(checkpoint: Checkpoint, dtype: str = "auto") -> Any:
    """A model of the checkpoint's config with random weights, made on this process's device; for timing.

    Raises:
        ModelError: it does not fit, or transformers cannot build it.
    """
    from .processes import this_device

    built = build(checkpoint.config, this_device(), compute_dtype(checkpoint, dtype), checkpoint.trust.remote_code)
    return built.requires_grad_(False).eval()


FETCHED = ", offloaded"
"""What ``device_kinds`` ends in where weights are kept elsewhere than they compute: losses are the same."""


def device_kinds(model: Any) -> str:
    """What computes, and whether weights are fetched to it for each call.

    E.g. ``cpu``, ``cuda: NVIDIA H100``, ``2 x cuda: NVIDIA H100`` or ``cuda: NVIDIA H100, offloaded``. One device
    and two of a kind give other losses.
    """
    import torch

    homes = {weight.device for weight in model.parameters()}
    devices = {device for device in homes if device.type != "meta"} | set(_fetching_devices(model))
    names = [
        f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
        for device in devices
    ]
    kinds = [name if names.count(name) == 1 else f"{names.count(name)} x {name}" for name in sorted(set(names))]
    return ", ".join(kinds) + (FETCHED if len(devices) > 0 and torch.device("meta") in homes else "")


def _fetching_devices(model: Any) -> Iterator[Any]:
    """The devices to which accelerate's hooks bring weights that are kept elsewhere."""
    import torch

    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            device = getattr(each, "execution_device", None)
            if device is not None and getattr(each, "offload", False):
                kind = torch.device(device)
                # Some name the first of a kind by the kind alone.
                yield torch.device(kind.type, kind.index or 0) if kind.type == "cuda" else torch.device(kind.type)
