"""Settings, ready to paste, that make an engine run a plan's pattern."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ...errors import ExportError, SettingError
from ...pattern import SHARED, indexer_types, layer_ranges
from ...system.files import find_path
from ..plan.schema import Plan
from ..stages import split_before_last, stage_sizes, stage_starts
from .engines import BARE, ENGINES, FAMILIES, WITHOUT_PATTERNS
from .support import Engine, Note, Severity, Support

# Instead of an engine's name, for the bare pattern.
BARE_NAMES = ("none", "pattern")
# Every key that says which layers share; a frequency is never written, as engines read it differently.
_SHARING_KEYS = ("index_topk_pattern", "indexer_types", "index_topk_freq", "index_skip_topk_offset")


@dataclass(frozen=True)
class Serving:
    """How a plan is to be served, as far as the settings depend on it.

    Args:
        version: of the engine; None where it is not known.
        pp_size: pipeline stages, split by the engine's own rule.
        pp_layers: instead, the decoder layers of each stage.
        model: where the checkpoint is, if not where the plan says.
        stripped: it holds no indexer weights of shared layers.
    """

    version: str | None = None
    pp_size: int | None = None
    pp_layers: Sequence[int] | None = None
    model: str | None = None
    stripped: bool = False


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


@dataclass(frozen=True)
class Export:
    """One engine's settings.

    Args:
        engine: its name.
        settings: the settings as data.
        paste: what to paste.
        warnings: what the engine does not check and the user should know, the worst first.
        pattern: the pattern that the settings spell.
        pattern_layers: the decoder layers that its letters stand for.
        config: the keys as they stand in config.json; None where the engine does not take them from there.
    """

    engine: str
    settings: dict[str, object]
    paste: str
    warnings: tuple[Remark, ...]
    pattern: str
    pattern_layers: tuple[int, ...]
    config: dict[str, object] | None


def export(plan: Plan, engine: str, serving: Serving = Serving()) -> Export:
    """The settings for ``engine``; always an explicit pattern. ``none`` is for an engine of one's own.

    Raises:
        ExportError: an engine that is not known, or one that cannot share in this family or at this version.
        SettingError: a version or stages that cannot be.
    """
    if engine.lower() in BARE_NAMES:
        return _bare(plan, serving)
    known = _engine(engine)
    version = _version(known, serving.version)
    support = _support(known, plan, version)
    _check_reach(known, support, plan)
    if serving.stripped:
        _check_stripped(known, support, plan, version)
    by_site = support.letters == "sites"
    pattern = plan.result.pattern if by_site else plan.result.layer_pattern
    holds: dict[str, object] = {"pattern": pattern, "types": indexer_types(pattern), "true": True}
    keys = {key.name: holds[key.holds] for key in support.keys if _in_range(version, key.versions)}
    settings: dict[str, object] = dict(keys)
    for section in reversed((*known.place, *_section(known, support, plan))):
        settings = {section: settings}
    return Export(
        engine=known.name,
        settings=settings,
        paste=_paste(known, support, plan, serving, settings, pattern),
        warnings=_worst_first(_remarks(known, support, plan, serving, version)),
        pattern=pattern,
        pattern_layers=tuple(plan.model.site_layers if by_site else range(plan.model.layers)),
        config=keys if known.config else None,
    )


def check_servable(exported: Export) -> None:
    """Refuses settings with which the engine is known to fail.

    Raises:
        ExportError: says how.
    """
    failing = next((remark.text for remark in exported.warnings if remark.severity == "error"), None)
    if failing is not None:
        raise ExportError(f"{exported.engine}: {failing}", hint="--force prints the settings all the same")


def _bare(plan: Plan, serving: Serving) -> Export:
    """The pattern over layers and over sites, for a program that no table knows."""
    result, model = plan.result, plan.model
    letters = enumerate(result.layer_pattern)
    settings: dict[str, object] = {
        "model": model.id,
        "model_type": model.model_type,
        "layers": model.layers,
        "layer_pattern": result.layer_pattern,
        "shared_layers": [layer for layer, letter in letters if letter == SHARED],
        "site_layers": list(model.site_layers),
        "site_pattern": result.pattern,
        "kept_layers": [model.site_layers[site] for site in plan.pattern.full],
        "served_by": {str(model.site_layers[site]): model.site_layers[source] for site, source in _served(plan)},
    }
    if serving.stripped or serving.version:
        raise ExportError("the bare pattern is for no engine that is known", hint="name one with --to")
    return Export(
        engine=BARE.name,
        settings=settings,
        paste=json.dumps(settings, indent=2) + "\n",
        warnings=_worst_first(_stage_remarks(BARE, Support(()), plan, serving, None)),
        pattern=result.layer_pattern,
        pattern_layers=tuple(range(model.layers)),
        config=None,
    )


def _served(plan: Plan) -> list[tuple[int, int]]:
    """Each shared site with the full one whose selection it uses."""
    return [(site, source) for site, source in enumerate(plan.pattern.sources()) if site != source]


def _worst_first(remarks: Sequence[Remark]) -> tuple[Remark, ...]:
    return tuple(sorted(remarks, key=lambda remark: ("error", "warning", "note").index(remark.severity)))


def edited_config(config: dict[str, object], exported: Export) -> dict[str, object]:
    """config.json with an export's keys, and no other key about sharing that says something else.

    They stand where the text model's settings do: under text_config where there is one.

    Raises:
        ExportError: the engine does not take its settings from config.json.
    """
    if exported.config is None:
        raise ExportError(
            f"{exported.engine} does not take its settings from config.json", hint="paste what export prints"
        )
    section = config.get("text_config")
    if isinstance(section, dict):
        return {**config, "text_config": edited_config(section, exported)}
    ours: dict[str, object] = {
        "index_topk_pattern": exported.pattern,
        "indexer_types": indexer_types(exported.pattern),
    } | exported.config
    kept = {
        name: ours.get(name, value) for name, value in config.items() if name in ours or name not in _SHARING_KEYS
    }
    return kept | exported.config


def _engine(name: str) -> Engine:
    name = name.lower()
    if name in WITHOUT_PATTERNS:
        raise ExportError(f"{name} cannot run a plan: it {WITHOUT_PATTERNS[name]}", hint=_give_one_of())
    if name not in ENGINES:
        raise ExportError(f"engine {name!r} is not known", hint=_give_one_of())
    return ENGINES[name]


def _give_one_of() -> str:
    return f"give one of {', '.join(ENGINES)}, or none for the bare pattern"


def _version(engine: Engine, text: str | None) -> Version | None:
    if text is None or not _depends_on_version(engine):
        return None
    try:
        return Version(text)
    except InvalidVersion:
        raise SettingError(
            f"{text!r} is no version of {engine.title} that can be looked up",
            hint="give a release such as 0.33.0, or leave --engine-version out",
        ) from None


def _depends_on_version(engine: Engine) -> bool:
    return any(support.versions for support in engine.families.values())


def _in_range(version: Version | None, ranges: str) -> bool:
    """Whether ``version`` is in one of the ranges, or is not known."""
    return version is None or any(
        SpecifierSet(each).contains(version, prereleases=True) for each in ranges.split("|")
    )


def _touches(version: Version | None, ranges: str) -> bool:
    """As ``_in_range``; a candidate, a development build or a rebuild of a release is taken for that release."""
    return _in_range(version, ranges) or (version is not None and _in_range(Version(version.base_version), ranges))


def _looked_at(engine: Engine, version: Version | None) -> Version | None:
    """``version``, or the last one looked at where it is newer: what held there is taken to hold."""
    return Version(engine.looked_at) if version and _is_newer(engine, version) else version


def _is_newer(engine: Engine, version: Version) -> bool:
    return bool(engine.looked_at) and Version(version.base_version) > Version(
        Version(engine.looked_at).base_version
    )


def _in_words(versions: str) -> str:
    return f"{versions[2:]} or later" if versions.startswith(">=") else f"a version after {versions[1:]}"


def _family(plan: Plan) -> str:
    """transformers calls the text model of a multimodal family by the family's name with _text."""
    return plan.model.model_type.removesuffix("_text")


def _support(engine: Engine, plan: Plan, version: Version | None) -> Support:
    family = _family(plan)
    if family not in engine.families:
        reason = engine.refused.get(family, "it is not known to")
        if family not in FAMILIES:
            reason = "that is no family with searchable indexers"
        able = [each.name for each in ENGINES.values() if family in each.families]
        raise ExportError(
            f"{engine.title} cannot share indexers in {family}: {reason}",
            hint=(f"export for {', '.join(able)}" if able else "no engine is known that can")
            + "; --to none prints the bare pattern",
        )
    support = engine.families[family]
    if not _in_range(version, support.versions):
        raise ExportError(
            f"{engine.title} {version} cannot share indexers in {family}",
            hint=f"it needs {_in_words(support.versions)}",
        )
    return support


def _section(engine: Engine, support: Support, plan: Plan) -> tuple[str, ...]:
    """Where in the model's config the keys belong: under text_config, or at the top."""
    nested = plan.model.nested_config
    if nested is None:
        nested = support.section == "text_config"
    if nested and support.section == "top":
        raise ExportError(
            f"the checkpoint's config.json keeps the text model under text_config, where {engine.title} is not "
            "known to look for the keys",
            hint="there is no way round it in this engine",
        )
    return ("text_config",) if nested and support.section == "text_config" else ()


def _check_reach(engine: Engine, support: Support, plan: Plan) -> None:
    """Refuses a plan whose selections an engine would lose on the way to the layers that share them."""
    letters = plan.result.layer_pattern
    indexed = {*plan.model.site_layers, *plan.model.shared_layers}
    lost = [
        layer
        for layer in sorted(indexed)
        if letters[layer] == SHARED and (layer - 1 not in indexed or letters[layer - 1] == SHARED)
    ]
    if support.only_behind_full and lost:
        raise ExportError(
            f"{engine.title} hands a selection to the very next layer only, and in this plan layers "
            f"{layer_ranges(lost)} stand farther behind their full one",
            hint="there is no way round it in this engine",
        )


def _check_stripped(engine: Engine, support: Support, plan: Plan, version: Version | None) -> None:
    if support.stripped is None:
        raise ExportError(
            f"{engine.title} is not known to load {_family(plan)} without the shared layers' indexers",
            hint="leave --strip-weights out",
        )
    if not _in_range(version, support.stripped):
        raise ExportError(
            f"{engine.title} {version} loads the indexers of shared layers too",
            hint=f"leave --strip-weights out, or use {_in_words(support.stripped)}",
        )


def _absolute(model: str) -> str:
    """A local folder's path from the root, since nobody knows where the command is pasted; else ``model``."""
    path = find_path(model)
    written = path or (Path(model) if model.startswith((".", "/", "~")) else None)
    return model if written is None else str(written.expanduser().absolute())


def _needs_detour(engine: Engine, support: Support, plan: Plan, serving: Serving) -> bool:
    version = _looked_at(engine, _version(engine, serving.version))
    rejected = Note("", when="rejected")
    return (
        support.detour is not None
        and _applies(rejected, plan, serving)
        and _touches(version, support.detour.versions)
    )


def _paste(
    engine: Engine, support: Support, plan: Plan, serving: Serving, settings: dict[str, object], pattern: str
) -> str:
    model = serving.model or plan.model.id
    if serving.model or plan.model.revision is None:
        model = _absolute(model)
    sizes = ",".join(map(str, serving.pp_layers or ()))
    count = serving.pp_size or len(serving.pp_layers or ())
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
        stages=pipeline.flag.format(size=count) if count else "",
        detour=support.detour.text if support.detour and _needs_detour(engine, support, plan, serving) else "",
        partition=pipeline.partition.format(sizes=sizes) if sizes else "",
        settings=shlex.quote(json.dumps(settings)),
        json=json.dumps(settings, indent=2),
        arguments="".join(f"    {name}={value!r},\n" for name, value in settings.items()),
        pattern=pattern,
        loader="AutoModelForImageTextToText" if multimodal else "AutoModelForCausalLM",
    )


def _remarks(
    engine: Engine, support: Support, plan: Plan, serving: Serving, version: Version | None
) -> list[Remark]:
    told = _version_remarks(engine, support, serving, version)
    held, sure = _looked_at(engine, version), version is not None and not _is_newer(engine, version)
    if support.letters == "sites":
        told.append(
            f"a letter of this pattern stands for one of the {len(plan.model.site_layers)} layers that own an "
            f"indexer ({layer_ranges(plan.model.site_layers)}), not for a decoder layer; over all "
            f"{plan.model.layers} it would be {plan.result.layer_pattern}"
        )
    elif plan.result.pattern != plan.result.layer_pattern:
        told.append(
            f"a letter of this pattern stands for a decoder layer; over the {len(plan.model.site_layers)} that "
            f"own an indexer ({layer_ranges(plan.model.site_layers)}) it would be {plan.result.pattern}"
        )
    local = plan.model.revision is None and serving.model is None and "{model" in (support.paste or engine.paste)
    gone = local and find_path(plan.model.id) is None
    if plan.model.revision and not engine.revision and serving.model is None:
        told.append(f"the plan is for commit {plan.model.revision} of {plan.model.id}: serve that one")
    remarks = [Remark("note", text) for text in told]
    if gone:
        text = f"the plan's checkpoint {plan.model.id!r} is not here: say where it is with --model"
        remarks.append(Remark("warning", text))
    for note in (*support.notes, *engine.notes):
        if _applies(note, plan, serving) and _touches(held, note.versions):
            milder: Severity = "warning" if note.severity == "error" and not sure else note.severity
            remarks.append(Remark(milder, note.text))
    return remarks + _stage_remarks(engine, support, plan, serving, held)


def _version_remarks(engine: Engine, support: Support, serving: Serving, version: Version | None) -> list[str]:
    told = []
    if support.versions and version is None:
        told.append(f"needs {engine.title} {_in_words(support.versions)}")
    if serving.version and not _depends_on_version(engine):
        told.append(f"nothing is known here of versions of {engine.title}")
    if version and _is_newer(engine, version):
        told.append(f"{engine.title} {version} is newer than {engine.looked_at}, the last that was looked at")
    if serving.stripped and support.stripped and version is None:
        told.append(f"without the shared layers' indexers needs {engine.title} {_in_words(support.stripped)}")
    return told


def _applies(note: Note, plan: Plan, serving: Serving) -> bool:
    if note.when == "rejected":
        return SHARED in plan.result.pattern and not serving.stripped
    return note.when == "always" or bool(plan.model.shared_layers)


def _stage_remarks(
    engine: Engine, support: Support, plan: Plan, serving: Serving, version: Version | None
) -> list[Remark]:
    """Where a pipeline stage would start on a layer that waits for a selection from the stage before."""
    pipeline, told = engine.pipeline, list[Remark]()
    split = pipeline.split or split_before_last
    sizes = stage_sizes(plan.model.layers, serving.pp_size, serving.pp_layers, split)
    since = None if support.only_behind_full else pipeline.hands_over_since
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
        told.append(Remark("note", text))
    if serving.pp_size is not None and pipeline.split is None:
        text = f"how {engine.title} splits layers is not known; stages of {spelled} were taken"
        told.append(Remark("warning", text))
    indexed = [*plan.model.site_layers, *plan.model.shared_layers]
    waiting = [layer for layer in stage_starts(sizes, indexed) if plan.result.layer_pattern[layer] == SHARED]
    if waiting:
        text = (
            f"of the stages {spelled}, those that start with layers {layer_ranges(waiting)} get no selection to "
            f"share{before}{pipeline.otherwise}: search with --pp-layers {spelled}"
        )
        # A newer release may hand it over, or the engine is not known at all.
        told.append(Remark("warning" if before or engine is BARE else "error", text))
    return told
