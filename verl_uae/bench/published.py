# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Unified-Bench as published: Tables 2, 3 and 10 of arXiv 2509.09666v5, and which of their rows add up."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "arXiv 2509.09666v5"

#: Four means and their mean, each rounded to 0.01, differ by at most this much.
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Row:
    """One row; similarities times 100."""

    table: int
    model: str
    clip: float
    longclip: float
    dinov2: float
    dinov3: float
    overall: float
    """As printed."""

    @property
    def recomputed(self) -> float:
        """Plain mean of the four columns, which is how the benchmark defines the overall score."""
        return (self.clip + self.longclip + self.dinov2 + self.dinov3) / 4.0

    @property
    def held_out(self) -> float:
        """Mean of the three columns that are not the reward."""
        return (self.longclip + self.dinov2 + self.dinov3) / 3.0


ROWS: tuple[Row, ...] = (
    # Table 2: 100 pictures.
    Row(2, "GPT-4o-Image", 90.42, 94.37, 81.74, 77.27, 85.95),
    Row(2, "BAGEL", 88.97, 93.35, 78.55, 73.05, 83.48),
    Row(2, "BLIP-3o", 84.84, 90.24, 68.31, 62.86, 76.56),
    Row(2, "Janus-Pro", 88.72, 93.45, 78.30, 70.61, 82.77),
    Row(2, "OmniGen2", 88.36, 93.11, 77.70, 74.07, 83.31),
    Row(2, "Show-o", 80.18, 86.75, 58.20, 51.51, 69.16),
    Row(2, "UniWorld-V1", 85.49, 91.53, 72.12, 66.83, 78.99),
    Row(2, "UAE", 90.50, 94.35, 81.98, 77.54, 86.09),
    # Table 3: the same pictures, other captioners, UAE's decoder.
    Row(3, "Qwen2.5-VL-3B", 88.34, 92.62, 73.91, 70.02, 80.85),
    Row(3, "Qwen2.5-VL-7B", 88.26, 92.89, 76.12, 70.96, 81.92),
    Row(3, "UAE", 90.50, 94.35, 81.98, 77.54, 86.09),
    # Table 10: 2,000 pictures.
    Row(10, "BAGEL", 87.57, 92.88, 80.11, 63.24, 80.95),
    Row(10, "GPT-Image", 91.37, 92.81, 86.41, 64.15, 83.69),
    Row(10, "UAE", 90.22, 94.49, 85.72, 68.54, 84.74),
)


def rows(table: int) -> list[Row]:
    """The rows of a table."""
    return [row for row in ROWS if row.table == table]


def inconsistent_rows(tolerance: float = TOLERANCE) -> list[Row]:
    """Rows whose printed overall score is not the mean of their columns."""
    return [row for row in ROWS if abs(row.recomputed - row.overall) > tolerance + 1e-9]
