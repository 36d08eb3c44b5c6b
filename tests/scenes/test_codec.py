# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from verl_uae.scenes import codec as c
from verl_uae.scenes.checker import attribute_accuracy
from verl_uae.scenes.render import render_float, sample_scene
from verl_uae.seeding import derive_seed


def _pictures(n: int, split: str = "val") -> tuple[list, torch.Tensor]:
    rng = random.Random(7)
    scenes = [sample_scene(rng, split) for _ in range(n)]
    return scenes, render_float(scenes) * 2 - 1


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return c.build_codec(0, fit_scenes=600)


@torch.no_grad()
def test_encoder_is_a_whitened_linear_map_of_patches(vae):
    """Independent reference: least squares from 8x8 patches to latents explains them completely."""
    rng = random.Random(derive_seed(0, "scenes-codec-fit"))
    image = render_float([sample_scene(rng) for _ in range(600)]) * 2 - 1
    latent = vae.encode(image).latent_dist.mean
    assert latent.shape == (600, c.LATENT_CHANNELS, 4, 4)
    patches = F.unfold(image, 8, stride=8).transpose(1, 2).reshape(-1, 192).double()
    patches = torch.cat([patches, torch.ones(len(patches), 1)], dim=1)
    target = latent.permute(0, 2, 3, 1).reshape(-1, c.LATENT_CHANNELS).double()
    fitted = patches @ torch.linalg.lstsq(patches, target, driver="gelsd").solution
    # Group norm divides by almost, not exactly, the same number for every picture.
    assert float((fitted - target).abs().max()) < 0.02
    assert float(target.mean(0).abs().max()) < 0.02
    assert float((target.T.cov() - torch.eye(c.LATENT_CHANNELS)).abs().max()) < 0.02


@torch.no_grad()
def test_latents_of_a_patch_do_not_depend_on_its_neighbours(vae):
    _, image = _pictures(2)
    mixed = image[:1].clone()
    mixed[:, :, :, 8:] = image[1:, :, :, 8:]
    first, second = (vae.encode(x).latent_dist.mean[..., 0] for x in (image[:1], mixed))
    torch.testing.assert_close(first, second, atol=0.02, rtol=0)


@torch.no_grad()
def test_the_loss_kernel_is_the_encoders_linear_part(vae):
    _, image = _pictures(8)
    difference = vae.encode(image[:4]).latent_dist.mean - vae.encode(image[4:]).latent_dist.mean
    expected = F.conv2d(image[:4] - image[4:], c._patch_map(vae), stride=8)
    torch.testing.assert_close(difference, expected, atol=0.02, rtol=0)


@torch.no_grad()
def test_scale_and_shift_standardise_latents(vae):
    _, image = _pictures(400, "train")
    latent = (vae.encode(image).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert abs(float(latent.mean())) < 0.05 and float(latent.std()) == pytest.approx(1.0, abs=0.05)


def test_training_moves_only_the_decoder_and_is_deterministic(tmp_path):
    results = []
    for _ in range(2):
        vae = c.build_codec(3, fit_scenes=100)
        before = {k: v.clone() for k, v in vae.state_dict().items()}
        losses: list[float] = []
        c.train_codec(vae, 3, steps=3, on_step=lambda _, loss, losses=losses: losses.append(loss))
        changed = {k.split(".")[0] for k, v in vae.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == {"decoder"}
        results.append(losses)
    assert results[0] == results[1] and len(results[0]) == 3


def test_saved_folder_loads_in_diffusers(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert again.config.scaling_factor == vae.config.scaling_factor
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in vae.state_dict().items())


@pytest.mark.slow
def test_a_trained_codec_shows_every_attribute():
    vae = c.build_codec(0)
    c.train_codec(vae, 0)
    scenes, image = _pictures(256)
    with torch.no_grad():
        again = vae.decode(vae.encode(image).latent_dist.mean).sample
    assert attribute_accuracy(again / 2 + 0.5, scenes)["scene"] >= 0.98
