# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Where the captioner is in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from verl_uae.errors import CheckpointError
from verl_uae.formats.names import ENCODER, MODEL_INDEX

MODEL_TYPE = "qwen2_5_vl"


def captioner_folder(path: Path) -> Path:
    """The transformers folder of the captioner.

    Args:
        path: UAE folder, transformers folder, or hub id (returned as it is).

    Raises:
        CheckpointError: the folder is neither, or what is there is not a Qwen2.5-VL.
    """
    if not path.is_dir():
        return path
    folder = path / ENCODER if (path / MODEL_INDEX).is_file() else path
    if not (folder / "config.json").is_file():
        raise CheckpointError(path, f"has no captioner: {folder / 'config.json'} does not exist")
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(folder / "config.json", f"cannot be read: {error}") from error
    if found != MODEL_TYPE:
        raise CheckpointError(folder, f"is a {found}, not a {MODEL_TYPE}")
    return folder
