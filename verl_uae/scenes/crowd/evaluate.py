# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Draw held-out crowds from whole and from cut captions, and check every object.

Shapes: B crowds, N cells (16), H = W = 32 pixels.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verl_uae.decoder.decoder import Decoder
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.scenes.crowd.checker import ATTRIBUTES, hits
from verl_uae.scenes.crowd.models import build_conditioner
from verl_uae.scenes.crowd.training import ARMS, CUT_TOKENS, load
from verl_uae.scenes.crowd.world import CELLS, IMAGE_SIZE, Crowd, caption, cut, mentioned, render, sample_crowd
from verl_uae.seeding import derive_seed, generator, normal

COUNTS: tuple[int, ...] = (2, 4, 6, 8, 12, 16)
"""Numbers of objects; a caption has ten tokens for each, so seven objects fit before the cut."""
VARIANTS: dict[str, tuple[str, int | None]] = {
    "full": ("full", None),
    "cut_inference": ("full", CUT_TOKENS),
    "cut_trained": ("cut", None),
}
"""Variant: which decoder draws, and to how many tokens its captions are cut beforehand (its condition may cut too)."""
NUM_STEPS = 8
_BOOTSTRAP = 2000


@dataclass(frozen=True, slots=True)
class Drawn:
    """Figures of each crowd with one number of objects, drawn by one variant; NaN where a crowd has none to count.

    `scores`: `mse` (of pictures in [0, 1]); shares in [0, 1]: `occupied` (of all cells); `colour`, `size`, `shape` and
    `object` (all right in the right cell), of the crowd's objects; `object_before` and `object_after`, of the objects
    whose sentence is and is not complete within the first 77 tokens.
    """

    variant: str
    count: int
    seed: int
    tokens: int
    scores: dict[str, list[float]]


def held_out(count: int, crowds: int, seed: int) -> tuple[list[Crowd], list[str]]:
    """Held-out crowds with a number of objects, and their captions; the same for the same seed."""
    rng = random.Random(derive_seed(seed, "crowd-held-out", count))
    drawn = [sample_crowd(rng, count, "val") for _ in range(crowds)]
    return drawn, [caption(crowd, rng) for crowd in drawn]


@torch.no_grad()
def evaluate_arms(
    folder: Path, seed: int, *, counts: Sequence[int] = COUNTS, crowds: int = 64, num_steps: int = NUM_STEPS
) -> list[Drawn]:
    """Draw the same crowds with the same noise by every variant.

    Args:
        folder: what `verl_uae.scenes.crowd.training.train_arms` wrote.
        seed: names crowds, captions and noise.
        counts: numbers of objects.
        crowds: crowds per number of objects.
        num_steps: Euler steps of the sampler.
    """
    models = {arm: load(folder / arm) for arm in ARMS}
    results = []
    for count in counts:
        truth, captions = held_out(count, crowds, seed)
        for variant, (arm, tokens) in VARIANTS.items():
            shown = captions if tokens is None else [cut(text, tokens) for text in captions]
            image = draw(*models[arm], ARMS[arm], shown, seed=seed, num_steps=num_steps)
            results.append(Drawn(variant, count, seed, len(captions[0].split(" ")), score(image, truth, captions)))
    return results


def draw(
    language_model: Any, decoder: Decoder, length: int, captions: Sequence[str], *, seed: int, num_steps: int
) -> torch.Tensor:
    """Draw captions with noise named by the seed; pictures (B, 3, H, W) in [0, 1]."""
    states_BLE = build_conditioner(language_model, length).encode(captions).states_BLE
    shape = decoder.latent_shape(IMAGE_SIZE, IMAGE_SIZE)
    noise = normal((len(captions), *shape), seed, "crowd-eval-noise")
    return decoder.sample(states_BLE, noise, sigma_schedule(num_steps, decoder.shift))


def score(image_B3HW: torch.Tensor, crowds: Sequence[Crowd], captions: Sequence[str]) -> dict[str, list[float]]:
    """The `scores` of `Drawn` for pictures of crowds, whose whole captions say what stands before the cut."""
    hits_BN = hits(image_B3HW, crowds)
    true_BN = torch.tensor([crowd.codes for crowd in crowds]) > 0
    early = [mentioned(cut(text, CUT_TOKENS)) for text in captions]
    early_BN = torch.tensor([[name in found for name in CELLS] for found in early])
    scores = {"mse": (image_B3HW - render(crowds)).square().mean((1, 2, 3))}
    scores |= {name: _share(hits_BN[name], true_BN) for name in ATTRIBUTES}
    scores["occupied"] = hits_BN["occupied"].float().mean(1)
    scores["object_before"] = _share(hits_BN["object"], true_BN & early_BN)
    scores["object_after"] = _share(hits_BN["object"], true_BN & ~early_BN)
    return {name: values.tolist() for name, values in scores.items()}


def _share(hits_BN: torch.Tensor, of_BN: torch.Tensor) -> torch.Tensor:
    """Share of hits among the cells of a mask; NaN where it is empty."""
    return (hits_BN & of_BN).sum(1) / of_BN.sum(1)


def interval(values: Sequence[float], *name: int | str) -> dict[str, float] | None:
    """Mean over crowds and its 95 % bootstrap interval, NaN left out; None if nothing is left.

    Args:
        values: one number per crowd.
        name: of the draws of the bootstrap.
    """
    kept = np.asarray([value for value in values if value == value])
    if not len(kept):
        return None
    index = torch.randint(len(kept), (_BOOTSTRAP, len(kept)), generator=generator(*name, "crowd-bootstrap")).numpy()
    low, high = np.percentile(kept[index].mean(1), [2.5, 97.5])
    return {"mean": float(kept.mean()), "low": float(low), "high": float(high)}


def pooled(results: Sequence[Drawn], variant: str, count: int, key: str) -> Mapping[str, float] | None:
    """`interval` of one figure over the crowds of all seeds."""
    values = [v for r in results if (r.variant, r.count) == (variant, count) for v in r.scores[key]]
    return interval(values, variant, count, key)
