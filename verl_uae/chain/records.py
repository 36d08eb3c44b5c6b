# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What travels with every sample through the TransferQueue, as plain dictionaries.

The agent loop writes a :class:`CaptionState` under ``extra_fields["uae"]``; the decoder workers turn it into an
outcome dictionary (:func:`outcome`), in a field of its own or, when streamed, at ``extra_fields["uae_outcome"]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from verl_uae.chain.reconstruct import ChainRequest, ChainResult
from verl_uae.data.images import source_image

#: Field of the TransferQueue that holds outcomes.
OUTCOME_FIELD = "uae_outcome"


class CaptionState(TypedDict):
    """What the agent loop knows about a caption."""

    caption: str
    digest: str
    """SHA-256 of the source picture."""
    status: str
    """ok, or why there is no caption: timeout or error."""
    reason: str
    cut: bool
    """The caption hit the response limit without ending."""
    tokens: int


class Outcome(TypedDict):
    """What became of a sample; see :class:`~verl_uae.reward.record.RewardRecord`."""

    value: float | None
    status: str
    reason: str
    terms: dict[str, float]
    seconds: float
    truncated: bool
    picture: bytes | None
    """JPEG, for panels."""
    reconstruction: bytes | None
    """PNG, for groupwise rewards."""


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Roles and texts of a prompt, without its pictures."""
    turns = []
    for message in messages:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [str(item.get("text", item.get("type"))) for item in content]
        turns.append((str(message.get("role")), "\x1f".join(parts)))
    return tuple(turns)


def outcome(result: ChainResult) -> Outcome:
    """A chain result as a dictionary."""
    record = result.record
    return Outcome(
        value=record.value,
        status=str(record.status),
        reason=record.reason or "",
        terms=dict(record.terms),
        seconds=record.seconds,
        truncated=result.truncated,
        picture=result.picture,
        reconstruction=result.reconstruction,
    )


def failed_outcome(status: str, reason: str) -> Outcome:
    """The outcome of a sample without reconstruction."""
    return Outcome(
        value=None,
        status=status,
        reason=reason,
        terms={},
        seconds=0.0,
        truncated=False,
        picture=None,
        reconstruction=None,
    )


def chain_request(
    messages: Sequence[Mapping[str, Any]],
    state: CaptionState,
    row: Mapping[str, Any],
    *,
    seed: int,
    step: int,
    want_picture: bool = False,
    want_reconstruction: bool = False,
) -> ChainRequest:
    """The decoder's request for a caption; the group of an image shares its noise at a step."""
    return ChainRequest(
        image=source_image(messages),
        caption=state["caption"],
        noise_key=(seed, "decoder noise", step, state["digest"]),
        row=dict(row),
        want_picture=want_picture,
        want_reconstruction=want_reconstruction,
    )


def dataset_row(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What custom rewards see of a dataset row."""
    return {
        "data_source": fields.get("data_source") or "unknown",
        "ground_truth": (fields.get("reward_model") or {}).get("ground_truth"),
        "extra_info": dict(fields.get("extra_info") or {}),
    }


def is_probe(extra_info: Mapping[str, Any], probes: int) -> bool:
    """Whether a row is among the first ``probes`` of its file; one whose number is no number is not."""
    try:
        return int(extra_info["index"]) < probes
    except (KeyError, TypeError, ValueError):
        return False
