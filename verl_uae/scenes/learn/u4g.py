# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Understanding for Generation: every preset from a decoder with room, and from a finished one.

Writes ``u4g.json``, ``u4g_curves.png`` and ``u4g_scenes_seed<N>.png``. Captions are the full captions of the data set,
so that what changes is the decoder alone. Shapes: B scenes, H = W = 32 pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from verl_uae.decoder.conditioner import Conditioner
from verl_uae.decoder.decoder import Decoder
from verl_uae.formats.names import EXPORT_FOLDER, STEP_PREFIX
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.reward.terms.ssim import ssim
from verl_uae.scenes.evaluate import draw, drawing_metrics, held_out_scenes
from verl_uae.scenes.grammar import caption
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.learn.bars import Bar, beyond_seeds, every, mean_and_spread
from verl_uae.scenes.learn.runs import Run, cold_starts, execute, read_curve
from verl_uae.scenes.quickstart import Say
from verl_uae.scenes.render import render_float
from verl_uae.scenes.report import strip
from verl_uae.scenes.scene_eval import items, named, scores
from verl_uae.scenes.tiny_models import CONDITION_LENGTH

#: Steps of the joint cold start: one that leaves room, and the one of the quickstart.
STARTS = {"room": 600, "finished": 1000}
#: Presets by kind of objective.
POLICY_GRADIENT = ("flow_grpo", "flow_grpo_fast", "mix_grpo", "grpo_guard", "dppo")
PRESETS = (*POLICY_GRADIENT, "nft")
#: The default of the stage: its error may not rise.
RECOMMENDED = "dppo"
#: Presets that are also run from the finished decoder.
FINISHED_PRESETS = ("dppo", "nft", "dppo_ssim")
#: Not a preset: whether SSIM as the only reward is gamed.
GAMED = "dppo_ssim"
#: Steepness of the reward, exp(-k MSE) over three scales.
STEEPNESS = 20.0
SCENES = 256
NUM_STEPS = 8

#: What the scenes need beside the preset. The reward is a distance alone: it cannot rise while the error does. No
#: guidance: the cold start drops no conditions, so nothing is there to guide from.
OVERRIDES = (
    "uae.policy.captions.source=column",
    f"uae.reward.terms=[{{name: pixel, weight: 1.0, params: {{k: {STEEPNESS}}}}}]",
    "uae.policy.guidance=1.0",
    "uae.policy.save_contents=[model,diffusers]",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
)
#: Runs are short: the old policy of NFT follows faster, takes as many updates as the others, and sees more levels.
OWN = {
    GAMED: ("uae.reward.terms=[{name: ssim, weight: 1.0}, {name: pixel, held_out: true}]",),
    "nft": (
        "uae.policy.optim.lr=5e-4",
        "uae.policy.objective.old_decay=0.5",
        "uae.policy.updates_per_rollout=2",
        "uae.policy.objective.num_sigmas=4",
    ),
}


@dataclass(frozen=True)
class Result:
    """One run: held-out figures before and after, and its curve."""

    start: str
    preset: str
    seed: int
    before: dict[str, float]
    after: dict[str, float]
    curve: list[dict[str, float]]
    seconds: float

    def gain(self, key: str) -> float:
        """After minus before."""
        return self.after[key] - self.before[key]


def learn(out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> list[Bar]:
    """Cold starts, then every run, ``jobs`` at a time; write the results."""
    roots = {(start, seed): out / f"seed{seed}_{start}" for seed in seeds for start in STARTS}
    configs = {root: JointConfig(seed=seed, steps=STARTS[start]) for (start, seed), root in roots.items()}
    cold_starts(configs, jobs, say)
    runs: dict[tuple[str, str, int], Run] = {}
    for seed in seeds:
        for start in STARTS:
            root = roots[start, seed]
            for preset in PRESETS if start == "room" else FINISHED_PRESETS:
                objective = preset.removesuffix("_ssim")
                overrides = (f"decoder/objective={objective}", *OVERRIDES, *OWN.get(preset, ()))
                name = f"{start}/{preset}/seed{seed}"
                folder = root / "runs" / preset
                runs[start, preset, seed] = Run(name, "uae_u4g", root, folder, seed, steps, overrides)
    seconds = execute(list(runs.values()), jobs, say)
    results = [_result(start, preset, seed, run, seconds[run.name]) for (start, preset, seed), run in runs.items()]
    write_results(out, results, steps)
    for seed in seeds:
        picture(out, seed).save(out / f"u4g_scenes_seed{seed}.png")
    for start in STARTS:
        say(f"start {start}\n" + table(results, start))
    return verdicts(results)


def _result(start: str, preset: str, seed: int, run: Run, seconds: float) -> Result:
    before, _ = measure(run.root, run.root / "decoder", seed)
    after, _ = measure(run.root, run.checkpoint / "decoder", seed)
    return Result(start, preset, seed, before, after, read_curve(run.folder / "metrics.jsonl"), seconds)


@torch.no_grad()
def measure(root: Path, decoder: Path, seed: int, count: int = SCENES) -> tuple[dict[str, float], torch.Tensor]:
    """Draw held-out scenes from their full captions with the ODE sampler.

    Returns:
        ``reward``, ``mse`` (of pictures in [0, 1]), ``ssim``, ``drawn``, ``drawn/<attribute>`` and ``scene_eval/draw``
        with its categories; the pictures (B, 3, H, W).
    """
    scenes = held_out_scenes(count, seed)
    image = render_float(scenes)
    conditioner = Conditioner.from_pretrained(str(root / "encoder"), length=CONDITION_LENGTH)
    captions = [caption(scene) for scene in scenes]
    model = Decoder.from_pretrained(str(decoder))
    drawing = draw(model, conditioner, captions, seed=seed, num_steps=NUM_STEPS)
    asked = items(seed)
    answers = draw(model, conditioner, [item.prompt for item in asked], seed=seed, num_steps=NUM_STEPS)
    reward = float(pixel_similarity(drawing, image, STEEPNESS).mean())
    mse, structure = float((drawing - image).square().mean()), float(ssim(drawing, image).mean())
    metrics = {"reward": reward, "mse": mse, "ssim": structure, **drawing_metrics(drawing, scenes)}
    return metrics | named("draw", scores(asked, answers)), drawing


def verdicts(results: Sequence[Result]) -> list[Bar]:
    """The bars of the stage."""

    def gains(preset: str, key: str, start: str = "room") -> list[float]:
        return [result.gain(key) for result in results if (result.preset, result.start) == (preset, start)]

    bars = [
        every(f"{preset}: held-out reward up by at least 0.02, every seed", gains(preset, "reward"), 0.02)
        for preset in POLICY_GRADIENT
    ]
    worst = max(gains(RECOMMENDED, "mse"))
    bars += [
        every("nft: held-out reward up by at least 0.03, every seed", gains("nft", "reward"), 0.03),
        Bar(f"{RECOMMENDED}: error not higher, every seed", worst <= 0.0, f"largest change of MSE {worst:+.4f}"),
        beyond_seeds(f"{RECOMMENDED}: exact attribute accuracy up beyond seeds", gains(RECOMMENDED, "drawn")),
    ]
    bars += [
        every(f"{preset}: reward of a finished decoder not lower, every seed", gains(preset, "reward", "finished"), 0.0)
        for preset in FINISHED_PRESETS
        if preset != GAMED
    ]
    return bars


#: Columns of the table.
COLUMNS = {
    "reward": "reward",
    "mse": "MSE",
    "ssim": "SSIM",
    "drawn": "attributes",
    "drawn/background": "background",
    "drawn/shape": "shape",
    "drawn/scene": "whole scene",
    "scene_eval/draw": "SceneEval",
}


def table(results: Sequence[Result], start: str) -> str:
    """Markdown: means over seeds of one start, gains with their standard deviation over seeds."""
    lines = ["| preset | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    mine = [result for result in results if result.start == start]
    digits = {key: 4 if key == "mse" else 3 for key in COLUMNS}

    def mean(rows: Sequence[Mapping[str, float]], key: str) -> str:
        return f"{mean_and_spread([row[key] for row in rows])[0]:.{digits[key]}f}"

    by_seed = {result.seed: result.before for result in mine}
    lines.append("| before | " + " | ".join(mean(list(by_seed.values()), key) for key in COLUMNS) + " |")
    for preset in dict.fromkeys(result.preset for result in mine):
        rows = [result for result in mine if result.preset == preset]
        cells = []
        for key in COLUMNS:
            gain, spread = mean_and_spread([row.gain(key) for row in rows])
            cells.append(
                f"{mean([row.after for row in rows], key)} ({gain:+.{digits[key]}f} ± {spread:.{digits[key]}f})"
            )
        lines.append(f"| `{preset}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_results(out: Path, results: Sequence[Result], steps: int) -> None:
    """Write the figures and the curves."""
    bars = {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in verdicts(results)}
    content = {"steps": steps, "torch": torch.__version__, "bars": bars, "runs": [asdict(result) for result in results]}
    (out / "u4g.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot_curves(out / "u4g_curves.png", [result for result in results if result.start == "room"])


def plot_curves(path: Path, results: Sequence[Result]) -> None:
    """Training reward against the step, a panel per preset and a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PRESETS), figsize=(13, 2.6), sharey=True, constrained_layout=True)
    for axis, preset in zip(axes, PRESETS, strict=True):
        for result in (result for result in results if result.preset == preset):
            steps, rewards = zip(*((point["step"], point["reward"]) for point in result.curve), strict=True)
            axis.plot(steps, rewards, label=f"seed {result.seed}")
        axis.set_title(preset, fontsize=9)
        axis.set_xlabel("U4G step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training reward")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def picture(out: Path, seed: int, count: int = 8) -> Image.Image:
    """Rows: originals, reconstructions before, after ``dppo``, after ``nft``, from the start with room."""
    root = out / f"seed{seed}_room"
    folders = [root / "decoder"]
    folders += [next((root / "runs" / preset).glob(f"{STEP_PREFIX}*")) / EXPORT_FOLDER for preset in ("dppo", "nft")]
    rows = [render_float(held_out_scenes(count, seed)), *(measure(root, folder, seed, count)[1] for folder in folders)]
    return Image.fromarray(np.concatenate([strip(row) for row in rows], axis=0))
