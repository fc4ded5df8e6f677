"""Plans on the hub: a repository at one commit, whose files are copied here, so that commands work beside them."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import PlanError
from ...system.files import is_there, write_atomically

FETCHED = Path("outputs") / "hub"
"""Where plans from the hub are copied to, so that what is measured of them can be kept beside them."""
# What stands beside a plan and is needed to measure, check or render it.
_FILES = ("plan.json", "windows.safetensors", "fingerprint.json", "timing.json", "evaluation.json", "bench*.json")
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
_PATIENCE_SECONDS = 10.0


def hub_plan(path: Path) -> Path | None:
    """The local copy of the plan that ``path`` names on the hub, as ``org/name@revision``; None if it names none.

    What is there as a path is never asked for on the hub, nor is a name in a folder that is there.

    Raises:
        PlanError: a repository that cannot be fetched, or holds no plan.
        OutputError: its files cannot be copied here.
    """
    named = _HUB_ID.fullmatch(path.as_posix())
    if named is None or path.suffix == ".json" or is_there(path) or is_there(path.parent):
        return None
    return _fetched(named["id"], named["revision"])


def _fetched(repository: str, revision: str | None) -> Path:
    """The plan of a hub repository at one commit, copied from the hub's cache.

    Raises:
        PlanError: no such repository, revision or plan, or neither a connection nor a copy in the cache.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    what, commit, files = f"plan {repository!r}", None, {"plan.json"}
    if not constants.HF_HUB_OFFLINE:
        try:
            # One short question first, as for checkpoints: downloads wait for long where there is no network.
            answer = HfApi().model_info(repository, revision=revision, timeout=_PATIENCE_SECONDS)
            commit, files = answer.sha, {file.rfilename for file in answer.siblings or ()}
        except GatedRepoError as error:
            raise PlanError(f"{what} is gated", hint="ask for access and set HF_TOKEN") from error
        except RevisionNotFoundError as error:
            raise PlanError(f"{what} has no revision {revision!r} on the hub") from error
        except RepositoryNotFoundError as error:
            raise PlanError(
                f"{what} is neither a local file or folder nor on the hub",
                hint="check the name; private repositories need HF_TOKEN",
            ) from error
        except Exception:  # no network, a proxy's page, ...: the cache may have a copy
            commit = None
    if "plan.json" not in files:
        raise PlanError(f"{what} on the hub holds no plan.json", hint="upload what search wrote")
    try:
        cached = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(_FILES), local_files_only=commit is None
            )
        )
    except Exception as error:  # not in the cache, a connection lost, a full disk
        raise PlanError(
            f"{what} is neither a local file or folder nor reachable on the hub",
            hint="HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "check the name and the network",
        ) from error
    return _copied(cached, FETCHED / repository / cached.name[:12])


def _copied(cached: Path, folder: Path) -> Path:
    """The plan in ``folder``, to which its files are copied from the cache; those there already stay.

    A commit never changes, and what eval measured here is not to be lost. The plan comes last, so that a copy that
    was cut short goes on.
    """
    names = sorted(
        (path.name for path in cached.iterdir() if path.is_file()), key=lambda name: name == "plan.json"
    )
    for name in names:
        if not is_there(folder / name):
            write_atomically(folder / name, (cached / name).read_bytes())
    return folder / "plan.json"
