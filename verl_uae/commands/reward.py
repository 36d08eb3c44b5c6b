# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``verl-uae reward try``: what rewards say of the first rows of a data set, before anything is trained.

Shape legend: B rows, 3 H W pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_uae.errors import ConfigError, RewardError
from verl_uae.paths import argument_path, expand, override

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from verl_uae.reward.record import RewardRecord

#: Rows that are looked at.
ROWS = 16

EXAMPLE = """examples:
  verl-uae reward try my_reward.py --data DATA/train.parquet
  verl-uae reward try my_reward.py --data DATA/train.parquet --model MODEL uae.reward.timeout_s=10
  verl-uae reward try --data DATA/train.parquet 'uae.reward.terms=[{name: pixel}, {name: ssim, weight: 0.3}]'
"""


def add_parser(commands: Any) -> None:
    """Add ``reward`` to the command ``verl-uae``."""
    parser = commands.add_parser("reward", help="try rewards on real pictures")
    what = "values of a reward on the first rows of a data set: of the pictures themselves, of others, of drawings"
    one = parser.add_subparsers(dest="reward", required=True, metavar="COMMAND").add_parser(
        "try", help=what, description=what, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.add_argument(
        "file", nargs="?", type=_file_or_override, help="file of a reward function (default: uae.reward.terms)"
    )
    one.add_argument("--name", help="of the function, where the file has several")
    one.add_argument("--data", type=argument_path, required=True, help="parquet or JSON file of rows, or its folder")
    one.add_argument("--model", help="model folder, whose drawings of its captions are scored too")
    one.add_argument("--first", type=int, default=ROWS, metavar="N", help=f"rows (default {ROWS})")
    one.add_argument("--size", type=int, default=256, help="side of the pictures that are compared (default 256)")
    one.set_defaults(run=_try)


def _try(args: argparse.Namespace, say: Callable[[str], Any] = print) -> int:
    from verl_uae.data.pack import TRAIN_FILE
    from verl_uae.estimate.composing import composed
    from verl_uae.reward.config import validate

    data = args.data / TRAIN_FILE if args.data.is_dir() else args.data
    for option, number in (("--first", args.first), ("--size", args.size)):
        if number < 1:
            raise ConfigError(option, f"must be at least 1, got {number}")
    file, overrides = args.file, list(args.overrides)
    if isinstance(file, str):
        file, overrides = None, [file, *overrides]
    words = ["hardware=cpu", override("data.train_files", data)]
    words += [f"uae.decoder.height={args.size}", f"uae.decoder.width={args.size}"]
    if file is not None:
        words += [override("reward.custom_reward_function.path", file), "uae.reward.terms=[]"]
    if args.name is not None:
        words.append(override("reward.custom_reward_function.name", args.name))
    config = composed("uae_g4u", [*words, *overrides])
    validate(config)
    rows, picture_B3HW, _ = first_rows(config, args.first)
    drawn = stand_ins(picture_B3HW)
    captions = [_caption(row) for row in rows]
    if args.model is not None:
        captions, drawn["drawing of the model"] = drawings(args.model, picture_B3HW)
    values = scored(config, rows, picture_B3HW, drawn, captions)
    say("\n".join(table(rows, values)))
    failed = [record for records in values.values() for record in records if not record.ok]
    if failed:
        raise RewardError("uae.reward", f"{len(failed)} values are missing; the first: {failed[0].reason}")
    own, other, *_ = (mean_value(records) or 0.0 for records in values.values())
    if len(rows) > 1 and not own > other:
        say("the picture itself is worth no more than that of another row: this reward cannot teach a reconstruction")
    return 0


def _file_or_override(text: str) -> Path | str:
    """As argparse's ``type``: the first word may be an override too, which stays a text."""
    return text if "=" in text and not expand(text).exists() else argument_path(text)


def first_rows(config: DictConfig, count: int) -> tuple[list[dict[str, Any]], Tensor, str]:
    """Of the training file, those that can be used.

    Args:
        config: the whole composed configuration.
        count: rows that are looked at.

    Returns:
        The rows, their first pictures (B, 3, H, W) in [0, 1] in the size of the decoder, and what was found in words.

    Raises:
        DataError: a file cannot be read, or too many of the rows are bad.
    """
    import torch

    from verl_uae.data.images import rgb, to_tensor
    from verl_uae.data.rows import CheckSettings, RowDoor, load_rows, sift

    data = config.data
    files = (data.train_files,) if isinstance(data.train_files, str) else tuple(data.train_files)
    keys = {"prompt_key": data.prompt_key, "image_key": data.image_key}
    # Nothing is written.
    settings = dataclasses.replace(CheckSettings.from_config(data), quarantine_dir=None)
    door = RowDoor(files, files, settings, **keys)
    frame = load_rows(door, count, shuffle=False, seed=None)
    looked = [row for chunk in frame.chunks() for row in chunk]
    good, bad = sift(door, [looked], door.inspect)
    door.judge(len(looked), bad, [])
    rows = [looked[place] for place, _ in good]
    size = (int(config.uae.decoder.height), int(config.uae.decoder.width))
    pictures = [to_tensor([rgb(door.decode(row, row[door.image_key][0]))], size) for row in rows]
    words = f"{len(rows)} of {len(looked)} can be used" + (f"; {bad[0]}" if bad else "")
    return rows, torch.cat(pictures), words


def stand_ins(picture_B3HW: Tensor) -> dict[str, Tensor]:
    """What a reward should tell apart without any model: name -> drawings."""
    mean_B311 = picture_B3HW.mean((2, 3), keepdim=True)
    return {
        "the picture itself": picture_B3HW,
        "the next row's picture": picture_B3HW.roll(-1, 0),
        "its mean colour": mean_B311.expand_as(picture_B3HW).contiguous(),
    }


def drawings(model: str, picture_B3HW: Tensor) -> tuple[list[str], Tensor]:
    """Captions of pictures by a model folder, and its drawings of them in the pictures' size.

    Raises:
        ConfigError: the folder has only the decoder part.
    """
    import torch

    from verl_uae import UAEPipeline
    from verl_uae.data.images import to_pil, to_tensor

    pipe = UAEPipeline.from_pretrained(model)
    if pipe.captioner is None:
        raise ConfigError("--model", f"{model} has no captioner, whose captions are drawn (docs/formats.md)")
    pictures = [to_pil(picture_3HW) for picture_3HW in picture_B3HW]
    captions = pipe.caption(pictures)
    size = (picture_B3HW.shape[2], picture_B3HW.shape[3])
    drawn = pipe.generate(captions, generator=torch.Generator().manual_seed(0)).images
    return list(captions), torch.cat([to_tensor([picture], size) for picture in drawn])


def scored(
    config: DictConfig,
    rows: Sequence[Mapping[str, Any]],
    picture_B3HW: Tensor,
    drawn: Mapping[str, Tensor],
    captions: Sequence[str],
) -> dict[str, list[RewardRecord]]:
    """Records of every kind of drawing, without groupwise terms, which compare captions of one picture."""
    from verl_uae.chain.records import dataset_row
    from verl_uae.reward.record import RewardBatch
    from verl_uae.reward.scorer import build_scorer

    told, scorer = [dataset_row(row) for row in rows], build_scorer(config, "cpu")
    return {
        name: scorer.score(RewardBatch(picture_B3HW, drawn_B3HW, captions=list(captions), rows=told))
        for name, drawn_B3HW in drawn.items()
    }


def mean_value(records: Sequence[RewardRecord]) -> float | None:
    """Of the records that have one."""
    there = [record.value for record in records if record.value is not None]
    return sum(there) / len(there) if there else None


def tried(config: DictConfig) -> dict[str, str]:
    """Words for the first rows of a run, and for its reward on stand-ins of their drawings.

    Raises:
        DataError: a file cannot be read, or too many of the rows are bad.
        RewardError: the reward of a picture itself is missing.
    """
    from verl_uae.config.path_keys import is_shards

    if is_shards(config.data.train_files):
        return {"first rows": "not looked at: they are in shards"}
    rows, picture_B3HW, words = first_rows(config, ROWS)
    found = {"first rows": words}
    if config.uae.stage == "pretrain":
        return found
    captions, parts = [_caption(row) for row in rows], []
    for name, records in scored(config, rows, picture_B3HW, stand_ins(picture_B3HW), captions).items():
        missing = [record for record in records if record.value is None]
        if missing:
            raise RewardError("uae.reward", f"of {name} there is none: {missing[0].reason}")
        parts.append(f"{mean_value(records):.3f} for {name}")
    return {**found, "reward": ", ".join(parts)}


def table(rows: Sequence[Mapping[str, Any]], values: Mapping[str, Sequence[RewardRecord]]) -> list[str]:
    """Lines: a row of the data each, a column for every kind of drawing, then the means."""
    from verl_uae.bench.results import NOTHING, markdown_table

    def cell(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.3f}"

    lines = [
        [str(number), *(cell(records[number].value) for records in values.values())] for number in range(len(rows))
    ]
    means = [cell(mean_value(records)) for records in values.values()]
    return markdown_table(["row", *values], [*lines, ["mean", *means]])


def _caption(row: Mapping[str, Any]) -> str:
    info = row.get("extra_info")
    return str(info.get("caption") or "") if isinstance(info, Mapping) else ""
