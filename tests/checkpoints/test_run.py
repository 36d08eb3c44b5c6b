# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.checkpoints.test_card import rows
from verl_uae.checkpoints.names import RUN_CONFIG
from verl_uae.checkpoints.record import HIDDEN, RunConfig, config_text, write_run_config
from verl_uae.checkpoints.step import mark_complete
from verl_uae.errors import CheckpointError, ConfigError

TEXT = """
actor_rollout_ref:
  model: {path: the/captioner}
  actor: {optim: {lr: 1.0e-6}}
uae:
  seed: 3
  conditioner: {path: "${actor_rollout_ref.model.path}", length: 20}
  reward:
    terms: [{name: pixel, weight: 0.5, params: {}}]
    min_std: 0.001
data: {train_files: [TRAIN], val_files: VAL, train_batch_size: 4}
broken: "${no.such.key}"
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "global_step_7"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "model.pt").write_bytes(b"1234")
    mark_complete(folder, 7)
    return folder


def configured(path: Path, root: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / "train.parquet").write_bytes(b"rows")
    path.write_text(TEXT.replace("TRAIN", str(root / "train.parquet")).replace("VAL", str(root / "gone.parquet")))
    return path


@pytest.mark.parametrize("place", ["checkpoints/hydra/.hydra", "hydra/.hydra"])
def test_the_configuration_is_found_near_the_checkpoints(checkpoint: Path, tmp_path: Path, place: str) -> None:
    assert RunConfig.of(checkpoint).get("uae.seed") is None
    configured(tmp_path / place / "config.yaml", tmp_path)
    run = RunConfig.of(checkpoint)
    assert (run.get("uae.seed"), run.get("uae.conditioner.path"), run.get("uae.nothing")) == (3, "the/captioner", None)
    assert run.get("uae.conditioner") == {"path": "the/captioner", "length": 20}


def test_the_step_folder_is_asked_before_hydras_folders(checkpoint: Path, tmp_path: Path) -> None:
    configured(tmp_path / "hydra" / ".hydra" / "config.yaml", tmp_path)
    write_run_config(checkpoint, config_text(OmegaConf.create({"uae": {"seed": 4, "twin": "${uae.seed}"}})))
    run = RunConfig.of(checkpoint)
    assert (run.get("uae.seed"), run.get("uae.twin"), run.get("data.train_batch_size")) == (4, 4, None)
    (checkpoint / RUN_CONFIG).write_text("uae: [")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        RunConfig.of(checkpoint)
    assert caught.value.path == checkpoint / RUN_CONFIG


def test_a_saved_configuration_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-from-the-environment")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    secret = {
        "wandb": {"api_key": "canary-1", "proxy": "https://me:canary-2@host/path"},
        "ray": {"runtime_env": {"env_vars": {"HF_TOKEN": "canary-3", "AWS_ACCESS_KEY_ID": "canary-4"}}},
        "terms": [{"params": {"headers": {"Authorization": "Bearer canary-5"}, "token": "canary-6"}}],
        "copied": "${oc.env:SOME_API_KEY}",
    }
    plain = {
        "data": {"prompt_key": "prompt", "max_tokens": 24, "token_file": "/run/token", "image": None},
        "ray": {"runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "VERL_PLATFORM": "cpu"}}},
        "actor": {"loss_agg_mode": "token-mean", "lr": 1e-6, "betas": [0.9, 0.99], "on": True},
        "url": "https://host/path@1",
    }
    text = config_text(OmegaConf.create(secret))
    assert "canary" not in text and text.count(HIDDEN) == 7, text
    assert OmegaConf.create(config_text(OmegaConf.create(plain))) == OmegaConf.create(plain)


def test_the_file_that_is_named_is_read(checkpoint: Path, tmp_path: Path) -> None:
    path = configured(tmp_path / "elsewhere.yaml", tmp_path)
    assert RunConfig.of(checkpoint, str(path)).get("uae.seed") == 3
    for text, error in ((None, "cannot be read"), ("a: [", "cannot be read"), ("- 1", "holds no settings")):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        with pytest.raises(ConfigError, match=f"--run-config: .*{error}"):
            RunConfig.of(checkpoint, str(path))


def test_a_value_that_cannot_be_resolved_is_named(checkpoint: Path, tmp_path: Path) -> None:
    run = RunConfig.of(checkpoint, str(configured(tmp_path / "config.yaml", tmp_path)))
    with pytest.raises(ConfigError, match="broken: cannot be resolved"):
        run.get("broken")


def test_the_card_says_constants_rewards_and_the_digest_of_the_data(checkpoint: Path, tmp_path: Path) -> None:
    run = RunConfig.of(checkpoint, str(configured(tmp_path / "config.yaml", tmp_path)))
    text = run.card("title", "origin", {"captioner": "the/captioner"}, {"reward": 0.5}).render()
    assert rows(text, "Reward terms") == [["0: pixel", "weight=0.5"]]
    assert rows(text, "Training data") == [
        ["train.parquet", hashlib.sha256(b"rows").hexdigest()],
        ["gone.parquet", "not found"],
    ]
    constants = dict(rows(text, "Constants"))
    assert constants["uae.seed"] == "3" and constants["uae.reward.min_std"] == "0.001"
    assert constants["actor_rollout_ref.actor.optim.lr"] == "1e-06" and constants["data.train_batch_size"] == "4"
    assert rows(text, "Evaluation") == [["reward", "0.5"]]


def test_a_card_without_configuration_has_no_constants() -> None:
    assert "## Constants" not in RunConfig().card("title", "origin", {}, {}).render()
