# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the processes of a run. Ray imports this file into each, so it imports nothing that takes long."""

from __future__ import annotations

import os
import time
from typing import Any


class Worker:
    """Part of a run."""

    def work(self) -> int:
        return 1

    def hang(self) -> None:
        time.sleep(600)


class Rank:
    """Answers, raises, dies, or waits for a collective that never ends."""

    def act(self, what: str) -> str:
        if what == "raise":
            raise ValueError("gradient of another shape")
        if what == "die":
            os._exit(1)
        if what == "hang":
            time.sleep(600)
        return what


class Gathering:
    """A rank that gathers weights: rank 0 keeps them, another one may die of it."""

    def __init__(self, rank: int, dies: bool) -> None:
        self.rank, self.dies = rank, dies

    def policy_state(self) -> list[Any]:
        import ray

        if self.dies:
            os._exit(1)
        if self.rank == 0:
            return [ray.put({"weight": 7})]
        return []
