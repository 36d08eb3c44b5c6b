# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae data pack`` and ``verl-uae data check``. Heavy imports are lazy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_uae.data.limits import ImageLimits
from verl_uae.errors import ConfigError, DataError
from verl_uae.files import write_text
from verl_uae.paths import argument_path, existing_file, existing_folder, model_source, output_folder
from verl_uae.text import argument_text, read_text

if TYPE_CHECKING:
    from verl_uae.data.rows import BadItem


def add_parser(subparsers: Any) -> None:
    """Add the ``data`` command with its two sub-commands to what ``ArgumentParser.add_subparsers`` returned."""
    data = subparsers.add_parser("data", help="make and check data files").add_subparsers(dest="data", required=True)

    packer = data.add_parser("pack", help="pack a folder of pictures into train.parquet and val.parquet")
    packer.add_argument("folder", type=argument_path, help="folder of PNG, JPEG and WebP files, read recursively")
    packer.add_argument("--out", type=argument_path, required=True, metavar="DIR", help="where the files go")
    captions = packer.add_mutually_exclusive_group()
    lines = 'JSON lines of {"file": .., "caption": ..}'
    captions.add_argument("--captions", type=argument_path, metavar="FILE", help=lines)
    captions.add_argument("--sidecars", action="store_true", help="the caption of x.png is x.txt beside it")
    text = "user text, instead of the built-in one"
    packer.add_argument("--prompt-file", type=argument_path, metavar="FILE", help=text)
    packer.add_argument("--val-fraction", type=float, default=0.05, help="share held out, drawn by content")
    packer.add_argument("--seed", type=int, default=0, help="seed of the split")
    packer.add_argument("--max-pixels", type=int, help="scale larger pictures down to this many pixels")
    packer.add_argument("--data-source", default="uae", help="label that validation metrics are grouped by")
    packer.add_argument("--threads", type=int, default=2, help="decoding threads")
    packer.add_argument("--format", choices=("parquet", "webdataset"), default="parquet", help="what to write")
    packer.add_argument("--shard-size", type=int, default=1000, help="pictures per tar shard")
    packer.add_argument("--overwrite", action="store_true", help="replace files that exist")
    packer.set_defaults(run=_pack)

    checker = data.add_parser("check", help="check every row and picture of a parquet, JSON or tar file")
    checker.add_argument("file", type=argument_path)
    checker.add_argument("--pairs", action="store_true", help="rows need a caption, as in uae_pretrain")
    checker.add_argument("--model", metavar="DIR", help="captioner whose special tokens no prompt may hold")
    checker.add_argument("--quarantine", type=argument_path, metavar="FILE", help="write the bad rows as JSON lines")
    checker.add_argument("--max-bad", type=int, default=0, help="number of bad rows to accept")
    checker.set_defaults(run=_check)
    for parser in (packer, checker):
        parser.add_argument("--max-image-bytes", type=int, default=ImageLimits().max_bytes, help="refuse larger files")
        parser.add_argument("--max-image-pixels", type=int, default=ImageLimits().max_pixels, help="refuse larger ones")
        parser.add_argument("--min-side", type=int, default=ImageLimits().min_side, help="refuse smaller ones, pixels")


def _limits(args: argparse.Namespace) -> ImageLimits:
    try:
        return ImageLimits(max_bytes=args.max_image_bytes, max_pixels=args.max_image_pixels, min_side=args.min_side)
    except ValueError as error:
        raise ConfigError("--max-image-bytes, --max-image-pixels, --min-side", str(error)) from error


def _pack(args: argparse.Namespace) -> int:
    existing_folder(args.folder, "folder")
    from verl_uae.data.pack import QUARANTINE_FILE, pack

    prompt = None
    if args.prompt_file is not None:
        try:
            prompt = read_text(args.prompt_file).strip()
        except (OSError, ValueError) as error:
            raise DataError(args.prompt_file, None, f"cannot be read: {error}") from error
        if not prompt:
            raise DataError(args.prompt_file, None, "is empty; it is what the captioner is asked")
    names = (
        "captions",
        "sidecars",
        "val_fraction",
        "seed",
        "max_pixels",
        "threads",
        "overwrite",
        "format",
        "shard_size",
    )
    options = {name: getattr(args, name) for name in names}
    source = argument_text("--data-source", args.data_source)
    report = pack(args.folder, args.out, prompt=prompt, limits=_limits(args), data_source=source, **options)
    print(json.dumps(asdict(report), indent=2))
    listed = f"see {args.out / QUARANTINE_FILE}"
    if left_out := report.bad + report.duplicates:
        print(f"{left_out} of {report.files_seen} files left out, {listed}")
    if report.captions_unused:
        print(f"{report.captions_unused} captions not used, {listed}")
    if report.sidecars_unread:
        instead = "with --sidecars, in place of --captions, they are" if args.captions else "with --sidecars they are"
        print(f"{report.sidecars_unread} texts beside pictures not read; {instead} the captions, {listed}")
    return 0


def _check(args: argparse.Namespace) -> int:
    existing_file(args.file)
    from verl_uae.data.rows import item_lines
    from verl_uae.data.schema import media_tokens

    if args.max_bad < 0:
        raise ConfigError("--max-bad", f"must be at least 0, got {args.max_bad}")
    if args.quarantine is not None:
        output_folder(existing_folder(args.quarantine.absolute().parent, "--quarantine"), "--quarantine")
        if args.quarantine.is_dir():
            raise ConfigError("--quarantine", f"{args.quarantine}: is a folder, and must be a file")
    processor = None
    if args.model is not None:
        from transformers import AutoProcessor

        source = model_source(args.model, "--model")
        try:
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ConfigError("--model", f"{source} has no processor that loads: {error}") from error
    refused_text = media_tokens(processor)
    total, bad = check_file(args.file, _limits(args), pairs=args.pairs, refused_text=refused_text)
    for item in bad[:20]:
        print(item)
    if len(bad) > 20:
        print(f"... and {len(bad) - 20} more")
    if args.quarantine is not None:
        write_text(args.quarantine, item_lines(bad), sync=True)
    nothing = "" if total else "; how samples of a shard are named is in docs/data.md"
    print(f"{args.file}: {total} rows, {len(bad)} bad{nothing}")
    return 0 if len(bad) <= args.max_bad and total > len(bad) else 1


def check_file(
    path: Path, limits: ImageLimits, *, refused_text: tuple[str, ...], pairs: bool = False
) -> tuple[int, list[BadItem]]:
    """Check a data file with the code that training checks it with; all pictures are decoded.

    Args:
        path: parquet or JSON file, or tar shard; what it is, its content says.
        limits: what the image door refuses.
        refused_text: see `schema.row_problem`.
        pairs: a row without a caption is bad, as for the supervised stages; samples of a shard always are.

    Returns the number of rows or samples, and the bad ones; a shard that cannot be read to its end is one more. Raises
    `DataError`: the file cannot be read or lacks a column.
    """
    from verl_uae.data.frame import chunks_of, file_kind
    from verl_uae.data.pairs import check_shard, inspect_pair
    from verl_uae.data.rows import CheckSettings, RowDoor, sift

    if file_kind(path) == "tar":
        return check_shard(path, limits)
    door = RowDoor((str(path),), (str(path),), CheckSettings(image_limits=limits), refused_text=refused_text)
    inspect = partial(inspect_pair, door) if pairs else door.inspect
    good, bad = sift(door, chunks_of(str(path), door.needed, door.must_have), inspect)
    return len(good) + len(bad), bad
