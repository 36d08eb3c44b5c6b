# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The multimodal rollout worker: redraws captions and scores them on the device that drew the picture.

Shape legend: N samples.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from omegaconf import DictConfig
from tensordict import NonTensorStack, TensorDict
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils.device import get_device_name, get_torch_device

from verl_uae.chain.conditioner import ConditionCache
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.draw import Painter
from verl_uae.chain.records import (
    CAPTION_FIELD,
    OUTCOME_FIELD,
    SAMPLE_FIELDS,
    Caption,
    Draw,
    Envelope,
    Outcome,
    Sample,
    is_probe,
)
from verl_uae.compiling import compile_blocks, prefer_attention
from verl_uae.engines.export import TrainedState, load_trained_state
from verl_uae.errors import DecoderError
from verl_uae.flow.plan import SamplingPlan
from verl_uae.masters import turn
from verl_uae.reward.deadline import write_notes
from verl_uae.stages.common.build import DTYPES, build_painter, decoder_family, evaluation_plan, load_conditioner
from verl_uae.stages.common.conditioner_sync import SyncedConditioner, TakesCaptioner
from verl_uae.visits import ahead, visit

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


#: What a rank tells of its time: work in pictures up to the VAE, work in scores, and from the first to the last.
PHASES = ("decode", "score", "draw")

#: Micro-batches of one call of the painter: conditions and latents of more need not be in memory at once.
MICRO_BATCHES = 8


class Redrawer:
    """Redraws captions, each ``seeds_per_caption`` times, and averages their rewards.

    Args:
        decoder: frozen.
        painter: holds the decoder's VAE, conditioner and reward models.
        plan: how to sample.
        seeds_per_caption: pictures per caption.
    """

    def __init__(self, decoder: Decoder, painter: Painter, plan: SamplingPlan, seeds_per_caption: int) -> None:
        self.decoder = decoder
        self.painter = painter
        self.plan = plan
        self.seeds_per_caption = seeds_per_caption
        self.seconds = dict.fromkeys(PHASES, 0.0)
        """Spent since the last :meth:`reset_seconds`, by phase."""

    def reset_seconds(self) -> None:
        """Start counting :attr:`seconds` anew."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def to(self, device: str | torch.device) -> None:
        """Move all models; they draw on the device of the painter. What is needed first arrives first, and is used
        while the others travel."""
        with ahead():
            for module in (self.painter.conditions.conditioner, *self.decoder.velocity_parts):
                visit(module, device)
            self.painter.to(device)

    def run(self, draws: Sequence[Draw], on_progress: Callable[[int, int], None] | None = None) -> list[Outcome]:
        """Redraw and score captions.

        Args:
            draws: one per caption; the number of the picture is added to the name of its noise.
            on_progress: told (done, all) now and then.

        Returns:
            One outcome per draw, in order: the mean reward of its pictures that could be scored, and the first that
            could be drawn.
        """
        outcomes: list[Outcome] = []
        repeats = self.seeds_per_caption
        size = max(1, MICRO_BATCHES * self.painter.settings.micro_batch_size // repeats)
        for start in range(0, len(draws), size):
            wanted = [
                replace(draw, noise=(*draw.noise, k)) for draw in draws[start : start + size] for k in range(repeats)
            ]
            drawn = self.painter.draw(self.decoder.field, self.plan, wanted)
            for phase, seconds in drawn.seconds.items():
                self.seconds[phase if phase in PHASES else "decode"] += seconds
            for first in range(0, len(wanted), repeats):
                outcomes.append(Outcome.of_caption(drawn.outcomes[first : first + repeats]))
            if on_progress is not None:
                on_progress(len(outcomes), len(draws))
        return outcomes


def build_redrawer(config: DictConfig, device: str | torch.device, draws_on: str | torch.device) -> Redrawer:
    """Load decoder, conditioner and reward models of a run.

    Args:
        config: the whole composed configuration.
        device: where the models are put.
        draws_on: where they compute.

    Raises:
        ConfigError: for an impossible setting, naming its key.
        CheckpointError: for an incomplete decoder folder.
    """
    uae = config.uae
    with turn(uae.decoder.shared_master and torch.device(device).type == "cpu") as share:
        decoder = Decoder.from_pretrained(uae.decoder.path, dtype=DTYPES[uae.decoder.dtype], device=device)
        decoder.requires_grad_(False)
        family = decoder_family(config)
        # In the unified stage the decoder learns, and its ranks take what it has learnt.
        share(*(decoder.velocity_parts if uae.stage == "g4u" else ()))
        if uae.decoder.compile:
            compile_blocks(decoder.transformer, family.wrap_blocks(decoder.transformer))
        conditioner = load_conditioner(config, family, device)
        share(*((conditioner,) if uae.conditioner.weights == "frozen" else ()))
        batch_size = uae.decoder.batch_size
        conditions = ConditionCache(conditioner, MICRO_BATCHES * batch_size)
        painter = build_painter(
            config, conditions, decoder.vae, draws_on, micro_batch_size=batch_size, loaded_on=device
        )
        share(painter.vae, *painter.scorer.networks())
    return Redrawer(decoder, painter, evaluation_plan(config, family), uae.decoder.seeds_per_caption)


#: Seconds between two progress lines of a decode phase.
PROGRESS_S = 15.0

#: Fields of the TransferQueue a decoder reads.
INPUT_FIELDS = [*SAMPLE_FIELDS, "extra_fields"]

#: Field of the TransferQueue with the seconds that the rank of a sample has decoded and scored, (2,) float64.
SECONDS_FIELD = "uae_seconds"


class DecoderWorker(TakesCaptioner, Worker):
    """Holds language model, decoder and reward models; every rank has its own full copy.

    Args:
        config: the whole composed configuration.
    """

    def __init__(self, config: DictConfig) -> None:
        super().__init__()
        self._register_dispatch_collect_info("decoder", dp_rank=self.rank, is_collect=True)
        self.config = config
        self.redrawer: Redrawer | None = None
        self._returned = bool(ray.get_runtime_context().was_current_actor_reconstructed)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Load all models; onto the host where ``uae.decoder.offload`` is set, else onto the device."""
        write_notes()
        prefer_attention(self.config.uae.decoder.attention)
        device = get_device_name()
        self.redrawer = build_redrawer(self.config, "cpu" if self._offload else device, device)
        if self._follows:
            self.synced = SyncedConditioner(self.redrawer.painter.conditions, device, measures=self.rank == 0)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="decoder"))
    def decode_and_score(self, data: TensorDict) -> TensorDict:
        """Redraw and score a shard of the batch.

        Args:
            data: N samples with :data:`INPUT_FIELDS`, and ``global_steps``, ``probes`` and ``keep`` as non-tensor
                entries.

        Returns:
            Envelopes of the N outcomes in the field ``uae_outcome``, seconds of this rank in every sample's
            :data:`SECONDS_FIELD` (N, 3), by :data:`PHASES`.
        """
        started = time.perf_counter()
        redrawer = self._on_device()
        redrawer.reset_seconds()
        outcomes = self._outcomes(redrawer, data)
        if self._offload:
            self._move("cpu")
        seconds = torch.tensor([redrawer.seconds[phase] for phase in PHASES], dtype=torch.float64)
        logger.info("rank %d: %d samples in %.1f s", self.rank, len(outcomes), time.perf_counter() - started)
        fields = {
            OUTCOME_FIELD: NonTensorStack(*map(Envelope, outcomes)),
            SECONDS_FIELD: seconds.expand(len(outcomes), -1).clone(),
        }
        return TensorDict(fields, batch_size=len(outcomes))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def redraw(self, draws: Sequence[Draw]) -> list[Outcome]:
        """Streamed schedule: redraw and score one micro-batch."""
        return self._on_device().run(draws)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def ready(self) -> bool:
        """Whether this rank can draw, after loading its models if that is all that is missing."""
        if self._lacking:
            return False
        self.ensure_model()
        return True

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def ensure_model(self) -> None:
        """Load all models unless they are there."""
        if self.redrawer is None:
            self.init_model()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_returned(self) -> bool:
        """Whether Ray has started this rank again since the last time it was asked."""
        returned, self._returned = self._returned, False
        return returned

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_decoder_state(self, state: TrainedState) -> int:
        """Take what training has changed of the decoder; returns how many tensors.

        Raises:
            CheckpointError: names or shapes do not match, all of them or any.
        """
        if self.redrawer is None:
            self.init_model()
        assert self.redrawer is not None
        return load_trained_state(self.redrawer.decoder, state, self.config.uae.decoder.path, source="decoder policy")

    @property
    def _offload(self) -> bool:
        return bool(self.config.uae.decoder.offload) and self.config.uae.decoder.pool == "colocated"

    @property
    def _follows(self) -> bool:
        return bool(self.config.uae.conditioner.weights == "synced")

    @property
    def _lacking(self) -> str:
        """Whose weights this rank has not got yet, without which it would draw as at the beginning: where Ray has
        started it again, until the controller sends them."""
        if self.redrawer is None and self._returned and self.config.uae.stage == "unified":
            return "decoder policy"
        new = self._returned if self.redrawer is None else self.synced is None or not self.synced.complete
        return "captioner" if self._follows and new else ""

    def _on_device(self) -> Redrawer:
        if self._lacking:
            raise DecoderError(self.rank, f"was started again and has not got the {self._lacking}'s weights yet")
        if self.redrawer is None:
            # A rank that Ray has started again after a death.
            self.init_model()
        assert self.redrawer is not None
        self._move(get_device_name())
        return self.redrawer

    def _move(self, device: str) -> None:
        assert self.redrawer is not None
        if self.redrawer.decoder.device.type == torch.device(device).type:
            return
        self.redrawer.to(device)
        if device == "cpu":
            get_torch_device().empty_cache()

    def _outcomes(self, redrawer: Redrawer, data: TensorDict) -> list[Outcome]:
        columns = {name: _column(data, name) for name in INPUT_FIELDS if name in data.keys()}
        step, probes = _scalar(data, "global_steps"), _scalar(data, "probes")
        keep = bool(_scalar(data, "keep"))
        outcomes: dict[int, Outcome] = {}
        draws: dict[int, Draw] = {}
        for position in range(len(data)):
            row = {name: column[position] for name, column in columns.items()}
            caption: Caption = row["extra_fields"][CAPTION_FIELD].content
            if not caption.ok:
                outcomes[position] = Outcome(caption.lost())
                continue
            sample = Sample.of_row(row, caption)
            draws[position] = Draw.for_caption(
                sample,
                seed=self.config.uae.seed,
                step=step,
                want_picture=is_probe(sample.row["extra_info"], probes),
                want_reconstruction=keep,
            )
        found = redrawer.run(list(draws.values()), ProgressLog())
        outcomes |= zip(draws, found, strict=True)
        return [outcomes[position] for position in range(len(data))]


class ProgressLog:
    """Logs how far a decode phase is, at most every :data:`PROGRESS_S` seconds; Ray names the rank."""

    def __init__(self) -> None:
        self.reported = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.reported > PROGRESS_S:
            self.reported = now
            logger.info("%d of %d captions redrawn and scored", done, total)


def _column(data: TensorDict, name: str) -> list[Any]:
    return [getattr(value, "data", value) for value in data[name]]


def _scalar(data: TensorDict, name: str) -> int:
    value = data[name]
    return int(getattr(value, "data", value))
