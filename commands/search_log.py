"""What search tells an experiment tracker, step by step, through accelerate, if the library is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import SettingError, first_line
from ..recipes.schema import Recipe
from ..search.goal import Goal
from ..search.plan.schema import Plan
from ..search.search import SearchProgress
from ..search.strategies.greedy import Step
from ..system import processes
from ..system.console import Reporter
from ..system.launching import speaks

_PROJECT = "indexcache"


class SearchLog:
    """Figures of a search for one tracker, or for none. A tracker that fails is left, and the search goes on.

    Args:
        tracker: one of accelerate's; None where nothing is to be logged.
        reporter: where a failure is told.
    """

    def __init__(self, tracker: Any | None, reporter: Reporter) -> None:
        self._tracker, self._reporter, self._steps = tracker, reporter, 0

    def followed(self, progress: SearchProgress) -> SearchProgress:
        """``progress`` with each removal logged too: sites kept, mean loss in nats a token, and what chooses."""
        if self._tracker is None:
            return progress

        def step(step: Step) -> None:
            progress.step(step)
            evaluation = step.evaluation
            self._steps += 1
            self._write({"kept": step.pattern.kept, "loss": evaluation.loss, "cost": evaluation.cost})

        return replace(progress, step=step)

    def conclude(self, plan: Plan) -> None:
        """Logs what the plan keeps, and its loss increase on held-out windows, nats a token."""
        figures: dict[str, float] = {"plan kept": plan.result.kept}
        if plan.heldout is not None:
            figures["plan increase held out"] = plan.heldout.plan.delta
        self._write(figures)

    def _write(self, figures: dict[str, float]) -> None:
        if self._tracker is None:
            return
        try:
            self._tracker.log(figures, step=self._steps)
        except Exception as error:  # whatever a network or a library does
            self._tracker = None
            self._reporter.warn(f"--log stopped, and the search goes on: {first_line(error)}")


@contextmanager
def search_log(
    name: str | None, recipe: Recipe, goal: Goal, folder: Path, reporter: Reporter
) -> Iterator[SearchLog]:
    """A log in the tracker ``name``, closed at the end; of several processes the main one writes it.

    Raises:
        SettingError: its library is not installed, or it cannot begin.
    """
    if name is None or not speaks():
        yield SearchLog(None, reporter)
        return
    tracker = _begun(name, asdict(recipe) | asdict(goal), folder)
    try:
        yield SearchLog(tracker, reporter)
    finally:
        try:
            tracker.finish()
        except Exception as error:  # nothing of the search depends on it
            reporter.warn(f"--log may lack its end: {first_line(error)}")


def _begun(name: str, settings: Mapping[str, Any], folder: Path) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    processes.process_count()  # makes accelerate's state, which trackers ask
    if not filter_trackers([name], str(folder)):
        raise SettingError(f"--log {name} needs a library that is not installed", hint=f"pip install {name}")
    kind = LOGGER_TYPE_TO_CLASS[name]
    try:
        tracker = kind(_PROJECT, str(folder)) if kind.requires_logging_directory else kind(_PROJECT)
        tracker.start()
        given = {field: value for field, value in settings.items() if value is not None}
        plain = {
            field: value if isinstance(value, bool | int | float) else str(value) for field, value in given.items()
        }
        tracker.store_init_configuration(plain)
    except Exception as error:  # its library's own: no key, no network, no room
        raise SettingError(f"--log {name} cannot begin: {first_line(error)}") from error
    return tracker
