"""How sure a plan is said to be: decided steps, layers that could change places, chances of the sites."""

import pytest

from indexcache.errors import PlanError
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import check_plan, read_plan
from indexcache.search.plan.schema import PlanTie
from indexcache.search.report.certainty import (
    Interchange,
    decided_steps,
    interchanges,
    least_chance,
    not_decided,
    strip,
    strip_text,
    verdict,
)


@pytest.fixture
def plan(searched):
    """Searched down to one site, of which it keeps four."""
    return read_plan(searched / "plan.json")


def changed(plan, undecided=None, **fields):
    """The plan with other undecided layers, by the number of the step, and other findings."""
    steps = [
        step.model_copy(update={"undecided_layers": (undecided or {}).get(number, []), "tied_layers": []})
        for number, step in enumerate(plan.search.steps)
    ]
    search = plan.search.model_copy(update={"steps": steps, "ties": [], **fields})
    return plan.model_copy(update={"search": search})


def kept_layers(plan):
    return [layer for layer, role in zip(plan.model.site_layers, plan.result.pattern, strict=True) if role == "F"]


def test_only_steps_to_the_budget_count(plan):
    decided = decided_steps(changed(plan, {1: [0], 5: [0], 6: [0]}))
    assert str(decided) == "3 of 4 steps decided at 95 %"
    # At two kept sites, the step before the last counts too.
    assert (
        str(decided_steps(cut(changed(plan, {1: [0], 5: [0], 6: [0]}), keep=0.25)))
        == "4 of 6 steps decided at 95 %"
    )


def test_nothing_is_said_of_a_plan_that_does_not_know(plan):
    steps = [step.model_copy(update={"undecided_layers": None}) for step in plan.search.steps]
    assert (
        decided_steps(plan.model_copy(update={"search": plan.search.model_copy(update={"steps": steps})})) is None
    )
    assert decided_steps(cut(plan, keep=1.0)) is None


def test_a_step_names_the_layers_that_it_is_not_told_from(plan):
    step = changed(plan, {0: [5, 3, 4, 7]}).search.steps[0]
    assert verdict(step) == "3-5, 7"
    assert verdict(step.model_copy(update={"tied_layers": [7]})) == "3-5, 7; equal but for rounding: 7"
    assert verdict(step.model_copy(update={"undecided_layers": []})) == "decided"
    assert verdict(step.model_copy(update={"undecided_layers": None, "tied_layers": [2, 1]})) == "1-2"


def test_layers_change_places_where_one_goes_and_the_other_stays(plan):
    first, second = (step.removed_layer for step in plan.search.steps[:2])
    stays = kept_layers(plan)[1]
    ties = [PlanTie(removed_layer=first, kept_layer=stays, windows=40)]
    choices = interchanges(changed(plan, {0: [second, stays]}, ties=ties))
    assert [(choice.dropped, choice.kept) for choice in choices] == [(first, {stays: 40})]
    assert choices[0].outlook == "about 40"
    assert interchanges(changed(plan, {0: [second]})) == []


def test_a_tie_that_only_the_search_names_counts_too(plan):
    """Where windows are added until a plan is decided, its looks are stricter than a step alone."""
    first, stays = plan.search.steps[0].removed_layer, kept_layers(plan)[1]
    ties = [PlanTie(removed_layer=first, kept_layer=stays, windows=None)]
    assert interchanges(changed(plan, ties=ties))[0].outlook == "no number expected"


def test_a_cut_to_fewer_sites_has_ties_of_its_own(plan):
    """Layers that both go there are no tie any more."""
    first, fifth = plan.search.steps[0].removed_layer, plan.search.steps[4].removed_layer
    tied = changed(plan, {0: [fifth]})
    assert [choice.dropped for choice in interchanges(tied)] == [first]
    assert interchanges(cut(tied, keep=0.25)) == []


def test_the_windows_that_would_decide_are_said_layer_by_layer_where_they_differ():
    assert Interchange(1, {2: 8, 3: 8}).outlook == "about 8"
    assert Interchange(1, {2: 8, 3: None, 4: None}, frozenset({4})).outlook == (
        "2: about 8, 3: no number expected, 4: not estimated"
    )


def test_the_strip_says_chances_and_pins(plan):
    layer = plan.model.site_layers[2]
    sites = strip(changed(plan, kept_chances=[1.0, 0.004, *[0.5] * 6], pinned_layers=[layer]))
    lines = strip_text(sites, width=4).splitlines()
    assert lines[1] == "role    " + "".join(f"{role:>4}" for role in plan.result.pattern[:4])
    assert lines[2] == "full, % " + " 100   0  50  50"
    assert lines[3] == "pinned  " + "           x"
    assert sites[2].explanation.startswith(f"layer {layer} ")
    assert "pinned" in sites[2].explanation
    assert "50 %" in sites[2].explanation


def test_the_least_chance_is_of_a_kept_layer(plan):
    chances = [0.9 - 0.1 * site if role == "F" else 0.0 for site, role in enumerate(plan.result.pattern)]
    last = plan.result.pattern.rindex("F")
    assert least_chance(changed(plan, kept_chances=chances)) == pytest.approx(0.9 - 0.1 * last)
    assert least_chance(changed(plan, kept_chances=[])) is None


def test_a_plan_that_added_windows_in_vain_says_how_many_would_decide(plan):
    first, second = (step.removed_layer for step in plan.search.steps[:2])
    stays, other = kept_layers(plan)[1:3]
    tie = PlanTie(removed_layer=first, kept_layer=stays, windows=40)
    few = PlanTie(removed_layer=second, kept_layer=other, windows=9)
    never = few.model_copy(update={"windows": None})
    differ = "differ by less than these windows can tell"
    assert not_decided(changed(plan, ties=[tie], decided=False)) == (
        f"not decided: layers {first} and {stays} {differ}; about 40 windows would"
    )
    assert not_decided(changed(plan, ties=[few, tie], decided=False)) == (
        f"not decided: layers {first} and {stays}, and 1 more pair, {differ}; about 40 windows would"
    )
    assert not_decided(changed(plan, ties=[tie, never], decided=False)).endswith(
        f"layers {second} and {other}, and 1 more pair, {differ}; no number of windows is expected to"
    )
    assert not_decided(changed(plan, ties=[tie])) == "", "the number of windows was given, so nothing was promised"
    assert not_decided(changed(plan, decided=True)) == ""


def test_a_tie_between_layers_that_a_cut_drops_both_is_decided(plan):
    first, fifth = plan.search.steps[0].removed_layer, plan.search.steps[4].removed_layer
    tied = changed(plan, ties=[PlanTie(removed_layer=first, kept_layer=fifth, windows=40)], decided=False)
    assert not_decided(tied) != ""
    assert not_decided(cut(tied, keep=0.25)) == ""


def test_chances_are_of_one_budget(plan):
    known = changed(plan, kept_chances=[0.5] * 8)
    assert cut(known, keep=0.25).search.kept_chances == []
    assert cut(known, keep=0.5).search.kept_chances == [0.5] * 8


@pytest.mark.parametrize("field", ["kept_chances", "undecided", "ties"])
def test_a_plan_that_speaks_of_other_sites_is_refused(plan, field):
    document = plan.model_dump()
    if field == "kept_chances":
        document["search"]["kept_chances"] = [0.5] * 7
    elif field == "ties":
        document["search"]["ties"] = [{"removed_layer": 1, "kept_layer": 800, "windows": 4}]
    else:
        document["search"]["steps"][0]["undecided_layers"] = [800]
    with pytest.raises(PlanError, match=r"search\.(kept_chances|steps)"):
        check_plan(document, "the plan")
