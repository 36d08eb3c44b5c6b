# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Feature terms whose network other terms may use too.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Set

import torch
from torch import Tensor, nn

from verl_uae.reward.encodings import Encodings
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.term import TermContext
from verl_uae.reward.terms.features import Features, FeatureTerm, feature_similarity


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
    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Mapping[str, Features]:
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
