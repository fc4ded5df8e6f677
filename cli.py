"""The command line: search, estimate, eval, cut, export, bench, inspect and report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .endings import exit_code_of, speaks
from .errors import GateError, SettingError
from .groups import SPOKEN
from .number_lists import lengths, numbers

if TYPE_CHECKING:
    from .recipes.schema import Recipe
    from .search.findings import Goal
    from .workflow import EstimateOutcome

app = typer.Typer(
    name="indexcache",
    help="Finds which layers of a DeepSeek Sparse Attention model can drop their indexer.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "INDEXCACHE"},
)

JsonFlag = Annotated[
    bool,
    typer.Option("--json", allow_from_autoenv=False, help="Print one JSON document on stdout, also on failure."),
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
# Never from the environment: running a checkpoint's code is to be asked for each time.
TrustFlag = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", allow_from_autoenv=False, help="Run Python code that the checkpoint brings."
    ),
]
PlanPath = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan.json that search wrote.", show_default=False)
]
DeviceMap = Annotated[str | None, typer.Option(help="Placement of a large model, e.g. auto.", show_default=False)]
OffloadFolder = Annotated[
    str | None,
    typer.Option(help="Where weights go that fit into no memory, with --device-map.", show_default=False),
]
IndexerBackend = Annotated[str | None, typer.Option(help="stock, chunked or auto [auto].", show_default=False)]
AttentionBackend = Annotated[
    str | None, typer.Option(help="stock, sparse or auto [auto: by length].", show_default=False)
]
BeyondPositions = Annotated[
    bool, typer.Option("--beyond-positions", help="Allow windows longer than the model's positions.")
]
Keep = Annotated[float | None, typer.Option(help="Fraction of sites that stay full: above 0, at most 1.")]
MaxDelta = Annotated[float | None, typer.Option(help="Largest loss increase, nats per token.")]

_STRATEGIES = "fast, exact or blocks"
_ENGINES = (
    "transformers, vllm, sglang, tensorrt-llm, vllm-ascend, atom, xllm, llama.cpp, lmdeploy, mlx-vlm or prime-rl"
)


def _text(help_text: str) -> Any:
    return typer.Option(help=help_text, show_default=False)


Pin = Annotated[str | None, _text("Decoder layers that stay full whatever is measured, e.g. 0,12.")]
PipelineSize = Annotated[
    int | None, _text("Pipeline stages, split as vLLM splits them; the first site of each stays full.")
]
PipelineLayers = Annotated[str | None, _text("Instead of --pp-size: layers of each stage, e.g. 20,20,21.")]


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
    recipe: Annotated[str | None, _text("YAML recipe: a file, or a name such as tiny.")] = None,
    model: Annotated[str | None, _text("Local folder or hub id of a DSA checkpoint.")] = None,
    dataset: Annotated[str | None, _text("Calibration text: local file or folder, or hub name.")] = None,
    keep: Keep = None,
    max_delta: MaxDelta = None,
    to_one: Annotated[bool, typer.Option("--all", help="Search on to one full site, whatever is picked.")] = False,
    window: Annotated[int | None, _text("Tokens per window [4 x the selection width].")] = None,
    windows: Annotated[int | None, _text("Calibration windows [32].")] = None,
    heldout: Annotated[int | None, _text("Held-out windows, from other documents [16].")] = None,
    seed: Annotated[int | None, _text("Order of documents and choice of windows [0].")] = None,
    dtype: Annotated[str | None, _text("auto, float32, bfloat16 or float16 [auto].")] = None,
    indexer: IndexerBackend = None,
    attention: AttentionBackend = None,
    beyond_positions: BeyondPositions = False,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    revision: Annotated[str | None, _text("Branch, tag or commit of a hub model.")] = None,
    column: Annotated[str | None, _text("Column with text or chat messages [found by name].")] = None,
    dataset_subset: Annotated[str | None, _text("Configuration of a hub dataset.")] = None,
    dataset_split: Annotated[str | None, _text("Split of a hub dataset [train].")] = None,
    dataset_revision: Annotated[str | None, _text("Branch, tag or commit of a hub dataset.")] = None,
    strategy: Annotated[str | None, _text(f"{_STRATEGIES} [fast].")] = None,
    standard_errors: Annotated[float | None, _text("How much worse leaves a race early [3].")] = None,
    blocks: Annotated[int | None, _text("Number of blocks, for that strategy [2].")] = None,
    refine_rounds: Annotated[int | None, _text("Swaps at most after the removals [0].")] = None,
    pin: Pin = None,
    pp_size: PipelineSize = None,
    pp_layers: PipelineLayers = None,
    baselines: Annotated[
        str | None, _text("uniform, or overlap for its patterns and heatmap too [uniform].")
    ] = None,
    init: Annotated[str | None, _text("An older plan.json whose order is tried first, with fast.")] = None,
    max_rows: Annotated[int | None, _text("Windows x patterns in memory together [by free memory].")] = None,
    selfcheck: Annotated[
        bool | None,
        typer.Option("--selfcheck/--no-selfcheck", help="Try the model on a short window first [yes]."),
    ] = None,
    out: Annotated[Path | None, _text("Folder for the run [outputs/RECIPE or outputs/MODEL].")] = None,
    resume: Annotated[
        str,
        _text("auto: go on where a run stopped; required: only then; never: move it aside, begin anew [auto]."),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what it will cost.")] = False,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Search which indexers a checkpoint can drop; write plan, frozen tokens and report.

    Options win over INDEXCACHE_SEARCH_* variables, those over the recipe. Prints the plan's path.
    """
    given = {
        "model": model, "dataset": dataset, "window": window, "windows": windows, "heldout": heldout,
        "seed": seed, "dtype": dtype, "indexer": indexer, "attention": attention,
        "beyond_positions": beyond_positions or None, "device_map": device_map, "revision": revision,
        "column": column,
        "dataset_subset": dataset_subset, "dataset_split": dataset_split,
        "dataset_revision": dataset_revision, "strategy": strategy, "standard_errors": standard_errors,
        "blocks": blocks, "refine_rounds": refine_rounds, "pin": numbers("pin", pin), "pp_size": pp_size,
        "pp_layers": numbers("pp-layers", pp_layers), "baselines": baselines, "init": init,
        "max_rows": max_rows, "offload_folder": offload_folder, "selfcheck": selfcheck,
    }  # fmt: skip
    keep, max_delta = _one_wish(context, keep, max_delta)
    settings, goal = _settings(recipe, given, keep, max_delta, to_one)
    from . import workflow
    from .resuming import check_resume

    check_resume(resume)
    with _reporter(quiet) as reporter:
        folder = out or Path("outputs") / _run_name(recipe if model is None else None, settings.model)
        if dry_run:
            _print_estimate(workflow.estimate(settings, goal, folder, trust_remote_code, True, reporter), as_json)
            return
        outcome = workflow.search(settings, goal, folder, resume, trust_remote_code, reporter)
    if not speaks():
        return
    if outcome.moved:
        reporter.say(f"the run that stood there is now in {outcome.moved}")
    if not quiet:
        from .tables import search_summary

        search_summary(outcome.plan, folder, outcome.timing)
    typer.echo(outcome.plan.as_json().rstrip() if as_json else str(outcome.path))


@app.command()
def estimate(
    context: typer.Context,
    recipe: Annotated[str | None, _text("YAML recipe: a file, or a name such as tiny.")] = None,
    model: Annotated[str | None, _text("Local folder or hub id of a DSA checkpoint.")] = None,
    keep: Keep = None,
    max_delta: MaxDelta = None,
    to_one: Annotated[bool, typer.Option("--all", help="Search on to one full site.")] = False,
    window: Annotated[int | None, _text("Tokens per window [4 x the selection width].")] = None,
    windows: Annotated[int | None, _text("Calibration windows [32].")] = None,
    heldout: Annotated[int | None, _text("Held-out windows [16].")] = None,
    dtype: Annotated[str | None, _text("auto, float32, bfloat16 or float16 [auto].")] = None,
    indexer: IndexerBackend = None,
    attention: AttentionBackend = None,
    beyond_positions: BeyondPositions = False,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    revision: Annotated[str | None, _text("Branch, tag or commit of a hub model.")] = None,
    strategy: Annotated[str | None, _text(f"{_STRATEGIES} [fast].")] = None,
    blocks: Annotated[int | None, _text("Number of blocks, for that strategy [2].")] = None,
    refine_rounds: Annotated[int | None, _text("Swaps at most after the removals [0].")] = None,
    pin: Pin = None,
    pp_size: PipelineSize = None,
    pp_layers: PipelineLayers = None,
    standard_errors: Annotated[float | None, _text("How much worse leaves a race early [3].")] = None,
    baselines: Annotated[str | None, _text("uniform, or overlap for its patterns too [uniform].")] = None,
    init: Annotated[str | None, _text("An older plan.json whose order is tried first, with fast.")] = None,
    max_rows: Annotated[int | None, _text("Windows x patterns in memory together [by free memory].")] = None,
    timed: Annotated[bool, typer.Option("--time/--no-time", help="Load the weights and time a window.")] = True,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Say what a search will cost: layer-windows from the config alone, then seconds from one window.

    Takes the options of search that change the cost, and needs no text. --no-time needs no weights.
    """
    given = {
        "model": model, "window": window, "windows": windows, "heldout": heldout, "dtype": dtype,
        "indexer": indexer, "attention": attention, "beyond_positions": beyond_positions or None,
        "device_map": device_map, "revision": revision, "strategy": strategy, "blocks": blocks,
        "refine_rounds": refine_rounds, "pin": numbers("pin", pin), "pp_size": pp_size,
        "pp_layers": numbers("pp-layers", pp_layers), "standard_errors": standard_errors,
        "baselines": baselines, "init": init, "max_rows": max_rows,
        "offload_folder": offload_folder,
    }  # fmt: skip
    keep, max_delta = _one_wish(context, keep, max_delta)
    settings, goal = _settings(recipe, given, keep, max_delta, to_one)
    from . import workflow

    with _reporter(quiet) as reporter:
        outcome = workflow.estimate(settings, goal, None, trust_remote_code, timed, reporter)
    _print_estimate(outcome, as_json)


def _print_estimate(outcome: EstimateOutcome, as_json: bool) -> None:
    from .tables import estimate_document, estimate_table

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
    model: Annotated[str | None, _text("Where the plan's checkpoint is now, if it moved.")] = None,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure all full, the plan and uniform interleaving on the plan's frozen tokens.

    With --max-delta, exits with 1 when the plan's loss increase is above it.
    """
    from .search.plan import check_max_delta, plan_file, read_plan

    check_max_delta(max_delta)
    if on not in SPOKEN:
        raise SettingError(f"--on is {on!r}", hint="give heldout or calibration")
    plan = read_plan(plan_path)
    from . import workflow
    from .dsa.loading import Placement

    with _reporter(quiet) as reporter:
        outcome = workflow.evaluate(
            plan,
            plan_file(plan_path).parent,
            on,
            max_delta,
            model,
            Placement(device_map, offload_folder),
            trust_remote_code,
            reporter,
        )
    if speaks():
        from .tables import eval_document, eval_table

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
    out: Annotated[Path | None, _text("File to write [beside the plan, named by what is kept].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Pick another step of a searched plan, offline; prints the new plan's path."""
    from .files import write_atomically
    from .search.plan import cut as cut_plan
    from .search.plan import plan_file, read_plan

    plan_path = plan_file(plan_path)
    plan = cut_plan(read_plan(plan_path), keep, max_delta)
    target = out or plan_path.with_name(f"{plan_path.stem}-{plan.result.kept}of{plan.result.sites}.json")
    tokens = plan_path.parent / plan.tokens.file
    if target.parent.resolve() != plan_path.parent.resolve() and tokens.is_file():
        write_atomically(target.parent / plan.tokens.file, tokens.read_bytes())
    write_atomically(target, plan.as_json())
    typer.echo(plan.as_json().rstrip() if as_json else str(target))


@app.command()
def export(
    plan_path: PlanPath,
    to: Annotated[str, typer.Option(help=f"{_ENGINES}.", show_default=False)],
    engine_version: Annotated[
        str | None, _text("The engine's version, e.g. 0.33.0, for what depends on it.")
    ] = None,
    pp_size: Annotated[int | None, _text("Pipeline stages, split as the engine splits them.")] = None,
    pp_layers: PipelineLayers = None,
    write: Annotated[Path | None, _text("Folder for a copy of config.json with the settings.")] = None,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="Write the weights there too, without the shared indexers.")
    ] = False,
    model: Annotated[str | None, _text("Where the plan's checkpoint is now, if it moved.")] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Print settings, ready to paste, that make an engine run the plan; notes go to stderr."""
    from .search.export import Serving
    from .search.export import export as export_plan
    from .search.plan import read_plan

    if strip_weights and write is None:
        raise SettingError("--strip-weights was given without --write", hint="name the folder with --write")
    plan, stages = read_plan(plan_path), numbers("pp-layers", pp_layers)
    served = str(write) if strip_weights else model
    exported = export_plan(plan, to, Serving(engine_version, pp_size, stages, served, strip_weights))
    written = None
    if write is not None:
        with _reporter(quiet) as reporter:
            from . import export_folder

            if strip_weights:
                written = export_folder.write_stripped(plan, exported, write, model, reporter)
            else:
                written = export_folder.write_config(plan, exported, write, model)
    from .tables import export_document

    for warning in exported.warnings:
        typer.echo(f"note: {warning}", err=True)
    if written:
        typer.echo(f"wrote {written}", err=True)
    typer.echo(
        json.dumps(export_document(plan, exported, written), indent=2) if as_json else exported.paste.rstrip()
    )


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Local folder or hub id of a DSA checkpoint.", show_default=False)],
    revision: Annotated[str | None, _text("Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a checkpoint's sites, sizes and selection width from its config, without weights."""
    _quieten()
    from .dsa.checkpoint import measure_sizes, open_checkpoint
    from .tables import inspect_document, inspect_table

    checkpoint = open_checkpoint(model, revision, trust_remote_code)
    document = inspect_document(checkpoint, measure_sizes(checkpoint))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        inspect_table(document)


@app.command()
def report(
    plan_path: PlanPath,
    out: Annotated[Path | None, _text("Folder for the files [the plan's].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Render a plan's report.md, report.html and curve.svg again; prints their paths."""
    from .search.folder import write_report
    from .search.plan import plan_file, read_plan
    from .search.prefills import prefill_file, read_prefills
    from .search.timing import read_timing, timing_file

    plan_path = plan_file(plan_path)
    plan = read_plan(plan_path)
    prefills = read_prefills(prefill_file(plan_path), plan.result.pattern)
    timing = read_timing(timing_file(plan_path))
    written = write_report(out or plan_path.parent, plan, plan_path.stem, prefills, timing)
    paths = [str(path) for path in written]
    typer.echo(json.dumps({"written": paths}, indent=2) if as_json else "\n".join(paths))


@app.command()
def bench(
    plan_path: PlanPath,
    context: Annotated[
        str | None, _text("Lengths in tokens, e.g. 8k,32k,128k; k is 1024 [8k, or the model's positions].")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Build the model from its config alone.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Prefills per length and pattern.")] = 3,
    model: Annotated[str | None, _text("Where the plan's checkpoint is now, or a config like it.")] = None,
    dtype: Annotated[str | None, _text("auto, float32, bfloat16 or float16 [the plan's].")] = None,
    indexer: IndexerBackend = None,
    attention: AttentionBackend = None,
    beyond_positions: BeyondPositions = False,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time prefills under the plan and all full on this device, and the indexers' share of each.

    Writes bench.json beside the plan and adds a figure and a table to its report.
    """
    from .recipes.schema import checked
    from .search.plan import plan_file, read_plan
    from .search.prefills import prefill_file

    plan_path = plan_file(plan_path)
    plan, contexts = read_plan(plan_path), lengths(context) if context else []
    given = {"dtype": dtype or plan.run.dtype, "indexer": indexer, "attention": attention}
    settings = checked({name: value for name, value in given.items() if value}, "the options")
    from .benching import BenchRequest
    from .benching import bench as run_bench
    from .dsa.backends import Backends
    from .dsa.loading import Placement
    from .tables import bench_table

    request = BenchRequest(
        contexts, repeats, settings.dtype, Placement(device_map, offload_folder),
        Backends(settings.indexer, settings.attention),
        random_weights, beyond_positions, trust_remote_code,
    )  # fmt: skip
    with _reporter(quiet) as reporter:
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
    from .recipes.schema import checked, read_recipe
    from .search.findings import Goal
    from .search.plan import check_max_delta

    base = read_recipe(recipe).model_dump(exclude_none=True) if recipe else {}
    overrides = {name: value for name, value in given.items() if value is not None}
    if overrides.keys() & {"pp_size", "pp_layers"}:
        base = {name: value for name, value in base.items() if name not in ("pp_size", "pp_layers")}
    settings = checked(base | overrides, "the options")
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


def _reporter(quiet: bool) -> Any:
    _quieten()
    from .progress import Reporter

    return Reporter(quiet=quiet or not speaks())


def _quieten() -> None:
    """Keeps the libraries' own progress bars and advice off stderr unless the user asked for them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits; ``endings`` says with which code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(exit_code_of(lambda: app(args=given, standalone_mode=False), as_json="--json" in given))


if __name__ == "__main__":
    main()
