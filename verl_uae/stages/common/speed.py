# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the log says of speed, in every stage alike."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from omegaconf import DictConfig
from verl.utils.device import get_device_name, get_torch_device

_GIB = 2**30
#: Seconds in which workers say how much memory they have used; between two steps they have nothing else to do.
ANSWER_S = 5.0

#: Phases of a step by the names of its timers, and the model that works in them.
PHASES: Mapping[str, tuple[str, ...]] = {
    "captioner": ("caption", "old_log_prob", "ref", "update_actor", "update_weights"),
    # Not the phases of drawing: they may overlap.
    "decoder": ("draw", "update_policy", "learn"),
}


def gpus(config: DictConfig) -> int:
    """GPUs, or ranks on a CPU, of a run: the trainer's, and those of decoders in a pool of their own."""
    trainer, decoder = config.trainer, config.uae.decoder
    own = decoder.n_gpus_per_node * decoder.nnodes if decoder.pool == "own" else 0
    return int(trainer.n_gpus_per_node * trainer.nnodes + own)


def speed_metrics(seconds: Mapping[str, float], pictures: int, devices: int) -> dict[str, float]:
    """Pictures per second and GPU, and the share of the step in which each model works.

    Args:
        seconds: by timer, with the whole step as ``step``.
        pictures: drawn, or learnt from, in the step.
        devices: of :func:`gpus`.
    """
    step = seconds.get("step", 0.0)
    if step <= 0:
        return {}
    found = {"perf/pictures_per_s_per_gpu": pictures / step / devices}
    for model, phases in PHASES.items():
        known = [seconds[phase] for phase in phases if phase in seconds]
        if known:
            found[f"perf/busy/{model}"] = sum(known) / step
    return found


@dataclass(frozen=True, slots=True)
class UsefulWork:
    """What the useful operations of a step take at the peak of a device, on the rank that has most of them."""

    seconds: Mapping[str, Mapping[str, tuple[float, float]]]
    """By stage of the step and timer: without captions, and for each token of the mean caption."""
    tokens: float
    """Of the mean caption, where a step does not say it."""

    def metrics(self, stage: str, seconds: Mapping[str, float], tokens: float | None) -> dict[str, float]:
        """Share of the peak that is used, by timer.

        Args:
            stage: of the step.
            seconds: by timer.
            tokens: of the mean caption of the step; None or 0 takes the assumed.
        """
        length = tokens or self.tokens
        return {
            f"perf/mfu/{timer}": (without + length * of_token) / seconds[timer]
            for timer, (without, of_token) in self.seconds.get(stage, {}).items()
            if seconds.get(timer, 0.0) > 0
        }

    def to_text(self) -> str:
        """For :class:`~verl_uae.runstate.RunState`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> UsefulWork:
        """Inverse of :meth:`to_text`."""
        found = json.loads(text)
        stages = found["seconds"].items()
        return cls({stage: {timer: (a, b) for timer, (a, b) in of.items()} for stage, of in stages}, found["tokens"])


def device_memory(workers: Iterable[Any]) -> dict[str, float]:
    """The largest peak of tensors on an accelerator since the last call, GiB; nothing where there is no accelerator.

    Args:
        workers: actors that compute there. One that does not answer in :data:`ANSWER_S` is left out.
    """
    calls = [worker.__ray_call__.remote(_peak) for worker in workers]
    answered, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_S) if calls else ([], [])
    peaks = []
    for call in answered:
        # One that is dead is missed by whoever needs it.
        with contextlib.suppress(ray.exceptions.RayError):
            peaks.append(ray.get(call))
    known = [peak for peak in peaks if peak is not None]
    return {"perf/device_memory_gib/decoder": max(known)} if known else {}


def _peak(worker: Any) -> float | None:
    """Of the process of a worker, which counts anew from here on."""
    if get_device_name() == "cpu":
        return None
    device = get_torch_device()
    peak = device.max_memory_allocated() / _GIB
    device.reset_peak_memory_stats()
    return float(peak)


def keep_from_collector(actors: Iterable[Any]) -> None:
    """Have this process and others not look for garbage in what they hold now. Imported packages are hundreds of
    thousands of objects: a third of a second every few steps in each process, and all ranks wait for the one.

    Args:
        actors: other processes, which are not waited for.
    """
    _keep(None)
    for actor in actors:
        actor.__ray_call__.remote(_keep)


def _keep(_: Any) -> None:
    gc.collect()
    gc.freeze()
