"""The command line: a short function a command; a recipe's options are made from its schema."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands.check_cli import CHECK_EXAMPLES, check
from .commands.job.command import Application
from .commands.job.options import (
    ENGINES,
    MACHINE,
    PLACED,
    CurveFlag,
    DecodeKeep,
    DistilledFlag,
    GivenPattern,
    JsonFlag,
    LayerSeconds,
    LearningRate,
    LogName,
    MovedModel,
    NodeCount,
    PickleFlag,
    PlanPath,
    PrefillKeep,
    ProbesFlag,
    QuietFlag,
    RecipeName,
    TrustFlag,
    UniformFlag,
    WindowGroupName,
    check_pair,
    described,
    flag,
    named,
    place,
    recipe_options,
)
from .commands.job.start import leave_to_main, reach, share_cores, working
from .commands.overview import Overview
from .commands.times_cli import BENCH_EXAMPLES, PRICE_EXAMPLES, bench, price
from .commands.upkeep_cli import UPKEEP_COMMANDS
from .errors import SettingError
from .evaluate import HELD_OUT
from .recipes.schema import FIELDS, RUN, SEARCH
from .system.exits import exit_code_of
from .system.launching import work_apart
from .system.signals import leave
from .version import __version__

app = Application(
    name="indexcache",
    cls=Overview,
    help="Finds which layers of a DeepSeek Sparse Attention model can drop their indexer.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "INDEXCACHE"},
)
_SEARCHED = tuple(name for name in FIELDS if name != "schema_version")
# What changes a search's cost; the text does not.
_TEXT = ("dataset", "dataset_subset", "dataset_split", "dataset_revision", "column")
_COUNTED = tuple(
    name
    for name in _SEARCHED
    if name not in (*_TEXT, "seed", "weights_hash", "selfcheck", "fingerprint", "untrained", "max_probe_delta")
)
_ROOM = ("max_memory", "max_host_memory")


def _version(is_asked: bool) -> None:
    if is_asked:
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


@app.command(
    examples=(
        "indexcache search --recipe tiny --keep 0.25",
        "indexcache search --model ./DeepSeek-V3.2 --dataset text.jsonl --keep 1/4 --pp-size 4",
    )
)
@recipe_options(*_SEARCHED)
def search(
    context: typer.Context,
    fields: dict[str, Any],
    recipe: RecipeName = None,
    to_one: Annotated[
        bool, named("--all", "INDEXCACHE_SEARCH_ALL", "Search on to one full site, whatever is picked.", SEARCH)
    ] = False,
    distilled: DistilledFlag = False,
    out: Annotated[Path | None, place("Folder for the run [outputs/RECIPE or outputs/MODEL].", RUN)] = None,
    resume: Annotated[
        str,
        described(
            "auto: go on where a run stopped; required: only then; never: move it aside, begin anew [auto].", RUN
        ),
    ] = "auto",
    dry_run: Annotated[bool, flag("--dry-run", "Check everything, say what it will cost.", RUN)] = False,
    log: LogName = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Path | None:
    """Search which indexers a checkpoint can drop; write plan, frozen tokens and report.

    An option wins over its variable INDEXCACHE_SEARCH_NAME, and that over the recipe. Prints the plan's path.
    """
    from .commands.job.settings import check_choices, run_folder, search_settings, trust_of

    settings, goal = search_settings(context, recipe, fields, to_one, distilled)
    folder = run_folder(out, recipe, settings.model, "model" in fields)
    check_choices(resume, log)
    reach(settings.model, settings.revision)
    with working(quiet) as reporter:
        from .commands import estimate as estimate_command
        from .commands import search as search_command
        from .commands.job.prepare import prepare

        trust = trust_of(trust_remote_code, allow_pickle)
        if dry_run:
            estimated = estimate_command.estimate(prepare(settings, goal, folder, trust, reporter), True, reporter)
        else:
            outcome = search_command.search(settings, goal, folder, resume, trust, reporter, log)
    if dry_run:
        estimate_command.show(estimated, as_json)
        return None
    search_command.show(outcome, folder, as_json, quiet, reporter)
    search_command.hold(outcome, settings)
    return outcome.path


@app.command(
    examples=(
        "indexcache estimate --model ./DeepSeek-V3.2 --keep 0.25 --no-time",
        "indexcache estimate --model ./DeepSeek-V3.2 --keep 0.25 --window 32768 --gpus 8x80GB --ram 1TB",
    )
)
@recipe_options(*_COUNTED)
def estimate(
    context: typer.Context,
    fields: dict[str, Any],
    recipe: RecipeName = None,
    to_one: Annotated[
        bool, named("--all", "INDEXCACHE_ESTIMATE_ALL", "Search on to one full site.", SEARCH)
    ] = False,
    distilled: DistilledFlag = False,
    timed: Annotated[
        bool | None,
        named(
            "--time/--no-time",
            "INDEXCACHE_ESTIMATE_TIME",
            "Load the weights and time a window [yes; no with --gpus].",
            RUN,
        ),
    ] = None,
    gpus: Annotated[str | None, described("Price layouts on these GPUs, here or not: 8x80GB.", MACHINE)] = None,
    nodes: NodeCount = None,
    ram: Annotated[str | None, described("Host memory of a node: 1TB.", MACHINE)] = None,
    disk_rate: Annotated[str | None, described("What a node reads from its disk [6GB/s].", MACHINE)] = None,
    network_rate: Annotated[
        str | None, described("What a node receives from the others [25GB/s].", MACHINE)
    ] = None,
    layer_seconds: LayerSeconds = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Say what a search will cost: layer-windows from the config alone, then seconds from one window.

    Takes the options of search that change the cost, and needs no text. --no-time needs no weights. --gpus says
    what fits where on such a machine, and the hours, from the config and the headers of weights that are here.
    """
    from .commands.estimate_machine import pricing_of
    from .commands.job.settings import search_settings, trust_of

    pricing = pricing_of(gpus, nodes, ram, disk_rate, network_rate, layer_seconds)
    timed = pricing is None if timed is None else timed
    settings, goal = search_settings(context, recipe, fields, to_one, distilled)
    reach(settings.model, settings.revision)
    with working(quiet, loads_model=timed) as reporter:
        from .commands import estimate as estimate_command
        from .commands.job.prepare import intend

        intent = intend(settings, goal, trust_of(trust_remote_code, allow_pickle), reporter)
        outcome = estimate_command.estimate(intent, timed, reporter, pricing)
    estimate_command.show(outcome, as_json)


@app.command(
    name="eval",
    examples=(
        "indexcache eval outputs/tiny/plan.json --max-delta 0.02 --probes",
        "indexcache eval outputs/tiny/plan.json --window 4096 --windows 8",
        "indexcache eval outputs/tiny/plan.json --fingerprint",
    ),
)
@recipe_options(
    *(
        *_ROOM,
        *PLACED,
        "max_delta",
        "max_probe_delta",
        "gate",
        "confidence",
        "window",
        "windows",
        "beyond_positions",
    ),
    *_TEXT,
    defaults={
        **{"confidence": "the plan's", "dataset": "the plan's", "dataset_split": "the plan's"},
        **{"window": "the plan's", "windows": "as many as the plan has held out"},
    },
    helps={
        "max_delta": "exit with 1 where the plan's loss increase may be larger, nats per token",
        "window": "measure unseen windows of so many tokens",
        "windows": "how many unseen windows",
        "dataset": "measure unseen windows of this text: local file or folder, or hub name",
        "confidence": "of intervals",
    },
)
def evaluate(
    plan_path: PlanPath,
    fields: dict[str, Any],
    on: WindowGroupName = HELD_OUT,
    with_probes: ProbesFlag = False,
    with_curve: CurveFlag = False,
    fingerprint: Annotated[
        bool, flag("--fingerprint", "Write beside the plan what check tells a server by.", RUN)
    ] = False,
    model: MovedModel = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure all full, the plan and uniform interleaving on the plan's frozen tokens, or on other windows.

    With --window, --windows or --dataset the windows are others, of documents that the search has not seen. Kept
    beside the plan, and in its report. Exits with 1 where an increase may exceed --max-delta or --max-probe-delta.
    """
    from .commands.eval_settings import eval_settings
    from .commands.job.settings import room_of, trust_of
    from .search.plan.file import plan_file, read_plan

    path = plan_file(plan_path)
    plan = read_plan(path)
    settings = eval_settings(plan, on, with_probes, fields, with_curve, fingerprint)
    with working(quiet) as reporter:
        from .commands import eval as eval_command
        from .commands import eval_table
        from .commands.job.planned import open_planned

        planned = open_planned(plan, model, trust_of(trust_remote_code, allow_pickle))
        outcome = eval_command.evaluate(planned, path, settings, room_of(fields), reporter)
    eval_table.show(outcome, as_json)
    outcome.hold()


@app.command(examples=("indexcache distill outputs/tiny/plan.json --out tiny-distilled --max-delta 0.05",))
@recipe_options(
    *(*_ROOM, "max_delta", "gate", "confidence", "windows", "seed"),
    *_TEXT,
    defaults={
        **{"confidence": "the plan's", "dataset": "the plan's calibration windows", "dataset_split": "train"},
        **{"windows": "64", "seed": "the plan's"},
    },
    helps={
        "max_delta": "exit with 1 where the loss increase may still be larger, nats per token",
        "dataset": "learn from this text instead: local file or folder, or hub name",
        "windows": "how many windows of that text",
        "seed": "choice of queries and order of windows",
        "confidence": "of intervals",
    },
)
def distill(
    plan_path: PlanPath,
    fields: dict[str, Any],
    out: Annotated[Path | None, place("Folder for the new checkpoint and its plan.", RUN)] = None,
    pattern: GivenPattern = None,
    uniform: UniformFlag = False,
    steps: Annotated[int, described("Training steps of each indexer, of 4 windows [400].", SEARCH)] = 400,
    rows: Annotated[int, described("Queries of a window that are learned from [128].", SEARCH)] = 128,
    rate: LearningRate = "auto",
    model: MovedModel = None,
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Path | None:
    """Train the plan's kept indexers for the layers that they serve; write a checkpoint with them, and its plan.

    Nothing else of the checkpoint changes. The same command goes on where it was stopped. Prints the plan's path.
    Exits with 1 where the held-out loss did not fall, or may exceed --max-delta.
    """
    from .commands.distil_settings import distil_settings
    from .commands.job.settings import room_of, trust_of
    from .search.plan.file import plan_file, read_plan

    if out is None:
        raise SettingError("--out was not given: it names the folder of the new checkpoint")
    path = plan_file(plan_path)
    plan = read_plan(path)
    settings = distil_settings(plan, out, pattern, uniform, steps, rows, rate, fields)
    with working(quiet) as reporter:
        from .commands import distil as distil_command
        from .commands import distil_table
        from .commands.job.planned import open_planned

        planned = open_planned(plan, model, trust_of(trust_remote_code, False))
        outcome = distil_command.distil(planned, path, settings, room_of(fields), reporter)
    distil_table.show(outcome, as_json, quiet)
    outcome.hold()
    return outcome.path


@app.command(
    examples=(
        "indexcache cut outputs/tiny/plan.json --keep 0.5",
        "indexcache cut outputs/tiny/plan.json --prefill-keep 0.5 --decode-keep 0.25 --out outputs/tiny/pair",
    )
)
@recipe_options("keep", "max_delta")
def cut(
    plan_path: PlanPath,
    fields: dict[str, Any],
    out: Annotated[
        Path | None, place("File to write, or folder for two [beside the plan, named by what is kept].")
    ] = None,
    prefill_keep: PrefillKeep = None,
    decode_keep: DecodeKeep = None,
    as_json: JsonFlag = False,
) -> Path | None:
    """Pick another step of a searched plan, offline; prints the new plan's path.

    With --prefill-keep and --decode-keep, pick two: for servers that prefill, and for servers that decode.
    """
    leave_to_main()
    from .commands import cut as cut_command

    if prefill_keep is not None or decode_keep is not None:
        keeps = check_pair(prefill_keep, decode_keep, fields, out)
        cut_command.show_pair(cut_command.cut_pair(plan_path, *keeps, out or Path()), as_json)
        return out
    plan, path = cut_command.cut(plan_path, fields, out)
    cut_command.show(plan, path, as_json)
    return path


@app.command(examples=("indexcache export outputs/tiny/plan.json --to vllm --engine-version 0.28.0",))
@recipe_options("pp_size", "pp_layers", helps={"pp_size": "pipeline stages, split as the engine splits them"})
def export(
    plan_path: PlanPath,
    fields: dict[str, Any],
    to: Annotated[str | None, described(f"{ENGINES}; or none, for the bare pattern.")] = None,
    engine_version: Annotated[
        str | None, described("The engine's version, e.g. 0.33.0, for what depends on it.")
    ] = None,
    write: Annotated[Path | None, described("Folder for a copy of config.json with the settings.")] = None,
    strip_weights: Annotated[
        bool, flag("--strip-weights", "Write the weights there too, without the shared indexers.")
    ] = False,
    force: Annotated[bool, flag("--force", "Print settings that the engine is known to fail with, too.")] = False,
    model: MovedModel = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Print settings, ready to paste, that make an engine run the plan; notes go to stderr."""
    leave_to_main()
    from .commands import export as export_command
    from .commands.export_pair import export_pair, pair_in
    from .search.export.settings import check_written
    from .search.export.support import Serving
    from .search.plan.file import plan_file, read_plan

    if strip_weights and write is None:
        raise SettingError("--strip-weights was given without --write", hint="name the folder with --write")
    if to is None:
        raise SettingError("--to was not given: it names the engine", hint=f"give one of {ENGINES}; or none")
    if (pair := pair_in(plan_path)) is not None:
        serving = Serving(engine_version, fields.get("pp_size"), fields.get("pp_layers"), model)
        return export_pair(pair, to, serving, force, write is not None, as_json)
    path = plan_file(plan_path)
    plan = read_plan(path)
    served = str(write.absolute()) if write is not None and strip_weights else model
    stages, edited = (fields.get("pp_size"), fields.get("pp_layers")), write is not None
    config = export_command.config_here(plan, model)
    serving = Serving(engine_version, *stages, served, strip_weights, config=config, edited=edited)
    exported = export_command.settings_for(plan, to, serving, force)
    if write is not None:
        check_written(exported)
    output = None
    if write is not None:
        with working(quiet, loads_model=False) as reporter:
            output = export_command.write(plan, exported, write, strip_weights, model, reporter)
    export_command.show(plan, exported, output, strip_weights, as_json)


@app.command(examples=('indexcache apply outputs/tiny/plan.json --prompt "The wind"',))
@recipe_options(*PLACED)
def apply(
    plan_path: PlanPath,
    fields: dict[str, Any],
    prompt: Annotated[str | None, described("Text to continue [a window of the plan's own].")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 32,
    model: MovedModel = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Run the checkpoint under the plan: continue a prompt, and the same with all indexers beside it."""
    leave_to_main()
    from .commands.job.settings import placement_of, trust_of
    from .search.plan.file import plan_file, read_plan

    path = plan_file(plan_path)
    plan = read_plan(path)
    with working(quiet) as reporter:
        from .commands import apply as apply_command
        from .commands.job.planned import open_planned

        planned = open_planned(plan, model, trust_of(trust_remote_code, allow_pickle))
        request = apply_command.PromptRequest(prompt, new_tokens)
        continuation = apply_command.continue_prompt(planned, path, request, placement_of(fields), reporter)
    apply_command.show(continuation, as_json)


@app.command(examples=("indexcache inspect ./DeepSeek-V3.2",))
@recipe_options("revision")
def inspect(
    model: Annotated[str, typer.Argument(help="Local folder or hub id of a DSA checkpoint.", show_default=False)],
    fields: dict[str, Any],
    trust_remote_code: TrustFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a checkpoint's sites, sizes and selection width from its config, without weights."""
    leave_to_main()
    from .commands import inspect as inspect_command

    reach(model, fields.get("revision"))
    with working(quiet=False, loads_model=False, loads_libraries=False) as reporter:
        document = inspect_command.inspect(model, fields.get("revision"), trust_remote_code, reporter)
    inspect_command.show(document, as_json)


app.command(examples=CHECK_EXAMPLES)(check)
app.command(examples=BENCH_EXAMPLES)(bench)
app.command(examples=PRICE_EXAMPLES)(price)
for _name, (_command, _examples) in UPKEEP_COMMANDS.items():
    app.command(name=_name, examples=_examples)(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits; ``system.exits`` says with which code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # OpenMP reads its setting as torch is imported. What an earlier command in this process left behind is undone.
    share_cores()
    work_apart(False)

    def job() -> int | None:
        code: int | None = app(args=words, standalone_mode=False)
        return code

    if arguments is not None:
        sys.exit(exit_code_of(job, "--json" in words))
    leave(exit_code_of(job, "--json" in words, restore=False))


if __name__ == "__main__":
    main()
