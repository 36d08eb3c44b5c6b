# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Are there as many objects of each class in the reconstruction as in the source? Counted by a detector.

The detector is any object-detection checkpoint of transformers (DETR, RT-DETR, YOLOS, ...), a folder or a hub id.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import torch
from PIL import Image

from verl_uae.reward import reward_function

Detection = dict[str, Any]


# Batched: a model on a GPU is called from one thread, with several pictures.
@reward_function(bounds=(0, 1), batched=True, batch_size=16)
def count_similarity(
    sources: list[Image.Image],
    reconstructions: list[Image.Image],
    model: str,
    revision: str | None = None,
    threshold: float = 0.5,
    device: str | None = None,
) -> list[dict[str, float]]:
    """Ruzicka similarity of the counts: sum over classes of the smaller one, by the sum of the larger one.

    Args:
        sources: source pictures.
        reconstructions: what was drawn from their captions.
        model: folder or hub id, in safetensors.
        revision: commit of the hub repository; pin it.
        threshold: smallest probability of a detection that counts.
        device: of the detector; by default the GPU if there is one, where it stays beside everything else.

    Returns:
        ``score`` in [0, 1], 1 for equal counts and where nothing is found in either picture; ``objects``, how many
        were found in the source, is logged.
    """
    detect = load_detector(model, revision, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = [count(detections, threshold) for detections in detect([*sources, *reconstructions], threshold=threshold)]
    pairs = zip(found[: len(sources)], found[len(sources) :], strict=True)
    return [{"score": similarity(wanted, drawn), "objects": float(wanted.total())} for wanted, drawn in pairs]


def count(detections: list[Detection], threshold: float) -> Counter[str]:
    """Objects of each class."""
    return Counter(detection["label"] for detection in detections if detection["score"] >= threshold)


def similarity(wanted: Counter[str], drawn: Counter[str]) -> float:
    """Smaller counts by larger counts, summed over the classes; 1 for two empty ones."""
    larger = (wanted | drawn).total()
    return (wanted & drawn).total() / larger if larger else 1.0


@functools.lru_cache(maxsize=1)
def load_detector(model: str, revision: str | None, device: str) -> Any:
    """The detector, loaded once in each process."""
    from transformers import pipeline

    weights = {"use_safetensors": True}
    return pipeline("object-detection", model=model, revision=revision, device=device, model_kwargs=weights)
