# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a step of a run costs whatever machine it is on: drawn pictures, and operations by the package's estimate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omegaconf import OmegaConf

from verl_uae.estimate.composing import command
from verl_uae.estimate.estimator import Estimator
from verl_uae.estimate.phases import Phase
from verl_uae.estimate.work import Asking
from verl_uae.scenes.render import IMAGE_SIZE
from verl_uae.scenes.tokenizer import IMAGE_TOKENS

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
    uae, images = asked.config.uae, int(asked.config.data.train_batch_size)
    captions, drawings = int(asked.config.actor_rollout_ref.rollout.n), int(uae.u4g.samples_per_caption)
    if uae.stage == "unified" and OmegaConf.select(uae, "unified.schedule") == "joint":
        return {"joint": {"pictures": float(images * captions * drawings), "flops": _useful(phases.of_stage())}}
    drawn = {"g4u": images * captions * int(uae.decoder.seeds_per_caption), "u4g": images * drawings}
    of_stage = {"g4u": phases.g4u, "u4g": phases.u4g}
    stages = of_stage if uae.stage == "unified" else [str(uae.stage)]
    return {stage: {"pictures": float(drawn[stage]), "flops": _useful(of_stage[stage]())} for stage in stages}


def _useful(phases: Iterable[Phase]) -> float:
    return float(sum(phase.useful for phase in phases))
