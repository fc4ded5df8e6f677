"""One process's time at a run: takes the lock, goes on from the journal, and leaves both in order at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ...errors import IndexcacheError, JournalError, StoppedRunError
from ...evaluate import WindowLoss
from ...pattern import Pattern
from ...search.plan.file import read_plan
from ...search.plan.schema import RunIdentity
from ...search.report.timing import Timing, now, timing_of
from ...search.run.folder import PLAN_FILE, begin_anew, remove_leftovers
from ...search.run.journal import JOURNAL_FILE, Journal, check_same, read_journal
from ...search.run.records import (
    Identity,
    JournalContent,
    LayerCostsRecord,
    OverlapRecord,
    RunRecord,
    SelfCheckRecord,
    SessionEnd,
    SessionStart,
    losses_record,
)
from ...system import processes
from ...system.console import Reporter
from ...system.files import is_there
from ...system.locking import locked
from ...system.signals import Stop, stops_held
from ...system.versions import computing_versions


class Session:
    """One process's time at a run.

    Args:
        path: of the journal.
        content: what it holds, the same on all processes.
        journal: where this process writes; None on all but the main one.
    """

    def __init__(self, path: Path, content: JournalContent, journal: Journal | None) -> None:
        self.path = path
        self.content = content
        self._journal = journal
        self._began = time.monotonic()

    def write(
        self,
        group: str,
        last_token: bool,
        windows: Sequence[int],
        patterns: Sequence[Pattern],
        sums: Sequence[Sequence[WindowLoss]],
    ) -> None:
        """Keeps losses that were just measured."""
        if self._journal is not None:
            names = [str(pattern) for pattern in patterns]
            self._journal.append(losses_record(self._seconds(), group, last_token, windows, names, sums))

    def keep_run(self, run: RunIdentity) -> None:
        """Keeps how the model runs, or compares it with how it ran before.

        Raises:
            IdentityError: it runs otherwise; names the field.
        """
        before = self.content.run
        if before is None:
            self.content.run = run
            if self._journal is not None:
                self._journal.append(RunRecord(run=run))
            return
        processes.run_on_main(lambda: check_same(_compared(before), _compared(run), self.path))

    def run_identity(self) -> RunIdentity:
        """How the model ran: known as soon as a loss is, in whichever session that was.

        Raises:
            JournalError: the journal has losses and does not say how they came about.
        """
        if self.content.run is None:
            raise JournalError(f"journal {str(self.path)!r} does not say how the model ran", hint="begin anew")
        return self.content.run

    def keep_self_check(self) -> None:
        """Keeps that the model passed its self-check."""
        self.content.checked = True
        if self._journal is not None:
            self._journal.append(SelfCheckRecord())

    def keep_overlap(self, matrix: list[list[float]]) -> None:
        """Keeps the overlap of selections."""
        self.content.overlap_matrix = matrix
        if self._journal is not None:
            self._journal.append(OverlapRecord(matrix=matrix))

    def keep_costs(self, surrogate: str, costs: list[list[list[float]]]) -> None:
        """Keeps layer costs."""
        self.content.layer_costs[surrogate] = costs
        if self._journal is not None:
            self._journal.append(LayerCostsRecord(surrogate=surrogate, costs=costs))

    def timing(self) -> Timing:
        """Of all sessions, this one up to now."""
        when, _, together = self.content.sessions[-1]
        return timing_of([*self.content.sessions[:-1], (when, self._seconds(), together)])

    def end(self) -> None:
        """Says in the journal that this was the end, and brings all of it to the disk."""
        if self._journal is not None:
            self._journal.append(SessionEnd(at=self._seconds()))
            self._journal.sync()

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 1)


@contextmanager
def session(folder: Path, identity: Identity, resume: str, reporter: Reporter) -> Iterator[Session]:
    """A run that goes on where it stopped, or begins; nobody else writes to it meanwhile.

    Args:
        folder: of the run.
        identity: what its losses depend on.
        resume: "auto" goes on if there is a journal, "required" only then, "never" moves the old run aside.
        reporter: told what of the run is there.

    Raises:
        JournalError: the journal is damaged, or required and not there.
        IdentityError: it is of another search.
        BusyError: another process writes there.
        OutputError: nothing can be written there.
    """
    path = folder / JOURNAL_FILE
    journals: list[Journal] = []
    with ExitStack() as stack:

        def begin() -> JournalContent:
            if resume == "required" and not path.exists():
                raise _nothing_to_resume(path)
            stack.enter_context(locked(folder, reporter.warn))
            # A signal in between would leave a journal open that nothing closes.
            with stops_held():
                journal, content = _open(folder, identity, resume, reporter)
                journals.append(journal)
                stack.callback(journal.close)
            return content

        # Only the main process runs ``begin``, so that it alone has a journal to write.
        run_session = Session(path, processes.run_on_main(begin), journals[0] if journals else None)
        try:
            yield run_session
        except BaseException as error:
            with suppress(IndexcacheError):  # the disk may be what failed
                run_session.end()
            if isinstance(error, OSError):  # of measuring, and not of printing what was measured
                raise IndexcacheError(f"unexpected {type(error).__name__}: {error}") from error
            raise
        run_session.end()


@contextmanager
def resumable_stops(folder: Path, resume: str) -> Iterator[None]:
    """Within it a stop ends in what of the run in ``folder`` is kept, where anything is.

    Raises:
        StoppedRunError: a signal came, and the same command goes on from the journal.
    """
    try:
        yield
    except Stop as stop:
        path, again = folder / JOURNAL_FILE, "run the same command again to go on"
        try:
            stored = read_journal(path)
        except JournalError:
            raise stop from None
        if stored is None:
            raise
        count = stored.content.window_evaluations
        raise StoppedRunError(
            f"stopped by {stop.name}: {count} window evaluations are kept in {str(path)!r}{_chosen(folder)}",
            hint=f"{again}, without --resume never" if resume == "never" else again,
        ) from None


def _chosen(folder: Path) -> str:
    """Names a plan that is written and not complete; nothing where there is none."""
    path = folder / PLAN_FILE
    with suppress(IndexcacheError):
        if is_there(path) and not read_plan(path).complete:
            return f"; {str(path)!r} is chosen, but not complete: its held-out check is to come"
    return ""


def _nothing_to_resume(path: Path) -> JournalError:
    return JournalError(f"there is no journal {str(path)!r} to resume from", hint="leave --resume out")


def _open(folder: Path, identity: Identity, resume: str, reporter: Reporter) -> tuple[Journal, JournalContent]:
    """The journal, ready to be written to, and what it holds; an old one that does not fit is left as it is."""
    path = folder / JOURNAL_FILE
    fresh = not is_there(path) and not is_there(folder / PLAN_FILE)
    if (resume == "never" or fresh) and (aside := begin_anew(folder)) is not None:
        reporter.say(f"the old run is now in {aside}")
    stored = read_journal(path)
    if resume == "required" and (stored is None or stored.identity is None):
        raise _nothing_to_resume(path)
    if stored is not None and stored.identity is not None:
        # Before anything is written: a journal that is refused stays as it was.
        check_same(stored.identity, identity, path)
    if stored is not None and stored.torn:
        reporter.warn(f"the end of {path} was cut off or damaged: its last {stored.torn} bytes are left out")
    remove_leftovers(folder)
    journal = Journal(path, identity, stored)
    content = stored.content if stored is not None else JournalContent()
    start = SessionStart(when=now(), processes=processes.process_count())
    journal.append(start)
    if content.window_evaluations:
        reporter.say(f"going on from {path}: {content.window_evaluations} window evaluations are there")
    content.add(start)
    return journal, content


def _compared(run: RunIdentity) -> Identity:
    """What of a run decides its losses: of the versions only those of what computes, of the devices likewise."""
    versions = {name: run.versions.get(name) for name in computing_versions() if name != "python"}
    device = {"device": run.device}
    return run.model_dump(exclude={"versions"}) | device | versions
