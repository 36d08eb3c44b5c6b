# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the page does, without the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from verl_uae.chain.pipeline import UAEPipeline
from verl_uae.data.images import ImageSource, decode_image, image_digest, to_tensor
from verl_uae.reward import RewardBatch, RewardScorer
from verl_uae.seeding import derive_seed, generator

#: Told (steps done, all steps) after each one.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A reconstruction and how close it is to its source."""

    image: Image.Image
    truncated: bool
    """The caption did not fit into the condition and was cut."""
    similarity: dict[str, float | str]
    """Value per reward term, or why there is none; empty without a source picture."""


class DemoSession:
    """Captions, draws and compares.

    Args:
        pipe: pipeline on its device.
        terms: names of reward terms.

    Raises:
        ConfigError: a term is unknown.
    """

    def __init__(self, pipe: UAEPipeline, terms: Sequence[str]) -> None:
        self.pipe = pipe
        # One scorer each: a term without a value must not take the others with it.
        self.scorers = {name: RewardScorer([(name, 1.0, {})], device=pipe._execution_device) for name in terms}

    def caption(self, image: ImageSource, *, seed: int = 0, temperature: float | None = None) -> str:
        """One caption of a picture; the temperature None is the pipeline's.

        Raises:
            DecodeError: the picture cannot be decoded.
        """
        picture = decode_image(image)
        source = generator(seed, "demo caption", image_digest(picture))
        return self.pipe.caption(picture, temperature=temperature, generator=source)[0]

    def draw(
        self,
        caption: str,
        image: ImageSource | None,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        on_progress: Progress | None = None,
    ) -> Drawing:
        """Draw a caption and compare the result with the source picture, if there is one.

        Equal seeds share their noise, so that an edit of the caption is the only difference. Steps and guidance
        None are the pipeline's.

        Raises:
            DecodeError: the source cannot be decoded.
        """
        source = None if image is None else decode_image(image)

        def on_step(_: Any, step: int, __: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if on_progress is not None:
                on_progress(step + 1, self.pipe.num_timesteps)
            return tensors

        output = self.pipe.generate(
            caption,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(derive_seed(seed, "demo noise")),
            output_type="pt",
            callback_on_step_end=on_step,
        )
        drawn_13HW = output.images
        similarity = {} if source is None else self._compare(source, drawn_13HW, caption)
        (picture,) = self.pipe.to_pil(drawn_13HW)
        return Drawing(picture, output.truncated[0], similarity)

    def _compare(self, source: Image.Image, drawn_13HW: Tensor, caption: str) -> dict[str, float | str]:
        height, width = drawn_13HW.shape[-2:]
        source_13HW = to_tensor([source], (height, width)).to(drawn_13HW.device)
        found: dict[str, float | str] = {}
        for name, scorer in self.scorers.items():
            record = scorer.score(RewardBatch(source_13HW, drawn_13HW, captions=[caption]))[0]
            found[name] = record.value if record.value is not None else f"{record.status}: {record.reason}"
        return found
