# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.config.test_validate import changed
from verl_uae.config.validate import validate
from verl_uae.errors import ConfigError

EVERY = ("uae_pretrain", "uae_cold_start", "uae_g4u", "uae_u4g", "uae_unified")
PRESETS = {"uae_pretrain": "scenes_pretrain", "uae_cold_start": "scenes_cold_start"}
RESUME = "trainer.resume_mode=resume_path trainer.resume_from_path="
#: overrides (parted by a space), key that is named, part of the message
IMPOSSIBLE = [
    ("trainer.resume_mode=atuo", "trainer.resume_mode", "one of disable, auto, resume_path, got 'atuo'"),
    (f"{RESUME}null", "trainer.resume_from_path", "must be a folder global_step_<N>, got None"),
    (f"{RESUME}/somewhere", "trainer.resume_from_path", "must be a folder global_step_<N>"),
    (f"{RESUME}/no/global_step_3", "trainer.resume_from_path", "/no/global_step_3: there is no such folder"),
    (
        "actor_rollout_ref.actor.checkpoint.async_save=true",
        "actor_rollout_ref.actor.checkpoint.async_save",
        "no run could resume from it",
    ),
    ("+data.uae_verify_image=off", "data.uae_verify_image", "unknown key; known: uae_image_limits"),
    ("data.uae_max_bad_share=2", "data.uae_max_bad_share", "must be at most 1"),
    ("critic.enable=true", "critic.enable", "no stage has a critic"),
    ("data.train_files=/no/train.parquet", "data.train_files", "/no/train.parquet: there is no such file"),
    ("data.val_files=[./a.parquet,./b.parquet]", "data.val_files", "./a.parquet: there is no such file"),
]


@pytest.fixture(scope="module")
def bases(compose, tiny_models: Path) -> dict[str, Any]:
    """The five stages on tiny models."""
    made = {}
    for name in EVERY:
        preset = PRESETS.get(name, "scenes")
        made[name] = compose("hardware=cpu", f"preset={preset}", f"uae_home={tiny_models}", name=name)
    return made


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("overrides", "key", "text"), IMPOSSIBLE, ids=[row[0] for row in IMPOSSIBLE])
def test_every_stage_refuses_it(bases: dict[str, Any], name: str, overrides: str, key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        validate(changed(bases[name], *overrides.split(" ")))
    assert caught.value.key == key


@pytest.mark.parametrize("name", [name for name in EVERY if name != "uae_g4u"])
def test_a_second_place_for_checkpoints_is_refused_where_the_decoder_is_trained(
    bases: dict[str, Any], name: str
) -> None:
    with pytest.raises(ConfigError, match=r"^trainer\.default_hdfs_dir: the trained decoder is saved to"):
        validate(changed(bases[name], "trainer.default_hdfs_dir=hdfs://somewhere"))


@pytest.mark.parametrize("name", EVERY)
def test_a_missing_captioner_is_named_before_anything_starts(bases: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=r"^actor_rollout_ref\.model\.path: /no/captioner: there is no such folder"):
        validate(changed(bases[name], "actor_rollout_ref.model.path=/no/captioner"))


@pytest.mark.parametrize("name", EVERY)
def test_a_stage_of_another_name_than_the_trainer_is_refused(bases: dict[str, Any], name: str) -> None:
    other = "g4u" if name != "uae_g4u" else "u4g"
    with pytest.raises(ConfigError, match=f"uae.stage: is {other}, the trainer is {name}"):
        validate(changed(bases[name], f"uae.stage={other}"))


def test_a_trainer_of_ones_own_may_have_any_stage(bases: dict[str, Any]) -> None:
    validate(changed(bases["uae_g4u"], "trainer.v1.trainer_mode=my_g4u"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("schedule", "streamed"), ("pool", "own"), ("seeds_per_caption", 2)],
)
@pytest.mark.parametrize("name", EVERY)
def test_settings_of_decoder_workers_are_refused_where_there_are_none(
    bases: dict[str, Any], name: str, key: str, value: str | int
) -> None:
    overrides = (
        {f"uae.decoder.{key}={value}", "uae.decoder.pool=own"} if key == "schedule" else {f"uae.decoder.{key}={value}"}
    )
    config = changed(bases[name], *sorted(overrides))
    if name in ("uae_g4u", "uae_unified"):
        validate(config)
        return
    with pytest.raises(ConfigError, match=f"stage {name.removeprefix('uae_')} has no decoder workers"):
        validate(config)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("uae_g4u", ""),
        ("uae_unified", ""),
        ("uae_u4g", "stage u4g trains no captioner; set it to frozen"),
        ("uae_pretrain", "stage pretrain trains no captioner; set it to frozen"),
        ("uae_cold_start", "stage cold_start conditions on the captioner that it trains by itself; set it to frozen"),
    ],
)
def test_the_conditioner_can_follow_a_captioner_that_learns_from_rewards(
    bases: dict[str, Any], name: str, reason: str
) -> None:
    config = changed(bases[name], "uae.conditioner.weights=synced")
    if not reason:
        validate(config)
        return
    with pytest.raises(ConfigError, match=f"^uae.conditioner.weights: synced: {reason}$"):
        validate(config)


@pytest.mark.parametrize("name", ["uae_g4u", "uae_unified"])
def test_another_language_model_cannot_follow_the_captioner(
    bases: dict[str, Any], name: str, tiny_models: Path
) -> None:
    other = changed(bases[name], "uae.conditioner.path=owner/model")
    validate(other)
    with pytest.raises(ConfigError, match=r"set uae\.conditioner\.path to actor_rollout_ref\.model\.path, or weights"):
        validate(changed(other, "uae.conditioner.weights=synced"))


def test_ranks_that_split_a_sequence_share_their_samples(bases: dict[str, Any]) -> None:
    """64 captions on 4 GPUs: 16 each; with two GPUs to a sequence 32."""
    micro = ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32"]
    micro += [f"actor_rollout_ref.{part}.log_prob_micro_batch_size_per_gpu=32" for part in ("ref", "rollout")]
    gpus = "trainer.n_gpus_per_node=4"
    split = "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size"
    with pytest.raises(ConfigError, match="32 must divide the 16 captions a rank has"):
        validate(changed(bases["uae_g4u"], gpus, *micro))
    validate(changed(bases["uae_g4u"], gpus, *micro, f"{split}=2"))
    with pytest.raises(ConfigError, match="3 must divide 4 GPUs"):
        validate(changed(bases["uae_g4u"], gpus, *micro, f"{split}=3"))


def test_the_unified_stage_samples_captions_at_the_servers_temperature(bases: dict[str, Any]) -> None:
    sampled = ["uae.u4g.captions.do_sample=true", "uae.u4g.captions.temperature=0.5"]
    with pytest.raises(ConfigError, match=r"uae\.u4g\.captions\.temperature: 0\.5.*rollout\.temperature=1\.0"):
        validate(changed(bases["uae_unified"], *sampled))
    validate(changed(bases["uae_unified"], *sampled, "actor_rollout_ref.rollout.temperature=0.5"))
    validate(changed(bases["uae_u4g"], *sampled))
