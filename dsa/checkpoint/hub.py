"""Finds a checkpoint: a local folder, or one that is fetched from the hub at one commit, into the hub's cache."""

from __future__ import annotations

from pathlib import Path

from ...errors import ModelError, first_line
from ...system.files import find_path

_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_PATIENCE_SECONDS = 10.0


def locate_checkpoint(model_id: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder that ``model_id`` stands for, and its commit if it is on the hub.

    Raises:
        ModelError: there is nothing, or no transformers model; see also ``fetch_description``.
    """
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


def fetch_description(model_id: str, revision: str | None) -> tuple[Path, str]:
    """Config and tokenizer of a hub model: the folder they are in, and the commit that ``revision`` names.

    Without a connection, what the cache has of it.

    Raises:
        ModelError: no such model or revision, no access, or neither a connection nor a copy.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    commit = None
    if not constants.HF_HUB_OFFLINE:
        try:
            # One short question first: downloads wait and try again for long where there is no network.
            commit = HfApi().model_info(model_id, revision=revision, timeout=_PATIENCE_SECONDS).sha
        except GatedRepoError as error:
            raise ModelError(f"model {model_id!r} is gated", hint="ask for access and set HF_TOKEN") from error
        except RevisionNotFoundError as error:
            raise ModelError(f"model {model_id!r} has no revision {revision!r} on the hub") from error
        except RepositoryNotFoundError as error:
            raise ModelError(
                f"model {model_id!r} is neither a local folder nor on the hub",
                hint="check the name; private models need HF_TOKEN",
            ) from error
        except Exception:  # no network, a proxy's page, ...: the cache may have a copy
            commit = None
    try:
        folder = snapshot_download(
            model_id,
            revision=revision,  # by its name, which the cache then knows too, and not by the commit
            allow_patterns=list(_SMALL_FILES),
            local_files_only=commit is None,
        )
    except Exception as error:  # not in the cache, a connection lost, a full disk
        raise ModelError(
            f"model {model_id!r} is neither a local folder nor reachable on the hub",
            hint="HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "check the name and the network",
        ) from error
    return Path(folder), Path(folder).name


def fetch_weights(model_id: str, commit: str, allow_pickle: bool = False) -> Path:
    """Downloads a hub model's safetensors files, or finds them in the cache; the folder they are in.

    Pickles are fetched where they are allowed and there is nothing else.

    Raises:
        ModelError: they cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model_id, revision=commit, allow_patterns=list(_WEIGHTS)))
        if allow_pickle and not any(folder.glob("model*.safetensors")):
            snapshot_download(model_id, revision=commit, allow_patterns=list(_PICKLES))
        return folder
    except Exception as error:  # the hub's own errors, the network's, a full disk
        raise ModelError(
            f"the weights of {model_id!r} cannot be fetched: {first_line(error)}",
            hint="check the network and the disk",
        ) from error
