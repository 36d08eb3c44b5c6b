# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The unified stage against either stage alone, from the same start with as many steps and pictures.

Writes ``unified.json`` and ``unified_curves.png``. A step of either stage draws and scores 64 pictures; what it costs
beyond that is reported in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.evaluate import evaluate
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.learn.bars import Bar, mean_and_spread
from verl_uae.scenes.learn.runs import Run, cold_starts, execute, read_curve
from verl_uae.scenes.learn.u4g import RECOMMENDED, SCENES, STARTS, STEEPNESS
from verl_uae.scenes.quickstart import Say, trained_encoder

VARIANTS = ("g4u", "u4g", "unified")
START = "room"
#: Turns of each stage in the unified run.
CYCLES = 2

_REWARD = f"uae.reward.terms=[{{name: pixel, weight: 1.0, params: {{k: {STEEPNESS}}}}}]"
_COMMON = (_REWARD, "trainer.test_freq=-1", "trainer.val_before_train=false")
_DECODER = (f"decoder/objective={RECOMMENDED}", "uae.policy.save_contents=[model,diffusers]")


@dataclass(frozen=True)
class Result:
    """One run: held-out figures of the pair of captioner and decoder before and after."""

    variant: str
    seed: int
    before: dict[str, float]
    after: dict[str, float]
    curve: list[dict[str, float]]
    seconds: float

    @property
    def step_seconds(self) -> float:
        """Seconds of all steps, start-up and saving left out."""
        return sum(point["seconds"] for point in self.curve)


def learn(out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> list[Bar]:
    """Cold starts, then every run, ``jobs`` at a time; write the results."""
    turn = steps // (2 * CYCLES)
    own = {
        "g4u": (),
        "u4g": _DECODER,
        "unified": (*_DECODER, f"uae.unified.g4u_steps={turn}", f"uae.unified.u4g_steps={turn}"),
    }
    roots = {seed: out / f"seed{seed}_{START}" for seed in seeds}
    cold_starts({root: JointConfig(seed=seed, steps=STARTS[START]) for seed, root in roots.items()}, jobs, say)
    runs: dict[tuple[str, int], Run] = {}
    for seed, root in roots.items():
        for variant in VARIANTS:
            overrides, folder = (*own[variant], *_COMMON), root / "runs" / variant
            runs[variant, seed] = Run(f"{variant}/seed{seed}", f"uae_{variant}", root, folder, seed, steps, overrides)
    seconds = execute(list(runs.values()), jobs, say)
    before = {seed: measure(runs["g4u", seed], "start") for seed in seeds}
    results = [
        Result(
            variant,
            seed,
            before[seed],
            measure(run, variant),
            read_curve(run.folder / "metrics.jsonl"),
            seconds[run.name],
        )
        for (variant, seed), run in runs.items()
    ]
    write_results(out, results, steps)
    say(table(results))
    return verdicts(results)


def measure(run: Run, variant: str) -> dict[str, float]:
    """Caption held-out scenes with the run's captioner, redraw them with its decoder."""
    trains_captioner, trains_decoder = variant in ("g4u", "unified"), variant in ("u4g", "unified")

    def reward(drawn_B3HW: torch.Tensor, source_B3HW: torch.Tensor) -> torch.Tensor:
        return pixel_similarity(drawn_B3HW, source_B3HW, STEEPNESS)

    return evaluate(
        trained_encoder(run.folder, run.steps) if trains_captioner else run.root / "encoder",
        run.checkpoint / "decoder" if trains_decoder else run.root / "decoder",
        run.root / "encoder",
        n=SCENES,
        seed=run.seed,
        reward=reward,
    ).metrics


def verdicts(results: Sequence[Result]) -> list[Bar]:
    """Whether taking turns beats either stage alone, over seeds."""

    def after(variant: str) -> list[float]:
        return [result.after["reward"] for result in results if result.variant == variant]

    bars = []
    for alone in ("g4u", "u4g"):
        leads = [both - one for both, one in zip(after("unified"), after(alone), strict=True)]
        mean, spread = mean_and_spread(leads)
        bars.append(
            Bar(
                f"unified: held-out reward above {alone} alone after as many steps, every seed",
                min(leads) > 0.0,
                f"smallest lead {min(leads):+.3f}, mean {mean:+.3f}, standard deviation over seeds {spread:.3f}",
            )
        )
    return bars


def table(results: Sequence[Result]) -> str:
    """Markdown: means over seeds with their standard deviation."""
    columns = {"reward": "reward", "mse": "MSE", "drawn": "attributes", "words": "words", "full_detail": "full detail"}
    columns |= {"scene_eval/loop": "SceneEval loop", "scene_eval/draw": "SceneEval draw"}
    head = ["| | " + " | ".join(columns.values()) + " | seconds of steps |", "|---|" + "---|" * (len(columns) + 1)]

    def row(label: str, metrics: Sequence[dict[str, float]], seconds: str) -> str:
        cells = []
        for key in columns:
            mean, spread = mean_and_spread([entry[key] for entry in metrics])
            digits = 4 if key == "mse" else 3
            cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}")
        return f"| {label} | " + " | ".join(cells) + f" | {seconds} |"

    mine = {variant: [result for result in results if result.variant == variant] for variant in VARIANTS}
    rows = [row("before", [result.before for result in mine["g4u"]], "")]
    for variant, found in mine.items():
        seconds = f"{mean_and_spread([result.step_seconds for result in found])[0]:.0f}"
        rows.append(row(f"`uae_{variant}`", [result.after for result in found], seconds))
    return "\n".join(head + rows)


def write_results(out: Path, results: Sequence[Result], steps: int) -> None:
    """Write the figures and the curves."""
    bars = {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in verdicts(results)}
    content = {"steps": steps, "torch": torch.__version__, "bars": bars, "runs": [asdict(result) for result in results]}
    (out / "unified.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot_curves(out / "unified_curves.png", results)


def plot_curves(path: Path, results: Sequence[Result]) -> None:
    """Training reward against the step, a panel per seed and a line per variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seeds = sorted({result.seed for result in results})
    figure, axes = pyplot.subplots(
        1, len(seeds), figsize=(3.4 * len(seeds), 2.8), sharey=True, squeeze=False, constrained_layout=True
    )
    for axis, seed in zip(axes[0], seeds, strict=True):
        for result in (result for result in results if result.seed == seed):
            axis.plot([p["step"] for p in result.curve], [p["reward"] for p in result.curve], label=result.variant)
        axis.set_title(f"seed {seed}", fontsize=9)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("training reward")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
