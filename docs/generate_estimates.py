# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the memory and cost table of the recipe from the calculator: `python docs/generate_estimates.py`."""

from __future__ import annotations

from pathlib import Path

from verl_uae.estimate import DECODERS, GPUS, estimate

TARGET = Path(__file__).resolve().parents[1] / "recipes" / "uae" / "g4u" / "README.md"
BEGIN, END = "<!-- ESTIMATES -->\n", "<!-- /ESTIMATES -->"
STEPS = 1000


def table() -> str:
    """One row per decoder, GPU type and number of GPUs."""
    lines = [
        "| decoder | GPUs | captioning, GiB | decoding, GiB | update, GiB | fits | `gpu_memory_utilization` "
        "| decoder may stay | s per step "
        f"| hours for {STEPS:,} steps | USD |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for decoder in DECODERS:
        for gpu in sorted(GPUS):
            for count in (8, 16):
                lines.append(_row(decoder, gpu, count))
    return "\n".join(lines) + "\n"


def _row(decoder: str, gpu: str, count: int) -> str:
    result = estimate(gpu, gpus=count, steps=STEPS, decoder=decoder)
    memory = " | ".join(f"{result.memory_gib[phase]:.1f}" for phase in ("caption", "decode", "update"))
    return (
        f"| {decoder} | {count} x {gpu} | {memory} | {'yes' if result.fits else 'no'} "
        f"| {result.server_share:g} | {'yes' if result.fits_resident else 'no'} "
        f"| {sum(result.seconds.values()):.1f} | {result.hours:.1f} | {result.usd:,.0f} |"
    )


def update(text: str) -> str:
    """The page with a fresh table between the two markers.

    Raises:
        ValueError: where a marker is missing.
    """
    head, tail = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:head] + table() + text[tail:]


if __name__ == "__main__":
    TARGET.write_text(update(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
