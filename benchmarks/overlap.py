# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a second thread saves: pictures scored beside sampling, pairs encoded beside the update.

    python -m benchmarks.overlap --json overlap.json

Off and on take turns in one process: ``uae.decoder.overlap`` in `Painter.draw` of 6 micro-batches,
``uae.pretrain.prefetch`` in steps of the package's `PairEncoder` and flow-matching loss. Weights are random. torch has
one thread for each of the two, so two free cores are needed; ``--threads`` says otherwise. The load of the machine goes
with the figures.

Shape legend: B of a batch, C H W latents.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from tensordict import TensorDict

from benchmarks.measure import Part, add_options, compare, interleave, provenance, write_json
from benchmarks.sizes import SIZES, build_conditioner, build_policy
from verl_uae.bench.results import markdown_table, number
from verl_uae.chain.conditioner import ConditionCache
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.draw import Painter, PainterSettings
from verl_uae.chain.records import Caption, Draw, Sample
from verl_uae.checkpoints.names import CONDITIONER, TRANSFORMER, VAE
from verl_uae.data.images import encode_png, to_pil
from verl_uae.data.pairs import Pair
from verl_uae.engines.decoder_batch import read_condition
from verl_uae.families import family_of_modules
from verl_uae.flow.matching import NoiseDensity, flow_matching_loss, forward_noise
from verl_uae.flow.plan import SamplingPlan
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward.scorer import RewardScorer
from verl_uae.seeding import generator, normal
from verl_uae.stages.pretrain.worker import PairEncoder

MICRO, MICRO_BATCHES, DENOISING_STEPS, TRAINING_STEPS, PAIRS = 4, 6, 10, 6, 8


class Side:
    """Models of the size ``small`` and both kinds of work.

    Args:
        pixels: side of a picture.
        seed: of weights and noise.
    """

    def __init__(self, pixels: int, seed: int) -> None:
        self.size, self.seed, self.pixels = SIZES["small"], seed, pixels
        torch.manual_seed(seed)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 64, 64),
            latent_channels=self.size.latent_channels,
            norm_num_groups=8,
        )
        self.vae.eval().requires_grad_(False)
        policy = build_policy(self.size, seed)
        modules = {TRANSFORMER: policy.transformer, CONDITIONER: policy.projector, VAE: self.vae}
        self.decoder = Decoder.of(modules, {})
        self.conditioner = build_conditioner(self.size, seed)
        self.conditioner.family = family_of_modules(modules, {}, length=self.size.text_tokens)
        self.trained = policy.transformer.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=1e-6)
        self.picture_B3HW = torch.rand(PAIRS, 3, pixels, pixels, generator=generator(seed, "pictures"))
        scorer = RewardScorer([("pixel", 1.0, {}), ("ssim", 1.0, {})])
        self.painters = {
            overlap: Painter(self._conditions(), self.vae, scorer, self._settings(overlap), "cpu")
            for overlap in (False, True)
        }

    def draw(self, overlap: bool, repetition: int) -> dict[str, float]:
        """One call of the painter."""
        plan = SamplingPlan.ode(sigma_schedule(DENOISING_STEPS, 3.0))
        image = to_pil(self.picture_B3HW[0])
        draws = [
            Draw(Sample(image, Caption(f"a red circle {n}", f"d{n}"), {}), (self.seed, "overlap", repetition, n))
            for n in range(MICRO * MICRO_BATCHES)
        ]
        return self.painters[overlap].draw(self.decoder.field, plan, draws, collective=True).seconds

    def learn(self, ahead: int, repetition: int) -> dict[str, float]:
        """Some steps, the pictures and captions of each being new."""
        started = time.perf_counter()
        encoder = PairEncoder(self.vae, self._conditions(), batch_size=2)
        sent = 0
        for step in range(TRAINING_STEPS):
            while ahead and sent < min(step + 1 + ahead, TRAINING_STEPS):
                encoder.begin(sent, *self._batch(repetition, sent))
                sent += 1
            encoded = encoder.take(step) if ahead else encoder.encode(*self._batch(repetition, step))
            self._update(encoded.fields, step)
        return {"steps": (time.perf_counter() - started) / TRAINING_STEPS}

    def _update(self, fields: dict[str, torch.Tensor], step: int) -> None:
        x0_BCHW = fields["x0_BCHW"]
        noise_BCHW = normal(tuple(x0_BCHW.shape), self.seed, "noise", step)
        sigma_B = NoiseDensity().draw(len(x0_BCHW), generator(self.seed, "sigma", step))
        velocity = self.decoder.field(read_condition(TensorDict(fields, batch_size=len(x0_BCHW))))
        predicted_BCHW = velocity(forward_noise(x0_BCHW, noise_BCHW, sigma_B), sigma_B)
        flow_matching_loss(predicted_BCHW, x0_BCHW, noise_BCHW, torch.ones(len(x0_BCHW))).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _batch(self, repetition: int, step: int) -> tuple[list[Pair], list[str], tuple[int, int]]:
        captions = [f"a red circle {repetition} {step} {n}" for n in range(PAIRS)]
        images = [encode_png(picture_3HW) for picture_3HW in self.picture_B3HW]
        pairs = [
            Pair(image, caption, None, self.pixels, self.pixels, "made here", n)
            for n, (image, caption) in enumerate(zip(images, captions, strict=True))
        ]
        return pairs, captions, (self.pixels, self.pixels)

    def _conditions(self) -> ConditionCache:
        return ConditionCache(self.conditioner, 64)

    def _settings(self, overlap: bool) -> PainterSettings:
        side = self.pixels // 8
        shape = (self.size.latent_channels, side, side)
        return PainterSettings(self.pixels, self.pixels, shape, "", MICRO, MICRO, 2, overlap)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what ``--json`` writes."""
    parser = argparse.ArgumentParser(description="Pictures scored beside sampling, pairs encoded beside the update")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for each of the two threads")
    add_options(parser, repetitions=7)
    options = parser.parse_args(arguments)
    if options.clock != "wall":
        parser.error("processor time of both threads is the same off and on; --clock wall")
    torch.set_num_threads(options.threads)
    side, load = Side(options.pixels, options.seed), os.getloadavg()[0]
    kinds: dict[str, tuple[str, list[Callable[[int], dict[str, float]]]]] = {
        "uae.decoder.overlap": ("draw", [lambda n: side.draw(False, n), lambda n: side.draw(True, n)]),
        "uae.pretrain.prefetch": ("steps", [lambda n: side.learn(0, n), lambda n: side.learn(1, n)]),
    }
    parts: dict[str, Part] = {}
    seconds: dict[str, Any] = {}
    for name, (measured, runs) in kinds.items():
        off, on = seconds[name] = interleave(runs, options.repetitions, options.warmup)
        parts[name] = compare([each[measured] for each in on], [each[measured] for each in off])
    report = {
        "benchmark": "overlap",
        "provenance": provenance("cpu", options.seed),
        "load": [load, os.getloadavg()[0]],
        "seconds": seconds,
        "parts": {name: dataclasses.asdict(part) for name, part in parts.items()},
    }
    header = ("switch", "off, s", "on, s", "ratio", "of single pairs")
    rows = [
        (name, *map(number, (p.baseline_median, p.ours_median, p.ratio)), f"{p.ratio_low:.2f}-{p.ratio_high:.2f}")
        for name, p in parts.items()
    ]
    print("\n".join(markdown_table(header, rows)))
    off, _ = seconds["uae.decoder.overlap"]
    shares = [(each["decode"] + each["score"]) / each["sample"] for each in off]
    print(f"VAE and scores take {statistics.median(shares):.2f} of the time of sampling")
    print(f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after; {os.cpu_count()} cores")
    write_json(options.json, report)
    return report


if __name__ == "__main__":
    main()
