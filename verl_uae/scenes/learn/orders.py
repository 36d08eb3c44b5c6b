# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""How a reward orders the captions of one picture, against the exact attributes of their drawings.

GRPO sees nothing else of a reward: within a group only the order and the relative distances count. So this says before
a run what a reward can teach, which its value over all pictures does not.

Shapes: G pictures, M captions of each, H = W = 32 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verl_uae.compat import ensure_torchvision
from verl_uae.decoder.conditioner import Conditioner
from verl_uae.decoder.decoder import Decoder
from verl_uae.formats.load import load_model, load_tokenizer
from verl_uae.reward.composition import group_ranks
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.scorer import RewardScorer
from verl_uae.scenes.captioning import Captioner
from verl_uae.scenes.checker import DRAWN_ATTRIBUTES, attribute_scores
from verl_uae.scenes.evaluate import draw, held_out_scenes
from verl_uae.scenes.render import render_float
from verl_uae.scenes.tiny_models import CONDITION_LENGTH
from verl_uae.seeding import generator

PICTURES, MEMBERS = 32, 8


@torch.no_grad()
def orders(
    root: Path, terms: Mapping[str, tuple[str, Mapping[str, Any]]], seed: int, *, pictures: int = PICTURES
) -> dict[str, float]:
    """Mean rank correlation of each term with the exact attributes, within the groups of a captioner before RL.

    Args:
        root: folder of a cold start.
        terms: by label, registered name and parameters.
        seed: names pictures, captions and noise.
        pictures: groups of `MEMBERS` captions.

    Returns:
        By label a number in [-1, 1].
    """
    ensure_torchvision()
    from transformers import Qwen2_5_VLForConditionalGeneration

    encoder = load_model(Qwen2_5_VLForConditionalGeneration, root / "encoder")
    captioner = Captioner(encoder, load_tokenizer(root / "encoder"))
    conditioner = Conditioner.from_pretrained(str(root / "encoder"), length=CONDITION_LENGTH)
    decoder = Decoder.from_pretrained(str(root / "decoder"))
    scenes = [scene for scene in held_out_scenes(pictures, seed) for _ in range(MEMBERS)]
    image_B3HW = render_float(scenes)
    captions = captioner.sample(image_B3HW, generator(seed, "scenes-order-captions"))
    drawn_B3HW = draw(decoder, conditioner, captions, seed=seed)
    exact = attribute_scores(drawn_B3HW, scenes)
    exact_B = torch.stack([exact[name] for name in DRAWN_ATTRIBUTES]).mean(0).tolist()
    groups = [str(number // MEMBERS) for number in range(len(scenes))]
    batch = RewardBatch(source_B3HW=image_B3HW, reconstruction_B3HW=drawn_B3HW)
    found = {}
    for label, (name, params) in terms.items():
        values = [record.value for record in RewardScorer([(name, 1.0, params)]).score(batch)]
        found[label] = rank_correlation([float("nan") if v is None else v for v in values], exact_B, groups)
    return found


def rank_correlation(values: list[float], truth: list[float], groups: list[str]) -> float:
    """Spearman's correlation within groups, mean over those in which neither side is all ties.

    Raises:
        ValueError: no group has an order on both sides.
    """
    ranks = [np.asarray(group_ranks(column, groups)) - 0.5 for column in (values, truth)]
    found = []
    for group in dict.fromkeys(groups):
        one, other = (column[[name == group for name in groups]] for column in ranks)
        scale = float(np.linalg.norm(one) * np.linalg.norm(other))
        if scale > 0.0:
            found.append(float(one @ other) / scale)
    if not found:
        raise ValueError("no group has an order: all its captions draw the same, or the reward is constant")
    return float(np.mean(found))
