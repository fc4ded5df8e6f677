"""A checkpoint before its weights are loaded: config, tokenizer, sites, sizes and content hashes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError, first_line
from ..files import find_path
from .families import family_of
from .hub import fetch_description, fetch_weights


@dataclass(frozen=True)
class Checkpoint:
    """What a config tells of a DSA model.

    Args:
        model_id: as the user wrote it.
        folder: where its config and tokenizer are.
        revision: the hub commit, None for a local folder.
        config: the transformers config.
        site_layers: absolute ids of the layers that own an indexer.
        shared_layers: layers that share in the checkpoint itself.
        selection_width: keys a query may see before its indexer has to choose.
    """

    model_id: str
    folder: Path
    revision: str | None
    config: Any
    site_layers: tuple[int, ...]
    shared_layers: tuple[int, ...]
    selection_width: int
    trust_remote_code: bool = False

    @property
    def architecture(self) -> str:
        """The class that the config names."""
        return str((getattr(self.config, "architectures", None) or [type(self.config).__name__])[0])

    @property
    def layers(self) -> int:
        """Decoder layers, without multi-token-prediction layers."""
        return int(self.config.num_hidden_layers)


def open_checkpoint(model_id: str, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
    """Reads the config of a local folder or a hub model and finds its sites; loads no weights.

    A relative path is looked up in the working folder, then among the package's own files.

    Raises:
        ModelError: nothing there, not a transformers model, or one without searchable indexers.
    """
    from transformers import AutoConfig

    folder, commit = _locate(model_id, revision)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many classes for a wrong config
        raise ModelError(
            f"the config of {model_id!r} cannot be used: {first_line(error)}",
            hint="it needs a config.json that this version of transformers knows",
        ) from error
    family = family_of(config)
    sites, shared = family.site_layers(config), family.shared_layers(config)
    if not sites or any(layer < sites[0] for layer in shared):
        raise ModelError(f"the config of {model_id!r} has no full indexer before its first shared layer")
    return Checkpoint(
        model_id=model_id,
        folder=folder,
        revision=commit,
        config=config,
        site_layers=sites,
        shared_layers=shared,
        selection_width=family.selection_width(config),
        trust_remote_code=trust_remote_code,
    )


def _locate(model_id: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder that ``model_id`` stands for, and its commit if it is on the hub."""
    local = find_path(model_id)
    if local is not None and local.is_dir():
        if revision is not None:
            raise ModelError(
                f"{model_id!r} is a local folder and has no revision {revision!r}", hint="leave it out"
            )
        if not (local / "config.json").is_file():
            raise ModelError(f"{model_id!r} holds no config.json", hint="give the folder of a transformers model")
        return local, None
    if model_id.count("/") != 1 or model_id.startswith((".", "/", "~")):
        raise ModelError(
            f"model {model_id!r} does not exist", hint="give a local folder, or a hub id as in org/name"
        )
    return fetch_description(model_id, revision)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        ModelError: it has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    except Exception as error:  # as in open_checkpoint
        raise ModelError(
            f"the tokenizer of {checkpoint.model_id!r} cannot be loaded: {first_line(error)}",
            hint="the folder needs the tokenizer files beside the weights",
        ) from error


@dataclass(frozen=True)
class Sizes:
    """Parameter counts: of the model, and of its indexers alone."""

    parameters: int
    indexer_parameters: int


def measure_sizes(checkpoint: Checkpoint) -> Sizes:
    """Counts parameters on the meta device, without weights or memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(checkpoint.config, trust_remote_code=checkpoint.trust_remote_code)
    named = dict(model.named_parameters())
    indexers = sum(weight.numel() for name, weight in named.items() if ".indexer." in name)
    return Sizes(sum(weight.numel() for weight in named.values()), indexers)


def config_sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of config.json as it stands on disk."""
    return _file_sha256(checkpoint.folder / "config.json")


def has_nested_config(checkpoint: Checkpoint) -> bool:
    """Whether config.json keeps the text model's settings under text_config, as multimodal models do."""
    document = json.loads((checkpoint.folder / "config.json").read_bytes())
    return isinstance(document.get("text_config"), dict)


def weights_sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 over name and content of every safetensors file that the checkpoint loads.

    Raises:
        ModelError: there are none.
    """
    folder = weights_folder(checkpoint)
    digest = hashlib.sha256()
    for name in weight_files(folder, checkpoint.model_id):
        digest.update(f"{name}:{_file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def weights_bytes(checkpoint: Checkpoint, element_size: int) -> int:
    """About what the weights take in memory, at ``element_size`` bytes a value; reads their files' sizes.

    Raises:
        ModelError: there are none.
    """
    folder = weights_folder(checkpoint)
    stored = sum((folder / name).stat().st_size for name in weight_files(folder, checkpoint.model_id))
    named = str(checkpoint.config.get_text_config().dtype or "float32")
    stored_size = 4 if "32" in named else 2
    return stored * element_size // stored_size


def weights_folder(checkpoint: Checkpoint) -> Path:
    """The local folder of the weights, which are downloaded if they are on the hub."""
    if checkpoint.revision is None:
        return checkpoint.folder
    return fetch_weights(checkpoint.model_id, checkpoint.revision)


def weight_files(folder: Path, model_id: str) -> list[str]:
    """Names of the safetensors files in ``folder`` that a checkpoint loads.

    Raises:
        ModelError: there are none, one is missing, or the index is broken.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(
                f"{index.name} of {model_id!r} is broken", hint="fetch the checkpoint again"
            ) from error
        if lost := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(
                f"{model_id!r} lacks {lost[0]!r}, which its index names", hint="fetch the checkpoint again"
            )
        return names
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    raise ModelError(
        f"{model_id!r} holds no safetensors weights",
        hint="pickled weights are not loaded: convert them first",
    )


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
