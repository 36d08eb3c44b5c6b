# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions and rewards of the decoder's pictures, as verl writes rollouts: one line of JSON per reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_uae.chain.draw import PolicySource
from verl_uae.chain.records import Outcome, prompt_text
from verl_uae.stages.common.captions import Messages


def generation_rows(
    prompts: Sequence[Messages], sources: Sequence[PolicySource], outcomes: Sequence[Outcome]
) -> list[dict[str, Any]]:
    """Rows of a batch.

    Args:
        prompts: of the captioner.
        sources: pictures with captions, one per prompt.
        outcomes: of equally many reconstructions of each source, source by source.
    """
    members = len(outcomes) // max(1, len(sources))
    rows = []
    for number, entry in enumerate(outcomes):
        source = sources[number // members]
        rows.append(
            {
                "input": "\n".join(text.replace("\x1f", " ") for _, text in prompt_text(prompts[number // members])),
                "output": source.caption,
                "gts": source.row.get("ground_truth"),
                # A missing reward is not 0.
                "score": entry["value"],
                "digest": source.digest,
                "member": number % members,
                "status": entry["status"],
                "reason": entry["reason"],
                **{f"term_{name}": value for name, value in entry["terms"].items()},
            }
        )
    return rows


def dump_arguments(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Arguments of verl's ``_dump_generations``, but for the folder; a term that a row lacks is null there."""
    first = ("input", "output", "gts", "score")
    names = dict.fromkeys(name for row in rows for name in row if name not in first)
    return {
        "inputs": [row["input"] for row in rows],
        "outputs": [row["output"] for row in rows],
        "gts": [row["gts"] for row in rows],
        "scores": [row["score"] for row in rows],
        "reward_extra_infos_dict": {name: [row.get(name) for row in rows] for name in names},
    }
