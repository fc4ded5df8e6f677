"""A command of the command line: help in groups, errors in the words of what was set, and the next command."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from ...errors import IndexcacheError, one_line, warning, wrapped
from ...system.launching import speaks
from .options import in_groups

# Those that belong to no option.
_OTHER_VARIABLES = ("INDEXCACHE_TRACEBACK", "INDEXCACHE_JOIN_SECONDS", "INDEXCACHE_API_KEY")
Function = TypeVar("Function", bound=Callable[..., Any])


class Command(TyperCommand):
    """A command whose help has options in groups, and whose errors speak of settings as they were given.

    A setting can come from an option, an environment variable or the recipe; an error names what it was.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options under the names of their groups."""
        parameters = self.get_params(ctx)
        arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
        options = [parameter for parameter in parameters if parameter.param_type_name != "argument"]
        for name, members in ({"Arguments": arguments} | in_groups(options)).items():
            records = [record for member in members if (record := member.get_help_record(ctx))]
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does, errors told as said above."""
        try:
            return super().parse_args(ctx, args)
        except IndexcacheError as error:
            _name_sources(error, self, ctx)
            raise
        except Exception as error:
            wrong = getattr(error, "param", None)
            if wrong is not None and (variable := _variable(wrong, ctx)):
                error.param_hint = repr(variable)  # type: ignore[attr-defined]
            raise

    def invoke(self, ctx: Any) -> None:
        """As typer does, errors told as said above; names variables that set nothing, and the next command.

        What the function returns is the plan that it wrote, if it wrote another than it was given.
        """
        if speaks() and (ignored := _ignored_variables(ctx)):
            typer.echo(wrapped(warning("; ".join(ignored), __name__), sys.stderr), err=True)
        try:
            made = super().invoke(ctx)
        except IndexcacheError as error:
            _name_sources(error, self, ctx)
            raise
        following = ctx.parent.command.next_command(self.name, ctx.params, made)
        if following and speaks() and not (ctx.params.get("as_json") or ctx.params.get("quiet")):
            # In one line, so that it can be copied. What is done stays done where nobody reads stderr any more.
            with suppress(OSError):
                typer.echo(f"next: {following}", err=True)


class Application(typer.Typer):
    """A command line all of whose commands are ``Command``."""

    def command(
        self, *arguments: Any, examples: Sequence[str] = (), **settings: Any
    ) -> Callable[[Function], Function]:
        """As typer's; ``examples`` stand at the end of the command's help, as they are typed."""
        lines = "\n".join(f"  {line}" for line in examples)
        # The backspace keeps typer from filling the lines.
        epilog = f"Examples:\n\n\b\n{lines}" if examples else None
        return super().command(*arguments, **{"cls": Command, "epilog": epilog, **settings})


def _ignored_variables(ctx: Any) -> list[str]:
    """Of the environment's variables that begin as this program's do, those that set nothing, and why."""
    known, refused = set(_OTHER_VARIABLES), dict[str, str]()
    prefix = ctx.parent.auto_envvar_prefix
    for name, command in ctx.parent.command.commands.items():
        for option in command.params:
            if option.param_type_name != "option":
                continue
            variable = f"{prefix}_{name.upper()}_{option.name.upper()}"
            if option.envvar:
                known.add(option.envvar if isinstance(option.envvar, str) else option.envvar[0])
            elif option.allow_from_autoenv:
                known.add(variable)
            else:
                refused[variable] = option.opts[0]
    lines = []
    for variable in sorted(name for name in os.environ.keys() - known if name.startswith(f"{prefix}_")):
        if variable in refused:
            lines.append(f"{variable} sets nothing: give {refused[variable]} on the command line")
        else:
            near = difflib.get_close_matches(variable, sorted(known), n=1, cutoff=0.8)
            lines.append(f"{one_line(variable)} is not known" + (f": did you mean {near[0]}?" if near else ""))
    return lines


def _name_sources(error: IndexcacheError, command: Command, ctx: Any) -> None:
    """Replaces the flags in ``error`` by what was set instead."""
    if names := _names(command, ctx):
        flags = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])")
        error.args = tuple(flags.sub(lambda match: names[match[1]], str(part)) for part in error.args)
        error.hint = flags.sub(lambda match: names[match[1]], error.hint)


def _names(command: Command, ctx: Any) -> dict[str, str]:
    """Each flag that was not given on the command line but set otherwise, with what set it."""
    fields, names = _recipe_fields(ctx), dict[str, str]()
    for parameter in command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        source = str(ctx.get_parameter_source(parameter.name))
        if variable := _variable(parameter, ctx):
            names |= dict.fromkeys(flags, variable)
        elif parameter.name in fields and not source.endswith("COMMANDLINE"):
            names |= dict.fromkeys(flags, f"the recipe's {parameter.name}")
    return names


def _variable(parameter: Any, ctx: Any) -> str | None:
    """The environment variable that set ``parameter``, if one did."""
    if not str(ctx.get_parameter_source(parameter.name)).endswith("ENVIRONMENT"):
        return None
    named = parameter.envvar
    if named:
        return str(named if isinstance(named, str) else named[0])
    return f"{ctx.auto_envvar_prefix}_{parameter.name.upper()}"


def _recipe_fields(ctx: Any) -> frozenset[str]:
    name = ctx.params.get("recipe")
    if not name:
        return frozenset()
    from ...recipes.schema import fields_in

    return fields_in(name)
