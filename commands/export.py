"""The export command: an engine's settings, and on request a folder with config.json and stripped weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import PAGE, ExportError, IdentityError, ModelError, OutputError, warning_section, wrapped
from ..pattern import SHARED, layer_ranges
from ..search.export.remarks import Remark, worst_first
from ..search.export.settings import Export, check_servable, edited_config, export
from ..search.export.support import Serving
from ..search.plan.file import check_indexers
from ..search.plan.schema import Plan
from ..search.report.words import NOT_COMPLETE
from ..search.run.folder import PLAN_FILES
from ..system.console import Reporter
from ..system.exits import print_result
from ..system.files import find_path, write_atomically

if TYPE_CHECKING:
    from ..dsa.checkpoint.config import Checkpoint
    from .job.planned import PlannedModel


def settings_for(plan: Plan, engine: str, serving: Serving, force: bool) -> Export:
    """The settings that make ``engine`` run ``plan``, with a warning where the plan was not checked to its end.

    Raises:
        PlanError: the plan needs distilled indexers, and its checkpoint has others.
        ExportError: the engine takes no pattern of this family, or is known to fail with it and ``force`` is off.
    """
    check_indexers(plan)
    exported = export(plan, engine, serving)
    if not force:
        check_servable(exported)
    remarks = [] if plan.complete else [Remark("warning", NOT_COMPLETE)]
    if plan.distilled is not None:
        remarks.append(
            Remark("note", f"the pattern goes with the distilled weights in {plan.model.id}, and no others")
        )
    return replace(exported, warnings=worst_first([*remarks, *exported.warnings])) if remarks else exported


def config_here(plan: Plan, model_id: str | None) -> dict[str, Any] | None:
    """The text model's settings in the config.json to be served; None where it is not on this machine.

    That of a hub model is looked for in the hub's cache; nothing is fetched.

    Args:
        plan: names the checkpoint.
        model_id: what has its place, if anything.
    """
    name = model_id or plan.model.id
    folder = find_path(name)
    path = folder / "config.json" if folder is not None else _cached_config(name, plan.model.revision)
    try:
        config = json.loads(path.read_bytes()) if path is not None else None
    except (OSError, ValueError, RecursionError):  # whoever opens the checkpoint says so
        return None
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _cached_config(name: str, revision: str | None) -> Path | None:
    if revision is None or name.count("/") != 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json", revision=revision)
    except (HFValidationError, OSError, ValueError):
        return None
    return Path(path) if isinstance(path, str) else None


def write(
    plan: Plan, exported: Export, folder: Path, strip: bool, model_id: str | None, reporter: Reporter
) -> Path:
    """Writes config.json with the settings to ``folder``, on request with the stripped weights; its path.

    Raises:
        IndexcacheError: see ``write_config`` and ``write_stripped``.
        ModelError: the checkpoint cannot be found.
    """
    from ..dsa.checkpoint.config import Trust
    from .job.planned import open_planned

    planned = open_planned(plan, model_id, Trust())
    if strip:
        return write_stripped(planned, exported, folder, reporter)
    return write_config(planned, exported, folder)


def write_config(planned: PlannedModel, exported: Export, folder: Path) -> Path:
    """Writes the plan's config.json with the export's settings to ``folder``, and nothing else; its path.

    Raises:
        ExportError: the engine does not read them there.
        IdentityError: the config.json found is not the plan's.
        OutputError: there is a config.json already, or none can be written.
    """
    from ..dsa.checkpoint.config import config_sha256

    plan, checkpoint = planned.plan, planned.checkpoint
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


def write_stripped(planned: PlannedModel, exported: Export, folder: Path, reporter: Reporter) -> Path:
    """Writes the plan's checkpoint to ``folder``, its shared layers' indexer weights left out; its path.

    Multi-token-prediction layers keep theirs.

    Raises:
        ExportError: the plan shares no layer.
        IdentityError: the checkpoint found is not the plan's.
        ModelError: it is not in a local folder, or cannot be read.
        OutputError: the folder cannot be written; nothing is left of it.
    """
    from ..dsa.checkpoint.strip import strip_indexers

    plan, checkpoint = planned.plan, planned.checkpoint
    if checkpoint.revision is not None:
        raise ModelError(
            f"{checkpoint.model_id!r} is on the hub, and weights are stripped from a local folder only",
            hint=f"hf download {checkpoint.model_id} --revision {checkpoint.revision} --local-dir FOLDER, then "
            "give --model FOLDER",
        )
    planned.check_weights(reporter)
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
        # The plan of a distilled checkpoint stands in its folder, and is not that of the stripped one.
        () if plan.distilled is None else PLAN_FILES,
    )
    reporter.say(f"left out {stripped.tensors} tensors of {stripped.size:,} bytes")
    return folder


def _config(checkpoint: Checkpoint, exported: Export) -> str:
    document = json.loads((checkpoint.folder / "config.json").read_bytes())
    return json.dumps(edited_config(document, exported), indent=2, ensure_ascii=False) + "\n"


def show(plan: Plan, exported: Export, output: Path | None, stripped: bool, as_json: bool) -> None:
    """Prints the settings on stdout; warnings, the evidence, and what was written, on stderr."""
    for remark in exported.warnings:
        link = "" if remark.severity == "note" else f" [{PAGE}#{warning_section(__name__)}]"
        typer.echo(wrapped(f"{remark.severity}: {remark.text}{link}", sys.stderr), err=True)
    if exported.evidence:
        typer.echo(wrapped(f"evidence: {exported.evidence}", sys.stderr), err=True)
    if output:
        both = ": put it in the checkpoint's place, or paste the settings; not both are needed"
        typer.echo(f"wrote {output}{'' if stripped else both}", err=True)
    print_result(export_document(plan, exported, output) if as_json else exported.paste.rstrip())


def export_document(plan: Plan, exported: Export, output: Path | None) -> dict[str, Any]:
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
        "evidence": exported.evidence,
        "written": output and str(output),
    }
