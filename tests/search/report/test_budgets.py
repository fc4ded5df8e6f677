"""Every budget in one file: the verdict, settings that follow from the pattern, and the whole curve held out."""

import json
import re
import subprocess

import pytest
from measured_plans import prefills, with_curve

from indexcache.search.export.settings import export
from indexcache.search.export.support import Serving
from indexcache.search.plan.cut import cut, measured_patterns
from indexcache.search.plan.file import read_plan
from indexcache.search.plan.schema import ProbeRecord, ProbeScores, ProbesRecord
from indexcache.search.report.checks import CheckRecord
from indexcache.search.report.pages import render
from indexcache.search.report.sections.budgets import budgets
from indexcache.search.report.sections.layers import cells, full_layers, stages_sentence
from indexcache.search.report.sections.repeat import search_command
from indexcache.search.report.sections.settings import assembled, engine_settings
from indexcache.search.report.sections.speed import length, speeds
from indexcache.search.report.sections.verdict import verdict
from indexcache.search.report.worth import Worth


@pytest.fixture
def plan(searched):
    return read_plan(searched / "plan.json")


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


class TestSettings:
    def test_what_is_pasted_at_another_budget_is_what_export_says_of_it(self, plan):
        measured = [budget.plan for budget in budgets(plan, None, None, Worth(), "plan.json")]
        engines = [engine for engine in engine_settings(plan, measured) if engine.able]
        assert {"vllm", "sglang", "transformers"} <= {engine.name for engine in engines}
        for kept in measured_patterns(plan):
            other = cut(plan, keep=kept / plan.result.sites)
            for engine in engines:
                result = other.result
                pattern = result.pattern if engine.by_site else result.layer_pattern
                text = engine.others.get(kept) or assembled(engine.pieces, pattern)
                said = export(other, engine.name, Serving(elsewhere=True)).paste
                assert text == said, f"{engine.name} at {kept} kept"

    def test_patterns_are_left_open_so_that_the_page_stays_small(self, plan):
        engines = engine_settings(
            plan, [budget.plan for budget in budgets(plan, None, None, Worth(), "plan.json")]
        )
        # All full some engines need less, which no pattern says.
        whole = [engine.name for engine in engines if engine.able and engine.others.keys() - {8}]
        assert not whole, f"texts of every budget are stored for {whole}"

    def test_the_checkpoints_place_on_this_machine_is_not_told(self, plan, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine").mkdir()
        moved = plan.model_copy(update={"model": plan.model.model_copy(update={"id": "mine"})})
        assert str(tmp_path) not in render(moved)["report.html"]
        assert "'mine'" in render(moved)["report.html"]

    def test_a_name_that_a_shell_takes_for_an_option_is_refused_in_its_place(self, plan):
        named = plan.model_copy(update={"model": plan.model.model_copy(update={"id": "-x"})})
        refused = [engine for engine in engine_settings(named, []) if not engine.able]
        assert refused
        assert all("read as an option" in engine.paste for engine in refused)


class TestBudgets:
    def test_the_page_holds_every_budget_that_cut_gives(self, plan):
        data = data_of(render(plan)["report.html"])
        patterns = {budget["kept"]: budget["sites"] for budget in data["budgets"]}
        assert patterns == {kept: found.pattern for kept, found in measured_patterns(plan).items()}
        assert data["budgets"][data["picked"]]["kept"] == plan.result.kept

    def test_a_budget_is_judged_by_what_is_known_of_it_alone(self, plan):
        told = {
            budget.kept: budget.verdict for budget in budgets(plan, None, prefills(plan), Worth(), "plan.json")
        }
        assert "in sample" in told[2].sentence
        assert "held-out loss at this budget (`indexcache eval plan.json`)" in told[2].gaps
        assert "held-out loss" in told[4].sentence
        assert told[8].sentence == "Keeps 8 of 8 indexers."
        assert not told[8].gaps, "all full leaves nothing to measure"

    def test_with_the_curve_every_budget_is_held_out(self, plan):
        told = {
            budget.kept: budget.verdict.sentence for budget in budgets(plan, with_curve(plan), None, Worth(), "p")
        }
        assert "held-out loss +0.0600 (95 %: 0.0580 to 0.0620), perplexity +6.2 %" in told[2]
        files = render(plan, checks=with_curve(plan))
        assert "searched, held out, 2 of 8 kept: +0.0600 (0.0580 to 0.0620)" in files["curve.svg"]
        assert "| 2 | +0.0600 (0.0580 to 0.0620) | +0.6000 (0.5980 to 0.6020) |" in files["report.md"]
        assert "| 16 to 31 | +0.0700 (0.0680 to 0.0720) | +0.7000 (0.6980 to 0.7020) |" in files["report.md"]
        assert "not measured: `indexcache eval" not in files["report.md"]

    def test_a_distilled_plan_has_one_budget(self, plan):
        forged = plan.model_copy(update={"distilled": object()})
        assert measured_patterns(plan).keys() > {plan.result.kept}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("indexcache.search.report.sections.budgets.headlines", lambda *_: ())
            assert [budget.kept for budget in budgets(forged, None, None, Worth(), "plan.json")] == [
                plan.result.kept
            ]

    def test_a_curve_of_another_pattern_is_refused(self, plan):
        checks = with_curve(plan)
        with pytest.raises(ValueError, match=r"curve\.positions is of another pattern"):
            CheckRecord(plan_sha256=checks.plan_sha256, pattern="F" * 8, curve=checks.curve)


class TestVerdict:
    def probes(self, pattern, low, high, after=0.5):
        full, other = ProbeScores(loss=1.0, accuracy=0.5), ProbeScores(loss=1.1, accuracy=after)
        record = ProbeRecord(
            kind="all", probes=4, full=full, plan=other, uniform=other, delta=0.1, standard_error=None,
            low=low, high=high,
        )  # fmt: skip
        return ProbesRecord(pattern=pattern, kinds=[], all=record)

    @pytest.mark.parametrize(
        ("low", "high", "after", "words"),
        [
            (0.05, 0.2, 0.4, "probes worse: 40 % of answer tokens right, all full 50 %"),
            (-0.2, -0.05, 0.6, "probes better: 60 %"),
            (-0.1, 0.3, 0.5, "probes unchanged at 50 %"),
            (-0.1, 0.3, 0.4, "probes not surely changed: 40 %"),
        ],
    )
    def test_probes_are_told_as_far_as_the_interval_tells(self, plan, low, high, after, words):
        scores = self.probes(plan.result.pattern, low, high, after)
        assert words in verdict(plan, plan.heldout, scores, [], "plan.json").sentence

    def test_the_kind_that_lost_most_is_named_where_the_mean_hides_it(self, plan):
        scores = self.probes(plan.result.pattern, -0.1, 0.3, 0.48)
        full, after = ProbeScores(loss=1.0, accuracy=0.97), ProbeScores(loss=3.0, accuracy=0.71)
        copy = scores.all.model_copy(update={"kind": "copy", "full": full, "plan": after})
        scores = scores.model_copy(update={"kinds": [scores.all.model_copy(update={"kind": "order"}), copy]})
        sentence = verdict(plan, plan.heldout, scores, [], "plan.json").sentence
        assert "48 % of answer tokens right, all full 50 %, copy 71 % (all full 97 %)" in sentence

    def test_speed_is_of_the_longest_context_and_reckoned_elsewhere(self, plan):
        record = prefills(plan, device="NVIDIA <H100>")
        (own,) = speeds(record, None, plan, plan)
        assert own.words == "prefill of 128K tokens 4.00x faster, measured on NVIDIA H100"
        (half,) = speeds(record, None, plan, cut(plan, keep=0.75))
        record = record.model_copy(update={"config_sha256": "f" * 64, "model": "another"})
        (other,) = speeds(record, None, plan, plan)
        assert (
            "4.00x faster, measured with another, whose config is not the one searched, on NVIDIA" in other.words
        )
        # Two of the four indexers that are gone: 8 - 6 * 2 / 4 = 5 seconds.
        assert half.words == "prefill of 128K tokens 1.60x faster, reckoned from measurements on NVIDIA H100"
        assert [length(tokens) for tokens in (131072, 4096, 1000)] == ["128K", "4K", "1,000"]

    def test_an_increase_beyond_all_bounds_breaks_no_sentence(self, plan):
        heldout = plan.heldout.model_copy(update={"plan": plan.heldout.plan.model_copy(update={"delta": 9e8})})
        assert "perplexity" not in verdict(plan, heldout, None, [], "plan.json").sentence


class TestPattern:
    def test_all_layers_stand_in_the_strip(self, plan):
        model = plan.model.model_copy(update={"layers": 11, "shared_layers": [9]})
        row = cells(plan.model_copy(update={"model": model}))
        assert "".join(cell.role or "." for cell in row) == f"{plan.result.pattern}.N."

    def test_each_site_is_served_once(self, plan):
        table = full_layers(plan)
        full = [row.cells[0] for row in table.rows]
        assert full == [str(site) for site in plan.pattern.full]
        assert len(full) == plan.result.kept

    def test_stages_that_fit_are_named(self, plan):
        fits = plan.result.layer_pattern[4] == "F"
        assert ("even splits into 2" in stages_sentence(plan)) == fits


def test_the_command_that_repeats_a_search_is_one_that_it_takes(plan):
    from typer.main import get_command

    from indexcache.cli import app

    named = plan.model_copy(update={"model": plan.model.model_copy(update={"id": "a b"})})
    script = f"f() {{ printf '%s\\0' \"$@\"; }}; {search_command(named).replace('indexcache', 'f', 1)}"
    words = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")[
        :-1
    ]
    assert words[:3] == ["search", "--model", "a b"]
    group = get_command(app)
    with group.make_context("indexcache", words) as context:
        name, command, rest = group.resolve_command(context, context._protected_args + context.args)
        command.make_context(name, rest, parent=context)
