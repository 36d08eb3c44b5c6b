# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From a request to records: decodes pictures, groups them by size, asks the scorer.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verl_uae.data.limits import MAX_TEXT_BYTES, ImageLimits
from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.remote.protocol import MEMBERS, ProtocolError, RawSample, claimed_size, decode_picture
from verl_uae.reward.remote.specs import Terms
from verl_uae.reward.scorer import RewardScorer, check_specs
from verl_uae.reward.term import PICTURES
from verl_uae.versions import versions

#: Bytes that a pixel of a source takes, with its reconstruction: decoded, while the request waits; and while it is
#: scored as fp32 batch, one term's copy of it, and what changing the one into the other takes. One request is scored at
#: a time. A term's own work comes on top; it has its own bound (:data:`~verl_uae.reward.isolate.CALL_PIXELS`).
WAITING_BYTES, SCORING_BYTES = 6, 64

#: What a request being scored may take, bytes, by default, and the pixels that makes: 16 samples of 1024 x 1024.
MAX_REQUEST_BYTES = 2**30
MAX_REQUEST_PIXELS = MAX_REQUEST_BYTES // SCORING_BYTES

#: Picture of a sample whose terms look at none.
_BLANK_HW3 = np.zeros((1, 1, 3), dtype=np.uint8)
_NOT_SENT = RewardRecord.failed(Status.INVALID, "no sample at this place")


class TooLargeError(ProtocolError):
    """A request that would take more memory than the server gives it."""


@dataclass(frozen=True, slots=True)
class _Sample:
    place: int
    levels: tuple[np.ndarray, np.ndarray]
    """Source and reconstruction, (H, W, 3) each, of one shape."""
    caption: str
    row: Mapping[str, object]


class ScoringService:
    """The scorer behind a server. Building it loads the models.

    Args:
        terms: what is scored.
        device: where models run.
        timeout_s: seconds per term and request.
        source_cache_bytes: host memory for features of source pictures.
        limits: what pictures are decoded.
        max_request_pixels: most pixels of the sources of a request, the places before a sample included; as many
            again are those of the reconstructions.

    Raises:
        ConfigError: a term that cannot be built, or a file that changes meanwhile.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        device: str,
        timeout_s: float,
        source_cache_bytes: int,
        limits: ImageLimits,
        max_request_pixels: int = MAX_REQUEST_PIXELS,
    ) -> None:
        check_specs(terms.summed, terms.held_out, "terms", timeout_s)
        files = terms.files()
        self.scorer = RewardScorer(
            terms.summed,
            held_out=terms.held_out,
            device=device,
            timeout_s=timeout_s,
            source_cache_bytes=source_cache_bytes,
            key="terms",
        )
        self.files = terms.files()
        if files != self.files:
            raise ConfigError("terms", "a custom file has changed while it was loaded; start again")
        self.terms = terms
        self.needs = self.scorer.needs
        if not self.needs <= set(MEMBERS):
            raise ConfigError("terms", f"need {', '.join(sorted(self.needs - set(MEMBERS)))}, which no request has")
        self.fingerprint = terms.fingerprint(self.files)
        self._limits = limits
        self._max_request_pixels = max_request_pixels
        # The scorer shares features between the terms of one batch at a time.
        self._lock = threading.Lock()

    def score(self, samples: Sequence[RawSample]) -> dict[str, RewardRecord]:
        """Score a request; a sample that cannot be read is INVALID, the others keep their bits.

        Raises:
            RewardError: a term cannot go on.
            TooLargeError: the pictures are too many and too large; nothing has been decoded.
        """
        self._check_size(samples)
        records: dict[str, RewardRecord] = {}
        groups: dict[tuple[int, ...], dict[str, _Sample]] = {}
        decoded: dict[object, np.ndarray] = {}
        for raw in samples:
            try:
                sample = self._read(raw, decoded)
            except ProtocolError as error:
                records[raw.id] = RewardRecord.failed(Status.INVALID, str(error))
                continue
            groups.setdefault(sample.levels[0].shape, {})[raw.id] = sample
        for group in groups.values():
            # The batch too: waiting requests hold what they decoded and no more.
            with self._lock:
                scored = self.scorer.score(self._batch(list(group.values())))
            records.update((identifier, scored[sample.place]) for identifier, sample in group.items())
        return {raw.id: records[raw.id] for raw in samples}

    def _check_size(self, samples: Sequence[RawSample]) -> None:
        """Pictures of one size are a batch, which has a picture at every place up to its last."""
        places: dict[tuple[int, int], int] = {}
        for sample in samples:
            for name in PICTURES:
                size = claimed_size(sample.members.get(name))
                # A larger one is never decoded and costs its sample only.
                if size[0] * size[1] <= self._limits.max_pixels:
                    places[size] = max(places.get(size, 0), sample.place + 1)
        total = sum(width * height * count for (width, height), count in places.items())
        if total > self._max_request_pixels:
            mebibytes = total * SCORING_BYTES // 2**20
            raise TooLargeError(
                f"{total} pixels in a request take {mebibytes} MiB, limit {self._max_request_pixels} pixels "
                "(--max-request-pixels): send fewer samples"
            )

    def versions(self) -> dict[str, str]:
        """Of what decides the last bits."""
        return {**versions(("torch", "transformers", "numpy", "pillow")), "python": platform.python_version()}

    def _read(self, raw: RawSample, decoded: dict[object, np.ndarray]) -> _Sample:
        """Decode a sample; ``decoded`` keeps pictures by their text, since the members of a group share a source."""
        for name in sorted(self.needs):
            if name not in raw.members:
                raise ProtocolError(f"{name} is missing")
        levels = []
        for name in PICTURES:
            text = raw.members.get(name)
            if name not in raw.members:
                continue
            try:
                if not isinstance(text, str) or text not in decoded:
                    decoded[text] = decode_picture(text, self._limits)
            except ProtocolError as error:
                raise ProtocolError(f"{name}: {error}") from error
            levels.append(decoded[text])
        source, reconstruction = (levels[0], levels[-1]) if levels else (_BLANK_HW3, _BLANK_HW3)
        if source.shape != reconstruction.shape:
            sizes = " and ".join(f"{found.shape[1]} x {found.shape[0]}" for found in levels)
            raise ProtocolError(f"source and reconstruction have {sizes} pixels, not one size")
        caption, row = raw.members.get("caption", ""), raw.members.get("row", {})
        if not isinstance(caption, str):
            raise ProtocolError(f"caption must be text, got {type(caption).__name__}")
        if len(caption) > MAX_TEXT_BYTES:
            raise ProtocolError(f"caption of {len(caption)} characters, limit {MAX_TEXT_BYTES}")
        if not isinstance(row, dict):
            raise ProtocolError(f"row must be an object, got {type(row).__name__}")
        for name in ("extra_info", "reward_model"):
            if not isinstance(row.get(name) or {}, dict):
                raise ProtocolError(f"row.{name} must be an object")
        return _Sample(raw.place, (source, reconstruction), caption, row)

    def _batch(self, samples: Sequence[_Sample]) -> RewardBatch:
        """Samples of one size at their places; places between them are marked as failed."""
        by_place = {sample.place: sample for sample in samples}
        count = max(by_place) + 1
        return RewardBatch(
            source_B3HW=self._pixels(by_place, count, 0),
            reconstruction_B3HW=self._pixels(by_place, count, 1),
            captions=[by_place[place].caption if place in by_place else "" for place in range(count)],
            rows=[by_place[place].row if place in by_place else {} for place in range(count)],
            failed={place: _NOT_SENT for place in range(count) if place not in by_place},
        )

    def _pixels(self, by_place: Mapping[int, _Sample], count: int, which: int) -> Tensor:
        shape = next(iter(by_place.values())).levels[which].shape
        levels_BHW3 = np.zeros((count, *shape), dtype=np.uint8)
        for place, sample in by_place.items():
            levels_BHW3[place] = sample.levels[which]
        # Divided on the CPU, as a run's source pictures are: a GPU multiplies by 1/255, which is other bits.
        pixels_B3HW = torch.from_numpy(levels_BHW3).permute(0, 3, 1, 2).contiguous().float().div_(255.0)
        return pixels_B3HW.to(self.scorer.device)
