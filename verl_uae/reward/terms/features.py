# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Cosine of the features of a frozen network, which other terms may use too: the part every such term shares.

Shape legend: B samples, 3 colour channels, H W pixels, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence, Set

import torch
from torch import Tensor, nn

from verl_uae.reward.encodings import Encodings, Features, Outputs
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.term import RewardTerm, TermContext


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


class EncoderTerm(FeatureTerm):
    """A feature term with a frozen network, which it shares with the scorer's other terms of equal :attr:`settings`.

    Subclasses set ``model`` and ``mode`` and give :attr:`settings` and :meth:`outputs`.
    """

    model: nn.Module
    mode: str
    """Which of the network's outputs is compared."""

    #: Without a scorer nothing is shared or kept.
    _encodings: Encodings | None = None

    @property
    @abstractmethod
    def settings(self) -> Hashable:
        """What the outputs depend on besides the picture: network, revision, dtype, size. Not the mode."""

    @abstractmethod
    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Outputs:
        """The named outputs of one forward pass, for pictures in [0, 1] of any size. Differentiable."""

    def setup(self, context: TermContext) -> None:
        """Move the network, or take that of a term with equal settings."""
        self.model.to(context.device)
        self._encodings = context.encodings
        context.encodings.join(self)

    def embed(self, images_B3HW: Tensor) -> Features:
        """The outputs of this term's mode."""
        return self.outputs(images_B3HW, {self.mode})[self.mode]

    def source_features(self, batch: RewardBatch) -> Features:
        """Features of the source pictures, from the cache where the scorer keeps one."""
        if self._encodings is None or torch.is_grad_enabled():
            return super().source_features(batch)
        return self._encodings.source(self, batch)

    def reconstruction_features(self, batch: RewardBatch) -> Features:
        """Features of the reconstructions; one forward pass for all terms of the scorer with equal settings."""
        if self._encodings is None or torch.is_grad_enabled():
            return self.embed(batch.reconstruction_B3HW)
        return self._encodings.reconstruction(self, batch)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [-1, 1]."""
        return feature_similarity(self.source_features(batch), self.reconstruction_features(batch))
