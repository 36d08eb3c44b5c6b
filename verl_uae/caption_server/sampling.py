# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Drawing tokens for a batch whose rows have their own seeds, temperatures and filters.

Shapes: R rows, T most tokens of a response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verl_uae.caption_server.types import CaptionRequest


class BatchSampler:
    """Samples one token per row and reports its log-probability.

    Two distributions are involved, on purpose:

    - *Sampling* uses softmax(logits / temperature) restricted by ``top_k``, ``top_p`` and the banned tokens.
    - *Reporting* uses log_softmax(logits / temperature) over the whole vocabulary, with no restriction. verl's
      actor computes exactly that when it re-evaluates a response, and knows of no ban and no filter: reporting
      the restricted distribution would put a constant mismatch into every importance ratio.

    Greedy rows (temperature 0) report log_softmax(logits).

    A row's draws come from a CPU generator of its own seed, one uniform number per token by inversion of the
    cumulative distribution in fp64, so they depend neither on the device nor on the other rows. Every step's
    arithmetic is row-wise.

    Args:
        requests: the requests of the first rows; the remaining rows are dummies.
        num_rows: R.
        num_steps: T, the engine's response length.
        banned_V: bool, True where a token must never be sampled.
        device: where the logits live.
    """

    def __init__(
        self,
        requests: Sequence[CaptionRequest],
        num_rows: int,
        num_steps: int,
        banned_V: Tensor,
        device: torch.device,
    ) -> None:
        self.banned_V = banned_V
        temperature_R = torch.ones(num_rows)
        greedy_R = torch.ones(num_rows, dtype=torch.bool)
        top_k_R = torch.full((num_rows,), len(banned_V))
        top_p_R = torch.ones(num_rows, dtype=torch.float64)
        uniform_RT = torch.zeros(num_rows, num_steps, dtype=torch.float64)
        for row, request in enumerate(requests):
            if request.temperature == 0:
                continue
            greedy_R[row] = False
            temperature_R[row] = request.temperature
            top_p_R[row] = request.top_p
            if request.top_k > 0:
                top_k_R[row] = min(request.top_k, len(banned_V))
            uniform_RT[row] = _uniform(request.seed, num_steps)
        self.filtered = bool((top_k_R < len(banned_V)).any() or (top_p_R < 1).any())
        self.all_greedy = bool(greedy_R.all())
        self.temperature_R1 = temperature_R[:, None].to(device)
        self.greedy_R = greedy_R.to(device)
        self.top_k_R1 = top_k_R[:, None].to(device)
        self.top_p_R1 = top_p_R[:, None].to(device)
        self.uniform_RT = uniform_RT.to(device)

    def sample(self, logits_RV: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Draw the tokens of one step.

        Args:
            logits_RV: (R, V) next-token logits, any float dtype.
            step: index of the step, in [0, T).

        Returns:
            token ids (R,) int64 and their log-probabilities (R,) fp32.
        """
        scaled_RV = logits_RV.float() / self.temperature_R1
        log_prob_RV = torch.log_softmax(scaled_RV, dim=-1)
        allowed_RV = scaled_RV.masked_fill(self.banned_V, -torch.inf)
        token_R = allowed_RV.argmax(dim=-1)
        if not self.all_greedy:
            if self.filtered:
                allowed_RV = allowed_RV.masked_fill(~self._keep(allowed_RV), -torch.inf)
            token_R = torch.where(self.greedy_R, token_R, self._invert(allowed_RV, step))
        return token_R, log_prob_RV.gather(-1, token_R[:, None])[:, 0]

    def _invert(self, scaled_RV: Tensor, step: int) -> Tensor:
        """The token at which the cumulative distribution passes the step's uniform number."""
        cdf_RV = torch.softmax(scaled_RV.double(), dim=-1).cumsum(dim=-1)
        total_R1 = cdf_RV[:, -1:]
        # Strictly below the total, else rounding could select a token of probability zero at the end.
        below_R1 = torch.nextafter(total_R1, torch.zeros_like(total_R1))
        target_R1 = torch.minimum(self.uniform_RT[:, step : step + 1] * total_R1, below_R1)
        # right=True skips entries equal to the target, that is tokens of probability zero.
        token_R1 = torch.searchsorted(cdf_RV, target_R1, right=True)
        return token_R1[:, 0].clamp_(max=cdf_RV.shape[-1] - 1)

    def _keep(self, scaled_RV: Tensor) -> Tensor:
        """(R, V) bool: tokens that top-k and top-p keep. Ties at the edge are broken by the lower token id."""
        sorted_RV, order_RV = scaled_RV.sort(dim=-1, descending=True, stable=True)
        in_top_k_RV = torch.arange(scaled_RV.shape[-1], device=scaled_RV.device) < self.top_k_R1
        # The nucleus is taken of what top-k leaves, renormalised, as in vLLM.
        prob_RV = torch.softmax(sorted_RV.masked_fill(~in_top_k_RV, -torch.inf).double(), dim=-1)
        before_RV = prob_RV.cumsum(dim=-1) - prob_RV
        # A row with top_p = 1 keeps all, whatever the cumulative sum rounds to.
        keep_RV = in_top_k_RV & ((before_RV < self.top_p_R1) | (self.top_p_R1 >= 1))
        return torch.zeros_like(keep_RV).scatter_(-1, order_RV, keep_RV)


def _uniform(seed: int, count: int) -> Tensor:
    """(count,) fp64 uniform numbers in [0, 1) of a seed."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
