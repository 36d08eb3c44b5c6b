# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Learning runs over seeds: `python -m verl_uae.scenes.learn g4u --seeds 0 1 2 --out OUT`.

Writes ``g4u.json`` (every figure, with seeds), ``g4u_curves.png`` and ``g4u_scenes_seed<N>.png`` into OUT, and says
whether the bars are met.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from verl_uae.scenes.quickstart import Timings, measure, prepare, train, trained_encoder
from verl_uae.scenes.report import COLUMNS, comparison_picture, write_report

Say = Callable[[str], None]

#: Metric -> what must hold, in words.
BARS = {
    "reward": "held-out reward up by at least 0.12",
    "words": "caption words at least x 1.3",
    "full_detail": "share of captions with full detail at least 0.55",
    "drawn": "drawn attribute accuracy up by more than twice the seed standard deviation",
    "true": "share of true captions down by at most 0.05",
}


@dataclass(frozen=True)
class SeedResult:
    """One seed."""

    seed: int
    before: dict[str, float]
    after: dict[str, float]
    curve: list[dict[str, float]]
    """Per training step: step, reward, words, seconds."""
    seconds: dict[str, float]


def run_seed(root: Path, seed: int, steps: int, say: Say) -> SeedResult:
    """Cold start and G4U of one seed; raises SystemExit if the training command fails."""
    timings = Timings()
    prepare(root, seed, timings, say)
    before = measure(root, root / "encoder", seed)
    run = root / "runs" / "g4u"
    code = train(root, run, seed=seed, steps=steps, overrides=(), timings=timings, say=say)
    if code != 0:
        raise SystemExit(f"seed {seed}: the training command failed, see {run / 'train.log'}")
    after = measure(root, trained_encoder(run, steps), seed)
    write_report(root / "report.html", before, after)
    comparison_picture(before, after).save(root / "scenes.png")
    return SeedResult(seed, before.metrics, after.metrics, read_curve(run / "metrics.jsonl"), timings.seconds)


def read_curve(metrics: Path) -> list[dict[str, float]]:
    """Training curve from verl's file logger."""
    curve = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        data: dict[str, Any] = record["data"]
        if "reward/score/mean" in data:
            curve.append(
                {
                    "step": record["step"],
                    "reward": data["reward/score/mean"],
                    "words": data["caption/words/mean"],
                    "seconds": data["timing_s/step"],
                }
            )
    return curve


def verdicts(results: Sequence[SeedResult]) -> dict[str, tuple[bool, str]]:
    """Whether each bar is met, with the figures.

    Means are over seeds; the bars on reward, words, detail and truth must hold for every seed.
    """

    def gains(key: str) -> list[float]:
        return [result.after[key] - result.before[key] for result in results]

    drawn = gains("drawn")
    spread = statistics.stdev(drawn) if len(drawn) > 1 else 0.0
    ratios = [result.after["words"] / result.before["words"] for result in results]
    detail = [result.after["full_detail"] for result in results]
    return {
        "reward": (min(gains("reward")) >= 0.12, f"smallest gain {min(gains('reward')):+.3f}"),
        "words": (min(ratios) >= 1.3, f"smallest ratio x {min(ratios):.2f}"),
        "full_detail": (min(detail) >= 0.55, f"smallest share {min(detail):.3f}"),
        "drawn": (
            statistics.mean(drawn) > 2 * spread,
            f"mean gain {statistics.mean(drawn):+.3f}, standard deviation over seeds {spread:.3f}",
        ),
        "true": (min(gains("true")) >= -0.05, f"largest change {min(gains('true')):+.3f}"),
    }


def write_results(out: Path, results: Sequence[SeedResult], steps: int) -> None:
    """Write the figures and the curves."""
    checks = {BARS[key]: {"met": met, "figure": text} for key, (met, text) in verdicts(results).items()}
    content = {"steps": steps, "torch": torch.__version__, "bars": checks, "seeds": [vars(r) for r in results]}
    (out / "g4u.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    plot_curves(out / "g4u_curves.png", results)


def plot_curves(path: Path, results: Sequence[SeedResult]) -> None:
    """Training reward and caption length against the step, one line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    for axis, key, label in zip(axes, ("reward", "words"), ("training reward", "words per caption"), strict=True):
        for result in results:
            axis.plot([p["step"] for p in result.curve], [p[key] for p in result.curve], label=f"seed {result.seed}")
        axis.set_xlabel("G4U step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(results: Sequence[SeedResult]) -> str:
    """Markdown table, before -> after per seed."""
    lines = [
        "| 128 held-out scenes | " + " | ".join(f"seed {result.seed}" for result in results) + " |",
        "|---|" + "---|" * len(results),
    ]
    for key, label in COLUMNS.items():
        cells = [f"{result.before[key]:.3f} → {result.after[key]:.3f}" for result in results]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all seeds; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["g4u"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("outputs/learn-g4u"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)

    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in args.seeds:
        say(f"== seed {seed}")
        results.append(run_seed(args.out.absolute() / f"seed{seed}", seed, args.steps, say))
        write_results(args.out, results, args.steps)
    say(table(results))
    checks = verdicts(results)
    for key, (met, text) in checks.items():
        say(f"[{'met' if met else 'MISSED'}] {BARS[key]}: {text}")
    return 0 if all(met for met, _ in checks.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
