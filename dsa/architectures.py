"""Which class of transformers runs a checkpoint's text, and the same without weights, for counting."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError, first_line


def model_class(config: Any, trust_remote_code: bool = False) -> Any:
    """The Auto class whose model turns token ids into logits for ``config``.

    A class with the language model alone is preferred, as it leaves the vision and audio towers of a
    multimodal checkpoint unread. Some have none (mistral_large4, glm5_next, minimax_m3_vl): there the
    whole model is loaded and given text only.

    Raises:
        ModelError: transformers has neither.
    """
    import transformers

    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if remote or type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    if type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    raise ModelError(
        f"this version of transformers has no language model of type {getattr(config, 'model_type', 'unknown')!r}",
        hint="a checkpoint of the whole model, text_config and all, may have one",
    )


def is_text_only(config: Any, trust_remote_code: bool = False) -> bool:
    """Whether nothing but the language model is loaded for ``config``."""
    return bool(model_class(config, trust_remote_code).__name__ == "AutoModelForCausalLM")


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
        with torch.device(device):
            return auto_class.from_config(config, trust_remote_code=trust_remote_code, **typed)
    except Exception as error:  # whatever a wrong config makes a model's constructor raise
        raise ModelError(
            f"the model that the config describes cannot be built: {type(error).__name__}, {first_line(error)}"
        ) from error
