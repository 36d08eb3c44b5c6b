# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One batch of stage U4G as a single-file script on diffusers does it.

It follows the structure of the published scripts for Flow-GRPO (arXiv 2505.05470) and DDPO: a denoising loop around
diffusers' scheduler, steps found by their timestep, conditions encoded for every sample of a batch, one backward pass
per trained step, statistics kept as tensors until an update is over. Nothing is put in its way: it needs no sharding,
no gathering, no host copies, and runs the module without wrappers.

Old log-probabilities are timed apart. Scripts that sample and train with one module keep the sampler's
(``stored``: leave that part out); trainers with another engine for sampling, verl's default among them, compute them
again by a forward pass (``recomputed``).

Shape legend: N samples, B of a micro-batch, K steps of the window, L text positions, E language-model width,
C H W latent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from benchmarks.ours import autocast
from benchmarks.work import CLIP, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Samples, Work
from verl_uae.chain.conditioner import Conditioner
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.families.family import Condition

#: (first sample of the micro-batch, step or -1) -> noise, shape (B, C, H, W).
Noise = Callable[[int, int], Tensor]


class Script:
    """Sampling and updates of a script.

    Args:
        module: trainable, on its device; its transformer and projector are called directly.
        conditioner: of captions.
        work: see there.
        dtype: to compute in.
    """

    def __init__(self, module: DecoderModule, conditioner: Conditioner, work: Work, dtype: torch.dtype) -> None:
        self.module, self.transformer, self.projector = module, module.transformer, module.projector
        self.conditioner = conditioner
        self.work = work
        self.dtype = dtype
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.0)
        self.scheduler.set_timesteps(sigmas=list(work.plan.sigmas[:-1]), device=work.device)
        self.scheduler.sigmas = self.scheduler.sigmas.to(work.device)
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.generator = torch.Generator(work.device).manual_seed(work.seed)

    def run(self, repetition: int) -> dict[str, float]:
        """One batch; seconds by part."""
        clock = self.work.clock()
        embeds = self.encode(self.work.captions(repetition))
        clock.lap("condition")
        samples = self.sample(embeds, self._draw)
        clock.lap("sampling")
        old_NK = self.log_probs(samples)
        clock.lap("old_log_probs")
        self.update(samples, old_NK, self.work.advantages(repetition).to(self.work.device))
        clock.lap("update")
        return clock.seconds

    def encode(self, captions: list[str]) -> Tensor:
        """Conditions of all samples, a batch at a time, shape (N, L, E)."""
        size = self.work.micro
        parts = [self.conditioner.encode(captions[start : start + size]) for start in range(0, len(captions), size)]
        return Condition.stack(parts).states

    @torch.no_grad()
    def sample(self, embeds_NLE: Tensor, draw: Noise) -> Samples:
        """N trajectories on the device."""
        self.transformer.eval()
        found: defaultdict[str, list[Tensor]] = defaultdict(list)
        for start in range(0, self.work.samples, self.work.micro):
            embeds = embeds_NLE[start : start + self.work.micro]
            latents = draw(start, -1)
            steps: list[tuple[Tensor, ...]] = []
            for index, t in enumerate(self.scheduler.timesteps):
                timestep = t.expand(latents.shape[0])
                velocity = self.predict(latents, timestep, embeds)
                noise = draw(start, index) if index in self.work.plan.window else None
                before = latents
                latents, mean, log_prob = self.step(velocity, timestep, before, noise=noise)
                if noise is not None:
                    steps.append((before, latents, mean, log_prob))
            found["final"].append(latents)
            for name, column in zip(("x", "x_next", "mean", "log_prob"), zip(*steps, strict=True), strict=True):
                found[name].append(torch.stack(column, dim=1))
        kept = (torch.cat(found[name]) for name in ("final", "x", "x_next", "mean", "log_prob"))
        return Samples(embeds_NLE, *kept, self.work.origin_N)

    @torch.no_grad()
    def log_probs(self, samples: Samples) -> Tensor:
        """Log-probabilities of all trained steps by a forward pass, shape (N, K)."""
        size = self.work.micro
        parts = [samples.rows(slice(start, start + size)) for start in range(0, self.work.samples, size)]
        return torch.cat([torch.stack([self._log_prob(part, k)[0] for k in self._places], dim=1) for part in parts])

    def update(self, samples: Samples, old_NK: Tensor, advantage_N: Tensor) -> None:
        """All optimiser updates of a batch."""
        self.transformer.train()
        share = self.work.samples // self.work.updates
        for start in range(0, self.work.samples, share):
            rows = slice(start, start + share)
            self.gradient(samples.rows(rows), old_NK[rows], advantage_N[rows])
            nn.utils.clip_grad_norm_(self.trained, MAX_NORM)
            self.optimizer.step()

    def gradient(self, samples: Samples, old_BK: Tensor, advantage_B: Tensor) -> float:
        """Leave the gradient of a mini-batch behind; returns the loss."""
        size, info = self.work.micro, defaultdict(list)
        accumulated = len(advantage_B) // size * len(self.work.plan.window)
        self.optimizer.zero_grad()
        for start in range(0, len(advantage_B), size):
            rows = slice(start, start + size)
            part, advantage = samples.rows(rows), advantage_B[rows]
            for k in self._places:
                log_prob, _ = self._log_prob(part, k)
                ratio = torch.exp(log_prob - old_BK[rows, k])
                unclipped = -advantage * ratio
                clipped = -advantage * torch.clamp(ratio, 1.0 - CLIP, 1.0 + CLIP)
                loss = torch.mean(torch.maximum(unclipped, clipped))
                info["approx_kl"].append(0.5 * torch.mean((log_prob - old_BK[rows, k]).detach() ** 2))
                info["clipfrac"].append(torch.mean((torch.abs(ratio.detach() - 1.0) > CLIP).float()))
                info["loss"].append(loss.detach())
                (loss / accumulated).backward()
        return {name: torch.stack(values).mean().item() for name, values in info.items()}["loss"]

    def predict(self, latents: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        """Velocity, fp32."""
        dtype = self.dtype
        with autocast(self.work.device, dtype):
            return self.transformer(
                hidden_states=latents.to(dtype),
                timestep=timestep,
                encoder_hidden_states=self.projector(embeds.to(dtype)),
                pooled_projections=self.projector.pooled.to(dtype).expand(latents.shape[0], -1),
                return_dict=False,
            )[0].float()

    def step(
        self, velocity: Tensor, timestep: Tensor, sample: Tensor, *, noise: Tensor | None = None, prev: Any = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(next sample, mean, log-probability) of a CPS step; without noise and next sample, of an Euler step."""
        index = [self.scheduler.index_for_timestep(t) for t in timestep]
        shape = (-1, *[1] * (sample.ndim - 1))
        sigma = self.scheduler.sigmas[index].view(shape)
        sigma_prev = self.scheduler.sigmas[[i + 1 for i in index]].view(shape)
        if noise is None and prev is None:
            mean = sample + (sigma_prev - sigma) * velocity
            return mean, mean, mean.new_zeros(len(mean))
        std = sigma_prev * math.sin(self.work.plan.noise_level * math.pi / 2)
        original, eps = sample - sigma * velocity, sample + (1 - sigma) * velocity
        mean = original * (1 - sigma_prev) + eps * torch.sqrt(sigma_prev**2 - std**2)
        prev = mean + std * noise if prev is None else prev
        log_prob = -((prev.detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
        return prev, mean, log_prob.mean(dim=tuple(range(1, log_prob.ndim)))

    @property
    def _places(self) -> range:
        return range(len(self.work.plan.window))

    def _draw(self, start: int, step: int) -> Tensor:
        work = self.work
        if work.shared_prefix and step < 0:
            if start == 0:
                shape = (work.prompts, *work.latent)
                initial = torch.randn(shape, generator=self.generator, device=work.device)
                self.initial_NCHW = initial[work.origin_N.to(work.device)]
            return self.initial_NCHW[start : start + work.micro]
        return torch.randn((work.micro, *work.latent), generator=self.generator, device=work.device)

    def _log_prob(self, part: Samples, k: int) -> tuple[Tensor, Tensor]:
        """(log-probability, mean) of trained step k of a micro-batch."""
        timestep = self.scheduler.timesteps[self.work.plan.window[k]].expand(len(part.states_NLE))
        velocity = self.predict(part.x_NKCHW[:, k], timestep, part.states_NLE)
        _, mean, log_prob = self.step(velocity, timestep, part.x_NKCHW[:, k], prev=part.x_next_NKCHW[:, k])
        return log_prob, mean
