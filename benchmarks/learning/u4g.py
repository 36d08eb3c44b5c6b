# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Understanding for Generation: every preset from a decoder with room, and from a finished one.

Writes ``u4g.json``, ``u4g_curves.png`` and ``u4g_scenes_seed<N>.png``. Captions are the full captions of the data set,
so that what changes is the decoder alone. Shapes: B scenes, H = W = 32 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.learning.experiment import (
    Bar,
    Experiment,
    Report,
    beyond_seeds,
    curves,
    every,
    gain_rows,
    shown,
)
from benchmarks.learning.runs import QUIET, Run, compare, joint_trainings
from benchmarks.learning.statistics import Row, gains, select
from verl_uae.bench.results import markdown_table
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.names import EXPORT_FOLDER
from verl_uae.reward.terms.pixel import pixel_similarity, ssim
from verl_uae.scenes.evaluate import draw, drawing_metrics, held_out_scenes
from verl_uae.scenes.grammar import caption
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say, strip
from verl_uae.scenes.render import render_float
from verl_uae.scenes.scene_eval import items, named, scores
from verl_uae.scenes.tiny_models import CONDITION_LENGTH

#: Steps of the joint training: one that leaves room, and the one of the quickstart.
STARTS = {"room": 600, "finished": 1000}
#: Presets by kind of objective.
POLICY_GRADIENT = ("flow_grpo", "flow_grpo_fast", "mix_grpo", "grpo_guard", "dppo")
PRESETS = (*POLICY_GRADIENT, "nft", "awm", "dgpo", "crd")
#: The default of the stage: its error may not rise.
RECOMMENDED = "dppo"
#: Presets that are also run from the finished decoder.
FINISHED_PRESETS = ("dppo", "nft", "dppo_ssim")
#: Not a preset: whether SSIM as the only reward is gamed.
GAMED = "dppo_ssim"
#: Steepness of the reward, exp(-k MSE) over three scales.
STEEPNESS = 20.0
#: The reward is a distance alone: it cannot rise while the error does.
REWARD = f"uae.reward.terms=[{{name: pixel, weight: 1.0, params: {{k: {STEEPNESS}}}}}]"
SCENES = 256

#: What the scenes need beside the preset. No guidance: the joint training drops no conditions, so nothing is there to
#: guide from.
OVERRIDES = (
    "uae.u4g.captions.source=column",
    REWARD,
    "uae.u4g.guidance=1.0",
    "uae.train.save_contents=[model,diffusers]",
    *QUIET,
)
#: Runs are short: the old policy of NFT follows faster, and sees more levels. On the forward process there are as many
#: updates as elsewhere. The reference of CRD is not guided: the joint training drops no conditions.
OWN = {
    GAMED: ("uae.reward.terms=[{name: ssim, weight: 1.0}, {name: pixel, held_out: true}]",),
    "nft": (
        "uae.train.optim.lr=5e-4",
        "uae.u4g.objective.old_decay=0.5",
        "uae.u4g.updates_per_rollout=2",
        "uae.u4g.objective.num_sigmas=4",
    ),
    "awm": ("uae.u4g.updates_per_rollout=2",),
    "dgpo": ("uae.u4g.updates_per_rollout=2",),
    "crd": ("uae.u4g.updates_per_rollout=2", "uae.u4g.reference_kl.guidance=1.0"),
}
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


class U4G(Experiment):
    """Which presets raise the reward, and whether the error falls with it."""

    name = "u4g"

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        roots = {(start, seed): out / f"seed{seed}_{start}" for seed in seeds for start in STARTS}
        configs = {root: JointConfig(seed=seed, steps=STARTS[start]) for (start, seed), root in roots.items()}
        joint_trainings(configs, jobs, say)
        runs = [
            Run({"start": start, "preset": preset}, "uae_u4g", root, root / "runs" / preset, seed, steps, words(preset))
            for (start, seed), root in roots.items()
            for preset in (PRESETS if start == "room" else FINISHED_PRESETS)
        ]
        rows = compared(runs, jobs, say)
        for seed in seeds:
            picture([run for run in runs if run.seed == seed]).save(out / f"u4g_scenes_seed{seed}.png")
        yield {"runs": rows}

    def bars(self, report: Report) -> list[Bar]:
        def gained(preset: str, key: str, start: str = "room") -> list[float]:
            return gains(select(report["runs"], preset=preset, start=start), key)

        worst = max(gained(RECOMMENDED, "mse"))
        return [
            *(
                every(f"{preset}: held-out reward up by at least 0.02, every seed", gained(preset, "reward"), 0.02)
                for preset in POLICY_GRADIENT
            ),
            every("nft: held-out reward up by at least 0.03, every seed", gained("nft", "reward"), 0.03),
            Bar(f"{RECOMMENDED}: error not higher, every seed", worst <= 0.0, f"largest change of MSE {worst:+.4f}"),
            beyond_seeds(f"{RECOMMENDED}: exact attribute accuracy up beyond seeds", gained(RECOMMENDED, "drawn")),
            *(
                every(
                    f"{preset}: reward of a finished decoder not lower, every seed",
                    gained(preset, "reward", "finished"),
                    0.0,
                )
                for preset in FINISHED_PRESETS
                if preset != GAMED
            ),
        ]

    def table(self, report: Report) -> list[str]:
        """A table per start: means over seeds, gains with their standard deviation over seeds."""
        lines = []
        for start in STARTS:
            rows = select(report["runs"], start=start)
            columns = shown(COLUMNS, (row["before"] for row in rows))
            cells = gain_rows(rows, "preset", list(columns))
            lines += [f"start {start}", *markdown_table(["preset", *columns.values()], cells)]
        return lines

    def plot(self, out: Path, report: Report) -> None:
        """Training reward, a panel per preset and a line per seed."""
        rows, how = select(report["runs"], start="room"), {"x": "U4G step", "axis": self.axis, "size": (13, 2.6)}
        curves(out / "u4g_curves.png", rows, "preset", "seed", **how, sharey=True)


def words(preset: str) -> tuple[str, ...]:
    """Overrides of the training command of a preset, or of the run that is gamed."""
    return (f"decoder/objective={preset.removesuffix('_ssim')}", *OVERRIDES, *OWN.get(preset, ()))


def compared(runs: Sequence[Run], jobs: int, say: Say) -> list[Row]:
    """Execute runs of U4G; a row for each, with what full captions give before and after it."""

    def at(run: Run, step: int) -> dict[str, float]:
        return measure(run.root, run.models(step)[1], run.seed)

    return compare(runs, jobs, say, before=lambda run: at(run, 0), after=lambda run: at(run, run.steps))


def similarity(drawn_B3HW: torch.Tensor, source_B3HW: torch.Tensor) -> torch.Tensor:
    """The reward of these runs, (B,)."""
    return pixel_similarity(drawn_B3HW, source_B3HW, STEEPNESS)


@torch.no_grad()
def measure(root: Path, decoder: Path, seed: int) -> dict[str, float]:
    """Draw held-out scenes from their full captions with the ODE sampler.

    Returns:
        ``reward``, ``mse`` (of pictures in [0, 1]), ``ssim``, ``drawn``, ``drawn/<attribute>`` and ``scene_eval/draw``
        with its categories.
    """
    scenes = held_out_scenes(SCENES, seed)
    image_B3HW = render_float(scenes)
    asked = items(seed)
    drawn_B3HW, answer_B3HW = (
        drawings(root, decoder, captions, seed)
        for captions in ([caption(scene) for scene in scenes], [item.prompt for item in asked])
    )
    return {
        "reward": float(similarity(drawn_B3HW, image_B3HW).mean()),
        "mse": float((drawn_B3HW - image_B3HW).square().mean()),
        "ssim": float(ssim(drawn_B3HW, image_B3HW).mean()),
        **drawing_metrics(drawn_B3HW, scenes),
        **named("draw", scores(asked, answer_B3HW)),
    }


def drawings(root: Path, decoder: Path, captions: Sequence[str], seed: int) -> torch.Tensor:
    """Captions as a decoder on disk draws them behind the captioner of a root, (B, 3, H, W) in [0, 1]."""
    loaded = Decoder.from_pretrained(str(decoder), length=CONDITION_LENGTH)
    conditioner = Conditioner.from_pretrained(str(root / "captioner"), loaded.family)
    return draw(loaded, conditioner, captions, seed=seed)


def picture(runs: Sequence[Run], count: int = 8) -> Image.Image:
    """Rows: originals, reconstructions before, after ``dppo``, after ``nft``, from one seed's start with room."""
    after = {run.labels["preset"]: run for run in runs if run.labels["start"] == "room"}
    root, seed = after["dppo"].root, after["dppo"].seed
    scenes = held_out_scenes(count, seed)
    captions = [caption(scene) for scene in scenes]
    folders = [root / "decoder", *(after[preset].checkpoint / EXPORT_FOLDER for preset in ("dppo", "nft"))]
    rows = [render_float(scenes), *(drawings(root, folder, captions, seed) for folder in folders)]
    return Image.fromarray(np.concatenate([strip(row) for row in rows], axis=0))
