"""A checkpoint's config and tokenizer, before its weights are loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelError, first_line, one_line
from ...system.files import refuse_pointer
from .architectures import is_text_only, model_class, runs_remote_code
from .document import ConfigDocument, read_config_document
from .families import Family, family_of, text_config
from .hub import locate_checkpoint
from .plain import is_plain
from .sites import Sites, sites_of_family, sites_of_modules
from .stored.shards import INDEX

_TOKENIZER_FILES = (".json", ".model", ".txt", ".jinja", ".tiktoken")


@dataclass(frozen=True)
class Trust:
    """What of a checkpoint may run as a program: nothing, unless the user says so each time.

    Args:
        remote_code: Python code that it brings.
        pickles: pickled weights, where there are no others.
    """

    remote_code: bool = False
    pickles: bool = False


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
        selection_width: keys a query may see before its indexer has to choose; 0 where that is not known.
        family: what is known of its kind; None for a model with indexers that is none of the known kinds.
        assumed: of a model of no known family, what was taken for granted, a line each.
        trust: what of it may run.
        unmeasured: what its config says of sharing that transformers does not do, a line each.
    """

    model_id: str
    folder: Path
    revision: str | None
    config: Any
    site_layers: tuple[int, ...]
    shared_layers: tuple[int, ...]
    selection_width: int
    family: Family | None
    assumed: tuple[str, ...] = ()
    trust: Trust = Trust()
    unmeasured: tuple[str, ...] = ()

    @property
    def text(self) -> Any:
        """The config of the language model, which a multimodal config holds."""
        return text_config(self.config)

    @property
    def text_only(self) -> bool:
        """Whether only the language model is loaded; else its other towers are too, and never run."""
        return is_text_only(self.config, self.trust.remote_code)

    @property
    def selects_tokens(self) -> bool:
        """Whether the code for long windows is written for it: of a known family, and selecting single tokens."""
        return self.family is not None and self.family.selects_tokens

    @property
    def vocabulary(self) -> int:
        """How many token ids the model knows."""
        return int(self.text.vocab_size)

    @property
    def longest(self) -> int | None:
        """Positions that the model was made for; None where it does not say."""
        return getattr(self.text, "max_position_embeddings", None)

    @property
    def architecture(self) -> str:
        """The class that the config names."""
        named = getattr(self.config, "architectures", None) or type(self.config).__name__
        return one_line(str(named[0] if isinstance(named, list) else named))

    @property
    def layers(self) -> int:
        """Decoder layers, without multi-token-prediction layers."""
        return int(self.text.num_hidden_layers)


def open_checkpoint(model_id: str, revision: str | None = None, trust: Trust = Trust()) -> Checkpoint:
    """Reads the config of a local folder or a hub model and finds its sites; loads no weights.

    A relative path is looked up in the working folder, then among the package's own files.

    Raises:
        ModelError: nothing there, not a transformers model, or one without searchable indexers.
    """
    folder, commit = locate_checkpoint(model_id, revision)
    document = _document(folder, model_id)
    document.check()
    return _described(folder, commit, document, trust)


def open_plain_checkpoint(model_id: str, revision: str | None, trust: Trust) -> Checkpoint | None:
    """As ``open_checkpoint``, for a config that tells all by itself: then PyTorch is not imported.

    None where a model has to be built, or transformers makes nothing of the config: ``open_checkpoint`` says why.

    Raises:
        ModelError: nothing there, or a config.json that is refused as it is written.
    """
    folder, commit = locate_checkpoint(model_id, revision)
    document = _document(folder, model_id)
    if not is_plain(document.content, trust.remote_code):
        return None
    document.check()
    try:
        return _described(folder, commit, document, trust)
    except (ModelError, ImportError):  # of a release that imports PyTorch all the same, too
        return None


def _document(folder: Path, model_id: str) -> ConfigDocument:
    for name in ("config.json", "generation_config.json"):
        refuse_pointer(folder / name, ModelError)
    return read_config_document(folder, model_id)


def _described(folder: Path, commit: str | None, document: ConfigDocument, trust: Trust) -> Checkpoint:
    """What ``document``, the config.json in ``folder``, tells of its checkpoint."""
    config = _built_config(folder, document, trust)
    text = text_config(config)
    document.check_nesting(config, text)
    # The checkpoint's own code is none of a family's, even where transformers' class holds its config.
    family = None if runs_remote_code(config, trust.remote_code) else family_of(config)
    try:
        sites = _sites(config, family, trust)
    except ModelError as error:
        if family is None:
            error.hint = _code_hint(folder, trust) or error.hint
        raise
    _check_sites(sites, document.model_id)
    return Checkpoint(
        model_id=document.model_id,
        folder=folder,
        revision=commit,
        config=config,
        site_layers=sites.full,
        shared_layers=sites.shared,
        selection_width=sites.width,
        family=family,
        assumed=sites.assumed,
        trust=trust,
        unmeasured=document.unmeasured(type(text).__name__, sites.full, sites.shared),
    )


def _sites(config: Any, family: Family | None, trust: Trust) -> Sites:
    """Sites of a model that transformers, or the checkpoint's own code, can run.

    Raises:
        ModelError: it has none that could be told, or nothing could run it.
    """
    if family is not None:
        sites = sites_of_family(text_config(config), family)
    else:
        sites = sites_of_modules(config, trust.remote_code)
    model_class(config, trust.remote_code)  # raises where nothing could run it
    return sites


def _check_sites(sites: Sites, model_id: str) -> None:
    if not sites.full:
        raise ModelError(f"the config of {model_id!r} gives none of its layers an indexer of its own")
    if any(layer < sites.full[0] for layer in sites.shared):
        raise ModelError(f"the config of {model_id!r} has no full indexer before its first shared layer")


def _built_config(folder: Path, document: ConfigDocument, trust: Trust) -> Any:
    """What transformers makes of config.json."""
    from transformers import CONFIG_MAPPING, AutoConfig

    remote_class = trust.remote_code and "AutoConfig" in (document.content.get("auto_map") or {})
    content = None if remote_class else document.with_defaults()
    try:
        if content is None:
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote_code)
        config = CONFIG_MAPPING[content["model_type"]].from_dict(content)
        config.name_or_path = str(folder)
        return config
    except Exception as error:  # transformers raises many classes for a wrong config
        hint = _code_hint(folder, trust) or "it needs a config.json that this version of transformers knows"
        raise ModelError(
            f"the config of {document.model_id!r} cannot be used: {first_line(error)}", hint=hint
        ) from error


def _code_hint(folder: Path, trust: Trust, name: str = "config.json") -> str | None:
    """How a checkpoint that brings its own code is run; None where it brings none, or that runs already."""
    try:
        document = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if trust.remote_code or not isinstance(document, dict) or not document.get("auto_map"):
        return None
    return "it brings Python code of its own, which runs with --trust-remote-code, where you trust it"


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        ModelError: it has none.
    """
    from transformers import AutoTokenizer

    for path in sorted(checkpoint.folder.iterdir()):
        if path.suffix in _TOKENIZER_FILES and path.name != INDEX:
            refuse_pointer(path, ModelError)
    try:
        return AutoTokenizer.from_pretrained(
            checkpoint.folder, config=checkpoint.config, trust_remote_code=checkpoint.trust.remote_code
        )
    except Exception as error:  # as in open_checkpoint
        raise ModelError(
            f"the tokenizer of {checkpoint.model_id!r} cannot be loaded: {first_line(error)}",
            hint=_code_hint(checkpoint.folder, checkpoint.trust, "tokenizer_config.json")
            or "the folder needs the tokenizer files beside the weights",
        ) from error


def config_sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of config.json as it stands on disk."""
    return file_sha256(checkpoint.folder / "config.json")


def has_nested_config(checkpoint: Checkpoint) -> bool:
    """Whether config.json keeps the text model's settings under text_config, as multimodal models do."""
    return read_config_document(checkpoint.folder, checkpoint.model_id).nested


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        ModelError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    return digest.hexdigest()
