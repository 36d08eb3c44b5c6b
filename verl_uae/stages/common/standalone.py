# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's training loop around one group of workers of ours, without a captioner that verl trains or serves."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayResourcePool, ResourcePoolManager
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_uae.checkpoints.names import DATA_STATE, TRACKER, step_of
from verl_uae.checkpoints.record import DecoderCheckpoints
from verl_uae.errors import CheckpointError
from verl_uae.files import write_text
from verl_uae.stages.common.nodes import Ranks, check_nodes
from verl_uae.stages.common.supervised import SupervisedTrainer
from verl_uae.waiting import saying

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


class NoAgentLoops:
    """Stands where verl keeps its agent loops; these stages need none."""

    @classmethod
    def create(cls, **_: Any) -> NoAgentLoops:
        """What verl's task runner calls."""
        return cls()


class StandaloneTrainer(DecoderCheckpoints, SupervisedTrainer, PPOTrainer):
    """Subclasses start their workers, run a step and validate; loop, logging, resume and checkpoints are shared."""

    total_training_steps: int

    @abstractmethod
    def start_workers(self, pool: RayResourcePool) -> None:
        """Start the workers and wait until they have loaded."""

    def _build_replay_buffer(self) -> Any:
        # verl compares the mode with the literal "sync" in six places.
        self.trainer_mode = "sync"
        return None

    def _setup(self) -> None:
        self._init_tokenizer()
        with saying("data.train_files and data.val_files to be read and checked", phase="reading data"):
            self._init_dataloader()
        self._init_dump_executor()
        trainer = self.config.trainer
        spec = {"global_pool": [trainer.n_gpus_per_node] * trainer.nnodes}
        self.resource_pool_manager = ResourcePoolManager(resource_pool_spec=spec, mapping={})
        self.resource_pool_manager.create_resource_pool()
        pool = self.resource_pool_manager.resource_pool_dict["global_pool"]
        with saying("the decoder's workers to be placed and loaded", phase="loading models"):
            check_nodes(self.config, [Ranks("learner ranks", pool, writes=True)])
            self.start_workers(pool)
        self._load_checkpoint()

    def get_llm_client(self) -> None:
        """No caption server."""

    def get_teacher_client(self) -> None:
        """No teacher."""

    def get_reward_handles(self) -> None:
        """Rewards come from the workers."""

    def on_sample_end(self) -> None:
        """Nothing sleeps here."""

    def watched(self) -> Iterator[tuple[str, Any]]:
        """The decoder's ranks."""
        yield from self.learner.named_ranks()

    def trained_ranks(self) -> Iterator[Any]:
        """The decoder's."""
        yield from self.learner.group.workers

    def decoder_ranks(self) -> Iterator[Any]:
        """All ranks."""
        yield from self.learner.group.workers

    def _start_profiling(self) -> None:
        """verl's profiler follows its own worker groups."""

    def _stop_profiling(self) -> None:
        """See :meth:`_start_profiling`."""

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict, rollout_data_dir: str) -> None:
        """Nothing was rolled out; U4G has reconstructions to tell of."""

    @staticmethod
    def step_keys(names: Sequence[str]) -> KVBatchMeta:
        """What a step returns: keys of the TransferQueue, which verl clears when it is over, so they must be there."""
        tags = [{"status": "success"} for _ in names]
        tq.kv_batch_put(keys=list(names), partition_id="train", tags=tags)
        return KVBatchMeta(partition_id="train", keys=list(names), tags=tags)

    def _save_checkpoint(self) -> None:
        folder = self._step_folder()
        with self.saving():
            self.save_decoder(folder)
            torch.save(self.train_dataloader.state_dict(), folder / DATA_STATE)
            write_text(self._checkpoint_root / TRACKER, str(self.global_steps), sync=True)
            self._finish_step()

    def _load_checkpoint(self) -> None:
        self.global_steps = 0
        folder = self._resume_folder()
        if folder is None:
            return
        self.global_steps = step_of(folder) or 0
        logger.info("resuming from %s", folder)
        self.load_decoder(folder)
        state = folder / DATA_STATE
        if not state.is_file():
            raise CheckpointError(state, "missing: the place in the data")
        self.train_dataloader.load_state_dict(torch.load(state, weights_only=True))
