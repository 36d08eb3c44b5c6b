# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which rank draws and trains which reconstruction, in which update.

Samples are numbered source by source: sample = source * n + member. Update u trains the members
[u n / U, (u + 1) n / U) of every source, so each update sees all groups. Within an update the ranks take equal,
consecutive shares. A rank draws its samples in the order in which it trains them, so micro-batches are the same.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a batch.

    Raises:
        ValueError: if the ranks' shares are not equal.
    """

    sources: int
    members: int
    """n, size of a group."""
    updates: int
    """U, optimiser updates."""
    ranks: int

    def __post_init__(self) -> None:
        if self.members % self.updates or self.sources * self.members // self.updates % self.ranks:
            raise ValueError(
                f"{self.sources} pictures x {self.members} samples do not split evenly into {self.updates} updates "
                f"on {self.ranks} ranks"
            )

    @property
    def per_update(self) -> int:
        """Samples of one rank in one update."""
        return self.sources * self.members // self.updates // self.ranks

    def of_rank(self, rank: int) -> list[int]:
        """Numbers of a rank's samples, update after update."""
        return [number for update in range(self.updates) for number in self.of_update(update, rank)]

    def of_update(self, update: int, rank: int) -> list[int]:
        """Numbers of a rank's samples in an update."""
        width = self.members // self.updates
        numbers = [
            source * self.members + member
            for source in range(self.sources)
            for member in range(update * width, (update + 1) * width)
        ]
        return numbers[rank * self.per_update : (rank + 1) * self.per_update]
