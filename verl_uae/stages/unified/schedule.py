# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which stage each step of the unified stage belongs to; a function of the step alone, so a resumed run agrees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alternation:
    """G4U and U4G in turns.

    Raises:
        ValueError: a length below 1, or an unknown first stage.
    """

    g4u_steps: int
    u4g_steps: int
    first: str = "g4u"

    def __post_init__(self) -> None:
        if self.g4u_steps < 1 or self.u4g_steps < 1 or self.first not in ("g4u", "u4g"):
            raise ValueError(f"impossible alternation: {self}")

    def stage(self, step: int) -> str:
        """``g4u`` or ``u4g``, of a step counted from 1."""
        lengths = {"g4u": self.g4u_steps, "u4g": self.u4g_steps}
        place = (step - 1) % (self.g4u_steps + self.u4g_steps)
        return self.first if place < lengths[self.first] else {"g4u": "u4g", "u4g": "g4u"}[self.first]

    def done(self, stage: str, step: int) -> int:
        """Steps of a stage among the first ``step`` steps."""
        cycle = self.g4u_steps + self.u4g_steps
        length = self.g4u_steps if stage == "g4u" else self.u4g_steps
        start = 0 if stage == self.first else cycle - length
        whole, rest = divmod(step, cycle)
        return whole * length + min(max(rest - start, 0), length)
