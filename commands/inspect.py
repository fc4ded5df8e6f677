"""The inspect command: what a checkpoint's config says of its sites, sizes and windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..errors import one_line
from ..pattern import kept_sites, layer_ranges
from ..system.console import Reporter, new_console
from ..system.exits import print_result
from .footprint import footprint_document, footprint_rows
from .indexer_sizes import index_key_document, index_key_row, indexer_sizes
from .job.start import load_libraries

if TYPE_CHECKING:
    from ..dsa.checkpoint.config import Checkpoint
    from ..dsa.checkpoint.sizes.count import Sizes
    from ..dsa.stream.footprint import Footprint


def inspect(model: str, revision: str | None, trust_remote_code: bool, reporter: Reporter) -> dict[str, Any]:
    """A checkpoint's facts, its weights left where they are.

    Raises:
        ModelError: nothing there, or no model with indexers.
    """
    from ..dsa.checkpoint.config import Trust, open_checkpoint, open_plain_checkpoint
    from ..dsa.checkpoint.sizes.count import count_sizes, measure_sizes
    from ..dsa.checkpoint.torchless import without_torch
    from ..dsa.stream.footprint import footprint

    reporter.doing(f"reading {model}")
    trust = Trust(trust_remote_code)
    with without_torch():
        plain = open_plain_checkpoint(model, revision, trust)
        sizes = None if plain is None else count_sizes(plain)
        if plain is not None and sizes is not None:
            return inspect_document(plain, sizes, footprint(plain))
    load_libraries(reporter)
    checkpoint = open_checkpoint(model, revision, trust)
    reporter.doing("counting parameters")
    return inspect_document(checkpoint, measure_sizes(checkpoint), footprint(checkpoint))


def show(document: dict[str, Any], as_json: bool) -> None:
    """Prints a checkpoint's facts, on stdout."""
    if as_json:
        print_result(document)
    else:
        inspect_table(document)


def inspect_document(checkpoint: Checkpoint, sizes: Sizes, stored: Footprint | None) -> dict[str, Any]:
    """A checkpoint's facts as JSON."""
    text, family, sites = checkpoint.text, checkpoint.family, len(checkpoint.site_layers)
    return {
        "model": checkpoint.model_id,
        "revision": checkpoint.revision,
        "model_type": checkpoint.config.model_type,
        "family": family and family.model_type,
        "architecture": checkpoint.architecture,
        "layers": checkpoint.layers,
        "sites": sites,
        "site_layers": list(checkpoint.site_layers),
        "shared_layers": list(checkpoint.shared_layers),
        "selection_width": checkpoint.selection_width,
        "shortest_informative_window": checkpoint.selection_width + 2,
        "selects": family and family.selects,
        "assumed": list(checkpoint.assumed),
        "unmeasured": list(checkpoint.unmeasured),
        "max_position_embeddings": checkpoint.longest,
        "index_heads": getattr(text, family.index_heads if family else "index_n_heads", None),
        "index_head_dim": getattr(text, family.index_head_dim if family else "index_head_dim", None),
        "parameters": sizes.parameters,
        "indexer_parameters": sizes.indexer_parameters,
        "idle_parameters": sizes.idle_parameters,
        **footprint_document(stored),
        **index_key_document(indexer_sizes(checkpoint)),
        "kept_at_half": kept_sites(sites, 0.5),
        "kept_at_quarter": kept_sites(sites, 0.25),
        "kept_at_eighth": kept_sites(sites, 0.125),
    }


def inspect_table(document: dict[str, Any]) -> None:
    """Prints a checkpoint's facts, on stdout."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    idle = f", {document['idle_parameters']:,} in towers that text does not run through"
    rows = {
        "model": f"{document['model']} ({document['architecture']}, {document['model_type']})",
        "layers": f"{document['layers']}, {document['sites']} of them sites",
        "sites": layer_ranges(document["site_layers"]),
        "shared in the checkpoint": layer_ranges(document["shared_layers"]) or "none",
        "chosen": _chosen(document),
        "positions": str(document["max_position_embeddings"]),
        "indexer": f"{document['index_heads']} heads of {document['index_head_dim']}",
        "parameters": f"{document['parameters']:,}, {document['indexer_parameters']:,} of them in indexers"
        + (idle if document["idle_parameters"] else ""),
        **footprint_rows(document),
        **index_key_row(document),
        "kept at 1/2, 1/4, 1/8": ", ".join(
            str(document[f"kept_at_{part}"]) for part in ("half", "quarter", "eighth")
        ),
    }
    rows |= {"assumed": "; ".join(document["assumed"])} if document["assumed"] else {}
    rows |= {"not measured": "; ".join(document["unmeasured"])} if document["unmeasured"] else {}
    for name, value in rows.items():
        table.add_row(name, one_line(value))
    new_console(narrow=True).print(table)


def _chosen(document: dict[str, Any]) -> str:
    if not document["selection_width"]:
        return "unknown: no index_topk"
    return (
        f"{document['selects'] or 'keys'}, where a query sees more than {document['selection_width']} keys; "
        f"windows of {document['shortest_informative_window']} tokens and more tell patterns apart"
    )
