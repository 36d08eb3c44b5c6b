# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What lmms-eval loads from the entry point ``lmms_eval.models`` (its ``models/registry_v2.py``, 0.7.3)."""

from __future__ import annotations

from typing import Any

#: Name for ``--model``.
MODEL = "uae"


def manifest() -> Any:
    """The ``ModelManifest`` of the captioner; called by lmms-eval alone."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path="verl_uae.bench.lmms.model.UAECaptioner")
