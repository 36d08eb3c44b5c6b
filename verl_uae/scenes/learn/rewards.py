# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Generation for Understanding with four rewards: which one buys the most exact attributes.

The runs of a seed differ in ``uae.reward.terms`` alone; the terms of `WATCHED` that are not rewarded are held out.
What counts is what no reward sees: the attributes that the checker reads from held-out reconstructions, and SceneEval.
Writes ``rewards.json`` and ``rewards_curves.png``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.scorer import RewardScorer
from verl_uae.scenes.evaluate import Evaluation, evaluate
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.learn.bars import Bar, beyond_seeds, mean_and_spread
from verl_uae.scenes.learn.orders import orders
from verl_uae.scenes.learn.runs import Run, cold_starts, execute, read_curve
from verl_uae.scenes.quickstart import Say, trained_encoder

SCENES = 256
#: Term: parameters. Three that see where things are. Pictures of 32 pixels are enlarged to 64 for the ImageNet
#: features, which orders the captions of a picture better than 224 does, in a twentieth of the time (docs/results.md).
WATCHED: dict[str, dict[str, Any]] = {"pixel": {}, "ssim": {}, "efficientnet_lite0": {"image_size": 64}}
#: The rewards: those three, and one that pools over the picture, as the cosine of CLIP features does.
REWARDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, params) for name, params in WATCHED.items()},
    "pooled": ("efficientnet_lite0", {"image_size": 64, "mode": "pooled"}),
}
#: Further settings whose order of captions is compared before training.
ORDERED: dict[str, tuple[str, dict[str, Any]]] = {
    **REWARDS,
    "efficientnet_lite0, 224 px": ("efficientnet_lite0", {}),
    "pooled, 224 px": ("efficientnet_lite0", {"mode": "pooled"}),
}

_COMMON = ("trainer.test_freq=-1", "trainer.val_before_train=false")


@dataclass(frozen=True)
class Result:
    """One run: held-out figures before and after, and its curve."""

    reward: str
    seed: int
    before: dict[str, float]
    after: dict[str, float]
    """As `before`: those of `evaluate`, and every term of `WATCHED` as ``term/<name>``."""
    curve: list[dict[str, float]]
    seconds: float

    def gain(self, key: str) -> float:
        """After minus before."""
        return self.after[key] - self.before[key]


def learn(out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> list[Bar]:
    """Cold starts, then every run, ``jobs`` at a time; write the results."""
    roots = {seed: out / f"seed{seed}" for seed in seeds}
    cold_starts({root: JointConfig(seed=seed) for seed, root in roots.items()}, jobs, say)
    runs = {
        (reward, seed): Run(
            f"{reward}/seed{seed}", "uae_g4u", root, root / "runs" / reward, seed, steps, (terms(reward), *_COMMON)
        )
        for seed, root in roots.items()
        for reward in REWARDS
    }
    seconds = execute(list(runs.values()), jobs, say)
    order = {seed: orders(root, ORDERED, seed) for seed, root in roots.items()}
    before = {seed: measure(root, root / "encoder", seed) for seed, root in roots.items()}
    results = [
        Result(
            reward,
            seed,
            before[seed],
            measure(run.root, trained_encoder(run.folder, steps), seed),
            read_curve(run.folder / "metrics.jsonl"),
            seconds[run.name],
        )
        for (reward, seed), run in runs.items()
    ]
    write_results(out, results, steps, order)
    say(table(results))
    return verdicts(results)


def terms(reward: str) -> str:
    """The override that rewards one term and holds those of `WATCHED` out that it does not reward."""
    parts = [_term(name, params, name == reward, name) for name, params in WATCHED.items()]
    if reward not in WATCHED:
        name, params = REWARDS[reward]
        parts.append(_term(name, params, True, reward))
    return f"uae.reward.terms=[{', '.join(parts)}]"


def _term(name: str, params: Mapping[str, Any], rewarded: bool, label: str) -> str:
    own = "" if label == name else f", label: {label}"
    role = "weight: 1.0" if rewarded else "held_out: true"
    given = ", ".join(f"{key}: {value}" for key, value in params.items())
    return f"{{name: {name}{own}, {role}, params: {{{given}}}}}"


def measure(root: Path, encoder: Path, seed: int) -> dict[str, float]:
    """Caption held-out scenes with an encoder and redraw them with the decoder of the cold start."""
    found = evaluate(encoder, root / "decoder", root / "encoder", n=SCENES, seed=seed)
    return found.metrics | term_means(found)


def term_means(found: Evaluation) -> dict[str, float]:
    """Mean of every term of `WATCHED` over the drawings, as ``term/<name>``."""
    scorer = RewardScorer([(name, 1.0, params) for name, params in WATCHED.items()])
    records = scorer.score(RewardBatch(source_B3HW=found.images, reconstruction_B3HW=found.drawings))
    return {f"term/{name}": sum(record.terms[name] for record in records) / len(records) for name in WATCHED}


def verdicts(results: Sequence[Result]) -> list[Bar]:
    """Every reward must buy attributes; which buys most is reported, with whether seeds can tell."""

    def gains(reward: str) -> list[float]:
        ordered = sorted((result for result in results if result.reward == reward), key=lambda result: result.seed)
        return [result.gain("drawn") for result in ordered]

    bars = [beyond_seeds(f"{reward}: exact attribute accuracy up beyond seeds", gains(reward)) for reward in REWARDS]
    best, second = sorted(REWARDS, key=lambda reward: -mean_and_spread(gains(reward))[0])[:2]
    leads = [ours - theirs for ours, theirs in zip(gains(best), gains(second), strict=True)]
    bars.append(beyond_seeds(f"{best} buys more attributes than {second}, beyond seeds", leads))
    return bars


#: Columns of the table.
COLUMNS = {
    "drawn": "attributes",
    "drawn/scene": "whole scene",
    "scene_eval/loop": "SceneEval loop",
    "full_detail": "full detail",
    "true": "true captions",
    "words": "words",
    **{f"term/{name}": f"`{name}`" for name in WATCHED},
}


def table(results: Sequence[Result]) -> str:
    """Markdown: means over seeds, gains with their standard deviation over seeds."""
    lines = ["| rewarded | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    start = {result.seed: result.before for result in results}
    cells = [f"{mean_and_spread([figures[key] for figures in start.values()])[0]:.3f}" for key in COLUMNS]
    lines.append("| before | " + " | ".join(cells) + " |")
    for reward in REWARDS:
        mine = [result for result in results if result.reward == reward]
        cells = []
        for key in COLUMNS:
            after, _ = mean_and_spread([result.after[key] for result in mine])
            gain, spread = mean_and_spread([result.gain(key) for result in mine])
            cells.append(f"{after:.3f} ({gain:+.3f} ± {spread:.3f})")
        lines.append(f"| `{reward}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_results(out: Path, results: Sequence[Result], steps: int, order: Mapping[int, Mapping[str, float]]) -> None:
    """Write the figures and the curves."""
    bars = {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in verdicts(results)}
    content = {
        "steps": steps,
        "torch": torch.__version__,
        "rewards": REWARDS,
        "orders": order,
        "bars": bars,
        "runs": [asdict(result) for result in results],
    }
    (out / "rewards.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot_curves(out / "rewards_curves.png", results)


def plot_curves(path: Path, results: Sequence[Result]) -> None:
    """Training reward against the step, a panel per reward and a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(REWARDS), figsize=(11, 2.6), sharex=True, constrained_layout=True)
    for axis, reward in zip(axes, REWARDS, strict=True):
        for result in (result for result in results if result.reward == reward):
            steps, values = zip(*((point["step"], point["reward"]) for point in result.curve), strict=True)
            axis.plot(steps, values, label=f"seed {result.seed}")
        axis.set_title(reward, fontsize=9)
        axis.set_xlabel("G4U step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("training reward")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
