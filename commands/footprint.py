"""A checkpoint's bytes on disk, in a sweep and in memory, as inspect and estimate show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..dsa.stream.footprint import Footprint


def footprint_document(footprint: Footprint | None) -> dict[str, Any]:
    """Bytes of a checkpoint as JSON; nulls where they are not known."""
    return {
        "format": footprint and footprint.form,
        "bytes_on_disk": footprint and footprint.files,
        "bytes_streamed_a_sweep": footprint and footprint.streamed,
        "bytes_in_memory": footprint and footprint.in_memory,
        "bytes_resident": footprint and footprint.resident,
        "bytes_in_towers": footprint and footprint.beside,
        "sizes_from": footprint and ("config" if footprint.missing else "headers"),
        "headers_missing": (footprint.missing or None) if footprint else None,
    }


def footprint_rows(document: Mapping[str, Any]) -> dict[str, str]:
    """What a table shows of them, by name."""
    if document["format"] is None:
        return {}
    missing = document["headers_missing"]
    how = f"counted by the config, as {missing}" if missing else "by the files' headers"
    streamed, in_memory = document["bytes_streamed_a_sweep"], document["bytes_in_memory"]
    rows = {"format": document["format"]}
    if document["bytes_on_disk"] is not None:
        rows["on disk"] = gigabytes(document["bytes_on_disk"])
    rows["streamed a sweep"] = f"{gigabytes(streamed)} of decoder layers as stored, {how}"
    resident, towers = gigabytes(document["bytes_resident"]), document["bytes_in_towers"]
    parts = "embedding, norm and head"
    if towers:
        parts = f"embedding, norm, head and {gigabytes(towers)} of towers that text does not run through"
    rows["in memory"] = f"{gigabytes(in_memory)} as it computes, {resident} of them {parts}"
    return rows


def gigabytes(size: float) -> str:
    """Bytes for people, in GB of 1000 to the third, or MB."""
    if size < 1e9:
        return f"{size / 1e6:,.3g} MB"
    return f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:,.3g} GB"
