# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae train`` and ``check``: few words for a training command."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import build_model
from verl_uae.cli import main
from verl_uae.commands import train as few
from verl_uae.commands.train import Asked
from verl_uae.errors import ConfigError
from verl_uae.estimate.composing import composed
from verl_uae.estimate.rates import GPUS
from verl_uae.launch import callbacks
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


def test_five_words_become_the_training_command(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[list[str]] = []

    def become(program: str, command: list[str]) -> None:
        assert program == command[0]
        asked.append(command)

    monkeypatch.setattr(os, "execv", become)
    main(["train", *words(world, "g4u", "--steps", "7", "uae.seed=4")])
    (command,) = asked
    assert command[:5] == [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "uae_g4u"]
    assert command[5:] == [
        "hardware=cpu",
        f"data.train_files={world}/data/train.parquet",
        f"data.val_files={world}/data/val.parquet",
        f"uae.decoder.path={world}/model",
        f"actor_rollout_ref.model.path={world}/model/captioner",
        # What the model was made for, as its folder says.
        "uae.conditioner.length=20",
        "data.max_response_length=24",
        "uae.decoder.height=32",
        "uae.decoder.width=32",
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
    (tmp_path / "model_index.json").write_text("{}")
    asked = Asked("uae_u4g", None, str(tmp_path), tmp_path / "out", gpus=0)
    assert asked.name == "uae_u4g" and f"uae.conditioner.path={tmp_path}/language_model" in asked.words
    assert "uae.decoder.path=ORG/NAME" in Asked("u4g", None, "ORG/NAME", tmp_path, gpus=0).words


def test_a_check_says_whether_the_memory_does(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(few, "device_here", lambda: None)
    asked = words(world, "u4g", "uae.reward.terms=[{name: pixel}]", "uae.u4g.captions.writer=ranks")
    asked[asked.index("--gpus") + 1] = "1"
    assert main(["check", *asked]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  memory")]
    assert re.search(r" fits: \d\.\d of 73\.6 GiB of H100-80GB, in phase '[a-z ]+', and \d+ of \d+ GiB of a node", line)
    monkeypatch.setitem(GPUS, "L4-24GB", dataclasses.replace(GPUS["L4-24GB"], memory_gib=0.01))  # type: ignore[arg-type]
    assert main(["check", *asked, "--gpu", "L4-24GB"]) == 0
    assert re.search(r"  memory +does NOT fit.*: \d\.\d of 0\.0 GiB of L4-24GB", capsys.readouterr().out)
    assert main(["check", *asked, "--gpu", "L5"]) == 2
    assert "--gpu: unknown type 'L5'. Known: A100-40GB" in capsys.readouterr().err


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
        ({"data": "nowhere"}, "--data: nowhere: there is no such file in "),
        ({"data": "."}, "has no train.parquet; `verl-uae data pack PICTURES --out"),
        ({"model": "."}, "has no model_index.json: it is no model folder"),
        ({"gpus": "-1"}, "--gpus: must be at least 0, got -1"),
        ({"extra": "uae.decoder.ofload=true"}, "did you mean uae.decoder.offload?"),
        ({"extra": "trainer.logger=[console,tensorbord]"}, "Did you mean 'tensorboard'?"),
        ({"extra": "trainer.logger=null"}, "trainer.logger: is null; give names"),
        ({"extra": "uae.pretrain.prefetch=65", "stage": "pretrain"}, "uae.pretrain.prefetch: must"),
        ({"extra": "trainer=3"}, "trainer: is a section, got 3: set its keys, as in trainer.KEY=VALUE"),
        ({"extra": "uae.decoder.num_steps=0"}, "uae.decoder.num_steps: must be at least 1, got 0"),
        ({"extra": "uae.reward.terms=[{name: pixle}]"}, "Did you mean 'pixel'?"),
        ({"extra": "decoder/objective=dpo"}, "Did you mean 'dppo'?"),
        ({"extra": "presset=scenes"}, "did you mean preset?"),
        ({"extra": "objective=dppo"}, "objective: there is no such key; did you mean decoder/objective?"),
        ({"extra": "+decoder/objective=dpo"}, "Did you mean 'dppo'?"),
        ({"extra": "uae.seed=abc"}, "Value 'abc' of type 'str' could not be converted to Integer"),
        ({"extra": "uae/decoder=null"}, "Config group override must be a string or a list. Got NoneType"),
        ({"extra": "~uae.seed"}, "UAEConfig (DictConfig) does not support deletion"),
        ({"extra": "trainer.test_freq=null"}, "trainer.test_freq: must be a whole number, at least -1"),
        ({"data": "/dev/null"}, "--data: /dev/null: is a pipe or a device"),
        ({"model": ""}, "--model: is empty"),
        ({"extra": "data.train_files=x"}, "--data: data.train_files is set too; give one of the two"),
        ({"extra": "uae.decoder.path=x"}, "--model: uae.decoder.path is set too"),
        ({"extra": "trainer.default_local_dir=x"}, "--out: trainer.default_local_dir is set too"),
        ({"extra": "hardware=cpu"}, "--gpus: hardware is set too"),
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


def test_epochs_count_where_steps_are_not_given(world: Path, capsys: Any) -> None:
    epochs = ["trainer.total_training_steps=null", "trainer.total_epochs=null"]
    assert main(["check", *words(world, "u4g", *epochs)]) == 2
    assert "trainer.total_epochs: must be a whole number, at least 1, got None" in capsys.readouterr().err


def test_a_step_count_is_given_once(tmp_path: Path) -> None:
    asked = Asked("g4u", None, None, tmp_path, steps=3, overrides=["trainer.total_training_steps=5"])
    with pytest.raises(ConfigError, match=r"--steps: trainer\.total_training_steps is set too"):
        _ = asked.words


@pytest.mark.parametrize("name", ["a b", "a=b", "a,b", "it's", 'a"b', "Z\u00fcrich", "a(1)", "7", "a\\", "$HOME"])
def test_folders_of_any_name_are_read_as_they_are_written(
    world: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / name).symlink_to(world / "data")
    (tmp_path / f"m{name}").symlink_to(world / "model")
    monkeypatch.chdir(tmp_path)
    asked = Asked("g4u", Path(name), f"m{name}", Path(name), gpus=0)
    config = composed(asked.name, asked.words)
    assert config.data.train_files == f"{name}/train.parquet" and config.data.val_files == f"{name}/val.parquet"
    assert config.uae.decoder.path == f"m{name}" and config.actor_rollout_ref.model.path == f"m{name}/captioner"
    assert config.trainer.default_local_dir == name and config.hydra.run.dir == f"{name}/hydra"
    monkeypatch.setattr(os, "execv", lambda *_: None)
    few.train(asked)
    assert shlex.split(capsys.readouterr().out)[1:] == ["python", *asked.command[1:]]


def test_rows_of_json_are_looked_at_too(world: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "rows.json").write_text('{"a":\n')
    line = ["check", "g4u", "--data", str(tmp_path / "rows.json"), "--model", str(world / "model"), "--gpus", "0"]
    assert main([*line, "--out", str(tmp_path / "run"), "preset=scenes", f"uae_home={world}"]) == 2
    assert "rows.json: no line is a row" in capsys.readouterr().err


def test_another_machine_and_keys_without_effect_are_said(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(callbacks, "cluster_address", lambda config: None)
    monkeypatch.setattr(callbacks, "ray_cpu_count", lambda: 1)
    monkeypatch.setattr(callbacks, "demand", lambda config: callbacks.Demand({}, {"everything": 2000}))
    assert main(["check", *words(world, "g4u", "uae.u4g.samples_per_caption=4")]) == 0
    out = capsys.readouterr().out
    assert "  this machine  cannot run it: " in out and "the run takes 2000 CPUs" in out
    assert "  warning: uae.u4g.samples_per_caption is set, but stage g4u does not read it\n" in out
    assert out.endswith("nothing else was found that would keep this command from training; it was not started\n")


@pytest.mark.parametrize("wrong", ["g4", "u4g uae.sed=3", "u4g --gpus -1", "u4g --data nowhere"])
def test_tiny_models_are_made_for_words_that_compose(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *wrong.split(), "--out", "run", "preset=tiny"]) == 2
    assert not (tmp_path / "run").exists()


#: A training command that needs a second to save what it has.
SAVES = """
import signal, sys, time
def save(number, _):
    time.sleep(1.0)
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
print("trains", flush=True)
time.sleep(60)
"""
TRAINS = """
import sys
from pathlib import Path
from verl_uae.commands import train
train.Asked.command = property(lambda self: [sys.executable, "-c", sys.argv[1]])
train.train(train.Asked("g4u", None, None, Path("run"), gpus=0))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_training_command_which_saves(number: signal.Signals) -> None:
    line = [sys.executable, "-c", TRAINS, SAVES]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("$ python -c ")
        # The command's quoted text has lines of its own.
        while process.stdout.readline() != "trains\n":
            assert process.poll() is None
        # As a terminal does it, and a scheduler.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.stdout.read() == "saved\n"
        assert process.wait(timeout=30) == 128 + number


@pytest.mark.slow
def test_a_stage_runs_without_data_or_model(tmp_path: Path) -> None:
    words = ["u4g", "--out", str(tmp_path / "run"), "--gpus", "0", "--steps", "1", "preset=tiny"]
    local = "++ray_kwargs.ray_init.address=local"
    # As a person's shell has it: only Ray's processes are told that they are on a CPU.
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    line = [sys.executable, "-m", "verl_uae.cli", "train", *words, local]
    result = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"if they are not there yet: {tmp_path}/run/tiny\n" in result.stdout
    assert (tmp_path / "run" / "global_step_1" / "decoder" / "model_index.json").is_file()
    assert "<td>CPU, seed 42</td>" in (tmp_path / "run" / "index.html").read_text()
