# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a training command does with its own estimate: before Ray starts it decides which activations are computed
again, and beside the run it tells the trainer of a step's useful operations, for ``perf/mfu/...``.

The process of the command counts, since it has nothing else to do, and since a meter replaces functions of torch while
it counts. Imports of the estimate stand where they are needed: most commands need none.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from verl_uae.compat import after_ray_init
from verl_uae.config.left_open import left_open
from verl_uae.errors import UAEError, describe
from verl_uae.runstate import RunState
from verl_uae.stages.common.config import step_kinds
from verl_uae.waiting import saying

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig

    from verl_uae.estimate.composing import Command
    from verl_uae.estimate.estimator import Estimator
    from verl_uae.stages.common.speed import UsefulWork

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Of a dtype, TFLOP/s.
Peak = Callable[[str], float]

_DRAWN = dict.fromkeys(("condition", "denoising", "VAE", "score"), "draw")
_PREVIEWED = {f"preview {phase}": timer for phase, timer in _DRAWN.items() if phase != "condition"}
_LEARNT = dict.fromkeys(("old velocities", "reference", "figures of the groups", "update"), "update_policy")
_G4U = {
    "captions": "caption",
    **_DRAWN,
    "old log-probabilities": "old_log_prob",
    "reference": "ref",
    "captioner's update": "update_actor",
}
#: Timers of a step, see :data:`~verl_uae.stages.common.speed.PHASES`, by stage and phase of the estimate; the
#: supervised stages have one for all.
TIMERS: Mapping[str, Mapping[str, str]] = {
    "g4u": _G4U,
    "u4g": {**_DRAWN, **_PREVIEWED, **_LEARNT},
    "joint": {**_G4U, **{f"decoder's {phase}": timer for phase, timer in _LEARNT.items()}},
}

#: What keeps a run from being counted: an architecture that is not known, and what a model's code may meet on ``meta``.
UNCOUNTED = (UAEError, ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)

#: Seconds that the end of a command waits for a count that is not over.
STOP_S = 30.0


class EstimateCallback(Callback):
    """Hydra callback of our configs, in the process of the command."""

    _thread: threading.Thread | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Decide what is left to the estimate."""
        decide(config)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Count beside the run, once Ray is there: by then this process has imported what it needs."""
        peak = peak_of_run(config)
        if peak is not None:
            self._thread = threading.Thread(target=_tell, args=(config, peak), name="uae-useful", daemon=True)
            after_ray_init(self._thread.start)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Let the count end before the interpreter does."""
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(STOP_S)


# ---------------------------------------------------------------- activations that are kept


def decide(config: DictConfig) -> None:
    """Put a value where a key of :func:`~verl_uae.config.left_open.left_open` is null, and say why.

    Args:
        config: the whole composed configuration, Hydra's part included, valid, with models in place.
    """
    values = left_open(config)
    if not values:
        return
    asked = config.copy()
    # Whatever happens, the run has the values that need least memory.
    for key, several in values.items():
        OmegaConf.update(config, key, several[-1])
    for key, (value, why) in _decided(asked, values).items():
        OmegaConf.update(config, key, value)
        logger.info("%s=%s: %s", key, json.dumps(value), why)


def _decided(config: DictConfig, values: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, str]]:
    """Value and reason of every key."""
    from verl_uae.estimate.rates import GPUS, device_here

    if config.trainer.device == "cpu":
        return {key: (several[0], "on a CPU activations are kept") for key, several in values.items()}
    device = device_here()
    if device is None:
        reason = "the memory of the GPUs is not known, since this machine has none"
        return {key: (several[-1], reason) for key, several in values.items()}
    try:
        from verl_uae.estimate.composing import command_of
        from verl_uae.estimate.estimator import Estimator

        # The type says nothing here but its memory, which is that of the device.
        gpu = device.type or next(iter(GPUS))
        rates = dataclasses.replace(GPUS[gpu], memory_gib=device.memory_gib)
        with saying(f"{' and '.join(values)} to be decided by the estimate"):
            choices = Estimator(command_of(config)).choices(gpu, rates)
    except UNCOUNTED as error:
        # The run goes on in the way that needs less.
        reason = f"the memory cannot be estimated ({describe(error)})"
        return {key: (several[-1], reason) for key, several in values.items()}
    found = {}
    for key, choice in choices.items():
        peaks = " and ".join(f"{peak:.1f} GiB with {json.dumps(value)}" for value, peak in choice.peaks_gib.items())
        why = f"the estimated peak is {peaks}; {choice.usable_gib:.1f} GiB of {device.name} are usable"
        found[key] = (choice.value, why)
    return found


# ---------------------------------------------------------------- useful operations


def peak_of_run(config: DictConfig) -> Peak | None:
    """The peak that a run is measured by: of ``uae.supervision.peak_tflops``, else of the data sheet of the GPU that is
    found; None where there is neither."""
    typed = config.uae.supervision.peak_tflops
    if typed is not None:
        return lambda dtype: float(typed)
    if config.trainer.device == "cpu":
        return None
    from verl_uae.estimate.rates import GPUS, device_here

    device = device_here()
    gpu = None if device is None else device.type
    return None if gpu is None else GPUS[gpu].peak_tflops


def _tell(config: DictConfig, peak: Peak) -> None:
    """In a thread."""
    try:
        from verl_uae.estimate.composing import command_of

        RunState().tell_useful(useful_work(command_of(config), peak).to_text())
    except UNCOUNTED as error:
        # It costs a figure of the log, and no run.
        logger.warning("perf/mfu is not logged: a step's operations cannot be counted (%s)", describe(error))


def useful_work(asked: Command, peak: Peak) -> UsefulWork:
    """What the useful operations of a run's steps take at the peak, on the rank that has most of them.

    They are counted for captions of two lengths, between which they are taken to rise evenly: all but attention does.

    Args:
        asked: the run's.
        peak: of a device.

    Raises:
        ConfigError: a model's architecture is not known.
    """
    from verl_uae.estimate.estimator import Estimator
    from verl_uae.estimate.work import ASSUMED_CAPTION_TOKENS, Asking
    from verl_uae.stages.common.speed import UsefulWork

    most = int(asked.config.data.max_response_length)
    few = max(1, most // 2)
    short, long = (_at_peak(Estimator(asked, Asking(tokens)), peak) for tokens in (few, most))
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for stage, timers in long.items():
        found[stage] = {}
        for timer, seconds in timers.items():
            of_token = (seconds - short[stage][timer]) / max(1, most - few)
            found[stage][timer] = (seconds - most * of_token, of_token)
    return UsefulWork(found, float(min(ASSUMED_CAPTION_TOKENS, most)))


def _at_peak(estimator: Estimator, peak: Peak) -> dict[str, dict[str, float]]:
    """Seconds by stage of a step and timer. What is done once in a run has none."""
    phases = estimator.phases(estimator.asked)
    found: dict[str, dict[str, float]] = {}
    for turn in step_kinds(estimator.asked.config):
        seconds: dict[str, float] = defaultdict(float)
        for phase in phases.of_kind(turn):
            executed = phase.executed
            if not (phase.share and executed.total):
                continue
            timer = TIMERS[turn][phase.name] if turn in TIMERS else "learn"
            whole = sum(count / peak(dtype) / 1e12 for dtype, count in executed.flops.items())
            seconds[timer] += whole * phase.useful / executed.total
        found[turn] = dict(seconds)
    return found
