"""Options that several commands have: what they are called, what their help says, whence they may come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...recipes.numbers import decimal, fraction

STRATEGIES = "fast, exact or blocks"
ENGINES = (
    "transformers, vllm, sglang, tensorrt-llm, vllm-ascend, atom, xllm, llama.cpp, lmdeploy, mlx-vlm or prime-rl"
)


def described(help_text: str) -> Any:
    """An option of which nothing else needs to be said."""
    return typer.Option(help=help_text, show_default=False)


def place(help_text: str) -> Any:
    """An option that names a file or a folder to write."""
    return typer.Option(help=help_text, show_default=False, parser=_place, metavar="PATH")


def _place(text: str) -> Path:
    if not text.strip():
        raise typer.BadParameter("it is empty; give a path, . for this folder")
    return Path(text)


def _increase(text: str) -> float:
    return decimal("max-delta", text, "a loss increase in nats per token, e.g. 0.01")


def named(flag: str, variable: str, help_text: str) -> Any:
    """A flag whose name in Python is another one, with the environment variable that its users expect."""
    return typer.Option(flag, envvar=variable, allow_from_autoenv=False, show_envvar=False, help=help_text)


def _asked_each_time(flag: str, help_text: str) -> Any:
    """Never from the environment: to run a stranger's code is asked for each time."""
    return typer.Option(flag, allow_from_autoenv=False, help=help_text)


JsonFlag = Annotated[
    bool,
    typer.Option("--json", allow_from_autoenv=False, help="Print one JSON document on stdout, also on failure."),
]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
TrustFlag = Annotated[bool, _asked_each_time("--trust-remote-code", "Run Python code that the checkpoint brings.")]
PickleFlag = Annotated[
    bool, _asked_each_time("--allow-pickle", "Load pickled weights, where there are no others.")
]
PlanPath = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan.json that search wrote.", show_default=False)
]
DeviceMap = Annotated[str | None, described("Placement of a large model, e.g. auto.")]
OffloadFolder = Annotated[str | None, described("Where weights go that fit into no memory, with --device-map.")]
IndexerBackend = Annotated[str | None, described("stock, chunked or auto [auto].")]
AttentionBackend = Annotated[str | None, described("stock, sparse or auto [auto: by length].")]
BeyondPositions = Annotated[
    bool, typer.Option("--beyond-positions", help="Allow windows longer than the model's positions.")
]
Keep = Annotated[
    float | None,
    typer.Option(parser=fraction, metavar="FRACTION", help="Part of the sites that stays full: 0.25, 25% or 1/4."),
]
MaxDelta = Annotated[
    float | None,
    typer.Option(parser=_increase, metavar="NATS", help="Largest loss increase, nats per token."),
]
Pin = Annotated[str | None, described("Decoder layers that stay full whatever is measured, e.g. 0,12.")]
PipelineSize = Annotated[
    int | None, described("Pipeline stages, split as vLLM splits them; the first site of each stays full.")
]
PipelineLayers = Annotated[str | None, described("Instead of --pp-size: layers of each stage, e.g. 20,20,21.")]
MovedModel = Annotated[str | None, described("Where the plan's checkpoint is now, if it moved.")]
