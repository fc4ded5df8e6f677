"""The command line of check: its options, and from an address to an exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from .check_settings import check_settings
from .job.options import ENGINES, JsonFlag, PlanPath, QuietFlag, described, flag
from .job.start import leave_to_main, working

CHECK_EXAMPLES = (
    "indexcache check outputs/tiny/plan.json --url http://localhost:8000/v1",
    "indexcache check outputs/tiny/plan.json --url https://host/v1 --model glm-5 --engine vllm --json",
)


def check(
    plan_path: PlanPath,
    url: Annotated[str | None, described("Address of the server, with /v1.")] = None,
    model: Annotated[str | None, described("The server's name of the model, where it has several.")] = None,
    engine: Annotated[str | None, described(f"What it runs in: {ENGINES} [what the server says].")] = None,
    max_requests: Annotated[int, typer.Option(min=1, max=10_000, help="Requests at most.")] = 200,
    timeout: Annotated[float, typer.Option(min=0.001, max=3600, help="Seconds that an answer may take.")] = 60.0,
    prompt_logprobs: Annotated[
        bool, flag("--prompt-logprobs", "Ask for those of the prompt too (vLLM): fewer requests, more memory.")
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Ask a running server which pattern it runs, by what it predicts where patterns predict differently.

    Needs fingerprint.json beside the plan (eval --fingerprint), and no model. Its key is INDEXCACHE_API_KEY. Exits
    with 1 unless the server runs the plan for sure, and with 2 where it cannot be asked.
    """
    leave_to_main()
    settings = check_settings(url, model, engine, max_requests, timeout, prompt_logprobs)
    with working(quiet, loads_model=False, loads_libraries=False) as reporter:
        from . import check as check_command
        from . import check_table

        outcome = check_command.check(plan_path, settings, reporter)
    check_table.show(outcome, as_json)
    outcome.hold()
