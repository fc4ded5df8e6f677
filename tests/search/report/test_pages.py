"""The report: complete, self-contained, and safe against whatever text a plan carries."""

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import (
    MeasuredPattern,
    PlanStart,
    PlanSwap,
    ProbeRecord,
    ProbeScores,
    ProbesRecord,
)
from indexcache.search.report.pages import render
from indexcache.search.report.words import increase

ASSETS = Path(__file__).resolve().parents[2] / "assets"


@pytest.fixture
def plan(searched):
    return read_plan(searched / "plan.json")


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_from_elsewhere(plan):
    html = render(plan)["report.html"]
    page = Page(html)
    assert "svg" in page.tags
    assert all(link.startswith("#") for link in page.links), page.links
    assert page.tags.count("script") == 2, "the budgets as data, and the script"
    script = html[html.rindex("<script>") + len("<script>") : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html, "the page would not run its own script"


def test_every_part_can_be_reached_by_ear(plan):
    page = Page(render(rich(plan))["report.html"])
    for tag in ("header", "nav", "main", "footer", "figcaption", "caption", "title", "desc"):
        assert tag in page.tags, f"there is no {tag}"
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    skipped = [(above, below) for above, below in itertools.pairwise(levels) if below > above + 1]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert not skipped, f"headings jump: {skipped}"


def test_the_curve_is_an_svg_with_both_lines(plan):
    svg = render(plan)["curve.svg"]
    ElementTree.fromstring(svg)
    for words in ("searched", "uniform interleaving", "loss increase, nats per token", "this plan: 4 of 8 kept"):
        assert words in svg
    assert "prefers-color-scheme: dark" in svg, "a file of its own brings both themes along"


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_every_step_and_identity_stands_in_the_report(plan, name):
    text = render(plan)[name]
    for step in plan.search.steps:
        assert increase(step) in text
    for fact in (plan.tokens.sha256, plan.model.weights_sha256, plan.result.layer_pattern):
        assert fact in text
    assert f"{plan.heldout.plan.delta:+.4f}" in text
    assert f"{plan.tokens.informative_share:.1%}" in text


def test_the_strip_has_a_cell_per_site(plan):
    html = render(plan)["report.html"]
    assert "".join(re.findall(r'<li class="([FS])[" ]', html)) == plan.result.pattern


def test_a_cut_plan_says_that_it_was_not_checked(plan):
    files = render(cut(plan, keep=0.25))
    assert "Not measured for this pattern" in files["report.md"]
    assert "Not measured for this pattern" in files["report.html"]


def test_names_cannot_become_markup(plan):
    evil = "<script>alert(1)</script>|[x](javascript:1)\n# heading"
    model = plan.model.model_copy(update={"id": evil})
    tokens = plan.tokens.model_copy(update={"dataset": evil})
    files = render(plan.model_copy(update={"model": model, "tokens": tokens}))
    assert files["report.html"].count("<script") == 2
    assert "<script>alert" not in files["report.html"]
    assert "<script" not in files["report.md"]
    assert "\n# heading" not in files["report.md"]
    assert "|[x]" not in files["report.md"]


def test_rendering_twice_gives_the_same_files(plan):
    assert render(plan) == render(plan)


def test_overlap_has_its_heatmap_and_its_line(plan):
    matrix = [[1.0 if a == b else 0.5 for b in range(8)] for a in range(8)]
    search = plan.search.model_copy(update={"overlap_matrix": matrix, "overlap": plan.search.uniform})
    files = render(plan.model_copy(update={"search": search}), "other-")
    ElementTree.fromstring(files["other-overlap.svg"])
    assert "share of keys selected alike" in files["other-overlap.svg"]
    assert "by overlap alone" in files["other-curve.svg"]
    assert "(other-overlap.svg)" in files["other-report.md"]
    assert files["other-report.html"].count("<figure") == 2
    assert files["other-overlap.svg"].count("<path") > 8
    assert "overlap.svg" not in render(plan)


def with_search(plan, **fields):
    """The plan with other findings."""
    return plan.model_copy(update={"search": plan.search.model_copy(update=fields)})


def measured(pattern, delta, **fields):
    return MeasuredPattern(
        kept=pattern.count("F"), pattern=pattern, loss=delta + 2, delta=delta, standard_error=0.001, **fields
    )


def test_refinement_is_told(plan):
    swap = PlanSwap(**measured("FFSSFSFS", 0.01).model_dump(), removed_layer=2, restored_layer=6)
    starts = [
        PlanStart(
            name=name,
            start="FFFSFSSS",
            start_cost=0.02,
            end="FFSSFSFS",
            end_cost=0.01,
            swaps=number,
            calibration_loss=None,
        )
        for number, name in enumerate(("older plan", "uniform"))
    ]
    files = render(with_search(plan, swaps=[swap], starts=starts))
    assert "| 2 | 6 |" in files["report.md"]
    assert "| older plan | FFFSFSSS | 0.0200 | 0 | FFSSFSFS | 0.0100 |" in files["report.md"]
    assert "Each start was refined" in files["report.html"]
    assert "### Refinement" not in render(plan)["report.md"]
    # Swaps belong to one budget, and a plan cut to another one knows none.
    swap = swap.model_copy(update={"loss": plan.search.baseline_loss + swap.delta})
    assert (
        "### Refinement" not in render(cut(with_search(plan, swaps=[swap], starts=starts), keep=0.25))["report.md"]
    )


def test_swaps_of_an_older_plan_are_told(plan):
    swap = PlanSwap(**measured("FFSSFSFS", 0.01).model_dump(), removed_layer=2, restored_layer=6)
    assert "Refinement swapped" in render(with_search(plan, swaps=[swap]))["report.html"]


class Cells(HTMLParser):
    """Collects headings, and the cells of tables."""

    def __init__(self, html):
        super().__init__()
        self.headings, self.cells, self.text = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.text = "" if tag in ("h2", "td", "th") else self.text

    def handle_data(self, data):
        self.text = None if self.text is None else self.text + data

    def handle_endtag(self, tag):
        if tag in ("h2", "td", "th") and self.text is not None:
            (self.headings if tag == "h2" else self.cells).append(self.text)


def rich(plan):
    """The plan with everything that a report can show, as far as it needs no other files."""
    scores = [ProbeScores(loss=loss, accuracy=0.5) for loss in (1.0, 1.25, 2.5, 1.5)]
    probes = [
        ProbeRecord(
            kind=kind, probes=4, full=scores[0], plan=scores[1], uniform=scores[2], dp=scores[3],
            delta=0.25, standard_error=0.1, low=0.05, high=0.45,
        )
        for kind in ("recall", "all")
    ]  # fmt: skip
    start = PlanStart(
        name="dp",
        start=plan.result.pattern,
        start_cost=0.2,
        end=plan.result.pattern,
        end_cost=0.2,
        calibration_loss=None,
        swaps=0,
    )
    steps = [step.model_copy(update={"undecided_layers": [7]}) for step in plan.search.steps]
    dp = measured("FFSSSSFF", 0.02, low=0.01, high=0.03)
    found = with_search(
        plan, steps=steps, dp=[dp], surrogate="fisher", starts=[start], kept_chances=[1.0, *[0.25] * 7]
    )
    heldout = plan.heldout.model_copy(update={"dp": dp})
    record = ProbesRecord(pattern=plan.result.pattern, kinds=probes[:1], all=probes[1])
    return found.model_copy(update={"heldout": heldout, "probes": record})


def test_both_pages_say_the_same_in_the_same_order(plan):
    files = render(rich(plan))
    html, markdown = Cells(files["report.html"]), files["report.md"]
    assert html.headings == re.findall(r"^## (.+)$", markdown, re.MULTILINE)
    assert html.headings == [
        "Verdict", "Loss against sparsity", "Pattern", "Probes, key tokens and position", "Speed and memory",
        "Removal order", "What was measured on what",
    ]  # fmt: skip
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = [cell.strip().replace("\\", "") for row in rows for cell in row.split("|")]
    missing = [cell for cell in cells if cell not in html.cells]
    assert not missing, f"report.html lacks cells of report.md: {missing}"


def test_plain_text_is_at_most_80_columns_wide(plan):
    """Of tables what a reader sees, without the signs that draw their lines."""
    markdown = render(rich(plan))["report.md"]
    lines = [re.sub(r"^\| | \|$|\| ", "", line) for line in markdown.splitlines()]
    wide = [line for line in lines if len(line) > 80 and not line.startswith(("- ", "!["))]
    assert not wide, f"too wide: {wide}"


def test_a_report_leads_with_a_verdict_from_held_out_figures(plan):
    text = " ".join(render(rich(plan))["report.md"].split())
    lead = text[: text.index("```")]
    figure = increase(plan.heldout.plan, 0.95)
    assert f"**Keeps 4 of 8 indexers; held-out loss {figure}, perplexity" in lead
    assert "probes worse: 50 % of answer tokens right, all full 50 %.**" in lead
    assert "Not measured: speed (`indexcache bench plan.json`)." in lead
    assert f"- Loss increase, held out: {figure} nats per token" in lead
    assert "- Dynamic programming over layer costs: +0.0200 (95 %: 0.0100 to 0.0300)" in lead
    assert (
        "- Loss increase on probes: +0.2500 (95 %: 0.0500 to 0.4500) nats per answer token; uniform +1.5" in lead
    )
    assert "- Steps decided at 95 %: 0 of 4; each kept layer stays in at least 25 % of draws" in lead
    assert "Loss increase, in sample" not in lead


def test_probes_stand_by_kind_with_the_other_patterns(plan):
    files = render(rich(plan))
    assert "| recall | 1.00, 50 % | 1.25, 50 % | 2.50, 50 % | +0.2500 (0.0500 to 0.4500) |" in files["report.md"]
    assert "1.50, 50 %" in files["report.html"]
    text = " ".join(files["report.md"].split())
    assert "LM loss hardly shows damage there" in text
    assert "says little" not in text
    assert "Probes were not measured" in render(plan.model_copy(update={"probes": None}))["report.md"]


def test_kinds_that_the_model_itself_does_not_answer_are_named(plan):
    record = rich(plan).probes
    dumb = record.kinds[0].model_copy(update={"full": ProbeScores(loss=9.0, accuracy=0.1)})
    files = render(rich(plan).model_copy(update={"probes": record.model_copy(update={"kinds": [dumb]})}))
    assert "say little about patterns: recall." in " ".join(files["report.md"].split())
    assert "say little about patterns: recall." in files["report.html"]


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_chances_stand_in_the_pattern(plan, name):
    text = " ".join(render(rich(plan))[name].split())
    assert "if documents are drawn anew" in text
    assert "25" in text
    assert "drawn anew" not in render(with_search(plan, kept_chances=[]))[name]


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_a_plan_that_is_not_complete_says_so_on_top(plan, name):
    unfinished = plan.model_copy(update={"complete": False, "heldout": None})
    text = render(unfinished)[name]
    assert text.index("The search was stopped before") < text.index(
        "Verdict</h2>" if "html" in name else "## Verdict"
    )
    assert "The search was stopped before" not in render(plan)[name]


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_plan_is_shown_without_what_it_does_not_know(version):
    files = render(read_plan(ASSETS / f"plan-v{version}.json"))
    for name in ("report.md", "report.html"):
        text = " ".join(files[name].split())
        for words in ("KL:", "same top token", "decided at", "95 %", "drawn anew", "A probe asks"):
            assert words not in text, f"{name} of version {version} says {words!r}"
        assert "tied with" in text or "noise floor" in text
        assert " ± " in text
        assert "LM loss chose" in text


def test_what_lies_far_above_the_curve_is_said_in_words(plan):
    uniform = measured(plan.heldout.uniform.pattern, 9.0)
    svg = render(with_search(plan, uniform=[uniform]))["curve.svg"]
    assert "\u2191 uniform interleaving +9.000 in sample" in svg
    assert "\u2191" not in render(with_search(plan, uniform=[]))["curve.svg"]


def test_the_curve_shows_dynamic_programming_and_held_out_points(plan):
    svg = render(rich(plan))["curve.svg"]
    for words in ("dp over layer costs", "held out (hollow)", "searched"):
        assert words in svg
    heldout = plan.heldout.model_copy(update={"dp": None})
    without = with_search(plan.model_copy(update={"heldout": heldout}), dp=[])
    assert "dp over layer costs" not in render(without)["curve.svg"]


def test_a_plan_of_dynamic_programming_has_no_steps(plan):
    dp = measured(plan.result.pattern, plan.result.delta)
    files = render(
        with_search(plan, strategy="dp", surrogate="error", steps=[], dp=[dp], kept_chances=[], ties=[])
    )
    assert "Layer costs chose" in files["report.md"]
    assert "There are no steps" in files["report.html"]
    assert "There is none: dynamic programming" in files["report.md"]


def test_names_in_tables_cannot_become_markup(plan):
    evil = "<script>|[x](javascript:1)"
    full = rich(plan)
    record = full.probes.model_copy(update={"kinds": [full.probes.kinds[0].model_copy(update={"kind": evil})]})
    starts = [full.search.starts[0].model_copy(update={"name": evil})]
    files = render(with_search(full, starts=starts).model_copy(update={"probes": record}))
    for name in ("report.md", "report.html"):
        assert evil[:10] not in files[name]
    assert "|[x]" not in files["report.md"]
