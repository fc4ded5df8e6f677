"""What the commands are for: groups by what a user wants, a line for each command, and which one comes next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from ..errors import one_line


@dataclass(frozen=True)
class Entry:
    """A command in the overview.

    Args:
        purpose: what it does, in a line that is at most 66 characters long: that is what 80 columns leave.
        next: the command that its users want next, in which braces name what the command was given or has made:
            plan, model, source, keep. None where there is no such command.
    """

    purpose: str
    next: str | None = None


_EXPORT = "indexcache export {plan} --to vllm"
_SEARCH = "indexcache search {source} --keep {keep:g}"
OVERVIEW: dict[str, dict[str, Entry]] = {
    "Choose": {
        "inspect": Entry(
            "Show what a checkpoint has: sites, sizes, useful windows",
            "indexcache search --model {model} --dataset TEXT --keep 0.25 --dry-run",
        ),
        "estimate": Entry("Say beforehand what a search will cost", _SEARCH),
        "search": Entry(
            "Find which indexers to keep; write a plan and its report",
            "indexcache eval {plan}",
        ),
        "cut": Entry(
            "Pick another budget from a finished search, without the model",
            "indexcache eval {plan}",
        ),
        "distill": Entry("Train the kept indexers for the layers that they serve", _EXPORT),
    },
    "Check": {
        "eval": Entry("Measure a plan again, and hold it to a limit", _EXPORT),
        "bench": Entry(
            "Time prefill or decoding under a plan and all full",
            "indexcache price {plan} --lengths 8k:70,128k:30",
        ),
        "check": Entry("Ask a running server which pattern it runs"),
    },
    "Serve": {
        "export": Entry(
            "Print the settings that make an engine run a plan",
            "indexcache check {plan} --url http://localhost:8000/v1",
        ),
        "apply": Entry("Let the model write under a plan, and all full beside it", _EXPORT),
        "price": Entry("Say what a plan is worth for a mix of requests", _EXPORT),
    },
    "Keep fresh": {
        "diff": Entry("Compare two plans: roles, losses, decided or noise"),
        "verify": Entry("Say whether an old plan holds on a new checkpoint", _EXPORT),
        "runs": Entry("List the runs in a folder"),
        "report": Entry("Render a plan's report again", _EXPORT),
        "env": Entry("Print what belongs in a bug report"),
    },
}
"""The commands by what a user wants. A command that is not here has no line in the help; a test compares."""

_EXPLAINED = Path(__file__).parent.parent / "docs" / "troubleshooting.md"


class Overview(TyperGroup):
    """All commands, whose help shows them in groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands under the names of their groups, one line each."""
        widest = max(map(len, self.commands))
        for group, entries in OVERVIEW.items():
            here = [(name, entry) for name, entry in entries.items() if name in self.commands]
            if records := [(name.ljust(widest), entry.purpose) for name, entry in here]:
                with formatter.section(group):
                    formatter.write_dl(records)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """As typer does; the options that typer adds read no variable that anyone would set."""
        for option in self.get_params(ctx):
            option.show_envvar = False  # type: ignore[attr-defined]
        super().format_options(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Says where messages are explained, in a line that can be copied however long the path is."""
        formatter.write_paragraph()
        formatter.write(f"indexcache COMMAND --help shows options and examples.\nMessages: {_EXPLAINED}\n")

    def next_command(self, name: str, settings: Mapping[str, Any], made: object) -> str | None:
        """The command that users want after ``name``; None where there is none.

        Args:
            name: of the command that has finished.
            settings: what it was given, by parameter.
            made: the plan that it wrote, where it wrote another one than it was given.
        """
        if settings.get("dry_run"):
            name = "estimate"
        entry = next((entries[name] for entries in OVERVIEW.values() if name in entries), None)
        if entry is None or entry.next is None:
            return None
        recipe, model = settings.get("recipe"), settings.get("model")
        plans = settings.get("plan_paths") or [settings.get("plan_path")]
        plan = made if isinstance(made, Path) else plans[0]
        if ("{plan}" in entry.next and (plan is None or len(plans) > 1)) or (
            "{model}" in entry.next and not model
        ):
            return None
        source = f"--recipe {_word(recipe)}" if recipe else f"--model {_word(model)} --dataset TEXT"
        keep = settings.get("keep") or 0.25
        return entry.next.format(plan=_word(plan), model=_word(model), source=source, keep=keep)


def _word(value: object) -> str:
    """``value`` as a shell takes it."""
    return shlex.quote(one_line(str(value)))
