"""The options that several commands share, each with its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def text(help_text: str) -> Any:
    """An option whose default, if any, its help names."""
    return typer.Option(help=help_text, show_default=False)


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
Pin = Annotated[str | None, text("Decoder layers that stay full whatever is measured, e.g. 0,12.")]
PipelineSize = Annotated[
    int | None, text("Pipeline stages, split as vLLM splits them; the first site of each stays full.")
]
PipelineLayers = Annotated[str | None, text("Instead of --pp-size: layers of each stage, e.g. 20,20,21.")]
MovedModel = Annotated[str | None, text("Where the plan's checkpoint is now, if it moved.")]
