# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Generation for Understanding: GRPO on the captioner, rewarded by what a frozen decoder redraws."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, open_dict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.debug import marked_timer
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions, log_seqlen_unbalance

import verl_uae.stages.g4u.advantage  # noqa: F401  registers uae_grpo
from verl_uae.chain.records import CAPTION_FIELD, OUTCOME_FIELD, SAMPLE_FIELDS, Caption, Outcome, Sample, samples_of
from verl_uae.checkpoints.record import verl_keeps_all
from verl_uae.checkpoints.step import unmark
from verl_uae.errors import describe
from verl_uae.stages.common.conditioner_sync import ConditionerSync
from verl_uae.stages.common.group import DecoderTrainingGroup
from verl_uae.stages.common.outcomes import outcome_metrics, usable_members, validation_info
from verl_uae.stages.common.panel import PanelRow
from verl_uae.stages.common.signals import RewardSignals
from verl_uae.stages.common.supervised import SupervisedTrainer, cover_steps
from verl_uae.stages.g4u.advantage import SETTINGS_KEY
from verl_uae.stages.g4u.agent_loop import STREAM_DISPATCHER, STREAM_RECONSTRUCTIONS
from verl_uae.stages.g4u.captioning import CaptionsAhead, SupervisedCaptions
from verl_uae.stages.g4u.decoder_group import (
    DecoderGroup,
    fetch,
    fetch_in_order,
    select,
    split_key,
    store,
)
from verl_uae.stages.g4u.decoder_worker import PHASES
from verl_uae.stages.g4u.placement import AGENT_LOOP_NODES, CaptionAgentLoops, DecoderMixin
from verl_uae.stages.g4u.worker import CaptionerWorker
from verl_uae.waiting import saying

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


class _NothingTrainsError(Exception):
    """No sample of ``batch`` trains; ends a step's work on log-probabilities and advantages, never the step."""

    def __init__(self, batch: KVBatchMeta) -> None:
        super().__init__()
        self.batch = batch


class BatchRewards:
    """Stands where verl keeps its reward loop: says that rewards come batch-wise, after sampling."""

    reward_loop_worker_handles = None


@register_trainer("uae_g4u")
class G4UTrainer(RewardSignals, CaptionsAhead, SupervisedTrainer, ConditionerSync, DecoderMixin, PPOTrainerSync):
    """verl's synchronous GRPO trainer with the chain as its reward."""

    # Set by verl.
    global_steps: int
    total_training_steps: int
    resource_pool_manager: Any

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._fetched_rows = 0

    # ---------------------------------------------------------------- set-up

    def _init_dataloader(self) -> None:
        with saying("data.train_files and data.val_files to be read and checked", phase="reading data"):
            super()._init_dataloader()
        cover_steps(self.config, self.total_training_steps, self.steps_per_epoch, len(self.train_dataset))

    def _build_replay_buffer(self) -> Any:
        # verl compares the mode with the literal "sync" in six places; under any other name a trainer silently
        # gets the asynchronous replay buffer and checkpoint layout.
        self.trainer_mode = "sync"
        replay_buffer = super()._build_replay_buffer()
        replay_buffer.poll_interval = self.config.uae.rollout.poll_interval_s
        return SupervisedCaptions(replay_buffer, self.config.uae, lambda: self.supervisor, self._settle_captions)

    def _settle_captions(self, limit_s: float) -> None:
        # Agent loops of a manager that the user chose are asked by way of the queue alone.
        if isinstance(self.agent_loop_manager, CaptionAgentLoops):
            self.agent_loop_manager.settle(limit_s)

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in self.role_worker_mapping:
            self.role_worker_mapping[role] = ray.remote(CaptionerWorker)
        # A caption server measures the memory of its GPU when it is created, a little later: what comes or goes then it
        # takes for its own. What stays must be there, and what is moved off must be gone.
        for group in self._start_workers():
            group.wait_until_loaded()

    def _start_workers(self) -> list[DecoderGroup | DecoderTrainingGroup]:
        """Start the workers beside verl's own; they load side by side."""
        self.resource_pool_manager = self.start_decoders(self.resource_pool_manager)
        return [self.decoders]

    def _setup(self) -> None:
        with saying("captioner, caption server and decoders to be placed and loaded", phase="loading data and models"):
            super()._setup()
        self.reward_loop_manager = BatchRewards()
        reward = self.config.uae.reward
        with open_dict(self.config):
            self.config.algorithm[SETTINGS_KEY] = {"min_std": reward.min_std, "std": reward.advantage_std}
        custom = dict(self.config.actor_rollout_ref.rollout.get("custom") or {})
        custom[AGENT_LOOP_NODES] = self.agent_loop_nodes
        if self.streamed:
            custom[STREAM_DISPATCHER] = self.decoders.start_dispatcher()
            custom[STREAM_RECONSTRUCTIONS] = self.group_rewards.active
        with open_dict(self.config):
            self.config.actor_rollout_ref.rollout.custom = custom

    def _fetch_one_gen_batch(self) -> Any:
        batch = super()._fetch_one_gen_batch()
        # verl's uid is random; a counted one makes the order of a batch, and so its sums, repeatable. It must not
        # contain "_", which separates uid, session and output in a key.
        start = self._fetched_rows
        self._fetched_rows += len(batch)
        for offset in range(len(batch)):
            batch["uid"][offset] = f"s{self.global_steps:08d}r{start + offset:010d}"
        return batch

    # ---------------------------------------------------------------- checkpoints

    def _save_checkpoint(self) -> None:
        with self.saving():
            unmark(self._step_folder())
            with verl_keeps_all(self.config):
                super()._save_checkpoint()
            self.save_signals(self._step_folder())
            self._finish_step()

    def _load_checkpoint(self) -> None:
        self._resume_folder()
        super()._load_checkpoint()
        if self.global_steps > 0:
            self.load_signals(self._resumed_folder())

    def _resumed_folder(self) -> Path:
        """The step folder a run goes on from, which need not be one of its own."""
        trainer = self.config.trainer
        return Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else self._step_folder()

    # ---------------------------------------------------------------- supervision

    def watched(self) -> Iterator[tuple[str, Any]]:
        """The captioner's ranks and everything that captions pass through."""
        for rank, worker in enumerate(self.actor_rollout_wg.workers):
            yield f"captioner rank {rank}", worker
        for number, worker in enumerate(self.agent_loop_manager.agent_loop_workers):
            yield f"agent-loop worker {number}", worker
        for replica in self.llm_server_manager.get_replicas():
            for number, server in enumerate(replica.servers):
                yield f"caption server {replica.replica_rank}.{number}", server

    def trained_ranks(self) -> Iterator[Any]:
        """The captioner's."""
        yield from self.actor_rollout_wg.workers

    def decoder_ranks(self) -> Iterator[Any]:
        """Those that draw."""
        if self.decoders is not None:
            yield from self.decoders.workers

    def quieten(self) -> None:
        """Make the caption servers give their memory back, where the step ended while they were writing."""
        if not self.replay_buffer.waiting:
            return
        try:
            self.checkpoint_manager.abort_replicas()
            self.checkpoint_manager.sleep_replicas()
        except ray.exceptions.RayError as error:
            # A dead server holds no memory.
            logger.warning("caption server: %s", describe(error))

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        with self.updating():
            return super()._update_actor(batch, metrics=metrics)

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        """verl's, which would take means and extremes of nothing where no sample of a batch trains. There only the
        updates come, so that the worker leaves them out, counts them and moves on in its schedule."""
        try:
            return super()._step_once(metrics, timing_raw, sample_batch_size)
        except _NothingTrainsError as found:
            logger.warning("step %d: no sample has a reward to be compared with; no update is made", self.global_steps)
            with marked_timer("update_actor", timing_raw):
                return self._update_actor(found.batch, metrics)

    def _balance_batch(
        self, batch: KVBatchMeta, metrics: dict, logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> KVBatchMeta:
        """verl's, which searches for equal shares among tensors of one number each: the same shares among numbers are
        found in a tenth of the time."""
        role, group = "actor", self.actor_rollout_wg
        if role not in group._dispatch_info:
            group._dispatch_info[role] = group._query_dispatch_info(role)
        ranks = max(group._dispatch_info[role]) + 1
        multiple = self._get_required_batch_multiple(ranks)
        batch = upsample_batch_to_divisible_size(batch, multiple, self.tokenizer.eos_token_id)
        lengths = [int(tag["seq_len"]) for tag in batch.tags]
        work = calculate_workload(torch.tensor(lengths, dtype=torch.int64)).tolist()
        shares = get_seqlen_balanced_partitions(work, k_partitions=ranks, equal_size=True)
        batch.reorder([place for share in shares for place in share])
        metrics.update(log_seqlen_unbalance(seqlen_list=lengths, partitions=shares, prefix=logging_prefix))
        if not _trains(batch):
            raise _NothingTrainsError(batch)
        return batch

    # ---------------------------------------------------------------- reward

    def _compute_reward_colocate(self, batch: KVBatchMeta, metrics: dict | None = None) -> KVBatchMeta:
        """Redraw and score a batch; verl calls it after sampling, in training and validation (metrics None)."""
        batch, columns = fetch_in_order(batch, ["extra_fields", "response_mask", "metrics"])
        extras, masks = columns["extra_fields"], columns["response_mask"]
        captions = [extra[CAPTION_FIELD].content for extra in extras]
        groups = [split_key(key)[0] for key in batch.keys]
        drawn, seconds = self.redraw(batch, extras, groups, validating=metrics is None)
        if metrics is None:
            return self._finish_validation(batch, drawn, captions, extras, masks)
        signals = self.signals("g4u")
        outcomes = signals.recompose(drawn, groups)
        self._mask(batch, masks, outcomes, usable_members(outcomes, groups))
        metrics.update(outcome_metrics(outcomes, captions, groups, min_std=self.config.uae.reward.min_std))
        metrics.update(signals.metrics(drawn, metrics))
        spent = {"caption": caption_seconds(columns["metrics"]), **seconds}
        self._worked_seconds, self._waited_seconds = spent, self.waited_seconds(spent)
        pictures = len(outcomes) * self.drawings_per_caption
        metrics.update(chain_timing({**spent, **self._waited_seconds}, pictures))
        return batch

    @property
    def drawings_per_caption(self) -> int:
        """Pictures that a caption's reward is the mean of."""
        return int(self.config.uae.decoder.seeds_per_caption)

    def redraw(
        self, batch: KVBatchMeta, extras: list[dict[str, Any]], groups: Sequence[str], *, validating: bool
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Draw and score captions.

        Args:
            batch: N of them.
            extras: their ``extra_fields``.
            groups: of each, for terms that compare pictures; those are left out in validation.
            validating: whether it is a batch of validation; else it is the step's.

        Returns:
            An outcome of each, and seconds by phase.

        Raises:
            RewardError: too few have a reward.
            DecoderError: a rank cannot come back.
        """
        # The decoders keep their own time: they are waited for, killed and started again.
        phase = self.supervisor.phase("decoding", math.inf, "uae.decoder.timeout_s")
        if self.streamed:
            with phase:
                self.decoders.revive_returned()
            outcomes = [extra[OUTCOME_FIELD].content for extra in extras]
            seconds = dict.fromkeys(PHASES, 0.0)
        else:
            probes = self.config.uae.panel.probes if validating else 0
            keep = self.group_rewards.active and not validating
            with phase:
                outcomes, seconds = self.decoders.score(batch, step=self.global_steps, probes=probes, keep=keep)
            if not validating:
                self.await_captions_ahead()
        self.supervisor.boundary(f"what follows the rewards of step {self.global_steps}")
        self.losses.check(outcomes)
        if self.group_rewards.active and not validating:
            with marked_timer("score", seconds), marked_timer("draw", seconds):
                captions = [extra[CAPTION_FIELD].content for extra in extras]
                outcomes = self.group_rewards.add(outcomes, self._samples(batch, captions), groups)
            self.losses.check(outcomes)
        return outcomes, seconds

    @staticmethod
    def _samples(batch: KVBatchMeta, captions: list[Caption]) -> list[Sample]:
        return samples_of(fetch(batch, SAMPLE_FIELDS), captions)

    def _mask(self, batch: KVBatchMeta, masks: list[torch.Tensor], outcomes: list[Outcome], usable: list[bool]) -> None:
        """Write scores; samples that cannot train keep their row and lose every trained token."""
        masks = [mask if keep else torch.zeros_like(mask) for mask, keep in zip(masks, usable, strict=True)]
        scores = [last_token_score(mask, outcome.record.value) for mask, outcome in zip(masks, outcomes, strict=True)]
        store(batch, {"rm_scores": scores})
        lost = [position for position, keep in enumerate(usable) if not keep]
        for position in lost:
            # verl leaves padding rows out of its own metrics; a sample without reward must not count as 0 there.
            batch.tags[position]["is_padding"] = True
        if lost:
            nothing = [masks[position] for position in lost]
            store(select(batch, lost), {"response_mask": nothing, "loss_mask": nothing}, tagged=True)

    def _finish_validation(
        self,
        batch: KVBatchMeta,
        outcomes: list[Outcome],
        captions: list[Caption],
        extras: list[dict[str, Any]],
        masks: list[torch.Tensor],
    ) -> KVBatchMeta:
        infos = [validation_info(outcome, caption) for outcome, caption in zip(outcomes, captions, strict=True)]
        extras = [{**extra, "reward_extra_info": info} for extra, info in zip(extras, infos, strict=True)]
        scores = [last_token_score(mask, outcome.record.value) for mask, outcome in zip(masks, outcomes, strict=True)]
        store(batch, {"rm_scores": scores, "extra_fields": extras})
        self._collect_panel(batch, outcomes, captions)
        failed = [position for position, outcome in enumerate(outcomes) if not outcome.record.ok]
        self._validation_failures += len(failed)
        self._validation_samples += len(outcomes)
        if failed:
            # A sample without reward would enter verl's mean as 0.
            self.discard(select(batch, failed))
        return select(batch, [position for position in range(len(outcomes)) if position not in set(failed)])

    def _validate(self) -> dict[str, float]:
        self._validation_failures = self._validation_samples = 0
        self.panel_rows: list[PanelRow] = []
        metrics = super()._validate()
        metrics["val-aux/uae/invalid_frac"] = self._validation_failures / max(1, self._validation_samples)
        if self.panel_rows:
            self.panels.write(self.global_steps, self.panel_rows, self.logger)
        self.note_validation(metrics)
        return metrics

    def _collect_panel(self, batch: KVBatchMeta, outcomes: list[Outcome], captions: list[Caption]) -> None:
        shown = [position for position, outcome in enumerate(outcomes) if outcome.picture]
        if not shown:
            return
        samples = self._samples(select(batch, shown), [captions[position] for position in shown])
        for position, sample in zip(shown, samples, strict=True):
            self.panel_rows.append(PanelRow.of_sample(sample, outcomes[position]))

    # ---------------------------------------------------------------- metrics

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        if _trains(batch):
            super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        else:
            metrics.update({f"timing_s/{phase}": value for phase, value in timing_raw.items()})
            metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        metrics.update(overhead_metrics(timing_raw, self._waited_seconds))
        pictures = len(batch.keys) * self.drawings_per_caption
        self.note_speed(metrics, {**timing_raw, **self._worked_seconds}, pictures)
        if self.decoders is not None:
            metrics["decoder/restarts"] = float(self.decoders.restarts)
        self.say_step(global_steps, progress_line(metrics))


def _trains(batch: KVBatchMeta) -> bool:
    """Whether a sample of the batch trains; those that cannot are marked as padding."""
    return not all(tag.get("is_padding", False) for tag in batch.tags)


def last_token_score(response_mask: torch.Tensor, value: float | None) -> torch.Tensor:
    """Token-level scores with the reward at the last token; all zero where there is none (its mask is zero too)."""
    scores = torch.zeros(response_mask.shape, dtype=torch.float32)
    if value is not None:
        scores[-1] = value
    return scores


#: Phases of verl's step that are model compute, by verl's timer names; those of the chain are measured where they run.
_MODEL_PHASES = ("old_log_prob", "ref", "update_policy", "update_actor")
#: Phases of the chain that are within drawing, where they may overlap.
_WITHIN_DRAWING = ("condition", "sample", "decode", "score")


def caption_seconds(request_metrics: Sequence[Mapping[str, Any]]) -> float:
    """Seconds from the first caption request of a batch to the last answer: the longest request, since all are sent
    together."""
    return max((float(metrics.get("generate_sequences", 0.0)) for metrics in request_metrics), default=0.0)


def chain_timing(seconds: Mapping[str, float], pictures: int) -> dict[str, float]:
    """Seconds of captioning, and of the slowest rank in decoding, in scoring, and from the first to the last of both;
    reconstructions per second of that."""
    metrics = {f"timing_s/{phase}": value for phase, value in seconds.items()}
    if seconds["draw"] > 0:
        metrics["perf/reconstructions_per_s"] = pictures / seconds["draw"]
    return metrics


def overhead_metrics(timing_raw: Mapping[str, float], chain_seconds: Mapping[str, float]) -> dict[str, float]:
    """Share of a step spent outside captioning, decoding, scoring, log-probs and updates."""
    step = timing_raw.get("step", 0.0)
    if step <= 0:
        return {}
    chain = sum(seconds for phase, seconds in chain_seconds.items() if phase not in _WITHIN_DRAWING)
    model = sum(timing_raw.get(phase, 0.0) for phase in _MODEL_PHASES) + chain
    return {"perf/overhead_frac": max(0.0, 1.0 - model / step)}


#: Phase -> metric, in the order of a step.
_SHOWN = {
    "caption": "timing_s/caption",
    "sample": "timing_s/sample",
    "decode": "timing_s/decode",
    "score": "timing_s/score",
    "log-probs": "timing_s/old_log_prob",
    "decoder's update": "timing_s/update_policy",
    "update": "timing_s/update_actor",
    "step": "timing_s/step",
}


def progress_line(metrics: Mapping[str, float]) -> str:
    """One line of a step: reward, caption length, samples without reward, and the seconds of each phase."""
    phases = ", ".join(f"{phase} {metrics[name]:.1f} s" for phase, name in _SHOWN.items() if name in metrics)
    learns = f"decoder's grad norm {metrics['train/grad_norm']:.2g}, " if "train/grad_norm" in metrics else ""
    return (
        f"reward {metrics.get('reward/score/mean', float('nan')):.3f}, "
        f"{metrics.get('caption/words/mean', 0.0):.1f} words, {learns}"
        f"{metrics.get('reward/invalid_frac', 0.0):.0%} without reward; {phases}"
    )
