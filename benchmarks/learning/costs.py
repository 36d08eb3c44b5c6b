# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a step of a run costs whatever machine it is on: drawn pictures, and operations by the package's estimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verl_uae.estimate.composing import command
from verl_uae.estimate.estimator import Estimator
from verl_uae.estimate.phase import Phase
from verl_uae.estimate.report import step_pictures
from verl_uae.estimate.work import Asking
from verl_uae.scenes.render import IMAGE_SIZE
from verl_uae.scenes.tokenizer import IMAGE_TOKENS
from verl_uae.stages.common.config import step_kinds

#: Tokens of a caption with its end of turn, of which a full one has up to 15, and of the prompt around the picture's.
CAPTION_TOKENS, PROMPT_TOKENS = 12, 12 - IMAGE_TOKENS


def of_steps(config: str, overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """``pictures`` drawn and scored, and useful ``flops``, of a step of each stage that a run has.

    What is done once for every picture of the data counts as often as it is drawn: no learning run sees one twice.

    Args:
        config: of Hydra, such as uae_u4g.
        overrides: of the training command, folders of the models among them.

    Returns:
        By stage, one for a run with steps of one kind, such as those that train both models on one batch.

    Raises:
        ConfigError: the command does not compose.
    """
    asked = command(config, overrides)
    phases = Estimator(asked, Asking(CAPTION_TOKENS, IMAGE_SIZE, PROMPT_TOKENS)).phases(asked)
    return {
        kind: {"pictures": float(step_pictures(asked.config, kind)), "flops": _useful(phases.of_kind(kind))}
        for kind in step_kinds(asked.config)
    }


def _useful(phases: Iterable[Phase]) -> float:
    return float(sum(phase.useful for phase in phases))
