# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.chain.conftest import picture
from verl_uae.chain.captioner import TokenChoice, caption_messages, prompt_inputs
from verl_uae.chain.pipeline import UAEPipeline
from verl_uae.data.schema import SYSTEM_PROMPT, USER_PROMPT, make_prompt
from verl_uae.errors import CheckpointError
from verl_uae.stages.common.captions import CaptionSettings, FrozenCaptioner, PromptSettings, PromptTokens

SIZES = [(32, 32), (45, 70), (90, 33), (20, 20)]
IMAGES = [picture(seed, *size) for seed, size in enumerate(SIZES)]


def test_messages_are_those_that_verls_dataset_makes_of_a_row() -> None:
    """The `<image>` is cut out of the text and nothing else is; verl does so in RLHFDataset._build_messages."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    class Row(RLHFDataset):
        def __init__(self) -> None:
            self.processor, self.prompt_key, self.image_key = object(), "prompt", "images"
            self.video_key, self.audio_key = "videos", "audios"

    for user, system in ((USER_PROMPT, SYSTEM_PROMPT), ("<image>describe", None), ("Look: <image> well?", None)):
        row = {"prompt": make_prompt(user, system), "images": [IMAGES[0]]}
        expected = Row()._build_messages(row, "prompt")
        found = caption_messages(IMAGES[0], user, system)
        assert [turn["role"] for turn in found] == [turn["role"] for turn in expected]
        for ours, theirs in zip(found[-1]["content"], expected[-1]["content"], strict=True):
            assert ours["type"] == theirs["type"] and ours.get("text") == theirs.get("text")
    with pytest.raises(ValueError, match="more than one <image>"):
        caption_messages(IMAGES[0], "<image> and <image>", None)


def test_prompts_are_those_of_training(pipe: UAEPipeline) -> None:
    """Token ids of the builder that verl's agent loops use, per picture; padding is on the left and masked."""
    tokens = PromptTokens(pipe.processor, pipe.captioner.config.model_type, PromptSettings())
    prompts = [caption_messages(image, "<image>describe", "red") for image in IMAGES]
    inputs = prompt_inputs(pipe.processor, prompts)
    lengths = set()
    for ids, mask, messages in zip(inputs["input_ids"], inputs["attention_mask"], prompts, strict=True):
        expected, _ = tokens(messages)
        assert ids[mask.bool()].tolist() == expected and mask.tolist() == sorted(mask.tolist())
        lengths.add(len(expected))
    assert len(lengths) > 1


def test_greedy_captions_are_those_of_the_caption_engine(pipe: UAEPipeline, captioner_folder: Path) -> None:
    """The engine has its own prefill, cache and decoding loop."""
    engine = FrozenCaptioner(str(captioner_folder), CaptionSettings(seed=0, prompt_length=64, response_length=10))
    asked = [caption_messages(image, "<image>describe", "") for image in IMAGES]
    expected = [caption.text for caption in engine.write(asked, [{}] * len(asked))]
    assert pipe.caption(IMAGES, max_new_tokens=10) == expected
    assert pipe.caption(IMAGES, max_new_tokens=10, batch_size=3) == expected
    assert len(set(expected)) > 1


def test_the_checkpoints_sampling_defaults_do_not_count(pipe: UAEPipeline) -> None:
    """Qwen2.5-VL ships a repetition penalty; training knows none."""
    before = pipe.caption(IMAGES, max_new_tokens=10)
    pipe.captioner.generation_config.repetition_penalty = 1e6
    pipe.captioner.generation_config.no_repeat_ngram_size = 1
    pipe.captioner.generation_config.num_return_sequences = 3
    pipe.captioner.generation_config.stop_strings = ["a"]
    assert pipe.caption(IMAGES, max_new_tokens=10) == before
    assert pipe.captioner.generation_config.num_return_sequences == 3


def test_a_processor_without_pictures_is_named(pipe: UAEPipeline) -> None:
    """What transformers gives where it does not know the class that the folder names."""
    pipe.processor = pipe.processor.tokenizer
    with pytest.raises(CheckpointError, match=r"its processor, .*, takes no pictures"):
        pipe.caption(IMAGES)


def test_tokens_are_drawn_from_the_tempered_softmax() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0, 3.0]]).expand(20_000, 4)
    banned = torch.tensor([False, False, False, True])
    chosen = TokenChoice(banned, 0.7, [torch.Generator().manual_seed(0)])(torch.zeros(0), scores).argmax(-1)
    share = torch.bincount(chosen, minlength=4) / len(scores)
    expected = torch.tensor([1.0, 0.0, -1.0, -torch.inf]).div(0.7).softmax(-1)
    # Three standard deviations of a share of 20 000 draws are 0.011.
    assert torch.allclose(share, expected, atol=0.011) and share[3] == 0
    greedy = TokenChoice(banned, 0.0, [])(torch.zeros(0), scores[:1])
    assert greedy.tolist() == [[1.0, 0.0, -1.0, -torch.inf]]
