# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Inference: caption, draw and reconstruct pictures with a diffusers pipeline. Knows neither verl nor Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verl_uae.pipeline.pipeline import UAEPipeline, UAEPipelineOutput

__all__ = ["UAEPipeline", "UAEPipelineOutput"]


def __getattr__(name: str) -> Any:
    # On first use: the command line imports this package for its options, and diffusers takes seconds.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from verl_uae.pipeline import pipeline

    return getattr(pipeline, name)
