# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Hashable

import numpy as np
import pytest
import torch
from torch import nn

from verl_uae.reward import RewardScorer, TermSpec, register_reward
from verl_uae.reward.terms.features import EncoderTerm, FeatureTerm, cosine, feature_similarity


@register_reward("test_raw_pixels")
class RawPixels(FeatureTerm):
    """Pixels as features: a black picture is an all-zero embedding."""

    def embed(self, images_B3HW):
        return (images_B3HW, images_B3HW.mean(dim=(2, 3)))


def test_cosine_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 3, 4, generator=generator) for _ in range(2))
    x, y = a.flatten(1).double().numpy(), b.flatten(1).double().numpy()
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert np.allclose(cosine(a, b).numpy(), expected, atol=1e-6)
    mean = (expected + 1.0) / 2.0
    assert np.allclose(feature_similarity((a, a), (b, a)).numpy(), mean, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
def test_cosine_does_not_depend_on_length(scale: float) -> None:
    a = torch.tensor([[1.0, 2.0, 3.0]])
    assert cosine(a, a * scale).item() == pytest.approx(1.0, abs=1e-6)
    assert cosine(a, -a * scale).item() == pytest.approx(-1.0, abs=1e-6)
    assert cosine(a, -a).item() >= -1.0


def test_a_zero_vector_has_no_direction() -> None:
    assert math.isnan(cosine(torch.zeros(1, 3), torch.ones(1, 3)).item())
    assert math.isnan(cosine(torch.zeros(1, 3), torch.zeros(1, 3)).item())


def test_zero_features_are_invalid_and_alone(make_batch) -> None:
    batch = make_batch(3)
    batch.reconstruction_B3HW[1] = 0.0
    records = RewardScorer([("test_raw_pixels", 1.0, {})]).score(batch)
    assert [record.status for record in records] == ["ok", "invalid", "ok"]
    assert records[1].reason == "test_raw_pixels: returned nan"


def test_source_features_can_be_kept(make_batch) -> None:
    class Kept(RawPixels):
        def source_features(self, batch):
            return tuple(-stage for stage in super().source_features(batch))

    batch = make_batch(2)
    assert torch.allclose(Kept().score(batch), -RawPixels().score(batch))


@register_reward("test_mix")
class Mix(EncoderTerm):
    """Channels mixed by a fixed matrix; ``sum`` pools over the picture, ``map`` does not."""

    def __init__(self, mode: str = "map", gain: float = 1.0) -> None:
        self.mode, self.gain = mode, gain
        self.model = nn.Conv2d(3, 4, 1, bias=False).requires_grad_(False)
        self.model.weight.copy_(gain * torch.arange(12.0).sin().view(4, 3, 1, 1))

    @property
    def settings(self) -> Hashable:
        return ("mix", self.gain)

    def outputs(self, images_B3HW, modes):
        mixed = self.model(images_B3HW)
        found = {"map": (mixed,), "sum": (mixed.sum(dim=(2, 3)),)}
        return {mode: found[mode] for mode in modes}


def test_alone_it_is_the_similarity_of_its_outputs(make_batch) -> None:
    batch = make_batch(3)
    for mode in ("map", "sum"):
        term = Mix(mode)
        sides = [term.outputs(x, {mode})[mode] for x in (batch.source_B3HW, batch.reconstruction_B3HW)]
        assert torch.equal(term.score(batch), feature_similarity(*sides))


def test_in_a_scorer_terms_of_equal_settings_hold_one_network(make_batch) -> None:
    pooled = TermSpec(name="test_mix", params={"mode": "sum"}, label="pooled")
    louder = TermSpec(name="test_mix", params={"gain": 2.0}, label="louder")
    scorer = RewardScorer([("test_mix", 1.0, {}), louder], held_out=[pooled])
    (first, other), (watched,) = scorer._summed, scorer._watched
    assert first.term.model is watched.term.model is not other.term.model
    batch = make_batch(3)
    for record, a, b in zip(scorer.score(batch), Mix("map").score(batch), Mix("sum").score(batch), strict=True):
        assert abs(record.terms["test_mix"] - a.item()) < 1e-6 and abs(record.terms["pooled"] - b.item()) < 1e-6
    scorer.to("meta")
    assert first.term.model.weight.device.type == other.term.model.weight.device.type == "meta"
