# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""SceneEval of a model folder of the built-in world; the items and their check are `verl_uae.scenes.scene_eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from verl_uae.bench.results import LEVEL, interval, markdown_table, resampled_means, versions
from verl_uae.errors import CheckpointError
from verl_uae.scenes.render import IMAGE_SIZE, render_image
from verl_uae.scenes.scene_eval import CATEGORIES, ITEMS, Item, items, passed
from verl_uae.seeding import generator, normal

if TYPE_CHECKING:
    from verl_uae import UAEPipeline

FORMAT = 1
MODES = ("draw", "loop")


def scene_eval(pipe: UAEPipeline, *, seed: int = 0, count: int = ITEMS, batch_size: int = 64) -> dict[str, Any]:
    """Draw the prompts, and caption and redraw the scenes, with the settings of the pipeline.

    Args:
        seed: of items, sampled captions, noise and bootstrap.
        count: items per category.

    Returns:
        By mode the share passed per category and overall, in [0, 1], with 95 % bootstrap intervals over the items of
        each category, the answers, and what they were made with. Without a captioner there is no ``loop``.

    Raises:
        CheckpointError: the decoder cannot draw pictures of the size of the scenes.
    """
    try:
        shape = pipe.decoder.latent_shape(IMAGE_SIZE, IMAGE_SIZE)
    except ValueError as error:
        raise CheckpointError(pipe.name_or_path, f"cannot draw the scenes: {error}") from error
    asked = items(seed, count)
    texts = {"draw": [item.prompt for item in asked]}
    if pipe.captioner is not None:
        images = [render_image(item.scene) for item in asked]
        texts["loop"] = pipe.caption(images, generator=generator(seed, "scene-eval-captions"))
    noise = normal((len(asked), *shape), seed, "scenes-eval-noise")
    size: dict[str, Any] = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    settings = {**asdict(pipe.inference), **size}
    found: dict[str, Any] = {"format": FORMAT, "seed": seed, "items_per_category": count, "settings": settings}
    for mode, words in texts.items():
        drawn = []
        for start in range(0, len(words), batch_size):
            part = slice(start, start + batch_size)
            drawn.append(pipe.generate(words[part], latents=noise[part], output_type="pt", **size).images)
        found[mode] = _summary(asked, words, torch.cat(drawn), seed)
    return {**found, "versions": versions()}


def _summary(asked: Sequence[Item], texts: Sequence[str], drawn_B3HW: torch.Tensor, seed: int) -> dict[str, Any]:
    answers = [
        {"category": item.category, "prompt": item.prompt, "drawn_from": text, "passed": flag}
        for item, text, flag in zip(asked, texts, passed(asked, drawn_B3HW), strict=True)
    ]
    shares: dict[str, float] = {}
    means: dict[str, np.ndarray] = {}
    for place, name in enumerate(CATEGORIES):
        flags = np.array([entry["passed"] for entry in answers if entry["category"] == name], dtype=float)
        shares[name] = float(flags.mean())
        # Categories have other items each, so they are drawn from independently.
        means[name] = resampled_means(flags[:, None], seed + place)[:, 0]
    return {
        "overall": float(np.mean(list(shares.values()))),
        "interval": interval(np.mean(list(means.values()), axis=0)),
        "level": LEVEL,
        "categories": shares,
        "intervals": {name: interval(samples) for name, samples in means.items()},
        "answers": answers,
    }


def scene_table(found: dict[str, Any]) -> str:
    """Markdown table: a row per mode."""
    rows = []
    for mode in (mode for mode in MODES if mode in found):
        entry = found[mode]
        low, high = entry["interval"]
        cells = [f"{entry['categories'][name]:.3f}" for name in CATEGORIES]
        rows.append([mode, *cells, f"{entry['overall']:.3f} [{low:.3f}, {high:.3f}]"])
    return "\n".join(markdown_table(["", *CATEGORIES, "overall"], rows))
