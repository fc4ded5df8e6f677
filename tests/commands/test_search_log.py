"""search --log: what a tracker is told, and that no tracker can end a search."""

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from command_lines import lines, search_arguments
from paper_model import on_paper


class NotedTracker(tracking.GeneralTracker):
    """Notes all that it is told; fails where it is told to."""

    name, requires_logging_directory, tracker = "tensorboard", True, None
    fails_at: str | None = None
    last = None

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.place, self.figures, self.settings, self.ended = (run_name, logging_dir), [], None, False
        NotedTracker.last = self

    def _reach(self, stage):
        if self.fails_at == stage:
            raise ConnectionError(f"no network at {stage}")

    def start(self):
        self._reach("start")

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step):
        self._reach("log")
        self.figures.append((step, values))

    def finish(self):
        self.ended = True
        self._reach("finish")


@pytest.fixture
def logged_search(run_cli, checkpoints, text_file, tmp_path, monkeypatch):
    """Runs a search with --log tensorboard on paper, the tracker failing at a stage; exit code, stderr, folder."""

    def run(fails_at=None):
        on_paper(monkeypatch)
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", NotedTracker)
        monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
        monkeypatch.setattr(NotedTracker, "fails_at", fails_at)
        code, _, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path), "--log", "tensorboard")
        return code, err, tmp_path

    return run


def test_a_tracker_is_told_of_each_step_and_of_the_plan(logged_search):
    code, err, folder = logged_search()
    tracker = NotedTracker.last
    assert (code, tracker.place) == (0, ("indexcache", str(folder))), err
    assert tracker.settings["keep"] == 0.5
    *steps, (last, plan) = tracker.figures
    assert [(step, figures["kept"]) for step, figures in steps] == [(1, 5), (2, 4), (3, 3)]
    assert all(set(figures) == {"kept", "loss", "cost"} for _, figures in steps)
    assert (last, plan["plan kept"], "plan increase held out" in plan) == (3, 3, True)
    assert tracker.ended


def test_a_tracker_that_fails_on_the_way_ends_no_search(logged_search):
    code, err, folder = logged_search("log")
    told = [line for line in lines(err) if line.startswith("warning: --log stopped, and the search goes on")]
    assert (code, len(told), (folder / "plan.json").is_file()) == (0, 1, True)
    assert "no network at log" in told[0]
    code, err, _ = logged_search("finish")
    assert (code, "warning: --log may lack its end: no network at finish" in err) == (0, True)


def test_a_tracker_that_cannot_begin_is_one_line_before_anything_is_read(logged_search):
    code, err, folder = logged_search("start")
    assert (code, list(folder.glob("*.json*"))) == (2, [])
    assert lines(err)[-1].startswith("error: --log tensorboard cannot begin: no network at start")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wandb", "--log wandb needs a library that is not installed (pip install wandb)"),
        ("paper", "--log is 'paper' (give one of tensorboard, wandb, mlflow)"),
    ],
)
def test_one_that_is_not_there_is_told_before_anything_is_read(
    run_cli, checkpoints, text_file, tmp_path, monkeypatch, name, says
):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    code, out, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path), "--log", name)
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert says in lines(err)[-1]
