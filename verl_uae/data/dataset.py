# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""verl's dataset with the image door in front. The only file of ``verl_uae.data`` that imports verl.

verl 0.9.1 opens pictures wherever it needs them, in any format and of any size. A bad one drops its row with a
traceback and no count (``filter_overlong_prompts``), or fails its prompt in the middle of a rollout. Here every row is
checked once, before training; bad rows are counted, named and left out, and what training reads has passed the door.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.tokenizer import build_multimodal_processor_inputs

from verl_uae.captioners import prompt_size
from verl_uae.data.frame import FILE, ROW
from verl_uae.data.images import image_digest, source_image
from verl_uae.data.rows import (
    BadItem,
    CheckSettings,
    RowDoor,
    Size,
    inspected,
    load_rows,
    resize_options,
)
from verl_uae.data.schema import media_tokens
from verl_uae.errors import ConfigError
from verl_uae.text import printable

logger = logging.getLogger(__name__)


class UAEDataset(RLHFDataset):
    """Rows of one source picture (or more) and a prompt; drop-in for verl's dataset.

    Used through ``data.custom_cls.path=pkg://verl_uae.data.dataset`` and ``data.custom_cls.name=UAEDataset``. Differs
    from `RLHFDataset` in what it refuses (`schema.row_problem`, `images.decode_image`) and in that:

    - ``raw_prompt`` holds decoded RGB pictures and no encoded bytes; ``prompt`` stays plain text;
    - ``extra_info.sha256`` is the digest of the first picture, whatever the file says: it names the picture in seeds
      and caches;
    - a prompt that does not fit ``max_prompt_length`` is found here. verl never cuts a prompt with a picture, it fails
      the rollout of that row; so with ``filter_overlong_prompts`` such rows are left out and counted, and without it
      they are a `DataError`, whatever ``truncation`` says. (Not checked with ``uae_verify_images=off``.)

    Raises:
        ConfigError: for an impossible key.
        DataError: if too many rows are bad, a prompt is too long, or no row is left.
    """

    def _read_files_and_tokenize(self) -> None:
        self.settings = CheckSettings.from_config(self.config)
        self.door = RowDoor(
            files=tuple(map(str, self.data_files)),
            names=tuple(printable(str(name)) for name in self.original_data_files),
            settings=self.settings,
            prompt_key=self.prompt_key,
            image_key=self.image_key,
            refused_keys=(self.video_key, self.audio_key),
            refused_text=media_tokens(self.processor),
        )
        self.dataframe = load_rows(self.door, self.max_samples, shuffle=self.shuffle, seed=self.seed)
        good = self._check_rows()
        if len(good) < len(self.dataframe):
            self.dataframe = self.dataframe.select(good)
        logger.info("%s: %d rows", ", ".join(self.door.names), len(self.dataframe))

    def _check_rows(self) -> list[int]:
        """Items of the rows to keep; the others are in the quarantine file and in the log."""
        start, total = time.monotonic(), len(self.dataframe)
        measure = _PromptLength(self)
        good: list[int] = []
        bad: list[BadItem] = []
        overlong: list[BadItem] = []
        longest = 0
        for item, row, sizes in inspected(self.dataframe.chunks(), self.settings.threads, self.door.inspect):
            length = sizes if isinstance(sizes, str) else measure(row, sizes)
            if isinstance(length, str):
                bad.append(self.door.bad(row, length))
            elif length > self.max_prompt_length:
                reason = f"prompt of {length} tokens, data.max_prompt_length is {self.max_prompt_length}"
                overlong.append(self.door.bad(row, reason))
                longest = max(longest, length)
            else:
                good.append(item)
        seconds = time.monotonic() - start
        logger.info("checked %d rows (%s) in %.1f s", total, self.settings.verify_images, seconds)
        remedy = ""
        if overlong:
            remedy = f" ({overlong[0]}); raise data.max_prompt_length to {longest} or use smaller pictures"
        self.door.judge(total, bad, overlong, remedy=remedy, strict=not self.filter_overlong_prompts)
        return good

    def _build_messages(self, example: dict, key: str) -> list:
        """Replace every ``<image>`` by a decoded picture, and drop our bookkeeping from the row."""
        images = [
            {"image": self.door.decode(example, cell), **resize_options(cell)} for cell in example[self.image_key]
        ]
        del example[FILE], example[ROW]
        # A copy: verl replaces <image> in place, which would put every picture into `prompt` as well.
        return super()._build_messages({key: copy.deepcopy(example[key]), self.image_key: images}, key)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One row for the rollout, as `RLHFDataset` gives it.

        Raises `DecodeError` for a picture that does not decode (any more), naming file and row; `ConfigError` if the
        model has no processor for pictures.
        """
        if self.processor is None:
            raise ConfigError("actor_rollout_ref.model.path", "rows with pictures need a model with a processor")
        row = super().__getitem__(item)
        row["extra_info"]["sha256"] = image_digest(source_image(row["raw_prompt"]))
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

    It depends on the text and on the sizes in which pictures reach the processor only, so one blank picture is
    processed per distinct combination. A data set with one prompt and pictures below a megapixel needs at most about
    1,300 of them by Qwen's resizing.
    """

    def __init__(self, dataset: UAEDataset) -> None:
        self.dataset = dataset
        self.processor: Any = dataset.processor
        self.image_processor: Any = getattr(self.processor, "image_processor", None)
        self.lengths: dict[tuple[str, tuple[Size, ...]], int] = {}

    def __call__(self, row: dict[str, Any], sizes: Sequence[Size]) -> int | str:
        """Number of tokens, 0 where it cannot be known, or the reason why the prompt cannot be built."""
        if self.processor is None or (0, 0) in sizes:
            return 0
        prompt, cells = row[self.dataset.prompt_key], row[self.dataset.image_key]
        try:
            resized = tuple(
                prompt_size(self.image_processor, size, resize_options(cell))
                for size, cell in zip(sizes, cells, strict=True)
            )
            key = (json.dumps(prompt), resized)
            if key not in self.lengths:
                self.lengths[key] = self._measure(prompt, resized)
            return self.lengths[key]
        except Exception as error:
            # Fault boundary: templates and resizing are the model's, and what they raise means one bad row.
            return f"column {self.dataset.prompt_key}: the processor refuses it: {type(error).__name__}: {error}"

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
