# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``features``: cosine of image features, with the network as a parameter.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from verl_uae.errors import ConfigError
from verl_uae.reward.registry import get_reward
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.term import TermContext
from verl_uae.reward.terms.features import Features, FeatureTerm

BACKBONES = ("clip", "dinov2", "dinov3", "siglip2", "efficientnet_lite0")


class BackboneSimilarity(FeatureTerm):
    """The feature term named by ``backbone``.

    Args:
        backbone: one of :data:`BACKBONES`, the registered name of a feature term. The paper's reward is CLIP.
        params: what that term takes.

    Raises:
        ConfigError: unknown backbone, or what the term raises.
    """

    def __init__(self, backbone: str = "clip", **params: Any) -> None:
        self.inner: FeatureTerm = _term_class(backbone, "uae.reward.terms.features")(**params)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], key: str) -> None:
        """As the term of the backbone does."""
        rest = {name: value for name, value in params.items() if name != "backbone"}
        _term_class(params.get("backbone", "clip"), key).check_params(rest, key)

    def setup(self, context: TermContext) -> None:
        self.inner.setup(context)

    def to(self, device: torch.device) -> None:
        self.inner.to(device)

    def embed(self, images_B3HW: Tensor) -> Features:
        """Features of the backbone's term."""
        return self.inner.embed(images_B3HW)

    def source_features(self, batch: RewardBatch) -> Features:
        """As the backbone's term keeps them."""
        return self.inner.source_features(batch)

    def score(self, batch: RewardBatch) -> Tensor:
        """As the backbone's term does."""
        return self.inner.score(batch)


def _term_class(backbone: str, key: str) -> Any:
    if backbone not in BACKBONES:
        raise ConfigError(f"{key}.backbone", f"must be one of {', '.join(BACKBONES)}, got {backbone!r}")
    return get_reward(backbone, f"{key}.backbone")
