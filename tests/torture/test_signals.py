"""SIGINT, SIGTERM and SIGHUP, once and twice, while loading, measuring and writing."""

import functools
import json
import os
import signal
import time

import pytest
from children import run_child

from indexcache import signals, workflow
from indexcache.dsa.losses import PatternLosses
from indexcache.resuming import Sitting
from indexcache.search.journal import Journal, read_journal

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
PLACES = ["loading", "measuring", "writing a record", "writing the plan"]


def strike(place, number, twice=False):
    """Makes this process send itself a signal when it comes to ``place``, and another one soon after."""

    def send(*_):
        os.kill(os.getpid(), number)

    def send_again(*_):
        time.sleep(2 * signals._SAME_STOP_SECONDS)
        os.kill(os.getpid(), number)
        time.sleep(60)

    if twice:  # while the first one is being answered
        before(Sitting, "end", send_again)
    if place == "loading":
        before(workflow, "load", send)
    if place == "measuring":
        before(PatternLosses, "measure", send, times=20)
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
        kept = read_journal(out / "journal.jsonl").kept.window_evaluations
        if ended.code != 75 or said.get("stopped") is not True or said.get("exit_code") != 75:
            wrong = f"not stopped as it should: {ended}"
        elif len(ended.err.splitlines()) != 1 or "run the same command again to go on" not in ended.err:
            wrong = f"more, or less, than one line: {ended.err}"
        elif f"{kept} window evaluations are kept in '{out / 'journal.jsonl'}'" not in ended.err:
            wrong = f"{kept} are kept, but it says: {ended.err}"
        elif '"kind":"ended"' not in (out / "journal.jsonl").read_text().splitlines()[-1]:
            wrong = "the journal does not say that this was the end"
        elif place == "writing the plan" and (out / "plan.json").read_bytes() != plan_of(reference):
            wrong = "the plan was not finished"
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

    early = functools.partial(before, workflow, "prepare", lambda *_: os.kill(os.getpid(), number))
    ended = run_child([*arguments, "--out", out, "--json"], tmp_path, early)
    assert ended.code == 128 + number
    assert ended.err == "error: interrupted; nothing was written\n"
    assert json.loads(ended.out)["error"]["exit_code"] == 128 + number
    assert not out.exists()


def test_an_ignored_signal_stays_ignored():
    own = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stops_raised():
            os.kill(os.getpid(), signal.SIGHUP)
            signals.check_stop()
    finally:
        signal.signal(signal.SIGHUP, own)


def test_a_stop_waits_for_what_is_held_and_comes_after_it():
    done = []

    def write():
        with signals.held():
            with signals.held():
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
