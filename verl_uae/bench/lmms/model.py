# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The captioner of a UAE folder in lmms-eval.

After export it is a plain transformers model, so lmms-eval's own model of its family answers, with its chat template,
pixels and decoding. This class only finds the captioner in the folder, and the family.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from lmms_eval.models import get_model
from lmms_eval.utils import simple_parse_args_string

from verl_uae.bench.lmms import MODEL, captioner_folder
from verl_uae.captioners import family_of
from verl_uae.checkpoints.load import load_config


@register_model(MODEL)
class UAECaptioner(lmms):  # type: ignore[misc]
    """``--model uae --model_args pretrained=FOLDER``, and arguments of lmms-eval's model of that family.

    ``pretrained`` is a UAE folder, its ``captioner/``, any other transformers folder of a captioner, or a hub id: the
    model before RL and after it run through the same code.
    """

    is_simple = False

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> lmms:
        """An instance of lmms-eval's own class, which calls this. CheckpointError: the folder has no captioner, or one
        of no known family."""
        given = simple_parse_args_string(arg_string)
        folder = str(captioner_folder(Path(given["pretrained"])))
        kind = get_model(family_of(load_config(folder).model_type, folder).lmms_model)
        added = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return kind(**{**given, "pretrained": folder}, **added)
