# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the processes of a run. Ray imports this file into each, so it imports nothing that takes long."""

from __future__ import annotations

import os
import time
from pathlib import Path
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

    def decoder_state(self) -> list[Any]:
        import ray

        if self.dies:
            os._exit(1)
        if self.rank == 0:
            return [ray.put({"weight": 7})]
        return []


class DecoderRank:
    """A decoder worker without models."""

    def __init__(self) -> None:
        import ray

        self.returned = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self.loaded, self.weights = False, ""
        self.drawn: list[str] = []

    def decode_and_score(self, meta: Any) -> None:
        if "hang" in meta.keys:
            time.sleep(600)
        self.drawn.append(self.weights)

    def drawn_with(self) -> list[str]:
        return self.drawn

    def ensure_model(self) -> None:
        self.loaded = True

    def init_model(self) -> None:
        self.loaded = True

    def take_returned(self) -> bool:
        returned, self.returned = self.returned, False
        return returned

    def load_decoder_state(self, state: str) -> None:
        if state == "odd":
            raise ValueError("weights of another model")
        if state.startswith("/"):
            self.meet(Path(state))
        self.weights = state

    def meet(self, folder: Path) -> None:
        """Do not return before another rank is here too."""
        (folder / str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2:
            assert time.monotonic() < deadline, "alone: ranks are served one after another"
            time.sleep(0.05)

    def state(self) -> tuple[bool, str]:
        return self.loaded, self.weights

    def die(self) -> None:
        os._exit(1)


class Sleeper:
    """Says which process it is."""

    def pid(self) -> int:
        return os.getpid()


class ConditionedRank:
    """A worker whose conditioner takes tensors of these names, and notes them."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.fault, self.refuses = names, "", False
        self.taken: list[Any] = []

    def begin_conditioner(self) -> list[str]:
        self.taken = []
        return self.names

    def load_conditioner(self, bucket: Any) -> None:
        self.meet_fault("load_conditioner")
        if self.refuses:
            raise ValueError("tensors of another model")
        self.taken.append(bucket)

    def finish_conditioner(self) -> dict[str, float]:
        self.meet_fault("finish_conditioner")
        if self.fault == "raise":
            raise ValueError("half a model")
        return {"conditioner/state_drift": 1.0}

    def buckets(self) -> list[Any]:
        return self.taken

    def refuse(self) -> None:
        self.refuses = True

    def die_in(self, method: str) -> None:
        self.fault = method

    def meet_fault(self, method: str) -> None:
        if self.fault == method:
            os._exit(1)

    def die(self) -> None:
        os._exit(1)
