# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""All stages in a row: pre-training, cold start, G4U, U4G, export, and the exported folder in `UAEPipeline`.

It begins with a vision-language model that describes too little and a decoder that has learnt nothing, and measures
held-out scenes after every stage. A second route leaves the cold start out, with everything else the same. Writes
``stages.json``, ``stages.png`` and, per seed, ``model/`` (the exported folder).

The language model is frozen in pre-training, so its states must say what a caption says: it comes from the joint
training of the tiny models (`verl_uae.scenes.joint_training`), whose decoder is thrown away. A tiny language model that
has only learnt to write captions has states from which nothing can be drawn.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.experiment import (
    Bar,
    Experiment,
    Report,
    figure,
    shown,
    spread_cells,
)
from benchmarks.learning.runs import QUIET, Run, execute, joint_trainings
from benchmarks.learning.statistics import Row, mean_and_spread, select
from benchmarks.learning.u4g import RECOMMENDED, REWARD, SCENES, similarity
from verl_uae import UAEPipeline
from verl_uae.bench.results import markdown_table
from verl_uae.chain.decoder import Decoder
from verl_uae.checkpoints.export import ExportSettings, export_checkpoint
from verl_uae.checkpoints.names import ACTOR, EXPORT_FOLDER, HUGGINGFACE, MODEL_INDEX
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.evaluate import NOISE, NUM_STEPS, Evaluation, evaluate
from verl_uae.scenes.grammar import CAPTIONER_MIX, DECODER_MIX
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.quickstart import Say, trained_captioner
from verl_uae.scenes.render import IMAGE_SIZE, render_image
from verl_uae.scenes.tiny_models import build_decoder
from verl_uae.seeding import normal

ROUTES = ("cold start", "no cold start")
PRETRAIN_STEPS = 600
COLD_START_STEPS = 60

COLUMNS = {
    "reward": "reward",
    "mse": "MSE",
    "drawn": "attributes",
    "words": "words",
    "full_detail": "full detail",
    "true": "true",
    "scene_eval/loop": "SceneEval loop",
    "scene_eval/draw": "SceneEval draw",
}

_DECODER = ("uae.train.save_contents=[model,diffusers]",)


@dataclass(frozen=True, slots=True)
class Pair:
    """Folders of the three models at some point."""

    captioner: Path
    decoder: Path
    language_model: Path


class Stages(Experiment):
    """Whether every stage does what it is for, and what the cold start is worth."""

    name = "stages"
    axes = ("step",)

    def measure(self, out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> Iterator[Report]:
        """Foundations, then every seed's stages; ``steps`` are those of G4U and of U4G."""
        roots = {seed: out / f"seed{seed}" for seed in seeds}
        joint_trainings({root / "joint": JointConfig(seed=seed) for seed, root in roots.items()}, jobs, say)
        with ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            list(pool.map(foundation, roots.values(), roots))
        runs = {seed: plan(root, seed, steps) for seed, root in roots.items()}
        for stage in ("pretrain", "cold start", "g4u", "u4g"):
            names = [stage] if stage in ("pretrain", "cold start") else [f"{stage}/{route}" for route in ROUTES]
            execute([runs[seed][name] for seed in seeds for name in names], jobs, say)
        rows = [row for seed, root in roots.items() for row in measure_all(root, seed, runs[seed])]
        exported = {str(seed): export(root, seed, runs[seed], rows) for seed, root in roots.items()}
        yield {"exported": exported, "results": rows}

    def bars(self, report: Report) -> list[Bar]:
        def gained(route: str, before: str, after: str) -> list[float]:
            of = {(r["seed"], r["stage"]): r["metrics"]["reward"] for r in select(report["results"], route=route)}
            return [of[seed, after] - of[seed, before] for seed in sorted({seed for seed, _ in of})]

        def rises(claim: str, values: Sequence[float]) -> Bar:
            mean, spread = mean_and_spread(values)
            return Bar(claim, min(values) > 0, f"smallest {min(values):+.3f}, mean {mean:+.3f}, deviation {spread:.3f}")

        whole = [gained(route, "pretrain", "u4g") for route in ROUTES]
        worst = max(found["pixel_difference"] for found in report["exported"].values())
        return [
            rises("pre-training: held-out reward up, every seed", gained(ROUTES[0], "start", "pretrain")),
            rises("cold start: held-out reward up, every seed", gained(ROUTES[0], "pretrain", "cold start")),
            rises("G4U after it: held-out reward up, every seed", gained(ROUTES[0], "cold start", "g4u")),
            rises("U4G after that: held-out reward up, every seed", gained(ROUTES[0], "g4u", "u4g")),
            rises(
                "the end is better with a cold start than without, every seed",
                [with_it - without for with_it, without in zip(*whole, strict=True)],
            ),
            Bar(
                "exported folder draws what training drew, to 2/255",
                worst <= 2 / 255,
                f"largest difference {worst:.2g}",
            ),
        ]

    def table(self, report: Report) -> list[str]:
        """Means over seeds with their standard deviation."""
        rows = report["results"]
        columns, lines = shown(COLUMNS, (row["metrics"] for row in rows)), []
        for route in ROUTES:
            for stage in dict.fromkeys(row["stage"] for row in select(rows, route=route)):
                found = [row["metrics"] for row in select(rows, route=route, stage=stage)]
                lines.append([route, stage, *spread_cells(found, columns)])
        return markdown_table(["route", "after", *columns.values()], lines, words=(0, 1))

    def plot(self, out: Path, report: Report) -> None:
        """Held-out reward and attributes after every stage, a line per route and seed."""
        order = ["start", "pretrain", "cold start", "g4u", "u4g"]
        labels = {"reward": "held-out reward", "drawn": "attributes drawn"}
        with figure(out / "stages.png", len(labels), (8, 3), legend=6) as axes:
            for axis, (metric, label) in zip(axes, labels.items(), strict=True):
                for route, style in zip(ROUTES, ("-", "--"), strict=True):
                    rows = select(report["results"], route=route)
                    for seed in sorted({row["seed"] for row in rows}):
                        mine = {row["stage"]: row["metrics"][metric] for row in select(rows, seed=seed)}
                        stages = [stage for stage in order if stage in mine]
                        places, values = [order.index(stage) for stage in stages], [mine[stage] for stage in stages]
                        axis.plot(places, values, style, label=f"{route}, seed {seed}")
                axis.set_xticks(range(len(order)), order, fontsize=8)
                axis.set_ylabel(label)


def foundation(root: Path, seed: int) -> None:
    """Captioner and codec of the joint training, a decoder that has learnt nothing, and pairs to learn from."""
    torch.set_num_threads(1)
    if not (root / "fresh_decoder" / MODEL_INDEX).is_file():
        vae = Decoder.from_pretrained(str(root / "joint" / "decoder")).vae
        build_decoder(seed, vae).save_pretrained(str(root / "fresh_decoder"))
    write_dataset(root / "pairs", train=4000, val=64, seed=seed, captions=DECODER_MIX)
    # The captioner imitates these in the cold start: detailed captions would leave G4U nothing to learn.
    write_dataset(root / "under", train=2000, val=64, seed=seed, captions=CAPTIONER_MIX)


def plan(root: Path, seed: int, steps: int) -> dict[str, Run]:
    """Every command of a seed by name."""
    joint = root / "joint"

    def data(name: str) -> tuple[str, ...]:
        return (f"data.train_files={root}/{name}/train.parquet", f"data.val_files={root}/{name}/val.parquet")

    def make(name: str, config: str, count: int, overrides: Sequence[str], preset: str = "scenes") -> Run:
        folder = root / "runs" / name.replace(" ", "_")
        return Run({"stage": name}, config, joint, folder, seed, count, (*overrides, *QUIET), preset)

    fresh = (f"uae.decoder.path={root}/fresh_decoder", *_DECODER)
    runs = {"pretrain": make("pretrain", "uae_pretrain", PRETRAIN_STEPS, (*fresh, *data("pairs")), "scenes_pretrain")}
    drawn = f"uae.decoder.path={runs['pretrain'].checkpoint}/decoder"
    runs["cold start"] = make(
        "cold start", "uae_cold_start", COLD_START_STEPS, (drawn, *_DECODER, *data("under")), "scenes_cold_start"
    )
    for route in ROUTES:
        before = start_of(root, route, runs)
        models = (f"uae.decoder.path={before.decoder}", f"uae.conditioner.path={before.language_model}", REWARD)
        g4u = make(f"g4u/{route}", "uae_g4u", steps, (f"actor_rollout_ref.model.path={before.captioner}", *models))
        captioner = f"actor_rollout_ref.model.path={g4u.checkpoint / ACTOR / HUGGINGFACE}"
        objective = f"decoder/objective={RECOMMENDED}"
        runs[f"g4u/{route}"] = g4u
        runs[f"u4g/{route}"] = make(f"u4g/{route}", "uae_u4g", steps, (objective, captioner, *models, *_DECODER))
    return runs


def start_of(root: Path, route: str, runs: Mapping[str, Run]) -> Pair:
    """What RL starts from."""
    if route == "no cold start":
        captioner = root / "joint" / "captioner"
        return Pair(captioner, runs["pretrain"].checkpoint / EXPORT_FOLDER, captioner)
    checkpoint = runs["cold start"].checkpoint
    return Pair(checkpoint / "captioner", checkpoint / "decoder", checkpoint / "captioner")


def measure_all(root: Path, seed: int, runs: Mapping[str, Run]) -> list[Row]:
    """Held-out figures after every stage of both routes, a row each."""
    joint = root / "joint" / "captioner"
    shared = {
        "start": Pair(joint, root / "fresh_decoder", joint),
        "pretrain": Pair(joint, runs["pretrain"].checkpoint / EXPORT_FOLDER, joint),
    }
    figures = {stage: measure(pair, seed).metrics for stage, pair in shared.items()}
    rows: list[Row] = []
    for route in ROUTES:
        before = start_of(root, route, runs)
        found = dict(figures)
        if route == "cold start":
            found["cold start"] = measure(before, seed).metrics
        captioner = trained_captioner(runs[f"g4u/{route}"].folder, runs[f"g4u/{route}"].steps)
        found["g4u"] = measure(Pair(captioner, before.decoder, before.language_model), seed).metrics
        drawn = runs[f"u4g/{route}"].checkpoint / EXPORT_FOLDER
        found["u4g"] = measure(Pair(captioner, drawn, before.language_model), seed).metrics
        rows += [{"route": route, "seed": seed, "stage": stage, "metrics": found[stage]} for stage in found]
    return rows


def measure(pair: Pair, seed: int, *, greedy: bool = False) -> Evaluation:
    """Caption held-out scenes and redraw them."""
    how = {"n": SCENES, "seed": seed, "reward": similarity, "greedy": greedy}
    return evaluate(pair.captioner, pair.decoder, pair.language_model, **how)


def export(root: Path, seed: int, runs: Mapping[str, Run], rows: Sequence[Row]) -> dict[str, float]:
    """Export the trained models and compare what the folder draws with what training's evaluation draws.

    Returns:
        ``pixel_difference`` (largest, in [0, 1]) and ``same_captions`` (share), both over held-out scenes.
    """
    route = ROUTES[0]
    before, g4u, u4g = start_of(root, route, runs), runs[f"g4u/{route}"], runs[f"u4g/{route}"]
    captioner = trained_captioner(g4u.folder, g4u.steps)
    folder = root / "model"
    if not folder.is_dir():
        (last,) = select(rows, route=route, seed=seed, stage="u4g")
        figures = root / "evaluation.json"
        figures.write_text(json.dumps(last["metrics"]) + "\n", encoding="utf-8")
        settings = ExportSettings(
            captioner=str(captioner), language_model=str(before.language_model), evaluation=str(figures)
        )
        export_checkpoint(u4g.checkpoint, folder, settings)
    wanted = measure(Pair(captioner, u4g.checkpoint / EXPORT_FOLDER, before.language_model), seed, greedy=True)
    return compare_pipeline(folder, wanted, seed)


def compare_pipeline(folder: Path, wanted: Evaluation, seed: int) -> dict[str, float]:
    """Caption and draw the evaluation's scenes with the exported folder."""
    pipe: Any = UAEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    images = [render_image(scene) for scene in wanted.scenes]
    captions = pipe.caption(images, temperature=0.0)
    noise = normal((len(images), *pipe.decoder.latent_shape(IMAGE_SIZE, IMAGE_SIZE)), seed, NOISE)
    drawn = pipe.generate(
        wanted.captions,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        num_inference_steps=NUM_STEPS,
        guidance_scale=1.0,
        latents=noise,
        output_type="pt",
    ).images
    return {
        "pixel_difference": float((drawn - wanted.drawings).abs().max()),
        "same_captions": sum(a == b for a, b in zip(captions, wanted.captions, strict=True)) / len(captions),
    }
