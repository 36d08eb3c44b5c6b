# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the pipeline's arguments must be. All raise ``ValueError``, as diffusers' own checks do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def generator_list(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> Sequence[torch.Generator]:
    """One generator for all, or one for each of ``count``; torch's default one for None."""
    if generator is None:
        return [torch.default_generator]
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) not in (1, count):
        raise ValueError(f"{len(generators)} generators for {count} pictures")
    return generators


def sigma_table(sigmas: Sequence[float] | Tensor) -> Tensor:
    """Noise levels given by hand, fp32."""
    table = torch.as_tensor(sigmas, dtype=torch.float32)
    falling = table.ndim == 1 and len(table) > 1 and bool((table.diff() < 0).all())
    if not falling or not 0.0 <= float(table.min()) <= float(table.max()) <= 1.0:
        raise ValueError(f"sigmas must be at least two falling noise levels in [0, 1], got {table.tolist()}")
    return table


def check_drawing(prompts: Sequence[str], images_per_prompt: int, output_type: str) -> None:
    """Texts, how many pictures of each, and how they are returned."""
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompt must be a string or a list of strings, got {prompts!r}")
    if not isinstance(images_per_prompt, int) or isinstance(images_per_prompt, bool) or images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt must be a whole number of at least 1, got {images_per_prompt!r}")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")


def check_callback(names: Sequence[str], known: Sequence[str]) -> None:
    """Tensors that a callback asks for."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be among {list(known)}, got {unknown}")
