"""A run's folder: plan.json, the frozen tokens and the report, each written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from ...errors import OutputError, PlanError
from ...system.files import check_writable, is_there, make_folder, remove_unfinished, sync_folder, write_atomically
from ...system.signals import stops_held
from ..plan.file import plan_text, prefix_beside, read_plan, write_plan
from ..plan.schema import Plan
from ..price.decodes import decode_file, read_decodes
from ..price.memory import SIZES_FILE, IndexerSizes, read_sizes, sizes_file
from ..price.prefills import PrefillRecord, prefill_file, read_prefills
from ..report.checks import CheckRecord, check_file, checks_of
from ..report.pages import render
from ..report.timing import TIMING_FILE, Timing, read_timing, timing_file
from ..report.worth import Worth
from .journal import JOURNAL_FILE

PLAN_FILE = "plan.json"
PAIR_FILES = ("prefill.json", "decode.json")
"""The plans of servers that prefill and of servers that decode, cut from one search."""
TOKENS_FILE = "windows.safetensors"
CHECKPOINT_TOKENS_FILE = "windows.tokens"
"""The same in a checkpoint's own folder, where engines take every .safetensors for weights."""
# What stands beside a plan.json; beside a cut, plan-4of8.json by default, the same after its stem and a hyphen.
_BESIDE = (
    "report.md",
    "report.html",
    "curve.svg",
    "overlap.svg",
    "prefill.svg",
    prefill_file(Path(PLAN_FILE)).name,
    decode_file(Path(PLAN_FILE)).name,
    check_file(Path(PLAN_FILE)).name,
)
# The exact names of what runs and cuts write, the journal aside; nothing else in a folder is touched.
_RUN_FILES = frozenset({PLAN_FILE, TOKENS_FILE, TIMING_FILE, SIZES_FILE, *_BESIDE})
PLAN_FILES = frozenset({*_RUN_FILES, CHECKPOINT_TOKENS_FILE})
"""What stands in a folder beside other things because a plan does."""
_CUT_FILE = re.compile(rf"plan(-\d+of\d+)+(\.json|-({'|'.join(map(re.escape, _BESIDE))}))")


def save_choice(folder: Path, plan: Plan, tokens: bytes) -> Path | None:
    """Writes a plan that has just been chosen, and its tokens, before the rest is measured.

    A finished plan that stands there is left alone where the same was chosen, and moved aside otherwise.
    Returns the folder it was moved to.

    Raises:
        PlanError: the plan contradicts itself; nothing is written.
        OutputError: a file cannot be written.
    """
    moved = None
    if is_there(folder / PLAN_FILE) and not _begun(folder / PLAN_FILE):
        if _same_choice(folder / PLAN_FILE, plan):
            return None
        moved = _move_aside(folder)
    write_atomically(folder / TOKENS_FILE, tokens)
    write_plan(folder / PLAN_FILE, plan)
    return moved


def _same_choice(path: Path, plan: Plan) -> bool:
    """Whether the plan in ``path`` says the same of what chose as ``plan``, which lacks the rest."""
    try:
        old = read_plan(path)
    except PlanError:
        return False
    same_search = old.search.steps == plan.search.steps and old.result.pattern == plan.result.pattern
    return same_search and (old.model, old.tokens, old.run) == (plan.model, plan.tokens, plan.run)


def _begun(path: Path) -> bool:
    """Whether the plan in ``path`` was chosen by a search that was stopped before it measured the rest."""
    try:
        return not read_plan(path).complete
    except PlanError:
        return False


def save_run(
    folder: Path, plan: Plan, tokens: bytes, timing: Timing, sizes: IndexerSizes | None = None
) -> Path | None:
    """Writes a run to ``folder``, the plan last; ``sizes`` are of its checkpoint's indexers, where they are known.

    If the folder holds another finished plan, it is moved aside with its tokens and its report, so that it
    can still be evaluated. The journal stays: it serves both. If it holds no plan, its files are this run's, as
    ``begin_anew`` moved all others when the run began. Returns the folder that the old plan was moved to.

    Raises:
        PlanError: the plan contradicts itself; nothing is written or moved.
        OutputError: a file cannot be written.
    """
    content = plan_text(plan).encode()
    stands = is_there(folder / PLAN_FILE)
    other = stands and not _holds(folder / PLAN_FILE, content) and not _begun(folder / PLAN_FILE)
    moved = _move_aside(folder) if other else None
    write_atomically(folder / TOKENS_FILE, tokens)
    prefills = decodes = None
    with suppress(PlanError):  # a broken bench.json must not cost the search
        prefills = read_prefills(prefill_file(folder / PLAN_FILE), plan.result.pattern)
    with suppress(PlanError):
        decodes = read_decodes(decode_file(folder / PLAN_FILE), plan.result.pattern)
    checks, _ = checks_of(plan, check_file(folder / PLAN_FILE))
    write_report(folder, plan, prefills=prefills, timing=timing, checks=checks, worth=Worth(sizes, decodes))
    write_atomically(folder / TIMING_FILE, timing.as_json())
    if sizes is not None:
        write_atomically(folder / SIZES_FILE, sizes.as_json())
    write_plan(folder / PLAN_FILE, plan)
    return moved


def save_cut(plan: Plan, source: Path, out: Path | None) -> Path:
    """Writes a plan that was cut from the one in ``source``, with its tokens beside it; its path.

    Without ``out`` it stands beside ``source``, named by what it keeps.

    Raises:
        PlanError: the plan contradicts itself; nothing is written.
        OutputError: ``out`` is no place for a plan, or cannot be written.
    """
    target = out or source.with_name(f"{source.stem}-{plan.result.kept}of{plan.result.sites}.json")
    _check_place(target, source)
    text = plan_text(plan)
    check_writable(target.parent, target)
    tokens, beside = source.parent / plan.tokens.file, target.parent / plan.tokens.file
    if target.parent.resolve() != source.parent.resolve() and tokens.is_file():
        content = tokens.read_bytes()
        if is_there(beside) and beside.read_bytes() != content:
            raise OutputError(f"{str(beside)!r} holds another plan's tokens", hint="give --out another folder")
        write_atomically(beside, content)
    sizes = read_sizes(sizes_file(source), plan)
    if sizes is not None and not is_there(sizes_file(target)):
        write_atomically(sizes_file(target), sizes.as_json())
    write_atomically(target, text)
    return target


def _check_place(target: Path, source: Path) -> None:
    """Refuses to put a plan where other files, or a search's own plan, stand or will stand."""
    name = target.name
    reserved = any(name == file or name.endswith(f"-{file}") for file in (*_BESIDE, TIMING_FILE, SIZES_FILE))
    if not name.endswith(".json") or reserved:
        raise OutputError(f"{str(target)!r} is no name for a plan", hint="give --out one such as plan-half.json")
    if is_there(target):
        is_of_search = name == PLAN_FILE and is_there(target.with_name(JOURNAL_FILE))
        if is_of_search or target.samefile(source):
            raise OutputError(f"{str(target)!r} is a search's own plan", hint="give --out another name")
        try:
            read_plan(target)
        except PlanError:
            raise OutputError(f"{str(target)!r} is there and no plan", hint="give --out another name") from None


def write_report(
    folder: Path,
    plan: Plan,
    name: str = "plan",
    prefills: PrefillRecord | None = None,
    timing: Timing | None = None,
    checks: CheckRecord | None = None,
    worth: Worth = Worth(),
) -> list[Path]:
    """Renders the report's files into ``folder``.

    They are called report.md, report.html and curve.svg for plan.json, and after the plan's ``name`` for others.
    ``prefills`` are the plan's prefill times, where bench has measured them, ``timing`` is that of its search,
    ``checks`` are eval's, ``worth`` is what is known of the plan's use. Returns the paths of the files.
    """
    stem = prefix_beside(name)
    texts = {folder / file: text for file, text in render(plan, stem, prefills, timing, checks, worth).items()}
    for path, text in texts.items():
        write_atomically(path, text)
    return list(texts)


def render_beside(
    plan: Plan, path: Path, out: Path | None = None, warn: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Renders the report of the plan in the file ``path`` with what stands beside it, there or into ``out``.

    Raises:
        PlanError: what stands beside it cannot be read.
        OutputError: a file cannot be written.
    """
    checks, left_out = checks_of(plan, check_file(path))
    if left_out:
        warn(left_out)
    prefills, timing = read_prefills(prefill_file(path), plan.result.pattern), read_timing(timing_file(path))
    worth = Worth(read_sizes(sizes_file(path), plan), read_decodes(decode_file(path), plan.result.pattern))
    return write_report(out or path.parent, plan, path.stem, prefills, timing, checks, worth)


def has_report(path: Path) -> bool:
    """Whether the plan in the file ``path`` has a report beside it."""
    return any(is_there(path.with_name(f"{prefix_beside(path.stem)}report.{kind}")) for kind in ("md", "html"))


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes had begun to write in ``folder`` under the names that runs write."""
    remove_unfinished(folder, lambda name: name == JOURNAL_FILE or _is_run_file(name))


def _is_run_file(name: str) -> bool:
    return name in _RUN_FILES or _CUT_FILE.fullmatch(name) is not None


def begin_anew(folder: Path) -> Path | None:
    """Moves what runs write aside, the journal too; the folder it is in now, None where nothing stood."""
    return _move_aside(folder, JOURNAL_FILE)


def _move_aside(folder: Path, *more: str) -> Path | None:
    """Moves what runs and cuts write, and ``more``, into a new folder; None if there is nothing to move.

    The plan, or else the journal, says which run the files are of. It names the new folder and is moved last, so
    that a move that was cut short goes on into the same folder. Without both, the first file names the folder.
    """
    paths = (path for path in folder.iterdir() if path.name in more or _is_run_file(path.name))
    files = {path.name: path for path in paths if path.is_file()}
    last = next((name for name in (PLAN_FILE, JOURNAL_FILE, *sorted(files)) if name in files), None)
    if last is None:
        return None
    try:
        digest = hashlib.sha256(files[last].read_bytes()).hexdigest()
        aside = _unfinished_or_new(folder, f"replaced-{digest[:8]}", files)
        with stops_held():
            make_folder(aside)
            for name in sorted(files, key=lambda name: (name == last, name)):
                os.replace(files[name], aside / name)  # noqa: PTH105
            sync_folder(aside)
            sync_folder(folder)
    except OSError as error:
        raise OutputError(f"the old run in {str(folder)!r} cannot be moved aside: {error.strerror}") from error
    return aside


def _unfinished_or_new(folder: Path, name: str, files: Iterable[str]) -> Path:
    """``name`` in ``folder``, numbered where one of ``files`` stands there already."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(path for path in map(folder.joinpath, names) if not any((path / file).exists() for file in files))


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
