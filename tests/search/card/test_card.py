"""The plan card: front matter that the hub reads, whatever names a plan holds, and nothing of one machine."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from indexcache.search.card.card import card
from indexcache.search.plan.file import read_plan

PLAN = read_plan(Path(__file__).parents[2] / "assets" / "plan-v3.json")


def renamed(name, revision=None):
    model = PLAN.model.model_copy(update={"id": name, "revision": revision})
    return PLAN.model_copy(update={"model": model})


def test_the_hub_reads_what_was_measured():
    plan = renamed("acme/big", "a" * 40)
    data = ModelCard(card(plan)).data
    assert (data.base_model, data.library_name) == ("acme/big", "indexcache")
    assert plan.model.model_type in data.tags
    value = {result.metric_name: result.metric_value for result in data.eval_results}
    assert value["held-out loss increase, nats per token"] == pytest.approx(plan.heldout.plan.delta, abs=1e-6)


def test_a_folder_is_no_base_model_and_its_place_stays_private():
    text = card(renamed("/home/somebody/checkpoints/mine"))
    assert "base_model" not in yaml.safe_load(text.split("---")[1])
    assert "somebody" not in text
    assert "Indexers to keep in mine" in text


@pytest.mark.parametrize(
    "name",
    ["a: b", "x/y # z", "[1, 2]/{a}", "'\"/`", "|/<script>alert(1)</script>", "!!python/object:os", "---/..."],
)
def test_hostile_names_are_text(name):
    text = card(renamed(name, "b" * 40))
    _, front, body = text.split("\n---\n", 1)[0], *text.removeprefix("---\n").split("\n---\n", 1)
    data = yaml.safe_load(front)
    assert data["base_model"] == name
    assert data["tags"][0] == "indexcache"
    assert "<script>" not in body


def test_says_what_was_not_measured():
    bare = PLAN.model_copy(update={"heldout": None, "probes": None})
    text = card(bare)
    assert "not checked on held-out text" in text
    assert "Probes were not measured" in text
    assert "model-index" not in text
    assert "indexcache check" not in text
    assert "indexcache check REPOSITORY" in card(bare, has_fingerprint=True)
