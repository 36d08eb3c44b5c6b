# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the memory and cost tables of the recipe from the calculator: `python docs/generate_estimates.py`."""

from __future__ import annotations

from pathlib import Path

from verl_uae.estimate import DECODERS, GPUS, Estimate, estimate

TARGET = Path(__file__).resolve().parents[1] / "recipes" / "uae" / "g4u" / "README.md"
STEPS = 1000
#: Smaller ones are for adapters.
LEAST_GIB_OF_A_NODE = 40


def nodes() -> str:
    """All weights of the captioner: one row per decoder, GPU type and number of GPUs."""
    rows = [
        _row(estimate(gpu, gpus=count, steps=STEPS, decoder=decoder))
        for decoder in DECODERS
        for gpu in sorted(GPUS)
        if GPUS[gpu].memory_gib >= LEAST_GIB_OF_A_NODE
        for count in (8, 16)
    ]
    return _table(rows)


def one_gpu() -> str:
    """Adapters of the captioner on one GPU: one row per decoder and GPU type."""
    rows = [
        _row(estimate(gpu, gpus=1, steps=STEPS, decoder=decoder, training="lora"))
        for decoder in DECODERS
        for gpu in sorted(GPUS)
    ]
    return _table(rows)


def _table(rows: list[str]) -> str:
    head = [
        "| decoder | GPUs | captioning, GiB | decoding, GiB | update, GiB | fits | `gpu_memory_utilization` "
        "| captioner stays | decoder may stay | s per step "
        f"| hours for {STEPS:,} steps | USD |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def _row(result: Estimate) -> str:
    memory = " | ".join(f"{result.memory_gib[phase]:.1f}" for phase in ("caption", "decode", "update"))
    facts = [result.decoder, f"{result.gpus} x {result.gpu}", memory, "yes" if result.fits else "no"]
    # What does not fit takes no time and costs nothing: it does not run.
    rest = ["–"] * 6
    if result.fits:
        rest = [
            f"{result.server_share:g}",
            "no" if result.offload else "yes",
            "yes" if result.fits_resident else "no",
            f"{sum(result.seconds.values()):.1f}",
            f"{result.hours:.1f}",
            f"{result.usd:,.0f}",
        ]
    return f"| {' | '.join([*facts, *rest])} |"


#: Name of a table between its markers.
TABLES = {"ESTIMATES": nodes, "ESTIMATES ONE GPU": one_gpu}


def update(text: str) -> str:
    """The page with fresh tables, each between its two markers.

    Raises:
        ValueError: where a marker is missing.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, tail = text.index(begin) + len(begin), text.index(end)
        text = text[:head] + table() + text[tail:]
    return text


if __name__ == "__main__":
    TARGET.write_text(update(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
