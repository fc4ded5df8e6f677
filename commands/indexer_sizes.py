"""What a checkpoint's indexers take, by its config, as inspect shows it and search keeps it beside the plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..search.plan.schema import Plan
from ..search.price.memory import IndexerSizes, memory_of, sizes_file
from ..system.files import write_atomically
from .footprint import gigabytes

if TYPE_CHECKING:
    from ..dsa.checkpoint.config import Checkpoint

_EXAMPLE = 131072


def indexer_sizes(checkpoint: Checkpoint) -> IndexerSizes | None:
    """Sizes of each site's indexer; None where the config does not tell them."""
    from ..dsa.checkpoint.config import config_sha256
    from ..dsa.checkpoint.sizes.caches import index_key_values
    from ..dsa.checkpoint.sizes.count import layer_sizes

    values, layers = index_key_values(checkpoint), layer_sizes(checkpoint)
    if values is None or layers is None:
        return None
    return IndexerSizes(
        config_sha256=config_sha256(checkpoint),
        key_values=list(values),
        parameters=[layers[layer].indexer for layer in checkpoint.site_layers],
    )


def keep_sizes(path: Path, plan: Plan, checkpoint: Checkpoint) -> None:
    """Writes the sizes beside the plan in the file ``path``, if they are known and the config is the plan's."""
    sizes = indexer_sizes(checkpoint)
    if sizes is not None and sizes.config_sha256 == plan.model.config_sha256:
        write_atomically(sizes_file(path), sizes.as_json())


def index_key_document(sizes: IndexerSizes | None) -> dict[str, Any]:
    """Bytes of index keys a token as JSON, by how they are kept; null where they are not known."""
    return {"index_key_bytes_a_token": None if sizes is None else memory_of(sizes).token_bytes}


def index_key_row(document: dict[str, Any]) -> dict[str, str]:
    """What a table shows of them, by name."""
    bytes_a_token = document["index_key_bytes_a_token"]
    if bytes_a_token is None:
        return {}
    fp8, bf16 = bytes_a_token["fp8"], bytes_a_token["bf16"]
    return {
        "index keys": f"{fp8:,.0f} bytes a token in FP8 with scales, as engines keep them "
        f"({gigabytes(_EXAMPLE * fp8)} at {_EXAMPLE:,} tokens); {bf16:,.0f} in bf16"
    }
