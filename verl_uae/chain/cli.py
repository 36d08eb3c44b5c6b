# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae sample``: captions, pictures and reconstructions of a model folder. Heavy imports are lazy."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from verl_uae.checkpoints.inference import checked
from verl_uae.data.schema import first_pictures
from verl_uae.devices import checked_device
from verl_uae.errors import CheckpointError, ConfigError, DecodeError
from verl_uae.files import append_line
from verl_uae.paths import argument_path, existing_folder, model_source, output_folder
from verl_uae.settings import DTYPES
from verl_uae.text import argument_text, fitting_name, printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from verl_uae.chain.pipeline import UAEPipeline

RECORDS = "samples.jsonl"

#: Name of the random numbers of a caption; the seed and the digest of the picture complete it.
CAPTION = "sample caption"

#: Settings of the model that an option takes the place of -> option, type, what it is.
_FLAGS: dict[str, tuple[str, type, str]] = {
    "caption_prompt": ("--caption-prompt", str, "user turn that asks for a caption"),
    "caption_system": ("--caption-system", str, 'system turn before it, "" for none'),
    "max_new_tokens": ("--max-new-tokens", int, "longest caption, tokens"),
    "temperature": ("--temperature", float, "of the captions, 0 is greedy"),
    "condition_length": ("--condition-length", int, "text positions of the condition"),
    "num_inference_steps": ("--steps", int, "denoising steps"),
    "guidance_scale": ("--guidance", float, "classifier-free guidance, 1 is off"),
    "negative_prompt": ("--negative-prompt", str, "text of the unconditional branch"),
    "size": ("--size", int, "side of a drawing, pixels"),
}


def add_parser(subparsers: Any) -> None:
    """Add the ``sample`` command to what ``ArgumentParser.add_subparsers`` returned."""
    parser = subparsers.add_parser("sample", help="caption pictures, draw texts, or reconstruct pictures")
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", type=argument_path, nargs="+", metavar="FILE", help="pictures to caption and redraw")
    what.add_argument(
        "--rows", type=argument_path, metavar="FILE", help="pictures of a data set's rows, a parquet or JSON file"
    )
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="texts to draw")
    parser.add_argument("--first", type=int, default=4, metavar="N", help="with --rows: how many (default 4)")
    parser.add_argument("--caption-only", action="store_true", help="not with --prompt: write captions, draw nothing")
    parser.add_argument("--out", type=argument_path, metavar="DIR", help=f"where the PNG files and {RECORDS} go")
    parser.add_argument("--seed", type=int, default=0, help="of the initial noise and of sampled captions (default 0)")
    # For the few pictures of this command the start of an engine takes longer than the captions.
    add_engine_argument(parser, "transformers")
    parser.set_defaults(run=_sample)


def add_model_arguments(parser: argparse.ArgumentParser, model: str = "model") -> None:
    """Options that say which model runs where and how; shared with ``verl-uae bench`` and examples/demo.py.

    Args:
        parser: gets the options.
        model: ``model`` for a positional argument, ``--model`` for an option.
    """
    parser.add_argument(model, help="model folder or hub id")
    parser.set_defaults(model_key=model)
    parser.add_argument("--captioner", metavar="DIR", help="folder of the captioner, where the model folder has none")
    for name, (flag, kind, text) in _FLAGS.items():
        metavar = "TEXT" if kind is str else "N"
        parser.add_argument(flag, dest=name, type=kind, metavar=metavar, help=f"{text} (default: the model's)")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="auto: bfloat16 on an accelerator")
    parser.add_argument("--no-verify", action="store_true", help="do not compare files with a manifest")
    parser.add_argument(
        "--offload", choices=("none", "model", "sequential"), default="none", help="keep weights on the host"
    )


def add_engine_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """The option that says what writes captions, for commands that write all of them before they draw."""
    parser.add_argument(
        "--captioner-engine",
        choices=("auto", "transformers", "vllm"),
        default=default,
        help=f"what writes the captions; auto: vllm on a GPU where it is installed (default {default})",
    )


def check_model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Refuse what :func:`add_model_arguments` names and is not there, or cannot be, before torch takes its seconds.

    Returns:
        The settings that were given as options. ``args.model`` and ``args.captioner`` are resolved in place.

    Raises:
        CheckpointError, ConfigError: naming the option.
    """
    args.model = model_source(args.model, args.model_key)
    if args.captioner is not None:
        args.captioner = existing_folder(args.captioner, "--captioner")
    return _given_settings(args)


def load_pipeline(args: argparse.Namespace) -> UAEPipeline:
    """The pipeline that :func:`add_model_arguments` describes, on its device, its progress bar off.

    Raises:
        CheckpointError: the model or the captioner does not load.
        ConfigError: the device does not exist, or has no room.
    """
    pipe = _load(args)
    _place(pipe, args)
    return pipe


def load_for_captions(args: argparse.Namespace) -> tuple[UAEPipeline, CaptionsFirst | None]:
    """The pipeline, and what writes captions before it is on its device; None where it writes them itself.

    Args:
        args: of :func:`add_model_arguments` and :func:`add_engine_argument`.

    Raises:
        CheckpointError: the model or the captioner does not load.
        ConfigError: the device does not exist or has no room, or vLLM was asked for and cannot be had there.
    """
    from verl_uae.chain.vllm_captioner import runs_vllm

    if not runs_vllm(args.captioner_engine, checked_device(args.device)):
        return load_pipeline(args), None
    pipe = _load(args)
    if pipe.captioner is None or pipe.processor is None:
        _place(pipe, args)
        return pipe, None
    return pipe, CaptionsFirst(pipe, args)


class CaptionsFirst:
    """Captions by vLLM, which has the device to itself until they are written.

    Args:
        pipe: on the host.
        args: see :func:`load_for_captions`.
    """

    def __init__(self, pipe: UAEPipeline, args: argparse.Namespace) -> None:
        self.pipe, self.args = pipe, args

    def __call__(self, pictures: Iterable[Callable[[], Image]], *name: int | str) -> dict[str, str]:
        """Captions by the digest of their picture, of all that can be read; then the pipeline is on its device.

        Args:
            pictures: each decodes one, when it is needed.
            name: of the random numbers of the captions, which the digest completes.

        Raises:
            CheckpointError: see :meth:`~verl_uae.chain.vllm_captioner.VLLMCaptioner.write`.
            ConfigError: the device has no room for the pipeline.
        """
        from verl_uae.chain.vllm_captioner import VLLMCaptioner

        pipe, device = self.pipe, checked_device(self.args.device)
        folder, dtype = pipe.captioner.name_or_path, pipe.captioner.dtype
        if pipe.language_model is not None:
            # It is not the condition's, so nobody reads it any more.
            pipe.register_modules(captioner=None)
        with VLLMCaptioner(folder, pipe.inference, dtype=dtype, device=device) as captioner:
            captions = captioner.write_all(pictures, *name)
        _place(pipe, self.args)
        return captions


def _load(args: argparse.Namespace) -> UAEPipeline:
    """The pipeline on the host."""
    given = check_model_arguments(args)
    import torch

    from verl_uae.chain.loading import load_model, load_processor_of
    from verl_uae.chain.pipeline import UAEPipeline

    device = checked_device(args.device)
    on_host = device.type == "cpu"
    if on_host and args.offload != "none":
        raise ConfigError("--offload", "needs an accelerator as --device; on the host there is nowhere to offload from")
    name = ("float32" if on_host else "bfloat16") if args.dtype == "auto" else args.dtype
    dtype = getattr(torch, name)
    if args.captioner is not None:
        verify = False if args.no_verify else None
        captioner = load_model(args.captioner, dtype, verify=verify)
        given |= {"captioner": captioner, "processor": load_processor_of(args.captioner)}
    if args.captioner is not None and given["captioner"] is None:
        raise ConfigError("--captioner", f"{args.captioner} is not a transformers folder")
    if args.no_verify:
        given["verify"] = False
    pipe = UAEPipeline.from_pretrained(args.model, torch_dtype=dtype, **given)
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe.decoder.latent_shape(*pipe.picture_size)
    except ValueError as error:
        if args.size is None:
            raise CheckpointError(args.model, f"{error}, which is its own size; give --size") from error
        raise ConfigError("--size", str(error)) from error
    return pipe


def _place(pipe: UAEPipeline, args: argparse.Namespace) -> None:
    """Bring the pipeline to its device."""
    import torch

    device = checked_device(args.device)
    try:
        if args.offload == "none":
            pipe.to(device)
        elif args.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_sequential_cpu_offload(device=device)
    except torch.OutOfMemoryError as error:
        remedy = "give --offload, a smaller --dtype, or another device"
        raise ConfigError("--device", f"{device} has no room for the model; {remedy}") from error


def _given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as options.

    Raises:
        ConfigError: naming the option that is impossible.
    """
    given: dict[str, Any] = {}
    for name, (flag, _, _) in _FLAGS.items():
        value = getattr(args, name)
        if value is None:
            continue
        if isinstance(value, str):
            value = argument_text(flag, value)
        entries = {"height": value, "width": value} if name == "size" else {name: value}
        try:
            given |= checked(entries)
        except ConfigError as error:
            raise ConfigError(flag, error.message) from error
    return given


def _sample(args: argparse.Namespace) -> int:
    if args.out is None and not args.caption_only:
        raise ConfigError("--out", "needed, unless --caption-only")
    if args.caption_only and args.prompt is not None:
        raise ConfigError("--caption-only", "takes --image or --rows")
    if args.first < 1:
        raise ConfigError("--first", f"must be at least 1, got {args.first}")
    if args.out is not None:
        output_folder(args.out, "--out")
    args.prompt = [argument_text("--prompt", text) for text in args.prompt or ()]
    check_model_arguments(args)
    pictures = _pictures(args)
    pipe, captions_first = (load_pipeline(args), None) if args.prompt else load_for_captions(args)
    if not args.prompt and (pipe.captioner is None or pipe.processor is None):
        reason = "has no captioner/ with its processor, so it captions no picture; give --captioner"
        raise CheckpointError(args.model, reason)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / RECORDS).unlink(missing_ok=True)
    written = None
    if captions_first is not None:
        written = captions_first((decode for _, _, decode in pictures), args.seed, CAPTION)
    failed = 0
    for record in _records(pipe, args, pictures, written):
        failed += "error" in record
        line = json.dumps(record, ensure_ascii=False)
        print(line, flush=True)
        if args.out is not None:
            append_line(args.out / RECORDS, line)
    if failed:
        print(f"verl-uae: {failed} of {len(pictures)} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _pictures(args: argparse.Namespace) -> list[tuple[str, str, Callable[[], Image]]]:
    """What is captioned: its name in the record, in file names, and what decodes it.

    Raises:
        DataError: the file of rows cannot be read.
    """
    from verl_uae.data.images import decode_image

    pictures: list[tuple[str, str, Callable[[], Image]]] = [
        (printable(str(path)), path.stem, partial(decode_image, path)) for path in args.image or ()
    ]
    if args.rows is not None:
        for picture in first_pictures(args.rows, args.first):
            name = f"{printable(str(args.rows))}, row {picture.row}"
            pictures.append((name, f"row{picture.row}", picture.decode))
    return pictures


def _records(
    pipe: UAEPipeline,
    args: argparse.Namespace,
    pictures: Sequence[tuple[str, str, Callable[[], Image]]],
    written: Mapping[str, str] | None,
) -> Iterator[dict[str, Any]]:
    """One record per picture or text; a picture that cannot be read costs only its own."""
    from verl_uae.data.images import image_digest

    for index, text in enumerate(args.prompt):
        yield _drawn(pipe, args, {"prompt": text}, text, ("text", text), f"{index:04d}.png")
    for index, (name, stem, decode) in enumerate(pictures):
        try:
            image = decode()
        except DecodeError as error:
            yield {"image": name, "error": error.message}
            continue
        digest = image_digest(image)
        record: dict[str, Any] = {"image": name}
        if written is None:
            started = time.perf_counter()
            caption = _caption(pipe, args, image, digest)
            record |= {"caption": caption, "caption_seconds": _since(started)}
        else:
            caption = record["caption"] = written[digest]
        record["temperature"] = pipe.inference.temperature
        if args.rows is not None and args.out is not None:
            record["source"] = f"{index:04d}_{stem}_source.png"
            image.save(args.out / record["source"], "PNG")
        if args.caption_only:
            yield {**record, "seed": args.seed}
        else:
            file = fitting_name(f"{index:04d}_{stem}", ".png")
            yield _drawn(pipe, args, record, caption, ("image", digest), file)


def _caption(pipe: UAEPipeline, args: argparse.Namespace, image: Image, digest: str) -> str:
    from verl_uae.seeding import generator

    return pipe.caption(image, generator=generator(args.seed, CAPTION, digest))[0]


def _drawn(
    pipe: UAEPipeline, args: argparse.Namespace, record: dict[str, Any], text: str, key: tuple[str, str], name: str
) -> dict[str, Any]:
    """Draw one text; the noise belongs to the seed and the picture or text, whatever else is drawn."""
    from verl_uae.seeding import generator

    started = time.perf_counter()
    output = pipe.generate(text, generator=generator(args.seed, "sample noise", *key))
    picture = output.images[0]
    picture.save(args.out / name, "PNG")
    return {
        **record,
        "file": name,
        "truncated": output.truncated[0],
        "seed": args.seed,
        "steps": pipe.inference.num_inference_steps,
        "guidance": pipe.inference.guidance_scale,
        "size": list(picture.size),
        "seconds": _since(started),
    }


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
