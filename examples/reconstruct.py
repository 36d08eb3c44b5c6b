# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Caption a picture, redraw the caption, score the reconstruction. No verl, no Ray.

After `make quickstart`, with a held-out picture of the built-in world:

    python examples/reconstruct.py --out reconstruction.png

With a model folder and a picture of your own:

    python examples/reconstruct.py --model MODEL --image photo.jpg --out reconstruction.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from verl_uae import UAEPipeline
from verl_uae.data.images import decode_image, image_digest, to_tensor
from verl_uae.data.schema import first_pictures
from verl_uae.reward import RewardBatch, RewardScorer
from verl_uae.seeding import generator

QUICKSTART = Path("outputs/quickstart")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(QUICKSTART / "model"), help="model folder or hub id")
    parser.add_argument("--image", type=Path, help="picture to describe (default: a held-out one of the quickstart)")
    parser.add_argument("--out", type=Path, required=True, help="where the reconstruction goes (PNG)")
    parser.add_argument("--terms", nargs="+", default=["pixel", "ssim"], help="reward terms, each of weight 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_image(args: argparse.Namespace) -> Image.Image:
    """The picture through the image door: RGB, upright, within limits."""
    if args.image is not None:
        return decode_image(args.image)
    pictures = QUICKSTART / "data" / "val.parquet"
    if not pictures.is_file():
        raise SystemExit(f"there is no {pictures}: run `make quickstart` first, or give --model and --image")
    return first_pictures(pictures, 1)[0].decode()


def main() -> None:
    """Run the chain once and print what came of it."""
    args = parse_args()
    image = load_image(args)
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    # Prompt, steps, guidance and size are the model's own, as its training validated them.
    pipe = UAEPipeline.from_pretrained(args.model, torch_dtype=dtype).to(args.device)
    digest = image_digest(image)
    output = pipe.reconstruct(
        image,
        caption_generator=generator(args.seed, "caption", digest),
        generator=generator(args.seed, "noise", digest),
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
