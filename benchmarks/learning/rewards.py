# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Generation for Understanding with four rewards: which one buys the most exact attributes.

The runs of a seed differ in ``uae.reward.terms`` alone; the terms of `WATCHED` that are not rewarded are held out.
What counts is what no reward sees: the attributes that the checker reads from held-out reconstructions, and SceneEval.
Writes ``rewards.json`` and ``rewards_curves.png``.

It also says, before any run, how every reward orders the captions of one picture, against the exact attributes of their
drawings. GRPO sees nothing else of a reward: within a group only the order and the relative distances count.

Shapes: G pictures, M captions of each, H = W = 32 pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learning.experiment import (
    Bar,
    Experiment,
    Report,
    beyond_seeds,
    curves,
    gain_rows,
    shown,
)
from benchmarks.learning.runs import QUIET, Run, compare, joint_trainings
from benchmarks.learning.statistics import gains, leads
from verl_uae.bench.results import markdown_table
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.scorer import RewardScorer
from verl_uae.reward.step import group_ranks
from verl_uae.scenes.checker import DRAWN_ATTRIBUTES, attribute_scores
from verl_uae.scenes.evaluate import Evaluation, draw, evaluate, held_out_scenes, load_loop
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say, trained_captioner
from verl_uae.scenes.render import render_float
from verl_uae.seeding import generator

SCENES = 256
#: Groups, and captions in each, whose order is compared.
PICTURES, MEMBERS = 32, 8
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

COLUMNS = {
    "drawn": "attributes",
    "drawn/scene": "whole scene",
    "scene_eval/loop": "SceneEval loop",
    "full_detail": "full detail",
    "true": "true captions",
    "words": "words",
    **{f"term/{name}": f"`{name}`" for name in WATCHED},
}


class Rewards(Experiment):
    """Which reward teaches the captioner most."""

    name = "rewards"

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        roots = {seed: out / f"seed{seed}" for seed in seeds}
        joint_trainings({root: JointConfig(seed=seed) for seed, root in roots.items()}, jobs, say)
        runs = [
            Run({"reward": reward}, "uae_g4u", root, root / "runs" / reward, seed, steps, (terms(reward), *QUIET))
            for seed, root in roots.items()
            for reward in REWARDS
        ]
        rows = compare(
            runs,
            jobs,
            say,
            before=lambda run: measure(run.root, run.root / "captioner", run.seed),
            after=lambda run: measure(run.root, trained_captioner(run.folder, steps), run.seed),
        )
        order = {str(seed): orders(root, ORDERED, seed) for seed, root in roots.items()}
        yield {"rewards": REWARDS, "orders": order, "runs": rows}

    def bars(self, report: Report) -> list[Bar]:
        """Every reward must buy attributes; which buys most is reported, with whether seeds can tell."""
        gained: dict[str, dict[int, float]] = {}
        for row in report["runs"]:
            gained.setdefault(row["reward"], {})[row["seed"]] = gains([row], "drawn")[0]
        bars = [
            beyond_seeds(f"{name}: exact attribute accuracy up beyond seeds", list(found.values()))
            for name, found in gained.items()
        ]
        best, second = sorted(gained, key=lambda name: -statistics.mean(gained[name].values()))[:2]
        claim = f"{best} buys more attributes than {second}, beyond seeds"
        return [*bars, beyond_seeds(claim, leads(gained[best], gained[second]))]

    def table(self, report: Report) -> list[str]:
        """Means over seeds, gains with their standard deviation over seeds."""
        rows = report["runs"]
        columns = shown(COLUMNS, (row["before"] for row in rows))
        return markdown_table(["rewarded", *columns.values()], gain_rows(rows, "reward", list(columns)))

    def plot(self, out: Path, report: Report) -> None:
        """Training reward, a panel per reward and a line per seed."""
        how = {"x": "G4U step", "axis": self.axis, "size": (11, 2.6)}
        curves(out / "rewards_curves.png", report["runs"], "reward", "seed", **how, sharex=True)


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


def measure(root: Path, captioner: Path, seed: int) -> dict[str, float]:
    """Caption held-out scenes with a captioner and redraw them with the decoder of the joint training."""
    found = evaluate(captioner, root / "decoder", root / "captioner", n=SCENES, seed=seed)
    return found.metrics | term_means(found)


def term_means(found: Evaluation) -> dict[str, float]:
    """Mean of every term of `WATCHED` over the drawings, as ``term/<name>``."""
    scorer = RewardScorer([(name, 1.0, params) for name, params in WATCHED.items()])
    records = scorer.score(RewardBatch(source_B3HW=found.images, reconstruction_B3HW=found.drawings))
    return {f"term/{name}": sum(record.terms[name] for record in records) / len(records) for name in WATCHED}


@torch.no_grad()
def orders(
    root: Path, terms: Mapping[str, tuple[str, Mapping[str, Any]]], seed: int, *, pictures: int = PICTURES
) -> dict[str, float]:
    """Mean rank correlation of each term with the exact attributes, within the groups of a captioner before RL.

    Args:
        root: folder of tiny models.
        terms: by label, registered name and parameters.
        seed: names pictures, captions and noise.
        pictures: groups of `MEMBERS` captions.

    Returns:
        By label a number in [-1, 1].
    """
    captioner, decoder, conditioner = load_loop(root / "captioner", root / "decoder", root / "captioner")
    scenes = [scene for scene in held_out_scenes(pictures, seed) for _ in range(MEMBERS)]
    image_B3HW = render_float(scenes)
    captions = captioner.sample(image_B3HW, generator(seed, "scenes-order-captions"))
    drawn_B3HW = draw(decoder, conditioner, captions, seed=seed)
    exact = attribute_scores(drawn_B3HW, scenes)
    exact_B = torch.stack([exact[name] for name in DRAWN_ATTRIBUTES]).mean(0).tolist()
    groups = [str(number // MEMBERS) for number in range(len(scenes))]
    batch = RewardBatch(source_B3HW=image_B3HW, reconstruction_B3HW=drawn_B3HW)
    found = {}
    for label, (name, params) in terms.items():
        values = [record.value for record in RewardScorer([(name, 1.0, params)]).score(batch)]
        found[label] = rank_correlation([float("nan") if v is None else v for v in values], exact_B, groups)
    return found


def rank_correlation(values: list[float], truth: list[float], groups: list[str]) -> float:
    """Spearman's correlation within groups, mean over those in which neither side is all ties.

    Raises:
        ValueError: no group has an order on both sides.
    """
    ranks = [np.asarray(group_ranks(column, groups)) - 0.5 for column in (values, truth)]
    found = []
    for group in dict.fromkeys(groups):
        one, other = (column[[name == group for name in groups]] for column in ranks)
        scale = float(np.linalg.norm(one) * np.linalg.norm(other))
        if scale > 0.0:
            found.append(float(one @ other) / scale)
    if not found:
        raise ValueError("no group has an order: all its captions draw the same, or the reward is constant")
    return float(np.mean(found))
