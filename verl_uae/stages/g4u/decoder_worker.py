# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The multimodal rollout worker: redraws captions and scores them on the device that drew the picture.

Shape legend: N samples.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch
from omegaconf import DictConfig
from tensordict import NonTensorStack, TensorDict
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils.device import get_device_name, get_torch_device

from verl_uae.chain.reconstruct import ChainRequest, ReconstructionChain
from verl_uae.chain.records import (
    OUTCOME_FIELD,
    Outcome,
    chain_request,
    dataset_row,
    failed_outcome,
    is_probe,
    outcome,
)
from verl_uae.engines.export import TrainedState, load_trained_state
from verl_uae.errors import DecoderError
from verl_uae.reward.doing import write_notes
from verl_uae.stages.g4u.build import build_chain

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))

#: Seconds between two progress lines of a decode phase.
PROGRESS_S = 15.0

#: Fields of the TransferQueue a decoder reads.
INPUT_FIELDS = ["raw_prompt", "extra_fields", "data_source", "reward_model", "extra_info"]


class DecoderWorker(Worker):
    """Holds language model, projector, DiT, VAE and reward models; every rank has its own full copy.

    Args:
        config: the whole composed configuration.
    """

    def __init__(self, config: DictConfig) -> None:
        super().__init__()
        self._register_dispatch_collect_info("decoder", dp_rank=self.rank, is_collect=True)
        self.config = config
        self.chain: ReconstructionChain | None = None
        self._returned = bool(ray.get_runtime_context().was_current_actor_reconstructed)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Load all models; onto the host where ``uae.decoder.offload`` is set, else onto the device."""
        write_notes()
        self.chain = build_chain(self.config, "cpu" if self._offload else get_device_name())

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="decoder"))
    def decode_and_score(self, data: TensorDict) -> TensorDict:
        """Redraw and score a shard of the batch.

        Args:
            data: N samples with :data:`INPUT_FIELDS`, and ``global_steps``, ``probes`` and ``keep`` as non-tensor
                entries.

        Returns:
            Outcomes of the N samples in the field ``uae_outcome``, phase seconds of this rank in every sample's
            ``uae_seconds`` (N, 2): decode and score.
        """
        started = time.perf_counter()
        chain = self._on_device()
        chain.reset_timers()
        outcomes = self._outcomes(chain, data)
        if self._offload:
            self._move("cpu")
        seconds = torch.tensor([chain.seconds["decode"], chain.seconds["score"]], dtype=torch.float64)
        logger.info("rank %d: %d samples in %.1f s", self.rank, len(outcomes), time.perf_counter() - started)
        fields = {OUTCOME_FIELD: NonTensorStack(*outcomes), "uae_seconds": seconds.expand(len(outcomes), 2).clone()}
        return TensorDict(fields, batch_size=len(outcomes))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def score_requests(self, requests: Sequence[ChainRequest]) -> list[Outcome]:
        """Streamed schedule: redraw and score one micro-batch."""
        return [outcome(result) for result in self._on_device().run(requests)]

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def ready(self) -> bool:
        """Whether this rank can draw, after loading its models if that is all that is missing."""
        if self._lacks_policy:
            return False
        self.ensure_model()
        return True

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def ensure_model(self) -> None:
        """Load all models unless they are there."""
        if self.chain is None:
            self.init_model()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_returned(self) -> bool:
        """Whether Ray has started this rank again since the last time it was asked."""
        returned, self._returned = self._returned, False
        return returned

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_policy_state(self, state: TrainedState) -> int:
        """Take what training has changed of the decoder; returns how many tensors.

        Raises:
            CheckpointError: names or shapes do not match, all of them or any.
        """
        if self.chain is None:
            self.init_model()
        assert self.chain is not None
        return load_trained_state(self.chain.decoder, state, self.config.uae.decoder.path, source="decoder policy")

    @property
    def _offload(self) -> bool:
        return bool(self.config.uae.decoder.offload) and self.config.uae.decoder.pool == "colocated"

    @property
    def _lacks_policy(self) -> bool:
        """Whether this rank was started again by Ray in the unified stage: until the controller sends the decoder
        policy's weights it would draw with the decoder of the beginning."""
        return self.chain is None and self._returned and self.config.uae.stage == "unified"

    def _on_device(self) -> ReconstructionChain:
        if self._lacks_policy:
            raise DecoderError(self.rank, "was started again and has not got the decoder policy's weights yet")
        if self.chain is None:
            # A rank that Ray has started again after a death.
            self.init_model()
        assert self.chain is not None
        self._move(get_device_name())
        return self.chain

    def _move(self, device: str) -> None:
        assert self.chain is not None
        if self.chain.decoder.device.type == torch.device(device).type:
            return
        self.chain.decoder.to(device)
        self.chain.conditioner.to(device)
        self.chain.scorer.to(device)
        if device == "cpu":
            get_torch_device().empty_cache()

    def _outcomes(self, chain: ReconstructionChain, data: TensorDict) -> list[Outcome]:
        columns = {name: _column(data, name) for name in INPUT_FIELDS if name in data.keys()}
        step, probes = _scalar(data, "global_steps"), _scalar(data, "probes")
        keep = bool(_scalar(data, "keep"))
        outcomes: list[Outcome | None] = [None] * len(data)
        requests: list[ChainRequest] = []
        positions: list[int] = []
        for position in range(len(data)):
            state = columns["extra_fields"][position]["uae"]
            if state["status"] != "ok":
                outcomes[position] = failed_outcome(state["status"], state["reason"])
                continue
            row = dataset_row({name: column[position] for name, column in columns.items()})
            want = is_probe(row["extra_info"], probes)
            messages = columns["raw_prompt"][position]
            seed = self.config.uae.seed
            requests.append(
                chain_request(messages, state, row, seed=seed, step=step, want_picture=want, want_reconstruction=keep)
            )
            positions.append(position)
        for position, result in zip(positions, chain.run(requests, ProgressLog()), strict=True):
            outcomes[position] = outcome(result)
        return [entry for entry in outcomes if entry is not None]


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
