"""What is known of an engine: keys, families, versions, pipeline stages, traps; and how a plan is to be served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..stages import Split

Severity = Literal["error", "warning", "note"]
# Ways of serving that `export` is not told of: what is said of them is said of every plan that shares.
Trap = Literal["context parallelism", "speculative decoding", "two-batch overlap"]


@dataclass(frozen=True)
class Detour:
    """What is pasted too, so that versions which reject the weights of shared indexers load them.

    Args:
        text: the option.
        versions: those that need it; it is pasted as well while the version is not known.
    """

    text: str
    versions: str


@dataclass(frozen=True)
class Key:
    """A setting: its name, what it holds, and the versions that read it ("" for all)."""

    name: str
    holds: Literal["pattern", "types", "true"]
    versions: str = ""


PATTERN_KEY, TYPES_KEY = Key("index_topk_pattern", "pattern"), Key("indexer_types", "types")
USE_KEY = Key("use_index_cache", "true")


@dataclass(frozen=True)
class Note:
    """What the user should know: for these versions, or while the version is not known.

    Args:
        text: the note.
        versions: as in ``==0.24.* | >=0.29,<=0.33.0``; "" for all.
        when: "rejected", where the checkpoint holds indexer weights that the plan has no use for;
            "shipped", where layers share in the checkpoint itself; "staged", where pipeline stages were asked for;
            a way of serving, which the text then starts with, where any layer shares.
        severity: "error" where a version that is known not to work was named; see ``export.Remark``.
    """

    text: str
    versions: str = ""
    when: Literal["always", "rejected", "shipped", "staged"] | Trap = "always"
    severity: Severity = "note"


@dataclass(frozen=True)
class Need:
    """A key of config.json that an engine goes by, and transformers does not.

    transformers computes one thing whatever the key says, writes none of its own, and keeps one that it was loaded
    with. So a checkpoint that was made with transformers lacks it.

    Args:
        name: the key.
        value: what transformers computes.
        missing: what the engine takes where the key is not there; None where it does not start.
        effect: what it does with that, or with another value.
        routed: it decides only where layers route to experts.
        reached: the pasted settings reach it; else config.json itself has to say it.
    """

    name: str
    value: bool | int | str
    missing: bool | int | str | None
    effect: str
    routed: bool = False
    reached: bool = True


# The indexer's rotary embedding: transformers has one way in each family, and engines ask config.json.
IN_PAIRS = Need(
    "indexer_rope_interleave",
    True,
    False,
    "rotates the indexer's queries and keys by halves, where transformers does so in pairs: another model",
)
BY_HALVES = Need(
    "indexer_rope_interleave",
    False,
    False,
    "rotates the indexer's queries and keys in pairs, where transformers does so by halves: another model",
)


@dataclass(frozen=True)
class Support:
    """How an engine takes a pattern in one family.

    Args:
        keys: what is set.
        versions: those that share in this family.
        letters: what a letter of the pattern stands for, decoder layers or sites.
        section: where it reads the keys of a multimodal config.json: nowhere below "top", in "text_config", or
            in "either" place.
        only_behind_full: a full layer hands its selection to the very next layer and no further.
        paste: what to paste, where it is not as in the engine's other families.
        stripped: versions that load a checkpoint without the shared layers' indexers; None if none is known to.
        detour: past the rejection of those indexers, where there is one.
        needs: keys of config.json without which it computes something else than was searched, or nothing.
        notes: of this family.
    """

    keys: tuple[Key, ...]
    versions: str = ""
    letters: Literal["layers", "sites"] = "layers"
    section: Literal["top", "text_config", "either"] = "top"
    only_behind_full: bool = False
    paste: str | None = None
    stripped: str | None = ""
    detour: Detour | None = None
    needs: tuple[Need, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """An engine's pipeline stages.

    Args:
        hands_over_since: the version from which on a stage hands its selection on; "" for all, None for none.
        split: how layers are spread over stages by number alone; None where it is not known.
        flag: asks for ``{size}`` stages.
        partition: asks for stages of ``{sizes}`` layers, beside the flag.
        otherwise: what becomes of a stage that waits for a selection.
        unsure_since: the version from which on it may hand its selection on, depending on how it is run.
    """

    hands_over_since: str | None = None
    split: Split | None = None
    flag: str = ""
    partition: str = ""
    otherwise: str = ""
    unsure_since: str | None = None


@dataclass(frozen=True)
class Engine:
    """A serving or training engine.

    Args:
        name: as given to ``--to``.
        title: as its makers write it.
        paste: what to paste, with fields in braces.
        families: those it shares in.
        looked_at: the newest version read; "" where that was no numbered one.
        place: the sections that its settings stand in.
        revision: how it is told a commit of the hub: plain, quoted for the shell, or as JSON; "" if not known.
        config: it reads the keys in config.json too.
        pipeline: its stages.
        refused: families that it is known not to share in, and why.
        notes: of all families.
    """

    name: str
    title: str
    paste: str
    families: Mapping[str, Support]
    looked_at: str = ""
    place: tuple[str, ...] = ()
    revision: str = ""
    config: bool = True
    pipeline: Pipeline = Pipeline()
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Serving:
    """How a plan is to be served, as far as the settings depend on it.

    Args:
        version: of the engine; None where it is not known.
        pp_size: pipeline stages, split by the engine's own rule.
        pp_layers: instead, the decoder layers of each stage.
        model: where the checkpoint is, if not where the plan says.
        stripped: it holds no indexer weights of shared layers.
        elsewhere: on another machine, so that the checkpoint's name is left as the plan has it.
        config: the text model's settings in its config.json; None where that is not here.
        edited: a copy of config.json with the settings is written too.
    """

    version: str | None = None
    pp_size: int | None = None
    pp_layers: Sequence[int] | None = None
    model: str | None = None
    stripped: bool = False
    elsewhere: bool = False
    config: Mapping[str, object] | None = None
    edited: bool = False
