# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's dataset with the image door in front. The only file of ``verl_uae.data`` that imports verl.

verl 0.9.1 opens pictures wherever it needs them, in any format and of any size. A bad one drops its row with a
traceback and no count (``filter_overlong_prompts``), or fails its prompt in the middle of a rollout. Here every row is
checked once, before training; bad rows are counted, named and left out, and what training reads has passed the door.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_uae.data.images import ImageLimits, check_header, decode_image, encoded_bytes, image_digest
from verl_uae.data.quarantine import BadItem, published, write_items
from verl_uae.data.schema import row_problem
from verl_uae.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

VERIFY_MODES: tuple[str, ...] = ("full", "header", "off")
_READ_AHEAD = 64
_FILE, _ROW = "uae_file", "uae_row"
"""Columns that say where a row comes from: number of the data file, zero-based row in it."""
_RESIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckSettings:
    """Our keys under ``data:``, all optional, each with the prefix ``uae_``."""

    verify_images: str = "full"
    """``full``: decode every picture once before training; ``header``: only read its claims; ``off``: neither.
    Whatever the mode, rows are checked for their form and pictures are checked again when they are used."""
    max_bad_share: float = 0.1
    """Largest share of bad rows to go on with, in [0, 1]; overlong rows that verl was told to filter do not count."""
    quarantine_dir: str | None = None
    """Folder for ``quarantine_<file>.jsonl``; with ``${trainer.default_local_dir}`` it lies with the checkpoints."""
    image_root: str | None = None
    """Folder that pictures given by path must lie in; default: the folder of the data file."""
    threads: int = 4
    """Decoding threads of the check."""
    log_first: int = 5
    """Number of bad rows named in the log."""
    image_limits: ImageLimits = ImageLimits()  # noqa: RUF009 - frozen
    """What the door refuses: a mapping with the fields of `ImageLimits`."""

    def __post_init__(self) -> None:
        if self.verify_images not in VERIFY_MODES:
            raise ConfigError("data.uae_verify_images", f"must be one of {VERIFY_MODES}, got {self.verify_images!r}")
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ConfigError("data.uae_max_bad_share", f"must lie in [0, 1], got {self.max_bad_share}")
        if self.threads < 1:
            raise ConfigError("data.uae_threads", f"must be at least 1, got {self.threads}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CheckSettings:
        """Read the keys from verl's ``data`` section; raises `ConfigError` naming an unknown or impossible one."""
        known = {field.name for field in fields(cls)}
        given = {str(key)[4:]: config[key] for key in config if str(key).startswith("uae_")}
        unknown = sorted(set(given) - known)
        if unknown:
            names = ", ".join(f"uae_{name}" for name in sorted(known))
            raise ConfigError(f"data.uae_{unknown[0]}", f"unknown key; known: {names}")
        # YAML reads a bare `off` as false.
        if isinstance(given.get("verify_images"), bool):
            given["verify_images"] = "full" if given["verify_images"] else "off"
        if given.get("image_limits") is not None:
            try:
                given["image_limits"] = ImageLimits(**given["image_limits"])
            except (TypeError, ValueError) as error:
                raise ConfigError("data.uae_image_limits", str(error)) from error
        return cls(**{key: value for key, value in given.items() if value is not None})


class UAEDataset(RLHFDataset):
    """Rows of one source picture (or more) and a prompt; drop-in for verl's dataset.

    Used through ``data.custom_cls.path=pkg://verl_uae.data.dataset`` and ``data.custom_cls.name=UAEDataset``. Differs
    from `RLHFDataset` in what it refuses (`schema.row_problem`, `images.decode_image`) and in that:

    - ``raw_prompt`` holds decoded RGB pictures and no encoded bytes; ``prompt`` stays plain text;
    - ``extra_info.sha256`` is always there: the digest of the first picture, where the file has none;
    - a prompt that does not fit ``max_prompt_length`` is found here. verl never cuts a prompt with a picture, it fails
      the rollout of that row; so with ``filter_overlong_prompts`` such rows are left out and counted, and without it
      they are a `DataError`, whatever ``truncation`` says. (Not checked with ``uae_verify_images=off``.)

    Raises:
        ConfigError: for an impossible key.
        DataError: if too many rows are bad, a prompt is too long, or no row is left.
    """

    def _read_files_and_tokenize(self) -> None:
        self.settings = CheckSettings.from_config(self.config)
        frames = [_load(file, number, self.image_key) for number, file in enumerate(self.data_files)]
        try:
            self.dataframe = datasets.concatenate_datasets(frames)
        except ValueError as error:
            raise DataError(str(self.data_files[0]), None, f"files with different columns: {error}") from error
        chosen = self._sample(len(self.dataframe))
        if chosen is not None:
            self.dataframe = self.dataframe.select(chosen)
        good = self._check_rows()
        if len(good) < len(self.dataframe):
            self.dataframe = self.dataframe.select(good)
        logger.info("%s: %d rows", ", ".join(map(str, self.original_data_files)), len(self.dataframe))

    def _sample(self, total: int) -> list[int] | None:
        """Rows to start from, None for all; the draw is verl's, so ``train_max_samples`` picks the same rows."""
        if not 0 < self.max_samples < total:
            return None
        if not self.shuffle:
            return list(range(self.max_samples))
        rng = np.random.default_rng() if self.seed is None else np.random.default_rng(self.seed)
        chosen: Any = rng.choice(total, size=self.max_samples, replace=False)
        return chosen.tolist()

    def _check_rows(self) -> list[int]:
        """Items of the rows to keep; the others are in the quarantine file and in the log."""
        start, total = time.monotonic(), len(self.dataframe)
        measure = _PromptLength(self)
        good: list[int] = []
        bad: list[BadItem] = []
        overlong: list[BadItem] = []
        with ThreadPoolExecutor(self.settings.threads) as pool:
            for item, row, sizes in self._inspected(pool):
                length = sizes if isinstance(sizes, str) else measure(row, sizes)
                if isinstance(length, str):
                    bad.append(BadItem(*self._origin(row), length))
                elif length > self.max_prompt_length:
                    reason = f"prompt of {length} tokens, data.max_prompt_length is {self.max_prompt_length}"
                    overlong.append(BadItem(*self._origin(row), reason))
                else:
                    good.append(item)
        seconds = time.monotonic() - start
        logger.info("checked %d rows (%s) in %.1f s", total, self.settings.verify_images, seconds)
        self._judge(total, bad, overlong)
        return good

    def _inspected(self, pool: ThreadPoolExecutor) -> Iterator[tuple[int, dict[str, Any], list[Size] | str]]:
        """Every item and row with the sizes of its pictures, or with the reason why it is bad."""
        for start in range(0, len(self.dataframe), _READ_AHEAD):
            items = range(start, min(start + _READ_AHEAD, len(self.dataframe)))
            rows = [self.dataframe[item] for item in items]
            yield from zip(items, rows, pool.map(self._inspect, rows), strict=True)

    def _inspect(self, row: dict[str, Any]) -> list[Size] | str:
        problem = row_problem(
            row,
            prompt_key=self.prompt_key,
            image_key=self.image_key,
            refused_keys=(self.video_key, self.audio_key),
            refused_text=_media_tokens(self.processor),
        )
        if problem is not None:
            return problem
        try:
            return [self._size(row, cell) for cell in row[self.image_key]]
        except DataError as error:
            return f"column {self.image_key}: {error.message}"

    def _size(self, row: dict[str, Any], cell: Any) -> Size:
        """(W, H) of a picture, (0, 0) where nothing is to be looked at."""
        mode, limits = self.settings.verify_images, self.settings.image_limits
        options = _resize_options(cell)
        wanted = max(options.get("min_pixels", 0), options.get("resized_width", 0) * options.get("resized_height", 0))
        if wanted > limits.max_pixels:
            raise DataError("<image cell>", None, f"asks to be enlarged to {wanted} pixels, limit {limits.max_pixels}")
        if mode == "off":
            return (0, 0)
        if mode == "header":
            header = check_header(encoded_bytes(cell, limits=limits, root=self._image_root(row)), limits=limits)
            return (header.width, header.height)
        return self._decode(row, cell).size

    def _decode(self, row: dict[str, Any], cell: Any) -> Image.Image:
        file, number = self._origin(row)
        limits = self.settings.image_limits
        return decode_image(cell, limits=limits, path=file, row=number, root=self._image_root(row))

    def _origin(self, row: dict[str, Any]) -> tuple[str, int]:
        """The file, as the user named it, and the zero-based row in it."""
        return str(self.original_data_files[row[_FILE]]), row[_ROW]

    def _image_root(self, row: dict[str, Any]) -> Path:
        if self.settings.image_root is not None:
            return Path(self.settings.image_root).expanduser()
        return Path(self.data_files[row[_FILE]]).resolve().parent

    def _judge(self, total: int, bad: Sequence[BadItem], overlong: Sequence[BadItem]) -> None:
        name = str(self.original_data_files[0])
        self._write_quarantine([*bad, *overlong])
        if len(bad) > self.settings.max_bad_share * total:
            limit = f"more than data.uae_max_bad_share={self.settings.max_bad_share:g}"
            raise DataError(name, None, f"{len(bad)} of {total} rows are bad, {limit}; first: {bad[0]}")
        if overlong and not self.filter_overlong_prompts:
            advice = "raise data.max_prompt_length, use smaller pictures or set data.filter_overlong_prompts=true"
            raise DataError(name, None, f"{len(overlong)} of {total} rows are too long ({overlong[0]}); {advice}")
        if len(bad) + len(overlong) >= total:
            raise DataError(name, None, f"no usable row: {total} rows, {len(bad)} bad, {len(overlong)} too long")
        for kind, items in (("bad", bad), ("too long", overlong)):
            if items:
                first = "; ".join(map(str, items[: self.settings.log_first]))
                logger.warning("%d of %d rows are %s and left out, first: %s", len(items), total, kind, first)

    def _write_quarantine(self, items: Sequence[BadItem]) -> None:
        if self.settings.quarantine_dir is None:
            return
        folder = Path(self.settings.quarantine_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        names = "\n".join(map(str, self.original_data_files))
        stem = Path(str(self.original_data_files[0])).stem
        path = folder / f"quarantine_{stem}_{hashlib.sha256(names.encode()).hexdigest()[:8]}.jsonl"
        with published(path) as (temporary,):
            write_items(temporary, items)

    def _build_messages(self, example: dict, key: str) -> list:
        """Replace every ``<image>`` by a decoded picture, and drop our bookkeeping from the row."""
        images = [{"image": self._decode(example, cell), **_resize_options(cell)} for cell in example[self.image_key]]
        del example[_FILE], example[_ROW]
        # A copy: verl replaces <image> in place, which would put every picture into `prompt` as well.
        return super()._build_messages({key: copy.deepcopy(example[key]), self.image_key: images}, key)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One row for the rollout, as `RLHFDataset` gives it.

        Raises:
            DecodeError: for a picture that does not decode (any more), naming file and row.
            ConfigError: if the model has no processor for pictures.
        """
        if self.processor is None:
            raise ConfigError("actor_rollout_ref.model.path", "rows with pictures need a model with a processor")
        row = super().__getitem__(item)
        if not row["extra_info"].get("sha256"):
            row["extra_info"]["sha256"] = image_digest(_first_image(row["raw_prompt"]))
        return row

    def split(self, num_splits: int) -> list[UAEDataset]:
        """Equal consecutive parts, the remainder dropped, as verl's `split` but keeping this class."""
        if not 0 < num_splits <= len(self):
            raise ValueError(f"num_splits must lie in [1, {len(self)}], got {num_splits}")
        size = len(self) // num_splits
        parts = [copy.copy(self) for _ in range(num_splits)]
        for number, part in enumerate(parts):
            part.dataframe = self.dataframe.select(range(number * size, (number + 1) * size))
        return parts


class _PromptLength:
    """Length in tokens of a row's prompt, exactly as the rollout will build it.

    It depends on the text and on the sizes after Qwen's resizing only, so one blank picture is processed per distinct
    combination. A data set with one prompt and pictures below a megapixel needs at most about 1,300 of them.
    """

    def __init__(self, dataset: UAEDataset) -> None:
        self.dataset = dataset
        self.processor: Any = dataset.processor
        self.patch_size = getattr(getattr(self.processor, "image_processor", None), "patch_size", 14)
        self.known: dict[tuple[str, tuple[Size, ...]], int] = {}

    def __call__(self, row: dict[str, Any], sizes: Sequence[Size]) -> int | str:
        """Number of tokens, 0 where it cannot be known, or the reason why the prompt cannot be built."""
        if self.processor is None or (0, 0) in sizes:
            return 0
        prompt, cells = row[self.dataset.prompt_key], row[self.dataset.image_key]
        try:
            resized = tuple(self._resized(size, _resize_options(cell)) for size, cell in zip(sizes, cells, strict=True))
            key = (json.dumps(prompt), resized)
            if key not in self.known:
                self.known[key] = self._measure(prompt, resized)
            return self.known[key]
        except Exception as error:
            # Fault boundary: templates and resizing are the model's, and what they raise means one bad row.
            return f"column {self.dataset.prompt_key}: the processor refuses it: {type(error).__name__}: {error}"

    def _resized(self, size: Size, options: dict[str, int]) -> Size:
        """(W, H) after ``qwen_vl_utils.fetch_image``."""
        from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE, smart_resize

        factor = int(self.patch_size * SPATIAL_MERGE_SIZE)
        width, height = options.get("resized_width", size[0]), options.get("resized_height", size[1])
        limits = {} if "resized_width" in options else options
        height, width = smart_resize(height, width, factor=factor, **limits)
        return (width, height)

    def _measure(self, prompt: list[dict[str, str]], sizes: Sequence[Size]) -> int:
        dataset = self.dataset
        blanks = [Image.new("RGB", size) for size in sizes]
        example = {dataset.prompt_key: copy.deepcopy(prompt), dataset.image_key: blanks}
        messages = RLHFDataset._build_messages(dataset, example, dataset.prompt_key)
        options = dict(dataset.apply_chat_template_kwargs)
        if dataset.tool_schemas is not None:
            options["tools"] = dataset.tool_schemas
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
        inputs = build_multimodal_processor_inputs(
            self.processor, text=[text], images=blanks, mm_processor_kwargs=dataset.mm_processor_kwargs
        )
        return len(inputs["input_ids"][0])


def _load(file: str, number: int, image_key: str) -> datasets.Dataset:
    """Read a data file without decoding pictures, and note where each row comes from."""
    kinds = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
    kind = kinds.get(Path(file).suffix)
    if kind is None:
        raise DataError(file, None, f"must be one of {', '.join(kinds)}")
    try:
        frame = datasets.load_dataset(kind, data_files=str(file))["train"]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(file, None, f"cannot be read: {error.__cause__ or error}") from error
    if image_key not in frame.column_names:
        raise DataError(file, None, f"column {image_key} is missing")
    # A file written with the Image feature would be decoded by `datasets`, past the door.
    feature = frame.features[image_key]
    if isinstance(getattr(feature, "feature", None), datasets.Image):
        frame = frame.cast_column(image_key, type(feature)(datasets.Image(decode=False)))
    frame = frame.remove_columns([name for name in (_FILE, _ROW) if name in frame.column_names])
    return frame.add_column(_FILE, [number] * len(frame)).add_column(_ROW, list(range(len(frame))))


def _resize_options(cell: Any) -> dict[str, int]:
    """Qwen's per-picture size options in a cell.

    Raises:
        DataError: if one is not a positive integer, or only one of the two resized sides is given.
    """
    if not isinstance(cell, Mapping):
        return {}
    options = {key: cell[key] for key in _RESIZE_KEYS if cell.get(key) is not None}
    for key, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError("<image cell>", None, f"{key} must be a positive integer, got {value!r}")
    if ("resized_height" in options) != ("resized_width" in options):
        raise DataError("<image cell>", None, "resized_height and resized_width go together")
    return options


def _media_tokens(processor: Any) -> tuple[str, ...]:
    tokens = (getattr(processor, name, None) for name in ("image_token", "video_token", "audio_token"))
    return tuple(token for token in tokens if isinstance(token, str) and token)


def _first_image(messages: Sequence[Mapping[str, Any]]) -> Image.Image:
    contents = (message["content"] for message in messages if not isinstance(message["content"], str))
    return next(item["image"] for content in contents for item in content if item["type"] == "image")
