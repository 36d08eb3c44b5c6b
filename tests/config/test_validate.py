# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tests import forks
from tests.composing import copied
from verl_uae.config.validate import validate
from verl_uae.errors import ConfigError

IMPOSSIBLE = [
    ("+uae.decoder.nmu_steps=3", "uae.decoder.nmu_steps", "did you mean uae.decoder.num_steps"),
    ("+uae.panell=1", "uae.panell", "did you mean uae.panel"),
    ("+uae.zzz=1", "uae.zzz", "known keys: stage, seed, screen, decoder"),
    ("actor_rollout_ref.rollout.n=1", "actor_rollout_ref.rollout.n", "at least 2 captions"),
    ("algorithm.adv_estimator=grpo", "algorithm.adv_estimator", "needs uae_grpo"),
    ("algorithm.filter_groups.enable=true", "algorithm.filter_groups.enable", "not supported"),
    ("reward.reward_model.enable=true", "reward.reward_model.enable", "uae.reward.terms"),
    ("data.truncation=left", "data.truncation", "could cut through an image"),
    ("trainer.max_actor_ckpt_to_keep=0", "trainer.max_actor_ckpt_to_keep", "or null for all steps), got 0"),
    ("trainer.max_actor_ckpt_to_keep=-1", "trainer.max_actor_ckpt_to_keep", "at least 1 (or null"),
    ("trainer.max_actor_ckpt_to_keep=1.5", "trainer.max_actor_ckpt_to_keep", "got 1.5"),
    ("trainer.max_actor_ckpt_to_keep=all", "trainer.max_actor_ckpt_to_keep", "got 'all'"),
    ("trainer.save_freq=2.5", "trainer.save_freq", "a whole number, at least -1 (-1 for none), got 2.5"),
    ("trainer.save_freq=null", "trainer.save_freq", "got None"),
    ("trainer.test_freq=null", "trainer.test_freq", "a whole number, at least -1 (-1 for none), got None"),
    ("trainer.test_freq=1.5", "trainer.test_freq", "got 1.5"),
    ("trainer.save_freq=-2", "trainer.save_freq", "at least -1 (-1 for none), got -2"),
    ("uae.decoder.dtype=float31", "uae.decoder.dtype", "one of float32, float16, bfloat16"),
    ("uae.conditioner.dtype=int8", "uae.conditioner.dtype", "got 'int8'"),
    ("actor_rollout_ref.model.lora_rank='8'", "actor_rollout_ref.model.lora_rank", "a whole number, at least 0"),
    ("actor_rollout_ref.model.lora_rank=-1", "actor_rollout_ref.model.lora_rank", "at least 0, got -1"),
    ("actor_rollout_ref.model.lora_alpha=16.5", "actor_rollout_ref.model.lora_alpha", "at least 1, got 16.5"),
    ("actor_rollout_ref.model.lora_alpha=0", "actor_rollout_ref.model.lora_alpha", "at least 1, got 0"),
    (
        "+actor_rollout_ref.model.target_parameters=[mlp.weight]",
        "actor_rollout_ref.model.target_parameters",
        "use actor_rollout_ref.model.target_modules",
    ),
    (
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora.merge",
        "takes merged weights only",
    ),
    ("actor_rollout_ref.model.lora.rank=8", "actor_rollout_ref.model.lora.rank", "actor_rollout_ref.model.lora_rank"),
    (
        "actor_rollout_ref.model.lora_adapter_path=owner/adapters",
        "actor_rollout_ref.model.lora_adapter_path",
        "is not read without actor_rollout_ref.model.lora_rank",
    ),
    (
        "actor_rollout_ref.actor.strategy=megatron",
        "actor_rollout_ref.actor.freeze_vision_tower",
        "Megatron engine does not obey it",
    ),
    ("uae.conditioner.weights=moving", "uae.conditioner.weights", "one of frozen, synced"),
    ("uae.decoder.schedule=later", "uae.decoder.schedule", "one of phased, streamed"),
    ("uae.decoder.schedule=streamed", "uae.decoder.pool", "needs own"),
    ("uae.decoder.pool=shared", "uae.decoder.pool", "one of colocated, own"),
    ("uae.stage=sft", "uae.stage", "one of pretrain"),
    ("uae.reward.advantage_std=batch", "uae.reward.advantage_std", "one of group, global, none"),
    ("uae.decoder.num_steps=0", "uae.decoder.num_steps", "at least 1, got 0"),
    ("uae.decoder.num_steps=10001", "uae.decoder.num_steps", "at most 10000, got 10001"),
    ("uae.decoder.guidance=0.5", "uae.decoder.guidance", "at least 1"),
    ("uae.decoder.shift=nan", "uae.decoder.shift", "above 0, got nan"),
    ("uae.reward.custom_weight=nan", "uae.reward.custom_weight", "must be a number, got nan"),
    ("uae.decoder.n_gpus_per_node=0", "uae.decoder.n_gpus_per_node", "at least 1, got 0"),
    ("uae.decoder.nnodes=-1", "uae.decoder.nnodes", "at least 1, got -1"),
    ("uae.decoder.guidance=nan", "uae.decoder.guidance", "got nan"),
    ("uae.decoder.guidance=inf", "uae.decoder.guidance", "got inf"),
    ("uae.decoder.seeds_per_caption=0", "uae.decoder.seeds_per_caption", "at least 1"),
    ("uae.decoder.shift=0", "uae.decoder.shift", "above 0"),
    ("uae.decoder.timeout_s=0", "uae.decoder.timeout_s", "above 0"),
    ("uae.reward.timeout_s=-1", "uae.reward.timeout_s", "above 0"),
    ("uae.reward.min_std=-0.1", "uae.reward.min_std", "at least 0"),
    ("uae.supervision.max_invalid_fraction=1.5", "uae.supervision.max_invalid_fraction", "at most 1"),
    ("uae.rollout.timeout_s=0", "uae.rollout.timeout_s", "above 0"),
    ("uae.panel.probes=-1", "uae.panel.probes", "at least 0"),
    ("uae.decoder.path=''", "uae.decoder.path", "is not set"),
    ("uae.decoder.path=/no/such/folder", "uae.decoder.path", "/no/such/folder: there is no such folder"),
    ("uae.decoder.path=some/relative/folder", "uae.decoder.path", "there is no such folder in"),
    ("actor_rollout_ref.actor.ppo_mini_batch_size=3", "actor_rollout_ref.actor.ppo_mini_batch_size", "3 must divide"),
    ("actor_rollout_ref.actor.ppo_mini_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size", "must divide"),
    (
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=7",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
        "7 must divide the 64 captions a rank has (8 images x 8 captions / 1 ranks)",
    ),
    (
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=48",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        "48 must divide the 64",
    ),
    ("trainer.n_gpus_per_node=3", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", "/ 3 ranks"),
    ("uae.reward.terms=[]", "uae.reward.terms", "at least one term"),
    (
        "uae.reward.terms=[{name: pixel, weight: 0.5}, {name: ssim, weight: -0.5}]",
        "uae.reward.terms",
        "sum to 0: terms that agree would give no reward",
    ),
    ("uae.reward.terms=[{name: pixel, weight: 0}]", "uae.reward.terms", "hold it out"),
    ("uae.reward.terms=[{name: pixle}]", "uae.reward.terms[0].name", "unknown reward 'pixle'. Did you mean 'pixel'"),
    ("uae.reward.terms=[{name: pixel, held_out: true}]", "uae.reward.terms", "at least one term"),
    ("uae.reward.terms=[{name: pixel, normalize: batch}]", "uae.reward.terms[0].normalize", "none, running"),
    (
        "uae.reward.terms=[{name: pixel}, {name: ssim, held_out: true, normalize: running}]",
        "uae.reward.terms[1].normalize",
        "in no sum",
    ),
    (
        "uae.reward.terms=[{name: remote, params: {url: 'http://127.0.0.1:1', timeout_s: 60}}]",
        "uae.reward.terms[0].params.timeout_s",
        "must be below the scorer's timeout, 60 s",
    ),
    ("uae.reward.terms=[{name: pixel, floor: 2.0}]", "uae.reward.terms[0].floor", "in [0, 1]"),
    ("uae.reward.tripwire_window=2", "uae.reward.tripwire_window", "at least 3"),
    ("uae.reward.tripwire_window=-1", "uae.reward.tripwire_window", "at least 0"),
    ("uae.reward.source_cache_mib=-1", "uae.reward.source_cache_mib", "at least 0"),
    ("uae.reward.terms=[{name: pixel}, {name: pixel}]", "uae.reward", "used twice"),
    (
        "uae.reward.terms=[{name: pixel, params: {q: 1}}]",
        "uae.reward.terms[0].params",
        "unexpected keyword argument 'q'",
    ),
    ("uae.reward.terms=[{name: pixel, params: {k: -1}}]", "uae.reward.terms[0].params.k", "above 0"),
    (
        "uae.reward.terms=[{name: clip, params: {path: x}}]",
        "uae.reward.terms[0].params",
        "unexpected keyword argument 'path'",
    ),
    (
        "uae.reward.terms=[{name: features, params: {backbone: clip}}]",
        "uae.reward.terms[0].name",
        "{name: clip} instead of {name: features",
    ),
    (
        "actor_rollout_ref.rollout.val_kwargs.do_sample=false",
        "actor_rollout_ref.rollout.val_kwargs.do_sample",
        "at val_kwargs.temperature=1 whatever it says",
    ),
    ("reward.custom_reward_function.path=/no/file.py", "reward.custom_reward_function.path", "/no/file.py"),
]


@pytest.fixture(scope="module")
def base(compose, tiny_overrides: list[str]) -> DictConfig:
    return compose(*tiny_overrides)


def changed(base: DictConfig, *overrides: str) -> DictConfig:
    """A copy with Hydra overrides applied, without composing anew: half a second each."""
    config = copied(base)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


@pytest.mark.parametrize(("override", "key", "text"), IMPOSSIBLE, ids=[override for override, _, _ in IMPOSSIBLE])
def test_impossible_settings_are_named(base: DictConfig, override: str, key: str, text: str) -> None:
    config = changed(base, override)
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        validate(config)
    assert caught.value.key == key


OWN, TOKEN = "uae.decoder.pool=own", "algorithm.rollout_correction.rollout_is=token"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([TOKEN], "uae.decoder.pool=own"),
        ([TOKEN, OWN, "uae.decoder.schedule=streamed"], "use schedule=phased"),
        ([TOKEN, OWN, "uae.conditioner.weights=synced"], "use weights=frozen"),
        ([OWN], "algorithm.rollout_correction.rollout_is=token"),
        ([TOKEN, OWN, "trainer.save_freq=1"], "trainer.save_freq=1 saves every one"),
    ],
)
def test_what_cannot_run_ahead_is_refused(base: DictConfig, overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        validate(changed(base, "uae.g4u.ahead=1", *overrides))
    assert caught.value.key == "uae.g4u.ahead"
    validate(changed(base, *overrides))
    with pytest.raises(ConfigError, match=r"uae\.g4u\.ahead: "):
        validate(changed(base, "uae.g4u.ahead=2", OWN, TOKEN))


def test_a_missing_decoder_path(compose) -> None:
    with pytest.raises(ConfigError, match=r"uae.decoder.path: is not set"):
        validate(compose("data.train_files=x", "data.val_files=y"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["uae.decoder.schedule=streamed", "uae.decoder.pool=own"],
        ["uae.decoder.path=org/model"],
        [f"actor_rollout_ref.rollout.val_kwargs.{entry}" for entry in ("do_sample=false", "temperature=0")],
        ["uae.decoder.shift=null"],
        ["uae.g4u.ahead=1", OWN, TOKEN],
        ["uae.g4u.ahead=1", OWN, "algorithm.rollout_correction.bypass_mode=true"],
        ["actor_rollout_ref.actor.use_dynamic_bsz=true", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=7"],
        ["trainer.n_gpus_per_node=4", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16"]
        + [f"actor_rollout_ref.{part}.log_prob_micro_batch_size_per_gpu=16" for part in ("ref", "rollout")],
        ["uae.reward.terms=[{name: efficientnet_lite0, params: {image_size: 64}}]"],
    ],
)
def test_possible_settings_pass(base: DictConfig, overrides: list[str]) -> None:
    validate(changed(base, *overrides))


OLD = "def compute_score(prediction):\n    return 0.0\n"
NEW = "from verl_uae.reward import reward_function\n@reward_function\ndef mine(source, k): ...\n"
WRONG = NEW.replace("source, k", "image")
TWO = NEW + "@reward_function\ndef other(source): ...\n"


@pytest.mark.parametrize(
    ("body", "settings", "key", "text"),
    [
        (OLD, {}, "name", "compute_score must take data_source, solution_str, ground_truth, extra_info by keyword"),
        (NEW, {}, "name", "mine must take source by keyword; it is mine(source, k) (missing a required argument: 'k')"),
        (NEW, {"reward_kwargs": "{q: 1}"}, "name", "mine must take source, q by keyword"),
        (NEW, {"reward_kwargs": "{source: 1}"}, "reward_kwargs", "['source'] are passed for every sample"),
        (NEW, {"name": "absent"}, "name", "has no function 'absent'; it declares mine"),
        (TWO, {}, "name", "it declares mine, other; name one"),
        (WRONG, {}, "path", "TypeError: mine(image) names none of the arguments source, reconstruction, caption, row"),
        ("1 / 0", {}, "path", "failed to import: ZeroDivisionError"),
        (NEW, {"path": "/no/file.py"}, "path", "cannot read '/no/file.py'"),
        (NEW, {"path": "'https://example.org/mine.py'"}, "path", "is a URL"),
        (NEW, {"mode": 0o666}, "path", "is writable by everyone on this machine"),
    ],
    ids=["verl", "declared", "parameter", "clash", "name", "two", "wrong", "broken", "missing", "url", "writable"],
)
def test_a_wrong_custom_function_is_refused_before_the_run(
    base: DictConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    settings: dict,
    key: str,
    text: str,
) -> None:
    import ray

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ray was started")

    # Another test of this process may have started it.
    monkeypatch.setattr(ray, "init", started)
    path = tmp_path / "mine.py"
    path.write_text(body)
    path.chmod(settings.pop("mode", 0o644))
    settings = {"path": path, **settings}
    for place in ("reward.custom_reward_function", "uae.reward.terms[1].params"):
        inside = ", ".join(f"{name}: {value}" for name, value in settings.items())
        if place.startswith("uae"):
            overrides = [f"uae.reward.terms=[{{name: pixel}}, {{name: custom, params: {{{inside}}}}}]"]
        else:
            overrides = [f"{place}.{name}={value}" for name, value in settings.items()]
        with pytest.raises(ConfigError, match=re.escape(text)) as caught:
            validate(changed(base, *overrides))
        assert caught.value.key == f"{place}.{key}"


def test_validation_changes_nothing(base: DictConfig) -> None:
    config = copied(base)
    before = OmegaConf.to_yaml(config)
    validate(config)
    assert OmegaConf.to_yaml(config) == before


def _refused(folder: Path, models: Path, *overrides: str) -> str:
    """What the training command prints before it leaves with exit code 2, without having started Ray."""
    command = [forks.python(), "-m", "verl.trainer.main_ppo", "--config-name", "uae_g4u", "hardware=cpu"]
    command += ["preset=scenes", f"uae_home={models}", f"hydra.run.dir={folder}", *overrides]
    result = subprocess.run(
        command, env=dict(os.environ), cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    output = result.stdout + result.stderr
    assert result.returncode == 2, output[-3000:]
    assert "Started a local Ray instance" not in output and "Traceback" not in output
    return output


def test_the_command_stops_with_exit_code_2_before_ray_starts(tiny_models: Path, tmp_path: Path) -> None:
    output = _refused(tmp_path, tiny_models, "uae.decoder.nmu_steps=3")
    assert "impossible setting: uae.decoder.nmu_steps: unknown key, did you mean uae.decoder.num_steps?" in output


def test_the_command_announces_user_code_and_refuses_a_wrong_signature(tiny_models: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(NEW)
    bad.write_text(OLD)
    params = f"{{path: {good}, reward_kwargs: {{k: 1}}}}"
    terms = f"uae.reward.terms=[{{name: custom, label: good, params: {params}}}]"
    output = _refused(tmp_path, tiny_models, terms, f"reward.custom_reward_function.path={bad}")
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (good, bad)}
    assert f"custom reward mine(source, k) from {good}, sha256 {digests[good]}" in output
    assert f"loaded user code {bad} (sha256 {digests[bad]})" in output
    assert f"impossible setting: reward.custom_reward_function.name: {bad}: compute_score must take data_s" in output
    assert "it is compute_score(prediction)" in output
