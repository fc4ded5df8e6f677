"""Remarks on an engine's settings: what it does not check, which versions read them, which stages fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from packaging.version import Version

from ...pattern import SHARED, layer_ranges
from ...system.files import find_path
from ..plan.schema import Plan
from ..stages import split_before_last, stage_sizes, stage_starts
from .engines import BARE
from .support import Engine, Note, Serving, Severity, Support, Trap
from .versions import depends_on_version, is_newer, judged_version, range_in_words, touches

TRAPS = get_args(Trap)


@dataclass(frozen=True)
class Remark:
    """What the user should know of the settings.

    Args:
        severity: "error", where the engine is known to fail with them or to compute something else; "warning",
            where it may; "note" for the rest.
        text: the remark.
    """

    severity: Severity
    text: str


def remarks_on(
    engine: Engine, support: Support, plan: Plan, serving: Serving, version: Version | None
) -> list[Remark]:
    """All remarks on the settings of ``engine`` at ``version``, None where that is not known."""
    texts = _version_remarks(engine, support, serving, version)
    judged = judged_version(engine, version)
    if support.letters == "sites":
        texts.append(
            f"a letter of this pattern stands for one of the {len(plan.model.site_layers)} layers that own an "
            f"indexer ({layer_ranges(plan.model.site_layers)}), not for a decoder layer; over all "
            f"{plan.model.layers} it would be {plan.result.layer_pattern}"
        )
    elif plan.result.pattern != plan.result.layer_pattern:
        texts.append(
            f"a letter of this pattern stands for a decoder layer; over the {len(plan.model.site_layers)} that "
            f"own an indexer ({layer_ranges(plan.model.site_layers)}) it would be {plan.result.pattern}"
        )
    names_model = "{model" in (support.paste or engine.paste)
    local_checkpoint = names_model and plan.model.revision is None and serving.model is None
    local_checkpoint = local_checkpoint and not serving.elsewhere
    if plan.model.revision and not engine.revision and serving.model is None:
        texts.append(f"the plan is for commit {plan.model.revision} of {plan.model.id}: serve that one")
    remarks = [Remark("note", text) for text in texts]
    if local_checkpoint and find_path(plan.model.id) is None:
        text = f"the plan's checkpoint {plan.model.id!r} is not here: say where it is with --model"
        remarks.append(Remark("warning", text))
    for note in (*support.notes, *engine.notes):
        if note_applies(note, plan, serving) and touches(judged, note.versions):
            remarks.append(Remark(_severity(note, engine, support, version), _spelled(note)))
    return remarks + stage_remarks(engine, support, plan, serving, version)


def _spelled(note: Note) -> str:
    return f"with {note.when}: {note.text}" if note.when in TRAPS else note.text


def _severity(note: Note, engine: Engine, support: Support, version: Version | None) -> Severity:
    """How severe what ``note`` says is at ``version``: an engine is said to fail only where it surely does.

    Not at a release that was never looked at; not where the version is not known, unless all of them fail; and not
    where the paste takes a way round.
    """
    if note.severity != "error":
        return note.severity
    fails = not note.versions if version is None else not is_newer(engine, version)
    detour = support.detour if note.when == "rejected" else None
    avoided = detour is not None and touches(judged_version(engine, version), detour.versions)
    return "error" if fails and not avoided else "warning"


def _version_remarks(engine: Engine, support: Support, serving: Serving, version: Version | None) -> list[str]:
    texts = []
    if support.versions and version is None:
        texts.append(f"needs {engine.title} {range_in_words(support.versions)}")
    if serving.version and not depends_on_version(engine):
        texts.append(f"nothing is known here of versions of {engine.title}")
    if version and is_newer(engine, version):
        texts.append(f"{engine.title} {version} is newer than {engine.looked_at}, the last that was looked at")
    if serving.stripped and support.stripped and version is None:
        texts.append(
            f"without the shared layers' indexers needs {engine.title} {range_in_words(support.stripped)}"
        )
    return texts


def note_applies(note: Note, plan: Plan, serving: Serving) -> bool:
    """Whether what ``note`` is about is the case in this plan, whatever the version."""
    if note.when == "rejected":
        return SHARED in plan.result.pattern and not serving.stripped
    if note.when == "staged":
        return bool(serving.pp_size or serving.pp_layers)
    if note.when in TRAPS:
        return SHARED in plan.result.layer_pattern
    return note.when == "always" or bool(plan.model.shared_layers)


def stage_remarks(
    engine: Engine, support: Support, plan: Plan, serving: Serving, version: Version | None
) -> list[Remark]:
    """Where a pipeline stage would start on a layer that waits for a selection from the stage before."""
    newer = version is not None and is_newer(engine, version)
    version = judged_version(engine, version)
    pipeline, remarks = engine.pipeline, list[Remark]()
    split = pipeline.split or split_before_last
    sizes = stage_sizes(plan.model.layers, serving.pp_size, serving.pp_layers, split)
    since = None if support.only_behind_full else pipeline.hands_over_since
    # "" hands a selection over in every version, None in none.
    if since == "" or (since and version and version >= Version(since)):
        return []
    before = f" before {since}" if since and version is None else ""
    if sizes is None:
        text = (
            f"with pipeline parallelism{before} the first indexed layer of every stage must be F: say the stages "
            "with --pp-size or --pp-layers to have it checked"
        )
        return [Remark("note", text)]
    spelled = ",".join(map(str, sizes))
    if not (pipeline.partition if serving.pp_layers else pipeline.flag):
        text = f"these settings do not tell {engine.title} of pipeline parallelism: set it there yourself"
        remarks.append(Remark("note", text))
    if serving.pp_size is not None and pipeline.split is None:
        text = f"how {engine.title} splits layers is not known; stages of {spelled} were taken"
        remarks.append(Remark("warning", text))
    indexed = [*plan.model.site_layers, *plan.model.shared_layers]
    waiting = [layer for layer in stage_starts(sizes, indexed) if plan.result.layer_pattern[layer] == SHARED]
    if waiting:
        text = (
            f"of the stages {spelled}, those that start with layers {layer_ranges(waiting)} get no selection to "
            f"share{before}{pipeline.otherwise}: search with --pp-layers {spelled}"
        )
        # A newer release may hand it over, or the engine is not known at all.
        unsure = pipeline.unsure_since and version and version >= Version(pipeline.unsure_since)
        remarks.append(Remark("warning" if before or newer or unsure or engine is BARE else "error", text))
    return remarks


def worst_first(remarks: Sequence[Remark]) -> tuple[Remark, ...]:
    """The remarks by severity; equally severe ones stay in their order."""
    return tuple(sorted(remarks, key=lambda remark: ("error", "warning", "note").index(remark.severity)))
