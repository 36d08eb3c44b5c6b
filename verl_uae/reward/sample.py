# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a reward term sees.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from verl_uae.reward.record import RewardRecord

#: Pixels may leave [0, 1] by this much: rounding of a VAE's output range, not a wrong range.
RANGE_TOLERANCE = 1e-3


class Scoring:
    """One batch on its way through a scorer; compared by identity."""

    over: bool = False
    """Whether the scorer has answered. Terms that were too late may still run."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Which samples of which batch these are. Equal origins are equal samples at equal places."""

    batch: Scoring
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """Pictures, their reconstructions and the captions between them, all on one device.

    Raises:
        ValueError: where shapes, types or lengths do not belong together.
    """

    source_B3HW: Tensor
    """Source pictures in [0, 1], any float type; kept as fp32."""
    reconstruction_B3HW: Tensor
    """Reconstructions in [0, 1], of the same shape. Rows named in ``failed`` may hold anything."""
    captions: Sequence[str] | None = None
    """The caption each reconstruction was drawn from."""
    rows: Sequence[Mapping[str, Any]] | None = None
    """The data row of each sample: ``data_source``, ``ground_truth``, ``extra_info``."""
    groups: Sequence[str] | None = None
    """The group of each sample: those of one source picture that are compared with each other."""
    failed: Mapping[int, RewardRecord] = field(default_factory=dict)
    """Samples without a picture, by position: their record is passed through untouched."""
    origin: Origin | None = None
    """Set by the scorer, so that terms can share what they compute."""

    def __post_init__(self) -> None:
        source, reconstruction = self.source_B3HW, self.reconstruction_B3HW
        for name, images in (("source", source), ("reconstruction", reconstruction)):
            if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[1:] or not images.is_floating_point():
                raise ValueError(f"{name} must be float (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        if source.shape != reconstruction.shape or source.device != reconstruction.device:
            raise ValueError(
                f"source {tuple(source.shape)} on {source.device} and reconstruction "
                f"{tuple(reconstruction.shape)} on {reconstruction.device} differ"
            )
        for name, values in (("captions", self.captions), ("rows", self.rows), ("groups", self.groups)):
            if values is not None and len(values) != len(self):
                raise ValueError(f"{len(values)} {name} for {len(self)} pictures")
        for index, record in self.failed.items():
            if not 0 <= index < len(self) or record.ok:
                raise ValueError(f"failed[{index}] must be a record without a value of one of {len(self)} samples")
        object.__setattr__(self, "source_B3HW", source.to(torch.float32))
        object.__setattr__(self, "reconstruction_B3HW", reconstruction.to(torch.float32))

    def __len__(self) -> int:
        return self.source_B3HW.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the pictures are."""
        return self.source_B3HW.device

    def take(self, indices: Sequence[int]) -> RewardBatch:
        """The samples at ``indices``, in that order, repeats allowed; without ``failed``."""
        index = torch.as_tensor(list(indices), dtype=torch.long, device=self.device)
        return RewardBatch(
            source_B3HW=self.source_B3HW[index],
            reconstruction_B3HW=self.reconstruction_B3HW[index],
            captions=None if self.captions is None else [self.captions[i] for i in indices],
            rows=None if self.rows is None else [self.rows[i] for i in indices],
            groups=None if self.groups is None else [self.groups[i] for i in indices],
            origin=self.origin and Origin(self.origin.batch, tuple(self.origin.positions[i] for i in indices)),
        )

    def unusable(self) -> dict[int, str]:
        """Samples with a NaN, infinite or out-of-range pixel, with the reason."""
        reasons: dict[int, str] = {}
        for name, images in (("reconstruction", self.reconstruction_B3HW), ("source picture", self.source_B3HW)):
            low_B, high_B = images.amin(dim=(1, 2, 3)).tolist(), images.amax(dim=(1, 2, 3)).tolist()
            for index, (low, high) in enumerate(zip(low_B, high_B, strict=True)):
                # Written so that a NaN, which amin and amax pass on, fails the comparison.
                if not (low >= -RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE):
                    reasons[index] = f"{name}: pixels from {low:g} to {high:g}, expected [0, 1]"
        return reasons
