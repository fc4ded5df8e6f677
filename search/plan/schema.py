"""What a plan says: what was searched, on what, what was measured at every step, which pattern came out."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...pattern import Pattern
from ..gate import GateKind

SCHEMA: Final = 3
CHECKSUM = "checksum"

# No loss, share or time comes near a billion; larger ones would break figures.
LARGEST_DELTA = 1e9
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST_DELTA, le=LARGEST_DELTA)]
NotNegative = Annotated[float, Field(allow_inf_nan=False, ge=0, le=LARGEST_DELTA)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1)]
Timestamp = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelIdentity(_Section):
    """The checkpoint that was searched.

    ``nested_config`` says whether its config.json keeps the text model's settings under text_config;
    older plans do not say. ``weights_hash`` is "files" in a plan of version 1. ``code_sha256`` is of the model
    code that the checkpoint itself brings, null where transformers' own runs. ``positions`` is how many tokens the
    model takes; null where its config does not say, or the plan is older.
    """

    id: str
    revision: str | None
    architecture: str
    model_type: str
    layers: Annotated[int, Field(gt=0, le=1000)]
    site_layers: list[Count]
    shared_layers: list[Count]
    selection_width: Count
    config_sha256: Sha256
    weights_hash: Literal["sampled", "whole", "files"]
    weights_sha256: Sha256
    code_sha256: Sha256 | None
    nested_config: bool | None = None
    positions: Annotated[int, Field(gt=0)] | None = None


class TokenIdentity(_Section):
    """The tokens that were measured; ``file`` stands beside the plan.

    In a checkpoint's own folder it is called ``.tokens``: engines take every ``.safetensors`` there for weights.
    """

    sha256: Sha256
    file: Annotated[str, Field(pattern=r"^[\w-]+\.(safetensors|tokens)$")]
    dataset: str
    subset: str | None
    split: str | None
    column: str | None
    revision: str | None
    seed: int
    window: Count
    windows: Count
    heldout_windows: Count
    refinement_windows: Count = 0
    probes: Count = 0
    informative_positions: Count
    labels: Count
    informative_share: Finite


class RunIdentity(_Section):
    """How the model ran; ``threads`` of a process decide how a CPU rounds.

    They are None on an accelerator, and in plans of version 1, which did not say. ``weights`` says how quantised
    weights ran; None where they are plain, and in older plans.
    """

    dtype: str
    device: str
    threads: Annotated[int, Field(ge=1, le=4096)] | None
    indexer: str
    attention: str
    versions: dict[str, str]
    weights: Annotated[str, Field(max_length=200)] | None = None


class MeasuredPattern(_Section):
    """A pattern with its loss in nats per label and the paired difference to all full.

    ``low`` to ``high`` is the interval of ``delta`` at ``search.confidence``. ``divergence`` is KL(all full ||
    pattern) in nats per label, ``agreement`` the share of labels at which the likeliest token is all full's,
    ``key_delta`` the increase of the loss on key tokens; None where it was not measured.
    """

    kept: Count
    pattern: str
    loss: Finite
    delta: Finite
    standard_error: NotNegative | None
    low: Finite | None = None
    high: Finite | None = None
    divergence: Finite | None = None
    agreement: Share | None = None
    key_delta: Finite | None = None


class PlanStep(MeasuredPattern):
    """One removal, in the order of the search.

    ``margin`` is how much dearer the runner-up was, in what ``search.objective`` measures. ``tied_layers`` were as
    cheap but for rounding; ``undecided_layers`` are not told from the removed one by what these windows last said
    of them; the step is decided if there are none.
    """

    removed_site: Count
    removed_layer: Count
    runner_up_layer: Count | None
    margin: Finite | None
    margin_standard_error: Finite | None
    tied_layers: list[Count]
    undecided_layers: list[Count] | None = None


class PlanSwap(MeasuredPattern):
    """One swap of refinement, which follows the steps and changes the pattern picked."""

    removed_layer: Count
    restored_layer: Count


class PlanStart(_Section):
    """A pattern that refinement began from, where it ended, and what each costs on refinement's windows.

    ``calibration_loss`` is the best end's loss on the calibration windows.
    """

    name: str
    start: str
    start_cost: Finite
    end: str
    end_cost: Finite
    swaps: Count
    calibration_loss: Finite | None


class PlanTie(_Section):
    """A removed layer and one that stays, which these windows do not tell apart; how many would is a guess.

    ``windows`` is None where no number is expected to.
    """

    removed_layer: Count
    kept_layer: Count
    windows: Count | None


class InitRecord(_Section):
    """The older plan that a search started from."""

    plan_sha256: Sha256
    changed_steps: list[Count]


class StudentsRecord(_Section):
    """The indexers that were distilled for the patterns of a search.

    ``count`` of them, one for each segment that a pattern had: a full site and the sites that it serves. Each for
    ``steps`` steps of ``windows_a_step`` windows and ``rows`` queries of each, of ``windows`` that judge nothing.
    """

    count: Count
    steps: Count
    windows_a_step: Count
    rows: Count
    windows: Count


class SearchRecord(_Section):
    """What the search did.

    ``objective`` chose, ``confidence`` is that of intervals and of decided steps, ``gate`` what of a loss increase
    is held to ``result.max_delta``; None in older plans.
    ``pinned_layers`` had to stay full, in ``uniform`` and ``overlap`` too.
    ``overlap`` holds the patterns that overlap alone would choose, ``overlap_matrix`` the share of keys
    that two sites select alike; both are empty unless asked for. ``init.changed_steps`` lists the
    numbers of full sites at which another site was removed than in the older plan.
    ``dp`` holds patterns that dynamic programming over layer costs gives, ``surrogate`` says which costs, and
    ``kept_chances`` how often each site stays full when documents are drawn anew. ``starts`` are refinement's,
    the best end first, from which ``swaps`` are. ``windows`` is how many calibration windows were used, and
    ``ties`` says what they leave open. ``decided`` says whether windows that were added until the plan is decided
    got there; None where their number was fixed. ``students`` is there where the strategy is ``distilled``: all
    losses but those of all full, held out too, are with indexers distilled for the pattern, which the checkpoint
    does not have.
    """

    strategy: str
    objective: str
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    gate: GateKind | None = None
    standard_errors: Finite
    blocks: Count
    refine_rounds: Count
    pinned_layers: list[Count]
    init: InitRecord | None
    baseline_loss: Finite
    noise_floor: NotNegative
    steps: list[PlanStep]
    swaps: list[PlanSwap]
    starts: list[PlanStart] = Field(default_factory=list)
    surrogate: str | None = None
    windows: Count | None = None
    ties: list[PlanTie] = Field(default_factory=list)
    decided: bool | None = None
    dp: list[MeasuredPattern] = Field(default_factory=list)
    kept_chances: list[Share] = Field(default_factory=list)
    uniform: list[MeasuredPattern]
    overlap: list[MeasuredPattern]
    overlap_matrix: list[list[Finite]]
    students: StudentsRecord | None = None


class Result(MeasuredPattern):
    """The pattern picked for ``keep`` or ``max_delta``, one of which was asked for.

    ``kept`` of ``sites`` indexers stay, which is ``kept`` of ``layers``: layers that have no indexer, or
    share in the checkpoint itself, are no sites. ``layer_pattern`` spells it over all decoder layers.
    """

    keep: Annotated[float, Field(gt=0, le=1)] | None
    max_delta: NotNegative | None
    sites: Count
    layers: Count
    layer_pattern: str
    uniform: MeasuredPattern | None


class HeldOutRecord(_Section):
    """The check on windows that the search did not see."""

    baseline_loss: Finite
    plan: MeasuredPattern
    uniform: MeasuredPattern
    dp: MeasuredPattern | None = None


class ProbeScores(_Section):
    """The answers of probes under a pattern: mean loss in nats per answer token, and the share predicted."""

    loss: Finite
    accuracy: Share


class ProbeRecord(_Section):
    """Probes of one kind: ``delta`` is the plan's loss increase over all full, paired, per answer token.

    ``low`` to ``high`` is its interval at ``search.confidence``.
    """

    kind: str
    probes: Count
    full: ProbeScores
    plan: ProbeScores
    uniform: ProbeScores
    dp: ProbeScores | None = None
    delta: Finite
    standard_error: NotNegative | None
    low: Finite | None = None
    high: Finite | None


class ProbesRecord(_Section):
    """The check on probes: of each kind, and ``all`` of them together, each probe counting alike."""

    pattern: str
    kinds: list[ProbeRecord]
    all: ProbeRecord


class Cost(_Section):
    """What the search takes; a layer-window is one decoder layer run on one window.

    Counted from what the search asked for, all states taken to fit in memory, so that the figures are the
    same however often it was stopped; layers run again where memory is short or states were lost.
    Layer costs are counted too: an attention that runs alone as a layer, a backward pass as two.
    ``search_layer_windows`` is the part of the removals and swaps, and of layer costs where these choose, without
    baselines and checks;
    ``algorithm_1_layer_windows`` what the removals take as the paper writes them; ``fewer`` their ratio.
    ``sweeps`` is how many passes over the layers all of it takes, layer costs and overlap included, where all
    that is asked for together goes through a layer before the next; ``weight_bytes`` what these read of the
    weights as stored, where all layers stream. Both are None in older plans.
    """

    window_evaluations: Count
    layer_windows: Count
    tokens: Count
    search_layer_windows: Count
    algorithm_1_window_evaluations: Count
    algorithm_1_layer_windows: Count
    fewer: Finite
    sweeps: Count | None = None
    weight_bytes: Count | None = None


class CurvePoint(_Section):
    """How far an indexer's scores are from the attention that they are to predict, after ``step`` steps.

    ``divergence`` is KL(mean attention || scores) in nats, on the rows that it learns from.
    """

    step: Count
    divergence: NotNegative


class DistilledSegment(_Section):
    """The indexer of layer ``layer``, distilled for the sites from there to ``last_layer``.

    ``divergence_before`` and ``divergence_after`` are KL(all full || pattern) of next tokens on held-out windows,
    in nats per label, where this segment alone shares. ``written`` says whether the distilled indexer replaced the
    old one: where the second is not the lower, the old one stays. A site that serves itself alone is not trained:
    its figures are None.
    """

    layer: Count
    last_layer: Count
    written: bool
    learning_rate: NotNegative | None
    curve: list[CurvePoint]
    divergence_before: NotNegative | None
    divergence_after: NotNegative | None


class DistilledLosses(_Section):
    """The plan's pattern with the source's indexers and with the distilled ones, beside the source all full."""

    baseline_loss: Finite
    before: MeasuredPattern
    after: MeasuredPattern


class DistilledRecord(_Section):
    """How the kept indexers were distilled for the plan's pattern, and what that changed.

    The plan's ``search`` is the source's, on its weights. Its ``result`` is ``calibration.after``, its
    ``heldout.plan`` is ``heldout.after``. Both, and ``heldout.uniform``, are measured from the source all full.
    ``tokens`` of ``windows`` windows were learned from, for ``steps`` steps of ``windows_a_step`` windows and
    ``rows`` queries of each. ``learning_rate`` is what was asked for, null where each indexer's was probed.
    """

    source: str
    source_revision: str | None
    source_weights_sha256: Sha256
    source_plan_sha256: Sha256
    dataset: str
    windows: Count
    tokens: Count
    steps: Count
    windows_a_step: Count
    rows: Count
    seed: int
    learning_rate: NotNegative | None
    segments: list[DistilledSegment]
    calibration: DistilledLosses
    heldout: DistilledLosses


class Plan(_Section):
    """A searched pattern with everything needed to check it, cut it again and serve it.

    It is written as soon as it is chosen, and again once baselines, held-out check and probes are measured:
    ``complete`` says whether they are. ``distilled`` is there where its indexers were distilled for its pattern.
    """

    schema_version: Literal[3] = SCHEMA
    indexcache: str
    complete: bool = True
    model: ModelIdentity
    tokens: TokenIdentity
    run: RunIdentity
    search: SearchRecord
    result: Result
    heldout: HeldOutRecord | None
    probes: ProbesRecord | None = None
    cost: Cost
    distilled: DistilledRecord | None = None

    @property
    def pattern(self) -> Pattern:
        """The pattern picked, over the sites."""
        return Pattern(self.result.pattern)

    @property
    def all_full(self) -> MeasuredPattern:
        """All sites full, which the loss increases of the other patterns are measured from."""
        sites, end = len(self.model.site_layers), None if self.search.confidence is None else 0.0
        return MeasuredPattern(
            kept=sites,
            pattern="F" * sites,
            loss=self.search.baseline_loss,
            delta=0.0,
            standard_error=0.0,
            low=end,
            high=end,
        )

    @property
    def pinned_sites(self) -> tuple[int, ...]:
        """Sites that the search had to keep full."""
        return tuple(self.model.site_layers.index(layer) for layer in self.search.pinned_layers)

    @property
    def lacks_indexers(self) -> bool:
        """Whether the plan's losses are with distilled indexers and its checkpoint is not distilled yet."""
        return self.search.students is not None and self.distilled is None

    def as_json(self) -> str:
        """The file's text: stable key order, floats at full precision, and last a checksum over the rest."""
        content = self.model_dump(mode="json")
        if self.distilled is None:
            del content["distilled"]
        if self.search.students is None:
            del content["search"]["students"]
        document = content | {CHECKSUM: content_checksum(content)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def content_checksum(content: dict[str, Any]) -> str:
    """The first 16 digits of the SHA-256 over a plan's content: a changed figure would look as good as any."""
    text = json.dumps(content, sort_keys=True)  # what is no number is refused by its field, not here
    return hashlib.sha256(text.encode()).hexdigest()[:16]
