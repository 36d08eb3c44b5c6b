# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Caption a picture, redraw the caption, score the reconstruction. No verl, no Ray.

After `make quickstart`, with a picture of the built-in world:

    python examples/reconstruct.py --scenes outputs/quickstart --out before.png
    python examples/reconstruct.py --scenes outputs/quickstart --out after.png \\
        --encoder outputs/quickstart/runs/g4u/global_step_60/actor/huggingface

With models of your own:

    python examples/reconstruct.py --encoder ENCODER --decoder DECODER --image photo.jpg --out reconstruction.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from verl_uae.data.images import decode_image, image_digest
from verl_uae.data.schema import USER_PROMPT
from verl_uae.decoder.conditioner import Conditioner
from verl_uae.decoder.decoder import Decoder
from verl_uae.reward import RewardScorer
from verl_uae.rollout.chain import ChainRequest, ReconstructionChain, SamplerSettings
from verl_uae.rollout.hf.engine import CaptionEngine
from verl_uae.rollout.hf.types import CaptionRequest, CaptionRequestError
from verl_uae.seeding import derive_seed

#: The settings of `preset=scenes`.
SCENES = {"prompt": "describe", "size": 32, "steps": 6, "guidance": 1.0, "condition_length": 20, "caption_tokens": 24}


def parse_args() -> argparse.Namespace:
    """The command line; the defaults are those of `uae_g4u`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--scenes", type=Path, metavar="DIR", help="folder of `verl-uae quickstart`; sets the defaults of all the rest"
    )
    parser.add_argument("--encoder", help="transformers folder of the captioner")
    parser.add_argument("--decoder", help="diffusers folder of the decoder")
    parser.add_argument("--conditioner", help="transformers folder that reads the caption (default: the encoder)")
    parser.add_argument("--image", type=Path, help="picture to describe; with --scenes a held-out one by default")
    parser.add_argument("--out", type=Path, required=True, help="where the reconstruction goes (PNG)")
    parser.add_argument("--prompt", default=USER_PROMPT.replace("<image>\n", ""), help="text after the picture")
    parser.add_argument("--size", type=int, default=512, help="side of the reconstruction, pixels")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--guidance", type=float, default=5.0, help="classifier-free guidance, 1 is off")
    parser.add_argument("--condition-length", type=int, default=640, help="text positions of the condition")
    parser.add_argument("--caption-tokens", type=int, default=512, help="longest caption, tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the caption, 0 is greedy")
    parser.add_argument("--terms", nargs="+", default=["pixel", "ssim"], help="reward terms, each of weight 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.scenes is not None:
        start, decoder = str(args.scenes / "encoder"), str(args.scenes / "decoder")
        parser.set_defaults(**SCENES, encoder=start, conditioner=start, decoder=decoder)
        args = parser.parse_args()
    if args.encoder is None or args.decoder is None or (args.image is None and args.scenes is None):
        parser.error("give --scenes, or --encoder, --decoder and --image")
    return args


def load_image(args: argparse.Namespace) -> Image.Image:
    """The picture through the image door: RGB, upright, within limits."""
    if args.image is not None:
        return decode_image(args.image)
    row = pq.read_table(args.scenes / "data" / "val.parquet", columns=["images"]).slice(args.seed, 1).to_pylist()[0]
    return decode_image(row["images"][0])


def caption(args: argparse.Namespace, image: Image.Image) -> str:
    """One caption of a picture, with the chat template and processor of the model."""
    from transformers import AutoProcessor

    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    processor: Any = AutoProcessor.from_pretrained(args.encoder)
    content = [{"type": "image"}, {"type": "text", "text": args.prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    prompt_ids = inputs["input_ids"][0].tolist()
    engine = CaptionEngine(
        args.encoder,
        prompt_length=len(prompt_ids),
        response_length=args.caption_tokens,
        dtype=dtype,
        device=args.device,
        max_batch_size=1,
        fixed_shapes=False,
    )
    seed = derive_seed(args.seed, "caption", image_digest(image))
    request = CaptionRequest(prompt_ids=prompt_ids, seed=seed, images=(image,), temperature=args.temperature)
    result = engine.generate([request])[0]
    if isinstance(result, CaptionRequestError):
        raise SystemExit(str(result))
    return engine.tokenizer.decode(result.token_ids, skip_special_tokens=True).strip()


def build_chain(args: argparse.Namespace) -> ReconstructionChain:
    """Conditioner, decoder and reward terms on one device, as a decoder worker builds them."""
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    conditioner = Conditioner.from_pretrained(
        args.conditioner or args.encoder, length=args.condition_length, dtype=dtype, device=args.device
    )
    decoder = Decoder.from_pretrained(args.decoder, dtype=dtype, device=args.device)
    settings = SamplerSettings(
        height=args.size,
        width=args.size,
        num_steps=args.steps,
        guidance=args.guidance,
        negative_prompt="Generate a random, low quality, ugly, blur, bad and anime, cartoon image.",
        seeds_per_caption=1,
        batch_size=1,
    )
    scorer = RewardScorer([(name, 1.0, {}) for name in args.terms], device=args.device)
    return ReconstructionChain(conditioner, decoder, scorer, settings)


def main() -> None:
    """Run the chain once and print what came of it."""
    args = parse_args()
    image = load_image(args)
    text = caption(args, image)
    print(f"caption: {text}")
    noise_key = (args.seed, "noise", image_digest(image))
    request = ChainRequest(image=image, caption=text, noise_key=noise_key, want_picture=True)
    result = build_chain(args).run([request])[0]
    if result.picture is None:
        raise SystemExit(f"no reconstruction: {result.record.reason}")
    Image.open(io.BytesIO(result.picture)).save(args.out, "PNG")
    print(f"reconstruction: {args.out}")
    for name, value in result.record.terms.items():
        print(f"{name}: {value:.4f}")
    print(f"reward: {result.record.value} ({result.record.status})")


if __name__ == "__main__":
    main()
