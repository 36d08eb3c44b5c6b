# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's agent-loop workers for captions: what verl does for every caption is done once per worker, once per prompt, or
for all captions that are ready at the same moment.

Shape legend: P tokens of a prompt, L of one caption with its prompt; A axes of a position where a model counts several.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from tensordict import NonTensorData, NonTensorStack, TensorDict
from torch import Tensor
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ
from verl.trainer.ppo.v1.agent_loop_tq import apply_greedy_sampling_params
from verl.utils.rollout_trace import rollout_trace_attr

from verl_uae.errors import describe
from verl_uae.stages.g4u.agent_loop import AGENT_LOOP, INPUTS, CaptionAgentLoop, PromptInputs

logger = logging.getLogger(__name__)

#: Rows of one request to the TransferQueue. A row has the processor's pixels: megabytes with large pictures.
MAX_ROWS = 64


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A row that is to be written; ``fields`` None writes its tag alone."""

    partition: str
    key: str
    fields: Mapping[str, Any] | None
    tag: Mapping[str, Any]
    written: asyncio.Future[None]

    @property
    def kind(self) -> tuple[str, tuple[str, ...] | None]:
        """Rows of one kind can be written together."""
        return self.partition, None if self.fields is None else tuple(self.fields)


class QueueWriter:
    """Writes rows to the TransferQueue in as few requests as their writers leave it time for.

    What comes while a request is on its way goes with the next one: a row that comes alone is written at once, many
    that come together are written together. Lives on one event loop.

    Args:
        max_rows: most rows of a request.
    """

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, partition: str, key: str, fields: Mapping[str, Any] | None, tag: Mapping[str, Any]) -> None:
        """Write a row, or its tag alone where ``fields`` is None; return when it is written.

        Raises:
            Exception: what the request failed with, in which the row was.
        """
        loop = asyncio.get_running_loop()
        row = _Waiting(partition, key, fields, tag, loop.create_future())
        self._waiting.append(row)
        if self._task is None:
            self._task = loop.create_task(self._write_all())
        await row.written

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                kind = self._waiting[0].kind
                rows = [row for row in self._waiting if row.kind == kind][: self._max_rows]
                gone = {id(row) for row in rows}
                self._waiting = [row for row in self._waiting if id(row) not in gone]
                await _write(rows)
        finally:
            self._task = None


async def _write(rows: Sequence[_Waiting]) -> None:
    """Write rows of one kind and tell those that wait for them; an error is theirs, and the writer goes on."""
    (failure,) = await asyncio.gather(_send(rows), return_exceptions=True)
    for row in rows:
        # The futures of writers that have gone are cancelled.
        if row.written.done():
            continue
        if failure is None:
            row.written.set_result(None)
        else:
            row.written.set_exception(failure)


async def _send(rows: Sequence[_Waiting]) -> None:
    await tq.async_kv_batch_put(
        keys=[row.key for row in rows],
        partition_id=rows[0].partition,
        fields=None if rows[0].fields is None else _columns([row.fields or {} for row in rows]),
        tags=[dict(row.tag) for row in rows],
    )


def _columns(rows: Sequence[Mapping[str, Any]]) -> TensorDict:
    """Rows of equal keys as columns: tensors ragged, all else as it is."""
    columns: dict[str, Any] = {}
    # Captions of a prompt share most of their cells, and a cell takes longer to wrap than to look up.
    distinct = {id(value): value for row in rows for value in row.values() if not isinstance(value, Tensor)}
    cells = {name: NonTensorData(value) for name, value in distinct.items()}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if not all(isinstance(value, Tensor) for value in values):
            columns[name] = NonTensorStack(*(cells.get(id(value), value) for value in values))
        elif all(value.shape == values[0].shape for value in values):
            columns[name] = torch.stack(values)
        else:
            columns[name] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
    return TensorDict(columns, batch_size=len(rows))


# verl's class itself: its name there is that of the Ray actor.
class CaptionAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):
    """verl's worker, with one agent loop for all captions, pictures processed once per prompt, and rows that are
    written together. Agent loops of other names run as verl runs them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare()

    def prepare(self) -> None:
        """Begin with nothing shared and nothing to write."""
        self._writer = QueueWriter()
        self._loop: CaptionAgentLoop | None = None

    async def settle(self) -> None:
        """Return when no caption is being written."""
        while self.background_tasks:
            await asyncio.wait(self.background_tasks)

    async def _run_prompt(
        self, prompt: dict[str, Any], sampling_params: dict[str, Any], trajectory: dict[str, Any], trace: bool = False
    ) -> None:
        """verl's, which writes to the queue before the first caption of a prompt that it has begun. Nothing of the
        synchronous trainers asks for that, and a queue that is asked by all prompts at once makes captions wait."""
        rollout, validate = self.config.actor_rollout_ref.rollout, trajectory["validate"]
        status = "failure"
        try:
            members = prompt.pop("__rollout_n__", rollout.val_kwargs.n if validate else rollout.n)
            params = dict(sampling_params)
            if not prompt.pop("__do_sample__", True) and not validate:
                apply_greedy_sampling_params(params)
            sessions = [
                self._run_agent_loop(params, trajectory=trajectory, trace=trace, session_id=member, **prompt)
                for member in range(members)
            ]
            answers = await asyncio.gather(*sessions, return_exceptions=True)
            errors = [answer for answer in answers if isinstance(answer, BaseException)]
            for error in errors:
                logger.error("prompt %s: %s", prompt["uid"], describe(error), exc_info=error)
            status = "failure" if errors else "finished"
        finally:
            await self._writer.put("val" if validate else "train", prompt["uid"], None, {"status": status})

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        agent_name: str,
        trace: bool = True,
        **kwargs: Any,
    ) -> None:
        """verl's, which builds an agent loop for every caption."""
        if agent_name != AGENT_LOOP:
            await super()._run_agent_loop(sampling_params, trajectory, agent_name=agent_name, trace=trace, **kwargs)
            return
        if self._loop is None:
            self._loop = CaptionAgentLoop(
                trainer_config=DictConfigWrap(self.config),
                server_manager=self.llm_client,
                tokenizer=self.tokenizer,
                processor=self.processor,
                hf_model_type=self.hf_model_type,
                dataset_cls=self.dataset_cls,
                data_config=DictConfigWrap(self.config.data),
            )
        with rollout_trace_attr(name="agent_loop", trace=trace, **trajectory):
            output = await self._loop.run(sampling_params, **kwargs)
            await self._agent_loop_postprocess(output, trajectory["validate"], **kwargs)

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        """verl's, which sends a request for every caption."""
        if not isinstance(output, AgentLoopOutput) or self.distillation_enabled:
            await super()._agent_loop_postprocess(output, validate, **kwargs)
            return
        fields, tag = self._row(output, kwargs)
        key = f"{kwargs['uid']}_{kwargs['session_id']}_0"
        await self._writer.put("val" if validate else "train", key, fields, tag)

    def _row(self, output: AgentLoopOutput, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What verl writes of a caption: fields and tag.

        Args:
            output: of the agent loop.
            row: of the dataset, with ``uid``, ``session_id`` and ``global_steps``.
        """
        ids_L = torch.tensor([*output.prompt_ids, *output.response_ids], dtype=torch.int64)
        inputs, position_AL = self._model_inputs(output, ids_L)
        fields = {**output.as_dict(), **row}
        fields.pop("multi_modal_data", None)
        fields["loss_mask"] = fields["response_mask"]
        fields["input_ids"] = ids_L
        fields["position_ids"] = position_AL
        fields["multi_modal_inputs"] = inputs
        tag = {
            "status": "success",
            "prompt_len": len(output.prompt_ids),
            "response_len": len(output.response_ids),
            "seq_len": len(ids_L),
            "global_steps": row["global_steps"],
            "min_global_steps": output.extra_fields.get("min_global_steps"),
            "max_global_steps": output.extra_fields.get("max_global_steps"),
        }
        return fields, tag

    def _model_inputs(self, output: AgentLoopOutput, ids_L: Tensor) -> tuple[dict[str, Any], Tensor]:
        """What the model takes beside tokens, and their positions, (L,) or (A, L).

        verl runs the processor again for every caption, on prompt and caption without pictures' tokens, for what it
        makes of the pictures, and counts positions from the first token. Both follow from the prompt: a caption holds
        no picture, so every token of it is one further than the last, on every axis.
        """
        shared: PromptInputs | None = (output.multi_modal_data or {}).get(INPUTS)
        if shared is None:
            inputs = self._compute_multi_modal_inputs(output, ids_L)
            return inputs, self._positions(ids_L, inputs)
        count = len(output.prompt_ids)
        if shared.position_ids is None:
            shared.made.pop("attention_mask", None)
            if "image_grid_thw" in shared.made:
                grid = shared.made["image_grid_thw"]
                shared.made["images_seqlens"] = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0])
            text = ids_L.new_tensor([self.tokenizer.eos_token_id])
            shared.position_ids = self._positions(torch.cat([ids_L[:count], text]), shared.made)
        known = shared.position_ids
        further = known[..., -1:] + torch.arange(1, len(ids_L) - count)
        return dict(shared.made), torch.cat([known, further], dim=-1)[..., : len(ids_L)]

    def _positions(self, ids_L: Tensor, inputs: dict[str, Any]) -> Tensor:
        """verl's; takes from ``inputs`` what it needs alone."""
        position_1AL: Tensor = self._compute_position_ids(ids_L[None], torch.ones_like(ids_L)[None], inputs)
        return position_1AL.squeeze(0)
