# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""lmms-eval: a UAE folder's captioner as a model, task files for understanding, and the guard on what RL unlearns.

lmms-eval is not a dependency. It finds the model by the entry point ``lmms_eval.models``, which is :func:`manifest`,
and the tasks by ``--include_path``; only :mod:`~verl_uae.bench.lmms.model` and :func:`manifest` import it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_uae.checkpoints.names import CONFIG, ENCODER, MODEL_INDEX
from verl_uae.errors import CheckpointError

MODEL = "uae"
"""Name for ``--model``."""

TASKS = Path(__file__).parent / "tasks"
"""Folder for ``--include_path``."""

_MODEL_TYPE = "qwen2_5_vl"


def manifest() -> Any:
    """The ``ModelManifest`` of the captioner; called by lmms-eval alone (its ``models/registry_v2.py``, 0.7.3)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path=f"{__name__}.model.UAECaptioner")


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
    if not (folder / CONFIG).is_file():
        raise CheckpointError(path, f"has no captioner: {folder / CONFIG} does not exist")
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(folder / CONFIG, f"cannot be read: {error}") from error
    if found != _MODEL_TYPE:
        raise CheckpointError(folder, f"is a {found}, not a {_MODEL_TYPE}")
    return folder
