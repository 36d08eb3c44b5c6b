# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Emoji, a world that nobody here drew: what each stage gains on held-out names, in another style and on signs.

The tiny models learn one vendor's pictures of five names in six, then either stage goes on from there with one reward,
a distance of pixels. Held-out names are measured by what is not rewarded, SSIM and the features of a network trained on
photographs. Two ways of using the models are measured: ``loop`` captions a picture and redraws it, which G4U trains;
``draw`` draws the whole caption, which U4G trains. Writes ``emoji.json``, ``emoji_curves.png`` and, per seed,
``emoji_seed<N>.png``.

Shapes: M held-out pictures, H = W = 32 pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.learning.emoji_data import Emoji
from benchmarks.learning.emoji_data import prepare as prepare_data
from benchmarks.learning.emoji_world import Split, emoji_world, nearest_by_pixels, nearest_by_words, read_split
from benchmarks.learning.experiment import (
    Bar,
    Experiment,
    Report,
    curves,
    every,
    gain_rows,
)
from benchmarks.learning.runs import QUIET, Run, compare, joint_trainings
from benchmarks.learning.statistics import REPORTED_SEEDS, gains, select
from benchmarks.learning.u4g import OVERRIDES, RECOMMENDED, REWARD, STEEPNESS
from verl_uae.bench.results import markdown_table
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.scorer import RewardScorer
from verl_uae.scenes.evaluate import draw, load_loop
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say, strip
from verl_uae.seeding import generator

TRAINED_ON, OTHER = "google", "twitter"
"""Vendors: whose pictures are learnt, and whose are only shown."""
JOINT_STEPS = 1200
ARMS = ("g4u", "u4g")
WAYS = ("loop", "draw")
#: Column -> what is measured there. All names are held out.
PARTS = {
    "names": f"{TRAINED_ON}'s style",
    "style": f"{OTHER}'s style, never trained on",
    "things": "things",
    "abstract": "signs and flags",
}
#: Figure -> what it is called. The first is the reward, the others are not rewarded.
FIGURES = {"reward": "reward", "ssim": "SSIM", "features": "features"}
#: What can be had without a decoder: the training picture nearest to the source, and to its caption; and what is lost
#: by the codec alone.
BASELINES = {
    "words": "nearest caption's picture",
    "pixels": "nearest picture",
    "codec": "source through the codec",
}
_TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "reward": ("pixel", {"k": STEEPNESS}),
    "ssim": ("ssim", {}),
    "features": ("efficientnet_lite0", {"image_size": 64}),
}
_SHOWN = 10


class SecondWorld(Experiment):
    """Whether either stage raises a similarity that is not its reward on names it never saw."""

    name = "emoji"
    seeds = REPORTED_SEEDS[:3]
    assumed_minutes = 40.0

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        data = out / "data"
        prepare_data(data)
        roots = {seed: out / f"seed{seed}" for seed in seeds}
        configs = {root: JointConfig(seed=seed, steps=JOINT_STEPS) for seed, root in roots.items()}
        joint_trainings(configs, jobs, say, functools.partial(emoji_world, data, TRAINED_ON))
        runs = [
            Run({"arm": arm}, f"uae_{arm}", root, root / "runs" / arm, seed, steps, words(arm, data))
            for seed, root in roots.items()
            for arm in ARMS
        ]
        held_out = HeldOut.read(data)
        rows = compare(
            runs,
            jobs,
            say,
            before=lambda run: figures(held_out, run, 0),
            after=lambda run: figures(held_out, run, run.steps),
        )
        for seed in seeds:
            picture(held_out, [run for run in runs if run.seed == seed]).save(out / f"emoji_seed{seed}.png")
        found = baselines(held_out, read_split(data, TRAINED_ON, "train"), roots[seeds[0]])
        yield {"baselines": found, "held_out": len(held_out.of["names"].emoji), "runs": rows}

    def bars(self, report: Report) -> list[Bar]:
        """Each stage raises what is not its reward, in its own way of use."""
        bars = []
        for arm, way in zip(ARMS, WAYS, strict=True):
            rows = select(report["runs"], arm=arm)
            for figure in ("ssim", "features"):
                claim = f"{arm}: {FIGURES[figure]} of held-out names up by at least 0.01 ({way}), every seed"
                bars.append(every(claim, gains(rows, f"{way}/names/{figure}"), 0.01))
        return bars

    def table(self, report: Report) -> list[str]:
        """A table per way and figure: means over seeds, gains ± over seeds; what needs no training below."""
        lines = []
        for way in WAYS:
            for figure, label in FIGURES.items():
                keys = [f"{way}/{part}/{figure}" for part in PARTS]
                cells = gain_rows(report["runs"], "arm", keys)
                for name, called in BASELINES.items():
                    own = report["baselines"][name]
                    cells.append([called, *(f"{own[f'{part}/{figure}']:.3f}" for part in PARTS)])
                lines += [f"{way}: {label}", *markdown_table(["", *PARTS.values()], cells)]
        keys = ["words", "true"]
        cells = gain_rows(report["runs"], "arm", keys)
        return [*lines, "captions", *markdown_table(["", "words", "words that are true"], cells)]

    def plot(self, out: Path, report: Report) -> None:
        """Training reward against the step, a panel per stage and a line per seed."""
        curves(out / "emoji_curves.png", report["runs"], "arm", "seed", x="step", size=(7, 2.8))


def words(arm: str, data: Path) -> tuple[str, ...]:
    """Overrides of the training command of a stage."""
    files = [f"data.{split}_files={data}/{TRAINED_ON}/{split}.parquet" for split in ("train", "val")]
    own = (f"decoder/objective={RECOMMENDED}", *OVERRIDES) if arm == "u4g" else (REWARD, *QUIET)
    return (*files, *own)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out names in both styles."""

    of: Mapping[str, Split]
    """By the columns of `PARTS` that are a style: ``names`` and ``style``."""

    @classmethod
    def read(cls, data: Path) -> HeldOut:
        """Those of a data set."""
        return cls({"names": read_split(data, TRAINED_ON, "val"), "style": read_split(data, OTHER, "val")})

    def means(self, drawn: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """``<part>/<figure>``: how near drawings are to their sources, means over the pictures of each part.

        Args:
            drawn: by style, (M, 3, H, W) in [0, 1].
        """
        found = {}
        for style, split in self.of.items():
            scores = similarities(drawn[style], split.pictures_N3HW)
            parts = {style: torch.ones(len(split.emoji), dtype=torch.bool)}
            if style == "names":
                parts |= {"things": ~split.abstract_N, "abstract": split.abstract_N}
            found |= {
                f"{part}/{figure}": float(values_M[chosen_M].mean())
                for part, chosen_M in parts.items()
                for figure, values_M in scores.items()
            }
        return found


def similarities(drawn_M3HW: torch.Tensor, source_M3HW: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every figure of `FIGURES` for pictures in [0, 1], (M,) each."""
    scorer = RewardScorer([(name, 1.0, params) for name, params in _TERMS.values()])
    records = scorer.score(RewardBatch(source_B3HW=source_M3HW, reconstruction_B3HW=drawn_M3HW))
    return {label: torch.tensor([record.terms[name] for record in records]) for label, (name, _) in _TERMS.items()}


@torch.no_grad()
def used(held_out: HeldOut, run: Run, step: int) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, list[str]]]:
    """After so many steps: drawings by way and style, (M, 3, H, W) in [0, 1], and sampled captions by style."""
    captioner, decoder, conditioner = load_loop(*run.models(step), run.root / "captioner")
    said = {
        style: captioner.sample(split.pictures_N3HW, generator(run.seed, "emoji-captions", style))
        for style, split in held_out.of.items()
    }
    texts = {"loop": said, "draw": {style: split.captions for style, split in held_out.of.items()}}
    drawn = {
        way: {style: draw(decoder, conditioner, own, seed=run.seed, name="emoji-noise") for style, own in of.items()}
        for way, of in texts.items()
    }
    return drawn, said


def figures(held_out: HeldOut, run: Run, step: int) -> dict[str, float]:
    """``<way>/<part>/<figure>``, and of the captions ``words`` and ``true``."""
    drawn, said = used(held_out, run, step)
    found = {f"{way}/{key}": value for way in WAYS for key, value in held_out.means(drawn[way]).items()}
    return found | caption_figures(held_out.of["names"].emoji, said["names"])


def caption_figures(emoji: Sequence[Emoji], captions: Sequence[str]) -> dict[str, float]:
    """``words`` per caption, and ``true``: which share of all words is in the whole caption of their emoji."""
    said = [caption.split() for caption in captions]
    hits = sum(word in one.caption().split() for one, own in zip(emoji, said, strict=True) for word in own)
    total = sum(map(len, said))
    return {"words": total / len(said), "true": hits / max(total, 1)}


def baselines(held_out: HeldOut, train: Split, root: Path) -> dict[str, dict[str, float]]:
    """Means of every part for each of `BASELINES`; the codec is that of a root."""
    _, decoder, _ = load_loop(root / "captioner", root / "decoder", root / "captioner")
    sources = {style: split.pictures_N3HW for style, split in held_out.of.items()}
    with torch.no_grad():
        drawn = {
            "words": {style: nearest_by_words(train, split.captions) for style, split in held_out.of.items()},
            "pixels": {style: nearest_by_pixels(train, source) for style, source in sources.items()},
            "codec": {style: decoder.decode_latent(decoder.encode_image(own)) for style, own in sources.items()},
        }
    return {name: held_out.means(of) for name, of in drawn.items()}


def picture(held_out: HeldOut, runs: Sequence[Run]) -> Image.Image:
    """Rows: held-out originals, redrawn before, redrawn after G4U, drawn from whole captions before and after U4G."""
    by_arm = {run.labels["arm"]: run for run in runs}
    before, _ = used(held_out, by_arm["g4u"], 0)
    (g4u, _), (u4g, _) = (used(held_out, by_arm[arm], by_arm[arm].steps) for arm in ARMS)
    source = held_out.of["names"].pictures_N3HW
    rows = [source, before["loop"]["names"], g4u["loop"]["names"], before["draw"]["names"], u4g["draw"]["names"]]
    chosen = torch.linspace(0, len(source) - 1, min(_SHOWN, len(source))).long()
    return Image.fromarray(np.concatenate([strip(row[chosen]) for row in rows], axis=0))
