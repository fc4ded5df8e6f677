"""Settings, ready to paste, that make an engine run a plan's pattern."""

from __future__ import annotations

import json
from dataclasses import dataclass

from packaging.version import Version

from ...errors import ExportError
from ...pattern import SHARED, indexer_types, layer_ranges
from ..plan.schema import Plan
from .engines import BARE, ENGINES, FAMILIES, WITHOUT_PATTERNS
from .needs import need_remarks, unmet, values
from .paste import paste_text
from .remarks import Remark, remarks_on, stage_remarks, worst_first
from .support import Engine, Serving, Support
from .versions import in_range, parsed_version, range_in_words

# Instead of an engine's name, for the bare pattern.
BARE_NAMES = ("none", "pattern")
# Every key that says which layers share; a frequency is never written, as engines read it differently.
_SHARING_KEYS = ("index_topk_pattern", "indexer_types", "index_topk_freq", "index_skip_topk_offset")


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
    version = parsed_version(known, serving.version)
    support = _support(known, plan, version)
    _check_reach(known, support, plan)
    if serving.stripped:
        _check_stripped(known, support, plan, version)
    by_site = support.letters == "sites"
    pattern = plan.result.pattern if by_site else plan.result.layer_pattern
    holds: dict[str, object] = {"pattern": pattern, "types": indexer_types(pattern), "true": True}
    keys = {key.name: holds[key.holds] for key in support.keys if in_range(version, key.versions)}
    needs = unmet(support, serving)
    settings: dict[str, object] = keys | values(need for need in needs if need.reached)
    for section in reversed((*known.place, *_section(known, support, plan))):
        settings = {section: settings}
    return Export(
        engine=known.name,
        settings=settings,
        paste=paste_text(known, support, plan, serving, settings, pattern),
        warnings=worst_first(
            [*need_remarks(known, support, serving), *remarks_on(known, support, plan, serving, version)]
        ),
        pattern=pattern,
        pattern_layers=tuple(plan.model.site_layers if by_site else range(plan.model.layers)),
        config=keys | values(needs) if known.config else None,
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
        warnings=worst_first(stage_remarks(BARE, Support(()), plan, serving, None)),
        pattern=result.layer_pattern,
        pattern_layers=tuple(range(model.layers)),
        config=None,
    )


def _served(plan: Plan) -> list[tuple[int, int]]:
    """Each shared site with the full one whose selection it uses."""
    return [(site, source) for site, source in enumerate(plan.pattern.sources()) if site != source]


def check_written(exported: Export) -> dict[str, object]:
    """The keys that are written to config.json.

    Raises:
        ExportError: the engine does not take its settings from there.
    """
    if exported.config is None:
        raise ExportError(
            f"{exported.engine} does not take its settings from config.json", hint="paste what export prints"
        )
    return exported.config


def edited_config(config: dict[str, object], exported: Export) -> dict[str, object]:
    """config.json with an export's keys, and no other key about sharing that says something else.

    They stand where the text model's settings do: under text_config where there is one.

    Raises:
        ExportError: the engine does not take its settings from config.json.
    """
    keys = check_written(exported)
    section = config.get("text_config")
    if isinstance(section, dict):
        return {**config, "text_config": edited_config(section, exported)}
    # A sharing key that stands there already says the new pattern too; a frequency is taken out.
    sharing: dict[str, object] = {
        "index_topk_pattern": exported.pattern,
        "indexer_types": indexer_types(exported.pattern),
    } | keys
    edited = {
        name: sharing.get(name, value)
        for name, value in config.items()
        if name in sharing or name not in _SHARING_KEYS
    }
    return edited | keys


def _engine(name: str) -> Engine:
    name = name.lower()
    if name in WITHOUT_PATTERNS:
        raise ExportError(f"{name} cannot run a plan: it {WITHOUT_PATTERNS[name]}", hint=_give_one_of())
    if name not in ENGINES:
        raise ExportError(f"engine {name!r} is not known", hint=_give_one_of())
    return ENGINES[name]


def _give_one_of() -> str:
    return f"give one of {', '.join(ENGINES)}, or none for the bare pattern"


def _family(plan: Plan) -> str:
    """transformers calls the text model of a multimodal family by the family's name with _text."""
    return plan.model.model_type.removesuffix("_text")


def _support(engine: Engine, plan: Plan, version: Version | None) -> Support:
    family = _family(plan)
    if family not in engine.families:
        reason = engine.refused.get(family, "it is not known to")
        if family not in FAMILIES:
            reason = "that is no family with searchable indexers"
        able = [other.name for other in ENGINES.values() if family in other.families]
        raise ExportError(
            f"{engine.title} cannot share indexers in {family}: {reason}",
            hint=(f"export for {', '.join(able)}" if able else "no engine is known that can")
            + "; --to none prints the bare pattern",
        )
    support = engine.families[family]
    if not in_range(version, support.versions):
        raise ExportError(
            f"{engine.title} {version} cannot share indexers in {family}",
            hint=f"it needs {range_in_words(support.versions)}",
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
    if not in_range(version, support.stripped):
        raise ExportError(
            f"{engine.title} {version} loads the indexers of shared layers too",
            hint=f"leave --strip-weights out, or use {range_in_words(support.stripped)}",
        )
