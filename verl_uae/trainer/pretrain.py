# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pre-training of the decoder: flow matching on pairs of picture and long caption."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray
from omegaconf import OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayResourcePool
from verl.trainer.ppo.v1 import register_trainer
from verl.utils.debug import marked_timer

from verl_uae.config.validate_supervised import is_shards
from verl_uae.data.buckets import Buckets, BucketSampler
from verl_uae.data.pairs import Pair, PairRows
from verl_uae.data.rows import CheckSettings
from verl_uae.data.schema import make_prompt
from verl_uae.data.shards import PairShards
from verl_uae.errors import ConfigError, DataError
from verl_uae.rollout.policy_group import DecoderTrainingGroup
from verl_uae.rollout.pretrain_worker import PretrainWorker
from verl_uae.rollout.training_worker import DecoderTrainingWorker
from verl_uae.trainer.length import cover_steps
from verl_uae.trainer.pair_validation import PairValidation, policy_sources_of_pairs
from verl_uae.trainer.policy import policy_metrics
from verl_uae.trainer.standalone import StandaloneTrainer

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


class PairTrainer(PairValidation, StandaloneTrainer):
    """What pre-training and cold start share: pairs from parquet rows or tar shards, one update per batch."""

    worker: type[DecoderTrainingWorker]
    _rows: PairRows | None = None
    """The training pairs; None where they are a stream."""

    def start_workers(self, pool: RayResourcePool) -> None:
        """The decoder's workers."""
        self.policy = DecoderTrainingGroup(self.worker, self.config, pool, self.total_training_steps)
        self.policy.wait_until_loaded()

    def _init_dataloader(self) -> None:
        data, trainer = self.config.data, self.config.trainer
        settings = CheckSettings.from_config(data)
        self.buckets = Buckets.from_config(self.config)
        files: Any = OmegaConf.to_object(data.train_files) if OmegaConf.is_list(data.train_files) else data.train_files
        self.train_dataloader: StatefulDataLoader[list[Pair]]
        if is_shards(data.train_files):
            shards = PairShards(
                files, self.buckets, data.train_batch_size, seed=data.seed, shuffle=data.shuffle, settings=settings
            )
            # A worker without a shard would have nothing to do.
            workers = min(data.dataloader_num_workers, len(shards.urls))
            self.train_dataloader = StatefulDataLoader(shards, batch_size=None, num_workers=workers)
            # A stream has no end.
            self.steps_per_epoch = self.total_training_steps = count = trainer.total_training_steps
        else:
            limit = data.get("train_max_samples", -1)
            rows = PairRows(files, settings, max_samples=limit, shuffle=data.shuffle, seed=data.seed)
            buckets = [self.buckets.bucket_of(*size) for size in rows.sizes]
            sampler = BucketSampler(buckets, data.train_batch_size, seed=data.seed, shuffle=data.shuffle)
            self.train_dataloader = StatefulDataLoader(
                rows,
                batch_size=data.train_batch_size,
                sampler=sampler,
                num_workers=data.dataloader_num_workers,
                collate_fn=list,
                drop_last=True,
            )
            self.steps_per_epoch = len(sampler) // data.train_batch_size
            logger.info("%d pairs, of which an epoch leaves out %d that fill no batch", len(rows), sampler.dropped)
            self.total_training_steps = trainer.total_training_steps or self.steps_per_epoch * trainer.total_epochs
            count = len(rows)
            self._rows = rows
        cover_steps(self.config, self.total_training_steps, self.steps_per_epoch, count)
        self.validation_pairs = PairRows(data.val_files, settings, max_samples=data.get("val_max_samples", -1))
        self._batches: Iterator[list[Pair]] | None = None

    def training_prompts(self) -> Iterable[Any]:
        """Prompts of the rows, and that of pairs without one: all of a stream."""
        found = [None] if self._rows is None else self._rows.frame.column(self._rows.door.prompt_key)
        return (prompt or make_prompt() for prompt in found)

    def next_pairs(self) -> list[Pair]:
        """The next batch; a new epoch begins where one ends."""
        if self._batches is None:
            self._batches = iter(self.train_dataloader)
        pairs = next(self._batches, None)
        if pairs is None:
            self._batches = iter(self.train_dataloader)
            pairs = next(self._batches, None)
        if pairs is None:
            raise ConfigError("data.train_files", "there is no whole batch of one bucket; lower data.train_batch_size")
        return pairs

    def held_out_pairs(self) -> list[Pair]:
        """All of the validation file, in order."""
        return [self.validation_pairs[index] for index in range(len(self.validation_pairs))]

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """One batch.

        Raises:
            DataError: too many of its pairs cannot be used; the update has left them out.
        """
        pairs = self.next_pairs()
        size = self.buckets.bucket_of(pairs[0].width, pairs[0].height)
        with marked_timer("learn", timing_raw), self.updating():
            answers = self.policy.call("learn", ray.put(pairs), size, self.global_steps)
        self._check([problem for _, problems in answers for problem in problems], len(pairs), metrics)
        metrics.update(policy_metrics([answers[0][0]]))
        metrics["pairs/height"], metrics["pairs/width"] = float(size[0]), float(size[1])
        return self.step_keys([f"{self.global_steps}_{number}_0" for number in range(len(pairs))])

    def _check(self, problems: Sequence[str], count: int, metrics: dict) -> None:
        metrics["pairs/invalid_frac"] = len(problems) / count
        for problem in problems:
            logger.warning("step %d: a pair is left out: %s", self.global_steps, problem)
        limit = self.config.uae.reward.max_invalid_fraction
        if len(problems) > limit * count or len(problems) == count:
            raise DataError(
                "batch",
                None,
                f"{len(problems)} of {count} pairs cannot be used, more than uae.reward.max_invalid_fraction={limit}; "
                f"first: {problems[0]}",
            )

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        metrics.update({f"timing_s/{phase}": value for phase, value in timing_raw.items()})
        metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        metrics["pairs/per_second"] = len(batch.keys) / timing_raw["step"]
        logger.info(
            "step %d/%d: loss %.4f, grad norm %.2g, %d pairs of %dx%d in %.1f s",
            global_steps,
            self.total_training_steps,
            metrics["policy/loss/mean"],
            metrics["policy/grad_norm"],
            len(batch.keys),
            metrics["pairs/height"],
            metrics["pairs/width"],
            timing_raw["step"],
        )


@register_trainer("uae_pretrain")
class PretrainTrainer(PairTrainer):
    """verl's training loop around flow matching."""

    worker = PretrainWorker

    def _validate(self) -> dict[str, float]:
        pairs = self.held_out_pairs()
        metrics = self.validate_pictures(policy_sources_of_pairs(pairs)) | self._held_out_losses(pairs)
        self.note_validation(metrics)
        return metrics

    def _held_out_losses(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Mean loss, and the loss per noise level, at the base size."""
        decoder = self.config.uae.decoder
        size, rows = (decoder.height, decoder.width), []
        for first, part in self.in_parts(pairs):
            answers = self.policy.call("held_out_losses", ray.put(list(part)), size, first)
            rows += [row for answer in answers for row in answer if row is not None]
        if not rows:
            return {}
        levels: list[Any] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        count = len(levels)
        named = {f"val-aux/flow_loss/sigma_{(i + 0.5) / count:.3f}": value for i, value in enumerate(levels)}
        return {"val-core/flow_loss": sum(levels) / count, **named}
