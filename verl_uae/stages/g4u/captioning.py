# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's wait for captions: of this step, or of the next one while this one is drawn (``uae.g4u.ahead``).

Captions that are written ahead come from the weights from before the update of the step in which they are written: they
are one step off policy when they train. Their log-probabilities are those of the server that wrote them, so verl's
rollout correction (``algorithm.rollout_correction``) has what it compares with the ones of the newest weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.v1 import PPOTrainerSync

from verl_uae.stages.common.supervised import SupervisedTrainer
from verl_uae.stages.common.supervisor import Supervisor

#: Seconds beyond the deadlines of captions before the wait for them ends.
CAPTION_SLACK_S = 60.0


class SupervisedCaptions:
    """verl's replay buffer, whose wait for captions has an end, and which can be told to wait before verl asks.

    Every caption has a deadline, but in the agent-loop worker that writes it, which may be what hangs.

    Args:
        buffer: verl's.
        settings: section ``uae``.
        supervisor: gives the run's.
        settle: returns when no caption is being written, or after the seconds that it is given. verl asks the queue
            what is written, again and again, and each time for all of it.
    """

    def __init__(
        self,
        buffer: Any,
        settings: DictConfig,
        supervisor: Callable[[], Supervisor],
        settle: Callable[[float], None],
    ) -> None:
        self._buffer = buffer
        self._supervisor = supervisor
        self._settle = settle
        streamed = settings.decoder.schedule == "streamed"
        self._key = "uae.rollout.timeout_s" + (" + uae.decoder.timeout_s" if streamed else "")
        self._limit_s = settings.rollout.timeout_s + (settings.decoder.timeout_s if streamed else 0.0)
        self._held: Any = None
        self.waiting = False
        """Whether captions are being written, or were when the wait ended badly."""

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """See verl's."""
        if self.holds and kwargs.get("partition_id") == "train":
            answer, self._held = self._held, None
            return answer
        self.waiting = True
        with self._supervisor().phase("the captions", self._limit_s + CAPTION_SLACK_S, f"{self._key} + slack"):
            self._settle(self._limit_s)
            answer = self._buffer.sample(*args, **kwargs)
        self.waiting = False
        return answer

    @property
    def holds(self) -> bool:
        """Whether the training captions that verl asks for next are there."""
        return self._held is not None

    def hold(self, **kwargs: Any) -> None:
        """Wait for training captions now, with the arguments of verl's ``sample``, and keep them until it asks."""
        self._held = self.sample(**kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._buffer, name)


class CaptionsAhead(SupervisedTrainer, PPOTrainerSync):
    """verl's synchronous trainer, which may write the captions of the next step while those of this one are drawn.

    In such a step the caption servers sleep after the decoders have answered and not before they start. A step that is
    saved writes nothing ahead: who goes on from it starts the next step as the run itself did, with the same weights.
    """

    # Set by verl.
    config: DictConfig
    global_steps: int
    total_training_steps: int
    replay_buffer: SupervisedCaptions

    _ahead: dict | None = None
    """Place in the data before the captions that are being written ahead, or are held; None where there are none."""
    _wrote_ahead = False
    """Whether the captions of the step in work were written in the one before."""
    _awaited_s: float | None = None
    """Seconds that captions written ahead in this step were waited for after the decoders had answered; None where none
    were written."""

    def writes_ahead(self) -> bool:
        """Whether this step writes the captions of the next one."""
        trainer, step = self.config.trainer, self.global_steps
        saves = trainer.save_freq > 0 and step % trainer.save_freq == 0
        return bool(self.config.uae.g4u.ahead) and step < self.total_training_steps and not saves

    def place_in_data(self) -> dict:
        """Of the step in work: what has been fetched ahead of it belongs to the next."""
        return super().place_in_data() if self._ahead is None else self._ahead

    def prepare_step(self) -> dict:
        """verl's, which asks for the captions of the step, unless the step before has."""
        self._wrote_ahead = self.replay_buffer.holds
        return {} if self._wrote_ahead else super().prepare_step()

    def on_sample_end(self) -> None:
        """A boundary: the captions are there, and the caption servers sleep, or write the next ones."""
        self._ahead, self._awaited_s = None, None
        if self.writes_ahead():
            self._ahead = super().place_in_data()
            self.replay_buffer.waiting = True
            with self._next_step():
                self._add_batch_to_generate()
        else:
            super().on_sample_end()
        self.supervisor.boundary(f"the rewards of step {self.global_steps}")

    def await_captions_ahead(self) -> None:
        """Wait for the captions that :meth:`on_sample_end` has asked for, and let the caption servers sleep."""
        if self._ahead is None:
            return
        begun = time.monotonic()
        with self._next_step():
            size = self.config.data.train_batch_size
            self.replay_buffer.hold(global_steps=self.global_steps, partition_id="train", batch_size=size)
        self._awaited_s = time.monotonic() - begun
        super().on_sample_end()

    def waited_seconds(self, spent: Mapping[str, float]) -> dict[str, float]:
        """Of the seconds of captioning, decoding and scoring of a batch, those in which the step did nothing else."""
        seconds = dict(spent)
        if self._wrote_ahead:
            seconds.pop("caption")
        if self._awaited_s is not None:
            seconds["caption_ahead"] = self._awaited_s
        return seconds

    @contextlib.contextmanager
    def _next_step(self) -> Iterator[None]:
        """verl names what it fetches, and the seeds of captions, by the step that it is in."""
        self.global_steps += 1
        try:
            yield
        finally:
            self.global_steps -= 1
