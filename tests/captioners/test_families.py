# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What has to hold for a captioner of every family; the reference is the model called by the test alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from verl.utils.tokenizer import hf_processor

from tests.captioners import tiny
from verl_uae.caption_server.types import CaptionRequest, CaptionRequestError
from verl_uae.captioners import (
    FAMILIES,
    as_model_takes,
    as_vllm_takes,
    family_of,
    positions,
    prompt_pictures,
    prompt_size,
    vision_towers,
)
from verl_uae.chain.captioner import caption_messages, prompt_inputs, write_captions
from verl_uae.chain.conditioner import Conditioner
from verl_uae.checkpoints.load import load_processor
from verl_uae.engines.captioner import freeze_vision_tower
from verl_uae.engines.model_config import CaptionerConfig
from verl_uae.errors import CheckpointError
from verl_uae.families.sd3 import SD3
from verl_uae.families.text import language_stack
from verl_uae.stages.cold_start.captioner import CaptionBatcher, CaptionerModule, messages_with
from verl_uae.stages.common.captions import CaptionSettings, FrozenCaptioner

SIZES = [(32, 32), (64, 32), (32, 64), (45, 70), (20, 20), (96, 33)]


def picture(seed: int) -> Image.Image:
    width, height = SIZES[seed % len(SIZES)]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PROMPTS = [caption_messages(picture(seed), "<image>describe", "red " * (seed % 3)) for seed in range(6)]
CAPTIONS = ["a red circle", "a large blue square", "a circle"]


@pytest.fixture(scope="module", params=tiny.NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return tiny.build(name)[0]


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return load_processor(folder)


@pytest.fixture(scope="module")
def frozen(folder: Path) -> FrozenCaptioner:
    settings = CaptionSettings(seed=0, prompt_length=64, response_length=8, batch_size=8)
    return FrozenCaptioner(str(folder), settings)


def requests_of(frozen: FrozenCaptioner) -> list[CaptionRequest]:
    requests = []
    for seed, messages in enumerate([*PROMPTS, *PROMPTS[:2]]):
        ids, images = frozen.prompt_tokens(messages)
        requests.append(CaptionRequest(ids, seed, images, temperature=(1.0, 0.7, 0.0)[seed % 3]))
    return requests


@torch.no_grad()
def own_logits(model: Any, processor: Any, messages: Any, response: list[int]) -> torch.Tensor:
    """(T, V) of a response after its prompt: the processor's inputs, unpadded, positions found by the model itself."""
    inputs = dict(prompt_inputs(processor, [messages]))
    added = torch.tensor([response])
    count = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], added], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(added)], 1)
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    return model(**inputs, use_cache=False).logits[0, count - 1 : -1].float()


def test_log_probs_of_the_server_are_the_models(frozen: FrozenCaptioner, model: Any, processor: Any) -> None:
    requests = requests_of(frozen)
    for request, messages, result in zip(
        requests, [*PROMPTS, *PROMPTS[:2]], frozen.engine.generate(requests), strict=True
    ):
        assert not isinstance(result, CaptionRequestError), result
        logits = own_logits(model, processor, messages, result.token_ids) / (request.temperature or 1.0)
        expected = logits.log_softmax(-1).gather(1, torch.tensor(result.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(result.log_probs), expected, atol=1e-4, rtol=0)


def test_a_caption_of_the_server_does_not_depend_on_its_company(frozen: FrozenCaptioner) -> None:
    requests = requests_of(frozen)
    alone = [frozen.engine.generate([request])[0] for request in requests]
    assert frozen.engine.generate(requests) == alone
    assert frozen.engine.generate(requests[::-1]) == alone[::-1]
    assert len({tuple(result.token_ids) for result in alone}) > len(alone) // 2


def test_a_picture_changes_what_follows(frozen: FrozenCaptioner, model: Any, processor: Any) -> None:
    (word,) = processor.tokenizer("red")["input_ids"]
    first, other = (
        own_logits(model, processor, caption_messages(image, "<image>describe", ""), [word])
        for image in (picture(0), Image.new("RGB", (32, 32), "red"))
    )
    assert (first - other).abs().max() > 1e-2


def test_greedy_captions_are_those_of_transformers(frozen: FrozenCaptioner, model: Any, processor: Any) -> None:
    """``generate`` has its own masks, positions and cache, in a padded batch and alone."""
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[4]]
    expected = [caption.text for caption in frozen.write(asked, [{}] * len(asked))]
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0, "generators": [torch.Generator()]}
    for size in (1, 3):
        batches = [asked[start : start + size] for start in range(0, 3, size)]
        found = [write_captions(model, processor, rows, device=torch.device("cpu"), **options) for rows in batches]
        assert [text for texts in found for text in texts] == expected


def test_positions_are_those_that_the_model_finds(model: Any, processor: Any, name: str) -> None:
    inputs = dict(prompt_inputs(processor, PROMPTS))
    mask = inputs["attention_mask"].bool()
    known = {key: inputs[key] for key in ("pixel_values", "image_grid_thw") if key in inputs}
    found = positions(model, inputs["input_ids"], mask, known)
    if name == "internvl":
        assert found.shape[0] == 1
        for row, real in zip(found[0], mask, strict=True):
            assert row[real].tolist() == list(range(int(real.sum()))) and not row[~real].any()
    else:
        grids, starts = known["image_grid_thw"], inputs["mm_token_type_ids"]
        for row in range(len(PROMPTS)):
            expected = by_hand(starts[row][mask[row]].tolist(), grids[row].tolist())
            assert found[:, row][:, mask[row]].tolist() == expected and not found[:, row][:, ~mask[row]].any()
    with torch.no_grad():
        stated = model(**inputs, position_ids=as_model_takes(found), use_cache=False).logits
        if hasattr(model.model, "rope_deltas"):
            model.model.rope_deltas = None
        implied = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(stated[mask], implied[mask], atol=1e-5, rtol=0)


def by_hand(kinds: list[int], grid: list[int]) -> list[list[int]]:
    """Time, row and column of one picture among text, as M-RoPE defines them (arXiv 2409.12191, 2.1)."""
    _, height, width = (side // tiny.MERGE_SIZE if axis else side for axis, side in enumerate(grid))
    place: list[list[int]] = [[], [], []]
    start = seen = 0
    for kind in kinds:
        if kind:
            at = (start, start + seen // width, start + seen % width)
            seen += 1
        else:
            start, seen = (start + max(height, width), 0) if seen else (start, 0)
            at = (start,) * 3
            start += 1
        for axis, value in zip(place, at, strict=True):
            axis.append(value)
    return place


def test_prompts_of_training_and_of_the_pipeline_are_the_same(frozen: FrozenCaptioner, processor: Any) -> None:
    inputs = prompt_inputs(processor, PROMPTS)
    for ids, mask, messages in zip(inputs["input_ids"], inputs["attention_mask"], PROMPTS, strict=True):
        expected, images = frozen.prompt_tokens(messages)
        assert ids[mask.bool()].tolist() == expected
        (found,) = [part["image"] for part in messages[-1]["content"] if "image" in part]
        assert images[0].size == prompt_size(processor.image_processor, found.size, {})


def test_the_cold_start_measures_the_models_own_likelihood(frozen: FrozenCaptioner, model: Any, processor: Any) -> None:
    """A right-padded batch of three pictures against one forward of each alone."""
    batcher = CaptionBatcher(frozen.prompt_tokens, processor, model.config, 8, "cpu")
    images = [picture(seed) for seed in (0, 1, 4)]
    batch = batcher(images, CAPTIONS, [None] * 3)
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    with torch.no_grad():
        loss_B, _ = CaptionerModule(model)(batch.ids_BT, batch.mask_BT, batch.answer_BT, **batch.pictures)
    for row, image in enumerate(images):
        answer = batch.ids_BT[row][batch.answer_BT[row]].tolist()
        logits = own_logits(model, processor, messages_with(image), answer)
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
        torch.testing.assert_close(loss_B[row], expected, atol=1e-4, rtol=0)


def test_conditions_are_the_language_models_states(model: Any, processor: Any) -> None:
    conditioner = Conditioner(language_stack(model), processor.tokenizer, SD3({}, {}, length=20))
    condition, tokens = conditioner.encode(CAPTIONS), conditioner.tokenize(CAPTIONS)
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    for row in range(len(CAPTIONS)):
        real = tokens.attend_BT[row]
        with torch.no_grad():
            whole = model.model(input_ids=tokens.ids_BT[row : row + 1][:, real], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(condition.states[row][real], whole, atol=1e-5, rtol=0)


def test_nothing_between_pixels_and_language_model_trains(name: str) -> None:
    model, _ = tiny.build(name)
    frozen = freeze_vision_tower(model)
    still = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    language = {f"model.language_model.{key}" for key, _ in language_stack(model).named_parameters()} | {
        "lm_head.weight"
    }
    assert {key for key, _ in model.named_parameters()} - still == language
    assert frozen == sum(dict(model.named_parameters())[key].numel() for key in still) and vision_towers(model)


def test_wrong_pictures_are_named(frozen: FrozenCaptioner) -> None:
    ids, images = frozen.prompt_tokens(PROMPTS[0])
    (result,) = frozen.engine.generate([CaptionRequest(ids, 0, images * 2, request_id="two")])
    assert isinstance(result, CaptionRequestError) and "its 2 images need" in str(result)


def test_a_model_of_no_family_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"folder.*'llava', which is no captioner here.*Qwen3-VL \(qwen3_vl\)"):
        family_of("llava", "folder")
    assert {family_of(name, "folder").model_type for name in tiny.NAMES} == set(FAMILIES)


def test_vllm_is_given_the_prompt_as_the_template_has_it(name: str, processor: Any) -> None:
    """It makes the tokens of pictures itself; verl's server does the same for Qwen."""
    turns = caption_messages(picture(5), "<image>describe", None)
    expanded = prompt_inputs(processor, [turns])["input_ids"][0].tolist()
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    plain = processor.tokenizer(text)["input_ids"]
    assert expanded != plain
    assert as_vllm_takes(processor, expanded) == (plain if name == "internvl" else expanded)


def test_verls_model_section_has_a_processor_for_pictures(name: str, folder: Path, processor: Any) -> None:
    """Of InternVL too, for which verl builds none, and for a text that the image tokens are taken out of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (hf_processor(str(folder)) is None) is (name == "internvl"), "else model_config.py is not needed"
        found = CaptionerConfig(path=str(folder), override_config={"attn_implementation": "sdpa"}).processor
    turns = [caption_messages(picture(seed), "<image>describe", None) for seed in (3, 5)]
    expected = prompt_inputs(processor, turns)
    made = prompt_inputs(found, turns)
    assert made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in expected)
    images = [image for prompt in turns for image in prompt_pictures(processor, prompt)[0]]
    without = found(text=["describe"], images=images, return_tensors="pt")
    assert torch.equal(without["pixel_values"], expected["pixel_values"])
    assert without["input_ids"].tolist() == [processor.tokenizer("describe")["input_ids"]]


def test_the_section_saves_a_processor_that_transformers_loads(name: str, folder: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CaptionerConfig(
            path=str(folder), override_config={"attn_implementation": "sdpa"}, custom_chat_template="{{ 1 }}"
        )
    config.processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path)
    assert type(loaded).__module__.startswith("transformers.") and loaded.chat_template == "{{ 1 }}"
    assert loaded.tokenizer.get_vocab() == config.tokenizer.get_vocab()
