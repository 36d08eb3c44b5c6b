# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Caption a picture, redraw the caption, score the reconstruction. No verl, no Ray.

After `make quickstart`, with a picture of the built-in world:

    python examples/reconstruct.py --scenes outputs/quickstart --out before.png
    python examples/reconstruct.py --scenes outputs/quickstart --out after.png \\
        --encoder outputs/quickstart/runs/g4u/global_step_60/actor/huggingface

With a model folder of your own:

    python examples/reconstruct.py --model MODEL --image photo.jpg --out reconstruction.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from verl_uae.data.images import decode_image, image_digest, to_tensor
from verl_uae.pipeline import UAEPipeline
from verl_uae.pipeline.loading import load_model, load_processor_of
from verl_uae.reward import RewardBatch, RewardScorer
from verl_uae.seeding import generator

#: The settings of `preset=scenes`.
SCENES = {"condition_length": 20, "caption_prompt": "<image>describe", "caption_system": ""}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", type=Path, metavar="DIR", help="folder of `verl-uae quickstart`")
    source.add_argument("--model", help="model folder or hub id")
    parser.add_argument("--encoder", type=Path, help="captioner, where it is not the model's own")
    parser.add_argument("--image", type=Path, help="picture to describe; with --scenes a held-out one by default")
    parser.add_argument("--out", type=Path, required=True, help="where the reconstruction goes (PNG)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: 40, with --scenes 6)")
    parser.add_argument(
        "--guidance", type=float, help="classifier-free guidance, 1 is off (default: 5, with --scenes 1)"
    )
    parser.add_argument("--terms", nargs="+", default=["pixel", "ssim"], help="reward terms, each of weight 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    steps, guidance = (40, 5.0) if args.scenes is None else (6, 1.0)
    args.steps = steps if args.steps is None else args.steps
    args.guidance = guidance if args.guidance is None else args.guidance
    if args.image is None and args.scenes is None:
        parser.error("give --image, or --scenes")
    return args


def load_pipeline(args: argparse.Namespace) -> UAEPipeline:
    """The pipeline; the scenes keep encoder and decoder in folders of their own."""
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    settings: dict[str, Any] = dict(SCENES) if args.scenes else {}
    if args.scenes is not None:
        start = args.scenes / "encoder"
        settings |= {"encoder": load_model(start, dtype), "processor": load_processor_of(start)}
    folder = args.model if args.scenes is None else args.scenes / "decoder"
    pipe = UAEPipeline.from_pretrained(folder, torch_dtype=dtype, **settings)
    if args.encoder is not None:
        # The condition keeps the language model from before, as in training.
        before = pipe.language_model or pipe.encoder
        pipe.register_modules(language_model=before, encoder=load_model(args.encoder, dtype))
    return pipe.to(args.device)


def load_image(args: argparse.Namespace) -> Image.Image:
    """The picture through the image door: RGB, upright, within limits."""
    if args.image is not None:
        return decode_image(args.image)
    row = pq.read_table(args.scenes / "data" / "val.parquet", columns=["images"]).slice(args.seed, 1).to_pylist()[0]
    return decode_image(row["images"][0])


def main() -> None:
    """Run the chain once and print what came of it."""
    args = parse_args()
    image = load_image(args)
    output = load_pipeline(args).reconstruct(
        image,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        generator=generator(args.seed, "noise", image_digest(image)),
        output_type="pt",
    )
    print(f"caption: {output.captions[0]}")
    UAEPipeline.to_pil(output.images)[0].save(args.out, "PNG")
    print(f"reconstruction: {args.out}")
    source = to_tensor([image], tuple(output.images.shape[-2:])).to(output.images.device)
    scorer = RewardScorer([(name, 1.0, {}) for name in args.terms], device=args.device)
    record = scorer.score(RewardBatch(source, output.images, captions=output.captions, rows=[{}]))[0]
    for name, value in record.terms.items():
        print(f"{name}: {value:.4f}")
    print(f"reward: {record.value} ({record.status})")


if __name__ == "__main__":
    main()
