# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Understanding for Generation: diffusion-policy GRPO on the decoder, captions of a frozen captioner."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import ResourcePoolManager
from verl.trainer.ppo.v1 import register_trainer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.debug import marked_timer

from verl_uae.config.validate import validate
from verl_uae.errors import CheckpointError, RewardError
from verl_uae.trainer.checkpoint import TRACKER, LastGoodStep, mark_complete, publish, repair_tracker
from verl_uae.trainer.outcomes import validation_info
from verl_uae.trainer.panel import PanelRow, PanelWriter
from verl_uae.trainer.policy import PolicyMixin, policy_sources, prune_policies

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


class NoAgentLoops:
    """Stands where verl keeps its agent loops; this stage writes its captions in the policy's workers."""

    @classmethod
    def create(cls, **_: Any) -> NoAgentLoops:
        """What verl's task runner calls."""
        return cls()


@register_trainer("uae_u4g")
class U4GTrainer(LastGoodStep, PolicyMixin, PPOTrainer):
    """verl's training loop with the decoder as the policy; no captioner is trained or served."""

    def __init__(self, config: DictConfig) -> None:
        validate(config)
        super().__init__(config)
        self.panels = PanelWriter(config.uae.panel.dir)

    def _build_replay_buffer(self) -> Any:
        # verl compares the mode with the literal "sync" in six places.
        self.trainer_mode = "sync"
        return None

    def _setup(self) -> None:
        self._init_tokenizer()
        self._init_dataloader()
        self._init_dump_executor()
        trainer = self.config.trainer
        spec = {"global_pool": [trainer.n_gpus_per_node] * trainer.nnodes}
        self.resource_pool_manager = ResourcePoolManager(resource_pool_spec=spec, mapping={})
        self.resource_pool_manager.create_resource_pool()
        self.start_policy(self.resource_pool_manager.resource_pool_dict["global_pool"], self.total_training_steps)
        self.policy.wait_until_loaded()
        self._load_checkpoint()

    def get_llm_client(self) -> None:
        """No caption server."""

    def get_teacher_client(self) -> None:
        """No teacher."""

    def get_reward_handles(self) -> None:
        """Rewards come from the policy's workers."""

    def on_sample_end(self) -> None:
        """Nothing sleeps here."""

    def on_step_end(self) -> None:
        """Sampling uses the trained weights themselves: there is nothing to send."""

    def _start_profiling(self) -> None:
        """verl's profiler follows its own worker groups."""

    def _stop_profiling(self) -> None:
        """See :meth:`_start_profiling`."""

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """One batch of pictures; when too few have a reward, the last good step is saved before the run stops."""
        with self.keeping_last_good_step(RewardError):
            return self._step(metrics, timing_raw)

    def _step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """Captions, reconstructions, rewards, updates."""
        columns = _columns(self._next_train_batch())
        with marked_timer("caption", timing_raw):
            states = self.frozen_captions(columns["raw_prompt"], columns["extra_info"])
        found, seconds = self.improve_policy(policy_sources(columns, states), states, self.global_steps - 1)
        metrics.update(found)
        timing_raw.update(seconds)
        # verl clears the keys of a step when it is over; they must be there.
        keys, tags = [str(uid) for uid in columns["uid"]], [{"status": "success"} for _ in states]
        tq.kv_batch_put(keys=keys, partition_id="train", tags=tags)
        return KVBatchMeta(partition_id="train", keys=keys, tags=tags)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, global_steps: int, epoch: int
    ) -> None:
        metrics.update({f"timing_s/{phase}": value for phase, value in timing_raw.items()})
        metrics.update({"training/global_step": global_steps, "training/epoch": epoch})
        looked = self.captions.hits + self.captions.misses
        metrics["caption/cache_hit_frac"] = self.captions.hits / max(1, looked)
        logger.info("step %d/%d: %s", global_steps, self.total_training_steps, policy_line(metrics))

    def _validate(self) -> dict[str, float]:
        sources_of, rewards, shown = [], defaultdict(list), []
        infos: list[dict] = []
        failures = samples = 0
        for batch in self.val_dataloader:
            states = self.frozen_captions(batch["raw_prompt"], batch["extra_info"])
            outcomes, explored = self.evaluate_policy(policy_sources(batch, states), max(0, self.global_steps - 1))
            for position, (entry, state) in enumerate(zip(outcomes, states, strict=True)):
                samples += 1
                if entry["picture"]:
                    prompt = batch["raw_prompt"][position]
                    shown.append(PanelRow.from_sample(prompt, state, entry, explored[position]))
                if entry["status"] != "ok":
                    # A sample without reward must not enter a mean as 0.
                    failures += 1
                    continue
                sources_of.append(str(batch.get("data_source", ["unknown"] * len(states))[position]))
                infos.append({"reward": entry["value"], **validation_info(entry, state)})
        for info in infos:
            for name, value in info.items():
                rewards[name].append(value)
        metrics = self._val_metrics_update(sources_of, [str(n) for n in range(len(infos))], dict(rewards), [])
        metrics["val-aux/uae/invalid_frac"] = failures / max(1, samples)
        if shown:
            self.panels.write(self.global_steps, shown, self.logger)
        return metrics

    def _save_checkpoint(self) -> None:
        folder = self._checkpoint_root / f"global_step_{self.global_steps}"
        self.save_policy(folder)
        torch.save(self.train_dataloader.state_dict(), folder / "data.pt")
        mark_complete(folder, self.global_steps)
        publish(self._checkpoint_root / TRACKER, str(self.global_steps))
        prune_policies(self._checkpoint_root, self.config.trainer.get("max_actor_ckpt_to_keep"))

    def _load_checkpoint(self) -> None:
        self.global_steps = 0
        folder = self._resume_folder()
        if folder is None:
            return
        self.global_steps = int(folder.name.split("global_step_")[-1])
        logger.info("resuming from %s", folder)
        self.load_policy(folder)
        state = folder / "data.pt"
        if not state.is_file():
            raise CheckpointError(state, "missing: the place in the data")
        self.train_dataloader.load_state_dict(torch.load(state, weights_only=True))

    def _resume_folder(self) -> Path | None:
        trainer = self.config.trainer
        if trainer.resume_mode == "disable":
            return None
        if trainer.resume_mode == "resume_path":
            return Path(trainer.resume_from_path).absolute()
        if self._checkpoint_root.is_dir():
            repair_tracker(self._checkpoint_root)
        found = find_latest_ckpt_path(str(self._checkpoint_root))
        return None if found is None else Path(found)


def policy_line(metrics: dict) -> str:
    """One line of a step."""
    phases = ("caption", "condition", "sample", "decode", "score", "update_policy", "step")
    spent = ", ".join(f"{name} {metrics[f'timing_s/{name}']:.1f} s" for name in phases if f"timing_s/{name}" in metrics)
    return (
        f"reward {metrics.get('reward/score/mean', float('nan')):.3f}, "
        f"grad norm {metrics.get('policy/grad_norm', float('nan')):.2g}, "
        f"{metrics.get('reward/invalid_frac', 0.0):.0%} without reward; {spent}"
    )


def _columns(batch: Any) -> dict[str, list[Any]]:
    """Columns of verl's training batch as plain lists."""
    columns = {}
    for name in ("raw_prompt", "extra_info", "uid", "data_source", "reward_model"):
        if name in batch.keys():
            columns[name] = [getattr(value, "data", value) for value in batch[name]]
    return columns
