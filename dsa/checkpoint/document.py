"""Reads config.json and checks what decides sites and widths, before transformers builds a config from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ...errors import ModelError
from ...pattern import FULL, SHARED, layer_ranges
from .families import FAMILIES, Family, family_of_class

_MOST = 2**31 - 1
_MOST_LAYERS = 10_000
# The least and the most that a number may be where it stands in the language model's config.
_NUMBERS = {
    "num_hidden_layers": (1, _MOST_LAYERS),
    "max_position_embeddings": (1, 2**53),
    "index_local_blocks": (0, _MOST),
    **dict.fromkeys(
        (
            "vocab_size", "index_topk", "index_kpool", "index_topk_blocks", "index_block_size", "index_n_heads",
            "index_head_dim", "indexer_budget", "indexer_compress_ratio", "indexer_n_heads", "indexer_head_dim",
            "compress_rate_csa", "compress_rate_hca", "full_attention_interval",
        ),
        (1, _MOST),
    ),
}  # fmt: skip
_FLAGS = ("use_dsa", "use_sliding_window")
_TYPES, _PATTERN, _FREQUENCY, _OFFSET = (
    "indexer_types",
    "index_topk_pattern",
    "index_topk_freq",
    "index_skip_topk_offset",
)
_SHARING = (_TYPES, _PATTERN, _FREQUENCY)
_DEFAULT_OFFSET = 2
_RATIOS = (0, 4, 128)
# What other libraries call the count of layers.
_COUNTS_ELSEWHERE = ("n_layers", "n_layer", "num_layers", "layers")
_ROLES = ("full", "shared")
_RESTORE = "restore the config.json that belongs to the weights"


@dataclass(frozen=True)
class ConfigDocument:
    """A config.json as it was written.

    Args:
        model_id: whose it is, as the user wrote it.
        content: its keys; those of the language model are perhaps nested.
    """

    model_id: str
    content: dict[str, Any]

    @property
    def nested(self) -> bool:
        """Whether the language model's settings stand under text_config, as multimodal models keep them."""
        return isinstance(self.content.get("text_config"), dict)

    @property
    def text(self) -> dict[str, Any]:
        """The settings of the language model."""
        text = self.content
        while isinstance(text.get("text_config"), dict):
            text = text["text_config"]
        return text

    def check(self) -> None:
        """Refuses what transformers would take for something else, fail on without naming it, or not survive.

        Raises:
            ModelError: names the key, and says what it should be.
        """
        if any(part.get("index_source_layer_ids") not in (None, [], {}) for part in (self.content, self.text)):
            raise ModelError(
                f"the config of {self.model_id!r} has index_source_layer_ids: layers share selections of their "
                "own source layers, as in DeepSeek-V4.1, which is not supported yet"
            )
        self._check_type()
        if not isinstance(self.content.get("text_config"), dict | None):
            self._refuse("text_config", self.content["text_config"], "an object")
        self._check_layers()
        for key, (least, most) in _NUMBERS.items():
            self._check_number(self.text, key, least, most)
        for key in _FLAGS:
            if not isinstance(self.text.get(key), bool | None):
                self._refuse(key, self.text[key], "true or false")
        self._check_format()
        self._check_compression()
        self._check_blocks()
        if (family := self._family()) is not None:
            self._check_sharing(family.reads)

    def with_defaults(self) -> dict[str, Any] | None:
        """The content without a null frequency or offset, on which transformers fails; None if there is none."""
        family = self._family()
        empty = [key for key in (_FREQUENCY, _OFFSET) if key in self.text and self.text[key] is None]
        if not empty or family is None or _FREQUENCY not in family.reads:
            return None
        content = copy.deepcopy(self.content)
        for key in empty:
            del ConfigDocument(self.model_id, content).text[key]
        return content

    def check_nesting(self, config: Any, text: Any) -> None:
        """Compares numbers with what transformers made of them: those at the wrong level are left out there.

        Args:
            config: the transformers config.
            text: that of its language model.

        Raises:
            ModelError: names the first that was not read.
        """
        from transformers import PreTrainedConfig

        kind = type(config).__name__
        if not isinstance(text, PreTrainedConfig):
            raise ModelError(
                f"the config of {self.model_id!r} nests text_config, but {kind} of transformers does not",
                hint="give its settings at the top of config.json, or the model_type that nests them",
            )
        if self.nested or text is config:
            return
        for key in _NUMBERS:
            if self.content.get(key) is not None and self.content[key] != getattr(text, key, None):
                raise ModelError(
                    f"the config of {self.model_id!r} has {key} at its top, but {kind} of transformers reads it "
                    f"in text_config and takes {getattr(text, key, None)}",
                    hint="nest the language model's settings under text_config",
                )

    def unmeasured(self, kind: str, sites: Sequence[int], shared: Sequence[int]) -> tuple[str, ...]:
        """A line for each key that says of some layer that it shares, or not, where the model does otherwise.

        Args:
            kind: the class of its config in transformers.
            sites: layers whose indexer runs.
            shared: layers that share in the model as transformers builds it.
        """
        parts = {"": self.content} | ({"text_config's ": self.text} if self.nested else {})
        lines = []
        for place, part in parts.items():
            for key in _SHARING:
                claimed = _claimed(part, key, {*sites, *shared})
                if claimed is not None and claimed != set(shared):
                    lines.append(
                        f"{place}{key} in config.json is not what is measured: {kind} of transformers does not go "
                        f"by it here, and runs the indexers of layers {layer_ranges(sites)}"
                    )
        return tuple(lines)

    def _family(self) -> Family | None:
        """Of the class that transformers would choose for the language model."""
        kind = _class_of(self.text, self.content)
        return None if kind is None else family_of_class(kind)

    def _check_type(self) -> None:
        from transformers import CONFIG_MAPPING, __version__

        name = self.content.get("model_type")
        if "model_type" in self.content and not isinstance(name, str):
            self._refuse("model_type", name, "a name")
        if not isinstance(name, str) or name in CONFIG_MAPPING or "auto_map" in self.content:
            return  # code that the checkpoint brings may know it
        unknown = f"has a model_type {name!r}, which transformers {__version__} does not know"
        what = f"the config of {self.model_id!r} {unknown}"
        plain = name.strip().lower()
        for spelling in (plain, plain.replace("-", "_"), plain.replace("_", "-")):
            if spelling in CONFIG_MAPPING:
                raise ModelError(what, hint=f"it is spelled {spelling!r}")
        if name in FAMILIES:
            raise ModelError(what, hint="a newer release does: pip install --upgrade transformers")

    def _check_number(self, part: Any, key: str, least: int, most: int) -> None:
        value = part.get(key)
        if value is None:  # transformers takes its default, or names the key
            return
        if type(value) is not int or not least <= value <= most:
            self._refuse(key, value, f"a whole number from {least} to {most}")

    def _check_layers(self) -> None:
        """A family's default is that of another model: a count that is not there is no count."""
        family, text = self._family(), self.text
        if family is None or text.get("num_hidden_layers") is not None:
            return
        aliases = _class_of(text, self.content).attribute_map
        if text.get(aliases.get("num_hidden_layers", "num_hidden_layers")) is not None:
            return
        others = [key for key, value in text.items() if key != "num_hidden_layers" and type(value) is int]
        similar = [key for key in others if key in _COUNTS_ELSEWHERE]
        similar += get_close_matches("num_hidden_layers", others, n=1, cutoff=0.85)
        raise ModelError(
            f"the config of {self.model_id!r} has no {self._place('num_hidden_layers')}, the count of its layers",
            hint=f"it has {similar[0]}" if similar else _RESTORE,
        )

    def _check_format(self) -> None:
        """What says how quantised weights are stored."""
        for part in (self.content, self.text):
            settings = part.get("quantization_config")
            if settings is None:
                continue
            if not isinstance(settings, dict):
                self._refuse("quantization_config", settings, "an object", _RESTORE)
            method = settings.get("quant_method")
            if not isinstance(method, str | None):
                self._refuse("quantization_config.quant_method", method, "a name", _RESTORE)
            block = settings.get("weight_block_size")
            sizes = block if isinstance(block, list) and len(block) == 2 else [None]
            if block is not None and any(type(size) is not int or not 0 < size <= _MOST for size in sizes):
                expected = "two whole numbers from 1 up, e.g. [128, 128], or null"
                self._refuse("quantization_config.weight_block_size", block, expected, _RESTORE)

    def _check_compression(self) -> None:
        rates, ratios = self.text.get("compress_rates"), self.text.get("compress_ratios")
        if not isinstance(rates, dict | None):
            self._refuse("compress_rates", rates, "an object with a number for each type of layer")
        for kind, rate in (rates or {}).items():
            self._check_number({f"compress_rates.{kind}": rate}, f"compress_rates.{kind}", 1, _MOST)
        if ratios is None:
            return
        layers = self.text.get("num_hidden_layers") or 0
        known = isinstance(ratios, list) and all(type(ratio) is int and ratio in _RATIOS for ratio in ratios)
        if not known or len(ratios) < layers:
            self._refuse("compress_ratios", ratios, "a list of 0, 4 or 128 for each layer")

    def _check_blocks(self) -> None:
        """MiniMax-M3's settings, which its public config nests."""
        blocks = self.text.get("sparse_attention_config")
        if blocks is None:
            return
        if not isinstance(blocks, dict):
            self._refuse("sparse_attention_config", blocks, "an object")
        for key in ("sparse_num_index_heads", "sparse_index_dim", "sparse_block_size", "sparse_topk_blocks"):
            self._check_number(blocks, key, 1, _MOST)
        self._check_number(blocks, "sparse_local_block", 0, _MOST)
        marks = blocks.get("sparse_attention_freq", [])
        if not isinstance(marks, list) or any(mark not in (0, 1) for mark in marks):
            self._refuse("sparse_attention_freq", marks, "a list of 0 or 1 for each layer")

    def _check_sharing(self, reads: Sequence[str]) -> None:
        """The first of these keys that is there decides, in transformers as here."""
        for key, check in ((_TYPES, self._check_types), (_PATTERN, self._check_pattern)):
            if key in reads and self.text.get(key) is not None:
                check(self.text[key])
                return
        if _FREQUENCY in reads:
            self._check_number(self.text, _FREQUENCY, 1, _MOST_LAYERS)
            self._check_number(self.text, _OFFSET, 1, _MOST_LAYERS)

    def _check_types(self, types: Any, key: str = _TYPES) -> None:
        layers = self.text.get("num_hidden_layers") or 0
        if not isinstance(types, list):
            self._refuse(key, types, "a list of full and shared")
        for layer, kind in enumerate(types):
            if kind not in _ROLES:
                letters = kind in (FULL, SHARED)
                hint = f"a list says full and shared; letters stand in a string, as {_PATTERN}" if letters else ""
                self._refuse(f"{key}[{layer}]", kind, "full or shared", hint)
        if len(types) < layers:
            self._refuse_length(key, len(types), layers)

    def _check_pattern(self, pattern: Any) -> None:
        if not isinstance(pattern, str):
            self._check_types(pattern, _PATTERN)
            return
        for layer, role in enumerate(pattern):
            if role.upper() in (FULL, SHARED) and role != role.upper():
                place = f"at layer {layer} of {self._place(_PATTERN)}"
                raise ModelError(
                    f"the config of {self.model_id!r} has {role!r} {place}, not a capital F or S",
                    hint="write it in capitals: transformers reads no others, and engines disagree on them",
                )
            if role not in (FULL, SHARED):
                self._refuse(f"{_PATTERN}[{layer}]", role, "F or S")
        layers = self.text.get("num_hidden_layers") or 0
        if not pattern or len(pattern) < layers:
            self._refuse_length(_PATTERN, len(pattern), layers)

    def _refuse_length(self, key: str, length: int, layers: int) -> NoReturn:
        what = f"{self._place(key)} has {length} entries for {layers} layers"
        raise ModelError(f"the config of {self.model_id!r}: {what}")

    def _refuse(self, key: str, value: Any, expected: str, hint: str = "") -> NoReturn:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        raise ModelError(
            f"the config of {self.model_id!r}: {self._place(key)} is {shown}, but has to be {expected}", hint
        )

    def _place(self, key: str) -> str:
        """``key`` as the user finds it in config.json."""
        top = key.partition(".")[0].partition("[")[0]
        return f"text_config.{key}" if self.nested and top not in self.content else key


def read_config_document(folder: Path, model_id: str) -> ConfigDocument:
    """The config.json in ``folder``.

    Raises:
        ModelError: it cannot be read, is no JSON object in UTF-8, or gives a key twice with other values.
    """
    what = f"the config of {model_id!r}"
    try:
        data = (folder / "config.json").read_bytes()
        text = data.decode("utf-8")
        if not text.strip():
            raise ModelError(f"{what} is an empty file")
        if text.startswith("\ufeff"):
            raise ModelError(
                f"{what} opens with a byte-order mark (BOM), which neither transformers nor engines read",
                hint="save config.json as UTF-8 without BOM",
            )
        content = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, what))
    except OSError as error:
        raise ModelError(f"{what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{what} is not UTF-8", hint="save config.json as UTF-8 without BOM") from error
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{what} is not JSON: {error.msg}, line {error.lineno}, column {error.colno}",
            hint=_json_remedy(text, error),
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} holds JSON that cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{what} holds JSON, but no object with keys")
    return ConfigDocument(model_id, content)


def _json_remedy(text: str, error: json.JSONDecodeError) -> str:
    """What to do about the place where ``text`` stops being JSON."""
    rest = text[error.pos :].lstrip()
    if not rest or error.msg.startswith("Unterminated string"):
        return "the file may be cut short: fetch it again"
    if rest[0] in "/#":
        return "JSON has no comments: take it out"
    before = text[: error.pos].rstrip()
    if "trailing comma" in error.msg or (before.endswith(",") and rest[0] in "}],"):
        return "it has a comma too many: take it out"
    return "mend that place, or fetch the file again"


def _class_of(*parts: dict[str, Any]) -> Any:
    """The class that transformers has for the first model_type that it knows; None where it knows none."""
    from transformers import CONFIG_MAPPING

    names = (part.get("model_type") for part in parts)
    return next((CONFIG_MAPPING[name] for name in names if isinstance(name, str) and name in CONFIG_MAPPING), None)


def _once(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content and content[key] != value:
            raise ModelError(
                f"{what} gives {key} twice, and not the same", hint="leave one of them in config.json"
            )
        content[key] = value
    return content


def _claimed(part: dict[str, Any], key: str, layers: set[int]) -> set[int] | None:
    """Those of ``layers`` that share by ``key``; None where it says nothing, all where it cannot be understood."""
    value = part.get(key)
    if value is None or (key == _FREQUENCY and value == 1):
        return None
    if key == _FREQUENCY:
        offset = part.get(_OFFSET)
        offset = _DEFAULT_OFFSET if offset is None else offset
        if type(value) is not int or type(offset) is not int or value < 1:
            return layers
        return {layer for layer in layers if max(layer - offset + 1, 0) % value}
    if not isinstance(value, str | list):
        return layers
    return {layer for layer in layers if layer < len(value) and str(value[layer]).lower() in ("s", "shared")}
