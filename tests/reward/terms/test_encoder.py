# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import nn

from verl_uae.reward import RewardScorer, TermSpec, register_reward
from verl_uae.reward.terms.encoder import EncoderTerm
from verl_uae.reward.terms.features import feature_similarity


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
