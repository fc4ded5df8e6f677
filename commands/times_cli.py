"""The command line of what says a plan's worth in time: bench and price."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import SettingError
from ..recipes.numbers import lengths
from .job.options import (
    PLACED,
    ContextLengths,
    JsonFlag,
    PickleFlag,
    PlanPath,
    QuietFlag,
    TrustFlag,
    described,
    flag,
    named,
    recipe_options,
)
from .job.start import leave_to_main, working

PRICE_EXAMPLES = (
    "indexcache price outputs/tiny/plan.json --lengths 8k:70,128k:30 --output-tokens 500",
    "indexcache price outputs/tiny/plan.json --lengths histogram.csv --max-delta 0.02",
)
BENCH_EXAMPLES = (
    "indexcache bench outputs/tiny/plan.json --context 512,1k",
    "indexcache bench outputs/tiny/plan.json --decode --lengths 512,1k --batch 1,8",
)


@recipe_options("dtype", "indexer", "attention", "beyond_positions", *PLACED, defaults={"dtype": "the plan's"})
def bench(
    plan_path: PlanPath,
    fields: dict[str, Any],
    context: ContextLengths = None,
    decode: Annotated[bool, flag("--decode", "Time output tokens behind such caches instead.")] = False,
    batch: Annotated[str | None, described("With --decode, sequences together, e.g. 1,8 [1].")] = None,
    uniform: Annotated[bool, flag("--uniform", "With --decode, time uniform interleaving too.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="With --decode, output tokens in each run.")] = 8,
    random_weights: Annotated[bool, flag("--random-weights", "Build the model from its config alone.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per length and pattern.")] = 3,
    model: Annotated[str | None, described("Where the plan's checkpoint is now, or a config like it.")] = None,
    trust_remote_code: TrustFlag = False,
    allow_pickle: PickleFlag = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time prefills under the plan and all full on this device, and the indexers' share of each.

    Writes bench.json beside the plan and adds a figure and a table to its report. --decode times output tokens
    instead and writes bench-decode.json; indexcache price reads both.
    """
    leave_to_main()
    from ..search.plan.file import plan_file, read_plan
    from .job.settings import trust_of

    if not decode and (batch is not None or uniform):
        raise SettingError(f"{'--uniform' if uniform else '--batch'} goes with --decode", hint="add --decode")
    path = plan_file(plan_path)
    plan, contexts = read_plan(path), lengths(context) if context else []
    with working(quiet) as reporter:
        from . import bench as bench_command
        from . import bench_decode as decode_command
        from .job.planned import open_planned

        request = bench_command.BenchRequest.from_fields(contexts, repeats, random_weights, fields)
        steps_request = decode_command.DecodeRequest.from_options(request, batch, steps, uniform)
        planned = open_planned(plan, model, trust_of(trust_remote_code, allow_pickle))
        if decode:
            times = decode_command.bench_decode(planned, path, steps_request, reporter)
        else:
            record = bench_command.bench(planned, path, request, reporter)
    if decode:
        decode_command.show(times, path, as_json)
    else:
        bench_command.show(record, path, as_json)


@recipe_options("max_delta", helps={"max_delta": "find the cheapest budget within this loss increase"})
def price(
    plan_path: PlanPath,
    fields: dict[str, Any],
    mix: Annotated[
        str | None,
        named("--lengths", "INDEXCACHE_PRICE_LENGTHS", "Prompts and their shares: 8k:70,128k:30, or a CSV file."),
    ] = None,
    output_tokens: Annotated[int, typer.Option(min=1, max=1 << 24, help="Written for each prompt.")] = 256,
    batch: Annotated[int | None, described("Sequences that decode together, as timed [as timed].")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Price a mix of requests by what bench timed: first token, output token, tokens a second a GPU.

    Says from which length on sharing pays, and with --max-delta which budget is the cheapest. A CSV file has a
    line for each length: length,count and, if it differs, output tokens.
    """
    leave_to_main()
    from ..search.plan.file import plan_file, read_plan
    from . import price as price_command

    if mix is None:
        raise SettingError("--lengths was not given: it says how long prompts are", hint="e.g. 8k:70,128k:30")
    path = plan_file(plan_path)
    plan = read_plan(path)
    listed = price_command.price(plan, path, mix, output_tokens, batch, fields.get("max_delta"))
    price_command.show(listed, as_json)
