"""What is pasted: an engine's command, script or document, filled in for one plan."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ...errors import ExportError
from ...system.files import find_path
from ..plan.schema import Plan
from .remarks import note_applies
from .support import Engine, Note, Serving, Support
from .versions import judged_version, parsed_version, touches


def paste_text(
    engine: Engine, support: Support, plan: Plan, serving: Serving, settings: dict[str, object], pattern: str
) -> str:
    """The engine's paste with its fields filled in.

    Args:
        engine: to paste it into.
        support: of the plan's family.
        plan: names the checkpoint, where ``serving`` does not.
        serving: how the plan is to be served.
        settings: the settings as data.
        pattern: the pattern that they spell.

    Raises:
        ExportError: a model or a revision that a command line would take for an option.
    """
    model = serving.model or plan.model.id
    if not serving.elsewhere and (serving.model or plan.model.revision is None):
        model = _absolute(model)
    stage_layers = ",".join(map(str, serving.pp_layers or ()))
    stages = serving.pp_size or len(serving.pp_layers or ())
    pipeline, revision = engine.pipeline, None if serving.model else plan.model.revision
    for word in (model, revision or ""):
        if word.startswith("-"):
            raise ExportError(
                f"{word!r} would be read as an option on a command line",
                hint="give the model with --model, as ./NAME",
            )
    multimodal = plan.model.architecture.endswith("ForConditionalGeneration") or "text_config" in settings
    return (support.paste or engine.paste).format(
        model=shlex.quote(model),
        model_name=repr(model),
        revision=engine.revision.format(
            plain=revision, quoted=shlex.quote(revision), json=json.dumps(revision, ensure_ascii=False)
        )
        if revision
        else "",
        stages=pipeline.flag.format(size=stages) if stages else "",
        detour=_detour(engine, support, plan, serving),
        partition=pipeline.partition.format(sizes=stage_layers) if stage_layers else "",
        settings=shlex.quote(json.dumps(settings)),
        json=json.dumps(settings, indent=2),
        arguments="".join(f"    {name}={value!r},\n" for name, value in settings.items()),
        pattern=pattern,
        loader="AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM",
    )


def _absolute(model: str) -> str:
    """A local folder's path from the root, since nobody knows where the command is pasted; else ``model``."""
    path = find_path(model)
    local = path or (Path(model) if model.startswith((".", "/", "~")) else None)
    return model if local is None else str(local.expanduser().absolute())


def _detour(engine: Engine, support: Support, plan: Plan, serving: Serving) -> str:
    """The option that makes the engine load a checkpoint it would reject; "" where it has none or needs none."""
    if support.detour is None:
        return ""
    version = judged_version(engine, parsed_version(engine, serving.version))
    rejected = note_applies(Note("", when="rejected"), plan, serving)
    return support.detour.text if rejected and touches(version, support.detour.versions) else ""
