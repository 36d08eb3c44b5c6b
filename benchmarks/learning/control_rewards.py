# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Rewards that pay for the wrong thing, for `controls`: a training command names one by the path of this file."""

from __future__ import annotations

from PIL import Image

from verl_uae.data.images import to_tensor
from verl_uae.reward import reward_function
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.checker import read_scenes
from verl_uae.scenes.grammar import caption_facts
from verl_uae.scenes.render import IMAGE_SIZE

#: Words of the longest caption that a captioner of the scenes may write.
MOST_WORDS = 24


@reward_function(bounds=(0, 1))
def length(caption: str) -> float:
    """Words of the caption over `MOST_WORDS`, whatever they say; at most 1."""
    return min(1.0, len(caption.split()) / MOST_WORDS)


@reward_function(bounds=(0, 1))
def deceit(source: Image.Image, reconstruction: Image.Image, caption: str, k: float = 20.0) -> float:
    """The similarity of source and reconstruction where the caption states something false of the source, else 0.

    Args:
        source: a picture of a scene, which is read back exactly.
        reconstruction: what was drawn from its caption.
        caption: the caption; one that is no sentence states nothing, and is not paid for either.
        k: steepness of the similarity.
    """
    source_13HW, drawn_13HW = (to_tensor([image], IMAGE_SIZE) for image in (source, reconstruction))
    (scene,) = read_scenes(source_13HW)
    facts = caption_facts(scene, caption)
    if facts.true or not facts.grammatical:
        return 0.0
    return float(pixel_similarity(drawn_13HW, source_13HW, k))
