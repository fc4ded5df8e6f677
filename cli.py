"""The command line: search, estimate, eval, cut, export, apply, bench, inspect and report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .commands.job.options import (
    ENGINES,
    STRATEGIES,
    AttentionBackend,
    BeyondPositions,
    DeviceMap,
    IndexerBackend,
    JsonFlag,
    Keep,
    MaxDelta,
    MovedModel,
    OffloadFolder,
    PickleFlag,
    Pin,
    PipelineLayers,
    PipelineSize,
    PlanPath,
    QuietFlag,
    TrustFlag,
    described,
    named,
    place,
)
from .commands.job.sources import Application
from .commands.job.start import leave_to_main, quieten, share_cores, working
from .errors import GateError, SettingError, wrapped
from .evaluate import SPOKEN
from .recipes.numbers import lengths, numbers
from .system.exits import exit_code_of
from .system.files import find_path
from .system.launching import speaks, work_apart
from .system.signals import leave

if TYPE_CHECKING:
    from .commands.estimate import EstimateOutcome
    from .recipes.schema import Recipe
    from .search.goal import Goal

app = Application(
    name="indexcache",
    help="Finds which layers of a DeepSeek Sparse Attention model can drop their indexer.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "INDEXCACHE"},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"indexcache {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_version, allow_from_autoenv=False, help="Print the version."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def search(
    context: typer.Context,
    recipe: Annotated[str | None, described("YAML recipe: a file, or a name such as tiny.")] = None,
    model: Annotated[str | None, described("Local folder or hub id of a DSA checkpoint.")] = None,
    dataset: Annotated[str | None, described("Calibration text: local file or folder, or hub name.")] = None,
    keep: Keep = None,
    max_delta: MaxDelta = None,
    to_one: Annotated[
        bool, named("--all", "INDEXCACHE_SEARCH_ALL", "Search on to one full site, whatever is picked.")
    ] = False,
    window: Annotated[int | None, described("Tokens per window [4 x the selection width].")] = None,
    windows: Annotated[int | None, described("Calibration windows [32].")] = None,
    heldout: Annotated[int | None, described("Held-out windows, from other documents [16].")] = None,
    seed: Annotated[int | None, described("Order of documents and choice of windows [0].")] = None,
    dtype: Annotated[str | None, described("auto, float32, bfloat16 or float16 [auto].")] = None,
    indexer: IndexerBackend = None,
    attention: AttentionBackend = None,
    beyond_positions: BeyondPositions = False,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    revision: Annotated[str | None, described("Branch, tag or commit of a hub model.")] = None,
    column: Annotated[str | None, described("Column with text or chat messages [found by name].")] = None,
    dataset_subset: Annotated[str | None, described("Configuration of a dataset.")] = None,
    dataset_split: Annotated[str | None, described("Split of a dataset [train], or all of a folder.")] = None,
    dataset_revision: Annotated[str | None, described("Branch, tag or commit of a hub dataset.")] = None,
    strategy: Annotated[str | None, described(f"{STRATEGIES} [fast].")] = None,
    standard_errors: Annotated[float | None, described("How much worse leaves a race early [3].")] = None,
    blocks: Annotated[int | None, described("Number of blocks, for that strategy [2].")] = None,
    refine_rounds: Annotated[int | None, described("Swaps at most after the removals [0].")] = None,
    pin: Pin = None,
    pp_size: PipelineSize = None,
    pp_layers: PipelineLayers = None,
    baselines: Annotated[
        str | None, described("uniform, or overlap for its patterns and heatmap too [uniform].")
    ] = None,
    init: Annotated[str | None, described("An older plan.json whose order is tried first, with fast.")] = None,
    max_rows: Annotated[int | None, described("Windows x patterns in memory together [by free memory].")] = None,
    weights_hash: Annotated[
        str | None, described("auto, sampled or whole: what the plan is tied to [auto].")
    ] = None,
    selfcheck: Annotated[
        bool | None,
        typer.Option("--selfcheck/--no-selfcheck", help="Try the model on a short window first [yes]."),
    ] = None,
    untrained: Annotated[
        bool | None,
        typer.Option("--untrained", help="Go on with a model that predicts no better than word frequencies."),
    ] = None,
    out: Annotated[Path | None, place("Folder for the run [outputs/RECIPE or outputs/MODEL].")] = None,
    resume: Annotated[
        str,
        described(
            "auto: go on where a run stopped; required: only then; never: move it aside, begin anew [auto]."
        ),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what it will cost.")] = False,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Search which indexers a checkpoint can drop; write plan, frozen tokens and report.

    Options win over INDEXCACHE_SEARCH_* variables, those over the recipe. Prints the plan's path.
    """
    keep, max_delta = _one_wish(context, keep, max_delta)
    settings, goal = _settings(recipe, _recipe_fields(context), keep, max_delta, to_one)
    _reach(settings.model, settings.revision)
    folder = out or Path("outputs") / _run_name(recipe if model is None else None, settings.model)
    with working(quiet) as reporter:
        from .commands import estimate as estimate_command
        from .commands import search as search_command
        from .commands.job.session import check_resume
        from .dsa.checkpoint.config import Trust

        check_resume(resume)
        trust = Trust(trust_remote_code, allow_pickle)
        if dry_run:
            estimated = estimate_command.estimate(settings, goal, folder, trust, True, reporter)
        else:
            outcome = search_command.search(settings, goal, folder, resume, trust, reporter)
    if dry_run:
        _print_estimate(estimated, as_json)
        return
    if not speaks():
        return
    if outcome.moved:
        reporter.say(f"the run that stood there is now in {outcome.moved}")
    if not quiet:
        from .commands.search import search_summary

        search_summary(outcome.plan, folder, outcome.timing)
    typer.echo(outcome.plan.as_json().rstrip() if as_json else str(outcome.path))


@app.command()
def estimate(
    context: typer.Context,
    recipe: Annotated[str | None, described("YAML recipe: a file, or a name such as tiny.")] = None,
    model: Annotated[str | None, described("Local folder or hub id of a DSA checkpoint.")] = None,
    keep: Keep = None,
    max_delta: MaxDelta = None,
    to_one: Annotated[bool, named("--all", "INDEXCACHE_ESTIMATE_ALL", "Search on to one full site.")] = False,
    window: Annotated[int | None, described("Tokens per window [4 x the selection width].")] = None,
    windows: Annotated[int | None, described("Calibration windows [32].")] = None,
    heldout: Annotated[int | None, described("Held-out windows [16].")] = None,
    dtype: Annotated[str | None, described("auto, float32, bfloat16 or float16 [auto].")] = None,
    indexer: IndexerBackend = None,
    attention: AttentionBackend = None,
    beyond_positions: BeyondPositions = False,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    revision: Annotated[str | None, described("Branch, tag or commit of a hub model.")] = None,
    strategy: Annotated[str | None, described(f"{STRATEGIES} [fast].")] = None,
    blocks: Annotated[int | None, described("Number of blocks, for that strategy [2].")] = None,
    refine_rounds: Annotated[int | None, described("Swaps at most after the removals [0].")] = None,
    pin: Pin = None,
    pp_size: PipelineSize = None,
    pp_layers: PipelineLayers = None,
    standard_errors: Annotated[float | None, described("How much worse leaves a race early [3].")] = None,
    baselines: Annotated[str | None, described("uniform, or overlap for its patterns too [uniform].")] = None,
    init: Annotated[str | None, described("An older plan.json whose order is tried first, with fast.")] = None,
    max_rows: Annotated[int | None, described("Windows x patterns in memory together [by free memory].")] = None,
    timed: Annotated[
        bool, named("--time/--no-time", "INDEXCACHE_ESTIMATE_TIME", "Load the weights and time a window.")
    ] = True,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Say what a search will cost: layer-windows from the config alone, then seconds from one window.

    Takes the options of search that change the cost, and needs no text. --no-time needs no weights.
    """
    keep, max_delta = _one_wish(context, keep, max_delta)
    settings, goal = _settings(recipe, _recipe_fields(context), keep, max_delta, to_one)
    _reach(settings.model, settings.revision)
    with working(quiet, loads_model=timed) as reporter:
        from .commands import estimate as estimate_command
        from .dsa.checkpoint.config import Trust

        trust = Trust(trust_remote_code, allow_pickle)
        outcome = estimate_command.estimate(settings, goal, None, trust, timed, reporter)
    _print_estimate(outcome, as_json)


def _print_estimate(outcome: EstimateOutcome, as_json: bool) -> None:
    from .commands.estimate import estimate_document, estimate_table

    if not speaks():
        return
    if as_json:
        typer.echo(json.dumps(estimate_document(outcome), indent=2))
    else:
        estimate_table(outcome)


@app.command(name="eval")
def evaluate(
    plan_path: PlanPath,
    on: Annotated[str, typer.Option(help="Windows to measure: heldout or calibration.")] = "heldout",
    max_delta: MaxDelta = None,
    model: MovedModel = None,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure all full, the plan and uniform interleaving on the plan's frozen tokens.

    Kept beside the plan, and in its report. With --max-delta, exits with 1 when the plan's loss increase is
    above it.
    """
    from .search.plan.cut import check_max_delta
    from .search.plan.file import plan_file, read_plan

    check_max_delta(max_delta)
    if on not in SPOKEN:
        raise SettingError(f"--on is {on!r}", hint="give heldout or calibration")
    plan = read_plan(plan_path)
    with working(quiet) as reporter:
        from .commands import eval as eval_command
        from .dsa.checkpoint.config import Trust
        from .dsa.checkpoint.load import Placement

        outcome = eval_command.evaluate(
            plan,
            plan_file(plan_path),
            on,
            max_delta,
            model,
            Placement(device_map, offload_folder),
            Trust(trust_remote_code, allow_pickle),
            reporter,
        )
    if speaks():
        from .commands.eval import eval_document, eval_table

        if as_json:
            typer.echo(json.dumps(eval_document(outcome), indent=2))
        else:
            eval_table(outcome)
    if outcome.passed is False:
        raise GateError(f"the plan's loss increase {outcome.plan.delta:+.5f} is above --max-delta {max_delta:g}")


@app.command()
def cut(
    plan_path: PlanPath,
    keep: Keep = None,
    max_delta: MaxDelta = None,
    out: Annotated[Path | None, place("File to write [beside the plan, named by what is kept].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Pick another step of a searched plan, offline; prints the new plan's path."""
    leave_to_main()
    from .search.plan.cut import cut as cut_plan
    from .search.plan.file import plan_file, read_plan
    from .search.run.folder import save_cut

    plan_path = plan_file(plan_path)
    plan = cut_plan(read_plan(plan_path), keep, max_delta)
    target = save_cut(plan, plan_path, out)
    typer.echo(plan.as_json().rstrip() if as_json else str(target))


@app.command()
def export(
    plan_path: PlanPath,
    to: Annotated[str | None, described(f"{ENGINES}; or none, for the bare pattern.")] = None,
    engine_version: Annotated[
        str | None, described("The engine's version, e.g. 0.33.0, for what depends on it.")
    ] = None,
    pp_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pipeline stages, split as the engine splits them.", show_default=False),
    ] = None,
    pp_layers: PipelineLayers = None,
    write: Annotated[Path | None, described("Folder for a copy of config.json with the settings.")] = None,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Write the weights there too, without the shared indexers.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Print settings that the engine is known to fail with, too.")
    ] = False,
    model: MovedModel = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Print settings, ready to paste, that make an engine run the plan; notes go to stderr."""
    leave_to_main()
    from .search.export.settings import Serving, check_servable
    from .search.export.settings import export as export_plan
    from .search.plan.file import read_plan

    if strip_weights and write is None:
        raise SettingError("--strip-weights was given without --write", hint="name the folder with --write")
    if to is None:
        raise SettingError("--to was not given: it names the engine", hint=f"give one of {ENGINES}; or none")
    plan, stages = read_plan(plan_path), numbers("pp-layers", pp_layers)
    served = str(write.absolute()) if write is not None and strip_weights else model
    exported = export_plan(plan, to, Serving(engine_version, pp_size, stages, served, strip_weights))
    if not force:
        check_servable(exported)
    written = None
    if write is not None:
        with working(quiet, loads_model=False) as reporter:
            from .commands import export as export_folder

            if strip_weights:
                written = export_folder.write_stripped(plan, exported, write, model, reporter)
            else:
                written = export_folder.write_config(plan, exported, write, model)
    from .commands.export import export_document

    for remark in exported.warnings:
        label = "note" if remark.severity == "note" else "warning"
        typer.echo(wrapped(f"{label}: {remark.text}", sys.stderr), err=True)
    if written:
        both = (
            ""
            if strip_weights
            else ": put it in the checkpoint's place, or paste the settings; not both are needed"
        )
        typer.echo(f"wrote {written}{both}", err=True)
    typer.echo(
        json.dumps(export_document(plan, exported, written), indent=2) if as_json else exported.paste.rstrip()
    )


@app.command()
def apply(
    plan_path: PlanPath,
    prompt: Annotated[str | None, described("Text to continue [a window of the plan's own].")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 32,
    model: MovedModel = None,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Run the checkpoint under the plan: continue a prompt, and the same with all indexers beside it."""
    leave_to_main()
    from .search.plan.file import plan_file, read_plan

    plan, folder = read_plan(plan_path), plan_file(plan_path).parent
    with working(quiet) as reporter:
        from .commands import apply as applying
        from .dsa.checkpoint.config import Trust
        from .dsa.checkpoint.load import Placement

        request, placement = applying.PromptRequest(prompt, new_tokens), Placement(device_map, offload_folder)
        trust = Trust(trust_remote_code, allow_pickle)
        found = applying.continue_prompt(plan, folder, request, model, placement, trust, reporter)
    from .commands.apply import continuation_document, continuation_table

    if as_json:
        typer.echo(json.dumps(continuation_document(found), indent=2))
    else:
        continuation_table(found)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Local folder or hub id of a DSA checkpoint.", show_default=False)],
    revision: Annotated[str | None, described("Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a checkpoint's sites, sizes and selection width from its config, without weights."""
    leave_to_main()
    _reach(model, revision)
    with working(quiet=False, loads_model=False) as reporter:
        from .commands.inspect import inspect_document, inspect_table
        from .dsa.checkpoint.config import Trust, measure_sizes, open_checkpoint

        reporter.doing(f"reading {model}")
        checkpoint = open_checkpoint(model, revision, Trust(trust_remote_code))
        reporter.doing("counting parameters")
        document = inspect_document(checkpoint, measure_sizes(checkpoint))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        inspect_table(document)


@app.command()
def report(
    plan_path: PlanPath,
    out: Annotated[Path | None, place("Folder for the files [the plan's].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Render a plan's report.md, report.html and curve.svg again; prints their paths."""
    leave_to_main()
    from .search.plan.file import plan_file, read_plan
    from .search.run.folder import render_beside

    plan_path = plan_file(plan_path)
    plan = read_plan(plan_path)
    written = render_beside(plan, plan_path, out, _warn)
    paths = [str(path) for path in written]
    typer.echo(json.dumps({"written": paths}, indent=2) if as_json else "\n".join(paths))


@app.command()
def bench(
    plan_path: PlanPath,
    context: Annotated[
        str | None, described("Lengths in tokens, e.g. 8k,32k,128k; k is 1024 [8k, or the model's positions].")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Build the model from its config alone.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Prefills per length and pattern.")] = 3,
    model: Annotated[str | None, described("Where the plan's checkpoint is now, or a config like it.")] = None,
    dtype: Annotated[str | None, described("auto, float32, bfloat16 or float16 [the plan's].")] = None,
    indexer: IndexerBackend = None,
    attention: AttentionBackend = None,
    beyond_positions: BeyondPositions = False,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time prefills under the plan and all full on this device, and the indexers' share of each.

    Writes bench.json beside the plan and adds a figure and a table to its report.
    """
    leave_to_main()
    from .recipes.schema import with_options
    from .search.plan.file import plan_file, read_plan
    from .search.report.prefills import prefill_file

    plan_path = plan_file(plan_path)
    plan, contexts = read_plan(plan_path), lengths(context) if context else []
    given = {"dtype": dtype or plan.run.dtype, "indexer": indexer, "attention": attention}
    settings = with_options(None, {name: value for name, value in given.items() if value})
    with working(quiet) as reporter:
        from .commands.bench import BenchRequest, bench_table
        from .commands.bench import bench as run_bench
        from .dsa.checkpoint.config import Trust
        from .dsa.checkpoint.load import Placement
        from .dsa.long.backends import Backends

        request = BenchRequest(
            contexts, repeats, settings.dtype, Placement(device_map, offload_folder),
            Backends(settings.indexer, settings.attention),
            random_weights, beyond_positions, Trust(trust_remote_code, allow_pickle),
        )  # fmt: skip
        record = run_bench(plan, plan_path, model, request, reporter)
    if as_json:
        typer.echo(record.as_json().rstrip())
    else:
        bench_table(record, prefill_file(plan_path))


def _one_wish(
    context: typer.Context, keep: float | None, max_delta: float | None
) -> tuple[float | None, float | None]:
    """Of both given, the one on the command line wins over the one in the environment."""
    if keep is None or max_delta is None:
        return keep, max_delta
    sources = [str(context.get_parameter_source(name)) for name in ("keep", "max_delta")]
    from_environment = [source.endswith("ENVIRONMENT") for source in sources]
    if from_environment[0] == from_environment[1]:
        raise SettingError("both --keep and --max-delta were given", hint="give one of them")
    return (None, max_delta) if from_environment[0] else (keep, None)


def _recipe_fields(context: typer.Context) -> dict[str, Any]:
    """The options that are fields of a recipe too, as far as they were given."""
    from .recipes.schema import Recipe

    options = {name: context.params[name] for name in context.params.keys() & Recipe.model_fields.keys()}
    lists = {"pin": "pin", "pp_layers": "pp-layers"}
    options |= {name: numbers(spoken, options[name]) for name, spoken in lists.items()}
    options["beyond_positions"] = options["beyond_positions"] or None
    return {
        name: value for name, value in options.items() if value is not None and name not in ("keep", "max_delta")
    }


def _run_name(recipe: str | None, model: str | None) -> str:
    """The run's folder: the recipe's name or the last part of the model's."""
    if recipe is not None:
        return Path(recipe).name.removesuffix(".yaml").removesuffix(".yml")
    return Path(model or "").resolve().name or "run"


def _settings(
    recipe: str | None, given: dict[str, Any], keep: float | None, max_delta: float | None, to_one: bool
) -> tuple[Recipe, Goal]:
    """The recipe with the options laid over it, and the goal; nothing heavy is imported."""
    from .pattern import kept_sites
    from .recipes.schema import read_recipe, with_options
    from .search.goal import Goal
    from .search.plan.cut import check_max_delta

    options = {name: value for name, value in given.items() if value is not None}
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
    return settings, Goal(keep, max_delta, to_one)


def _reach(model: str | None, revision: str | None) -> None:
    """Asks for a hub model before libraries are loaded that take seconds: a name that is none is told at once."""
    if model and find_path(model) is None:
        quieten()
        from .dsa.checkpoint.hub import fetch_description

        fetch_description(model, revision)


def _warn(line: str) -> None:
    typer.echo(wrapped(f"warning: {line}", sys.stderr), err=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits; ``endings`` says with which code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    share_cores()
    work_apart(False)

    def job() -> int | None:
        code: int | None = app(args=given, standalone_mode=False)
        return code

    if arguments is not None:
        sys.exit(exit_code_of(job, "--json" in given))
    leave(exit_code_of(job, "--json" in given, restore=False))


if __name__ == "__main__":
    main()
