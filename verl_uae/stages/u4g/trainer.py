# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Understanding for Generation: diffusion-policy GRPO on the decoder, captions of a frozen captioner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayResourcePool
from verl.trainer.ppo.v1 import register_trainer
from verl.utils.debug import marked_timer

from verl_uae.chain.records import Sample, samples_of
from verl_uae.stages.common.captions import Messages
from verl_uae.stages.common.outcomes import validation_info
from verl_uae.stages.common.panel import PanelRow
from verl_uae.stages.common.standalone import StandaloneTrainer
from verl_uae.stages.common.supervised import cover_steps
from verl_uae.stages.u4g.config import by_servers
from verl_uae.stages.u4g.servers import CaptionServers
from verl_uae.stages.u4g.step import PolicyMixin, dump_arguments, generation_rows
from verl_uae.stages.u4g.worker import caption_settings

#: Arguments of verl's table of validation texts -> columns of ours.
_LOGGED = {"inputs": "input", "outputs": "output", "scores": "score"}


@register_trainer("uae_u4g")
class U4GTrainer(PolicyMixin, StandaloneTrainer):
    """verl's training loop with the decoder as the policy; no captioner is trained."""

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        cover_steps(self.config, self.total_training_steps, self.steps_per_epoch, len(self.train_dataset))

    def start_workers(self, pool: RayResourcePool) -> None:
        """The policy's workers, after the caption servers: these measure how much memory is free."""
        if by_servers(self.config):
            self.servers = CaptionServers(self.config, pool, caption_settings(self.config))
        self.start_policy(pool, self.total_training_steps)
        self.learner.wait_until_loaded()

    def watched(self) -> Iterator[tuple[str, Any]]:
        """The policy's ranks, and caption servers where there are any."""
        yield from super().watched()
        if self.servers is not None:
            yield from self.servers.named()

    def save_decoder(self, folder: Path) -> None:
        """The policy, and what the run knows of its rewards."""
        super().save_decoder(folder)
        self.save_signals(folder)

    def load_decoder(self, folder: Path) -> None:
        """Inverse of :meth:`save_decoder`."""
        super().load_decoder(folder)
        self.load_signals(folder)

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """Captions, reconstructions, rewards, updates."""
        uids: list[str] = []

        def more() -> tuple[list[Messages], list[Sample]]:
            columns = _columns(self._next_train_batch())
            uids.extend(map(str, columns["uid"]))
            with marked_timer("caption", timing_raw):
                captions = self.frozen_captions(columns["raw_prompt"], columns["extra_info"])
            return columns["raw_prompt"], samples_of(columns, captions)

        found, seconds = self.improve_policy(*more(), self.global_steps - 1, more)
        metrics.update(found)
        timing_raw.update(seconds)
        return self.step_keys(uids)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        metrics.update({f"timing_s/{phase}": value for phase, value in timing_raw.items()})
        metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        self.note_speed(metrics, timing_raw, int(metrics["train/drawn_pictures"]))
        looked = self.captions.hits + self.captions.misses
        metrics["caption/cache_hit_frac"] = self.captions.hits / max(1, looked)
        self.say_step(global_steps, policy_line(metrics))

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict, rollout_data_dir: str) -> None:
        self.log_reconstructions(timing_raw, rollout_data_dir)

    def _validate(self) -> dict[str, float]:
        data_sources: list[str] = []
        shown: list[PanelRow] = []
        infos: list[dict] = []
        rows: list[dict] = []
        failures = count = 0
        for batch in self.val_dataloader:
            captions = self.frozen_captions(batch["raw_prompt"], batch["extra_info"])
            # The first rows of the file are shown, however many batches validation has.
            probes = max(0, self.config.uae.panel.probes - count)
            samples, step = samples_of(batch, captions), max(0, self.global_steps - 1)
            outcomes, explored = self.evaluate_policy(samples, step, probes)
            self.supervisor.boundary("validation")
            self.losses.tell(outcomes)
            rows += generation_rows(batch["raw_prompt"], samples, outcomes)
            for sample, outcome, train_picture in zip(samples, outcomes, explored, strict=True):
                count += 1
                if outcome.picture:
                    shown.append(PanelRow.of_sample(sample, outcome, train_picture))
                if not outcome.record.ok:
                    # A sample without reward must not enter a mean as 0.
                    failures += 1
                    continue
                data_sources.append(str(sample.row["data_source"]))
                infos.append({"reward": outcome.record.value, **validation_info(outcome, sample.caption)})
        # A term that a picture lacks is None there, which verl leaves out.
        names = dict.fromkeys(name for info in infos for name in info)
        columns = {name: [info.get(name) for info in infos] for name in names}
        metrics = self._val_metrics_update(data_sources, [str(n) for n in range(len(infos))], columns, [])
        metrics["val-aux/uae/invalid_frac"] = failures / max(1, count)
        texts = {name: [row[column] for row in rows] for name, column in _LOGGED.items()}
        self._maybe_log_val_generations(**texts)
        folder = self.config.trainer.get("validation_data_dir")
        if folder:
            self._dump_generations(**dump_arguments(rows), dump_path=folder)
        if shown:
            self.panels.write(self.global_steps, shown, self.logger)
        self.note_validation(metrics)
        return metrics


def policy_line(metrics: dict) -> str:
    """One line of a step."""
    phases = ("caption", "condition", "sample", "decode", "score", "update_policy", "step")
    spent = ", ".join(f"{name} {metrics[f'timing_s/{name}']:.1f} s" for name in phases if f"timing_s/{name}" in metrics)
    return (
        f"reward {metrics.get('reward/score/mean', float('nan')):.3f}, "
        f"grad norm {metrics.get('train/grad_norm', float('nan')):.2g}, "
        f"{metrics.get('reward/invalid_frac', 0.0):.0%} without reward; {spent}"
    )


def _columns(batch: Any) -> dict[str, list[Any]]:
    """Columns of verl's training batch as plain lists."""
    columns = {}
    for name in ("raw_prompt", "extra_info", "uid", "data_source", "reward_model"):
        if name in batch.keys():
            columns[name] = [getattr(value, "data", value) for value in batch[name]]
    return columns
