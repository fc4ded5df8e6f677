"""Which class of transformers runs a checkpoint's text, and the same without weights, for counting."""

from __future__ import annotations

import copy
import hashlib
import sys
from pathlib import Path
from typing import Any

from ...errors import ModelError, first_line


def model_class(config: Any, trust_remote_code: bool = False) -> Any:
    """The Auto class whose model turns token ids into logits for ``config``.

    A class with the language model alone is preferred, as it leaves the vision and audio towers of a
    multimodal checkpoint unread. Some have none (mistral_large4, glm5_next, minimax_m3_vl): there the
    whole model is loaded and given text only.

    Raises:
        ModelError: transformers has neither.
    """
    # From the module that holds them: without PyTorch, the packages above it have others in their place.
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if runs_remote_code(config, trust_remote_code) or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(
        f"this version of transformers has no language model of type {getattr(config, 'model_type', 'unknown')!r}",
        hint="a checkpoint of the whole model, text_config and all, may have one",
    )


def runs_remote_code(config: Any, trust_remote_code: bool = False) -> bool:
    """Whether the model is built by code that the checkpoint brings."""
    return trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


def is_text_only(config: Any, trust_remote_code: bool = False) -> bool:
    """Whether nothing but the language model is loaded for ``config``."""
    return bool(model_class(config, trust_remote_code).__name__ == "AutoModelForCausalLM")


def remote_code_sha256(config: Any, folder: Path, trust_remote_code: bool = False) -> str | None:
    """SHA-256 over the Python modules that a checkpoint brings and that run; None where only transformers' own do.

    Args:
        config: of the checkpoint.
        folder: where its code is, or what names it.
        trust_remote_code: whether the checkpoint's code may run.

    Raises:
        ModelError: its code cannot be loaded.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    classes = [type(config)]
    named = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if trust_remote_code and named is not None:
        try:
            classes.append(get_class_from_dynamic_module(named, str(folder)))
        except Exception as error:  # whatever the code raises when it is imported
            raise ModelError(f"the code of {str(folder)!r} cannot be loaded: {first_line(error)}") from error
    packages = {kind.__module__.rpartition(".")[0] for kind in classes}
    # Where transformers puts modules that checkpoints bring.
    remote_packages = {package for package in packages if package.split(".")[0] == "transformers_modules"}
    if not remote_packages:
        return None
    digest = hashlib.sha256()
    # By now those modules are loaded, and with them what they import from their own package.
    for name, module in sorted(sys.modules.items()):
        package, _, last = name.rpartition(".")
        if package in remote_packages and (path := getattr(module, "__file__", None)):
            digest.update(f"{last}:".encode() + Path(path).read_bytes())
    return digest.hexdigest()


def plain_config(config: Any) -> Any:
    """A copy of a config that names no format of quantised weights."""
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def skeleton(config: Any, trust_remote_code: bool = False) -> Any:
    """The model of ``config`` on the meta device: modules and shapes without weights or memory.

    Raises:
        ModelError: it cannot be built.
    """
    return build(config, "meta", None, trust_remote_code)


def build(config: Any, device: Any, dtype: Any, trust_remote_code: bool = False) -> Any:
    """The model of ``config`` with random weights on ``device``, of torch type ``dtype`` (None: the config's).

    Raises:
        ModelError: it cannot be built, or does not fit.
    """
    import torch

    auto_class = model_class(config, trust_remote_code)
    typed = {} if dtype is None else {"dtype": dtype}
    try:
        # Made where it is to be, so that on the meta device it never takes memory.
        with torch.device(device):
            return auto_class.from_config(config, trust_remote_code=trust_remote_code, **typed)
    except Exception as error:  # whatever a wrong config makes a model's constructor raise
        raise ModelError(
            f"the model that the config describes cannot be built: {type(error).__name__}, {first_line(error)}"
        ) from error
