# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from verl_uae.estimate.report import written
from verl_uae.plan.planner import Planner, Row
from verl_uae.plan.schedules import CAPTIONS, CONTROL, DRAWING, LINKS, LONGEST

#: What holds a step, in words.
_WORDS = {
    CAPTIONS: "writing captions",
    LONGEST: "waiting for the longest captions",
    DRAWING: "drawing and scoring",
    CONTROL: "the one process that controls the run",
    LINKS: "weights and gradients between GPUs",
    "weights to the server": "waking, and sending weights to, the caption servers",
}
#: Efficiency below which is said what it is lost to.
POOR = 0.85
_COLUMNS = (
    "GPUs",
    "schedule",
    "captioner + decoder",
    "step s",
    "pictures/s/GPU",
    "efficiency",
    "in use",
    "held by",
)


def best(rows: Sequence[Row], gpus: int) -> Row:
    """Of those that fit, the one with most pictures; of all, where none fits."""
    return max((row for row in rows if row.gpus == gpus), key=lambda row: (row.estimate.fits, row.rate))


def efficiency(row: Row, rows: Sequence[Row]) -> float:
    """Pictures a second and GPU, by those of the :func:`fewest` GPUs."""
    return row.rate / fewest(row, rows).rate


def fewest(row: Row, rows: Sequence[Row]) -> Row:
    """That of the fewest GPUs with the same schedule, of those that fit; of all, where none does."""
    same = [other for other in rows if other.schedule == row.schedule]
    return min(same, key=lambda other: (not other.estimate.fits, other.gpus))


def lost_to(row: Row, rows: Sequence[Row]) -> tuple[str, float]:
    """What a step takes longer for than on the :func:`fewest` GPUs, in words, and its seconds."""
    before = fewest(row, rows).timeline.spent
    more = {name: seconds - before.get(name, 0.0) for name, seconds in row.timeline.spent.items()}
    name = max(more, key=lambda name: more[name])
    return _WORDS.get(name, name), more[name]


def settings(row: Row, planner: Planner) -> dict[str, Any]:
    """Keys to set beside those of the command: those that it has otherwise."""
    from omegaconf import OmegaConf

    return {key: value for key, value in row.changes.items() if OmegaConf.select(planner.config, key) != value}


def render(rows: Sequence[Row], planner: Planner) -> str:
    """A table, and for every count of GPUs a sentence.

    Args:
        rows: of the planner.
        planner: that made them.
    """
    asked, name = planner.asked, planner.estimator.asked.name
    grows = "stay" if asked.fixed_batch else "grow with the GPUs"
    lines = [
        f"{name} on {asked.gpu}, nodes of {asked.per_node}: simulated from estimates, not measured; "
        f"samples of a step {grows} (data.train_batch_size={planner.config.data.train_batch_size} for "
        f"{planner.base} GPUs)"
    ]
    table = [_COLUMNS, *(_cells(row, rows) for row in rows)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(_COLUMNS))]
    for cells in table:
        lines.append("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    lines += _sentences(rows, planner)
    return "\n".join(lines)


def held_by(row: Row) -> str:
    """What most of a step is spent on, in words, with its share."""
    name, share = row.bottleneck()
    return f"{_WORDS.get(name, name)}, {100 * share:.0f} %"


def split(row: Row) -> str:
    """GPUs of the captioner and of an own pool of decoders."""
    return f"{row.gpus - row.decoders} + {row.decoders}" if row.decoders else "shared"


def _cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    used = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.timeline.use.items())
    return (
        f"{row.gpus:,}",
        row.schedule,
        split(row),
        f"{row.timeline.step_s:.1f}",
        f"{row.rate:.3g}",
        f"{efficiency(row, rows):.2f}",
        used,
        held_by(row) if row.estimate.fits else f"memory: {row.estimate.peak_gib:.0f} GiB needed",
    )


def _sentences(rows: Sequence[Row], planner: Planner) -> Iterator[str]:
    for gpus in dict.fromkeys(row.gpus for row in rows):
        row = best(rows, gpus)
        keys = settings(row, planner)
        words = " ".join(f"{key}={written(value)}" for key, value in keys.items())
        how = f"set {words}" if words else "the command as it is"
        if not row.estimate.fits:
            yield f"  {gpus:,} GPUs: nothing fits; verl-uae estimate says what makes it fit"
            continue
        name, seconds = lost_to(row, rows)
        poor = efficiency(row, rows) < POOR
        lost = f"; its efficiency is lost to {name}, {seconds:.1f} s more" if poor else ""
        yield (
            f"  {gpus:,} GPUs: {row.schedule} is fastest, {row.timeline.step_s:.1f} s a step, held by "
            f"{held_by(row)}{lost}: {how}"
        )


def as_json(rows: Sequence[Row], planner: Planner) -> list[dict[str, Any]]:
    """A record for every row."""
    return [
        {
            "gpus": row.gpus,
            "schedule": row.schedule,
            "decoder_gpus": row.decoders,
            "step_s": row.timeline.step_s,
            "pictures_per_s_and_gpu": row.rate,
            "efficiency": efficiency(row, rows),
            "use": row.timeline.use,
            "spent_s": row.timeline.spent,
            "held_by": row.bottleneck()[0],
            "lost_to": lost_to(row, rows)[0],
            "fits": row.estimate.fits,
            "peak_gib": row.estimate.peak_gib,
            "set": settings(row, planner),
        }
        for row in rows
    ]
