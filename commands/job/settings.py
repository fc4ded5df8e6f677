"""Settings of commands: the recipe with the options laid over it, how far to go, where to write, what to trust."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import SettingError
from ...pattern import kept_sites
from ...recipes.numbers import byte_size
from ...recipes.schema import Recipe, read_recipe, with_options
from ...search.goal import Goal
from ...search.plan.cut import check_max_delta

if TYPE_CHECKING:
    from ...dsa.checkpoint.config import Trust
    from ...dsa.checkpoint.load import Placement
    from ...dsa.stream.room import Room

RESUME = ("auto", "required", "never")
TRACKERS = ("tensorboard", "wandb", "mlflow")


def check_choices(mode: str, tracker: str | None) -> None:
    """Refuses a way to resume that is none of ``RESUME``, and a tracker that is none of ``TRACKERS``.

    Raises:
        SettingError: lists those that are.
    """
    if mode not in RESUME:
        raise SettingError(f"--resume is {mode!r}", hint=f"give one of {', '.join(RESUME)}")
    if tracker is not None and tracker not in TRACKERS:
        raise SettingError(f"--log is {tracker!r}", hint=f"give one of {', '.join(TRACKERS)}")


def search_settings(
    context: typer.Context, recipe: str | None, fields: Mapping[str, Any], to_one: bool, distilled: bool = False
) -> tuple[Recipe, Goal]:
    """The recipe with the options laid over it, and how far to go; nothing heavy is imported.

    ``distilled`` is the short form of the strategy of that name.

    Raises:
        SettingError: impossible values, no goal or two, or two strategies.
    """
    options = dict(fields)
    if distilled and _distils(context, options.get("strategy")):
        options["strategy"] = "distilled"
    keep, max_delta = _one_goal(context, options.pop("keep", None), options.pop("max_delta", None))
    settings = with_options(read_recipe(recipe) if recipe else None, options)
    if keep is None and max_delta is None:
        keep, max_delta = settings.keep, settings.max_delta
    if keep is not None and max_delta is not None:
        raise SettingError("the recipe names both keep and max_delta", hint="leave one of them out")
    if keep is None and max_delta is None:
        raise SettingError(
            "how much to keep was not given", hint="give --keep, e.g. 0.25, or --max-delta, e.g. 0.01"
        )
    if keep is not None:
        kept_sites(1, keep)
    check_max_delta(max_delta)
    _check_probe_limit(settings)
    return settings, Goal(keep, max_delta, to_one)


def _check_probe_limit(settings: Recipe) -> None:
    """Refuses a limit on probes that cannot be.

    Raises:
        SettingError: no number to hold them to, or no probes.
    """
    check_max_delta(settings.max_probe_delta, "--max-probe-delta", "nats per answer token, e.g. 0.1")
    if settings.max_probe_delta is not None and not (settings.probes and settings.heldout):
        less = "--probes" if not settings.probes else "--heldout"
        raise SettingError(
            f"--max-probe-delta was given, but with {less} 0 no probes are measured",
            hint=f"leave {less} out: probes are made in the held-out windows' text",
        )


def _one_goal(
    context: typer.Context, keep: float | None, max_delta: float | None
) -> tuple[float | None, float | None]:
    """Of both given, the one on the command line wins over the one in the environment."""
    if keep is None or max_delta is None:
        return keep, max_delta
    return (keep, None) if _wins(context, "keep", "max_delta") else (None, max_delta)


def _distils(context: typer.Context, strategy: str | None) -> bool:
    """Whether the flag --distilled says what the strategy is, beside the option of that name."""
    return strategy in (None, "distilled") or _wins(context, "distilled", "strategy")


def _wins(context: typer.Context, name: str, other: str) -> bool:
    """Whether option ``name`` wins over ``other``, which says something else: the one on the command line does.

    Raises:
        SettingError: both are on the command line, or both in the environment.
    """
    places = [str(context.get_parameter_source(option)).endswith("ENVIRONMENT") for option in (name, other)]
    if places[0] == places[1]:
        flags = [f"--{option.replace('_', '-')}" for option in (name, other)]
        raise SettingError(f"both {' and '.join(flags)} were given", hint="give one of them")
    return places[1]


def run_folder(out: Path | None, recipe: str | None, model: str | None, model_given: bool) -> Path:
    """Where a run is written: ``out``, or in outputs/ by the recipe's name or the last part of the model's."""
    if out is not None:
        return out
    if recipe is not None and not model_given:
        name = Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    else:
        name = Path(model or "").resolve().name or "run"
    return Path("outputs") / name


def trust_of(remote_code: bool, pickles: bool) -> Trust:
    """What a checkpoint may do here, of the flags that ask for it. Imports torch."""
    from ...dsa.checkpoint.config import Trust

    return Trust(remote_code, pickles)


def room_of(fields: Mapping[str, Any]) -> Room:
    """What weights that come a layer at a time may take, of the options that say so. Imports torch.

    Raises:
        SettingError: no sizes; or an option that placed weights in other ways.
    """
    from ...dsa.stream.room import Room

    for name in ("device_map", "offload_folder"):
        if fields.get(name) is not None:
            raise SettingError(
                f"--{name.replace('_', '-')} does not go with measuring: layers that do not fit on a device come "
                "to it one after the other, from host memory or the checkpoint's own files",
                hint="leave it out; --max-memory 60GB says what weights may take on each device, and accelerate "
                "launch --num_processes gives every GPU a share of the windows",
            )
    sizes = {}
    for name in ("max_memory", "max_host_memory"):
        value = fields.get(name)
        # All of a host's memory may be kept from weights; a device has to hold some.
        least = 0 if name == "max_host_memory" else 1
        sizes[name] = None if value is None else byte_size(name.replace("_", "-"), value, least)
    return Room(sizes["max_memory"], sizes["max_host_memory"])


def placement_of(fields: Mapping[str, Any]) -> Placement:
    """Where weights go, of the options that say so. Imports torch."""
    from ...dsa.checkpoint.load import Placement

    return Placement(fields.get("device_map"), fields.get("offload_folder"))
