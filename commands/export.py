"""The export command: an engine's settings, and on request a folder with config.json and stripped weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..dsa.checkpoint.config import Checkpoint, config_sha256, open_checkpoint
from ..dsa.checkpoint.strip import strip_indexers
from ..errors import ExportError, IdentityError, ModelError, OutputError
from ..pattern import SHARED, layer_ranges
from ..search.export.settings import Export, edited_config
from ..search.plan.schema import Plan
from ..system.console import Reporter
from ..system.files import write_atomically
from .job.prepare import check_identity, model_identity


def write_config(plan: Plan, exported: Export, folder: Path, model: str | None) -> Path:
    """Writes the plan's config.json with the export's settings to ``folder``, and nothing else; its path.

    Raises:
        ExportError: the engine does not read them there.
        IdentityError: the config.json found is not the plan's.
        ModelError: the checkpoint cannot be found.
        OutputError: there is a config.json already, or none can be written.
    """
    checkpoint = _checkpoint(plan, model)
    if config_sha256(checkpoint) != plan.model.config_sha256:
        raise IdentityError(
            f"the config.json of {checkpoint.model_id!r} is not the one that was searched",
            hint="give the plan's own checkpoint with --model",
        )
    content = _config(checkpoint, exported)
    path = folder / "config.json"
    if folder.resolve() == checkpoint.folder.resolve():
        raise OutputError(f"{str(folder)!r} is the checkpoint itself", hint="give another folder")
    if path.exists():
        raise OutputError(f"{str(path)!r} is there already", hint="give another folder")
    write_atomically(path, content)
    return path


def write_stripped(plan: Plan, exported: Export, folder: Path, model: str | None, reporter: Reporter) -> Path:
    """Writes the plan's checkpoint to ``folder``, its shared layers' indexer weights left out; its path.

    Multi-token-prediction layers keep theirs.

    Raises:
        ExportError: the plan shares no layer.
        IdentityError: the checkpoint found is not the plan's.
        ModelError: it is not in a local folder, or cannot be read.
        OutputError: the folder cannot be written; nothing is left of it.
    """
    checkpoint = _checkpoint(plan, model)
    if checkpoint.revision is not None:
        raise ModelError(
            f"{checkpoint.model_id!r} is on the hub, and weights are stripped from a local folder only",
            hint=f"hf download {checkpoint.model_id} --revision {checkpoint.revision} --local-dir FOLDER, then "
            "give --model FOLDER",
        )
    reporter.doing(f"hashing the weights of {checkpoint.model_id}")
    check_identity(plan.model, model_identity(checkpoint, plan.model.weights_hash))
    sites = zip(plan.model.site_layers, plan.result.pattern, strict=True)
    shared = [layer for layer, role in sites if role == SHARED]
    if not shared:
        raise ExportError("the plan shares no layer, so there are no weights to leave out")
    reporter.say(f"leaving out the indexers of layers {layer_ranges(shared)}")
    content = _config(checkpoint, exported).encode()
    stripped = strip_indexers(
        checkpoint.folder,
        folder,
        shared,
        plan.model.shared_layers,
        content,
        lambda name: reporter.doing(f"writing {name}"),
    )
    reporter.say(f"left out {stripped.tensors} tensors of {stripped.size:,} bytes")
    return folder


def _checkpoint(plan: Plan, model: str | None) -> Checkpoint:
    try:
        return open_checkpoint(model or plan.model.id, None if model else plan.model.revision)
    except ModelError as error:
        if model is None:
            error.hint = "the plan names it so: say where the checkpoint is now with --model"
        raise


def _config(checkpoint: Checkpoint, exported: Export) -> str:
    document = json.loads((checkpoint.folder / "config.json").read_bytes())
    return json.dumps(edited_config(document, exported), indent=2, ensure_ascii=False) + "\n"


def export_document(plan: Plan, exported: Export, written: Path | None) -> dict[str, Any]:
    """An engine's settings as JSON; ``pattern`` is what they spell, a letter for each of ``pattern_layers``."""
    return {
        "engine": exported.engine,
        "model_type": plan.model.model_type,
        "settings": exported.settings,
        "paste": exported.paste,
        "pattern": exported.pattern,
        "pattern_layers": list(exported.pattern_layers),
        "layer_pattern": plan.result.layer_pattern,
        "site_pattern": plan.result.pattern,
        "warnings": [{"severity": remark.severity, "text": remark.text} for remark in exported.warnings],
        "written": written and str(written),
    }
