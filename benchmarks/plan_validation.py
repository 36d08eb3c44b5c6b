# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of every stage on this CPU against what ``verl-uae plan`` says of them.

    python -m benchmarks.plan_validation --out outputs/plan_validation

Models of two sizes, wide enough that arithmetic outweighs Python, are trained for a few steps by the user's command,
one rank and one thread a process. The rates of the machine are measured before every run and after it, and the median
of all is taken. A step's seconds are the processor time of the processes that do more than poll, which other load on
the machine moves less than the wall clock: one phase runs at a time, so on an idle machine both are about the same.
Results are written after every run, and a run that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.measure import provenance
from verl_uae.scenes.quickstart import METRICS, command, run_training

if TYPE_CHECKING:
    from verl_uae.plan.planner import Row

STAGES = ("pretrain", "cold_start", "g4u", "u4g", "unified")
#: Of a run, behind the first of each kind.
STEPS = 4
#: Side of a drawn picture, pixels, and of one that the captioner sees; tokens of a prompt around the latter.
PIXELS, SEEN, PROMPT = 64, 32, 8


@dataclass(frozen=True, slots=True)
class Size:
    """Captioner and decoder of one width, and samples that make a step of seconds of them."""

    width: int
    layers: int
    pairs: int
    """Of a step of pre-training."""
    cold_pairs: int
    images: int
    members: int
    """Captions of an image in G4U, pictures of a caption in U4G."""


SIZES = {"small": Size(256, 4, 256, 32, 8, 8), "large": Size(512, 6, 64, 8, 4, 8)}


def build(root: Path, size: Size) -> None:
    """Captioner, decoder and data with random weights, unless they are there."""
    if (root / "data").is_dir():
        return
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Qwen2_5_VLForConditionalGeneration

    from verl_uae.chain.decoder import Decoder
    from verl_uae.checkpoints.names import CONDITIONER, TRANSFORMER, VAE
    from verl_uae.families.sd3 import Projector
    from verl_uae.scenes.codec import DOWNSAMPLING, LATENT_CHANNELS, build_codec
    from verl_uae.scenes.dataset import write_dataset
    from verl_uae.scenes.tiny_models import CONDITION_LENGTH, captioner_config
    from verl_uae.scenes.tokenizer import build_processor, generation_config

    head = 64
    config, width = captioner_config(), size.width
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}
    heads = width // head
    text = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": size.layers}
    text |= {"max_window_layers": size.layers, "num_attention_heads": heads, "num_key_value_heads": heads}
    for name, value in {**text, "rope_parameters": rope, "layer_types": ["full_attention"] * size.layers}.items():
        setattr(config.text_config, name, value)
    vision = {"hidden_size": width, "intermediate_size": 3 * width, "out_hidden_size": width, "num_heads": heads}
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    side = PIXELS // DOWNSAMPLING
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        captioner = Qwen2_5_VLForConditionalGeneration(config)
        transformer = SD3Transformer2DModel(
            sample_size=side,
            patch_size=1,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=size.layers,
            num_attention_heads=heads,
            attention_head_dim=head,
            joint_attention_dim=width,
            caption_projection_dim=width,
            pooled_projection_dim=16,
            pos_embed_max_size=side,
            qk_norm="rms_norm",
        )
        projector = Projector(width, 2 * width, width, 16)
        tower = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        sees = {"num_hidden_layers": size.layers, "image_size": PIXELS, "patch_size": 8, "projection_dim": width}
        CLIPVisionModelWithProjection(CLIPVisionConfig(**tower, **sees)).save_pretrained(root / "clip")
    processor = build_processor()
    captioner.generation_config = generation_config(processor.tokenizer)
    captioner.save_pretrained(root / "captioner")
    processor.save_pretrained(root / "captioner")
    modules = {TRANSFORMER: transformer, VAE: build_codec(0, fit_scenes=200), CONDITIONER: projector}
    Decoder.of(modules, {"shift": 1.0}, length=CONDITION_LENGTH).save_pretrained(str(root / "decoder"))
    write_dataset(root / "data", train=512, val=8)


def words(stage: str, root: Path, size: Size) -> list[str]:
    """Overrides of a run."""
    pairs = {"pretrain": size.pairs, "cold_start": size.cold_pairs}.get(stage, size.images)
    found = [
        f"data.train_batch_size={pairs}",
        f"uae.decoder.height={PIXELS}",
        f"uae.decoder.width={PIXELS}",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        "trainer.save_freq=-1",
        "uae.reward.terms=[{name: pixel}]",
        "++ray_kwargs.ray_init.address=local",
    ]
    if stage == "cold_start":
        found += ["uae.cold_start.backbone=clip", "~uae.cold_start.backbone_params.image_size"]
        found.append(f"+uae.cold_start.backbone_params.model={root / 'clip'}")
    if stage in ("pretrain", "cold_start"):
        return [*found, f"uae.train.micro_batch_size={min(64, pairs)}"]
    captions = size.images * size.members
    if stage != "u4g":
        found += [f"actor_rollout_ref.rollout.n={size.members}", f"actor_rollout_ref.actor.ppo_mini_batch_size={pairs}"]
        for key in ("actor.ppo", "ref.log_prob", "rollout.log_prob"):
            found.append(f"actor_rollout_ref.{key}_micro_batch_size_per_gpu={captions}")
    if stage == "unified":
        # As many steps of both stages are measured.
        found += ["uae.unified.g4u_steps=1", "uae.unified.u4g_steps=1"]
    if stage != "g4u":
        found += [f"uae.u4g.samples_per_caption={size.members}", f"uae.train.micro_batch_size={captions // 2}"]
    return found


def preset(stage: str) -> str:
    """That the built-in scenes have for a stage."""
    return f"scenes_{stage}" if stage in ("pretrain", "cold_start") else "scenes"


# ------------------------------------------------------------ measured


#: Share of a step's processor time below which a process only polls: queues, stores, workers without work.
POLLING = 0.03


def processor_seconds() -> dict[int, float]:
    """Of each of Ray's processes below this one so far."""
    parents, spent = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        if name.startswith(b"ray::"):
            spent[int(folder.name)] = int(fields[11]) + int(fields[12])
    mine, ticks = os.getpid(), os.sysconf("SC_CLK_TCK")

    def below(pid: int) -> bool:
        while pid and pid != mine:
            pid = parents.get(pid, 0)
        return pid == mine

    return {pid: count / ticks for pid, count in spent.items() if below(pid)}


def worked(before: dict[int, float], after: dict[int, float]) -> float:
    """Seconds between two moments, of the processes that did more than poll."""
    spent = [seconds - before.get(pid, 0.0) for pid, seconds in after.items()]
    return sum(seconds for seconds in spent if seconds > POLLING * sum(spent))


def measure(stage: str, root: Path, run: Path, size: Size) -> dict[str, Any]:
    """Steps of a run: seconds of the processors for a step, and verl's own of its phases.

    Raises:
        SystemExit: the command failed, naming its log.
    """
    seen: list[dict[int, float]] = []

    def watch(metrics: Path) -> None:
        lines = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else 0
        if lines > len(seen):
            seen.extend([processor_seconds()] * (lines - len(seen)))

    how = {"config": f"uae_{stage}", "preset": preset(stage), "overrides": words(stage, root, size)}
    # The first step of a kind is slower: memory is taken for the first time.
    warm = 2 if stage == "unified" else 1
    started = command(root, run, seed=0, steps=warm + STEPS, **how)
    if code := run_training(started, run, watch):
        raise SystemExit(f"{stage}: exit code {code}, see {run / 'train.log'}")
    records = [json.loads(line)["data"] for line in (run / METRICS).read_text(encoding="utf-8").splitlines()][warm:]
    phases = sorted({key for record in records for key in record if key.startswith("timing_s/")})
    wall = {key: statistics.mean(record.get(key, 0.0) for record in records) for key in phases}
    return {
        "processor_s": worked(seen[warm - 1], seen[-1]) / (len(seen) - warm),
        "wall_s": wall["timing_s/step"],
        "phases": wall,
    }


# ------------------------------------------------------------ predicted


def rates(file: Path) -> None:
    """Measure this machine, in a process of one thread."""
    code = (
        "import sys, time; from pathlib import Path; from verl_uae.estimate.rates import calibrate; "
        "calibrate(Path(sys.argv[1]), clock=time.process_time)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(file)], env=environment, check=True)


def predict(stage: str, root: Path, size: Size, calibration: Path) -> tuple[float, dict[str, float]]:
    """Seconds of a step on one rank, and what they are spent on."""
    row = planned(stage, root, words(stage, root, size), calibration)[0]
    return row.timeline.step_s, row.timeline.spent


def planned(stage: str, root: Path, overrides: Sequence[str], calibration: Path, nodes: int = 1) -> list[Row]:
    """The plan's rows of a run on as many nodes of one rank."""
    from verl_uae.estimate.composing import command as compose
    from verl_uae.estimate.estimator import Estimator
    from verl_uae.estimate.work import Asking
    from verl_uae.plan.planner import Asked, Planner

    chosen = ["hardware=cpu", f"preset={preset(stage)}", f"uae_home={root}", *overrides]
    asked = compose(f"uae_{stage}", [word for word in chosen if not word.startswith("++ray")])
    estimator = Estimator(asked, Asking(int(asked.config.data.max_response_length), SEEN, PROMPT))
    wanted = Asked("H100-80GB", (nodes,), per_node=1, fixed_batch=True, calibration=calibration, spread=0.0)
    return Planner(estimator, wanted).rows()


def median_rates(files: Sequence[Path], out: Path) -> Path:
    """Of several calibrations, the median of each."""
    known = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    medians = {name: statistics.median(each["rates"][name] for each in known) for name in known[0]["rates"]}
    out.write_text(json.dumps({**known[0], "rates": medians}), encoding="utf-8")
    return out


# ------------------------------------------------------------ both


def validate(
    out: Path, stages: Sequence[str], sizes: Sequence[str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run, predict, compare; a record for every stage and size."""
    found = []
    for name in sizes:
        size, root = SIZES[name], out / name
        build(root, size)
        for stage in stages:
            run = root / "runs" / stage
            calibrations = [root / f"rates_{stage}_{when}.json" for when in ("before", "after")]
            file = root / f"{stage}.json"
            if not file.is_file():
                rates(calibrations[0])
                load = os.getloadavg()[0]
                measured = measure(stage, root, run, size)
                rates(calibrations[1])
                file.write_text(json.dumps({**measured, "load": load}, indent=1), encoding="utf-8")
            record = json.loads(file.read_text(encoding="utf-8"))
            known = sorted(out.glob("*/rates_*_*.json"))
            seconds, spent = predict(stage, root, size, median_rates(known, out / "rates.json"))
            record |= {"stage": stage, "size": name, "predicted_s": seconds, "spent": spent}
            record["error"] = seconds / record["processor_s"] - 1
            found.append(record)
            say(row(record))
    return found


def row(record: dict[str, Any]) -> str:
    """Of the table."""
    return (
        f"| `{record['stage']}` | {record['size']} | {record['processor_s']:.2f} | {record['wall_s']:.2f} | "
        f"{record['predicted_s']:.2f} | {100 * record['error']:+.0f} % | {record['load']:.1f} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/plan_validation"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    found = validate(args.out.resolve(), args.stages, args.sizes, lambda line: print(line, flush=True))
    report = {**provenance("cpu"), "records": found}
    (args.out / "plan_validation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
