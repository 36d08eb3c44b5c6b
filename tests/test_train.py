# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae train`` and ``check``: few words for a training command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import build_model
from verl_uae.cli import main
from verl_uae.commands import train as few
from verl_uae.commands.train import Asked
from verl_uae.scenes.dataset import write_dataset


@pytest.fixture(scope="module")
def world(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data of the scenes, and a model folder of both."""
    root = tmp_path_factory.mktemp("train")
    for name in ("captioner", "decoder"):
        (root / name).symlink_to(tiny_models / name)
    write_dataset(root / "data", train=32, val=8, seed=0)
    build_model(root)
    return root


def words(world: Path, stage: str, *more: str) -> list[str]:
    data, model = str(world / "data"), str(world / "model")
    return [
        stage,
        "--data",
        data,
        "--model",
        model,
        "--out",
        str(world / "run"),
        "--gpus",
        "0",
        "preset=scenes",
        f"uae_home={world}",
        *more,
    ]


def test_five_words_are_the_training_command(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], check: bool) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    assert main(["train", *words(world, "g4u", "--steps", "7", "uae.seed=4")]) == 3
    (command,) = asked
    assert command[:5] == [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "uae_g4u"]
    assert command[5:] == [
        "hardware=cpu",
        f"data.train_files={world}/data/train.parquet",
        f"data.val_files={world}/data/val.parquet",
        f"uae.decoder.path={world}/model",
        f"actor_rollout_ref.model.path={world}/model/captioner",
        f"trainer.default_local_dir={world}/run",
        f"hydra.run.dir={world}/run/hydra",
        "trainer.total_training_steps=7",
        "preset=scenes",
        f"uae_home={world}",
        "uae.seed=4",
    ]
    assert capsys.readouterr().out == f"$ python {' '.join(command[1:])}\n"


def test_gpus_are_those_of_this_machine_unless_they_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(few, "_devices", lambda: 4)
    first = lambda **how: Asked("u4g", None, None, tmp_path, **how).words[0]  # noqa: E731
    assert first() == "trainer.n_gpus_per_node=4" and first(gpus=2) == "trainer.n_gpus_per_node=2"
    assert first(gpus=0) == "hardware=cpu"
    assert first(overrides=["hardware=rocm"]).startswith("trainer.default_local_dir=")
    monkeypatch.setattr(few, "_devices", lambda: 0)
    assert first() == "hardware=cpu"


def test_a_language_model_beside_the_captioner_is_what_reads(tmp_path: Path) -> None:
    for part in ("captioner", "language_model"):
        (tmp_path / part).mkdir()
    (tmp_path / "model_index.json").touch()
    asked = Asked("uae_u4g", None, str(tmp_path), tmp_path / "out", gpus=0)
    assert asked.name == "uae_u4g" and f"uae.conditioner.path={tmp_path}/language_model" in asked.words
    assert "uae.decoder.path=ORG/NAME" in Asked("u4g", None, "ORG/NAME", tmp_path, gpus=0).words


@pytest.mark.parametrize("stage", ["pretrain", "cold_start", "g4u", "u4g", "unified"])
def test_what_can_be_checked_is_checked_and_told(world: Path, stage: str, capsys: Any) -> None:
    preset = f"preset=scenes_{stage}" if stage in ("pretrain", "cold_start") else "preset=scenes"
    assert main(["check", *words(world, stage, preset)]) == 0
    out = capsys.readouterr().out
    assert f"--config-name uae_{stage}" in out and f"  stage       {stage}, " in out
    assert "  first rows  16 of 16 can be used\n" in out and "was not started" in out
    if stage != "pretrain":
        (line,) = (line for line in out.splitlines() if line.startswith("  reward"))
        assert line.startswith("  reward      1.000 for the picture itself, 0.") and "mean colour" in line
    assert not (world / "run").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"stage": "g4"}, "STAGE: there is no stage 'g4'. Did you mean 'g4u'?"),
        ({"data": "nowhere"}, "--data: nowhere is not there"),
        ({"data": "."}, "has no train.parquet; `verl-uae data pack PICTURES --out"),
        ({"model": "."}, "has no model_index.json: it is no model folder"),
        ({"gpus": "-1"}, "--gpus: must be at least 0, got -1"),
        ({"extra": "uae.decoder.ofload=true"}, "did you mean uae.decoder.offload?"),
        ({"extra": "uae.decoder.num_steps=0"}, "uae.decoder.num_steps: must be at least 1, got 0"),
        ({"extra": "uae.reward.terms=[{name: pixle}]"}, "Did you mean 'pixel'?"),
        ({"extra": "decoder/objective=dpo"}, "Did you mean 'dppo'?"),
        ({"extra": "presset=scenes"}, "did you mean preset?"),
    ],
)
def test_a_wrong_word_is_one_line_with_its_remedy(
    world: Path, change: dict[str, str], error: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"data": str(world / "data"), "model": str(world / "model"), "gpus": "0", **change}
    line = ["check", asked.get("stage", "g4u"), "--out", "run", "preset=scenes", f"uae_home={world}"]
    for name in ("data", "model", "gpus"):
        line += [f"--{name}", asked[name]]
    assert main([*line, *([asked["extra"]] if "extra" in asked else [])]) == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and error in found[0]


@pytest.mark.slow
def test_a_stage_runs_without_data_or_model(tmp_path: Path) -> None:
    words = ["u4g", "--out", str(tmp_path / "run"), "--gpus", "0", "--steps", "1", "preset=tiny"]
    local = "++ray_kwargs.ray_init.address=local"
    result = subprocess.run(
        [sys.executable, "-m", "verl_uae.cli", "train", *words, local], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"tiny models and data of the built-in scenes: {tmp_path}/run/tiny" in result.stdout
    assert (tmp_path / "run" / "global_step_1" / "decoder" / "model_index.json").is_file()
