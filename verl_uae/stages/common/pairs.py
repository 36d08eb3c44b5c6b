# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What pre-training and cold start share: pairs of picture and caption, one update per batch, and their validation."""

from __future__ import annotations

import logging
import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ray
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torchdata.stateful_dataloader import StatefulDataLoader
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayResourcePool
from verl.utils.debug import marked_timer

from verl_uae.chain.records import Caption, Outcome, Sample
from verl_uae.config.path_keys import is_shards
from verl_uae.data.buckets import Buckets, BucketSampler, HeightWidth
from verl_uae.data.pairs import Pair, PairRows, PairShards
from verl_uae.data.rows import CheckSettings
from verl_uae.data.schema import make_prompt
from verl_uae.engines.update_metrics import update_metrics
from verl_uae.errors import ConfigError, DataError, UAEError
from verl_uae.reward.record import Status
from verl_uae.stages.common.group import DecoderTrainingGroup
from verl_uae.stages.common.outcomes import LosingSamples
from verl_uae.stages.common.panel import PanelRow, PanelWriter
from verl_uae.stages.common.standalone import StandaloneTrainer
from verl_uae.stages.common.supervised import cover_steps
from verl_uae.stages.common.supervisor import Supervisor
from verl_uae.stages.common.worker import DecoderTrainingWorker

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Micro-batches that every rank gets at once, between two moments at which a validation can be stopped.
MICRO_BATCHES = 8

_Item = TypeVar("_Item")


class PairValidation(LosingSamples):
    """Mixin of trainers with decoder workers."""

    config: DictConfig
    global_steps: int
    panels: PanelWriter
    learner: Any
    logger: Any
    supervisor: Supervisor

    def in_parts(self, items: Sequence[_Item]) -> Iterator[tuple[int, Sequence[_Item]]]:
        """Number of the first, and items, of what the ranks get at once: whole micro-batches of each, but at the end.

        Raises:
            StoppedError: the run was asked to stop.
        """
        size = MICRO_BATCHES * self.learner.ranks * self.config.uae.train.micro_batch_size
        for first in range(0, len(items), size):
            self.supervisor.boundary(f"validation, pair {first} of {len(items)}")
            yield first, items[first : first + size]

    def validate_pictures(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Mean reward and terms of the pictures that have one, share without, and a panel of the first."""
        probes = min(self.config.uae.panel.probes, len(samples))
        outcomes: list[Outcome] = []
        for first, part in self.in_parts(samples):
            outcomes += self.learner.evaluate(part, max(0, probes - first))
        self.losses.tell(outcomes)
        columns: dict[str, list[float]] = defaultdict(list)
        for outcome in outcomes:
            if outcome.record.value is not None:
                columns["reward"].append(outcome.record.value)
                for term, value in outcome.record.terms.items():
                    columns[f"term_{term}"].append(value)
        metrics = {f"val-aux/{name}/mean": sum(values) / len(values) for name, values in columns.items()}
        if "reward" in columns:
            metrics["val-core/reward/mean"] = metrics.pop("val-aux/reward/mean")
        metrics["val-aux/uae/invalid_frac"] = sum(not outcome.record.ok for outcome in outcomes) / len(outcomes)
        rows = [
            PanelRow.of_sample(sample, outcome)
            for sample, outcome in zip(samples, outcomes, strict=True)
            if outcome.picture
        ]
        if rows:
            self.panels.write(self.global_steps, rows, self.logger)
        return metrics


class PairFeed(Iterator[list[Pair]]):
    """Batches without end: a new epoch begins where one ends.

    Batches may be read before it is their turn. The place in the data is behind the last one whose turn it was: what
    was only read is read again after a resume.

    Args:
        loader: of an epoch.
    """

    def __init__(self, loader: StatefulDataLoader[list[Pair]]) -> None:
        self.loader = loader
        self._epoch: Iterator[list[Pair]] | None = None
        self._ahead: deque[tuple[list[Pair] | UAEError, dict[str, Any]]] = deque()
        self._place: dict[str, Any] | None = None
        """Where it is not the loader's own, which is ahead."""

    @property
    def waiting(self) -> int:
        """Batches that were read and not yet given."""
        return len(self._ahead)

    def read_ahead(self, count: int) -> list[list[Pair]]:
        """Read until that many batches wait; returns those that are new. What cannot be read is raised when it is its
        turn, and nothing is read behind it."""
        found = []
        self._place = self._place or self.loader.state_dict()
        while len(self._ahead) < count and not (self._ahead and isinstance(self._ahead[-1][0], UAEError)):
            try:
                batch = self._read()
            except UAEError as error:
                self._ahead.append((error, self._place))
            else:
                self._ahead.append((batch, self.loader.state_dict()))
                found.append(batch)
        return found

    def __next__(self) -> list[Pair]:
        """The next batch.

        Raises:
            ConfigError: there is none in a whole epoch.
            DataError: of the data.
        """
        if not self._ahead:
            self._place = None
            return self._read()
        batch, place = self._ahead.popleft()
        if isinstance(batch, UAEError):
            raise batch
        self._place = place
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The place in the data."""
        return self.loader.state_dict() if self._place is None else self._place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place, before anything is read."""
        self.loader.load_state_dict(state)

    def _read(self) -> list[Pair]:
        for _ in range(2):
            if self._epoch is None:
                self._epoch = iter(self.loader)
            if (pairs := next(self._epoch, None)) is not None:
                return pairs
            self._epoch = None
        raise ConfigError("data.train_files", "there is no whole batch of one bucket; lower data.train_batch_size")


class PairTrainer(PairValidation, StandaloneTrainer):
    """What pre-training and cold start share: pairs from parquet rows or tar shards, one update per batch."""

    worker: type[DecoderTrainingWorker]
    train_dataloader: PairFeed
    _rows: PairRows | None = None
    """The training pairs; None where they are a stream."""

    @property
    def prefetched(self) -> int:
        """Batches that the workers get before their step."""
        return 0

    def start_workers(self, pool: RayResourcePool) -> None:
        """The decoder's workers."""
        self.learner = DecoderTrainingGroup(self.worker, self.config, pool, self.total_training_steps)
        self.learner.wait_until_loaded()

    def _init_dataloader(self) -> None:
        data, trainer = self.config.data, self.config.trainer
        settings = CheckSettings.from_config(data)
        self.buckets = Buckets.from_config(self.config)
        files: Any = OmegaConf.to_object(data.train_files) if OmegaConf.is_list(data.train_files) else data.train_files
        if is_shards(data.train_files):
            shards = PairShards(
                files, self.buckets, data.train_batch_size, seed=data.seed, shuffle=data.shuffle, settings=settings
            )
            # A worker without a shard would have nothing to do.
            workers = min(data.dataloader_num_workers, len(shards.urls))
            loader = StatefulDataLoader(shards, batch_size=None, num_workers=workers)
            # A stream has no end.
            self.steps_per_epoch = self.total_training_steps = count = trainer.total_training_steps
        else:
            limit = data.get("train_max_samples", -1)
            rows = PairRows(files, settings, max_samples=limit, shuffle=data.shuffle, seed=data.seed)
            buckets = [self.buckets.bucket_of(*size) for size in rows.sizes]
            sampler = BucketSampler(buckets, data.train_batch_size, seed=data.seed, shuffle=data.shuffle)
            loader = StatefulDataLoader(
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
        self.train_dataloader = PairFeed(loader)

    def training_prompts(self) -> Iterable[Any]:
        """Prompts of the rows, and that of pairs without one: all of a stream."""
        found = [None] if self._rows is None else self._rows.frame.column(self._rows.door.prompt_key)
        return (prompt or make_prompt() for prompt in found)

    def held_out_pairs(self) -> list[Pair]:
        """All of the validation file, in order."""
        return [self.validation_pairs[index] for index in range(len(self.validation_pairs))]

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """One batch.

        Raises:
            DataError: too many of its pairs cannot be used; the update has left them out.
        """
        if self.prefetched:
            self._send_ahead(1 + min(self.prefetched, self.total_training_steps - self.global_steps))
        pairs = next(self.train_dataloader)
        size = self._size(pairs)
        with marked_timer("learn", timing_raw), self.updating():
            given = None if self.prefetched else ray.put(pairs)
            answers = self.learner.call("learn", given, size, self.global_steps)
        self._check([problem for _, problems in answers for problem in problems], len(pairs), metrics)
        metrics.update(update_metrics([answers[0][0]]))
        metrics["pairs/height"], metrics["pairs/width"] = float(size[0]), float(size[1])
        return self.step_keys([f"{self.global_steps}_{number}_0" for number in range(len(pairs))])

    def _send_ahead(self, count: int) -> None:
        """Give the workers the batches of this step and of those behind it, so that ``count`` are with them."""
        first = self.global_steps + self.train_dataloader.waiting
        for step, pairs in enumerate(self.train_dataloader.read_ahead(count), first):
            self.learner.call("prefetch", ray.put(pairs), self._size(pairs), step)

    def _size(self, pairs: Sequence[Pair]) -> HeightWidth:
        """Of the bucket that a batch is of."""
        return self.buckets.bucket_of(pairs[0].width, pairs[0].height)

    def _check(self, problems: Sequence[str], count: int, metrics: dict) -> None:
        metrics["pairs/invalid_frac"] = len(problems) / count
        for problem in problems:
            logger.warning("step %d: a pair is left out: %s", self.global_steps, problem)
        limit = self.config.uae.supervision.max_invalid_fraction
        if len(problems) > limit * count or len(problems) == count:
            raise DataError(
                "batch",
                None,
                f"{len(problems)} of {count} pairs cannot be used, more than "
                f"uae.supervision.max_invalid_fraction={limit}; first: {problems[0]}",
            )

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        metrics.update({f"timing_s/{phase}": value for phase, value in timing_raw.items()})
        metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        self.note_speed(metrics, timing_raw, len(batch.keys))
        metrics["pairs/per_second"] = len(batch.keys) / timing_raw["step"]
        self.say_step(
            global_steps,
            f"loss {metrics['train/loss/mean']:.4f}, grad norm {metrics['train/grad_norm']:.2g}, {len(batch.keys)} "
            f"pairs of {metrics['pairs/height']:g}x{metrics['pairs/width']:g} in {timing_raw['step']:.1f} s",
        )


def samples_of_pairs(pairs: Sequence[Pair]) -> list[Sample]:
    """Pairs as what is drawn and scored; one that does not decode has no score."""
    samples = []
    for pair in pairs:
        row = {"data_source": "pairs", "ground_truth": None, "extra_info": {"caption": pair.caption}}
        image, caption = Image.new("RGB", (1, 1)), Caption(pair.caption, pair.identity)
        try:
            image = pair.decode()
        except DataError as error:
            caption = replace(caption, status=Status.ERROR, reason=str(error))
        samples.append(Sample(image, caption, row))
    return samples
