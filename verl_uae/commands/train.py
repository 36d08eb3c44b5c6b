# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae train`` and ``verl-uae check``: a stage by a few words, as the training command that it stands for."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from verl_uae.checkpoints.inference import keys_of_model
from verl_uae.checkpoints.names import CAPTIONER, LANGUAGE_MODEL, MODEL_INDEX
from verl_uae.errors import ConfigError, describe
from verl_uae.estimate.rates import USUAL_GPU, device_here, rates_of
from verl_uae.paths import argument_path, existing_file, expand, override
from verl_uae.registry import known
from verl_uae.settings import STAGES, SUPERVISED, set_keys
from verl_uae.stages.common.banner import banner, lines
from verl_uae.waiting import saying

#: Word for models and data that are made.
TINY = "preset=tiny"

#: Option -> key that it sets.
_SAME = {
    "data": "data.train_files",
    "model": "uae.decoder.path",
    "out": "trainer.default_local_dir",
    "steps": "trainer.total_training_steps",
    "gpus": "hardware",
}

EXAMPLE = """example:
  verl-uae data pack PICTURES --out DATA --max-pixels 65536
  verl-uae check g4u --data DATA --model MODEL --out RUN
  verl-uae train g4u --data DATA --model MODEL --out RUN --steps 200 uae.decoder.num_steps=20
  verl-uae train u4g --out outputs/try --gpus 0 --steps 2 preset=tiny    # no data, no model
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A run by its few words; None is what the configuration says."""

    stage: str
    data: Path | None
    """Folder as ``verl-uae data pack`` writes it, or a file of training rows."""
    model: str | None
    """Model folder or decoder folder, see docs/formats.md, or the id of one on the hub."""
    out: Path
    steps: int | None = None
    gpus: int | None = None
    """Of this machine; 0 is a CPU, and so is None where there is none."""
    overrides: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Of the configuration.

        Raises:
            ConfigError: there is no such stage.
        """
        stage = self.stage.removeprefix("uae_")
        if stage not in STAGES:
            raise ConfigError("STAGE", f"there is no stage {self.stage!r}.{known(stage, STAGES)}")
        return f"uae_{stage}"

    @property
    def words(self) -> list[str]:
        """Hydra overrides, those that were given last.

        Raises:
            ConfigError: data or model are not there, or an override sets what an option sets.
        """
        keys = set_keys(self.overrides)
        for option, key in _SAME.items():
            if getattr(self, option) is not None and key in keys:
                raise ConfigError(f"--{option}", f"{key} is set too; give one of the two")
        words = [*self._hardware(), *self._data(), *self._model()]
        words += [override("trainer.default_local_dir", self.out), override("hydra.run.dir", self.out / "hydra")]
        if self.steps is not None:
            words.append(f"trainer.total_training_steps={self.steps}")
        return [*words, *self.overrides]

    @property
    def command(self) -> list[str]:
        """The training command."""
        return [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", self.name, *self.words]

    def _hardware(self) -> list[str]:
        if "hardware" in set_keys(self.overrides):
            return []
        count = _devices() if self.gpus is None else self.gpus
        if count < 0:
            raise ConfigError("--gpus", f"must be at least 0, got {count}")
        return [f"trainer.n_gpus_per_node={count}"] if count else ["hardware=cpu"]

    def _data(self) -> list[str]:
        if self.data is None:
            return []
        from verl_uae.data.pack import TRAIN_FILE, VAL_FILE

        train = self.data / TRAIN_FILE if self.data.is_dir() else self.data
        if self.data.is_dir() and not train.is_file():
            what = f"has no {TRAIN_FILE}; `verl-uae data pack PICTURES --out {self.data}` writes one"
            raise ConfigError("--data", f"{self.data} {what}")
        existing_file(train, "--data")
        val = train.with_name(VAL_FILE)
        return [override("data.train_files", train), override("data.val_files", val if val.is_file() else train)]

    def _model(self) -> list[str]:
        if self.model is None:
            return []
        if not self.model.strip():
            raise ConfigError("--model", "is empty; give a folder or an id on the hub")
        folder, words = expand(self.model), [override("uae.decoder.path", self.model)]
        if not folder.is_dir():
            return words
        if not (folder / MODEL_INDEX).is_file():
            raise ConfigError("--model", f"{folder} has no {MODEL_INDEX}: it is no model folder (docs/formats.md)")
        for part, key in ((CAPTIONER, "actor_rollout_ref.model.path"), (LANGUAGE_MODEL, "uae.conditioner.path")):
            if (folder / part).is_dir():
                words.append(override(key, folder / part))
        own = keys_of_model(folder).items()
        return words + [override(key, value) if isinstance(value, str) else f"{key}={value}" for key, value in own]


def train(asked: Asked, say: Callable[[str], Any] = print) -> NoReturn:
    """Say the training command, and become it: signals reach it alone, which saves before it ends, and its exit code is
    this command's."""
    asked = with_tiny_models(asked, say)
    say(f"$ {shlex.join(['python', *asked.command[1:]])}")
    sys.stdout.flush()
    os.execv(sys.executable, asked.command)


def check(asked: Asked, say: Callable[[str], Any] = print, gpu: str | None = None) -> int:
    """Do what the training command does before Ray starts, and say what would follow. That this machine is not the one
    for it is said too, and is no error: the run may be for another.

    Args:
        asked: the run.
        say: prints a line.
        gpu: type that memory is estimated for; None is that of this machine, or a usual one where it has none that is
            known.

    Raises:
        ConfigError: an impossible setting, as the training command would refuse it, or there is no such type.
    """
    from verl_uae.commands.reward import tried
    from verl_uae.config.condition_length import length_words
    from verl_uae.config.validate import check_all, unread
    from verl_uae.estimate.composing import composed
    from verl_uae.launch.callbacks import check_logger, check_place

    rates_of(gpu or USUAL_GPU)
    asked = with_tiny_models(asked, say)
    config = composed(asked.name, asked.words)
    check_all(config)
    check_logger(config)
    say(f"$ {shlex.join(['python', *asked.command[1:]])}")
    found, what = {**banner(config), "condition": length_words(config), **tried(config)}, "nothing"
    if config.trainer.device != "cpu":
        found["memory"] = _memory(asked, gpu)
    try:
        check_place(config, _devices())
    except ConfigError as error:
        found["this machine"], what = f"cannot run it: {error}", "nothing else"
    for line in [*lines(found), *(f"  warning: {line}" for line in unread(config))]:
        say(line)
    say(f"{what} was found that would keep this command from training; it was not started")
    return 0


def _memory(asked: Asked, gpu: str | None) -> str:
    from verl_uae.estimate.composing import command
    from verl_uae.estimate.estimator import Estimator
    from verl_uae.estimate.report import memory_words
    from verl_uae.estimate.run import UNCOUNTED

    here = device_here() if gpu is None else None
    gpu = gpu or (here and here.type) or USUAL_GPU
    try:
        with saying("the estimate of memory"):
            estimator = Estimator(command(asked.name, asked.words))
            found = estimator.estimate(gpu)
            fits = found.fits and found.host_fits
            remedies = [] if fits else estimator.host_remedies(gpu) if found.fits else estimator.remedies(gpu)
    except UNCOUNTED as error:
        return f"cannot be estimated: {describe(error)}"
    return memory_words(found, remedies)


def with_tiny_models(asked: Asked, say: Callable[[str], Any]) -> Asked:
    """The same, with models and data of the built-in scenes in its folder where ``preset=tiny`` asks for them: trained
    for seconds, to see a stage run on this machine.

    Raises:
        ConfigError: the words do not compose.
    """
    if TINY not in asked.overrides:
        return asked
    from verl_uae.estimate.composing import composed
    from verl_uae.scenes.joint_training import JointConfig
    from verl_uae.scenes.quickstart import Timings, prepare

    home, stage = asked.out / "tiny", asked.name.removeprefix("uae_")
    own = f"scenes_{stage}" if stage in SUPERVISED else "scenes"
    rest = [word for word in asked.overrides if word != TINY]
    asked = dataclasses.replace(asked, overrides=[f"preset={own}", override("uae_home", home), *rest])
    # A wrong word is found before anything is made.
    composed(asked.name, asked.words)
    say(f"tiny models and data of the built-in scenes, about a minute if they are not there yet: {home}")
    home.mkdir(parents=True, exist_ok=True)
    prepare(home, 0, Timings(), say, JointConfig(codec_steps=50, steps=50))
    return asked


def add_parser(commands: Any) -> None:
    """Add ``train`` and ``check`` to the command ``verl-uae``."""
    for name, run, what in (
        ("train", train, "run a stage, and print the training command that these words stand for"),
        ("check", check, "check all that the same words of train can be checked for before it starts"),
    ):
        parser = commands.add_parser(
            name,
            help=what,
            usage=f"verl-uae {name} STAGE --out OUT [options] [KEY=VALUE ...]",
            description=f"{what}; KEY=VALUE is any override of Hydra, as behind that command",
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("stage", metavar="STAGE", help=f"one of {', '.join(STAGES)}")
        parser.add_argument("--data", type=argument_path, help="folder that `verl-uae data pack` wrote, or one file")
        parser.add_argument("--model", help="model folder (or decoder folder), or id on the hub")
        parser.add_argument("--out", type=argument_path, required=True, help="folder of checkpoints, panels and logs")
        parser.add_argument("--steps", type=int, help="training steps (default: the stage's)")
        parser.add_argument("--gpus", type=int, help="GPUs of this machine (default: all there are; 0: CPU)")
        if run is check:
            parser.add_argument(
                "--gpu",
                metavar="TYPE",
                help=f"whose memory must do, see verl-uae estimate --list (default: this machine's, else {USUAL_GPU})",
            )
        parser.set_defaults(run=_runner(run))


def _runner(run: Callable[..., int]) -> Callable[[argparse.Namespace], int]:
    def command(args: argparse.Namespace) -> int:
        asked = Asked(args.stage, args.data, args.model, args.out, args.steps, args.gpus, args.overrides)
        return run(asked, gpu=args.gpu) if run is check else run(asked)

    return command


def _devices() -> int:
    import torch

    return int(torch.cuda.device_count())
