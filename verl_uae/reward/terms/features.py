# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cosine of the features of a frozen network: the part every such term shares.

Shape legend: B samples, 3 colour channels, H W pixels, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.term import RewardTerm

#: One tensor per stage of a network, each (B, ...).
Features = tuple[Tensor, ...]


def cosine(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Cosine similarity per sample in fp32, shape (B,), in [-1, 1].

    NaN where a vector is zero: such a picture has no direction to compare, and 0 would be an opinion.
    """
    a_BD, b_BD = a_BD.flatten(1).to(torch.float32), b_BD.flatten(1).to(torch.float32)
    # Each vector is made a unit vector first; the product of two norms could overflow or underflow.
    a_BD = a_BD / torch.linalg.vector_norm(a_BD, dim=1, keepdim=True)
    b_BD = b_BD / torch.linalg.vector_norm(b_BD, dim=1, keepdim=True)
    return (a_BD * b_BD).sum(dim=1).clamp(-1.0, 1.0)


def feature_similarity(a: Features, b: Features) -> Tensor:
    """Mean over stages of the cosine of the whole flattened stage.

    Flattening keeps the place of every feature, so a moved object costs; a pooled vector as the only stage does not
    see where things are.

    Args:
        a: features of one picture per sample, one tensor (B, ...) per stage.
        b: features to compare, same shapes.

    Returns:
        Similarity, shape (B,), in [-1, 1]; NaN where a stage is all zero. Differentiable.
    """
    stages: Sequence[Tensor] = [cosine(stage_a, stage_b) for stage_a, stage_b in zip(a, b, strict=True)]
    return torch.stack(list(stages)).mean(dim=0)


class FeatureTerm(RewardTerm):
    """A term that compares features of source and reconstruction.

    Subclasses give :meth:`embed`. It must not switch gradients off: the scorer does, and training through the
    reward needs them. To keep source features between steps, override :meth:`source_features`.
    """

    bounds = (-1.0, 1.0)

    @abstractmethod
    def embed(self, images_B3HW: Tensor) -> Features:
        """Features of pictures in [0, 1] of any size, one tensor (B, ...) per stage."""

    def source_features(self, batch: RewardBatch) -> Features:
        """Features of the source pictures; the place for a cache keyed by the picture's digest."""
        return self.embed(batch.source_B3HW)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [-1, 1]."""
        return feature_similarity(self.source_features(batch), self.embed(batch.reconstruction_B3HW))
