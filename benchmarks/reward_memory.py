# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Host memory that a built-in reward term works with, in bytes per pixel of the sources of one call.

python -m benchmarks.reward_memory [--json FILE]

Each figure is the peak of a process that scores one call of the largest size (``CALL_PIXELS``), less its size with the
pictures in memory, over the pixels; for a term that looks at one picture at a time, of one picture. Networks have
random weights: LPIPS and DISTS the shape of their real backbones, for they work at the pictures' size, RapidOCR its own
networks; networks with an input of their own are tiny, which leaves the cost of the preprocessing, the part that grows
with the pictures. The script of DreamSim's tests makes its file.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import provenance, write_json
from verl_uae.bench.results import markdown_table
from verl_uae.reward.isolate import CALL_PIXELS
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.scorer import RewardScorer

SIDES = (512, 2048)


def tiny_vision(name: str, folder: Path) -> str:
    """A folder with a network of one narrow layer at its usual input size."""
    import transformers

    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 224, "patch_size": 16}
    vision = {**common, "intermediate_size": 16}
    if name == "dinov3":
        network: Any = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**vision))
    elif name == "clip":
        network = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    elif name == "siglip2":
        network = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision))
    else:
        network = transformers.Dinov2Model(transformers.Dinov2Config(**common))
    network.save_pretrained(folder)
    return str(folder)


def parameters(name: str, folder: Path) -> Mapping[str, Any]:
    """Arguments of a term, files made where it needs some."""
    from safetensors.torch import save_file
    from torchvision.models import alexnet, vgg16

    if name == "dreamsim":
        from tests.reward.terms.golden_dreamsim import merged_state, metadata

        save_file(merged_state("ensemble"), folder / "dreamsim.safetensors", metadata("ensemble"))
        return {"weights": str(folder / "dreamsim.safetensors")}
    if name in ("clip", "dinov2", "dinov3", "siglip2"):
        return {"model": tiny_vision(name, folder)}
    if name in ("lpips alex", "lpips vgg", "dists"):
        # On the meta device: the classifiers behind the convolutions take more memory than what is measured.
        with torch.device("meta"):
            features = (alexnet() if name.endswith("alex") else vgg16()).features
        features.to_empty(device="cpu")
        for parameter in features.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        save_file(features.state_dict(), folder / "backbone.safetensors")
        given = {"backbone": str(folder / "backbone.safetensors")}
        return given if name == "dists" else {**given, "net": name.split()[1]}
    return {}


#: Terms that look at the pictures of a call one after the other.
SINGLE = ("lpips alex", "lpips vgg", "dists", "ocr_guard")
TERMS = ("pixel", "psnr", "ssim", "clip", "dinov2", "dinov3", "siglip2", "efficientnet_lite0", "dreamsim", *SINGLE)


def measure(name: str, side: int) -> float:
    """Bytes per pixel, in this process: its peak must not have been higher before."""
    with tempfile.TemporaryDirectory() as folder:
        scorer = RewardScorer([(name.split()[0], 1.0, parameters(name, Path(folder)))], timeout_s=3600.0)
    small = torch.rand(2, 3, 64, 64)
    scorer.score(RewardBatch(small, small.flip(0), captions=["a", "b"]))
    pictures = torch.rand(1 if name in SINGLE else max(1, CALL_PIXELS // side**2), 3, side, side)
    batch = RewardBatch(pictures, pictures.flip(-1), captions=["a"] * len(pictures))
    before = _resident()
    scorer.score(batch)
    # Not getrusage: its peak begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    return (peak - before) / (pictures.shape[0] * side**2)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Print a table; every cell is a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--term", action="append", help="measure these only; may be repeated")
    parser.add_argument("--side", action="append", type=int, help="of the pictures, pixels; may be repeated")
    parser.add_argument("--one", nargs=2, metavar=("TERM", "SIDE"), help="print one figure, measured in this process")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    args = parser.parse_args()
    if args.one:
        print(measure(args.one[0], int(args.one[1])))
        return
    sides = args.side or SIDES
    found: dict[str, dict[int, float]] = {}
    for name in args.term or TERMS:
        found[name] = {side: in_a_process(name, side) for side in sides}
        print(f"{name}: {', '.join(f'{value:.0f}' for value in found[name].values())}", file=sys.stderr, flush=True)
    cells = [[name, *(f"{value:.0f}" for value in row.values())] for name, row in found.items()]
    print("\n".join(markdown_table(["term", *(f"{side} x {side}" for side in sides)], cells)))
    report = {"provenance": provenance("cpu"), "call_pixels": CALL_PIXELS, "bytes_per_pixel": found}
    write_json(args.json, report)


def in_a_process(name: str, side: int) -> float:
    """The figure of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.reward_memory", "--one", name, str(side)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(result.stdout.split()[-1])


if __name__ == "__main__":
    main()
