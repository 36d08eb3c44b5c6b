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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from verl_uae.decoder.decoder import Decoder
from verl_uae.formats.export import ExportSettings, export_checkpoint
from verl_uae.formats.names import EXPORT_FOLDER, MODEL_INDEX
from verl_uae.reward.terms.pixel import pixel_similarity
from verl_uae.scenes.dataset import write_dataset
from verl_uae.scenes.evaluate import Evaluation, evaluate
from verl_uae.scenes.grammar import CAPTIONER_MIX, DECODER_MIX
from verl_uae.scenes.joint_training import JointConfig
from verl_uae.scenes.learn.bars import Bar, mean_and_spread
from verl_uae.scenes.learn.runs import Run, cold_starts, execute
from verl_uae.scenes.learn.u4g import RECOMMENDED, SCENES, STEEPNESS
from verl_uae.scenes.quickstart import Say, trained_encoder
from verl_uae.scenes.tiny_models import build_decoder

ROUTES = ("cold start", "no cold start")
PRETRAIN_STEPS = 600
COLD_START_STEPS = 60

_REWARD = f"uae.reward.terms=[{{name: pixel, weight: 1.0, params: {{k: {STEEPNESS}}}}}]"
_QUIET = ("trainer.test_freq=-1", "trainer.val_before_train=false")
_DECODER = ("uae.policy.save_contents=[model,diffusers]",)


@dataclass(frozen=True, slots=True)
class Pair:
    """Folders of the three models at some point."""

    encoder: Path
    decoder: Path
    language_model: Path


@dataclass(frozen=True)
class Result:
    """Held-out figures after a stage."""

    route: str
    seed: int
    stage: str
    metrics: dict[str, float]


def learn(out: Path, *, seeds: Sequence[int], steps: int, jobs: int, say: Say) -> list[Bar]:
    """Foundations, then every seed's stages, ``jobs`` seeds at a time; write the results.

    Args:
        out: folder.
        seeds: one foundation and two routes each.
        steps: of G4U and of U4G.
        jobs: commands at a time.
        say: reports.
    """
    roots = {seed: out / f"seed{seed}" for seed in seeds}
    cold_starts({root / "joint": JointConfig(seed=seed) for seed, root in roots.items()}, jobs, say)
    with ProcessPoolExecutor(max_workers=jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(foundation, roots.values(), roots))
    runs = {(seed, name): run for seed, root in roots.items() for name, run in plan(root, seed, steps).items()}
    for stage in ("pretrain", "cold start", "g4u", "u4g"):
        names = [stage] if stage in ("pretrain", "cold start") else [f"{stage}/{route}" for route in ROUTES]
        execute([runs[seed, name] for seed in seeds for name in names], jobs, say)
    results = [result for seed, root in roots.items() for result in measure_all(root, seed, runs)]
    exported = {seed: export(root, seed, runs, results) for seed, root in roots.items()}
    write_results(out, results, exported)
    say(table(results))
    return verdicts(results, exported)


def foundation(root: Path, seed: int) -> None:
    """Captioner and codec of the joint training, a decoder that has learnt nothing, and pairs to learn from."""
    torch.set_num_threads(1)
    if not (root / "fresh_decoder" / MODEL_INDEX).is_file():
        vae = Decoder.from_pretrained(str(root / "joint" / "decoder")).vae
        build_decoder(seed, vae).save_pretrained(str(root / "fresh_decoder"))
    write_dataset(root / "pairs", train=4000, val=64, seed=seed, captions=DECODER_MIX)
    # The encoder imitates these in the cold start: detailed captions would leave G4U nothing to learn.
    write_dataset(root / "under", train=2000, val=64, seed=seed, captions=CAPTIONER_MIX)


def plan(root: Path, seed: int, steps: int) -> dict[str, Run]:
    """Every command of a seed by name."""
    joint = root / "joint"

    def data(name: str) -> tuple[str, ...]:
        return (f"data.train_files={root}/{name}/train.parquet", f"data.val_files={root}/{name}/val.parquet")

    def make(name: str, config: str, count: int, overrides: Sequence[str], preset: str = "scenes") -> Run:
        folder = root / "runs" / name.replace(" ", "_")
        return Run(f"{name}/seed{seed}", config, joint, folder, seed, count, (*overrides, *_QUIET), preset)

    fresh = (f"uae.decoder.path={root}/fresh_decoder", *_DECODER)
    runs = {"pretrain": make("pretrain", "uae_pretrain", PRETRAIN_STEPS, (*fresh, *data("pairs")), "scenes_pretrain")}
    drawn = f"uae.decoder.path={runs['pretrain'].checkpoint}/decoder"
    runs["cold start"] = make(
        "cold start", "uae_cold_start", COLD_START_STEPS, (drawn, *_DECODER, *data("under")), "scenes_cold_start"
    )
    for route in ROUTES:
        before = start_of(root, route, runs)
        models = (f"uae.decoder.path={before.decoder}", f"uae.conditioner.path={before.language_model}", _REWARD)
        g4u = make(f"g4u/{route}", "uae_g4u", steps, (f"actor_rollout_ref.model.path={before.encoder}", *models))
        captioner = f"actor_rollout_ref.model.path={g4u.checkpoint}/actor/huggingface"
        objective = f"decoder/objective={RECOMMENDED}"
        runs[f"g4u/{route}"] = g4u
        runs[f"u4g/{route}"] = make(f"u4g/{route}", "uae_u4g", steps, (objective, captioner, *models, *_DECODER))
    return runs


def start_of(root: Path, route: str, runs: dict[str, Run]) -> Pair:
    """What RL starts from."""
    if route == "no cold start":
        encoder = root / "joint" / "encoder"
        return Pair(encoder, runs["pretrain"].checkpoint / EXPORT_FOLDER, encoder)
    checkpoint = runs["cold start"].checkpoint
    return Pair(checkpoint / "encoder", checkpoint / "decoder", checkpoint / "encoder")


def measure_all(root: Path, seed: int, runs: dict[tuple[int, str], Run]) -> list[Result]:
    """Held-out figures after every stage of both routes."""
    own = {name: run for (of, name), run in runs.items() if of == seed}
    joint = root / "joint" / "encoder"
    shared = {
        "start": Pair(joint, root / "fresh_decoder", joint),
        "pretrain": Pair(joint, own["pretrain"].checkpoint / EXPORT_FOLDER, joint),
    }
    figures = {stage: measure(pair, seed).metrics for stage, pair in shared.items()}
    results = []
    for route in ROUTES:
        before = start_of(root, route, own)
        found = dict(figures)
        if route == "cold start":
            found["cold start"] = measure(before, seed).metrics
        captioner = trained_encoder(own[f"g4u/{route}"].folder, own[f"g4u/{route}"].steps)
        found["g4u"] = measure(Pair(captioner, before.decoder, before.language_model), seed).metrics
        drawn = own[f"u4g/{route}"].checkpoint / EXPORT_FOLDER
        found["u4g"] = measure(Pair(captioner, drawn, before.language_model), seed).metrics
        results += [Result(route, seed, stage, metrics) for stage, metrics in found.items()]
    return results


def measure(pair: Pair, seed: int, *, greedy: bool = False) -> Evaluation:
    """Caption held-out scenes and redraw them."""

    def reward(drawn_B3HW: torch.Tensor, source_B3HW: torch.Tensor) -> torch.Tensor:
        return pixel_similarity(drawn_B3HW, source_B3HW, STEEPNESS)

    return evaluate(pair.encoder, pair.decoder, pair.language_model, n=SCENES, seed=seed, reward=reward, greedy=greedy)


def export(root: Path, seed: int, runs: dict[tuple[int, str], Run], results: Sequence[Result]) -> dict[str, float]:
    """Export the trained models and compare what the folder draws with what training's evaluation draws.

    Returns:
        ``pixel_difference`` (largest, in [0, 1]) and ``same_captions`` (share), both over held-out scenes.
    """
    route = ROUTES[0]
    own = {name: run for (of, name), run in runs.items() if of == seed}
    before = start_of(root, route, own)
    captioner = trained_encoder(own[f"g4u/{route}"].folder, own[f"g4u/{route}"].steps)
    folder = root / "model"
    if not folder.is_dir():
        last = next(r for r in results if (r.route, r.seed, r.stage) == (route, seed, "u4g"))
        figures = root / "evaluation.json"
        figures.write_text(json.dumps(last.metrics) + "\n", encoding="utf-8")
        settings = ExportSettings(
            encoder=str(captioner), language_model=str(before.language_model), evaluation=str(figures)
        )
        export_checkpoint(own[f"u4g/{route}"].checkpoint, folder, settings)
    wanted = measure(
        Pair(captioner, own[f"u4g/{route}"].checkpoint / EXPORT_FOLDER, before.language_model), seed, greedy=True
    )
    return compare_pipeline(folder, wanted, seed)


def compare_pipeline(folder: Path, wanted: Evaluation, seed: int) -> dict[str, float]:
    """Caption and draw the evaluation's scenes with the exported folder."""
    from verl_uae.pipeline import UAEPipeline
    from verl_uae.scenes.render import IMAGE_SIZE, render_image
    from verl_uae.seeding import normal

    pipe: Any = UAEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    images = [render_image(scene) for scene in wanted.scenes]
    captions = pipe.caption(images, temperature=0.0)
    noise = normal((len(images), *pipe.decoder.latent_shape(IMAGE_SIZE, IMAGE_SIZE)), seed, "scenes-eval-noise")
    drawn = pipe.generate(
        wanted.captions,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        num_inference_steps=8,
        guidance_scale=1.0,
        latents=noise,
        output_type="pt",
    ).images
    return {
        "pixel_difference": float((drawn - wanted.drawings).abs().max()),
        "same_captions": sum(a == b for a, b in zip(captions, wanted.captions, strict=True)) / len(captions),
    }


def verdicts(results: Sequence[Result], exported: dict[int, dict[str, float]]) -> list[Bar]:
    """Whether the stages do what they are for, over seeds."""

    def gains(route: str, before: str, after: str, metric: str) -> list[float]:
        of = {(r.seed, r.stage): r.metrics[metric] for r in results if r.route == route}
        return [of[seed, after] - of[seed, before] for seed in sorted({r.seed for r in results})]

    def rises(claim: str, values: Sequence[float]) -> Bar:
        mean, spread = mean_and_spread(values)
        return Bar(claim, min(values) > 0, f"smallest {min(values):+.3f}, mean {mean:+.3f}, deviation {spread:.3f}")

    whole = [gains(route, "pretrain", "u4g", "reward") for route in ROUTES]
    worst = max(found["pixel_difference"] for found in exported.values())
    return [
        rises("pre-training: held-out reward up, every seed", gains(ROUTES[0], "start", "pretrain", "reward")),
        rises("cold start: held-out reward up, every seed", gains(ROUTES[0], "pretrain", "cold start", "reward")),
        rises("G4U after it: held-out reward up, every seed", gains(ROUTES[0], "cold start", "g4u", "reward")),
        rises("U4G after that: held-out reward up, every seed", gains(ROUTES[0], "g4u", "u4g", "reward")),
        rises(
            "the end is better with a cold start than without, every seed",
            [with_it - without for with_it, without in zip(*whole, strict=True)],
        ),
        Bar("exported folder draws what training drew, to 2/255", worst <= 2 / 255, f"largest difference {worst:.2g}"),
    ]


def table(results: Sequence[Result]) -> str:
    """Markdown: means over seeds with their standard deviation."""
    columns = {"reward": "reward", "mse": "MSE", "drawn": "attributes", "words": "words", "full_detail": "full detail"}
    columns |= {"true": "true", "scene_eval/loop": "SceneEval loop", "scene_eval/draw": "SceneEval draw"}
    lines = ["| route | after | " + " | ".join(columns.values()) + " |", "|---|---|" + "---|" * len(columns)]
    for route in ROUTES:
        for stage in dict.fromkeys(result.stage for result in results if result.route == route):
            found = [result.metrics for result in results if (result.route, result.stage) == (route, stage)]
            cells = []
            for key in columns:
                mean, spread = mean_and_spread([metrics[key] for metrics in found])
                digits = 4 if key == "mse" else 3
                cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}")
            lines.append(f"| {route} | {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_results(out: Path, results: Sequence[Result], exported: dict[int, dict[str, float]]) -> None:
    """Write the figures and the picture."""
    bars = {bar.claim: {"met": bar.met, "figure": bar.figure} for bar in verdicts(results, exported)}
    content = {
        "torch": torch.__version__,
        "bars": bars,
        "exported": exported,
        "results": [asdict(result) for result in results],
    }
    (out / "stages.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(out / "stages.png", results)


def plot(path: Path, results: Sequence[Result]) -> None:
    """Held-out reward and attributes after every stage, a line per route and seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    order = ["start", "pretrain", "cold start", "g4u", "u4g"]
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), constrained_layout=True)
    for axis, (metric, label) in zip(
        axes, {"reward": "held-out reward", "drawn": "attributes drawn"}.items(), strict=True
    ):
        for route, style in zip(ROUTES, ("-", "--"), strict=True):
            for seed in sorted({result.seed for result in results}):
                mine = {r.stage: r.metrics[metric] for r in results if (r.route, r.seed) == (route, seed)}
                stages = [stage for stage in order if stage in mine]
                axis.plot(
                    [order.index(s) for s in stages], [mine[s] for s in stages], style, label=f"{route}, seed {seed}"
                )
        axis.set_xticks(range(len(order)), order, fontsize=8)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=6)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
