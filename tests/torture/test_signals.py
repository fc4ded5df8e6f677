"""SIGINT, SIGTERM and SIGHUP, once and twice, while loading, measuring and writing."""

import functools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from children import one_line, run_child

from indexcache.commands import search as search_command
from indexcache.commands.job import session as job_session
from indexcache.commands.job.session import Session
from indexcache.dsa.model.losses import PatternLosses
from indexcache.search.run.journal import Journal, read_journal
from indexcache.system import signals

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
PLACES = ["loading", "measuring", "writing a record", "writing the plan"]


def strike(place, number, twice=False):
    """Makes this process send itself a signal when it comes to ``place``, and another one soon after."""

    def send(*_, **__):
        os.kill(os.getpid(), number)

    def send_again(*_, **__):
        time.sleep(2 * signals._SAME_STOP_SECONDS)
        os.kill(os.getpid(), number)
        time.sleep(60)

    if twice:  # while the first one is being answered
        before(Session, "end", send_again)
    if place == "loading":
        before(search_command, "load", send)
    if place == "measuring":
        before(PatternLosses, "compare_all", send, times=20)
    if place == "writing a record":
        before(Journal, "append", lambda journal, record: before(os, "write", send), times=20)
    if place == "writing the plan":
        before(os, "replace", lambda old, new: send() if new.name == "plan.json" else None, times=None)


def before(owner, name, job, times=1):
    """Does ``job`` before the ``times``-th call of a function, or before all."""
    function, calls = getattr(owner, name), []

    def wrapper(*given, **named):
        calls.append(name)
        if times in (None, len(calls)):
            job(*given, **named)
        return function(*given, **named)

    setattr(owner, name, wrapper)


def written(path, reference):
    """Whether the plan stands there as it was chosen, before baselines and checks are measured."""
    plan, finished = json.loads(path.read_text()), json.loads(plan_of(reference))
    return not plan["complete"] and plan["result"]["pattern"] == finished["result"]["pattern"]


@pytest.mark.reliability("R9")
def test_once(real, cases, full, tmp_path):
    arguments, reference = real
    chosen = [(place, number) for place in PLACES for number in SIGNALS]
    for place, number in chosen if full else chosen[::4]:
        out = tmp_path / f"{place}{number}"
        ended = run_child([*arguments, "--out", out, "--json"], tmp_path, functools.partial(strike, place, number))
        wrong = None
        try:
            said = json.loads(ended.out)
        except ValueError:
            said = {}
        kept = read_journal(out / "journal.jsonl").content.window_evaluations
        if ended.code != 75 or said.get("stopped") is not True or said.get("exit_code") != 75:
            wrong = f"not stopped as it should: {ended}"
        elif len(ended.err.splitlines()) != 1 or "run the same command again to go on" not in ended.err:
            wrong = f"more, or less, than one line: {ended.err}"
        elif f"{kept} window evaluations are kept in '{out / 'journal.jsonl'}'" not in ended.err:
            wrong = f"{kept} are kept, but it says: {ended.err}"
        elif '"kind":"ended"' not in (out / "journal.jsonl").read_text().splitlines()[-1]:
            wrong = "the journal does not say that this was the end"
        elif place == "writing the plan" and not written(out / "plan.json", reference):
            wrong = "the plan was not written"
        again = run_child([*arguments, "--out", out], tmp_path)
        if again.code or (out / "plan.json").read_bytes() != plan_of(reference):
            wrong = wrong or f"another plan, or none: {again}"
        cases.check(wrong is None, f"{signal.Signals(number).name} while {place}: {wrong}")


def plan_of(folder):
    return (folder / "plan.json").read_bytes()


@pytest.mark.reliability("R9")
def test_twice(real, cases, full, tmp_path):
    arguments, reference = real
    for number in SIGNALS if full else SIGNALS[:1]:
        for place in PLACES if full else PLACES[1:2]:
            out = tmp_path / f"{place}{number}"
            ended = run_child([*arguments, "--out", out], tmp_path, functools.partial(strike, place, number, True))
            again = run_child([*arguments, "--out", out], tmp_path)
            at_once = ended.code == 128 + number and "Traceback" not in ended.err
            fine = again.code == 0 and plan_of(out) == plan_of(reference)
            cases.check(fine and at_once, f"{number} twice while {place}: {ended}, then {again}")


@pytest.mark.reliability("R9")
@pytest.mark.parametrize("number", SIGNALS)
def test_before_there_is_a_journal_nothing_is_kept(real, number, tmp_path):
    arguments, _ = real
    out = tmp_path / "run"

    early = functools.partial(before, search_command, "prepare", lambda *_: os.kill(os.getpid(), number))
    ended = run_child([*arguments, "--out", out, "--json"], tmp_path, early)
    assert ended.code == 128 + number
    assert ended.err == "error: interrupted\n"
    assert json.loads(ended.out)["error"]["exit_code"] == 128 + number
    assert not out.exists()


@pytest.mark.reliability("R9")
def test_before_a_resume_has_begun_what_is_kept_stays_kept(real, tmp_path):
    arguments, reference = real
    out = tmp_path / "run"
    run_child([*arguments, "--out", out], tmp_path, functools.partial(strike, "measuring", signal.SIGTERM))
    kept = read_journal(out / "journal.jsonl").content.window_evaluations
    for module, place in ((search_command, "prepare"), (job_session, "_open")):
        early = functools.partial(before, module, place, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        ended = run_child([*arguments, "--out", out], tmp_path, early)
        assert (ended.code, one_line(ended.err)) == (75, True), ended
        assert f"{kept} window evaluations are kept" in ended.err
    again = run_child([*arguments, "--out", out], tmp_path)
    assert (again.code, plan_of(out)) == (0, plan_of(reference)), again


@pytest.mark.torture
@pytest.mark.reliability("R9")
def test_signals_that_come_while_it_leaves_change_nothing(real, tmp_path):
    """A launcher sends its signal again and again until the process is gone."""
    arguments, _ = real
    command = [sys.executable, "-m", "indexcache", *map(str, arguments), "--out", str(tmp_path / "run")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    journal = tmp_path / "run" / "journal.jsonl"
    while running.poll() is None and not (journal.exists() and b'"losses"' in journal.read_bytes()):
        time.sleep(0.01)
    running.terminate()
    said = running.stderr.readline()
    for _ in range(20):
        running.send_signal(signal.SIGTERM)
        running.send_signal(signal.SIGINT)
    _, more = running.communicate(timeout=60)
    assert (running.returncode, said[:25], more) == (75, "error: stopped by SIGTERM", "")


@pytest.mark.reliability("R9")
def test_an_interrupt_while_it_starts_is_no_traceback(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "indexcache", "inspect", "nothing"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # Background shells have it ignored, which would be passed on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    seen = []
    for line in running.stderr:
        seen.append(line)
        if " typer." in line and running.poll() is None:
            running.send_signal(signal.SIGINT)
    assert running.wait(60) in (-signal.SIGINT, 130), seen[-3:]
    assert not [line for line in seen if not line.startswith(("import time:", "error: interrupted"))]


def test_an_ignored_signal_stays_ignored():
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stops_raised():
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check_stop()
    finally:
        signal.signal(signal.SIGHUP, handler)


def test_a_stop_waits_for_what_is_held_and_comes_after_it():
    done = []

    def write():
        with signals.stops_held():
            with signals.stops_held():
                os.kill(os.getpid(), signal.SIGTERM)
            done.append("all of it")
        done.append("more")

    with signals.stops_raised(), pytest.raises(signals.Stop) as stop:
        write()
    assert (done, stop.value.name) == (["all of it"], "SIGTERM")


def test_a_stop_that_a_destructor_swallowed_is_raised_at_the_next_check(capsys):
    class Leaving:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with signals.stops_raised():
        leaving = Leaving()
        del leaving
        with pytest.raises(signals.Stop):
            signals.check_stop()
    assert capsys.readouterr().err == ""
