# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
from omegaconf import DictConfig

from tests.config.test_validate import changed
from verl_uae.config.path_keys import is_shards
from verl_uae.config.validate import validate
from verl_uae.errors import ConfigError

PRE, COLD = "uae.pretrain", "uae.cold_start"

#: overrides (parted by a space), key that is named, part of the message
PRETRAIN = [
    ("+uae.pretrain.densty=1", f"{PRE}.densty", "did you mean uae.pretrain.density"),
    (f"{PRE}.density.mode_scale=2", f"{PRE}.density.mode_scale", "at most 1.751"),
    (f"{PRE}.condition_dropout=1", f"{PRE}.condition_dropout", "no caption would be learnt"),
    (f"{PRE}.shift=0", f"{PRE}.shift", "above 0, got 0"),
    (f"{PRE}.buckets=true uae.decoder.width=48", "uae.decoder.width", "buckets=false"),
    (f"{PRE}.buckets=true {PRE}.bucket_step=20", f"{PRE}.bucket_step", "20 must divide 32"),
    ("uae.train.micro_batch_size=7", "uae.train.micro_batch_size", "must divide the 64 pairs a rank has"),
    (
        "data.train_files=a.tar trainer.total_training_steps=null",
        "trainer.total_training_steps",
        "no length",
    ),
    ("data.val_files=a.tar", "data.val_files", "must be parquet"),
    ("uae.train.ema.decay=1", "uae.train.ema.decay", "would never move"),
    ("uae.train.save_contents=[weights]", "uae.train.save_contents", "'weights' is none of model"),
    ("uae.train.fsdp_config.strategy=megatron", "uae.train.fsdp_config.strategy", "no MM-DiT on Megatron"),
    ("actor_rollout_ref.actor.strategy=megatron", "model_engine", "trains nothing else"),
    (
        "uae.train.fsdp_config.model_dtype=bf16 uae.train.lora.rank=0",
        "uae.train.fsdp_config.model_dtype",
        "all weights of the decoder train",
    ),
    (
        "uae.train.fsdp_config.model_dtype=bf16 uae.train.lora.rank=4 uae.train.train_projector=true",
        "uae.train.fsdp_config.model_dtype",
        "the projector trains",
    ),
    (
        "uae.train.fsdp_config.model_dtype=bf16 uae.train.lora.rank=4 uae.train.train_projector=false "
        "uae.train.fsdp_config.strategy=fsdp",
        "uae.train.fsdp_config.model_dtype",
        "use strategy=fsdp2",
    ),
]
COLD_START = [
    (f"{COLD}.gradient_steps=0", f"{COLD}.gradient_steps", "[1, 6] or be null, got 0"),
    (f"{COLD}.gradient_steps=7", f"{COLD}.gradient_steps", "got 7"),
    (f"{COLD}.kept_steps=-1", f"{COLD}.kept_steps", "at least 0"),
    (f"{COLD}.kept_steps=7", f"{COLD}.kept_steps", "goes through 6 steps; use at most 6"),
    (f"{COLD}.kept_steps=3 {COLD}.gradient_steps=2", f"{COLD}.kept_steps", "goes through 2 steps; use at most 2"),
    (f"{COLD}.kept_steps=1 uae.train.fsdp_config.strategy=fsdp", f"{COLD}.kept_steps", "use 0, or"),
    (
        f"{COLD}.train_decoder=false uae.train.train_projector=false {COLD}.captioner.train=false",
        f"{COLD}.captioner.train",
        "nothing trains",
    ),
    (f"{COLD}.semantic_weight=0", f"{COLD}.semantic_weight", "the decoder would learn nothing"),
    (f"{COLD}.captioner.fsdp_config.strategy=megatron", f"{COLD}.captioner.fsdp_config.strategy", "one of fsdp, fsdp2"),
    (
        f"{COLD}.captioner.fsdp_config.ulysses_sequence_parallel_size=2",
        f"{COLD}.captioner.fsdp_config.ulysses_sequence_parallel_size",
        "use 1",
    ),
    (
        f"{COLD}.captioner.fsdp_config.model_dtype=bf16 {COLD}.captioner.lora.rank=0",
        f"{COLD}.captioner.fsdp_config.model_dtype",
        "small updates are rounded away",
    ),
    ("uae.conditioner.path=/other", "uae.conditioner.path", "must be actor_rollout_ref.model.path"),
    ("uae.pretrain.cache_dir=/tmp/cache", "uae.pretrain.cache_dir", "of a trained captioner change"),
]
NAMES = {"uae_pretrain": "scenes_pretrain", "uae_cold_start": "scenes_cold_start"}


@pytest.fixture(scope="module")
def bases(compose, tiny_models) -> dict[str, DictConfig]:
    return {
        name: compose("hardware=cpu", f"preset={preset}", f"uae_home={tiny_models}", name=name)
        for name, preset in NAMES.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_settings_are_possible(bases: dict[str, DictConfig], name: str) -> None:
    validate(bases[name])


@pytest.mark.parametrize(
    ("name", "overrides", "key", "text"),
    [("uae_pretrain", *case) for case in PRETRAIN] + [("uae_cold_start", *case) for case in COLD_START],
)
def test_impossible_settings_are_named(
    bases: dict[str, DictConfig], name: str, overrides: str, key: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        validate(changed(bases[name], *overrides.split(" ")))
    assert caught.value.key == key


def test_shards_are_told_from_rows() -> None:
    assert is_shards("s3/{000..099}.tar") and is_shards(["a.tar", "https://host/b.tar?token=1"])
    assert not is_shards("a.parquet") and not is_shards(["a.tar", "b.parquet"]) and not is_shards([])
