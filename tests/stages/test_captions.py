# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoProcessor
from verl.experimental.agent_loop.agent_loop import DictConfigWrap
from verl.workers.rollout.replica import TokenOutput

from verl_uae.caption_server.types import CaptionRequest, CaptionResult
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.records import CAPTION_FIELD, Caption
from verl_uae.data.dataset import UAEDataset
from verl_uae.data.images import image_digest
from verl_uae.families.sd3 import SD3
from verl_uae.reward.record import Status
from verl_uae.seeding import derive_seed
from verl_uae.stages.common.captions import (
    CaptionCache,
    CaptionSettings,
    FrozenCaptioner,
    Messages,
    PromptSettings,
    column_caption,
)
from verl_uae.stages.g4u.agent_loop import CaptionAgentLoop

SETTINGS: dict[str, Any] = {"seed": 7, "prompt_length": 64, "response_length": 8, "batch_size": 8}
SIZES = [(32, 32), (45, 70), (90, 33), (20, 20)]


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def prompt(image: Image.Image, text: str = "describe", **options: int) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image, **options}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


PROMPTS = [prompt(picture(seed, *size)) for seed, size in enumerate(SIZES)]
PROMPTS.append(prompt(picture(9, 80, 80), max_pixels=48 * 48))


@pytest.fixture(scope="module")
def captions(captioner_folder: Path) -> FrozenCaptioner:
    return FrozenCaptioner(str(captioner_folder), CaptionSettings(**SETTINGS))


@pytest.fixture(scope="module")
def sampled(captioner_folder: Path) -> FrozenCaptioner:
    return FrozenCaptioner(str(captioner_folder), CaptionSettings(**SETTINGS, do_sample=True, temperature=1.5))


class InProcess:
    """verl's server client, answering with an engine in this process; remembers what it was asked."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.asked: list[tuple[list[int], list[bytes]]] = []

    async def generate(self, prompt_ids: Any, image_data: Any, mm_processor_kwargs: Any, **rest: Any) -> TokenOutput:
        self.asked.append((list(prompt_ids), [image.tobytes() for image in image_data]))
        kwargs = dict(mm_processor_kwargs)
        request = CaptionRequest(prompt_ids, 0, list(image_data), temperature=0.0, processor_kwargs=kwargs)
        (result,) = self.engine.generate([request])
        return TokenOutput(token_ids=result.token_ids, log_probs=result.log_probs)


async def through_the_agent_loop(captions: FrozenCaptioner, captioner_folder: Path, server: InProcess) -> list[Caption]:
    rollout = {
        "name": "hf",
        "prompt_length": 64,
        "response_length": 8,
        "calculate_log_probs": True,
        "full_determinism": False,
    }
    uae = {"seed": 7, "rollout": {"timeout_s": 60.0, "seeded": True}}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "uae": uae})
    processor = AutoProcessor.from_pretrained(captioner_folder)
    loop = CaptionAgentLoop(
        DictConfigWrap(config),
        server,
        processor.tokenizer,
        processor,
        UAEDataset,
        DictConfigWrap(OmegaConf.create({})),
        hf_model_type="qwen2_5_vl",
    )
    outputs = [
        await loop.run({"temperature": 0.0}, raw_prompt=messages, global_steps=1, session_id=0) for messages in PROMPTS
    ]
    return [output.extra_fields[CAPTION_FIELD].content for output in outputs]


def written(captions: FrozenCaptioner, prompts: Sequence[Messages]) -> list[Caption]:
    """Captions of prompts whose rows say nothing of their pictures."""
    return captions.write(prompts, [{}] * len(prompts))


def test_prompts_and_greedy_captions_are_those_of_the_agent_loop(
    captions: FrozenCaptioner, captioner_folder: Path
) -> None:
    server = InProcess(captions.engine)
    expected = asyncio.run(through_the_agent_loop(captions, captioner_folder, server))
    built = [captions.prompt_tokens(messages) for messages in PROMPTS]
    assert [(ids, [image.tobytes() for image in images]) for ids, images in built] == server.asked
    image_token = captions.engine.config.image_token_id
    assert [ids.count(image_token) for ids, _ in built] == [4, 12, 12, 4, 9], "qwen_vl_utils resizes first"
    assert written(captions, PROMPTS) == expected
    assert len({state.text for state in expected}) > 1 and all(state.ok for state in expected)


def test_template_and_processor_arguments_reach_the_prompt(captioner_folder: Path) -> None:
    template = "{{ shout | default('') }}{% for m in messages %}<|image_pad|>describe{% endfor %}"
    settings = PromptSettings(template, {"shout": "red"}, {"max_pixels": 16 * 16, "min_pixels": 16 * 16})
    captions = FrozenCaptioner(str(captioner_folder), CaptionSettings(**SETTINGS, prompt=settings))
    ids, _ = captions.prompt_tokens(prompt(picture(0, 80, 80)))
    words = captions.engine.tokenizer.convert_ids_to_tokens(ids)
    assert words == ["red", "<|image_pad|>", "describe"]
    assert written(captions, [prompt(picture(0, 80, 80))])[0].ok


def test_a_caption_does_not_depend_on_the_others(sampled: FrozenCaptioner) -> None:
    together = written(sampled, PROMPTS)
    assert written(sampled, PROMPTS[::-1]) == together[::-1]
    assert [written(sampled, [messages])[0] for messages in PROMPTS] == together


def test_a_sampled_caption_is_named_by_run_seed_and_picture(sampled: FrozenCaptioner, captioner_folder: Path) -> None:
    ids, images = sampled.prompt_tokens(PROMPTS[0])
    digest = image_digest(picture(0))
    seed = derive_seed(7, "u4g caption", digest)
    (result,) = sampled.engine.generate([CaptionRequest(ids, seed, images, temperature=1.5)])
    (state,) = written(sampled, [PROMPTS[0]])
    expected = sampled.engine.tokenizer.decode(result.token_ids, skip_special_tokens=True).strip()
    assert state.text == expected and state.digest == digest and state.tokens == len(result.token_ids)
    assert sampled.write([PROMPTS[0]], [{"sha256": digest}]) == [state]
    settings = CaptionSettings(**{**SETTINGS, "seed": 8}, do_sample=True, temperature=1.5)
    other = FrozenCaptioner(str(captioner_folder), settings)
    assert written(other, [PROMPTS[0]])[0].text != state.text


def test_a_caption_without_end_is_cut(captions: FrozenCaptioner) -> None:
    eos = captions.engine.tokenizer.eos_token_id
    (word,) = captions.engine.tokenizer("red")["input_ids"]

    def cut(ids: list[int]) -> bool:
        return captions.writer._caption(CaptionResult(ids, [0.0] * len(ids)), "d").cut

    assert [cut([word] * 8), cut([word] * 7), cut([*[word] * 7, eos])] == [True, False, False]


def test_a_bad_prompt_costs_one_caption(captions: FrozenCaptioner) -> None:
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    truncated = Image.open(io.BytesIO(buffer.getvalue()[:-60]))
    bad = [
        prompt(truncated),
        [{"role": "user", "content": "text"}],
        prompt(picture(1), "red " * 80),
        prompt(picture(2, 900, 4)),
    ]
    mixed = [PROMPTS[0], bad[0], PROMPTS[1], bad[1], bad[2], PROMPTS[3], bad[3]]
    states = written(captions, mixed)
    assert [str(state.status) for state in states] == ["ok", "error", "ok", "error", "error", "ok", "error"]
    assert [states[0], states[2], states[5]] == written(captions, [PROMPTS[0], PROMPTS[1], PROMPTS[3]])
    reasons = [states[position].reason for position in (1, 3, 4, 6)]
    for reason, part in zip(reasons, ["OSError", "has no image", "prompt_length is 64", "aspect ratio"], strict=True):
        assert reason.startswith("caption: ") and part in reason
    assert all(states[position].text == "" and states[position].tokens == 0 for position in (1, 3, 4, 6))
    assert written(captions, []) == []


def test_a_shared_conditioner_is_the_loaded_one_without_its_memory(
    captions: FrozenCaptioner, captioner_folder: Path
) -> None:
    shared = captions.shared_conditioner(SD3({}, {}, length=20))
    loaded = Conditioner.from_pretrained(str(captioner_folder), SD3({}, {}, length=20))
    texts = ["a red circle", "", "red " * 40]
    one, other = shared.encode(texts), loaded.encode(texts)
    assert torch.equal(one.states, other.states)
    owned = {parameter.data_ptr() for parameter in captions.engine.model.parameters()}
    assert {parameter.data_ptr() for parameter in shared.parameters()} <= owned


def test_a_column_caption_comes_from_its_row() -> None:
    state = column_caption(PROMPTS[0], {"caption": " a red circle ", "index": 3})
    assert state.text == "a red circle" and state.ok and state.digest == image_digest(picture(0))
    for value in (None, "", "  ", 5):
        missing = column_caption(PROMPTS[0], {"caption": value, "index": 3})
        assert missing.status is Status.ERROR and missing.text == "" and missing.digest == state.digest
        assert missing.reason.startswith("row 3 has no extra_info.caption")
    assert column_caption([{"role": "user", "content": "text"}], {"caption": "x"}).status is Status.ERROR


def test_the_cache_keeps_what_was_used_last_and_no_failure() -> None:
    def state(caption: str, status: Status = Status.OK) -> Caption:
        return Caption(caption, "d", status, tokens=1)

    cache = CaptionCache(2)
    cache.put("a", state("a"))
    cache.put("b", state("b"))
    assert cache.get("a") == state("a")
    cache.put("c", state("c"))
    cache.put("d", state("", Status.ERROR))
    assert cache.get("b") is None and cache.get("d") is None
    assert cache.get("a") == state("a") and cache.get("c") == state("c")
    assert (cache.hits, cache.misses) == (3, 2)
