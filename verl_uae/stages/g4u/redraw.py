# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a decoder worker does: captions are redrawn by the frozen decoder, and rewarded by what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from omegaconf import DictConfig

from verl_uae.chain.conditioner import ConditionCache
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.draw import Painter
from verl_uae.chain.records import Draw, Outcome
from verl_uae.errors import ConfigError
from verl_uae.flow.plan import SamplingPlan
from verl_uae.reward.record import mean_record
from verl_uae.stages.common.build import DTYPES, build_painter, evaluation_plan, load_conditioner

#: Micro-batches of one call of the painter: conditions and latents of more need not be in memory at once.
MICRO_BATCHES = 8


class Redrawer:
    """Redraws captions, each ``seeds_per_caption`` times, and averages their rewards.

    Args:
        decoder: frozen.
        painter: holds the decoder's VAE, conditioner and reward models.
        plan: how to sample.
        seeds_per_caption: pictures per caption.
    """

    def __init__(self, decoder: Decoder, painter: Painter, plan: SamplingPlan, seeds_per_caption: int) -> None:
        self.decoder = decoder
        self.painter = painter
        self.plan = plan
        self.seeds_per_caption = seeds_per_caption
        self.seconds = dict.fromkeys(("decode", "score"), 0.0)
        """Spent since the last :meth:`reset_seconds`, by phase."""

    def reset_seconds(self) -> None:
        """Start counting :attr:`seconds` anew."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def to(self, device: str | torch.device) -> None:
        """Move all models; they draw on the device of the painter."""
        self.decoder.to(device)
        self.painter.to(device)

    def run(self, draws: Sequence[Draw], on_progress: Callable[[int, int], None] | None = None) -> list[Outcome]:
        """Redraw and score captions.

        Args:
            draws: one per caption; the number of the picture is added to the name of its noise.
            on_progress: told (done, all) now and then.

        Returns:
            One outcome per draw, in order: the mean reward of its pictures that could be scored, and the first picture.
        """
        outcomes: list[Outcome] = []
        repeats = self.seeds_per_caption
        size = max(1, MICRO_BATCHES * self.painter.settings.micro_batch_size // repeats)
        for start in range(0, len(draws), size):
            wanted = [_numbered(draw, k) for draw in draws[start : start + size] for k in range(repeats)]
            drawn = self.painter.draw(self.decoder.field, self.plan, wanted)
            for phase, seconds in drawn.seconds.items():
                self.seconds["score" if phase == "score" else "decode"] += seconds
            for first in range(0, len(wanted), repeats):
                found = drawn.outcomes[first : first + repeats]
                outcomes.append(replace(found[0], record=mean_record([outcome.record for outcome in found])))
            if on_progress is not None:
                on_progress(len(outcomes), len(draws))
        return outcomes


def _numbered(draw: Draw, k: int) -> Draw:
    """The k-th picture of a caption; the first one is shown."""
    first = k == 0
    return replace(
        draw,
        noise=(*draw.noise, k),
        want_picture=draw.want_picture and first,
        want_reconstruction=draw.want_reconstruction and first,
    )


def build_redrawer(config: DictConfig, device: str | torch.device, draws_on: str | torch.device) -> Redrawer:
    """Load decoder, conditioner and reward models of a run.

    Args:
        config: the whole composed configuration.
        device: where the models are put.
        draws_on: where they compute.

    Raises:
        ConfigError: for an impossible setting, naming its key.
        CheckpointError: for an incomplete decoder folder.
    """
    uae = config.uae
    decoder = Decoder.from_pretrained(uae.decoder.path, dtype=DTYPES[uae.decoder.dtype], device=device)
    conditioner = load_conditioner(config, device)
    wanted = decoder.projector.config.in_dim
    if wanted != conditioner.width:
        raise ConfigError(
            "uae.conditioner.path",
            f"its language model has width {conditioner.width}, the decoder's projector wants {wanted}",
        )
    batch_size = uae.decoder.batch_size
    conditions = ConditionCache(conditioner, MICRO_BATCHES * batch_size)
    painter = build_painter(
        config,
        conditions,
        decoder.requires_grad_(False).vae,
        decoder.transformer.config,
        draws_on,
        micro_batch_size=batch_size,
        loaded_on=device,
    )
    plan = evaluation_plan(config, decoder.shift if uae.decoder.shift is None else float(uae.decoder.shift))
    return Redrawer(decoder, painter, plan, uae.decoder.seeds_per_caption)
