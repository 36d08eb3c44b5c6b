# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""An untrained tiny world and the real training command on it.

The models have random weights, but the decoder's output layer is not zero, so captions differ in reward and every
step has a gradient.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from tests import forks
from verl_uae.checkpoints.inference import write_index
from verl_uae.families import family_of
from verl_uae.scenes.codec import build_codec
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.tiny_models import INFERENCE, build_captioner, build_decoder
from verl_uae.scenes.tokenizer import build_processor


def build_world(root: Path, *, train: int = 32, val: int = 8) -> Path:
    """Write captioner/, decoder/ and data/ under ``root``."""
    processor = build_processor()
    captioner = build_captioner(0, processor.tokenizer)
    captioner.save_pretrained(root / "captioner")
    processor.save_pretrained(root / "captioner")
    decoder = build_decoder(0, build_codec(0, fit_scenes=200))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = decoder.transformer.proj_out.weight
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    decoder.save_pretrained(str(root / "decoder"))
    write_dataset(root / "data", train=train, val=val, seed=0)
    return root


def build_model(world: Path) -> Path:
    """A model folder of the two models of a world, with the settings of inference of the built-in scenes."""
    model = Path(shutil.copytree(world / "decoder", world / "model"))
    shutil.copytree(world / "captioner", model / "captioner")
    write_index(model, family_of(model), asdict(INFERENCE))
    return model


_CAPTIONER = [
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
]
_DECODER = ["uae.u4g.samples_per_caption=4", "uae.train.micro_batch_size=8", "uae.train.ema.every=1"]
_PAIRS = ["uae.train.micro_batch_size=4", "uae.train.ema.every=1"]
_PRESETS = {"uae_pretrain": "scenes_pretrain", "uae_cold_start": "scenes_cold_start"}
_SIZES = {
    "uae_pretrain": _PAIRS,
    "uae_cold_start": _PAIRS,
    "uae_g4u": _CAPTIONER,
    "uae_u4g": _DECODER,
    "uae_unified": _CAPTIONER + _DECODER,
}


def train_command(world: Path, out: Path, overrides: Sequence[str] = (), config: str = "uae_g4u") -> list[str]:
    """The user's command, with output folders of the test."""
    return [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "--config-name",
        config,
        "hardware=cpu",
        f"preset={_PRESETS.get(config, 'scenes')}",
        f"uae_home={world}",
        f"hydra.run.dir={out}/hydra",
        f"trainer.default_local_dir={out}/checkpoints",
        "data.train_batch_size=4",
        *_SIZES[config],
        "trainer.total_training_steps=2",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.logger=[console,file]",
        # Nobody looks at it, and it is processes of its own.
        "++ray_kwargs.ray_init.include_dashboard=false",
        # The processes of a Ray that is joined do not have the environment of the command.
        f"++ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH={out}/metrics.jsonl",
        *overrides,
    ]


def environment(out: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a training process: offline, metrics into ``out/metrics.jsonl``."""
    out.mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HYDRA_FULL_ERROR": "1",
        "VERL_FILE_LOGGER_PATH": str(out / "metrics.jsonl"),
        **(extra or {}),
    }


def train(
    world: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    extra_env: Mapping[str, str] | None = None,
    timeout: float = 500,
    config: str = "uae_g4u",
) -> subprocess.CompletedProcess[str]:
    """Run the training command, in forks, to its end; output is kept in ``out/log.txt``."""
    python = forks.python()
    workers = f"++ray_kwargs.ray_init.runtime_env.py_executable={python}"
    result = subprocess.run(
        [python, *train_command(world, out, [workers, *overrides], config)[1:]],
        env=environment(out, extra_env),
        cwd=out,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    (out / "log.txt").write_text(result.stdout, encoding="utf-8")
    return result


def metrics(out: Path) -> dict[int, dict[str, Any]]:
    """Logged metrics by step; of a step that was logged twice, the last."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    return {int(record["step"]): record["data"] for record in records}


def repeatable(out: Path) -> dict[int, dict[str, Any]]:
    """Of :func:`metrics`, what depends on neither the clock nor the machine's memory."""
    measured = ("timing_s/", "timing_per_token_ms/", "perf/", "seconds_per_picture")
    return {
        step: {name: value for name, value in record.items() if not any(part in name for part in measured)}
        for step, record in metrics(out).items()
    }


class Started:
    """The training command, running; faults are provoked in its processes."""

    def __init__(
        self,
        world: Path,
        out: Path,
        overrides: Sequence[str],
        config: str = "uae_g4u",
        under: Sequence[str] = (),
        extra_env: Mapping[str, str] | None = None,
    ) -> None:
        self.out = out
        settings = ["trainer.total_training_steps=200", "trainer.save_freq=100", "trainer.resume_mode=auto"]
        command = [*under, *train_command(world, out, [*settings, *overrides], config)]
        self._log = out / "log.txt"
        with open(self._log, "w") as log:
            variables = environment(out, extra_env)
            self.process = subprocess.Popen(command, env=variables, cwd=out, stdout=log, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def step(self) -> int:
        return max(metrics(self.out), default=0) if (self.out / "metrics.jsonl").is_file() else 0

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 500
        while self.step < step:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.1)

    def send(self, name: str, number: int, which: int = 0) -> None:
        """A signal to a process of Ray by the name of its actor's class."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        [*found] = [child for child in family if f"ray::{name}" in " ".join(child.cmdline())]
        found[which].send_signal(number)

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Exit code and last line of ours; nothing of the run may stay behind."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        try:
            code = self.process.wait(seconds)
        finally:
            _, alive = psutil.wait_procs(family, timeout=20)
            for child in alive:
                child.kill()
        assert not alive, alive
        assert (
            "*** SIG" not in self.log and 'Traceback (most recent call last):\n  File "<frozen runpy>' not in self.log
        )
        return code, [line for line in self.log.splitlines() if line.startswith("verl_uae: ")][-1]
