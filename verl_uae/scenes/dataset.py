# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Parquet files of the built-in world in verl's schema.

The ground truth of a row is the canonical JSON of its scene, so that an exact checker can judge captions and drawings.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_uae.data.images import image_digest
from verl_uae.data.schema import IMAGE_MARK, Message, make_row, write_parquet
from verl_uae.scenes.grammar import CaptionMix, caption
from verl_uae.scenes.render import OBJECT_COUNTS, SPLITS, Scene, render_image, sample_scene
from verl_uae.scenes.tokenizer import PROMPT
from verl_uae.seeding import derive_seed

DATA_SOURCE = "uae_scenes"
PICTURE_PROMPT: list[Message] = [{"role": "user", "content": f"{IMAGE_MARK}{PROMPT}"}]
"""Of every row of a world whose captioner is tiny."""


def write_dataset(
    out: str | Path,
    *,
    train: int = 2000,
    val: int = 128,
    seed: int = 0,
    object_counts: Sequence[int] = OBJECT_COUNTS,
    captions: CaptionMix | None = None,
) -> dict[str, Path]:
    """Write `out`/train.parquet and `out`/val.parquet; equal arguments give equal rows.

    Args:
        out: folder, made if missing.
        train: rows of the training split, drawn with repetition.
        val: rows of the held-out split.
        seed: names the draws.
        object_counts: the equally likely numbers of objects.
        captions: distribution of the training split's captions; None are full ones, as the held-out split's always are.

    Returns:
        Path of each split's file.

    Raises:
        ValueError: if a number of rows is not positive.
    """
    paths: dict[str, Path] = {}
    for split, rows in zip(SPLITS, (train, val), strict=True):
        if rows < 1:
            raise ValueError(f"{split} must be at least 1 row, got {rows}")
        paths[split] = Path(out) / f"{split}.parquet"
    Path(out).mkdir(parents=True, exist_ok=True)
    for split, rows in zip(SPLITS, (train, val), strict=True):
        rng = random.Random(derive_seed(seed, "scenes-dataset", split))
        scenes = [sample_scene(rng, split, object_counts) for _ in range(rows)]
        mix = captions if split == "train" else None
        texts = [caption(scene) if mix is None else mix.sample(scene, rng) for scene in scenes]
        indexed = enumerate(zip(scenes, texts, strict=True))
        write_parquet(paths[split], (scene_row(scene, index, split, text) for index, (scene, text) in indexed))
    return paths


def scene_row(scene: Scene, index: int, split: str, text: str | None = None) -> dict[str, Any]:
    """One row: the picture as PNG, a caption (the full one by default), the scene's JSON as ground truth."""
    image = render_image(scene)
    row = make_row(
        png_bytes(scene),
        index=index,
        split=split,
        sha256=image_digest(image),
        prompt=PICTURE_PROMPT,
        data_source=DATA_SOURCE,
        size=image.size,
        caption=text or caption(scene),
    )
    row["reward_model"]["ground_truth"] = scene.to_json()
    return row


def png_bytes(scene: Scene) -> bytes:
    """The picture of a scene as PNG."""
    buffer = io.BytesIO()
    render_image(scene).save(buffer, format="PNG")
    return buffer.getvalue()
