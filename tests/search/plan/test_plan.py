"""Plan files: read back whole, cut again, and refused by field when they are wrong."""

import json

import pytest

from indexcache.errors import PlanError, SettingError
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import MeasuredPattern, PlanStart


@pytest.fixture
def plan(searched):
    return read_plan(searched / "plan.json")


@pytest.fixture
def changed(searched, tmp_path):
    """Writes a copy of the plan with one field changed, given by its dotted path."""

    def change(path, value):
        document = json.loads((searched / "plan.json").read_text())
        *parents, last = path.split(".")
        section = document
        for name in parents:
            section = section[int(name) if name.isdigit() else name]
        if value is ...:
            del section[last]
        else:
            section[int(last) if last.isdigit() else last] = value
        target = tmp_path / "plan.json"
        target.write_text(json.dumps(document))
        return target

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [("tokens.dataset", "other.jsonl"), ("search.noise_floor", 0.25), ("checksum", "0" * 16), ("checksum", ...)],
)
def test_a_plan_that_was_edited_is_refused(changed, path, value):
    with pytest.raises(PlanError, match="field checksum: not that of its content"):
        read_plan(changed(path, value))


def test_a_plan_reads_back_as_it_was_written(plan, searched):
    assert plan.as_json() == (searched / "plan.json").read_text()


def test_the_order_of_removal_is_nested(plan):
    full = set(range(8))
    for step in plan.search.steps:
        full.remove(step.removed_site)
        assert {site for site, role in enumerate(step.pattern) if role == "F"} == full
    assert full == {0}


def test_each_step_says_what_it_measured(plan):
    for step in plan.search.steps:
        assert step.delta == pytest.approx(step.loss - plan.search.baseline_loss, abs=1e-9)
        assert step.standard_error > 0
        assert step.removed_layer == plan.model.site_layers[step.removed_site]


@pytest.mark.parametrize(("keep", "kept"), [(1.0, 8), (0.75, 6), (0.5, 4), (0.25, 2), (0.01, 1)])
def test_cutting_picks_the_step_with_that_many_sites(plan, keep, kept):
    again = cut(plan, keep=keep)
    assert (again.result.kept, again.result.keep) == (kept, keep)
    assert again.result.pattern.count("F") == kept
    # Chances are of the budget that was searched for.
    chances = plan.search.kept_chances if kept == plan.result.kept else []
    assert again.search == plan.search.model_copy(update={"kept_chances": chances})
    assert again.result.uniform.kept == kept
    assert (again.heldout is None) == (kept != plan.result.kept)


def test_cutting_by_loss_picks_the_sparsest_step_within_it(plan):
    limit = max(sorted(step.high for step in plan.search.steps)[3], 0.0)
    again = cut(plan, max_delta=limit)
    within = [step.kept for step in plan.search.steps if step.high <= limit]
    assert again.result.kept == min(within, default=8)
    assert all(step.low < step.delta < step.high for step in plan.search.steps)


def test_a_cut_plan_is_a_plan(plan, tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(cut(plan, keep=0.25).as_json())
    assert read_plan(path).result.kept == 2


def test_cutting_beyond_the_search_says_how_far_it_went(plan):
    short = plan.model_copy(update={"search": plan.search.model_copy(update={"steps": plan.search.steps[:4]})})
    with pytest.raises(PlanError, match="searched down to 4"):
        cut(short, keep=0.25)


def with_search(plan, result=None, **fields):
    """The plan with other findings, and another result."""
    search = plan.search.model_copy(update=fields)
    return plan.model_copy(update={"search": search, "result": result or plan.result, "heldout": None})


def of_layer_costs(plan):
    """The plan as dynamic programming would have made it: no steps, and the pattern of one budget."""
    dp = MeasuredPattern(**{name: getattr(plan.result, name) for name in MeasuredPattern.model_fields})
    return with_search(plan, strategy="dp", surrogate="error", steps=[], dp=[dp], kept_chances=[], ties=[])


def test_a_plan_of_layer_costs_is_cut_to_what_it_measured(plan):
    dp = of_layer_costs(plan)
    assert cut(dp, keep=0.5).result.pattern == plan.result.pattern
    sparser = plan.search.steps[-1].model_dump(include=set(MeasuredPattern.model_fields))
    several = with_search(dp, dp=[*dp.search.dp, MeasuredPattern(**sparser)])
    assert cut(several, keep=0.1).result.pattern == sparser["pattern"]
    assert cut(several, max_delta=1000).result.kept == 1


@pytest.mark.parametrize(
    ("keep", "says"), [(0.25, "searched down to 4"), (0.75, "the plan has no pattern: it has those of 4, 8")]
)
def test_a_plan_of_layer_costs_says_which_cuts_there_are_and_how_to_get_more(plan, keep, says):
    with pytest.raises(PlanError, match=says) as caught:
        cut(of_layer_costs(plan), keep=keep)
    assert "run search again with --all" in caught.value.line()


def refined(plan, name, pattern):
    """The plan as refinement would have made it whose best end is a start that no swap improved."""
    step = next(step for step in plan.search.steps if step.kept == plan.result.kept)
    other = MeasuredPattern(**step.model_dump(include=set(MeasuredPattern.model_fields)) | {"pattern": pattern})
    start = PlanStart(
        name=name, start=pattern, start_cost=0.1, end=pattern, end_cost=0.1, swaps=0, calibration_loss=other.loss
    )
    spelled = {"pattern": pattern, "layer_pattern": pattern}
    return with_search(plan, plan.result.model_copy(update=spelled), starts=[start], dp=[other])


def test_a_cut_to_a_plans_own_budget_keeps_what_refinement_picked(plan):
    pattern = next(name for name in ("FFSSSSFF", "FSFSFSFS") if name != plan.result.pattern)
    better = refined(plan, "dp", pattern)
    assert cut(better, keep=0.5).result.pattern == pattern
    assert cut(cut(better, keep=0.25), keep=0.5).result.pattern == pattern


def test_a_cut_holds_losses_as_the_search_did(plan):
    steps = [
        step.model_copy(update={"loss": plan.search.baseline_loss + 0.01, "delta": 0.01, "low": 0.0, "high": 0.05})
        for step in plan.search.steps
    ]
    first = steps[0].model_dump(include=set(MeasuredPattern.model_fields))
    result = plan.result.model_copy(update=first | {"layer_pattern": first["pattern"], "uniform": None})
    held = with_search(plan, result, steps=steps, dp=[])
    assert cut(held, max_delta=0.02).result.kept == 8
    assert cut(held, max_delta=0.05).result.kept == 1
    by_estimate = with_search(held, result, gate="estimate")
    assert cut(by_estimate, max_delta=0.02).result.kept == 1


def test_of_one_document_a_cut_drops_nothing_unless_the_plan_has_no_intervals_at_all(plan):
    none = {"loss": plan.search.baseline_loss, "delta": 0.0, "standard_error": None, "low": None, "high": None}
    steps = [step.model_copy(update=none) for step in plan.search.steps]
    first = steps[0].model_dump(include=set(MeasuredPattern.model_fields))
    result = plan.result.model_copy(update=first | {"layer_pattern": first["pattern"], "uniform": None})
    one = with_search(plan, result, steps=steps, dp=[])
    assert cut(one, max_delta=1).result.kept == 8
    assert cut(with_search(one, result, gate=None), max_delta=1).result.kept == 8
    assert cut(with_search(one, result, gate=None, confidence=None), max_delta=1).result.kept == 1


@pytest.mark.parametrize(
    "asked", [{}, {"keep": 0.5, "max_delta": 0.1}, {"keep": 0.0}, {"max_delta": -1.0}, {"max_delta": float("nan")}]
)
def test_cutting_needs_one_possible_wish(plan, asked):
    with pytest.raises(SettingError):
        cut(plan, **asked)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema_version", 4, "schema version 4"),
        ("schema_version", ..., "no plan schema version"),
        ("model.layers", "eight", "model.layers"),
        ("model.weights_sha256", "abc", "model.weights_sha256"),
        ("model.site_layers", [0, 1, 1, 2, 3, 4, 5, 6], "site_layers"),
        ("model.site_layers", [], "site_layers"),
        ("model.layers", 4, "site_layers"),
        ("tokens", ..., "tokens"),
        ("extra", 1, "extra"),
        ("search.baseline_loss", None, "search.baseline_loss"),
        ("search.steps.2.removed_site", 0, r"search.steps.2 does not remove"),
        ("search.steps.2.pattern", "FFFFFFFF", r"search.steps.2"),
        ("search.uniform.0.pattern", "FFFF", r"search.uniform.0.pattern"),
        ("result.pattern", "SFFFSSSF", "first site"),
        ("result.pattern", "FFSSFFSSF", "9 letters"),
        ("result.kept", 5, "keeps 4"),
        ("result.layer_pattern", "FFFFFFFF", "layer_pattern"),
        ("result.pattern", "FSSSSFFF", "no step"),
        ("result.loss", -1.0, "result.delta"),
        ("result.sites", 99, "result.sites"),
        ("result.keep", None, "exactly one"),
        ("result.max_delta", 0.1, "exactly one"),
        ("result.uniform.pattern", "xyz", "result.uniform.pattern"),
        ("result.uniform.pattern", "FFFFSSSS", "not spread evenly"),
        ("heldout.plan.pattern", "hello", "heldout.plan.pattern"),
        ("heldout.plan.delta", 0.5, "heldout.plan.delta"),
        ("search.steps.1.removed_layer", 7, "removed_layer"),
        ("search.steps.1.delta", 5.0, "search.steps.1.delta"),
        ("search.steps.1.standard_error", -1.0, "standard_error"),
        ("search.noise_floor", -1.0, "noise_floor"),
        ("model.shared_layers", [99], "shared_layers"),
        ("search.pinned_layers", [99], "search.pinned_layers"),
        ("search.pinned_layers", [5, 5], "search.pinned_layers"),
        ("search.pinned_layers", [1, 2, 3, 4, 5, 6, 7], "shares a layer of search.pinned_layers"),
        ("model.shared_layers", [1], "none of model.shared_layers"),
        ("tokens.labels", 3, "tokens.labels"),
        ("tokens.informative_share", 0.1, "informative_share"),
        ("tokens.informative_positions", 1, "informative_positions"),
        ("tokens.file", "../elsewhere", "tokens.file"),
        ("tokens.file", "", "tokens.file"),
    ],
)
def test_a_wrong_field_is_named(changed, path, value, says):
    with pytest.raises(PlanError, match=says) as caught:
        read_plan(changed(path, value))
    assert "plan.json" in str(caught.value)
    assert "\n" not in caught.value.line()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": NaN}']
)
def test_what_is_no_plan_is_one_line(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan\.json"):
        read_plan(path)


def test_a_missing_plan_or_a_folder_is_one_line(tmp_path):
    with pytest.raises(PlanError, match="does not exist"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(PlanError, match=r"plan\.json. does not exist"):
        read_plan(tmp_path)


def test_a_runs_folder_stands_for_its_plan(plan, searched):
    assert read_plan(searched) == plan
