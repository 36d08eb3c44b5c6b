# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae sample``: captions, pictures and reconstructions of a model folder. Heavy imports are lazy."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from verl_uae.errors import ConfigError, DecodeError
from verl_uae.paths import existing_folder, expand, model_source
from verl_uae.text import argument_text, fitting_name, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from verl_uae.pipeline.pipeline import UAEPipeline

RECORDS = "samples.jsonl"
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_parser(subparsers: Any) -> None:
    """Add the ``sample`` command to what ``ArgumentParser.add_subparsers`` returned."""
    parser = subparsers.add_parser("sample", help="caption pictures, draw texts, or reconstruct pictures")
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", type=expand, nargs="+", metavar="FILE", help="pictures to caption and redraw")
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="texts to draw")
    parser.add_argument("--caption-only", action="store_true", help="with --image: write captions, draw nothing")
    parser.add_argument("--out", type=expand, metavar="DIR", help=f"where the PNG files and {RECORDS} go")
    parser.add_argument("--seed", type=int, default=0, help="of the initial noise and of sampled captions (default 0)")
    parser.add_argument("--steps", type=int, default=40, help="denoising steps (default 40)")
    parser.add_argument("--guidance", type=float, default=5.0, help="classifier-free guidance, 1 is off (default 5)")
    parser.add_argument("--size", type=int, help="side, pixels (default: the model's, 1024 for SD3.5)")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="text of the unconditional branch")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest caption (default 512)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the captions, 0 is greedy (default 0)")
    parser.set_defaults(run=_sample)


def add_model_arguments(parser: argparse.ArgumentParser, model: str = "model") -> None:
    """Options that say which model runs where; shared with ``verl-uae demo`` and ``verl-uae bench``.

    Args:
        parser: gets the options.
        model: ``model`` for a positional argument, ``--model`` for an option.
    """
    parser.add_argument(model, help="model folder or hub id")
    parser.set_defaults(model_key=model)
    parser.add_argument("--encoder", metavar="DIR", help="captioner, where the model folder has none")
    parser.add_argument("--condition-length", type=int, help="text positions, where the model folder does not say")
    parser.add_argument("--caption-prompt", metavar="TEXT", help="user turn that asks for a caption")
    parser.add_argument("--caption-system", metavar="TEXT", help='system turn before it, "" for none')
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on an accelerator")
    parser.add_argument(
        "--offload", choices=("none", "model", "sequential"), default="none", help="keep weights on the host"
    )


def load_pipeline(args: argparse.Namespace) -> UAEPipeline:
    """The pipeline that :func:`add_model_arguments` describes, on its device, its progress bar off.

    Raises:
        CheckpointError: the model or the encoder does not load.
        ConfigError: the device does not exist.
    """
    import torch

    from verl_uae.pipeline.loading import load_model, load_processor_of
    from verl_uae.pipeline.pipeline import UAEPipeline

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        on_host = torch.device(device).type == "cpu"
    except RuntimeError as error:
        raise ConfigError("--device", str(error).splitlines()[0]) from error
    if on_host and args.offload != "none":
        raise ConfigError("--offload", "needs an accelerator as --device; on the host there is nowhere to offload from")
    name = ("float32" if on_host else "bfloat16") if args.dtype == "auto" else args.dtype
    dtype = getattr(torch, name)
    given: dict[str, Any] = {
        "condition_length": args.condition_length,
        "caption_prompt": args.caption_prompt,
        "caption_system": args.caption_system,
    }
    args.model = model_source(args.model, args.model_key)
    if args.encoder is not None:
        args.encoder = existing_folder(args.encoder, "--encoder")
        given |= {"encoder": load_model(args.encoder, dtype), "processor": load_processor_of(args.encoder)}
    if args.encoder is not None and given["encoder"] is None:
        raise ConfigError("--encoder", f"{args.encoder} is not a transformers folder")
    chosen = {
        key: argument_text(f"--{key.replace('_', '-')}", value) if isinstance(value, str) else value
        for key, value in given.items()
        if value is not None
    }
    pipe = UAEPipeline.from_pretrained(args.model, torch_dtype=dtype, **chosen)
    pipe.set_progress_bar_config(disable=True)
    try:
        if args.offload == "none":
            return pipe.to(device)
        offload = pipe.enable_model_cpu_offload if args.offload == "model" else pipe.enable_sequential_cpu_offload
        offload(device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("--device", str(error).splitlines()[0]) from error
    return pipe


def _sample(args: argparse.Namespace) -> int:
    if args.out is None and not args.caption_only:
        raise ConfigError("--out", "needed, unless --caption-only")
    if args.caption_only and args.image is None:
        raise ConfigError("--caption-only", "takes --image")
    if args.steps < 1:
        raise ConfigError("--steps", f"must be at least 1, got {args.steps}")
    args.prompt = [argument_text("--prompt", text) for text in args.prompt or ()]
    if args.negative_prompt is not None:
        args.negative_prompt = argument_text("--negative-prompt", args.negative_prompt)
    pipe = load_pipeline(args)
    try:
        pipe.decoder.latent_shape(args.size or 0, args.size or 0)
    except ValueError as error:
        raise ConfigError("--size", str(error)) from error
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / RECORDS).unlink(missing_ok=True)
    failed = 0
    for record in _records(pipe, args):
        failed += "error" in record
        line = json.dumps(record, ensure_ascii=False)
        print(line, flush=True)
        if args.out is not None:
            with open(args.out / RECORDS, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    if failed:
        print(f"verl-uae: {failed} of {len(args.image)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _records(pipe: UAEPipeline, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per picture or text; a picture that cannot be read costs only its own."""
    from verl_uae.data.images import decode_image, image_digest

    for index, text in enumerate(args.prompt):
        yield _drawn(pipe, args, {"prompt": text}, text, ("text", text), f"{index:04d}.png")
    for index, path in enumerate(args.image or ()):
        try:
            image = decode_image(path)
        except DecodeError as error:
            yield {"image": printable(str(path)), "error": error.message}
            continue
        started = time.perf_counter()
        digest = image_digest(image)
        caption = _caption(pipe, args, image, digest)
        record = {"image": printable(str(path)), "caption": caption, "caption_seconds": _since(started)}
        if args.caption_only:
            yield {**record, "seed": args.seed, "temperature": args.temperature}
        else:
            yield _drawn(
                pipe, args, record, caption, ("image", digest), fitting_name(f"{index:04d}_{path.stem}", ".png")
            )


def _caption(pipe: UAEPipeline, args: argparse.Namespace, image: Image, digest: str) -> str:
    from verl_uae.seeding import generator

    return pipe.caption(
        image,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        generator=generator(args.seed, "sample caption", digest),
    )[0]


def _drawn(
    pipe: UAEPipeline, args: argparse.Namespace, record: dict[str, Any], text: str, key: tuple[str, str], name: str
) -> dict[str, Any]:
    """Draw one text; the noise belongs to the seed and the picture or text, whatever else is drawn."""
    from verl_uae.pipeline.pipeline import NEGATIVE_PROMPT
    from verl_uae.seeding import generator

    started = time.perf_counter()
    output = pipe.generate(
        text,
        height=args.size,
        width=args.size,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        negative_prompt=NEGATIVE_PROMPT if args.negative_prompt is None else args.negative_prompt,
        generator=generator(args.seed, "sample noise", *key),
    )
    picture = output.images[0]
    picture.save(args.out / name, "PNG")
    return {
        **record,
        "file": name,
        "truncated": output.truncated[0],
        "seed": args.seed,
        "steps": args.steps,
        "guidance": args.guidance,
        "size": list(picture.size),
        "seconds": _since(started),
    }


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
