# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the image door lets in. Imports nothing, so that the command line can show the defaults at once."""

from __future__ import annotations

from dataclasses import dataclass

_LARGEST_PIXEL_LIMIT = 89_478_485
"""Pillow warns of a decompression bomb above this; a limit below it makes that warning an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What the door lets in. Raises ``ValueError`` naming the field for a limit that makes no sense."""

    max_bytes: int = 20 * 2**20
    """Encoded size, bytes; checked before anything is parsed."""
    max_pixels: int = 4096**2
    """Width times height; at most 89,478,485, where Pillow itself warns of a decompression bomb."""
    min_side: int = 16
    """Shortest side, pixels."""
    max_aspect: float = 200.0
    """Longest side over shortest side; Qwen's resizing (``qwen_vl_utils.smart_resize``) raises above 200."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.min_side < 1 or self.max_aspect < 1:
            raise ValueError(f"max_bytes, min_side and max_aspect must be at least 1, got {self}")
        if not self.min_side**2 <= self.max_pixels <= _LARGEST_PIXEL_LIMIT:
            raise ValueError(f"max_pixels must lie in [min_side**2, {_LARGEST_PIXEL_LIMIT}], got {self}")


DEFAULT_LIMITS = ImageLimits()

MAX_TEXT_BYTES = 2**20
"""Largest caption or JSON entry, bytes."""
