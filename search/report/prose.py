"""The sentences of the report, the same for both of its pages; what stands in backticks is code."""

from __future__ import annotations

from typing import NamedTuple

from ..plan.schema import HeldOutRecord, Plan
from .certainty import interchanges, not_decided, searched, steps_to_budget
from .tables import Table
from .words import layers, percent, signed

INCOMPLETE = (
    "The search was stopped before it measured baselines, the held-out check and probes. "
    "Run the same command again: it goes on from its journal."
)
PROBES = (
    "A probe asks for something that was planted far back in the text, and only the answer is scored. "
    "LM loss hardly shows damage there: most tokens of ordinary text need nothing from far back. "
    "Each pattern has its loss in nats per answer token, and the share of answer tokens that it predicts. "
    "The increase is that of this plan over all full, on the same probes."
)
_OBJECTIVES = {
    "expected-loss": (
        "Expected loss chose: the KL divergence of next-token distributions, KL(all full || pattern). "
        "It is the loss increase on tokens that the model itself would write, on average. "
        "So it lacks the noise of the few tokens that the text happens to have."
    ),
    "loss": "LM loss chose, as in Algorithm 1: how badly the next tokens of the text are predicted.",
    "key-loss": (
        "The loss on key tokens chose: "
        "tokens count by how much better the model predicts them because it sees far back."
    ),
    "mix": "Expected loss chose, KL(all full || pattern), on text and on the answers of probes together.",
}
_LAYER_COSTS = {
    "error": "by how much attention outputs change under an earlier layer's selection, relative to what they are "
    "added to",
    "fisher": (
        "by how much attention outputs change under an earlier layer's selection, "
        "weighed by how strongly the loss reacts"
    ),
}
_STEP = "Each step turns one more site shared"
_STRATEGIES = {
    "exact": f"{_STEP}: of all, the one that costs least.",
    "fast": (
        f"{_STEP}, the one that costs least of those measured: "
        "sites that seemed dearer at an earlier step are not measured again."
    ),
    "distilled": (
        f"{_STEP}, the one that costs least of those measured, all with indexers distilled for their pattern."
    ),
    "dp": "There are no steps: dynamic programming over layer costs gives the pattern of each budget.",
}


_LACKING = (
    "The checkpoint lacks the distilled indexers that all losses were measured with: "
    "`indexcache distill` makes one that has them"
)
_UNSKILLED = (
    "All full itself predicts less than a fifth of the answers of these kinds of probes, "
    "which so say little about patterns: "
)
# Where all full predicts fewer answer tokens than this, damage can hardly show.
_SKILLED = 0.2


def sentences(plan: Plan, heldout: HeldOutRecord | None, comparison: Table, whole: bool) -> dict[str, str]:
    """The sentences of the report by the part that they explain; ``whole`` where the curve is held out."""
    return {
        "incomplete": INCOMPLETE,
        "chances": chances(plan),
        "heldout": held_out(plan, heldout),
        "columns": columns(plan, comparison),
        "distilled": distilled(plan),
        "probes": PROBES,
        "key_tokens": key_tokens(plan, heldout),
        "chosen_by": chosen_by(plan),
        "decided": decided(plan),
        "undecided": undecided(plan),
        "curve": curve(plan, heldout, whole),
        "steps": steps(plan),
        "refinement": refinement(plan),
        "windows": windows(plan),
    }


class Warning(NamedTuple):
    """What a reader should know before relying on a plan, and the names that it ends with."""

    text: str
    names: str = ""


def warnings(plan: Plan, heldout: HeldOutRecord | None) -> list[Warning]:
    """What a reader should know before relying on the plan, the worst first."""
    shares = plan.result.kept < plan.result.sites
    unskilled, shorter, undecided = unskilled_kinds(plan), shorter_window(plan), not_decided(plan)
    known = [
        (shares and heldout is None, Warning("This pattern was not measured on held-out windows")),
        (plan.lacks_indexers, Warning(_LACKING)),
        (shorter, Warning(f"Short windows: {shorter}")),
        (unskilled, Warning(_UNSKILLED, unskilled)),
        (undecided, Warning(undecided.capitalize())),
        (
            shares and plan.search.confidence and heldout is not None and heldout.plan.high is None,
            Warning("The held-out windows are of one document, so that no interval can be given"),
        ),
    ]
    return [warning for holds, warning in known if holds]


def unskilled_kinds(plan: Plan) -> str:
    """The kinds of probes that the model itself hardly answers."""
    kinds = plan.probes.kinds if plan.probes else []
    return ", ".join(record.kind for record in kinds if record.full.accuracy < _SKILLED)


def shorter_window(plan: Plan) -> str:
    """That a plan's windows are shorter than what the model takes; "" where they are not, or it is not known."""
    positions, window = plan.model.positions, plan.tokens.window
    if positions is None or window >= positions:
        return ""
    return (
        f"made on windows of {window:,} tokens; the model takes {positions:,}: `eval --window` measures a plan on "
        "longer ones"
    )


def chosen_by(plan: Plan) -> str:
    """What chose the pattern, and what that means."""
    if plan.distilled is not None and not searched(plan):
        return "The search did not pick this pattern: `distill` was asked for it."
    if plan.search.strategy == "dp":
        return f"Layer costs chose, {_layer_costs(plan)}: the pattern is the one with the lowest sum."
    return " ".join(filter(None, (_OBJECTIVES.get(plan.search.objective), _students(plan))))


def _students(plan: Plan) -> str:
    """That a search's losses are with distilled indexers; "" where they are not."""
    students = plan.search.students
    if students is None:
        return ""
    told = (
        "The search measured every pattern, uniform too, with indexers distilled for it: "
        f"{students.count} in all, {students.steps} steps each."
    )
    lacking = (
        " The checkpoint does not have these indexers, and the losses do not hold without them: "
        "`indexcache distill` trains them in full, and writes a checkpoint that has them."
    )
    return told + (lacking if plan.lacks_indexers else "")


def _layer_costs(plan: Plan) -> str:
    """How the costs were measured that dynamic programming adds up: a phrase that begins with a preposition."""
    return _LAYER_COSTS.get(plan.search.surrogate or "", "under each earlier layer's selection")


def distilled(plan: Plan) -> str:
    """What was distilled, on what, and what the figures mean; "" where nothing was."""
    distilled = plan.distilled
    if distilled is None:
        return ""
    written = sum(segment.written for segment in distilled.segments)
    rate = (
        "a learning rate probed for each"
        if distilled.learning_rate is None
        else f"rate {distilled.learning_rate:g}"
    )
    return (
        f"{written} of {len(distilled.segments)} kept indexers are distilled: they were trained against the mean "
        f"attention of all layers that they serve, for {distilled.steps} steps of {distilled.windows_a_step} "
        f"windows and {distilled.rows} queries each, {rate}, "
        f"on {distilled.windows} windows of {plan.tokens.window:,} tokens. "
        "All increases of this plan are over the model as it was, all full. "
        "These indexers fit this pattern only. The search's steps and curve are those of the model as it was."
    )


def chances(plan: Plan) -> str:
    """What the chances beside the pattern are."""
    after = " Refinement came later, changed nothing, and is not in it." if plan.search.starts else ""
    return (
        "The per cent with each layer say how often a search keeps it full at this budget "
        f"if documents are drawn anew. Near 100 and 0 the documents agree, near 50 they do not.{after}"
    )


def held_out(plan: Plan, heldout: HeldOutRecord | None) -> str:
    """On what the plan was checked, or that it was not."""
    if heldout is not None:
        by_eval = "" if plan.heldout else ", measured by `indexcache eval`"
        return f"On {plan.tokens.heldout_windows} windows of documents that the search did not see{by_eval}."
    missing = (
        "Not measured for this pattern: `indexcache eval` measures it."
        if plan.tokens.heldout_windows
        else "The search was given no held-out windows."
    )
    return f"{missing} The figures below are in sample: of the windows that chose, and so too good."


def key_tokens(plan: Plan, heldout: HeldOutRecord | None) -> str:
    """How the loss rises on tokens of which the long context tells most."""
    measured, uniform = (heldout.plan, heldout.uniform) if heldout else (plan.result, plan.result.uniform)
    if measured.key_delta is None:
        return (
            "The increase on key tokens, of which the long context tells most, was not measured for this pattern."
        )
    beside = "" if uniform is None or uniform.key_delta is None else f", uniform {signed(uniform.key_delta)}"
    return (
        f"On key tokens, which count by how much the long context tells of them, the loss rises by "
        f"{signed(measured.key_delta)} nats{beside}; on all tokens by {signed(measured.delta)}."
    )


def columns(plan: Plan, comparison: Table) -> str:
    """What the columns of the comparison say, of those that are there."""
    at = plan.search.confidence
    spread = "standard error" if at is None else f"interval at {percent(at)}"
    meanings = {
        "increase, ": "Increase: the loss less that of all full on the same windows, nats per token, "
        f"with its {spread} over documents.",
        "KL": "KL: the expected loss increase, KL(all full || pattern), nats per token.",
        "same top token": "Same top token: how often the likeliest next token is that of all full.",
        "key tokens": "Key tokens: the increase where tokens count by how much the long context tells of them.",
        "increase, in sample": "In sample: on the windows that chose, and so too good.",
    }
    headings = [column.heading for column in comparison.columns]
    present = [text for name, text in meanings.items() if any(heading.startswith(name) for heading in headings)]
    return " ".join([*present, _by_dp(plan)]).rstrip()


def _by_dp(plan: Plan) -> str:
    """What dynamic programming over layer costs is, where it is a baseline; "" where it is none."""
    pattern = next((measured.pattern for measured in plan.search.dp if measured.kept == plan.result.kept), None)
    if pattern is None or plan.search.strategy == "dp":
        return ""
    same = " It is the pattern of this plan." if pattern == plan.result.pattern else ""
    return (
        f"dp: the pattern of dynamic programming over layer costs, {_layer_costs(plan)}, without a search.{same}"
    )


def decided(plan: Plan) -> str:
    """What a decided step is, and whether other documents may drop other layers."""
    confidence = percent(plan.search.confidence or 0.0)
    lazily = f" `{plan.search.strategy}` compares some layers by what they cost at an earlier step."
    after = " All this is of the removals; refinement came later."
    settled = " The chances beside the pattern say whether it changes which layers stay."
    settled = settled if plan.search.kept_chances else ""
    tied = (
        "Some dropped layers were not told, when they were dropped, from layers that stay: "
        f"a search on other documents may drop those instead. Early on that is common.{settled}"
        if interchanges(plan)
        else "No dropped layer is tied with a layer that stays."
    )
    open_line = not_decided(plan)
    auto = f" {open_line[0].upper()}{open_line[1:]}." if open_line else ""
    return (
        f"A step is decided where {used_windows(plan)} windows tell the dropped layer from every other one "
        f"at {confidence} confidence.{lazily if plan.search.strategy in ('fast', 'distilled') else ''} "
        f"{tied}{after if plan.search.starts else ''}{auto}"
    )


def undecided(plan: Plan) -> str:
    """Why no step is said to be decided."""
    if not searched(plan):
        return "The search did not pick this pattern, so its steps say nothing of how sure it is."
    if not steps_to_budget(plan):
        return "There are no steps, so none is decided; the held-out check says how good the plan is."
    return "How sure the steps are was not measured: the plan is of an older version."


def steps(plan: Plan) -> str:
    """How the steps were taken, and what their columns say."""
    floor = f"{plan.search.noise_floor:.1e} nats per token"
    words = [_how(plan), f"All figures are in sample: of the {used_windows(plan)} windows that chose."]
    if plan.search.confidence is None:
        words += [
            "Runner-up and ties are of the candidates measured on all windows. "
            f"Tied: within the noise floor of {floor}.",
            "A margin below its own standard error is no clear choice either.",
        ]
    else:
        words += [
            "The runner-up is the second of those measured on all windows. "
            "Margin: how much dearer it is in what chose, with its standard error.",
            f"Equal but for rounding: within the noise floor of {floor}.",
        ]
    return " ".join(words)


def _how(plan: Plan) -> str:
    """How each step's site was chosen, and what an older plan had to do with it."""
    search = plan.search
    way = _STRATEGIES.get(search.strategy, f"{_STEP}.")
    if search.strategy == "blocks":
        way = f"{_STEP}, the one of its block that costs least; {search.blocks} blocks of layers take turns."
    if search.pinned_layers:
        way += f" Pinned to stay full, in the uniform patterns too: {layers(search.pinned_layers)}."
    if search.init is None:
        return way
    changed = ", ".join(map(str, search.init.changed_steps)) or "no step"
    return f"{way} An older plan's order was tried first; the two differ at {changed} (full sites left)."


def refinement(plan: Plan) -> str:
    """How refinement went."""
    if not plan.search.starts:
        return "Refinement swapped a full site for a shared one, each time for a lower loss."
    other = plan.tokens.refinement_windows
    windows = f"{other} windows that the search did not use" if other else "the windows of the search"
    return (
        f"Each start was refined on {windows}: a full site is swapped for a shared one as long as a paired test "
        f"says that the cost falls, at {percent(plan.search.confidence or 0.0)} confidence. "
        "The cheapest end comes first. Costs are those of what chose, nats per token."
    )


def curve(plan: Plan, heldout: HeldOutRecord | None, whole: bool) -> str:
    """What the curve shows; ``whole`` where every budget is held out."""
    at = plan.search.confidence
    bars = "one standard error" if at is None else f"intervals at {percent(at)}"
    if whole:
        return (
            "Hollow marks are differences to all full on the held-out windows; "
            f"filled ones are in sample, of what was not measured held out. Bars are {bars} over documents."
        )
    return (
        f"Differences to all full on the same {used_windows(plan)} calibration windows, in sample; "
        f"bars are {bars} over documents.{' Hollow marks are held out.' if heldout else ''} "
        "`indexcache eval --curve` measures every budget held out."
    )


def windows(plan: Plan) -> str:
    """Which windows and probes there were."""
    tokens = plan.tokens
    parts = [
        f"{calibration_windows(plan)} of {tokens.window} tokens to choose",
        f"{tokens.heldout_windows} held out",
    ]
    parts += [f"{tokens.refinement_windows} for refinement"] if tokens.refinement_windows else []
    students = plan.search.students
    parts += [f"{students.windows} for distilled indexers to learn from"] if students else []
    parts += [f"{tokens.probes} probes"] if tokens.probes else []
    return f"{', '.join(parts)}; {tokens.informative_share:.1%} of the positions are informative"


def calibration_windows(plan: Plan) -> str:
    """How many calibration windows chose, and of how many if not of all."""
    used, available = used_windows(plan), plan.tokens.windows
    return f"{used}" if used == available else f"{used} of {available}"


def used_windows(plan: Plan) -> int:
    """How many calibration windows chose: with ``--windows auto`` not all that there were."""
    return plan.search.windows or plan.tokens.windows
