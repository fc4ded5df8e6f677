"""The sentences of the report, the same for both of its pages; what stands in backticks is code."""

from __future__ import annotations

from ..plan.schema import HeldOutRecord, Plan
from .certainty import interchanges, steps_to_budget
from .tables import Table
from .words import layers, percent

_OBJECTIVES = {
    "expected-loss": "Expected loss chose: the KL divergence of next-token distributions, KL(all full || pattern). It is "
    "the loss increase that tokens drawn from the model itself would show on average, so it has less noise than the "
    "loss on the tokens of the text.",
    "loss": "LM loss chose, as in Algorithm 1: how badly the next tokens of the text are predicted.",
    "key-loss": "The loss on key tokens chose: those that the model predicts better because it sees far back count "
    "most.",
    "mix": "Expected loss chose, KL(all full || pattern), on text and on the answers of probes together.",
}
_LAYER_COSTS = {
    "error": "by how much an attention output changes under an earlier layer's selection, relative to its size",
    "fisher": "by how much an attention output changes under an earlier layer's selection, weighed by how strongly the "
    "loss reacts to it",
}
_STRATEGIES = {
    "exact": "Each step turns one more site shared: of all, the one that costs least.",
    "fast": "Each step turns one more site shared, the one that costs least of those measured: sites that were "
    "clearly dearer before are not measured again.",
    "dp": "There are no steps: dynamic programming over layer costs gives the pattern of each budget.",
}


def chosen_by(plan: Plan) -> str:
    """What chose the pattern, and what that means."""
    if plan.search.strategy == "dp":
        return f"Layer costs chose, {layer_costs(plan)}: the pattern is the one with the lowest sum."
    return _OBJECTIVES.get(plan.search.objective, "")


def layer_costs(plan: Plan) -> str:
    """How the costs were measured that dynamic programming adds up: a phrase that begins with a preposition."""
    return _LAYER_COSTS.get(plan.search.surrogate or "", "under each earlier layer's selection")


def how(plan: Plan) -> str:
    """How each step's site was chosen, and what an older plan had to do with it."""
    search = plan.search
    blocks = (
        f"Each step turns one more site shared, the one of its block that costs least; {search.blocks} blocks of "
        "layers take turns."
    )
    way = blocks if search.strategy == "blocks" else _STRATEGIES.get(search.strategy, "Each step turns one more site shared.")
    if search.pinned_layers:
        way += f" Pinned to stay full, in the uniform patterns too: {layers(search.pinned_layers)}."
    if search.init is None:
        return way
    changed = ", ".join(map(str, search.init.changed_steps)) or "no step"
    return f"{way} An older plan's order was tried first; the two differ at {changed} (full sites left)."


INCOMPLETE = (
    "The search was stopped before it measured baselines, the held-out check and probes. Run the same command again: "
    "it goes on from its journal."
)


def chances(plan: Plan) -> str:
    """What the chances beside the pattern are."""
    after = " Refinement came later and is not in it." if plan.search.starts else ""
    return (
        "The per cent with each layer say how often the search keeps it full at this budget when the documents are drawn "
        f"anew. Near 100 and 0 the documents agree, near 50 they do not.{after}"
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


def columns(plan: Plan, comparison: Table) -> str:
    """What the columns of the comparison say, of those that are there."""
    at = plan.search.confidence
    spread = "its standard error" if at is None else f"its interval at {percent(at)}"
    meanings = {
        "increase, ": f"Increase: the loss less that of all full on the same windows, nats per token, with {spread} over "
        "documents.",
        "KL": "KL: the expected loss increase, KL(all full || pattern), nats per token.",
        "same top token": "Same top token: how often the likeliest next token is that of all full.",
        "key tokens": "Key tokens: the increase where tokens count by how much the long context tells of them.",
        "increase, in sample": "In sample: on the windows that chose, and so too good.",
    }
    headings = [column.heading for column in comparison.columns]
    present = [text for name, text in meanings.items() if any(heading.startswith(name) for heading in headings)]
    return " ".join([*present, *([by_dp(plan)] if by_dp(plan) else [])])


def by_dp(plan: Plan) -> str:
    """What dynamic programming over layer costs is, where it is a baseline; "" where it is none."""
    pattern = next((measured.pattern for measured in plan.search.dp if measured.kept == plan.result.kept), None)
    if pattern is None or plan.search.strategy == "dp":
        return ""
    same = " It is the pattern of this plan." if pattern == plan.result.pattern else ""
    return f"dp: the pattern of dynamic programming over layer costs, {layer_costs(plan)}, without a search.{same}"


PROBES = (
    "A probe asks for something that was planted far back in the text, and only the answer is scored. LM loss hardly "
    "shows damage there: most tokens of ordinary text need nothing from far back. Of each pattern: the loss in nats "
    "per answer token, and the share of answer tokens that it predicts. The increase is that of this plan over all full "
    "on the same probes."
)


def decided(plan: Plan) -> str:
    """What a decided step is, and whether layers could take each other's place."""
    confidence, windows = plan.search.confidence or 0.0, used_windows(plan)
    lazily = " `fast` compares some layers by what they cost at an earlier step." if plan.search.strategy == "fast" else ""
    after = " All this is of the removals; refinement came later." if plan.search.starts else ""
    tied = (
        "Some dropped layers are not told from layers that stay: they could have been kept in their place."
        if interchanges(plan)
        else "No dropped layer is tied with a layer that stays."
    )
    return (
        f"A step is decided where {windows} windows tell the dropped layer from every other one at {percent(confidence)} "
        f"confidence.{lazily} {tied}{after}"
    )


def undecided(plan: Plan) -> str:
    """Why no step is said to be decided."""
    if not steps_to_budget(plan):
        return "There are no steps, so none is decided; the held-out check says how good the plan is."
    return "How sure the steps are was not measured: the plan is of an older version."


def steps(plan: Plan) -> str:
    """How the steps were taken, and what their columns say."""
    floor = f"{plan.search.noise_floor:.1e} nats per token"
    if plan.search.confidence is None:
        return (
            f"{how(plan)} All figures are in sample: of the windows that chose. Runner-up and ties are of the candidates "
            f"measured on all windows; tied: within the noise floor of {floor}. A margin below its own standard error is "
            "no clear choice either."
        )
    return (
        f"{how(plan)} All figures are in sample: of the {used_windows(plan)} windows that chose. Margin: how much dearer "
        "the runner-up is in what chose, with its standard error; the runner-up is the second of those measured on all windows. "
        f"Equal but for rounding: within the noise floor of {floor}."
    )


def refinement(plan: Plan) -> str:
    """How refinement went."""
    if not plan.search.starts:
        return "Refinement swapped a full site for a shared one, each time for a lower loss."
    other = plan.tokens.refinement_windows
    windows = f"{other} windows that the search did not use" if other else "the windows of the search"
    return (
        f"Each start was refined on {windows}: a full site is swapped for a shared one as long as a paired test says, at "
        f"{percent(plan.search.confidence or 0.0)} confidence, that the cost falls. The cheapest end comes first. Costs are "
        "those of what chose, nats per token."
    )


def curve(plan: Plan, heldout: HeldOutRecord | None) -> str:
    """What the curve shows."""
    at = plan.search.confidence
    bars = "one standard error" if at is None else f"intervals at {percent(at)}"
    hollow = " Hollow marks are held out." if heldout else ""
    return (
        f"Differences to all full on the same {used_windows(plan)} calibration windows, in sample; bars are {bars} over "
        f"documents.{hollow}"
    )


def windows(plan: Plan) -> str:
    """Which windows and probes there were."""
    tokens, used = plan.tokens, used_windows(plan)
    chose = f"{tokens.windows}" if used == tokens.windows else f"{used} of {tokens.windows}"
    parts = [f"{chose} of {tokens.window} tokens to choose", f"{tokens.heldout_windows} held out"]
    parts += [f"{tokens.refinement_windows} for refinement"] if tokens.refinement_windows else []
    parts += [f"{tokens.probes} probes"] if tokens.probes else []
    return f"{', '.join(parts)}; {tokens.informative_share:.1%} of the positions are informative"


def used_windows(plan: Plan) -> int:
    """How many calibration windows chose: with ``--windows auto`` not all that there were."""
    return plan.search.windows or plan.tokens.windows
