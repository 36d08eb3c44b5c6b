# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from tests.captioners import tiny
from verl_uae.chain.records import CAPTION_FIELD, OUTCOME_FIELD, Caption
from verl_uae.data.images import image_digest
from verl_uae.scenes.tokenizer import build_processor, build_tokenizer
from verl_uae.seeding import derive_seed
from verl_uae.stages.g4u.agent_loop import (
    STREAM_DISPATCHER,
    CaptionAgentLoop,
    PromptCache,
    _Prompt,
    _prompt,
    _VLLMClient,
)

IMAGE = Image.new("RGB", (32, 32), "red")
CONTENT = [{"type": "image", "image": IMAGE}, {"type": "text", "text": "describe"}]
ROW = {
    "raw_prompt": [{"role": "user", "content": CONTENT}],
    "global_steps": 5,
    "session_id": 2,
    "index": 7,
    "data_source": "scenes",
    "reward_model": {"ground_truth": "g"},
    "extra_info": {"index": 7},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture
def loop(tokenizer: Any) -> CaptionAgentLoop:
    """The loop without verl's servers: only what the methods under test read."""
    made = object.__new__(CaptionAgentLoop)
    uae = {"seed": 42, "rollout": {"timeout_s": 0.2, "seeded": True}, "decoder": {}}
    made.config = OmegaConf.create({"uae": uae})
    made.rollout_config = OmegaConf.create({"calculate_log_probs": True})
    made.tokenizer, made.processor, made.response_length = tokenizer, build_processor(), 8
    return made


def answer(ids: list[int]) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=[1], response_ids=ids, response_mask=[1] * len(ids), num_turns=2, metrics={}, extra_fields={}
    )


def run(
    loop: CaptionAgentLoop, monkeypatch: pytest.MonkeyPatch, base: Any, row: dict[str, Any] = ROW
) -> AgentLoopOutput:
    monkeypatch.setattr(SingleTurnAgentLoop, "run", base)
    return asyncio.run(loop.run({"temperature": 1.0}, **row))


def written(output: AgentLoopOutput) -> Caption:
    return output.extra_fields[CAPTION_FIELD].content


def test_a_caption_and_its_seed(loop: CaptionAgentLoop, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    async def base(self: Any, params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        seen.append(params)
        return answer([*tokenizer("a red circle")["input_ids"], tokenizer.eos_token_id])

    output = run(loop, monkeypatch, base)
    digest = image_digest(IMAGE)
    assert seen == [{"temperature": 1.0, "seed": derive_seed(42, "caption", 5, digest, 2)}]
    assert written(output) == Caption("a red circle", digest, tokens=4)
    assert output.extra_fields[OUTCOME_FIELD] is None
    named = run(loop, monkeypatch, base, {**ROW, "extra_info": {"sha256": "by the data set"}})
    assert written(named).digest == "by the data set"
    assert seen[1]["seed"] == derive_seed(42, "caption", 5, "by the data set", 2)


def test_members_and_steps_have_seeds_of_their_own(loop: CaptionAgentLoop) -> None:
    def seed(**changes: int) -> int:
        return loop._seeded({}, "d", {**ROW, **changes})["seed"]

    assert len({seed(), seed(session_id=3), seed(global_steps=6), loop._seeded({}, "e", ROW)["seed"]}) == 4
    loop.config.uae.rollout.seeded = False
    del loop._seed
    assert loop._seeded({"a": 1}, "d", ROW) == {"a": 1}


def test_a_caption_at_the_limit_is_cut_unless_it_ends(loop: CaptionAgentLoop, tokenizer: Any) -> None:
    word = tokenizer("red")["input_ids"]
    assert loop._caption(answer(word * 8), "d").cut is True
    assert loop._caption(answer(word * 7), "d").cut is False
    assert loop._caption(answer([*word * 7, tokenizer.eos_token_id]), "d").cut is False


@pytest.mark.parametrize("kind", ["raises", "hangs", "no image"])
def test_a_failure_is_a_masked_sample_with_its_reason(
    loop: CaptionAgentLoop, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async def base(self: Any, params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        if kind == "raises":
            raise ArithmeticError("mine")
        await asyncio.sleep(60)
        raise AssertionError

    row = {**ROW, "raw_prompt": [{"role": "user", "content": "text"}]} if kind == "no image" else ROW
    output = run(loop, monkeypatch, base, row)
    caption = written(output)
    expected = {
        "raises": ("error", "caption: ArithmeticError: mine"),
        "hangs": ("timeout", "no caption in 0.2 s"),
        "no image": ("error", "caption: DataError: prompt: has no image; UAE needs one source picture per row"),
    }
    assert (str(caption.status), caption.reason) == expected[kind]
    assert output.response_mask == [0] and output.response_logprobs == [0.0] and len(output.response_ids) == 1
    assert output.extra_fields["global_steps"] == 5 and output.extra_fields[OUTCOME_FIELD] is None


def test_a_sampled_vision_token_is_a_failure(
    loop: CaptionAgentLoop, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next forward pass would look for a picture that is not there."""
    vision = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    async def base(self: Any, params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        return answer([*tokenizer("red")["input_ids"], vision])

    output = run(loop, monkeypatch, base)
    assert not written(output).ok and output.response_mask == [0]
    assert written(output).reason == f"caption: sampled vision tokens [{vision}]"


def test_a_caption_of_no_token_is_a_failure(loop: CaptionAgentLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM answers what it has aborted."""

    async def base(self: Any, params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        return answer([])

    output = run(loop, monkeypatch, base)
    assert written(output).reason == "caption: the server wrote no token" and output.response_mask == [0]


def test_the_prompt_cache_makes_a_prompt_once_for_concurrent_requests() -> None:
    async def main() -> None:
        cache, made = PromptCache(2), []

        async def make() -> str:
            made.append(1)
            await asyncio.sleep(0.01)
            return f"prompt {len(made)}"

        assert await asyncio.gather(*(cache.get("a", make) for _ in range(5))) == ["prompt 1"] * 5
        assert await cache.get("a", make) == "prompt 1"
        await cache.get("b", make)
        await cache.get("c", make)
        assert await cache.get("a", make) == "prompt 4", "the oldest is dropped"

    asyncio.run(main())


def test_a_failed_prompt_is_not_kept_and_a_cancelled_waiter_hurts_nobody() -> None:
    async def main() -> None:
        cache = PromptCache(4)

        async def fail() -> str:
            raise ArithmeticError("mine")

        async def slow() -> str:
            await asyncio.sleep(0.05)
            return "made"

        results = await asyncio.gather(*(cache.get("a", fail) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, ArithmeticError) for result in results)
        first = asyncio.ensure_future(cache.get("a", slow))
        second = asyncio.ensure_future(cache.get("a", slow))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "made"

    asyncio.run(main())


def test_no_streaming_without_decoders(loop: CaptionAgentLoop) -> None:
    assert loop._dispatcher is None
    del loop._dispatcher
    loop.rollout_config = OmegaConf.create({"custom": {STREAM_DISPATCHER: "x"}})
    assert loop._dispatcher == "x"


async def pictures_of(loop: CaptionAgentLoop, content: list[dict[str, Any]], name: str = "tiles") -> dict[str, Any]:
    """The pictures of a prompt, which ``run`` names."""
    _prompt.set(_Prompt(name))
    return await loop.process_multi_modal_info([{"role": "user", "content": content}])


def test_captions_of_a_prompt_share_its_pictures(loop: CaptionAgentLoop) -> None:
    """Pictures are told apart by identity where they are processed."""
    loop.processor = tiny.build("internvl")[1]
    contents = [[{"type": "image", "image": Image.new("RGB", (45, 33), color)}] for color in ("blue", "red")]

    async def main() -> list[dict[str, Any]]:
        blue, red = contents
        return [await pictures_of(loop, *each) for each in ((blue, "b"), (blue, "b"), (red, "r"), (red, "b"))]

    first, again, other, named = asyncio.run(main())
    assert first["images"][0] is again["images"][0] is named["images"][0] and first is not again
    assert other["images"][0] is contents[1][0]["image"]


def test_pictures_of_tiles_are_not_resized_and_vllm_expands_the_prompt_itself(loop: CaptionAgentLoop) -> None:
    loop.processor = tiny.build("internvl")[1]
    image = Image.new("RGB", (45, 33), "blue")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "describe"}]
    found = asyncio.run(pictures_of(loop, content))
    assert found == {"images": [image]}
    asked: list[dict[str, Any]] = []

    class Client:
        async def generate(self, **request: Any) -> str:
            asked.append(request)
            return "answer"

    processor = loop.processor
    start, token, end = processor.start_image_token_id, processor.image_token_id, processor.end_image_token_id
    client = _VLLMClient(Client(), processor)
    assert asyncio.run(client.generate(prompt_ids=[5, start, token, token, end, 6], request_id="r")) == "answer"
    assert asked == [{"prompt_ids": [5, token, 6], "request_id": "r"}]
