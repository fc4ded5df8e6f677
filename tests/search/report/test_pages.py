"""The report: complete, self-contained, and safe against whatever text a plan carries."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import PlanSwap
from indexcache.search.report.pages import render


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
    page = Page(render(plan)["report.html"])
    assert "svg" in page.tags
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links), page.links


def test_the_curve_is_an_svg_with_both_lines(plan):
    svg = render(plan)["curve.svg"]
    ElementTree.fromstring(svg)
    for words in ("searched", "uniform interleaving", "loss increase, nats per token", "this plan: 4 of 8 kept"):
        assert words in svg


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_every_step_and_identity_stands_in_the_report(plan, name):
    text = render(plan)[name]
    for step in plan.search.steps:
        assert f"{step.delta:+.4f} ± {step.standard_error:.4f}" in text
    for fact in (plan.tokens.sha256, plan.model.weights_sha256, plan.result.layer_pattern):
        assert fact in text
    assert f"{plan.heldout.plan.delta:+.4f}" in text
    assert f"{plan.tokens.informative_share:.1%}" in text


def test_the_strip_has_a_cell_per_site(plan):
    html = render(plan)["report.html"]
    assert "".join(re.findall(r'<span class="([FS])"', html)) == plan.result.pattern


def test_a_cut_plan_says_that_it_was_not_checked(plan):
    files = render(cut(plan, keep=0.25))
    assert "Not measured for this pattern" in files["report.md"]
    assert "Not measured for this pattern" in files["report.html"]


def test_names_cannot_become_markup(plan):
    evil = "<script>alert(1)</script>|[x](javascript:1)\n# heading"
    model = plan.model.model_copy(update={"id": evil})
    tokens = plan.tokens.model_copy(update={"dataset": evil})
    files = render(plan.model_copy(update={"model": model, "tokens": tokens}))
    assert "<script" not in files["report.html"]
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
    assert "overlap.svg" not in render(plan)


def test_refinement_is_told(plan):
    step = plan.search.steps[3]
    fields = {name: getattr(step, name) for name in ("kept", "pattern", "loss", "delta", "standard_error")}
    swap = PlanSwap(**fields, removed_layer=2, restored_layer=6)
    files = render(plan.model_copy(update={"search": plan.search.model_copy(update={"swaps": [swap]})}))
    assert "| 2 | 6 |" in files["report.md"]
    assert "Refinement then swapped" in files["report.html"]
    assert "Refinement" not in render(plan)["report.md"]
