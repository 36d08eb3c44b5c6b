# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The controller's side of the decoder workers: sharding, deadlines and restarts; and the fields of a batch.

Those lie in the TransferQueue. Captions, numbers and masks pass through the controller; pictures stay where they are
drawn, but for those that a groupwise reward compares.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import NonTensorStack, TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup

from verl_uae.chain.records import OUTCOME_FIELD, Envelope, Outcome
from verl_uae.errors import DecoderError, describe
from verl_uae.reward.record import Status
from verl_uae.stages.common.supervisor import Process, processes_of
from verl_uae.stages.g4u.decoder_worker import INPUT_FIELDS, PHASES, SECONDS_FIELD, DecoderWorker
from verl_uae.stages.g4u.stream import start_dispatcher

logger = logging.getLogger(__name__)


def fetch(batch: KVBatchMeta, fields: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a batch as plain lists, one entry per key."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(fields))
    return {name: _rows(data[name]) for name in fields if name in data.keys()}


def store(batch: KVBatchMeta, columns: Mapping[str, Sequence[Any]], *, tagged: bool = False) -> None:
    """Write columns of a batch, and with ``tagged`` its tags, since verl goes on with those that the queue has. Tensors
    become ragged rows, everything else is stored as it is."""
    fields: dict[str, Any] = {}
    for name, values in columns.items():
        if values and isinstance(values[0], Tensor):
            fields[name] = torch.nested.as_nested_tensor(list(values), layout=torch.jagged)
        else:
            fields[name] = NonTensorStack(*values)
    tq.kv_batch_put(
        keys=batch.keys,
        partition_id=batch.partition_id,
        fields=TensorDict(fields, batch_size=len(batch.keys)),
        tags=[dict(tag) for tag in batch.tags] if tagged else None,
    )


def select(batch: KVBatchMeta, positions: Sequence[int]) -> KVBatchMeta:
    """The samples at the given positions, in that order."""
    return KVBatchMeta(
        partition_id=batch.partition_id,
        keys=[batch.keys[position] for position in positions],
        tags=[batch.tags[position] for position in positions],
        fields=batch.fields,
        extra_info=batch.extra_info,
    )


def split_key(key: str) -> tuple[str, int, int]:
    """(uid, session, output index) of a sample's key."""
    uid, session, index = key.rsplit("_", 2)
    return uid, int(session), int(index)


def canonical_order(batch: KVBatchMeta, row_index: Sequence[Any]) -> KVBatchMeta:
    """Sort by dataset row and member instead of by order of arrival, so a run repeats bit for bit."""

    def rank(position: int) -> tuple[str, str, int, int]:
        uid, session, output = split_key(batch.keys[position])
        # Row numbers are compared as text padded with zeros: some datasets use strings.
        return str(row_index[position]).zfill(20), uid, session, output

    return select(batch, sorted(range(len(batch.keys)), key=rank))


def fetch_in_order(batch: KVBatchMeta, fields: Sequence[str]) -> tuple[KVBatchMeta, dict[str, list[Any]]]:
    """A batch in :func:`canonical_order`, and columns of it, see :func:`fetch`, in one request."""
    columns = fetch(batch, ["index", *fields])
    places = {key: place for place, key in enumerate(batch.keys)}
    batch = canonical_order(batch, columns["index"])
    order = [places[key] for key in batch.keys]
    return batch, {name: [column[place] for place in order] for name, column in columns.items()}


def _rows(column: Any) -> list[Any]:
    if isinstance(column, Tensor):
        return list(column.unbind(0))
    return [getattr(value, "data", value) for value in column]


_RESTART_POLL_S = 1.0


class DecoderGroup:
    """A worker group whose ranks are independent: one that dies costs its samples, not the run.

    The constructor starts the ranks and does not wait for them; :meth:`wait_until_loaded` does.

    Args:
        config: the whole composed configuration.
        pool: verl resource pool the ranks live in.
    """

    send_captioner: Callable[[str, Any], bool] | None = None
    """Where the conditioner follows the captioner: gives a rank, by name and actor, the captioner's language model, and
    says whether it lived to take it."""

    def __init__(self, config: DictConfig, pool: RayResourcePool) -> None:
        self.config = config.uae.decoder
        self.restarts = 0
        # Held here: Ray reads the constructor's arguments again when it restarts a rank, and would have freed them.
        self._init_config = ray.put(config)
        worker = RayClassWithInitArgs(cls=ray.remote(DecoderWorker), config=self._init_config)
        # A name prefix of its own, since several jobs may share a Ray cluster.
        self._prefix = f"uae_{uuid.uuid4().hex[:8]}_"
        worker.update_options({"max_restarts": self.config.max_restarts, "max_task_retries": 0})
        self.group = RayWorkerGroup(
            resource_pool=pool, ray_cls_with_init=worker, name_prefix=self._prefix, device_name=config.trainer.device
        )
        #: Weights of the decoder policy, where one is trained: a rank that starts again needs them too.
        self._decoder_state: Any = None
        #: Processes of the ranks, where they are known, and how often each rank was started again.
        self._processes: dict[int, Process] = {}
        self._deaths: Counter[int] = Counter()
        self._loading: list[Any] = [worker.init_model.remote() for worker in self.workers]

    def wait_until_loaded(self) -> None:
        """Block until every rank has its models.

        Raises:
            DecoderError: if a rank cannot load them, with the reason.
        """
        for rank, call in enumerate(self._loading):
            try:
                ray.get(call)
            except ray.exceptions.RayError as error:
                raise DecoderError(rank, f"could not load its models: {describe(error)}") from error
        self._loading = []
        self._processes = dict(enumerate(processes_of(self.workers)))

    def start_dispatcher(self) -> str:
        """Streamed schedule: start what hands captions to the ranks; returns its Ray name."""
        name = f"{self._prefix}dispatcher"
        settings = (self.config.batch_size, self.config.max_wait_ms / 1e3, self.config.timeout_s)
        self._dispatcher = start_dispatcher(name, self.group._worker_names, *settings)
        return name

    @property
    def workers(self) -> list[ray.actor.ActorHandle]:
        return self.group.workers

    def score(
        self, batch: KVBatchMeta, *, step: int, probes: int, keep: bool = False
    ) -> tuple[list[Outcome], dict[str, float]]:
        """Redraw and score a batch whose rows lie in the TransferQueue.

        A rank that fails costs its share. Where all of them do, as the only one does when it dies, the batch is drawn
        once more, with the same noise, when they are back.

        Args:
            batch: keys of the samples.
            step: training step, part of the noise's name.
            probes: rows of a smaller ``extra_info.index`` come back with their picture.
            keep: whether all come back with their reconstruction.

        Returns:
            One outcome per key, in order, and the seconds of the slowest rank by phase.

        Raises:
            DecoderError: when a rank has died more often than ``uae.decoder.max_restarts``.
        """
        settings = {"global_steps": step, "probes": probes, "keep": int(keep)}
        metas = [self._meta(batch, shard, settings) for shard in split_evenly(len(batch.keys), len(self.workers))]
        faults = self._attempt(metas)
        if len(faults) == sum(bool(meta.keys) for meta in metas):
            logger.warning("all decoder ranks failed; the batch is drawn once more")
            faults = self._attempt(metas)
        for rank, (status, reason) in faults.items():
            self._write_failures(metas[rank], status, reason)
        answers = fetch(batch, [OUTCOME_FIELD, SECONDS_FIELD])
        slowest = torch.stack(answers[SECONDS_FIELD]).amax(0).tolist()
        outcomes = [envelope.content for envelope in answers[OUTCOME_FIELD]]
        return outcomes, dict(zip(PHASES, slowest, strict=True))

    def _attempt(self, metas: Sequence[KVBatchMeta]) -> dict[int, tuple[Status, str]]:
        """Every rank its share; ranks that failed are started again. Returns their statuses and reasons."""
        # One that died idle, and that Ray has started again, lacks what was sent to it.
        self.revive_returned()
        calls = {
            worker.decode_and_score.remote(meta): rank
            for rank, (worker, meta) in enumerate(zip(self.workers, metas, strict=True))
            if len(meta.keys)
        }
        faults = self._wait(calls)
        for rank in faults:
            self.revive(rank)
        return faults

    def revive_returned(self) -> None:
        """Load and count the ranks that died unseen and that Ray has started again; replace those that do not answer.

        Raises:
            DecoderError: when a rank has died more often than ``uae.decoder.max_restarts``.
        """
        calls: dict[Any, int] = {worker.take_returned.remote(): rank for rank, worker in enumerate(self.workers)}
        faults = self._wait(calls)
        for call, rank in calls.items():
            if rank in faults or ray.get(call):
                self.revive(rank, "ensure_model")

    def load_decoder_state(self, state: Any) -> None:
        """Draw with the decoder policy's weights from now on.

        Args:
            state: Ray reference to a :class:`~verl_uae.engines.export.TrainedState`.

        Raises:
            DecoderError: a rank could not take them, or has died more often than ``uae.decoder.max_restarts``.
        """
        self._decoder_state = state
        # All at once; a rank that is dead, and not unable, gets them when it is back.
        calls: list[Any] = [worker.load_decoder_state.remote(state) for worker in self.workers]
        dead = [rank for rank, call in enumerate(calls) if not self._has_taken(rank, call)]
        for rank in dead:
            self.revive(rank)

    def _has_taken(self, rank: int, call: Any) -> bool:
        """Whether a rank took the decoder policy's weights; False if it is dead."""
        try:
            ray.get(call)
        except ray.exceptions.RayActorError:
            return False
        except ray.exceptions.RayError as error:
            raise DecoderError(rank, f"could not take the decoder policy's weights: {describe(error)}") from error
        return True

    def _meta(self, batch: KVBatchMeta, shard: range, settings: dict[str, int]) -> KVBatchMeta:
        return KVBatchMeta(
            partition_id=batch.partition_id,
            keys=[batch.keys[index] for index in shard],
            tags=[batch.tags[index] for index in shard],
            fields=INPUT_FIELDS,
            extra_info=dict(settings),
        )

    def _wait(self, calls: dict[Any, int]) -> dict[int, tuple[Status, str]]:
        """Wait for the ranks; return status and reason of those that failed."""
        faults: dict[int, tuple[Status, str]] = {}
        deadline = time.monotonic() + self.config.timeout_s
        open_calls = list(calls)
        while open_calls:
            done, open_calls = ray.wait(open_calls, timeout=max(0.0, deadline - time.monotonic()))
            for call in done:
                try:
                    ray.get(call)
                except ray.exceptions.RayError as error:
                    faults[calls[call]] = (
                        Status.ERROR,
                        f"decoder rank {calls[call]}: {self._died(calls[call], error)}",
                    )
            if not done:
                break
        for call in open_calls:
            rank = calls[call]
            faults[rank] = (Status.TIMEOUT, f"decoder rank {rank}: no answer in {self.config.timeout_s} s, killed")
            self._kill(rank)
        for status, reason in faults.values():
            logger.error("%s (%s)", reason, status)
        return faults

    def _write_failures(self, meta: KVBatchMeta, status: Status, reason: str) -> None:
        count = len(meta.keys)
        outcomes = [Envelope(Outcome.failed(status, reason))] * count
        store(meta, {OUTCOME_FIELD: outcomes, SECONDS_FIELD: [torch.zeros(len(PHASES), dtype=torch.float64)] * count})

    def _died(self, rank: int, error: Exception) -> str:
        """What an error of a rank's call says; of a process that died, what it was doing then."""
        if not isinstance(error, ray.exceptions.RayActorError):
            return describe(error)
        doing = self._processes[rank].last_words() if rank in self._processes else ""
        while_doing = f" while {doing}" if doing else ""
        return f"its process died{while_doing} ({describe(error)})"

    def _kill(self, rank: int) -> None:
        """End a rank that does not answer, so that Ray starts it again. One that is stopped obeys SIGKILL alone."""
        process = self._processes.get(rank)
        if process is None:
            ray.kill(self.workers[rank], no_restart=False)
        else:
            process.kill()

    def revive(self, rank: int, load: str = "init_model") -> None:
        """Load the models again in a rank that Ray has started again (or that is alive after an exception).

        Raises:
            DecoderError: when it does not come back, or has died more often than ``uae.decoder.max_restarts``.
        """
        self.restarts += 1
        self._deaths[rank] += 1
        deadline = time.monotonic() + self.config.timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                ray.get(getattr(self.workers[rank], load).remote(), timeout=max(1.0, left))
                if self._decoder_state is not None:
                    ray.get(self.workers[rank].load_decoder_state.remote(self._decoder_state))
                if self.send_captioner and not self.send_captioner(f"decoder rank {rank}", self.workers[rank]):
                    raise DecoderError(rank, "died again while it took the captioner's language model")
                # This return is met and counted.
                ray.get(self.workers[rank].take_returned.remote())
                self._processes[rank] = processes_of([self.workers[rank]])[0]
                return
            except ray.exceptions.ActorUnavailableError as error:
                # Ray answers so while the process is being started.
                if left < 0:
                    raise self._late(rank) from error
                time.sleep(_RESTART_POLL_S)
            except ray.exceptions.GetTimeoutError as error:
                raise self._late(rank) from error
            except ray.exceptions.RayActorError as error:
                raise self._gone(rank, error) from error
            except ray.exceptions.RayError as error:
                raise DecoderError(rank, f"could not load its models again: {describe(error)}") from error

    def _late(self, rank: int) -> DecoderError:
        return DecoderError(
            rank,
            f"was not back within uae.decoder.timeout_s={self.config.timeout_s:g} s of its death number "
            f"{self._deaths[rank]} (uae.decoder.max_restarts={self.config.max_restarts})",
        )

    def _gone(self, rank: int, error: BaseException) -> DecoderError:
        allowed = f"uae.decoder.max_restarts={self.config.max_restarts}"
        return DecoderError(
            rank,
            f"could not be started again ({allowed}) after its death number {self._deaths[rank]}: {describe(error)}",
        )


def split_evenly(count: int, parts: int) -> list[range]:
    """Contiguous shares of ``range(count)`` whose sizes differ by at most one; some are empty if parts > count."""
    bounds = [count * part // parts for part in range(parts + 1)]
    return [range(low, high) for low, high in itertools.pairwise(bounds)]
