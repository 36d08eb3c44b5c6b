# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from verl_uae.errors import ConfigError
from verl_uae.estimate import ADAPTERS_PER_RANK, DECODERS, GIB, GPUS, TRAININGS, estimate, render, setting


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


def test_adapters_by_hand() -> None:
    """On one GPU: bf16 weights, and 16 bytes for each number of an adapter of rank 32; nothing of it on the GPU while
    captions are written and drawn, where that would be too much."""
    numbers = 32 * 36 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
    actor = (2 * (3.09 + 0.67) * 1e9 + 16 * numbers) / GIB
    frozen = (2 * (2.47 + 0.05 + 3.09) + 4 * (0.084 + 0.30)) * 1e9 / GIB
    large = estimate("A100-80GB", gpus=1, decoder="sd35_medium", training="lora")
    assert large.memory_gib["decode"] == pytest.approx(frozen + 6.0 + actor) and not large.offload
    small = estimate("RTX4090-24GB", gpus=1, decoder="sd35_medium", training="lora")
    assert small.memory_gib["decode"] == pytest.approx(frozen + 6.0) and small.offload and small.fits
    assert small.memory_gib["caption"] == small.server_share * 24 == 12.0
    assert (
        small.memory_gib["update"] == large.memory_gib["update"] == pytest.approx(actor + 0.2 * 2 * 3.76e9 / GIB + 6.0)
    )
    assert "param_offload=true" in render(small) and "param_offload" not in render(large)
    # Offloading pays with time.
    assert small.seconds["overhead"] == pytest.approx(4.0 + 8 * actor / 10.0) and large.seconds["overhead"] == 4.0
    # All weights do not fit there at all.
    assert not estimate("RTX4090-24GB", gpus=1, decoder="sd35_medium").fits


def test_the_adapters_are_those_that_peft_places() -> None:
    """On a model of the published sizes without weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from verl_uae.checkpoints.captioner_adapters import without_towers

    text = {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008, "vocab_size": 151936}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 2, "tie_word_embeddings": True}
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config={**text, **heads}))
    config = LoraConfig(r=4, target_modules="all-linear", exclude_modules=without_towers(None))
    adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    found = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert found == pytest.approx(4 * ADAPTERS_PER_RANK * 1e9)


@pytest.mark.parametrize("training", TRAININGS)
def test_a_batch_is_the_same_on_fewer_gpus_and_grows_with_more(training: str) -> None:
    one, eight, sixteen = (estimate("H100-80GB", gpus=gpus, training=training) for gpus in (1, 8, 16))
    assert one.seconds["decode"] == pytest.approx(8 * eight.seconds["decode"])
    assert sixteen.seconds == pytest.approx(eight.seconds)


RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "uae" / "g4u" / "config"


@pytest.mark.parametrize(
    ("size", "gpus"), [("24gb", ("L4-24GB", "RTX4090-24GB")), ("80gb", ("A100-80GB", "H100-80GB", "H200-141GB"))]
)
def test_the_recipes_for_one_gpu_are_what_is_calculated(size: str, gpus: tuple[str, ...]) -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from tests.composing import MODULE
    from verl_uae.config.validate import validate

    overrides = [f"data.{split}_files={__file__}" for split in ("train", "val")]
    overrides += ["uae.decoder.path=org/decoder", f"hydra.searchpath=[pkg://{MODULE}]"]
    with initialize_config_dir(str(RECIPES), version_base=None):
        config = hydra_compose(f"g4u_qwen2_5_vl_3b_sd35_medium_lora_{size}", overrides=overrides)
    validate(config)
    hybrid, precision = config.actor_rollout_ref, config.actor_rollout_ref.actor.fsdp_config
    for gpu in gpus:
        found = estimate(gpu, gpus=config.trainer.n_gpus_per_node, decoder="sd35_medium", training="lora")
        assert found.fits and found.server_share == hybrid.rollout.gpu_memory_utilization
        assert found.offload is precision.param_offload is precision.optimizer_offload
        assert found.fits_resident is not config.uae.decoder.offload
    run = setting("sd35_medium", "lora")
    assert (run.rank, run.captions, run.images) == (
        hybrid.model.lora_rank,
        hybrid.rollout.n,
        config.data.train_batch_size,
    )
    assert {"bf16": 2}[precision.model_dtype] == run.width


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize("decoder", sorted(DECODERS))
@pytest.mark.parametrize("training", TRAININGS)
def test_every_combination_is_finite(gpu: str, decoder: str, training: str) -> None:
    result = estimate(gpu, decoder=decoder, training=training)
    assert all(0 < value < 1e4 for value in (*result.memory_gib.values(), *result.seconds.values(), result.hours))


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"gpu": "x"}, "--gpu"),
        ({"gpu": "H100-80GB", "decoder": "x"}, "--decoder"),
        ({"gpu": "H100-80GB", "training": "x"}, "--training"),
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
@pytest.mark.parametrize("training", TRAININGS)
def test_the_setting_is_what_a_run_composes(compose, decoder: str, training: str) -> None:
    files = ["data.train_files=x", "data.val_files=y"]
    config = compose(*files, f"uae/decoder={decoder}", f"captioner/training={training}")
    uae, rollout, run = config.uae, config.actor_rollout_ref.rollout, setting(decoder, training)
    assert run.denoising_passes == uae.decoder.num_steps * (1 + (uae.decoder.guidance > 1)) == 20
    assert run.tokens == uae.conditioner.length + (uae.decoder.height // 16) * (uae.decoder.width // 16) == 640 + 1024
    assert run.server_share == rollout.gpu_memory_utilization
    assert (run.images, run.captions) == (config.data.train_batch_size, rollout.n)
    assert run.rank == config.actor_rollout_ref.model.lora_rank
    assert run.width == {"fp32": 4, "bf16": 2}[config.actor_rollout_ref.actor.fsdp_config.model_dtype]
