# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from verl_uae.errors import ConfigError
from verl_uae.estimate import DECODERS, GIB, GPUS, estimate, render, setting


def test_decoding_memory_by_hand() -> None:
    """bf16 decoder, projector and language model, fp32 VAE and CLIP, activations, and an eighth of the actor."""
    result = estimate("H100-80GB", gpus=8)
    weights = 2 * (8.06 + 0.05 + 3.09) + 4 * (0.084 + 0.30)
    actor = (16 * 3.09 + 4 * 0.67) / 8
    assert result.memory_gib["decode"] == pytest.approx((weights + actor) * 1e9 / GIB + 6.0)


def test_more_gpus_need_less_memory_each_and_time_scales_with_steps() -> None:
    few, many = (estimate("H100-80GB", gpus=gpus) for gpus in (2, 16))
    assert all(few.memory_gib[phase] > many.memory_gib[phase] for phase in few.memory_gib)
    one, ten = (estimate("H100-80GB", steps=steps) for steps in (100, 1000))
    assert ten.hours == pytest.approx(10 * one.hours) and ten.usd == pytest.approx(10 * one.usd)
    assert one.usd == pytest.approx(one.hours * 8 * GPUS["H100-80GB"].usd_per_hour)


def test_what_fits() -> None:
    assert estimate("H100-80GB").fits and not estimate("A100-40GB", gpus=1).fits
    # What does not run takes no time and costs nothing.
    text = render(estimate("A100-40GB", gpus=1))
    assert "does NOT fit" in text and not any(word in text for word in (" s per step", " h, ", "USD", "total"))
    text = render(estimate("H100-80GB"))
    assert all(word in text for word in (" s per step", " h, ", "USD", "total"))
    assert "calculated, not measured" in render(estimate("H100-80GB"))


@pytest.mark.parametrize(("gpu", "share", "resident"), [("A100-40GB", 0.3, False), ("L40S-48GB", 0.25, True)])
def test_a_small_gpu_gives_the_caption_server_a_larger_share(gpu: str, share: float, resident: bool) -> None:
    """3.76 billion weights in bf16 are 7.0 GiB, of which a fifth of these GPUs holds little more."""
    result = estimate(gpu)
    actor = (16 * 3.09 + 4 * 0.67) / 8 * 1e9 / GIB
    assert result.server_share == share and share * GPUS[gpu].memory_gib >= 7.0 + 4.0
    assert result.memory_gib["caption"] == pytest.approx(share * GPUS[gpu].memory_gib + actor)
    assert f"gpu_memory_utilization={share}" in render(result)
    # Server, shards of the captioner and all frozen models at once.
    frozen = (2 * (8.06 + 0.05 + 3.09) + 4 * (0.084 + 0.30)) * 1e9 / GIB
    assert result.fits_resident is resident is (result.memory_gib["caption"] + frozen <= 0.92 * GPUS[gpu].memory_gib)
    assert ("does NOT fit beside" in render(result)) is not resident


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_every_combination_is_finite(gpu: str, decoder: str) -> None:
    result = estimate(gpu, decoder=decoder)
    assert all(0 < value < 1e4 for value in (*result.memory_gib.values(), *result.seconds.values(), result.hours))


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"gpu": "x"}, "--gpu"),
        ({"gpu": "H100-80GB", "decoder": "x"}, "--decoder"),
        ({"gpu": "H100-80GB", "gpus": 0}, "--gpus"),
        ({"gpu": "H100-80GB", "gpus": 10**400}, "--gpus"),
        ({"gpu": "H100-80GB", "steps": 0}, "--steps"),
        ({"gpu": "H100-80GB", "steps": 10**400}, "--steps"),
    ],
)
def test_unknown_values(kwargs: dict, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        estimate(**kwargs)
    assert caught.value.key == key


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_the_setting_is_what_a_run_composes(compose, decoder: str) -> None:
    config, run = compose("data.train_files=x", "data.val_files=y", f"uae/decoder={decoder}"), setting(decoder)
    uae, rollout = config.uae, config.actor_rollout_ref.rollout
    assert run.denoising_passes == uae.decoder.num_steps * (1 + (uae.decoder.guidance > 1)) == 20
    assert run.tokens == uae.conditioner.length + (uae.decoder.height // 16) * (uae.decoder.width // 16) == 640 + 1024
    assert run.server_share == rollout.gpu_memory_utilization
    assert run.captions_per_gpu * config.trainer.n_gpus_per_node == config.data.train_batch_size * rollout.n
