# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the tables that are estimated: `python docs/generate_estimates.py`. It takes some minutes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_uae.estimate.composing import command
from verl_uae.estimate.estimator import Estimator
from verl_uae.estimate.rates import GPUS
from verl_uae.estimate.report import pictures
from verl_uae.families.published import DECODERS, LANGUAGE_MODELS
from verl_uae.plan.planner import Asked, plan
from verl_uae.plan.report import best, efficiency, lost_to, split

ROOT = Path(__file__).resolve().parents[1]
STEPS = 1000
#: Smaller ones are for adapters.
LEAST_GIB_OF_A_NODE = 40
SD35 = ("sd35_large", "sd35_medium")
#: Text positions, template included.
LENGTHS = (128, 256, 320, 384, 512, 640, 1024, 4096)
#: Recipes whose steps are predicted, by stage.
RECIPES = ("pretrain", "cold_start", "g4u", "u4g", "unified")


def models(decoder: str) -> list[str]:
    """Overrides: a decoder is conditioned on its own language model, which writes the captions where it sees."""
    language = DECODERS[decoder].language_model
    sees = "vision_config" in LANGUAGE_MODELS[language]
    chosen = [f"uae/decoder={decoder}", f"uae.conditioner.path={language}"]
    return [*chosen, f"actor_rollout_ref.model.path={language}"] if sees else chosen


@functools.cache
def estimator(name: str, *overrides: str, gpus: int = 8) -> Estimator:
    """Of a command."""
    return Estimator(command(name, overrides, gpus=gpus, nodes=1))


# ------------------------------------------------------------ docs/families.md


def family_row(decoder: str) -> str:
    """Memory of a preset in U4G and G4U."""
    u4g, g4u = (f"uae_{stage}" for stage in ("u4g", "g4u"))
    cells = [_cell(estimator(name, *models(decoder)), "H100-80GB") for name in (u4g, g4u)]
    small = ["uae.train.micro_batch_size=1", "uae.decoder.batch_size=1", "uae.decoder.vae_batch_size=1"]
    for gpu in ("RTX4090-24GB", "H100-80GB"):
        cells.append(_cell(estimator(u4g, *models(decoder), *small, gpus=1), gpu))
    return f"| `{decoder}` | {' | '.join(cells)} |"


def _cell(of: Estimator, gpu: str) -> str:
    found = of.estimate(gpu)
    if found.fits:
        return f"{found.peak_gib:.0f}"
    remedies = of.remedies(gpu)
    if not remedies:
        return f"{found.peak_gib:.0f}: no"
    changes, better = min(remedies, key=lambda item: len(item[0]))
    words = ", ".join(f"`{key.partition('.')[2]}={str(value).lower()}`" for key, value in changes.items())
    return f"{found.peak_gib:.0f}: no; {better.peak_gib:.0f} with {words}"


def families() -> str:
    """One row per preset."""
    head = [
        "| preset | U4G, 8 x H100 80 GB | G4U, 8 x H100 80 GB | U4G, one RTX 4090 24 GB | U4G, one H100 80 GB |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(family_row, DECODERS)]) + "\n"


# ------------------------------------------------------------ docs/performance.md


def predicted() -> str:
    """A step of every recipe for one node."""
    head = [
        "| recipe, 8 x H100 80 GB, SD3.5-Large | step, s | pictures per second and GPU | use of the peak "
        "| peak memory of a GPU, GiB | host memory of the node, GiB "
        "| the same with `uae.decoder.shared_master=false` |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(predicted_row, RECIPES)]) + "\n"


def recipe(stage: str) -> str:
    """The one for one node."""
    (file,) = (ROOT / "recipes" / "uae" / stage / "config").glob("*_sd35_large.yaml")
    return str(file)


def lengths() -> str:
    """Seconds of a step by the number of text positions, for every recipe for one node."""
    rows = []
    for length in LENGTHS:
        cells = []
        for stage in RECIPES:
            words = [f"uae.conditioner.length={length}"]
            found = Estimator(command(recipe(stage), words)).estimate("H100-80GB")
            cells.append(f"{found.step_seconds:.1f}" if found.fits else "does not fit")
        rows.append(f"| {length:,} | {' | '.join(cells)} |")
    head = "| text positions | " + " | ".join(f"`{stage}`, s" for stage in RECIPES) + " |"
    return "\n".join([head, "|---" * (1 + len(RECIPES)) + "|", *rows]) + "\n"


def predicted_row(stage: str) -> str:
    """Of a stage."""
    of = Estimator(command(recipe(stage)))
    found = of.estimate("H100-80GB")
    apart = of.estimate("H100-80GB", changes={"uae.decoder.shared_master": False})
    rate = pictures(found) / found.step_seconds / found.gpus
    memory = f"{found.peak_gib:.1f} | {found.host_gib:.0f} | {apart.host_gib:.0f}"
    return f"| `{stage}` | {found.step_seconds:.1f} | {rate:.2f} | {100 * found.mfu:.0f} % | {memory} |"


#: Counts of GPUs that recipes are planned for.
COUNTS = (8, 64, 512, 4096)


def planned() -> str:
    """The fastest schedule of every recipe on many GPUs."""
    head = [
        "| recipe, H100 80 GB, SD3.5-Large | GPUs | fastest schedule | captioner + decoder | step, s "
        "| pictures per second and GPU | weak scaling | lost to |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(line for stage in RECIPES for line in planned_rows(stage))]) + "\n"


def planned_rows(stage: str, counts: Sequence[int] = COUNTS) -> Iterator[str]:
    """Of a stage."""
    rows = plan(recipe(stage), [], Asked("H100-80GB", tuple(counts))).rows()
    for gpus in counts:
        row = best(rows, gpus)
        name, seconds = lost_to(row, rows)
        lost = f"{name}, +{seconds:.1f} s" if efficiency(row, rows) < 0.95 else "–"
        yield (
            f"| `{stage}` | {gpus:,} | {row.schedule} | {split(row)} | {row.timeline.step_s:.1f} | {row.rate:.2f} "
            f"| {efficiency(row, rows):.2f} | {lost} |"
        )


# ------------------------------------------------------------ recipes/uae/g4u/README.md


def nodes() -> str:
    """All weights of the captioner: one row per decoder and GPU type."""
    gpus = [gpu for gpu in sorted(GPUS) if GPUS[gpu].memory_gib >= LEAST_GIB_OF_A_NODE]
    return _table([_row(estimator("uae_g4u", f"uae/decoder={name}"), gpu) for name in SD35 for gpu in gpus])


def one_gpu() -> str:
    """Adapters of the captioner on one GPU: one row per decoder and GPU type."""
    words = [
        "captioner/training=lora",
        "uae.decoder.batch_size=4",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    ]
    words.append("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2")
    return _table(
        [
            _row(estimator("uae_g4u", f"uae/decoder={name}", *words, gpus=1), gpu)
            for name in SD35
            for gpu in sorted(GPUS)
        ]
    )


def _table(rows: list[str]) -> str:
    head = [
        "| decoder | GPUs | captioning, GiB | decoding, GiB | update, GiB | fits | `gpu_memory_utilization` "
        f"| captioner stays | decoder may stay | s per step | hours for {STEPS:,} steps | USD |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


_OFFLOAD = {f"actor_rollout_ref.actor.fsdp_config.{part}_offload": True for part in ("param", "optimizer")}


def _row(of: Estimator, gpu: str) -> str:
    share = {"actor_rollout_ref.rollout.gpu_memory_utilization": max(0.2, of.estimate(gpu).server_share)}
    found, stays = of.estimate(gpu, changes=share), True
    if not found.fits:
        found, stays = of.estimate(gpu, changes={**share, **_OFFLOAD}), False
    groups = {"captions": 0.0, "VAE": 0.0, "captioner's update": 0.0}
    for phase in found.phases:
        if phase.name in groups:
            groups[phase.name] = sum(found.memory_gib(phase).values())
    memory = " | ".join(f"{size:.1f}" for size in groups.values())
    facts = [found.command.decoder, f"{found.gpus} x {gpu}", memory, "yes" if found.fits else "no"]
    # What does not fit takes no time and costs nothing: it does not run.
    rest = ["–"] * 6
    if found.fits:
        rest = [
            f"{share.popitem()[1]:g}",
            "yes" if stays else "no",
            "yes" if stays and _resident(of, gpu) else "no",
            f"{found.step_seconds:.1f}",
            f"{found.hours(STEPS):.1f}",
            f"{found.usd(STEPS):,.0f}",
        ]
    return f"| {' | '.join([*facts, *rest])} |"


def _resident(of: Estimator, gpu: str) -> bool:
    share = max(0.2, of.estimate(gpu).server_share)
    changes: dict[str, Any] = {"actor_rollout_ref.rollout.gpu_memory_utilization": share, "uae.decoder.offload": False}
    return of.estimate(gpu, changes=changes).fits


#: Page -> name of a table between its markers -> what writes it.
TABLES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "docs" / "families.md": {"MEMORY": families},
    ROOT / "docs" / "performance.md": {"PREDICTED": predicted, "PLANNED": planned, "LENGTHS": lengths},
    ROOT / "recipes" / "uae" / "g4u" / "README.md": {"ESTIMATES": nodes, "ESTIMATES ONE GPU": one_gpu},
}


def update(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """A page with fresh tables, each between its two markers.

    Raises:
        ValueError: where a marker is missing.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, tail = text.index(begin) + len(begin), text.index(end)
        text = text[:head] + table() + text[tail:]
    return text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for page, tables in TABLES.items():
        page.write_text(update(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
