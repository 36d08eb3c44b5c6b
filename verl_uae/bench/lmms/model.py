# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The captioner of a UAE folder in lmms-eval.

After export it is a plain transformers Qwen2.5-VL, so lmms-eval's own ``qwen2_5_vl`` answers, with its chat template,
pixels and decoding. This class only finds the captioner in the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval.api.registry import register_model
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL

from verl_uae.bench.lmms import MODEL, captioner_folder


@register_model(MODEL)
class UAECaptioner(Qwen2_5_VL):  # type: ignore[misc]
    """``--model uae --model_args pretrained=FOLDER``, and arguments of lmms-eval's ``qwen2_5_vl``.

    ``pretrained`` is a UAE folder, its ``captioner/``, any other transformers folder of a Qwen2.5-VL, or a hub id: the
    model before RL and after it run through the same code. CheckpointError: the folder has no captioner.
    """

    def __init__(self, pretrained: str, **kwargs: Any) -> None:
        super().__init__(pretrained=str(captioner_folder(Path(pretrained))), **kwargs)
