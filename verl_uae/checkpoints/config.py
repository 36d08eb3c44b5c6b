# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""``uae.checkpoint``."""

from __future__ import annotations

from dataclasses import dataclass

from verl_uae.settings import DECODING, key


@dataclass
class CheckpointConfig:
    """``uae.checkpoint``: what of a step is written and checked; how many stay is trainer.max_actor_ckpt_to_keep."""

    digests: bool = True
    """Write the SHA-256 of every file into the marker of a step and compare them on resume: damage, or a file of
    another run, is refused by name. Both read the whole checkpoint once, eight files at a time."""

    export: str = key("last", choices=("last", "every"), stages=DECODING)
    """Which saved steps also get the folder ``decoder/`` with all weights, where uae.train.save_contents has
    diffusers. last: the last step of the run. every: all. `verl-uae export` makes such a folder of any step."""
