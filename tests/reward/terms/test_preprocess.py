# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from verl_uae.errors import ConfigError
from verl_uae.reward.isolate import CALL_PIXELS
from verl_uae.reward.terms.features import Preprocess, processing_of_config

STOCK = Preprocess(resize=(20, 24), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), interpolation="bilinear")
CUT = Preprocess(resize=30, crop=(28, 26), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
STEPS = ("resize", "rescale")


@pytest.mark.parametrize("size", [9, (50, 31)])
def test_against_pillow(make_batch, size) -> None:
    images = make_batch(2, size=size).source_B3HW
    found = STOCK(images).numpy()
    for image, ours in zip(images.numpy(), found, strict=True):
        pil = [np.asarray(Image.fromarray(x).resize((24, 20), Image.Resampling.BILINEAR)) for x in image]
        expected = (np.stack(pil) - np.reshape(STOCK.mean, (3, 1, 1))) / np.reshape(STOCK.std, (3, 1, 1))
        assert np.allclose(ours, expected, atol=2e-5)


def test_a_long_picture_is_cut_in_the_centre_and_a_small_one_padded() -> None:
    row = torch.linspace(0.0, 1.0, 60).expand(1, 3, 30, 60).contiguous()
    found = CUT(row) * torch.tensor(CUT.std).view(1, 3, 1, 1) + torch.tensor(CUT.mean).view(1, 3, 1, 1)
    assert torch.allclose(found, row[..., 1:29, 17:43], atol=1e-6)
    wide = Preprocess(resize=(2, 2), crop=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)(torch.ones(1, 3, 2, 2))
    assert torch.equal(wide[0, 0], torch.nn.functional.pad(torch.ones(2, 2), (1, 1, 1, 1)))


@pytest.mark.parametrize("size", [(1, 200), (200, 1), (3, 90)])
def test_narrow_pictures_grow_a_few_at_a_time(size: tuple[int, int]) -> None:
    """A strip is enlarged to 224 pixels across: 16 strips of 200 pixels would be 600 MiB in every step."""
    largest = [0]

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest[0] = max(largest[0], found.numel())
            return found

    cut = Preprocess(resize=224, crop=(224, 224), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = torch.rand(16, 3, *size, generator=torch.Generator().manual_seed(0))
    with Sizes():
        found = cut(images)
    one = 224 * 224 * max(size) // min(size)
    assert largest[0] <= 3 * max(one, CALL_PIXELS, 16 * 224 * 224)
    for index in (0, 1, 15):
        assert torch.equal(found[index : index + 1], cut(images[index : index + 1]))


def test_an_odd_border_is_that_of_the_stock_processor(make_batch) -> None:
    from transformers import CLIPImageProcessor

    stock = CLIPImageProcessor(size={"shortest_edge": 21}, crop_size={"height": 28, "width": 28})
    ours = Preprocess(resize=21, crop=(28, 28), mean=tuple(stock.image_mean), std=tuple(stock.image_std))
    levels = (make_batch(1, size=(21, 24)).source_B3HW * 255.0).round()
    expected = stock(images=[levels[0].byte()], return_tensors="pt")["pixel_values"]
    assert torch.allclose(ours(levels / 255.0), expected, atol=1e-5)


def test_settings_of_a_file() -> None:
    assert processing_of_config(STOCK, {}, "k", "x", STEPS) == STOCK
    assert processing_of_config(CUT, {"size": None, "resample": None, "crop_size": None}, "k", "x", STEPS) == CUT
    found = processing_of_config(STOCK, {"size": {"shortest_edge": 9}, "resample": 3}, "k", "x", STEPS)
    assert (found.resize, found.crop, found.interpolation) == (9, None, "bicubic")
    found = processing_of_config(CUT, {"crop_size": 5, "image_mean": [0, 0, 0]}, "k", "x", STEPS)
    assert found.crop == (5, 5) and found.mean == (0, 0, 0) and found.std == CUT.std
    assert processing_of_config(STOCK, {"do_center_crop": True, "crop_size": 5}, "k", "x", STEPS).crop == (5, 5)


@pytest.mark.parametrize(
    "config",
    [{"do_rescale": False}, {"resample": 0}, {"resample": 1}, {"rescale_factor": 1.0}, {"size": {"longest_edge": 9}}],
)
def test_another_processor_is_refused(config) -> None:
    with pytest.raises(ConfigError, match="k: image processor"):
        processing_of_config(STOCK, config, "k", "x", STEPS)
