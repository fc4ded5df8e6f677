"""What a launcher's variables say, left over, incomplete or whole."""

import json
import shutil
import socket

import pytest

from indexcache.errors import SettingError
from indexcache.system import launching
from indexcache.system.launching import Launch, current_launch, main_process_answers, speaks, unconnected_launcher

PLACE = {"MASTER_ADDR": "there", "MASTER_PORT": "29501"}
OMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.fixture
def given(monkeypatch):
    """Sets the variables, and no others of their kind."""
    for name in (*launching._READ_ELSEWHERE, *launching._NEEDED, *OMPI, "PMI_RANK", "MPI_LOCALRANKID"):
        monkeypatch.delenv(name, raising=False)

    def given(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return given


@pytest.mark.parametrize(
    "variables",
    [
        {},
        PLACE,
        {"LOCAL_RANK": "1", **PLACE},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "gone"},
        OMPI,
        {"PMI_RANK": "1", "PMI_SIZE": "4"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "3"},
    ],
)
def test_what_was_left_over_leaves_it_alone(variables, given):
    given(variables)
    assert current_launch() is None
    assert speaks()


def test_processes_of_a_launcher(given):
    given({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **PLACE})
    assert current_launch() == Launch(3, 4, 1, "there", 29501)
    assert not speaks()
    launching.work_apart()
    assert current_launch() is None
    launching.work_apart(False)


def test_processes_of_mpirun_that_know_where_to_meet(given):
    given({**OMPI, "MASTER_ADDR": "there"})
    assert current_launch() == Launch(1, 2, 1, "there", 29500)
    assert unconnected_launcher() is None


def test_processes_of_mpirun_that_do_not(given):
    given(OMPI)
    assert unconnected_launcher() == "OMPI_COMM_WORLD_SIZE is 2 and MASTER_ADDR is not set"
    given({"OMPI_COMM_WORLD_SIZE": "two"})
    assert unconnected_launcher() == "OMPI_COMM_WORLD_SIZE is 'two', no number"
    given({"OMPI_COMM_WORLD_SIZE": "1"})
    assert unconnected_launcher() is None


def test_of_mpiruns_variables_the_one_that_is_missing_or_wrong_is_named(given, monkeypatch):
    given({**OMPI, "MASTER_ADDR": "there"})
    monkeypatch.delenv("OMPI_COMM_WORLD_RANK")
    assert current_launch() is None
    assert unconnected_launcher() == "OMPI_COMM_WORLD_SIZE is 2 and OMPI_COMM_WORLD_RANK is not set"
    given({**OMPI, "OMPI_COMM_WORLD_SIZE": "two"})
    with pytest.raises(SettingError, match="OMPI_COMM_WORLD_SIZE is 'two' in the environment"):
        current_launch()
    given({**OMPI, "OMPI_COMM_WORLD_RANK": "5"})
    with pytest.raises(SettingError, match=r"OMPI_COMM_WORLD_RANK is '5' .* where OMPI_COMM_WORLD_SIZE is 2"):
        current_launch()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": "abc", **PLACE}, "WORLD_SIZE is 'abc'"),
        ({"RANK": "0", "WORLD_SIZE": "0", **PLACE}, "WORLD_SIZE is '0'"),
        ({"RANK": "", "WORLD_SIZE": "2", **PLACE}, "RANK is ''"),
        ({"RANK": "2", "WORLD_SIZE": "2", **PLACE}, "from 0 to 1 where WORLD_SIZE is 2"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "from 0 to 0 where WORLD_SIZE is 1"),
        ({"RANK": "-1", "WORLD_SIZE": "2", **PLACE}, "RANK is '-1'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here"}, "MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", **PLACE, "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
        ({"RANK": "0", "WORLD_SIZE": "2", **PLACE, "LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ],
)
def test_what_does_not_go_together_is_named(variables, words, given, run_cli, tmp_path):
    given(variables)
    with pytest.raises(SettingError, match="in the environment") as caught:
        current_launch()
    assert words in str(caught.value)
    code, printed, err = run_cli("search", "--recipe", "tiny", "--keep", 0.25, "--out", tmp_path / "out")
    assert (code, printed, len(err.splitlines())) == (2, "", 1), err
    assert words in err


def test_jobs_of_one_process_do_not_mind(given, run_cli, searched, tmp_path):
    given({"RANK": "0", "WORLD_SIZE": "abc"})
    code, printed, _ = run_cli("cut", searched, "--keep", 0.25, "--out", tmp_path / "cut.json")
    assert (code, printed.strip()) == (0, str(tmp_path / "cut.json"))


ALONE = [
    ["cut", "--keep", 0.25, "--json"],
    ["report", "--json"],
    ["export", "--to", "sglang", "--json"],
    ["apply", "--new-tokens", 1, "--json", "-q"],
    ["bench", "--context", 32, "--repeats", 1, "--json", "-q"],
    ["inspect", "--json"],
]


def of_plan(command, searched):
    """The command with what it is about: the plan, or the embedded checkpoint."""
    return command[0], "recipes/tiny" if command[0] == "inspect" else searched, *command[1:]


@pytest.fixture
def place():
    """A place to meet, where somebody listens."""
    with socket.create_server(("localhost", 0)) as listener:
        yield {"MASTER_ADDR": "localhost", "MASTER_PORT": str(listener.getsockname()[1])}


@pytest.fixture
def deserted(monkeypatch):
    """A place to meet, where nobody does."""
    monkeypatch.setattr(launching, "_LOOK_SECONDS", 0.2)
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]
    return {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


@pytest.mark.parametrize("command", ALONE)
def test_the_other_processes_leave_them_to_the_main_one(command, given, run_cli, searched, place):
    given({"RANK": "1", "WORLD_SIZE": "2", **place})
    before = {path.name: path.stat().st_mtime_ns for path in searched.iterdir()}
    code, printed, err = run_cli(*of_plan(command, searched))
    assert (code, printed, len(err.splitlines())) == (0, "", 1), err
    assert "process 1 of 2: left to process 0" in err
    assert {path.name: path.stat().st_mtime_ns for path in searched.iterdir()} == before


@pytest.mark.parametrize("command", ALONE)
def test_variables_of_an_earlier_job_leave_no_command_undone(
    command, given, run_cli, searched, deserted, tmp_path
):
    copy = shutil.copytree(searched, tmp_path / "run")
    given({"RANK": "1", "WORLD_SIZE": "2", **deserted})
    code, printed, err = run_cli(*of_plan(command, copy))
    assert code == 0, err
    assert json.loads(printed)
    assert "nobody answers at localhost:" in err
    given({"RANK": "1", "WORLD_SIZE": "2", **deserted, "MASTER_ADDR": "nowhere.invalid"})
    assert run_cli("report", copy)[0] == 0


@pytest.mark.parametrize(
    "arguments", [["report", "nothing"], ["search", "--keep", "half"], ["eval", "nothing"], ["cut", "--bogus"]]
)
def test_variables_of_an_earlier_job_hide_no_error(arguments, given, run_cli, deserted):
    given({"RANK": "1", "WORLD_SIZE": "2", **deserted})
    code, printed, err = run_cli(*arguments, "--json")
    assert code == 2
    assert "error: " in err
    assert json.loads(printed)["error"]["exit_code"] == 2


def test_the_others_see_a_main_process_that_works_apart(given, run_cli, searched, deserted):
    given({"RANK": "0", "WORLD_SIZE": "2", **deserted})
    assert not main_process_answers(current_launch())
    launch = current_launch()
    assert run_cli("export", searched, "--to", "none")[0] == 0
    assert main_process_answers(launch), "as long as it lives"
    launching.work_apart(False)
    assert not main_process_answers(launch)


def test_the_main_one_does_not_wait_for_them(given, run_cli, searched, tmp_path):
    given({"RANK": "0", "WORLD_SIZE": "2", **PLACE})
    code, printed, err = run_cli("apply", searched, "--new-tokens", 1, "-q", "--json")
    assert (code, err) == (0, ""), err
    assert printed.startswith("{")
