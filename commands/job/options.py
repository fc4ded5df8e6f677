"""Options of commands: those of the recipe's fields are made from its schema, the others stand here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from ...errors import SettingError
from ...recipes.numbers import fraction
from ...recipes.schema import (
    FIELDS,
    GROUPS,
    MODEL,
    RUN,
    SEARCH,
    TEXT,
    field_hints,
    option_name,
    option_of,
    with_options,
)
from ...search.export.engines import ENGINES as _ENGINES

ENGINES = "{} or {}".format(", ".join([*_ENGINES][:-1]), [*_ENGINES][-1])
"""The names of all engines, as a sentence lists them."""
PLACED = ("device_map", "offload_folder")
"""Fields that place weights, for commands that load a model as a whole."""
MACHINE = "Machine"
"""The group of options that describe a machine, which no recipe does."""


def described(help_text: str, group: str | None = None) -> Any:
    """An option of which nothing else needs to be said."""
    return typer.Option(help=help_text, show_default=False, show_envvar=False, rich_help_panel=group)


def place(help_text: str, group: str | None = None) -> Any:
    """An option that names a file or a folder to write."""
    return typer.Option(
        help=help_text, show_default=False, show_envvar=False, parser=_place, metavar="PATH", rich_help_panel=group
    )


def _place(text: str) -> Path:
    if not text.strip():
        raise typer.BadParameter("it is empty; give a path, . for this folder")
    return Path(text)


def flag(name: str, help_text: str, group: str | None = None) -> Any:
    """A flag that is off unless given."""
    return typer.Option(name, show_envvar=False, help=help_text, rich_help_panel=group)


def named(flag: str, variable: str, help_text: str, group: str | None = None) -> Any:
    """A flag whose name in Python is another one, with the environment variable that its users expect."""
    return typer.Option(
        flag,
        envvar=variable,
        allow_from_autoenv=False,
        show_envvar=False,
        help=help_text,
        rich_help_panel=group,
    )


def _asked_each_time(flag: str, help_text: str) -> Any:
    """Never from the environment: to run a stranger's code is asked for each time."""
    return typer.Option(flag, allow_from_autoenv=False, show_default=False, help=help_text, rich_help_panel=MODEL)


JsonFlag = Annotated[
    bool,
    typer.Option(
        "--json",
        allow_from_autoenv=False,
        help="Print one JSON document on stdout, also on failure.",
        rich_help_panel=RUN,
    ),
]
QuietFlag = Annotated[
    bool, typer.Option("--quiet", "-q", show_envvar=False, help="No progress on stderr.", rich_help_panel=RUN)
]
TrustFlag = Annotated[bool, _asked_each_time("--trust-remote-code", "Run Python code that the checkpoint brings.")]
PickleFlag = Annotated[
    bool, _asked_each_time("--allow-pickle", "Load pickled weights, where there are no others.")
]
RecipeName = Annotated[str | None, described("YAML recipe: a file, or a name such as tiny.", RUN)]
LogName = Annotated[str | None, described("Log each step to tensorboard, wandb or mlflow, if installed.", RUN)]
PlanPath = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN",
        help="A plan.json that search wrote, its folder, or a hub id: org/name@revision.",
        show_default=False,
    ),
]
PlanPaths = Annotated[
    list[Path],
    typer.Argument(metavar="PLAN", help="A plan.json that search wrote, or several.", show_default=False),
]
WindowGroupName = Annotated[str, described("Of the plan's own windows, heldout or calibration [heldout].", TEXT)]
ProbesFlag = Annotated[
    bool, named("--probes", "INDEXCACHE_EVAL_PROBES", "Measure probes too: recall from far away.", TEXT)
]
CurveFlag = Annotated[
    bool, named("--curve", "INDEXCACHE_EVAL_CURVE", "Measure every budget too, and the loss by position.", TEXT)
]
DistilledFlag = Annotated[
    bool, flag("--distilled", "Short for --strategy distilled: search with distilled indexers.", SEARCH)
]
GivenPattern = Annotated[
    str | None, described("Distill for this pattern, an F or S per site [the plan's].", SEARCH)
]
ContextLengths = Annotated[
    str | None,
    typer.Option(
        "--context",
        "--lengths",
        help="Lengths in tokens, e.g. 8k,32k,128k; k is 1024 [8k, or the model's positions].",
        show_default=False,
        show_envvar=False,
    ),
]
UniformFlag = Annotated[
    bool, flag("--uniform", "Distill for as many indexers as the plan's, spread evenly.", SEARCH)
]
LearningRate = Annotated[
    str, named("--lr", "INDEXCACHE_DISTILL_LR", "Learning rate; auto probes three [auto].", SEARCH)
]
NodeCount = Annotated[
    int | None,
    typer.Option(min=1, help="Nodes with so many GPUs each [1].", show_envvar=False, rich_help_panel=MACHINE),
]
LayerSeconds = Annotated[
    str | None,
    described(
        "Seconds of a full and of a shared layer for a window on such a GPU: 0.211,0.184 [an H100's].", MACHINE
    ),
]
PrefillKeep = Annotated[str | None, described("Of two plans, what the one for prefill keeps, e.g. 0.5.")]
DecodeKeep = Annotated[str | None, described("What the one for decoding keeps, at most as much.")]
MovedModel = Annotated[str | None, described("Where the plan's checkpoint is now, if it moved.", MODEL)]


def check_pair(
    prefill_keep: str | None, decode_keep: str | None, fields: Mapping[str, Any], out: Path | None
) -> tuple[float, float]:
    """What two plans are to keep, for prefill and for decoding.

    Raises:
        SettingError: no fractions; or names what is missing, or too much.
    """
    if prefill_keep is None or decode_keep is None:
        given, missing = ("decode", "prefill") if prefill_keep is None else ("prefill", "decode")
        raise SettingError(f"--{given}-keep was given without --{missing}-keep", hint="give both")
    if fields:
        raise SettingError(
            f"--{next(iter(fields)).replace('_', '-')} is for one plan, --prefill-keep and --decode-keep for two",
            hint="leave one or the other out",
        )
    if out is None:
        raise SettingError("--out was not given: it names the folder for the two plans")
    return fraction(prefill_keep, "prefill-keep"), fraction(decode_keep, "decode-keep")


def recipe_options(
    *names: str, defaults: Mapping[str, str] | None = None, helps: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Adds the options of the recipe's fields ``names`` to a command, which gets those given as ``fields``.

    Typer reads a command's signature; this makes one from the schema, so that a field's name, type, range, help
    and default stand once. An option that was not given is no field: the recipe, and then the schema, say what
    it is.

    Args:
        names: fields, in any order; help goes by ``GROUPS`` and then by the schema's order.
        defaults: what is said of a default where the command has another one than the schema.
        helps: what is said of a field where it means something else to the command.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        # Annotations are strings until they are evaluated, and typer reads types.
        signature = inspect.signature(command, eval_str=True)
        field_parameters = [
            _parameter(name, (defaults or {}).get(name), (helps or {}).get(name))
            for name in FIELDS
            if name in names
        ]
        others = [parameter for name, parameter in signature.parameters.items() if name != "fields"]
        # By kind, as a signature wants it; within a kind sorting keeps the order.
        parameters = sorted([*others, *field_parameters], key=lambda parameter: parameter.kind)

        @wraps(command)
        def with_fields(**values: Any) -> Any:
            options = {name: values.pop(name) for name in names}
            settings = {name: value for name, value in options.items() if value is not None}
            with_options(None, settings)  # refused here, whatever the command makes of them
            return command(**values, fields=settings)

        del with_fields.__wrapped__  # whose signature typer would read
        with_fields.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_fields.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_fields

    return decorate


def _parameter(name: str, default: str | None, help_text: str | None) -> inspect.Parameter:
    option, flag = option_of(name), option_name(name)
    value_type = Any if option.parser else _value_type(field_hints()[name])
    default = default or option.default or _in_words(FIELDS[name].default)
    sentence = help_text or option.help
    sentence = sentence[0].upper() + sentence[1:] if " " in sentence.partition(":")[0] else sentence
    # Only what is on by default needs a flag that turns it off.
    flags = f"{flag}/--no-{flag[2:]}" if FIELDS[name].default is True else flag
    declaration = typer.Option(
        flags,
        help=sentence + (f" [{default}]" if default else "") + ".",
        show_default=False,
        show_envvar=False,
        rich_help_panel=option.group,
        parser=option.parser,
        metavar=option.metavar,
    )
    annotation = Annotated[value_type | None, declaration]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _value_type(hint: Any) -> type:
    """What the command line reads for a field of type ``hint``; choices are text to it."""
    while get_origin(hint) in (Annotated, Union, UnionType):  # notes and ranges around it, and None beside it
        hint = next(part for part in get_args(hint) if part is not type(None))
    return hint if isinstance(hint, type) else str


def _in_words(default: object) -> str | None:
    if default is None or default is False:
        return None
    return "yes" if default is True else f"{default:g}" if isinstance(default, float) else str(default)


def in_groups(options: Sequence[Any]) -> dict[str, list[Any]]:
    """Options by the group that their help stands in, in the order of ``GROUPS``; a machine's, and last others."""
    groups: dict[str, list[Any]] = {}
    for name in (*GROUPS, MACHINE, None):
        members = [option for option in options if getattr(option, "rich_help_panel", None) == name]
        if members:
            groups[name or "Options"] = members
    return groups
