"""Loads a checkpoint's weights through transformers and accelerate."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ModelError, SettingError, first_line
from .architectures import build, model_class, plain_config, skeleton
from .config import Checkpoint
from .dtypes import compute_dtype
from .stored.shards import TORCH_NAMES, Tensor
from .stored.unread import check_complete, load_reported
from .stored.weights import StoredWeights

if TYPE_CHECKING:
    import torch


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


def load_model(checkpoint: Checkpoint, weights: StoredWeights, dtype: str, placement: Placement) -> Any:
    """The model as transformers loads it, whole, in evaluation mode, gradients off.

    Weights larger than the devices are placed by transformers' own ``device_map`` (accelerate's
    loaders cannot fuse experts). Without one, the model goes to this process's device.

    Args:
        checkpoint: what to load.
        weights: of it, as ``find_weights`` gives them.
        dtype: "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
        placement: where its weights go.

    Raises:
        ModelError: weights unreadable, or without the indexers that the config promises.
        SettingError: a dtype that is not one of ``dtypes.DTYPES``.
    """
    from ...system.processes import process_device

    _refuse_map_of_several(placement)
    torch_dtype = dtype if dtype == "auto" else compute_dtype(checkpoint, dtype)
    rehearse(checkpoint, stored_tensors(checkpoint, weights), torch_dtype)
    model = _load(checkpoint, weights, torch_dtype, placement)
    if placement.device_map is None:
        model.to(process_device())
    return model.requires_grad_(False).eval()


def _refuse_map_of_several(placement: Placement) -> None:
    from ...system.processes import process_count

    if placement.device_map is not None and process_count() > 1:
        raise SettingError(
            "a device map places one model over all devices, which several processes cannot each do",
            hint="run one process, or leave --device-map out",
        )


def _load(checkpoint: Checkpoint, weights: StoredWeights, dtype: Any, placement: Placement) -> Any:
    auto_class = model_class(checkpoint.config, checkpoint.trust.remote_code)
    with load_reported() as report:
        try:
            model, loaded = auto_class.from_pretrained(
                weights.folder,
                config=checkpoint.config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the account, and refused by it
                dtype=dtype,
                device_map=placement.device_map,
                offload_folder=placement.offload_folder,
                use_safetensors=not weights.pickled,
                weights_only=True,
                trust_remote_code=checkpoint.trust.remote_code,
            )
        except Exception as error:  # a broken file, a wrong shape, no memory: each library has its own class
            raise _cannot_load(checkpoint, error, report.cause) from error
    check_complete(checkpoint, loaded)
    return model


def stored_tensors(checkpoint: Checkpoint, weights: StoredWeights) -> dict[str, Tensor]:
    """Dtypes and shapes by name, from headers; of pickles, from their structure without the numbers."""
    import torch

    if not weights.pickled:
        return {name: tensor for shard in weights.shards for name, tensor in shard.tensors.items()}
    names_of_types = {getattr(torch, kind): name for name, kind in TORCH_NAMES.items()}
    tensors: dict[str, Tensor] = {}
    for name in weights.files:
        try:
            content = torch.load(weights.folder / name, map_location="meta", weights_only=True)
        except Exception as error:  # a damaged file, or a program: each has its own class
            raise _cannot_load(checkpoint, error, None) from error
        for key, value in content.items():
            if isinstance(value, torch.Tensor):
                dtype = names_of_types.get(value.dtype, str(value.dtype))
                tensors[key] = Tensor(dtype, tuple(value.shape), 0, value.nbytes)
    return tensors


def rehearse(
    checkpoint: Checkpoint, stored: Mapping[str, Tensor], dtype: Any, plain: bool = False
) -> dict[str, torch.dtype] | None:
    """Loads tensors without content onto the meta device, so that names and shapes are checked before the load.

    What cannot be rehearsed, as some conversions look at values, is checked after the load alone.

    Args:
        checkpoint: what is to be loaded.
        stored: its tensors, by name.
        dtype: what the model is to compute in, or "auto".
        plain: the tensors are taken for plain numbers, whatever format the config names.

    Returns:
        The type of each parameter and stored buffer, as transformers makes them; None where nothing was rehearsed.

    Raises:
        ModelError: see ``check_complete``; or a weight that cannot be converted.
    """
    import torch

    if any(tensor.dtype not in TORCH_NAMES for tensor in stored.values()):
        return None
    model = skeleton(checkpoint.config, checkpoint.trust.remote_code)
    config = plain_config(model.config)
    settings = getattr(checkpoint.config, "quantization_config", None)
    if settings is not None and not plain:
        config.quantization_config = copy.deepcopy(settings)
    with load_reported() as report:
        try:
            rehearsed, loaded = type(model).from_pretrained(
                None,
                config=config,
                state_dict={
                    name: torch.empty(tensor.shape, dtype=getattr(torch, TORCH_NAMES[tensor.dtype]), device="meta")
                    for name, tensor in stored.items()
                },
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=dtype,
            )
        except Exception as error:  # the load itself will say; a reported conversion is sure to fail there too
            if report.cause is not None and "NotImplementedError" not in report.cause:
                raise _cannot_load(checkpoint, error, report.cause) from error
            return None
    check_complete(checkpoint, loaded)
    return {name: value.dtype for name, value in rehearsed.state_dict().items()}


def _cannot_load(checkpoint: Checkpoint, error: Exception, cause: str | None) -> ModelError:
    if isinstance(error, pickle.UnpicklingError):
        return ModelError(
            f"the pickled weights of {checkpoint.model_id!r} cannot be loaded: they hold more than tensors",
            hint="convert them to safetensors where you trust them",
        )
    reason = first_line(error) if cause is None else cause[:300]
    return ModelError(f"the weights of {checkpoint.model_id!r} cannot be loaded: {reason}")


def random_model(checkpoint: Checkpoint, dtype: str = "auto") -> Any:
    """A model of the checkpoint's config with random weights, made on this process's device; for timing.

    Raises:
        ModelError: it does not fit, or transformers cannot build it.
    """
    from ...system.processes import process_device

    torch_dtype = compute_dtype(checkpoint, dtype)
    model = build(checkpoint.config, process_device(), torch_dtype, checkpoint.trust.remote_code)
    return model.requires_grad_(False).eval()


def device_kinds(model: Any) -> str:
    """What computes: e.g. ``cpu``, ``cuda: NVIDIA H100`` or ``2 x cuda: NVIDIA H100``.

    One device and two of a kind give other losses; where weights come from between their uses changes none.
    """
    import torch

    homes = {weight.device for weight in model.parameters()} | set(_fetching_devices(model))
    names = [
        f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
        for device in homes
        if device.type != "meta"
    ]
    return ", ".join(
        name if names.count(name) == 1 else f"{names.count(name)} x {name}" for name in sorted(set(names))
    )


def _fetching_devices(model: Any) -> Iterator[Any]:
    """The devices to which accelerate's hooks bring weights that are kept elsewhere."""
    import torch

    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for single in getattr(hook, "hooks", (hook,)):  # a hook may be a sequence of hooks
            device = getattr(single, "execution_device", None)
            if device is not None and getattr(single, "offload", False):
                kind = torch.device(device)
                # Some name the first of a kind by the kind alone.
                yield torch.device(kind.type, kind.index or 0) if kind.type == "cuda" else torch.device(kind.type)
