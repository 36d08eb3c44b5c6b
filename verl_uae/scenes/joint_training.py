# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Joint training of the tiny models of a world, the built-in scenes by default: what RL starts from, in minutes on one
core.

It stands in for pre-training and cold start, the stages of UAE. Two parts. The codec is trained alone
(`verl_uae.scenes.codec`). Then the captioner learns to caption pictures and, in the same steps, the decoder learns to
draw captions by flow matching, whose gradient flows through the projector into the language model: a tiny language
model that has only learnt to caption gives text states from which nothing but the background can be drawn. The captions
imitated by the captioner are mostly under-descriptive (`CAPTIONER_MIX`) while the decoder is shown detail
(`DECODER_MIX`); that gap is what RL closes. Another world brings its own pictures, words and captions (`World`).

Conditions go through `verl_uae.chain.conditioner` with the role, template and fixed length that RL uses.

Shapes: N pictures of a world, B of a batch, L condition tokens, E language-model width, C H W latents.
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.families.family import Condition
from verl_uae.families.text import language_stack
from verl_uae.flow.matching import forward_noise
from verl_uae.scenes.captioning import Captioner
from verl_uae.scenes.codec import build_codec, train_codec
from verl_uae.scenes.grammar import CAPTIONER_MIX, DECODER_MIX, WORDS, CaptionMix
from verl_uae.scenes.render import OBJECT_COUNTS, all_scenes, render_batch
from verl_uae.scenes.tiny_models import INFERENCE
from verl_uae.scenes.tokenizer import RESERVED, build_processor
from verl_uae.seeding import derive_seed, generator

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called as (part, steps done, steps in all, losses) after every step; part is "codec" or "joint"."""


#: Family of the decoder -> its module of builders, and the family of its captioner.
BUILDERS = {
    "sd3": ("verl_uae.scenes.tiny_models", "qwen2_5_vl"),
    "flux3": ("verl_uae.scenes.tiny_flux3", "qwen3_vl"),
}


def _builders(family: str) -> tuple[Any, Any]:
    """The module, imported when it is needed: a diffusers that lacks one family has the other."""
    module, captioner = BUILDERS[family]
    return importlib.import_module(module), captioner


@dataclass(frozen=True, slots=True)
class JointConfig:
    """Settings of the joint training.

    With the defaults one core takes about 4 minutes (codec 25 s, 0.2 s per joint step) and reaches, on held-out scenes,
    grammatical 1.0, true 0.94 and more, full detail 0.23, and from full captions drawn position, colour and size 0.98.
    Two torch threads take three quarters of that if the cores are theirs; where they are shared, two are slower by an
    order of magnitude than one.
    """

    seed: int = 0
    family: Literal["sd3", "flux3"] = "sd3"
    """``sd3``: Qwen2.5-VL and SD3 with a projector. ``flux3``: Qwen3-VL, whose states FLUX 3 reads."""
    codec_steps: int = 400
    steps: int = 1000
    decoder_batch: int = 64
    captioner_batch: int = 32
    decoder_lr: float = 4e-3
    captioner_lr: float = 2e-3
    warmup_steps: int = 50
    final_lr: float = 0.05
    """Learning rate at the end as a share of the highest."""
    ema_decay: float = 0.99
    high_noise: float = 0.6
    """Half of the noise levels are uniform in [0, 1], half in [high_noise, 1], where the layout is decided."""
    object_counts: tuple[int, ...] = OBJECT_COUNTS
    """Of the scenes, as the two mixes are."""
    captioner_mix: CaptionMix = CAPTIONER_MIX
    decoder_mix: CaptionMix = DECODER_MIX


@dataclass(frozen=True, slots=True)
class World:
    """The training split of what there is to see, and what is said of it.

    Pictures are of 32x32 pixels, their captions of at most 14 words (`CONDITION_LENGTH`).
    """

    words: tuple[str, ...]
    """All words of its captions, none of them of `RESERVED`."""
    items: Sequence[Any]
    """What captions are made of, one for each picture."""
    images_N3HW: torch.Tensor
    """uint8."""
    groups: Sequence[Sequence[int]]
    """Numbers of items; a batch draws groups that are equally likely, and from each an item."""
    shown: Callable[[Any, random.Random], str]
    """Draws a caption that the decoder is trained on."""
    imitated: Callable[[Any, random.Random], str]
    """Draws a caption that the captioner is trained on."""
    codec_pictures: torch.Tensor | None = None
    """What the codec is trained on, (N, 3, H, W) in [-1, 1]; None are scenes of its own."""


def scene_world(config: JointConfig) -> World:
    """The built-in world: every training scene, numbers of objects equally likely."""
    scenes = [scene for scene in all_scenes(config.object_counts) if scene.split == "train"]
    by_count: dict[int, list[int]] = {}
    for index, scene in enumerate(scenes):
        by_count.setdefault(len(scene.objects), []).append(index)
    groups = [by_count[count] for count in sorted(by_count)]
    captions = config.decoder_mix.sample, config.captioner_mix.sample
    return World(WORDS, scenes, render_batch(scenes), groups, *captions)


def train_tiny_models(
    out: str | Path,
    config: JointConfig | None = None,
    on_progress: Progress | None = None,
    world: World | None = None,
) -> None:
    """Build, train and save the tiny models.

    Writes `out`/captioner (transformers folder with its processor) and `out`/decoder (diffusers folder). One process;
    the result depends on the seed and, in the last digits, on the platform and the number of threads.

    Args:
        out: folder, made if missing.
        config: settings.
        on_progress: see `Progress`.
        world: what they learn; default: the scenes.
    """
    config = config or JointConfig()
    world = world or scene_world(config)
    builders, captioner_family = _builders(config.family)
    processor = build_processor(captioner_family, (*RESERVED, *world.words))
    vae = build_codec(config.seed, pictures=world.codec_pictures)
    progress = _codec_progress(config, on_progress)
    train_codec(vae, config.seed, steps=config.codec_steps, on_step=progress, pictures=world.codec_pictures)
    captioner = builders.build_captioner(config.seed, processor.tokenizer)
    decoder = builders.build_decoder(config.seed, vae)
    train_joint(captioner, decoder, processor.tokenizer, config, world, on_progress)
    save_captioner(captioner, processor, Path(out) / "captioner")
    decoder.save_pretrained(str(Path(out) / "decoder"), asdict(INFERENCE))


def save_captioner(captioner: Any, processor: Any, folder: Path) -> None:
    """Write a transformers folder that `AutoProcessor` and the model class load."""
    captioner.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)


def train_joint(
    captioner: Any,
    decoder: Decoder,
    tokenizer: Any,
    config: JointConfig,
    world: World,
    on_progress: Progress | None = None,
) -> None:
    """Train captioner and decoder in place; the decoder ends with its averaged weights.

    Raises:
        ValueError: if a step's loss is not finite.
    """
    pool = Pool(decoder, world, config.seed)
    loss_of = JointLoss(captioner, decoder, tokenizer, config, world)
    learner = Learner(captioner, decoder, config)
    captioner.train()
    decoder.train()
    for step in range(config.steps):
        items, image, latent = pool.draw(config.decoder_batch)
        flow, caption = loss_of(items, image, latent)
        loss = flow + caption
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"the joint training diverged at step {step} with seed {config.seed}: loss {loss.item()}")
        learner.update(loss, step)
        if on_progress is not None:
            on_progress("joint", step + 1, config.steps, {"flow": flow.item(), "caption": caption.item()})
    learner.adopt_average()
    captioner.eval()
    decoder.eval()


class Pool:
    """The pictures of a world with their latents, computed once.

    Args:
        decoder: its codec makes the latents.
        world: of the pictures.
        seed: of the draws.
    """

    def __init__(self, decoder: Decoder, world: World, seed: int) -> None:
        self._rng = random.Random(derive_seed(seed, "scenes-joint-pool"))
        self._world = world
        chunks = world.images_N3HW.split(64)
        self._latents = torch.cat([decoder.encode_image(chunk.float() / 255) for chunk in chunks])

    def draw(self, batch: int) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
        """Items, pictures (B, 3, H, W) in [0, 1] and latents (B, C, H, W)."""
        groups = self._rng.choices(self._world.groups, k=batch)
        index = [self._rng.choice(group) for group in groups]
        items = [self._world.items[i] for i in index]
        return items, self._world.images_N3HW[index].float() / 255, self._latents[index]


class JointLoss:
    """The two losses of one batch.

    Args:
        captioner: of the same builders as the decoder.
        decoder: with its projector, if it has one.
        tokenizer: tokenizer of the captioner.
        config: noise levels, sizes of batches and seed.
        world: distributions of captions.
    """

    def __init__(self, captioner: Any, decoder: Decoder, tokenizer: Any, config: JointConfig, world: World) -> None:
        self._decoder, self._config, self._world = decoder, config, world
        self._conditioner = Conditioner(language_stack(captioner), tokenizer, decoder.family)
        self._builders, _ = _builders(config.family)
        self._captioner = Captioner(captioner, tokenizer)
        self._rng = random.Random(derive_seed(config.seed, "scenes-joint-captions"))
        self._noise = generator(config.seed, "scenes-joint-noise")

    def __call__(
        self, items: Sequence[Any], image_B3HW: torch.Tensor, latent_BCHW: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Flow matching loss of all items, cross-entropy of the captions of the first `captioner_batch`."""
        shown = [self._world.shown(item, self._rng) for item in items]
        few = self._config.captioner_batch
        imitated = [self._world.imitated(item, self._rng) for item in items[:few]]
        return self._flow(shown, latent_BCHW), self._captioner.loss(image_B3HW[:few], imitated)

    def _flow(self, captions: list[str], x0_BCHW: torch.Tensor) -> torch.Tensor:
        condition = self._builders.condition(self._conditioner, captions)
        return flow_loss(self._decoder, x0_BCHW, condition, self._noise, self._config.high_noise)


def flow_loss(
    decoder: Decoder,
    x0_BCHW: torch.Tensor,
    condition: Condition,
    noise: torch.Generator,
    high_noise: float,
) -> torch.Tensor:
    """Flow-matching loss of a batch, half of whose noise levels are uniform in [`high_noise`, 1], half in [0, 1]."""
    noise_BCHW = torch.randn(x0_BCHW.shape, generator=noise)
    sigma_B = torch.rand(len(x0_BCHW), generator=noise)
    sigma_B[::2] = high_noise + (1 - high_noise) * sigma_B[::2]
    velocity = decoder.velocity(forward_noise(x0_BCHW, noise_BCHW, sigma_B), sigma_B, condition)
    return F.mse_loss(velocity, noise_BCHW - x0_BCHW)


class Learner:
    """AdamW with two learning rates, warm-up, linear decay in the second half, and an average of the decoder."""

    def __init__(self, captioner: Any, decoder: Decoder, config: JointConfig) -> None:
        self._config = config
        parts: list[nn.Module] = [getattr(decoder, part) for part in decoder.family.trained]
        self._decoder = [parameter for part in parts for parameter in part.parameters()]
        self._captioner = list(captioner.parameters())
        self._average = [copy.deepcopy(p.detach()) for p in self._decoder]
        groups = [
            {"params": self._decoder, "lr": config.decoder_lr},
            {"params": self._captioner, "lr": config.captioner_lr},
        ]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._share)

    def _share(self, step: int) -> float:
        c = self._config
        return min(1.0, (step + 1) / c.warmup_steps) * max(c.final_lr, min(1.0, 2 * (1 - step / c.steps)))

    def update(self, loss: torch.Tensor, step: int) -> None:
        """One clipped gradient step and one step of the average."""
        self._optimizer.zero_grad()
        loss.backward()
        for parameters in (self._decoder, self._captioner):
            nn.utils.clip_grad_norm_(parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        decay = min(self._config.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._decoder], 1 - decay)

    @torch.no_grad()
    def adopt_average(self) -> None:
        """Replace the decoder's weights by their average."""
        for parameter, average in zip(self._decoder, self._average, strict=True):
            parameter.copy_(average)


def _codec_progress(config: JointConfig, on_progress: Progress | None) -> Callable[[int, float], None] | None:
    if on_progress is None:
        return None
    return lambda step, loss: on_progress("codec", step + 1, config.codec_steps, {"loss": loss})
