# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of picture and caption to what the decoder is trained on: latents and conditions, from disk where they are.

Shape legend: B pairs, L text positions, E language-model width, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verl_uae.chain.conditioner import ConditionCache
from verl_uae.chain.decoder import encode_image
from verl_uae.data.buckets import HeightWidth, fit
from verl_uae.data.cache import TensorCache, latent_name
from verl_uae.data.limits import DEFAULT_LIMITS, ImageLimits
from verl_uae.data.pairs import Pair
from verl_uae.devices import FittingBatch
from verl_uae.errors import DataError


class PairEncoder:
    """VAE and conditioner in front of the trained decoder; both frozen.

    Args:
        vae: diffusers AutoencoderKL.
        conditions: of captions, kept in memory.
        latent_cache: latents on disk, None for none.
        condition_cache: conditions on disk, None for none.
        limits: of pictures.
        batch_size: pictures per pass of the VAE.
    """

    def __init__(
        self,
        vae: Any,
        conditions: ConditionCache,
        *,
        latent_cache: TensorCache | None = None,
        condition_cache: TensorCache | None = None,
        limits: ImageLimits = DEFAULT_LIMITS,
        batch_size: int = 2,
    ) -> None:
        self.vae = vae
        self.conditions = conditions
        self.latent_cache = latent_cache
        self.condition_cache = condition_cache
        self.limits = limits
        self._batch = FittingBatch(batch_size, "pictures of the VAE", "uae.decoder.vae_batch_size")

    def latents(self, pairs: Sequence[Pair], size: HeightWidth) -> tuple[list[Tensor | None], list[str]]:
        """Scaled latents (mean of the posterior) of pictures brought to one size.

        Returns:
            Latents (C, H, W), fp32, in host memory, None where the picture does not decode; and why.
        """
        found: list[Tensor | None] = [self._kept(pair, size) for pair in pairs]
        problems = [""] * len(pairs)
        # By content: the company in a batch changes the last bits, and equal pictures must have equal latents.
        pictures: dict[str, Tensor] = {}
        for index, pair in enumerate(pairs):
            if found[index] is None and pair.content_key not in pictures:
                try:
                    pictures[pair.content_key] = fit(pair.decode(self.limits), size)
                except DataError as error:
                    problems[index] = str(error)
        waiting = list(pictures)

        def encode(rows: slice) -> Tensor:
            image_B3HW = torch.stack([pictures[key] for key in waiting[rows]])
            return encode_image(self.vae, image_B3HW.to(self.vae.device)).cpu()

        latents = [latent_CHW for part in self._batch.map(len(waiting), encode) for latent_CHW in part]
        made = dict(zip(waiting, latents, strict=True))
        if self.latent_cache is not None:
            for key, latent_CHW in made.items():
                self.latent_cache.put(latent_name(key, size), {"latent": latent_CHW})
        found = [made.get(pair.content_key) if kept is None else kept for pair, kept in zip(pairs, found, strict=True)]
        return found, problems

    def states(self, captions: Sequence[str]) -> tuple[list[Tensor], list[bool], list[str]]:
        """Conditions (L, E) of captions in host memory, whether each was cut, and why one cannot be encoded."""
        if self.condition_cache is None:
            return self.conditions.get(captions)
        kept = {caption: self.condition_cache.get(caption) for caption in dict.fromkeys(captions)}
        missing = [caption for caption, tensors in kept.items() if tensors is None]
        made = dict(zip(missing, zip(*self.conditions.get(missing), strict=True), strict=True)) if missing else {}
        for caption, (states_LE, cut, problem) in made.items():
            if not problem:
                self.condition_cache.put(caption, {"states": states_LE, "cut": torch.tensor(cut)})
        rows = []
        for caption in captions:
            tensors = kept[caption]
            rows.append(made[caption] if tensors is None else (tensors["states"], bool(tensors["cut"]), ""))
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]

    def counters(self) -> dict[str, float]:
        """Share of look-ups that each cache on disk answered, in [0, 1]."""
        caches = {"latent": self.latent_cache, "condition": self.condition_cache}
        shares = {}
        for name, cache in caches.items():
            if cache is not None:
                counts = cache.counters()
                shares[f"{name}_cache_hit_frac"] = counts["hits"] / max(1, counts["hits"] + counts["misses"])
        return shares

    def _kept(self, pair: Pair, size: HeightWidth) -> Tensor | None:
        if self.latent_cache is None or pair.problem is not None:
            return None
        tensors = self.latent_cache.get(latent_name(pair.content_key, size))
        return None if tensors is None else tensors["latent"]
