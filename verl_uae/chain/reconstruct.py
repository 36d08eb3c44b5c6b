# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Caption -> condition -> reconstruction -> reward, on one device, without verl.

Shape legend: N pictures, L text positions, E language-model width, C h w latent, H W pixels.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verl_uae.chain.conditioner import Conditioner
from verl_uae.data.images import to_tensor
from verl_uae.devices import FittingBatch, is_out_of_memory
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.scorer import RewardScorer
from verl_uae.seeding import normal

if TYPE_CHECKING:
    # Whoever asks for a reconstruction imports this module too, and need not wait for diffusers.
    from verl_uae.chain.decoder import Decoder


@dataclass(frozen=True, slots=True)
class ChainRequest:
    """One caption to be redrawn and scored."""

    image: Image.Image
    """Source picture, RGB."""

    caption: str
    """The caption; an empty one is drawn like any other."""

    noise_key: tuple[int | str, ...]
    """Name of the initial noise. Equal names share it: in G4U all captions of one image at one step."""

    row: dict[str, Any] = field(default_factory=dict)
    """data_source, ground_truth and extra_info of the dataset row, for custom rewards."""

    want_picture: bool = False
    """Return the reconstruction as JPEG bytes, for panels."""

    want_reconstruction: bool = False
    """Return the reconstruction as PNG bytes, for groupwise rewards."""


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What became of one request."""

    record: RewardRecord
    """Reward, mean over the K pictures that could be scored."""

    truncated: bool = False
    """The caption did not fit into the condition and was cut."""

    picture: bytes | None = None
    """JPEG of the first of the K pictures, if asked for."""

    reconstruction: bytes | None = None
    """PNG of the same picture, if asked for."""


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """How reconstructions are drawn; the fields of ``uae.decoder`` of the same names."""

    height: int
    width: int
    num_steps: int
    guidance: float
    negative_prompt: str
    seeds_per_caption: int
    batch_size: int
    vae_batch_size: int
    shift: float | None = None


class ReconstructionChain:
    """The one chain every stage walks.

    Args:
        conditioner: caption -> states.
        decoder: states -> picture.
        scorer: picture -> record.
        settings: sampler settings.
    """

    def __init__(
        self, conditioner: Conditioner, decoder: Decoder, scorer: RewardScorer, settings: SamplerSettings
    ) -> None:
        self.conditioner = conditioner
        self.decoder = decoder
        self.scorer = scorer
        self.settings = settings
        self.latent_shape = decoder.latent_shape(settings.height, settings.width)
        shift = decoder.shift if settings.shift is None else settings.shift
        self.sigmas = sigma_schedule(settings.num_steps, shift)
        pictures_per_caption = settings.seeds_per_caption
        self._batch = FittingBatch(
            max(1, settings.batch_size // pictures_per_caption),
            f"captions of {pictures_per_caption} pictures",
            "uae.decoder.batch_size" if pictures_per_caption == 1 else "",
        )
        self._vae_batch = FittingBatch(settings.vae_batch_size, "pictures of the VAE", "uae.decoder.vae_batch_size")
        self._negative_1LE: Tensor | None = None
        #: Seconds spent since the last :meth:`reset_timers`, by phase.
        self.seconds = {"decode": 0.0, "score": 0.0}

    def reset_timers(self) -> None:
        """Start counting :attr:`seconds` anew."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def run(
        self, requests: Sequence[ChainRequest], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ChainResult]:
        """Redraw and score captions, in micro-batches of ``settings.batch_size`` pictures.

        A micro-batch that cannot be drawn (a caption the tokenizer chokes on) is tried again one by one, so it costs
        only the samples at fault; those get the status ``error``. Where memory runs out micro-batches get smaller.

        Args:
            requests: what to redraw.
            on_progress: told (done, all) after every micro-batch.

        Returns:
            One result per request, in order.
        """

        def run_part(rows: slice) -> list[ChainResult]:
            part = self._run_batch(requests[rows])
            if on_progress is not None:
                on_progress(rows.stop, len(requests))
            return part

        return [result for part in self._batch.map(len(requests), run_part) for result in part]

    def _run_batch(self, requests: Sequence[ChainRequest]) -> list[ChainResult]:
        try:
            return self._draw_and_score(requests)
        except Exception as error:
            # Fault boundary of one micro-batch: see run().
            if len(requests) == 1:
                reason = f"decoder: {type(error).__name__}: {error}"
                return [ChainResult(RewardRecord.failed(Status.ERROR, reason))]
            if is_out_of_memory(error):
                raise
        return [result for request in requests for result in self._run_batch([request])]

    def _draw_and_score(self, requests: Sequence[ChainRequest]) -> list[ChainResult]:
        repeats = self.settings.seeds_per_caption
        started = time.perf_counter()
        picture_N3HW, truncated = self.draw(
            [request.caption for request in requests],
            [(*request.noise_key, k) for request in requests for k in range(repeats)],
        )
        self.seconds["decode"] += time.perf_counter() - started
        started = time.perf_counter()
        source_B3HW = to_tensor([request.image for request in requests], (self.settings.height, self.settings.width))
        records = self.scorer.score(
            RewardBatch(
                source_B3HW=source_B3HW.to(picture_N3HW.device, non_blocking=True).repeat_interleave(repeats, 0),
                reconstruction_B3HW=picture_N3HW,
                captions=[request.caption for request in requests for _ in range(repeats)],
                rows=[request.row for request in requests for _ in range(repeats)],
            )
        )
        self.seconds["score"] += time.perf_counter() - started
        results = []
        for index, request in enumerate(requests):
            members = slice(index * repeats, (index + 1) * repeats)
            shown_3HW = picture_N3HW[members.start]
            picture = encode_jpeg(shown_3HW) if request.want_picture else None
            reconstruction = encode_png(shown_3HW) if request.want_reconstruction else None
            results.append(ChainResult(mean_record(records[members]), truncated[index], picture, reconstruction))
        return results

    def draw(self, captions: Sequence[str], noise_keys: Sequence[tuple[int | str, ...]]) -> tuple[Tensor, list[bool]]:
        """Draw pictures of captions.

        Args:
            captions: B captions.
            noise_keys: names of N = K * B initial noises, those of one caption next to each other.

        Returns:
            Pictures (N, 3, H, W) in [0, 1], and which captions were cut (B).
        """
        condition = self.conditioner.encode(captions)
        states_NLE = condition.states_BLE.repeat_interleave(len(noise_keys) // len(captions), 0)
        noise_NChw = torch.stack([normal(self.latent_shape, *key) for key in noise_keys])
        latent_NChw = self.decoder.denoise(
            states_NLE,
            noise_NChw.to(states_NLE.device, non_blocking=True),
            self.sigmas,
            guidance=self.settings.guidance,
            negative_BLE=self._negative(states_NLE),
        )
        pictures = self._vae_batch.map(len(latent_NChw), lambda rows: self.decoder.decode_latent(latent_NChw[rows]))
        return torch.cat(pictures), condition.truncated_B.tolist()

    def _negative(self, like: Tensor) -> Tensor | None:
        """Condition of the unconditional branch, (1, L, E): one for the run, since the conditioner is frozen."""
        if self.settings.guidance == 1.0:
            return None
        if self._negative_1LE is None:
            self._negative_1LE = self.conditioner.encode([self.settings.negative_prompt]).states_BLE
        return self._negative_1LE.to(like.device, non_blocking=True)


def mean_record(records: Sequence[RewardRecord]) -> RewardRecord:
    """Mean over the records that have a value; the first failure if none has."""
    scored = [record for record in records if record.ok]
    seconds = sum(record.seconds for record in records)
    if not scored:
        first = records[0]
        return RewardRecord.failed(first.status, first.reason or str(first.status), seconds)
    names = set.intersection(*(set(record.terms) for record in scored))
    terms = {name: sum(record.terms[name] for record in scored) / len(scored) for name in sorted(names)}
    value = sum(record.value or 0.0 for record in scored) / len(scored)
    return RewardRecord(value, Status.OK, terms, seconds)


def encode_jpeg(image_3HW: Tensor, quality: int = 90) -> bytes:
    """A picture in [0, 1] as JPEG bytes."""
    buffer = io.BytesIO()
    _to_pil(image_3HW).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_png(image_3HW: Tensor) -> bytes:
    """A picture in [0, 1] as PNG bytes: nothing is lost but what 8 bits do not hold."""
    buffer = io.BytesIO()
    _to_pil(image_3HW).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _to_pil(image_3HW: Tensor) -> Image.Image:
    pixels = (image_3HW.detach().float().cpu().clamp(0, 1) * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))
