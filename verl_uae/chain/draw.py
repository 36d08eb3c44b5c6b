# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From captions to pictures and rewards, on one rank, without Ray: the one way in which every stage draws.

Shape legend: N pictures of this rank, B of a micro-batch, K steps of the window, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.beside import Beside
from verl_uae.chain.conditioner import ConditionCache
from verl_uae.chain.records import Draw, Outcome
from verl_uae.data.images import encode_png, encode_shown, rgb, to_tensor
from verl_uae.devices import FittingBatch, one_by_one
from verl_uae.errors import DecodeError, RewardError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.flow.ode import Velocity
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.trajectory import Trajectory, Twins, sample_trajectory
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.scorer import RewardScorer
from verl_uae.seeding import normal
from verl_uae.visits import arrive, visit

#: (condition of B pictures, of the unconditional branch or None, guidance) -> velocity.
FieldOf = Callable[[Condition, Condition | None, float], Velocity]


@dataclass(frozen=True, slots=True)
class PainterSettings:
    """What does not change over a run."""

    height: int
    width: int
    latent_shape: tuple[int, int, int]
    negative_prompt: str
    micro_batch_size: int
    """Pictures denoised together."""
    score_batch_size: int
    """Pictures scored together."""
    vae_batch_size: int
    """Pictures decoded by the VAE at a time."""
    overlap: bool = False
    """Pictures are decoded and scored while the next ones are denoised."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What drawing gave, in the order asked for."""

    outcomes: list[Outcome]
    conditions: list[Condition]
    """One row each, in host memory, dtype of the conditioner."""
    trajectory: Trajectory
    """N samples, in host memory, fp32."""
    seconds: dict[str, float]
    """Of work by phase: condition, sample, decode, score; and from the first to the last as ``draw``, less than their
    sum where they overlap."""


class Painter:
    """Draws pictures of captions and scores them.

    Whatever goes wrong with a caption, a picture or a reward costs the samples it belongs to.

    With ``settings.overlap`` a second thread decodes, scores and encodes what has been sampled, in the same calls. The
    decoder is called by the caller's thread alone, so collectives keep their order. Between the two wait latents in
    host memory, where the caller gets them anyway; on the device there is never more than one batch of each thread.

    Args:
        conditions: of captions.
        vae: of the decoder.
        scorer: of pictures.
        settings: see there.
        device: where all of them compute.
    """

    def __init__(
        self,
        conditions: ConditionCache,
        vae: Any,
        scorer: RewardScorer,
        settings: PainterSettings,
        device: str | torch.device,
    ) -> None:
        self.conditions = conditions
        self.family: DecoderFamily = conditions.conditioner.family
        self.vae = vae
        self.scorer = scorer
        self.settings = settings
        self.device = torch.device(device)
        self._batch = FittingBatch(settings.micro_batch_size, "pictures", "uae.decoder.batch_size")
        self._score_batch = FittingBatch(settings.score_batch_size, "pictures to be scored", "uae.decoder.batch_size")
        self._vae_batch = FittingBatch(settings.vae_batch_size, "pictures of the VAE", "uae.decoder.vae_batch_size")
        self._beside = Beside(self.device) if settings.overlap else None

    def to(self, device: str | torch.device) -> None:
        """Move the models, in the order in which they are needed. They are back on ``device`` of the constructor, or on
        their way there, whenever they draw."""
        visit(self.conditions.conditioner, device)
        visit(self.vae, device)
        self.scorer.to(device)

    def draw(
        self,
        field_of: FieldOf,
        plan: SamplingPlan,
        draws: Sequence[Draw],
        *,
        collective: bool = False,
        shared_prefix: bool = False,
    ) -> Drawn:
        """Draw under a plan and score.

        What has no caption, or one that cannot be encoded, is drawn from the empty one and has no reward. What fails in
        decoding or scoring is tried again picture by picture; where memory runs out batches get smaller.

        Args:
            field_of: the decoder.
            plan: how to sample: stochastic in its window, Euler steps of the ODE elsewhere.
            draws: what to draw.
            collective: every velocity call gathers weights of all ranks, which must make equally many: micro-batches
                keep their size, and what fails in one ends the call. Otherwise they are treated as decoding is.
            shared_prefix: what pictures of a micro-batch have in common, see :attr:`Draw.origin`, is drawn once.

        Raises:
            ConfigError: the negative prompt cannot be encoded.
            Exception: of a velocity call, if ``collective``.
        """
        clock = _Clock()
        with clock.phase("draw"):
            with clock.phase("condition"):
                conditions, cut, failures = self.conditions.get(
                    [draw.sample.caption.text if draw.sample.caption.ok else "" for draw in draws]
                )
                negative = self._negative(plan.guidance)
            lost = {number: record for number, draw in enumerate(draws) if (record := _lost(draw, failures[number]))}
            sampled = _Sampled(len(draws), self.settings.latent_shape)

            def sample() -> Trajectory:
                with clock.phase("sample"):
                    return self._sample(field_of, plan, conditions, negative, draws, collective, shared_prefix, sampled)

            def finish(rows: slice) -> list[Outcome]:
                final_BCHW, undrawn = sampled.take(rows)
                with clock.phase("decode"):
                    picture_B3HW, blank = self._decode(final_BCHW, undrawn)
                with clock.phase("score"):
                    unscored = {number - rows.start: lost[number] for number in _among(lost, rows)}
                    records = self._records(picture_B3HW, draws[rows], blank | unscored)
                    shown = [None if number in blank else found for number, found in enumerate(picture_B3HW)]
                    return list(map(_outcome, draws[rows], records, cut[rows], shown))

            def finish_all() -> list[Outcome]:
                return [outcome for part in self._score_batch.map(len(draws), finish) for outcome in part]

            if self._beside is None:
                trajectory = sample()
                outcomes = finish_all()
            else:
                job = self._beside.start("verl_uae pictures", finish_all)
                try:
                    trajectory = sample()
                    outcomes = job.result()
                except BaseException:
                    # Also a request to stop: no thread is left behind, at most the batch it is at is waited for.
                    sampled.give_up()
                    job.wait()
                    raise
        return Drawn(outcomes, conditions, trajectory, clock.seconds)

    def _sample(
        self,
        field_of: FieldOf,
        plan: SamplingPlan,
        conditions: Sequence[Condition],
        negative: Condition | None,
        draws: Sequence[Draw],
        collective: bool,
        shared_prefix: bool,
        sampled: _Sampled,
    ) -> Trajectory:
        """Latents, zero where they could not be drawn; ``sampled`` is given each micro-batch as soon as it is there."""

        @torch.no_grad()
        def sample(rows: slice) -> Trajectory:
            some = draws[rows]
            condition = Condition.stack(conditions[rows]).to(self.device, non_blocking=True)
            field, prefix = field_of(condition, negative, plan.guidance), None
            if shared_prefix:
                twins = Twins.of([draw.origin for draw in some])
                prefix = twins.velocity(field_of(condition[twins.first], negative, plan.guidance))
            found = sample_trajectory(field, self._noise(some), plan, lambda step: self._noise(some, step), prefix)
            return _to_host(found)

        def lose(row: int, error: Exception) -> Trajectory:
            sampled.lose(row, _failure("decoder", error))
            return self._nothing(plan)

        def micro_batch(rows: slice) -> Trajectory:
            part = sample(rows) if collective else Trajectory.join(one_by_one(rows, sample, lose))
            sampled.add(part.final_BCHW)
            return part

        if collective:
            size = self.settings.micro_batch_size
            parts = [micro_batch(slice(start, start + size)) for start in range(0, len(draws), size)]
        else:
            parts = self._batch.map(len(draws), micro_batch)
        return Trajectory.join(parts)

    def _negative(self, guidance: float) -> Condition | None:
        if guidance == 1.0:
            return None
        return self.conditions.negative(self.settings.negative_prompt).to(self.device, non_blocking=True)

    def _noise(self, draws: Sequence[Draw], step: int | None = None) -> Tensor:
        """Standard normal noise to begin with, or that of a stochastic step."""
        names = [draw.noise if step is None else (*draw.step_noise, step) for draw in draws]
        rows = [normal(self.settings.latent_shape, *name) for name in names]
        return torch.stack(rows).to(self.device, non_blocking=True)

    def _nothing(self, plan: SamplingPlan) -> Trajectory:
        """In the place of a sample that could not be drawn."""
        final_1CHW = torch.zeros(1, *self.settings.latent_shape)
        none_1KCHW = torch.zeros(1, len(plan.window), *self.settings.latent_shape)
        return Trajectory(final_1CHW, none_1KCHW, none_1KCHW, none_1KCHW, torch.zeros(1, len(plan.window)))

    def _decode(
        self, final_BCHW: Tensor, undrawn: Mapping[int, RewardRecord]
    ) -> tuple[Tensor, dict[int, RewardRecord]]:
        """Pictures, and the records of those that could not be drawn, which are black where decoding failed."""
        arrive(self.vae)
        blank = dict(undrawn)

        def decode(rows: slice) -> Tensor:
            latent_BCHW = final_BCHW[rows].to(self.device, non_blocking=True)
            count = rows.stop - rows.start
            decode_some = lambda some: self.family.decode_latent(self.vae, latent_BCHW[some])  # noqa: E731
            return torch.cat(self._vae_batch.map(count, decode_some))

        def lose(row: int, error: Exception) -> Tensor:
            blank.setdefault(row, _failure("decoder", error))
            return torch.zeros(1, 3, self.settings.height, self.settings.width, device=self.device)

        return torch.cat(one_by_one(slice(0, len(final_BCHW)), decode, lose)), blank

    def _records(
        self, picture_B3HW: Tensor, draws: Sequence[Draw], known: Mapping[int, RewardRecord]
    ) -> list[RewardRecord]:
        """Records of a batch; ``known`` are those of what needs no score, by position."""
        size = (self.settings.height, self.settings.width)
        sources: dict[int, tuple[Tensor, RewardRecord | None]] = {}
        for draw in draws:
            if id(draw.sample) not in sources:
                sources[id(draw.sample)] = _pixels(draw.sample.image, size)
        used = [sources[id(draw.sample)] for draw in draws]
        damaged = {number: record for number, (_, record) in enumerate(used) if record is not None}
        failed = damaged | dict(known)

        def score(rows: slice) -> list[RewardRecord]:
            some = draws[rows]
            source_B3HW = torch.stack([source_3HW for source_3HW, _ in used[rows]])
            batch = RewardBatch(
                source_B3HW=source_B3HW.to(picture_B3HW.device, non_blocking=True),
                reconstruction_B3HW=picture_B3HW[rows],
                captions=[draw.sample.caption.text for draw in some],
                rows=[draw.sample.row for draw in some],
                failed={row - rows.start: failed[row] for row in failed if rows.start <= row < rows.stop},
            )
            try:
                return self.scorer.score(batch)
            except RewardError as error:
                # The scorer keeps faults to their samples. This one concerns all; stopping is for the trainer, not for
                # one of several ranks.
                return [_failure("reward", error) for _ in some]

        def lose(row: int, error: Exception) -> list[RewardRecord]:
            return [failed.get(row) or _failure("reward", error)]

        return [record for part in one_by_one(slice(0, len(draws)), score, lose) for record in part]


def _failure(where: str, error: BaseException) -> RewardRecord:
    return RewardRecord.failed(Status.ERROR, f"{where}: {type(error).__name__}: {error}")


def _lost(draw: Draw, failure: str) -> RewardRecord | None:
    """The record of what has no caption, or one that cannot be encoded."""
    if not draw.sample.caption.ok:
        return draw.sample.caption.lost()
    return RewardRecord.failed(Status.ERROR, failure) if failure else None


def _outcome(draw: Draw, record: RewardRecord, cut: bool, picture_3HW: Tensor | None) -> Outcome:
    if picture_3HW is None:
        return Outcome(record, cut)
    shown = encode_shown(picture_3HW) if draw.want_picture else None
    return Outcome(record, cut, shown, encode_png(picture_3HW) if draw.want_reconstruction else None)


def _pixels(image: Image.Image, size: tuple[int, int]) -> tuple[Tensor, RewardRecord | None]:
    """A source picture (3, H, W); black, with its record, where it is damaged."""
    try:
        return to_tensor([rgb(image)], size)[0], None
    except DecodeError as error:
        return torch.zeros(3, *size), RewardRecord.failed(Status.ERROR, f"source picture: {error.message}")


def _among(numbers: Mapping[int, Any], rows: slice) -> list[int]:
    """Those of the numbers that lie in a range. Not by walking over them: another thread may add some."""
    return [number for number in range(rows.start, rows.stop) if number in numbers]


class _Sampled:
    """Latents on their way from the thread that samples to the one that decodes, which may be the same.

    Args:
        count: of latents.
        shape: of each.
    """

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self._final_NCHW = torch.empty(count, *shape)
        self._undrawn: dict[int, RewardRecord] = {}
        self._there = 0
        self._given_up = False
        self._changed = threading.Condition()

    def add(self, final_BCHW: Tensor) -> None:
        """The next ones, in host memory."""
        with self._changed:
            self._final_NCHW[self._there : self._there + len(final_BCHW)] = final_BCHW
            self._there += len(final_BCHW)
            self._changed.notify()

    def lose(self, row: int, record: RewardRecord) -> None:
        """One of the next cannot be drawn."""
        self._undrawn[row] = record

    def give_up(self) -> None:
        """Nothing more is taken: whoever does is told by :class:`_GivenUpError`."""
        with self._changed:
            self._given_up = True
            self._changed.notify()

    def take(self, rows: slice) -> tuple[Tensor, dict[int, RewardRecord]]:
        """Latents (B, C, H, W), as soon as all of them are there, and records of those that could not be drawn, by
        their number in ``rows``.

        Raises:
            _GivenUpError: nobody wants them any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._given_up or self._there >= rows.stop)
            if self._given_up:
                raise _GivenUpError
        undrawn = {number - rows.start: self._undrawn[number] for number in _among(self._undrawn, rows)}
        return self._final_NCHW[rows], undrawn


class _GivenUpError(Exception):
    """The call that a thread worked for has ended badly."""


class _Clock:
    """Seconds by phase; a phase is timed by one thread."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("condition", "sample", "decode", "score", "draw"), 0.0)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the body to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


def _to_host(part: Trajectory) -> Trajectory:
    return Trajectory(*(getattr(part, name).to("cpu") for name in Trajectory.__dataclass_fields__))
