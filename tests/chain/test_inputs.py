# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from verl_uae.chain.loading import check_callback, check_drawing, generator_list, sigma_table


def test_generators_are_one_or_as_many_as_pictures() -> None:
    one, two = torch.Generator(), torch.Generator()
    assert generator_list(one, 3) == [one] and generator_list([one, two], 2) == [one, two]
    assert generator_list(None, 3) == [torch.default_generator]
    with pytest.raises(ValueError, match="2 generators for 3"):
        generator_list([one, two], 3)


def test_noise_levels_fall_within_the_unit_interval() -> None:
    assert torch.equal(sigma_table([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
    for bad in ([1.0], [0.5, 0.5], [1.2, 0.0], [0.5, -0.1], [[1.0, 0.0]], [float("nan"), 0.0]):
        with pytest.raises(ValueError, match="falling noise levels"):
            sigma_table(bad)  # type: ignore[arg-type]


def test_drawing_and_callback() -> None:
    check_drawing(["a"], 1, "pil")
    check_callback(["latents"], ["latents"])
    for count in (0, 1.0, True):
        with pytest.raises(ValueError, match="num_images_per_prompt must be a whole number"):
            check_drawing(["a"], count, "pil")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="jpeg"):
        check_drawing(["a"], 1, "jpeg")
    with pytest.raises(ValueError, match="other"):
        check_callback(["latents", "other"], ["latents"])
