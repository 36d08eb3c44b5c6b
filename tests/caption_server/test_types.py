# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.caption_server.types import CaptionRequest, CaptionRequestError


def build(**params: object) -> CaptionRequest:
    return CaptionRequest.from_sampling_params(params, prompt_ids=[1, 2], default_seed=5, request_id="req-9")


def test_verl_sampling_params_are_understood() -> None:
    # What AgentLoopWorker sends.
    request = build(temperature=0.5, top_p=0.9, top_k=-1, repetition_penalty=1.0, logprobs=True)
    assert (request.temperature, request.top_p, request.top_k, request.seed, request.max_tokens) == (
        0.5,
        0.9,
        -1,
        5,
        None,
    )
    assert build(seed=11, max_tokens=3, ignore_eos=True) == CaptionRequest(
        [1, 2], 11, max_tokens=3, ignore_eos=True, request_id="req-9"
    )
    assert build(max_new_tokens=4).max_tokens == 4


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_bad_parameters_name_themselves_and_the_request(params: dict[str, object], word: str) -> None:
    with pytest.raises(CaptionRequestError, match=f"req-9.*{word}"):
        build(**params)
