"""A plan and its model: which checkpoint is opened, and that its weights are looked for once."""

import pytest

import indexcache
from indexcache.commands.job import planned
from indexcache.dsa.checkpoint.config import Trust
from indexcache.dsa.checkpoint.stored import weights
from indexcache.errors import ModelError
from indexcache.search.plan.file import read_plan


@pytest.fixture
def plan(searched):
    """The plan of a checkpoint on the hub."""
    plan = read_plan(searched)
    return plan.model_copy(update={"model": plan.model.model_copy(update={"id": "acme/tiny", "revision": "c1"})})


@pytest.mark.parametrize(
    ("model", "revision", "opened"),
    [
        (None, None, ("acme/tiny", "c1")),
        ("acme/tiny", None, ("acme/tiny", "c1")),
        ("acme/tiny", "main", ("acme/tiny", "main")),
        ("elsewhere", None, ("elsewhere", None)),
    ],
)
def test_the_plans_revision_goes_with_the_plans_name(monkeypatch, plan, model, revision, opened):
    monkeypatch.setattr(planned, "open_checkpoint", lambda name, revision, trust: (name, revision))
    assert planned.open_planned(plan, model, Trust(), revision).checkpoint == opened


def test_a_checkpoint_that_moved_is_asked_for(monkeypatch, plan):
    def fail(*_):
        raise ModelError("nothing there", hint="look again")

    monkeypatch.setattr(planned, "open_checkpoint", fail)
    with pytest.raises(ModelError, match="nothing there") as caught:
        planned.open_planned(plan, None, Trust())
    assert "--model" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        planned.open_planned(plan, "elsewhere", Trust())
    assert caught.value.hint == "look again"


def test_weights_are_looked_for_once(monkeypatch, checkpoints, searched):
    folders, read_shards = [], weights.read_shards

    def counted(folder, files):
        folders.append(folder)
        return read_shards(folder, files)

    monkeypatch.setattr(weights, "read_shards", counted)
    indexcache.load(checkpoints["eight"], searched)
    assert folders == [checkpoints["eight"]], "hashing and loading read the headers once, together"
