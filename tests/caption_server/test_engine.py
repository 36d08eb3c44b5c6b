# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from verl_uae.caption_server.engine import CaptionEngine
from verl_uae.caption_server.types import CaptionRequest, CaptionRequestError, CaptionResult
from verl_uae.chain.captioner import banned_tokens
from verl_uae.compat import ensure_torchvision


@pytest.fixture(scope="module")
def trainer_model(model_dir: Path) -> Any:
    ensure_torchvision()
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(model_dir).eval()


@torch.no_grad()
def teacher_forced(model: Any, processor: Any, request: CaptionRequest, result: CaptionResult) -> torch.Tensor:
    """log_softmax(logits / temperature) of the response in one unpadded forward pass, as verl's actor does it."""
    prompt, response = list(request.prompt_ids), result.token_ids
    ids = torch.tensor([prompt + response])
    vision = dict(processor.image_processor(images=request.images, return_tensors="pt")) if request.images else {}
    position_ids, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        image_grid_thw=vision.get("image_grid_thw"),
        attention_mask=torch.ones_like(ids),
    )
    logits = model(ids, attention_mask=torch.ones_like(ids), position_ids=position_ids, **vision).logits[0]
    scaled = logits[len(prompt) - 1 : -1] / (request.temperature or 1.0)
    return torch.log_softmax(scaled.float(), -1).gather(1, torch.tensor(response)[:, None])[:, 0]


def test_log_probs_match_the_trainer(engine, trainer_model, processor, mixed_requests) -> None:
    results = engine.generate(mixed_requests)
    for request, result in zip(mixed_requests, results, strict=True):
        expected = teacher_forced(trainer_model, processor, request, result)
        torch.testing.assert_close(torch.tensor(result.log_probs), expected, atol=1e-4, rtol=0)


def test_greedy_matches_transformers_generate(engine, trainer_model, processor, make_request) -> None:
    request = make_request(0, image=3, temperature=0.0)
    (result,) = engine.generate([request])
    ids = torch.tensor([request.prompt_ids])
    expected = trainer_model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == trainer_model.config.image_token_id).int(),
        **processor.image_processor(images=request.images, return_tensors="pt"),
        do_sample=False,
        temperature=None,
        top_k=None,
        max_new_tokens=engine.response_length,
    )[0, ids.shape[1] :]
    assert result.token_ids == expected.tolist()


@pytest.mark.parametrize(
    "options", [{}, {"attn_implementation": "eager"}, {"max_batch_size": 5, "prefill_batch_size": 3}]
)
def test_a_caption_does_not_depend_on_its_company(make_engine, mixed_requests, options: dict[str, Any]) -> None:
    engine = make_engine(**options)
    alone = [engine.generate([request])[0] for request in mixed_requests]
    assert len({tuple(result.token_ids) for result in alone}) > len(alone) // 2
    generator = random.Random(0)
    for size in (2, 3, 7, len(mixed_requests), len(mixed_requests)):
        order = generator.sample(range(len(mixed_requests)), size)
        together = engine.generate([mixed_requests[index] for index in order])
        # Equality of lists of floats: bit for bit.
        assert together == [alone[index] for index in order]


def test_every_row_position_gives_the_same_caption(engine, make_request) -> None:
    wanted = make_request(5, image=1)
    (alone,) = engine.generate([wanted])
    others = [make_request(1000 + n, image=n % 5) for n in range(engine.max_batch_size - 1)]
    for position in (0, 1, 31, 32, 62, 63):
        batch = [*others[:position], wanted, *others[position:]]
        assert engine.generate(batch)[position] == alone


def test_seeds_name_captions(engine, make_request) -> None:
    captions = [engine.generate([make_request(seed)])[0].token_ids for seed in (1, 1, 2, 3)]
    assert captions[0] == captions[1]
    assert len({tuple(caption) for caption in captions}) == 3


def test_ends_at_eos_or_at_the_limit(engine, make_request) -> None:
    eos = engine.tokenizer.eos_token_id
    results = engine.generate([make_request(seed) for seed in range(200)])
    ended = [result for result in results if eos in result.token_ids]
    assert 0 < len(ended) < len(results)
    assert all(result.token_ids.index(eos) == len(result.token_ids) - 1 for result in ended)
    assert all(len(r.token_ids) == engine.response_length for r in results if eos not in r.token_ids)
    assert all(len(r.token_ids) == len(r.log_probs) and r.stop_reason == "completed" for r in results)
    # The same seeds with ignore_eos go on, and agree up to the eos.
    longer = engine.generate([make_request(seed, ignore_eos=True) for seed in range(200)])
    assert all(len(result.token_ids) == engine.response_length for result in longer)
    assert all(a.token_ids == b.token_ids[: len(a.token_ids)] for a, b in zip(results, longer, strict=True))


def test_max_tokens_cuts_without_changing_the_draws(engine, make_request) -> None:
    full, cut, beyond = engine.generate([make_request(4, ignore_eos=True, max_tokens=m) for m in (None, 3, 1000)])
    assert cut.token_ids == full.token_ids[:3] and cut.log_probs == full.log_probs[:3]
    assert beyond == full


def test_only_words_and_eos_are_sampled(engine, make_request) -> None:
    from verl_uae.scenes.tokenizer import unsayable_ids

    assert set(unsayable_ids(engine.tokenizer)) <= set(engine.banned_V.nonzero().flatten().tolist())
    assert not engine.banned_V[engine.tokenizer.eos_token_id]
    # Hot sampling is all but uniform.
    results = engine.generate([make_request(seed, temperature=50.0, ignore_eos=True) for seed in range(64)])
    drawn = {token for result in results for token in result.token_ids}
    assert drawn == set((~engine.banned_V).nonzero().flatten().tolist())


def test_special_tokens_are_banned_without_a_suppress_list(make_engine) -> None:
    engine = make_engine()
    engine.model.generation_config.suppress_tokens = None
    banned = set(
        banned_tokens(engine.config, engine.model.generation_config, engine.tokenizer).nonzero().flatten().tolist()
    )
    tokenizer = engine.tokenizer
    assert banned == set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") in banned


def test_a_failing_request_costs_only_itself(engine, make_request) -> None:
    good = [make_request(seed, image=seed) for seed in range(3)]
    bad = [make_request(7, prompt_ids=[8] * 40), make_request(8, images=[]), make_request(9, images=["x"])]
    results = engine.generate([good[0], bad[0], good[1], bad[1], bad[2], good[2]])
    assert [results[i] for i in (0, 2, 5)] == [engine.generate([request])[0] for request in good]
    for index, name in ((1, "r7"), (3, "r8"), (4, "r9")):
        assert isinstance(results[index], CaptionRequestError) and name in str(results[index])
    assert engine.generate([]) == []
    assert isinstance(engine.generate([bad[0]])[0], CaptionRequestError)


def test_more_requests_than_rows(make_engine: Callable[..., CaptionEngine], engine, make_request) -> None:
    requests = [make_request(seed, image=seed % 4) for seed in range(11)]
    results = make_engine(max_batch_size=4).generate(requests)
    assert [result.token_ids for result in results] == [result.token_ids for result in engine.generate(requests)]


def test_stopping_returns_what_there_is(engine, make_request) -> None:
    polls = iter([False, False, False, True])
    (result,) = engine.generate([make_request(4, ignore_eos=True)], lambda: next(polls))
    (full,) = engine.generate([make_request(4, ignore_eos=True)])
    assert result == CaptionResult(full.token_ids[:3], full.log_probs[:3], "aborted")
    assert engine.generate([make_request(4)], lambda: True) == [CaptionResult([], [], "aborted")]


def test_broken_weights_are_loud(make_engine, make_request) -> None:
    engine = make_engine()
    with torch.no_grad():
        engine.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.generate([make_request(1)])


def test_bfloat16(make_engine, make_request) -> None:
    results = make_engine(dtype=torch.bfloat16).generate([make_request(seed) for seed in range(3)])
    assert all(isinstance(result, CaptionResult) and result.token_ids for result in results)
