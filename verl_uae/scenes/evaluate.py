# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Exact evaluation of the caption-and-draw loop on held-out scenes.

One caption per picture is sampled at temperature 1 and drawn by the ODE sampler, with scenes, sampling and noise named
by the seed: two checkpoints are compared on the same draws.

Shapes: B scenes, H = W = 32 pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.load import load_model, load_tokenizer
from verl_uae.compat import ensure_torchvision
from verl_uae.scenes.captioning import Captioner
from verl_uae.scenes.checker import attribute_accuracy, drawn_accuracy
from verl_uae.scenes.grammar import ATTRIBUTES, caption_facts
from verl_uae.scenes.render import IMAGE_SIZE, OBJECT_COUNTS, Scene, render_float, sample_scene
from verl_uae.scenes.scene_eval import ITEMS, items, named, scores
from verl_uae.scenes.tiny_models import CONDITION_LENGTH
from verl_uae.seeding import derive_seed, generator, normal

NUM_STEPS = 8
"""Euler steps of the sampler."""
NOISE = "scenes-eval-noise"
"""Name of the noise, beside its seed."""

PairReward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps (drawing, original), each (B, 3, H, W) in [0, 1], to a reward (B,)."""


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    `metrics` holds, as means over scenes: `reward` (if one was given), `mse` (of [0, 1] pictures), `words`,
    `grammatical`, `full_detail`, `true`, `mentions/<attribute>`, `drawn/<attribute>` and `drawn` (their mean, the whole
    scene left out), shares in [0, 1].
    """

    metrics: dict[str, float]
    scenes: list[Scene]
    captions: list[str]
    images: torch.Tensor
    """Originals, (B, 3, H, W) in [0, 1]."""
    drawings: torch.Tensor
    """Drawings of the captions, (B, 3, H, W) in [0, 1]."""
    rewards: torch.Tensor | None = None
    """One per drawing, (B,), if a reward was given."""


def held_out_scenes(n: int, seed: int, object_counts: Sequence[int] = OBJECT_COUNTS) -> list[Scene]:
    """`n` draws from the held-out split (with repetition), the same for the same seed."""
    rng = random.Random(derive_seed(seed, "scenes-held-out"))
    return [sample_scene(rng, "val", object_counts) for _ in range(n)]


def load_loop(
    captioner_folder: str | Path, decoder_folder: str | Path, conditioner_folder: str | Path
) -> tuple[Captioner, Decoder, Conditioner]:
    """What captions a picture, what draws the caption, and what reads it for that; see `evaluate` for the folders."""
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    model = load_model(AutoModelForImageTextToText, captioner_folder)
    captioner = Captioner(model, load_tokenizer(captioner_folder))
    decoder = Decoder.from_pretrained(str(decoder_folder), length=CONDITION_LENGTH)
    return captioner, decoder, Conditioner.from_pretrained(str(conditioner_folder), decoder.family)


@torch.no_grad()
def evaluate(
    captioner_folder: str | Path,
    decoder_folder: str | Path,
    conditioner_folder: str | Path,
    *,
    n: int = 128,
    seed: int = 0,
    reward: PairReward | None = None,
    num_steps: int = NUM_STEPS,
    greedy: bool = False,
    scene_eval_items: int = ITEMS,
) -> Evaluation:
    """Caption and redraw `n` held-out scenes with checkpoints on disk.

    Args:
        captioner_folder: transformers folder of the captioner.
        decoder_folder: diffusers folder.
        conditioner_folder: transformers folder whose language model reads the captions; that of the joint training,
            also after RL has changed the captioner.
        n: number of scenes.
        seed: names scenes, sampled captions and noise.
        reward: reconstruction reward to report.
        num_steps: Euler steps of the sampler.
        greedy: decode captions greedily instead of sampling.
        scene_eval_items: per category of SceneEval.
    """
    captioner, decoder, conditioner = load_loop(captioner_folder, decoder_folder, conditioner_folder)
    scenes = held_out_scenes(n, seed)
    image = render_float(scenes)
    captions = captioner.sample(image, None if greedy else generator(seed, "scenes-eval-captions"))
    drawing = draw(decoder, conditioner, captions, seed=seed, num_steps=num_steps)
    metrics = {"mse": float((drawing - image).square().mean()), **caption_metrics(scenes, captions)}
    rewards = None if reward is None else reward(drawing, image).float()
    if rewards is not None:
        metrics["reward"] = float(rewards.mean())
    metrics.update(drawing_metrics(drawing, scenes))
    asked = items(seed, scene_eval_items)
    pictures = render_float([item.scene for item in asked])
    said = captioner.sample(pictures, None if greedy else generator(seed, "scene-eval-captions"))
    for mode, texts in (("draw", [item.prompt for item in asked]), ("loop", said)):
        drawn = draw(decoder, conditioner, texts, seed=seed, num_steps=num_steps)
        metrics.update(named(mode, scores(asked, drawn)))
    return Evaluation(metrics, scenes, captions, image, drawing, rewards)


def draw(
    decoder: Decoder,
    conditioner: Any,
    captions: Sequence[str],
    *,
    seed: int = 0,
    num_steps: int = NUM_STEPS,
    name: str = NOISE,
) -> torch.Tensor:
    """Draw captions with noise of a seed and a name; pictures (B, 3, H, W) in [0, 1]."""
    noise = normal((len(captions), *decoder.latent_shape(IMAGE_SIZE, IMAGE_SIZE)), seed, name)
    sigmas = decoder.family.sigmas(num_steps, IMAGE_SIZE, IMAGE_SIZE)
    return decoder.sample(conditioner.encode(list(captions)), noise, sigmas)


def caption_metrics(scenes: Sequence[Scene], captions: Sequence[str]) -> dict[str, float]:
    """Mean number of words and the shares of `verl_uae.scenes.grammar.CaptionFacts`, over a batch."""
    facts = [caption_facts(scene, text) for scene, text in zip(scenes, captions, strict=True)]
    n = len(facts)
    metrics = {"words": sum(fact.words for fact in facts) / n}
    for name in ("grammatical", "full_detail", "true"):
        metrics[name] = sum(getattr(fact, name) for fact in facts) / n
    for name in ATTRIBUTES:
        metrics[f"mentions/{name}"] = sum(fact.mentions[name] for fact in facts) / n
    return metrics


def drawing_metrics(drawing_B3HW: torch.Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """`drawn/<attribute>` for every attribute and the whole scene, and their mean `drawn` (without the whole scene)."""
    accuracy = attribute_accuracy(drawing_B3HW, scenes)
    return {**{f"drawn/{name}": value for name, value in accuracy.items()}, "drawn": drawn_accuracy(accuracy)}
