# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Two judges for pairwise preference: which of two reconstructions is the better one of a source picture?

``prefer`` compares blurred errors and needs nothing else. ``prefer_by_judge`` asks a vision-language model behind any
OpenAI-compatible endpoint (``vllm serve MODEL``), the way preference rewards are used in practice. Configure one with

    {name: preference, weight: 0.5, params: {path: rewards/preference_pair.py, name: prefer}}
"""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import httpx
import numpy as np
from PIL import Image

QUESTION = (
    "The first picture is an original. The second (A) and the third (B) are attempts to redraw it from a description. "
    "Which one shows the same things, in the same places, with the same attributes? Answer with one letter: A, B, or T "
    "if you cannot tell."
)
PROBABILITIES = {"A": 1.0, "B": 0.0, "T": 0.5}


def prefer(
    source: Image.Image,
    first: Image.Image,
    second: Image.Image,
    first_caption: str,
    second_caption: str,
    row: dict[str, Any],
    temperature: float = 0.01,
    blocks: int = 8,
) -> float:
    """Bradley-Terry probability that ``first`` is better, from mean squared errors of pictures of few pixels.

    Args:
        source: the original.
        first: a reconstruction.
        second: another one.
        first_caption: what ``first`` was drawn from. Not used.
        second_caption: what ``second`` was drawn from. Not used.
        row: the data row. Not used.
        temperature: difference of errors that makes the odds e to 1; errors are in [0, 1].
        blocks: side in pixels the pictures are averaged down to, so that small shifts do not count.
    """
    original, one, other = (_small(image, blocks) for image in (source, first, second))
    lead = np.square(other - original).mean() - np.square(one - original).mean()
    return float(1.0 / (1.0 + np.exp(-lead / temperature)))


async def prefer_by_judge(
    source: Image.Image,
    first: Image.Image,
    second: Image.Image,
    first_caption: str,
    second_caption: str,
    row: dict[str, Any],
    url: str = "http://localhost:8000/v1",
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    token_variable: str = "JUDGE_TOKEN",
    timeout_s: float = 30.0,
) -> float | None:
    """Ask a model; None, hence a comparison that failed, for an answer that is none of the three letters.

    Args:
        source: the original.
        first: a reconstruction, shown as A.
        second: another one, shown as B. Leave ``both_orders`` on: judges prefer a place.
        first_caption: not shown. A caption is written by the policy, which could learn to talk to the judge.
        second_caption: not shown.
        row: the data row. Not used.
        url: base of the endpoint.
        model: its name there.
        token_variable: environment variable with the token, if one is needed.
        timeout_s: of the request; keep it below ``uae.reward.timeout_s``.
    """
    pictures = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in (source, first, second)]
    content = [*pictures, {"type": "text", "text": QUESTION}]
    body = {"model": model, "temperature": 0.0, "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
    token = os.environ.get(token_variable)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client:
        answer = await client.post(f"{url}/chat/completions", json=body, headers=headers)
    if answer.status_code != 200:
        # Not raise_for_status, whose text repeats what the server said, which may be the token.
        raise RuntimeError(f"the judge answered HTTP {answer.status_code}")
    return PROBABILITIES.get(answer.json()["choices"][0]["message"]["content"].strip())


def _small(image: Image.Image, blocks: int) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((blocks, blocks), Image.Resampling.BOX), dtype=np.float64) / 255.0


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
