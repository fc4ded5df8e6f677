"""Formats that are not dequantised here: transformers loads them through a package of each, or cannot."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....errors import first_line
from ...checkpoint.stored.unread import shared_refusal

# The package of a format, as pip knows it.
_PACKAGES = {
    "aqlm": "aqlm", "auto-round": "auto-round", "awq": "gptqmodel", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "eetq": "kernels", "fp_quant": "fp_quant",
    "gptq": "optimum gptqmodel", "hqq": "hqq", "mxfp4": "kernels", "quanto": "optimum-quanto",
    "quark": "amd-quark", "spqr": "spqr_quant", "torchao": "torchao", "vptq": "vptq",
}  # fmt: skip
_INSTEAD = "a copy of it in bfloat16, FP8 blocks or compressed-tensors INT4"


@dataclass(frozen=True)
class Foreign:
    """A format that only transformers and the format's own package may load: whole, into memory.

    Args:
        model_id: whose weights they are, for messages.
        method: the ``quant_method`` of its config.
        settings: its ``quantization_config``.
    """

    model_id: str
    method: str
    settings: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def words(self) -> str:
        """The format in words, e.g. ``gptq`` or ``modelopt NVFP4``."""
        kind = self.settings.get("quant_algo") or self.settings.get("format")
        return f"{self.method} {kind}" if isinstance(kind, str) else self.method

    def stored_bits(self, module: str) -> float | None:
        """Bits of a stored number, for all modules alike; None where its settings do not say."""
        bits = self.settings.get("bits")
        return bits if type(bits) is int and bits > 0 else None

    @property
    def package(self) -> str | None:
        """What pip installs for it; None where transformers itself, or nothing, reads it."""
        return _PACKAGES.get(self.method)

    def quantiser(self) -> Any:
        """Transformers' quantiser for it, as it will run here.

        Raises:
            ModelError: transformers does not know the format, a package is not there, or it cannot run here.
        """
        import transformers
        from transformers.quantizers import AutoHfQuantizer

        subject = f"the weights of {self.model_id!r} are in the format {self.words!r}"
        settings = copy.deepcopy(dict(self.settings))
        if not AutoHfQuantizer.supports_quant_method(settings):
            version = f"transformers {transformers.__version__}"
            raise shared_refusal(f"{subject}, which {version} does not know", f"load {_INSTEAD}")
        try:
            quantiser = AutoHfQuantizer.from_config(settings, pre_quantized=True)
            quantiser.validate_environment(device_map=None, weights_only=True)
        except ImportError as error:
            install = "install it" if self.package is None else f"pip install {self.package}"
            message = f"{subject}, which needs a package that is not here: {first_line(error)}"
            raise shared_refusal(message, f"{install}, or load {_INSTEAD}") from error
        except Exception as error:  # no GPU, settings of another version, ...: each format has its own class
            message = f"{subject}, which cannot be read here: {first_line(error)}"
            raise shared_refusal(message, f"load {_INSTEAD}") from error
        return quantiser
