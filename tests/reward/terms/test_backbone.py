# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardScorer, get_reward
from verl_uae.reward.terms.backbone import BACKBONES, BackboneSimilarity


def test_equals_the_term_it_names(make_batch, tiny_clip: Path) -> None:
    batch = make_batch(3)
    expected = get_reward("clip")(model=str(tiny_clip)).score(batch)
    assert torch.equal(BackboneSimilarity(backbone="clip", model=str(tiny_clip)).score(batch), expected)
    records = RewardScorer([("features", 2.0, {"model": str(tiny_clip)})]).score(batch)
    assert [record.value for record in records] == pytest.approx([2.0 * x for x in expected.tolist()], abs=1e-5)


def test_efficientnet(make_batch) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    batch = make_batch(2)
    params = {"mode": "pooled", "image_size": 64}
    expected = get_reward("efficientnet_lite0")(**params).score(batch)
    assert torch.equal(BackboneSimilarity(backbone="efficientnet_lite0", **params).score(batch), expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"backbone": "dino"},
            r"p.backbone: must be one of clip, dinov2, dinov3, siglip2, efficientnet_lite0, got 'dino'",
        ),
        ({"backbone": "clip", "image_size": 64}, "p: .*unexpected keyword argument 'image_size'"),
        ({"backbone": "efficientnet_lite0", "model": "x"}, "p: .*unexpected keyword argument 'model'"),
    ],
)
def test_parameters_are_checked_without_loading_a_model(params, message) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneSimilarity.check_params(params, "p")
    for backbone in BACKBONES:
        BackboneSimilarity.check_params({"backbone": backbone, "mode": "pooled"}, "p")


def test_moves_with_its_backbone(tiny_clip: Path) -> None:
    term = BackboneSimilarity(model=str(tiny_clip))
    term.to(torch.device("meta"))
    assert next(term.inner.model.parameters()).device.type == "meta"
