# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions and rewards of the decoder's pictures, as verl writes rollouts: one line of JSON per reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verl_uae.chain.records import Outcome, Sample, prompt_text
from verl_uae.stages.common.captions import Messages


def generation_rows(
    prompts: Sequence[Messages], samples: Sequence[Sample], outcomes: Sequence[Outcome]
) -> list[dict[str, Any]]:
    """Rows of a batch.

    Args:
        prompts: of the captioner.
        samples: pictures with captions, one per prompt.
        outcomes: of equally many reconstructions of each sample, sample by sample.
    """
    members = len(outcomes) // max(1, len(samples))
    rows = []
    for number, outcome in enumerate(outcomes):
        sample, record = samples[number // members], outcome.record
        rows.append(
            {
                "input": "\n".join(text.replace("\x1f", " ") for _, text in prompt_text(prompts[number // members])),
                "output": sample.caption.text,
                "gts": sample.row.get("ground_truth"),
                # A missing reward is not 0.
                "score": record.value,
                "digest": sample.caption.digest,
                "member": number % members,
                "status": str(record.status),
                "reason": record.reason or "",
                **{f"term_{name}": value for name, value in record.terms.items()},
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
