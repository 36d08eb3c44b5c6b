# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from verl_uae.caption_server.engine import BatchSampler
from verl_uae.caption_server.types import CaptionRequest

VOCAB = 12
CPU = torch.device("cpu")
NO_BAN = torch.zeros(VOCAB, dtype=torch.bool)


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def request(seed: int, **fields: object) -> CaptionRequest:
    return CaptionRequest(prompt_ids=[1], seed=seed, **fields)


def test_frequencies_follow_the_tempered_distribution() -> None:
    rows, steps, temperature = 400, 50, 0.8
    logits_RV = logits(1).expand(rows, VOCAB)
    sampler = BatchSampler([request(seed, temperature=temperature) for seed in range(rows)], rows, steps, NO_BAN, CPU)
    tokens = torch.cat([sampler.sample(logits_RV, step)[0] for step in range(steps)])
    observed = torch.bincount(tokens, minlength=VOCAB)
    expected = torch.softmax(logits_RV[0] / temperature, dim=-1) * len(tokens)
    chi_square = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_square < 31.3  # 99.9 % point of 11 degrees of freedom


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (-1, 0.7), (4, 0.6), (0, 0.05)])
def test_filters_match_transformers(top_k: int, top_p: float) -> None:
    rows = 64
    logits_RV = logits(rows, seed=1)
    sampler = BatchSampler([request(0, top_k=top_k, top_p=top_p)] * rows, rows, 1, NO_BAN, CPU)
    expected = logits_RV.clone()
    if top_k > 0:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    assert torch.equal(sampler._keep(logits_RV), expected.isfinite())


def test_filtered_and_unfiltered_rows_share_a_batch_without_influence() -> None:
    logits_RV = logits(2, seed=2)
    requests = [request(7), request(8, top_k=1)]
    together = BatchSampler(requests, 2, 20, NO_BAN, CPU)
    alone = BatchSampler(requests[:1], 2, 20, NO_BAN, CPU)
    for step in range(20):
        token_R, log_prob_R = together.sample(logits_RV, step)
        assert token_R[1] == logits_RV[1].argmax()
        alone_token_R, alone_log_prob_R = alone.sample(logits_RV, step)
        assert token_R[0] == alone_token_R[0] and log_prob_R[0] == alone_log_prob_R[0]


def test_banned_tokens_are_never_drawn_and_leave_the_log_probs_alone() -> None:
    logits_RV = logits(8, seed=3)
    banned_V = torch.zeros(VOCAB, dtype=torch.bool)
    banned_V[logits_RV[0].topk(VOCAB - 2).indices] = True
    requests = [request(seed, temperature=0.5) for seed in range(7)] + [request(7, temperature=0.0)]
    sampler = BatchSampler(requests, 8, 40, banned_V, CPU)
    temperature_R = torch.tensor([0.5] * 7 + [1.0])
    expected_RV = torch.log_softmax(logits_RV / temperature_R[:, None], dim=-1)
    for step in range(40):
        token_R, log_prob_R = sampler.sample(logits_RV, step)
        assert not banned_V[token_R].any()
        assert torch.equal(log_prob_R, expected_RV.gather(1, token_R[:, None])[:, 0])


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_extreme_draws_hit_allowed_tokens(uniform: float) -> None:
    banned_V = torch.ones(VOCAB, dtype=torch.bool)
    banned_V[3:6] = False
    sampler = BatchSampler([request(0)] * 64, 64, 1, banned_V, CPU)
    sampler.uniform_RT.fill_(uniform)
    token_R, _ = sampler.sample(logits(64, seed=4), 0)
    assert torch.equal(token_R, torch.full((64,), 3 if uniform == 0.0 else 5))


def test_a_seed_fixes_the_draws_whatever_the_row() -> None:
    logits_RV = logits(1, seed=5).expand(4, VOCAB)
    one = BatchSampler([request(1), request(2), request(3)], 4, 30, NO_BAN, CPU)
    other = BatchSampler([request(3), request(1)], 4, 30, NO_BAN, CPU)
    drawn = torch.stack([one.sample(logits_RV, step)[0] for step in range(30)])
    again = torch.stack([other.sample(logits_RV, step)[0] for step in range(30)])
    assert torch.equal(drawn[:, 0], again[:, 1]) and torch.equal(drawn[:, 2], again[:, 0])
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
