# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""From nothing to a trained captioner on the built-in scenes: tiny models, G4U through verl, before and after.

The report is a table of text, one HTML file with pictures, and one PNG.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import verl_uae
from verl_uae.checkpoints.export import ExportSettings, export_checkpoint, write_trained_captioner
from verl_uae.checkpoints.manifest import PACKAGES, verify_folder
from verl_uae.checkpoints.names import ACTOR, CAPTIONER, CONFIG, HUGGINGFACE, LORA_META, RUN_PAGE, step_name
from verl_uae.checkpoints.summary import shown
from verl_uae.curves import MetricsFiles, charts
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.files import write_text
from verl_uae.pages import data_uri, link, render_page
from verl_uae.paths import override
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.scorer import RewardScorer
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.evaluate import Evaluation, evaluate
from verl_uae.scenes.joint_training import JointConfig, World, train_tiny_models
from verl_uae.settings import set_keys
from verl_uae.versions import in_one_line, versions

#: Metric -> what it is called.
COLUMNS = {
    "reward": "reconstruction reward",
    "drawn": "exact attribute accuracy of the reconstructions",
    "words": "words per caption",
    "full_detail": "captions with full detail",
    "true": "captions in which every stated fact is true",
    "scene_eval/loop": "SceneEval of caption and drawing",
    "scene_eval/draw": "SceneEval of drawing its prompts",
}

_SHOWN = 10
_SCALE = 4


def comparison(before: Evaluation, after: Evaluation) -> str:
    """Before and after as a table of text."""
    lines = [f"{'held-out scenes (128)':<46} {'before':>8} {'after':>8}"]
    for key, label in COLUMNS.items():
        lines.append(f"{label:<46} {before.metrics[key]:>8.3f} {after.metrics[key]:>8.3f}")
    return "\n".join(lines)


def write_report(
    path: Path,
    before: Evaluation,
    after: Evaluation,
    *,
    run: Path,
    facts: Mapping[str, object],
    commands: Mapping[str, str],
) -> Path:
    """Write the report; returns its path.

    Args:
        path: of the page.
        before: of the run.
        after: of the run, over the same scenes.
        run: folder of the training command.
        facts: how it was made, by name.
        commands: that made it, and to go on with, by what they are called.
    """
    targets = {"page of the run": run / RUN_PAGE, "its log": run / LOG_FILE}
    page = render_page(
        "scenes.html",
        title="Before and after Generation for Understanding",
        count=len(before.captions),
        figures=[(label, before.metrics[key], after.metrics[key]) for key, label in COLUMNS.items()],
        charts=charts(MetricsFiles(str(run / METRICS)).rows()),
        scenes=[
            (_uri(before.images[index]), [_drawn("before", before, index), _drawn("after", after, index)])
            for index in range(min(_SHOWN, len(before.captions)))
        ],
        links={name: link(target, path) for name, target in targets.items() if target.is_file()},
        facts={**facts, "versions": in_one_line(versions(PACKAGES))},
        commands=commands,
    )
    write_text(path, page)
    return path


def _drawn(label: str, found: Evaluation, index: int) -> tuple[str, str, str, float | None]:
    """Label, picture, caption and reward of a scene."""
    reward = None if found.rewards is None else float(found.rewards[index])
    return label, _uri(found.drawings[index]), found.captions[index], reward


def comparison_picture(before: Evaluation, after: Evaluation, count: int = 8) -> Image.Image:
    """Rows: originals, reconstructions before, reconstructions after; one column per scene."""
    rows = [strip(images[:count]) for images in (before.images, before.drawings, after.drawings)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def strip(images_B3HW: torch.Tensor) -> np.ndarray:
    """Pictures side by side, enlarged, as uint8 (H, B W, 3)."""
    tiles = [np.asarray(_picture(image)) for image in images_B3HW]
    return np.concatenate(tiles, axis=1)


def _picture(image_3HW: torch.Tensor) -> Image.Image:
    pixels = (image_3HW.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels)
    return image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)


def _uri(image_3HW: torch.Tensor) -> str:
    return data_uri(_picture(image_3HW), form="PNG")


Say = Callable[[str], None]

#: Keys of the training command that say where the quickstart looks for what it has written.
_OWN_KEYS = ("uae_home", "uae.seed", "trainer.total_training_steps", "trainer.save_freq", "trainer.default_local_dir")

#: File of verl's logger in the folder of a run, a line of JSON per step.
METRICS = "metrics.jsonl"
#: All that the training command prints.
LOG_FILE = "train.log"
#: Folder of the trained model, in that of the quickstart.
MODEL = "model"

#: The page around a model, in a checkout; a wheel has no examples.
DEMO = Path(verl_uae.__file__).parents[1] / "examples" / "demo.py"

#: The reward of the preset ``scenes``.
REWARD_TERMS: tuple[tuple[str, float, dict[str, Any]], ...] = (("pixel", 0.7, {}), ("ssim", 0.3, {}))


@dataclass
class Timings:
    """Seconds of each part."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, work: Callable[[], object]) -> object:
        """Run ``work`` and remember how long it took."""
        started = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - started, 1)
        return result

    def text(self) -> str:
        """All of them."""
        return ", ".join(f"{name} {value:.0f}" for name, value in self.seconds.items())


def quickstart(out: str, *, seed: int, steps: int, overrides: Sequence[str], say: Say) -> int:
    """Run everything; return the exit code.

    Writes models and data, ``train.log`` (the whole output of the training command), ``report.json``, ``report.html``
    and the trained model as one folder, ``model``, into ``out``. Models that are there already are used again.

    Raises:
        ConfigError: naming the option or override that is impossible, before anything is made.
        CheckpointError: the training command saved no model, or what is at ``model`` is none.
    """
    check_request(steps, overrides)
    root = Path(out).absolute()
    root.mkdir(parents=True, exist_ok=True)
    timings = Timings()
    # Nothing else runs meanwhile. Never more, or the models of a seed would differ from one machine to the next.
    torch.set_num_threads(min(2, torch.get_num_threads()))
    prepare(root, seed, timings, say)
    torch.set_num_threads(1)
    before = measure(root, root / "captioner", seed)
    run = root / "runs" / "g4u"
    code = train(root, run, seed=seed, steps=steps, overrides=overrides, timings=timings, say=say)
    if code != 0:
        say(f"the training command failed with exit code {code}; its output is in {run / LOG_FILE}")
        return code
    after = measure(root, trained_captioner(run, steps), seed)
    summary = {
        "seed": seed,
        "steps": steps,
        "before": before.metrics,
        "after": after.metrics,
        "seconds": timings.seconds,
    }
    (root / "report.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    facts = {"seed": seed, "steps": steps, "seconds": timings.text()}
    next_ones = "\n".join(next_commands(out))
    words = command(root, run, seed=seed, steps=steps, overrides=overrides)
    commands = {"Training command": typed(words), "To go on": next_ones}
    report = write_report(root / "report.html", before, after, run=run, facts=facts, commands=commands)
    comparison_picture(before, after).save(root / "report.png")
    say(comparison(before, after))
    say(f"seconds: {timings.text()}")
    say(f"pictures: {report}\npanels:   {run / 'panels'}")
    export_trained(root, run, steps)
    say(f"the trained model is one folder now; next:\n{next_ones}")
    return 0


def check_request(steps: int, overrides: Sequence[str]) -> None:
    """Refuse what would be found out after the minutes of the joint training.

    Raises:
        ConfigError: there is no step to take, or an override would lead the training command elsewhere.
    """
    if steps < 1:
        raise ConfigError("--steps", f"must be at least 1, got {steps}")
    for key in set_keys(overrides):
        if key in _OWN_KEYS:
            raise ConfigError(key, "is set by the quickstart itself; give its folder, --seed or --steps")


def export_trained(root: Path, run: Path, steps: int) -> None:
    """Export the run as ``model`` in the folder of the quickstart, in place of that of an earlier one.

    Raises:
        CheckpointError: what is there is no exported model, or the run cannot be exported.
    """
    model = root / MODEL
    if model.exists():
        verify_folder(model)
        shutil.rmtree(model)
    export_checkpoint(run / step_name(steps), model, ExportSettings())


def next_commands(out: str) -> list[str]:
    """What can be done with the trained model, as typed in a shell: try it, see it in a page, measure it."""
    model, held_out = Path(out) / MODEL, Path(out) / "data" / "val.parquet"
    commands = [shown(["sample", model, "--rows", held_out, "--out", Path(out) / "samples"])]
    if DEMO.is_file():
        page = shlex.join([sys.executable, str(DEMO), str(model), "--rows", str(held_out)])
        if importlib.util.find_spec("gradio") is None:
            page = f"{shlex.quote(sys.executable)} -m pip install 'gradio>=6' && {page}"
        commands.append(page)
    return [*commands, shown(["bench", "scenes", model])]


def prepare(root: Path, seed: int, timings: Timings, say: Say, config: JointConfig | None = None) -> None:
    """The jointly trained tiny models and the data set, unless they are there."""
    train_once(root, config or JointConfig(seed=seed), timings, say)
    write_dataset(root / "data", train=2000, val=64, seed=seed)


def train_once(root: Path, config: JointConfig, timings: Timings, say: Say, world: World | None = None) -> None:
    """The jointly trained tiny models of a world (default: the scenes), unless those of equal settings are there."""
    stamp = root / "joint_training.json"
    fingerprint = json.dumps(asdict(config), sort_keys=True, default=str)
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == fingerprint):
        say("joint training: a captioner that describes too little, a decoder that draws what it is told")
        timings.time("joint training", lambda: train_tiny_models(root, config, _progress(say), world))
        stamp.write_text(fingerprint, encoding="utf-8")


def measure(root: Path, captioner: Path, seed: int) -> Evaluation:
    """Caption and redraw 128 held-out scenes with the given captioner; decoder and condition stay the same."""
    scorer = RewardScorer(list(REWARD_TERMS))

    def reward(drawn_B3HW: torch.Tensor, source_B3HW: torch.Tensor) -> torch.Tensor:
        records = scorer.score(RewardBatch(source_B3HW=source_B3HW, reconstruction_B3HW=drawn_B3HW))
        return torch.tensor([float("nan") if record.value is None else record.value for record in records])

    return evaluate(captioner, root / "decoder", root / "captioner", n=128, seed=seed, reward=reward)


def command(
    root: Path,
    run: Path,
    *,
    seed: int,
    steps: int,
    overrides: Sequence[str] = (),
    config: str = "uae_g4u",
    preset: str = "scenes",
) -> list[str]:
    """The words of the training command."""
    return [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "--config-name",
        config,
        "hardware=cpu",
        f"preset={preset}",
        override("uae_home", root),
        f"uae.seed={seed}",
        f"trainer.total_training_steps={steps}",
        f"trainer.save_freq={steps}",
        override("trainer.default_local_dir", run),
        override("hydra.run.dir", run / "hydra"),
        *overrides,
    ]


def typed(words: Sequence[str]) -> str:
    """A training command as a user would type it."""
    return shlex.join(["python", *words[1:]])


def train(root: Path, run: Path, *, seed: int, steps: int, overrides: Sequence[str], timings: Timings, say: Say) -> int:
    """Run the training command, one line per logged step; returns its exit code."""
    words = command(root, run, seed=seed, steps=steps, overrides=overrides)
    say(f"$ {typed(words)}")
    started, seen = time.perf_counter(), 0

    def watch(metrics: Path) -> None:
        nonlocal seen
        seen = _show_steps(metrics, seen, timings, started, say)

    code = run_training(words, run, watch)
    timings.seconds["training command"] = round(time.perf_counter() - started, 1)
    return code


def run_training(words: Sequence[str], run: Path, watch: Callable[[Path], None] = lambda _: None) -> int:
    """Run a training command: its output goes to ``train.log`` in the folder of the run, its metrics to `METRICS`.

    Args:
        words: see `command`.
        run: made if missing.
        watch: called with the file of the metrics, twice a second and at the end.

    Returns:
        The exit code.
    """
    run.mkdir(parents=True, exist_ok=True)
    metrics = run / METRICS
    metrics.unlink(missing_ok=True)
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics), "HF_HUB_OFFLINE": "1"}
    with open(run / LOG_FILE, "w", encoding="utf-8") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.5)
                watch(metrics)
        except BaseException:
            # Such as Ctrl-C, which the command has heard too, and saves by.
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    watch(metrics)
    return process.returncode


def trained_captioner(run: Path, step: int) -> Path:
    """The captioner of a step as a transformers folder: the one that verl saved, or of adapters, with which no library
    loads that, their product with the weights, written beside the step.

    Raises:
        CheckpointError: if it is not there.
    """
    actor = run / step_name(step) / ACTOR
    folder = actor / HUGGINGFACE
    if not (folder / CONFIG).is_file() or not list(folder.glob("*.safetensors")):
        raise CheckpointError(folder, "the training command saved no transformers folder")
    if not (actor / LORA_META).is_file():
        return folder
    product = run / f"{CAPTIONER}_{step}"
    shutil.rmtree(product, ignore_errors=True)
    write_trained_captioner(actor, product, base=None, alpha=None)
    return product


def _progress(say: Say) -> Callable[..., None]:
    def report(part: str, done: int, total: int, losses: dict[str, float]) -> None:
        if done % max(1, total // 10) == 0 or done == total:
            numbers = ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            say(f"  {part} {done}/{total}: {numbers}")

    return report


def _show_steps(metrics: Path, shown: int, timings: Timings, started: float, say: Say) -> int:
    """Say a line for every tenth new step; return how many lines of the log have been seen."""
    if not metrics.is_file():
        return shown
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    for line in lines[shown:]:
        record = json.loads(line)
        step, data = record["step"], record["data"]
        timings.seconds.setdefault("start of verl", round(time.perf_counter() - started, 1))
        if "reward/score/mean" in data and (step % 5 == 0 or step == 1):
            say(
                f"  step {step:>3}: reward {data['reward/score/mean']:.3f}, "
                f"{data['caption/words/mean']:.1f} words, {data['timing_s/step']:.1f} s "
                f"(caption {data['timing_s/caption']:.1f}, decode {data['timing_s/decode']:.1f}, "
                f"score {data['timing_s/score']:.1f}, update {data['timing_s/update_actor']:.1f})"
            )
    return len(lines)
