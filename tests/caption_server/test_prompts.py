# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from verl_uae.caption_server.engine import CaptionEngine
from verl_uae.caption_server.prompts import PromptBuilder, prefill_chunks
from verl_uae.caption_server.types import CaptionRequest, CaptionRequestError


@pytest.fixture
def builder(engine: CaptionEngine) -> PromptBuilder:
    return engine.prompts


def test_equal_prompts_have_equal_keys(builder: PromptBuilder, make_request: Callable[..., CaptionRequest]) -> None:
    key = builder.key(make_request(1, image=4))
    assert key == builder.key(make_request(2, image=4, temperature=0.5))
    assert key != builder.key(make_request(1, image=5))
    assert key != builder.key(make_request(1, image=4, words="describe red"))
    assert key != builder.key(make_request(1, image=4, processor_kwargs={"max_pixels": 256}))


def test_a_transposed_image_is_another_image(
    builder: PromptBuilder, make_request: Callable[..., CaptionRequest]
) -> None:
    plain = make_request(1, size=(32, 32), images=[Image.new("RGB", (16, 64))])
    other = make_request(1, size=(32, 32), images=[Image.new("RGB", (64, 16))])
    assert plain.images[0].tobytes() == other.images[0].tobytes()
    assert builder.key(plain) != builder.key(other)


def truncated_picture(tmp_path) -> Image.Image:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return Image.open(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_ids": []}, "empty"),
        ({"prompt_ids": [8] * 22}, "22 tokens, rollout.prompt_length is 21"),
        ({"prompt_ids": [8, 10_000]}, "outside the vocabulary"),
        ({"prompt_ids": [8, -1]}, "outside the vocabulary"),
        ({"images": ()}, "4 image tokens, its 0 images need 0"),
        ({"images": ["path.png"]}, "PIL images, got str"),
        ({"top_p": 2.0}, "top_p"),
        ({"processor_kwargs": {"patch_size": 0}}, "image processor failed"),
    ],
)
def test_bad_requests_are_named(builder, make_request, fields: dict[str, object], message: str) -> None:
    request = make_request(3, **fields)
    with pytest.raises(CaptionRequestError, match=f"r3.*{message}"):
        builder.key(request)
        builder.build(request)


def test_a_truncated_picture_is_named(builder, make_request, tmp_path) -> None:
    with pytest.raises(CaptionRequestError, match="r3: unreadable image"):
        builder.key(make_request(3, images=[truncated_picture(tmp_path)]))


def test_chunks_group_by_shape_and_fill_up(builder, make_request) -> None:
    requests = [make_request(n, image=n) for n in range(3)] + [make_request(9, image=None)]
    requests += [make_request(n, image=n, size=(64, 16)) for n in range(2)]
    prompts = [builder.build(request) for request in requests]
    chunks = list(prefill_chunks(prompts, 2, True))
    assert [chunk.members for chunk in chunks] == [(0, 1), (2,), (3,), (4, 5)]
    for chunk in chunks:
        assert chunk.input_ids_UL.shape == (2, 16)
        for row, member in enumerate(chunk.members):
            ids = chunk.input_ids_UL[row][chunk.valid_UL[row]]
            assert tuple(ids.tolist()) == prompts[member].token_ids
            assert chunk.valid_UL[row, -len(ids) :].all()
    lone = chunks[1]
    assert torch.equal(lone.input_ids_UL[0], lone.input_ids_UL[1])
    assert lone.pictures["pixel_values"].shape[0] == 2 * prompts[2].pictures["pixel_values"].shape[0]
    assert [len(c.input_ids_UL) for c in prefill_chunks(prompts, 2, False)] == [2, 1, 1, 2]
