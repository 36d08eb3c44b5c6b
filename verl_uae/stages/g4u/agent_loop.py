# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The agent loop ``uae_caption``: one caption per session, seeded by name, failures as data.

One loop of a worker serves all its captions: what they have in common is made once per prompt.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from cachetools import FIFOCache
from torch import Tensor
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_uae.captioners import as_vllm_takes, in_tiles, prompt_pictures
from verl_uae.chain.records import (
    CAPTION_FIELD,
    OUTCOME_FIELD,
    Caption,
    Draw,
    Envelope,
    Outcome,
    Sample,
    is_probe,
    prompt_name,
)
from verl_uae.errors import describe
from verl_uae.reward.record import Status
from verl_uae.seeding import derive_seed
from verl_uae.stages.g4u.stream import stream_client

logger = logging.getLogger(__name__)

#: Name of the loop, ``actor_rollout_ref.rollout.agent.default_agent_loop``.
AGENT_LOOP = "uae_caption"

#: Key under ``actor_rollout_ref.rollout.custom`` with the Ray name of the streamed schedule's dispatcher.
STREAM_DISPATCHER = "uae_stream_dispatcher"
#: And whether reconstructions are sent back, for groupwise rewards.
STREAM_RECONSTRUCTIONS = "uae_keep_reconstructions"


#: Key of ``multi_modal_data`` of an output with its :class:`PromptInputs`.
INPUTS = "uae_inputs"


@dataclass(slots=True)
class PromptInputs:
    """What all captions of a prompt have in common beside its tokens."""

    made: dict[str, Any] = field(default_factory=dict)
    """By the processor."""
    position_ids: Tensor | None = None
    """Of the prompt and the first token of a caption, (P + 1,) or (axes, P + 1); None until they are asked for."""


@dataclass(slots=True)
class _Prompt:
    """The prompt of a caption that is being written."""

    name: Any
    """Equal for captions of the same pictures with one text."""
    inputs: PromptInputs = field(default_factory=PromptInputs)
    """Once the processor has run."""


#: Of the caption that a task of the event loop writes.
_prompt: ContextVar[_Prompt] = ContextVar("uae_prompt")


class PromptCache:
    """What captions of one prompt share: concurrent requests for it wait for the first.

    Lives on the event loop of one agent-loop worker.

    Args:
        max_prompts: how many entries are kept; the oldest go first.
    """

    def __init__(self, max_prompts: int) -> None:
        self._tasks: FIFOCache[Any, asyncio.Task[Any]] = FIFOCache(max_prompts)

    async def get(self, name: Any, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """What has the name, made by ``make`` if it is not there; a failure is not kept."""
        task = self._tasks.get(name)
        if task is None:
            task = asyncio.get_running_loop().create_task(make())
            self._tasks[name] = task
        try:
            return await asyncio.shield(task)
        except BaseException:
            if task.done() and self._tasks.get(name) is task:
                del self._tasks[name]
            raise


class _VLLMClient:
    """verl's client of the servers, with prompts as vLLM takes them.

    Args:
        client: verl's.
        processor: of the captioner.
    """

    def __init__(self, client: Any, processor: Any) -> None:
        self.client, self.processor = client, processor

    async def generate(self, *, prompt_ids: Sequence[int], **request: Any) -> Any:
        """verl's, whose answer does not repeat the prompt."""
        return await self.client.generate(prompt_ids=as_vllm_takes(self.processor, prompt_ids), **request)


@register(AGENT_LOOP)
class CaptionAgentLoop(SingleTurnAgentLoop):
    """Captions an image with verl's single-turn loop.

    Differs from it in three ways: each request has its own derived seed (verl gives every request of a replica the
    same one under full determinism); a caption that fails or takes too long becomes a masked sample with a status
    instead of a hole in the group; in the streamed schedule the caption goes straight to a decoder.
    """

    server_manager: Any
    _prompts = PromptCache(max_prompts=512)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is not None and self.rollout_config.name != "hf":
            self.server_manager = _VLLMClient(self.server_manager, self.processor)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        digest = ""
        try:
            prompt = _Prompt(prompt_name(kwargs["raw_prompt"], kwargs.get("extra_info") or {}))
            digest = prompt.name[0][0]
            _prompt.set(prompt)
            params = self._seeded(sampling_params, digest, kwargs)
            output = await asyncio.wait_for(super().run(params, **kwargs), self._timeout_s)
        except asyncio.TimeoutError:
            reason = f"no caption in {self._timeout_s} s"
            output = self._failed(Caption.failed(digest, reason, Status.TIMEOUT), kwargs)
        except Exception as error:
            # Fault boundary: whatever one caption raises costs that caption, counted and named.
            logger.warning("caption of row %s failed: %s", kwargs.get("index"), describe(error))
            output = self._failed(Caption.failed(digest, f"caption: {describe(error)}"), kwargs)
        else:
            forbidden = self._vision_ids.intersection(output.response_ids)
            if not output.response_ids:
                # Such as vLLM answers a request that it has aborted with.
                output = self._failed(Caption.failed(digest, "caption: the server wrote no token"), kwargs)
            elif forbidden:
                # The model's next forward pass would take the token for a picture that is not there.
                reason = f"caption: sampled vision tokens {sorted(forbidden)}"
                output = self._failed(Caption.failed(digest, reason), kwargs)
            else:
                output.extra_fields[CAPTION_FIELD] = Envelope(self._caption(output, digest))
                output.multi_modal_data = {**(output.multi_modal_data or {}), INPUTS: prompt.inputs}
        # The schema of a batch must be the same for every sample.
        output.extra_fields.setdefault(OUTCOME_FIELD, None)
        if self._dispatcher:
            caption = output.extra_fields[CAPTION_FIELD].content
            output.extra_fields[OUTCOME_FIELD] = Envelope(await self._stream(caption, kwargs))
        return output

    async def process_multi_modal_info(self, messages: list[dict]) -> dict[str, Any]:
        """verl's, which resizes pictures by the patch size of Qwen, unless the processor cuts tiles of its own; once
        per prompt, so that its captions have the same pictures."""
        base = super().process_multi_modal_info

        async def make() -> dict[str, Any]:
            if self.processor is None or not in_tiles(self.processor.image_processor):
                return await base(messages)
            images, _ = prompt_pictures(self.processor, messages)
            return {"images": images}

        return dict(await self._prompts.get(("pictures", _prompt.get().name), make))

    async def ct_build_initial_tokens(
        self, messages: list[dict], *args: Any, mm_inputs_out: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[int]:
        """verl's prompt building, once per prompt instead of once per caption of it."""
        build = super().ct_build_initial_tokens

        async def make() -> tuple[list[int], PromptInputs]:
            inputs = PromptInputs()
            return await build(messages, *args, mm_inputs_out=inputs.made, **kwargs), inputs

        prompt = _prompt.get()
        ids, prompt.inputs = await self._prompts.get(("tokens", prompt.name), make)
        if mm_inputs_out is not None:
            mm_inputs_out.update(prompt.inputs.made)
        return list(ids)

    async def ct_merge_assistant_token(
        self,
        runtime_token_ids: list[int],
        assistant_token_ids: list[int],
        response_mask: list[int],
        response_logprobs: list[float] | None = None,
        assistant_logprobs: list[float] | None = None,
    ) -> Any:
        """verl's, in this thread: to hand two lists to another takes longer than to join them."""
        builder = self.continuous_token_builder
        merged = builder.merge_assistant_tokens(runtime_token_ids, assistant_token_ids)
        mask, log_probs = builder.align_response_metadata(
            merged, response_mask, response_logprobs, assistant_logprobs=assistant_logprobs
        )
        return merged, mask, log_probs

    # What follows does not change while a worker lives, and is asked for by every caption.

    @functools.cached_property
    def _vision_ids(self) -> frozenset[int]:
        """Tokens that stand for pictures and videos."""
        ids = (getattr(self.processor, f"{kind}_token_id", None) for kind in ("image", "video"))
        return frozenset(int(token) for token in ids if token is not None)

    @functools.cached_property
    def _dispatcher(self) -> str | None:
        name = (self.rollout_config.get("custom") or {}).get(STREAM_DISPATCHER)
        return None if name is None else str(name)

    @functools.cached_property
    def _timeout_s(self) -> float:
        return float(self.config.uae.rollout.timeout_s)

    @functools.cached_property
    def _seed(self) -> int | None:
        """Of the run; None where captions have no seeds of their own."""
        return int(self.config.uae.seed) if self.config.uae.rollout.seeded else None

    def _seeded(self, sampling_params: dict[str, Any], digest: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self._seed is None:
            return sampling_params
        step, member = int(kwargs["global_steps"]), int(kwargs["session_id"])
        return {**sampling_params, "seed": derive_seed(self._seed, "caption", step, digest, member)}

    def _caption(self, output: AgentLoopOutput, digest: str) -> Caption:
        ids = output.response_ids
        return Caption(
            self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            digest,
            cut=len(ids) >= self.response_length and ids[-1] != self.tokenizer.eos_token_id,
            tokens=len(ids),
        )

    def _failed(self, caption: Caption, kwargs: dict[str, Any]) -> AgentLoopOutput:
        """A sample of one masked token that carries the reason."""
        eos = self.tokenizer.eos_token_id
        step = int(kwargs["global_steps"])
        return AgentLoopOutput(
            prompt_ids=[eos],
            response_ids=[eos],
            response_mask=[0],
            response_logprobs=[0.0] if self.rollout_config.calculate_log_probs else None,
            multi_modal_data={},
            num_turns=2,
            metrics={},
            extra_fields={
                "global_steps": step,
                "min_global_steps": step,
                "max_global_steps": step,
                "turn_scores": [],
                "tool_rewards": [],
                CAPTION_FIELD: Envelope(caption),
            },
        )

    async def _stream(self, caption: Caption, kwargs: dict[str, Any]) -> Outcome:
        if not caption.ok:
            return Outcome(caption.lost())
        settings = self.config.uae
        sample = Sample.of_row(kwargs, caption)
        info, custom = sample.row["extra_info"], self.rollout_config.get("custom") or {}
        validating = info.get("split") == "val"
        draw = Draw.for_caption(
            sample,
            seed=settings.seed,
            step=int(kwargs["global_steps"]),
            want_picture=validating and is_probe(info, settings.panel.probes),
            want_reconstruction=not validating and bool(custom.get(STREAM_RECONSTRUCTIONS)),
        )
        assert self._dispatcher
        answer = stream_client(self._dispatcher).score(draw)
        try:
            return await asyncio.wait_for(answer, settings.decoder.timeout_s)
        except asyncio.TimeoutError:
            return Outcome.failed(Status.TIMEOUT, f"no reconstruction in {settings.decoder.timeout_s} s")
