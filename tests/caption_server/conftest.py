# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The scenes' tiny captioner on disk, and requests for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from verl_uae.caption_server.engine import CaptionEngine
from verl_uae.caption_server.types import CaptionRequest
from verl_uae.scenes.tiny_models import build_captioner
from verl_uae.scenes.tokenizer import build_processor

PROMPT_LENGTH, RESPONSE_LENGTH = 21, 11


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit comparisons hold for one intra-op thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    processor = build_processor()
    processor.save_pretrained(folder)
    build_captioner(0, processor.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processor(model_dir: Path) -> Any:
    return build_processor()


@pytest.fixture(scope="session")
def make_engine(model_dir: Path) -> Callable[..., CaptionEngine]:
    def make(**options: Any) -> CaptionEngine:
        return CaptionEngine(
            str(model_dir), **{"prompt_length": PROMPT_LENGTH, "response_length": RESPONSE_LENGTH, **options}
        )

    return make


@pytest.fixture(scope="session")
def engine(make_engine: Callable[..., CaptionEngine]) -> CaptionEngine:
    """Shared; tests must not change it."""
    return make_engine()


def picture(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def make_request(processor: Any) -> Callable[..., CaptionRequest]:
    """make(seed, image=0, size=(32, 32), words="describe", **fields): image None gives a text prompt."""

    def make(
        seed: int, image: int | None = 0, size: tuple[int, int] = (32, 32), words: str = "describe", **fields: Any
    ) -> CaptionRequest:
        images = [] if image is None else [picture(image, *size)]
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": words}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids = processor(text=[text], images=images or None)["input_ids"][0]
        return CaptionRequest(**{"prompt_ids": ids, "seed": seed, "images": images, "request_id": f"r{seed}", **fields})

    return make


@pytest.fixture(scope="session")
def mixed_requests(make_request: Callable[..., CaptionRequest]) -> list[CaptionRequest]:
    """Requests that differ in image, image shape, prompt length, temperature and filters; some share a prompt."""
    requests = [make_request(seed, image=seed // 3) for seed in range(12)]
    requests += [make_request(100 + seed, image=seed, size=(64, 16)) for seed in range(3)]
    requests += [make_request(200 + n, image=None, words="red " * n) for n in range(1, 6)]
    requests += [make_request(300, temperature=0.0), make_request(301, temperature=0.7, top_k=5)]
    requests += [make_request(302, temperature=1.3, top_p=0.8), make_request(303, ignore_eos=True)]
    return requests
