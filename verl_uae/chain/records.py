# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What becomes of a picture on its way: :class:`Caption` -> :class:`Sample` -> :class:`Draw` -> :class:`Outcome`.

A caption travels without its picture: the agent loop puts it into ``extra_fields`` of its row, where the picture is
already. Outcomes travel in a field of the TransferQueue, or, when streamed, in ``extra_fields`` too; both in an
:class:`Envelope`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from PIL import Image

from verl_uae.data.images import image_digest, prompt_images, rgb, source_digest, source_image
from verl_uae.reward.record import RewardRecord, Status, mean_record

#: Key of a row's ``extra_fields`` with the envelope of its :class:`Caption`.
CAPTION_FIELD = "uae"
#: Field of the TransferQueue, and key of ``extra_fields``, with the envelope of an :class:`Outcome`.
OUTCOME_FIELD = "uae_outcome"
#: Fields of the TransferQueue that a :class:`Sample` is made of.
SAMPLE_FIELDS = ["raw_prompt", "data_source", "reward_model", "extra_info"]


_Record = TypeVar("_Record")


class Envelope(Generic[_Record]):
    """Carries a record through the TransferQueue, whose serialiser would make a dictionary of a bare dataclass."""

    __slots__ = ("content",)

    def __init__(self, content: _Record) -> None:
        self.content = content


#: What noise is derived from; equal names are equal noise, whatever the rank or the micro-batch.
Name = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Caption:
    """What a captioner wrote of a picture, or why it wrote nothing."""

    text: str
    digest: str
    """SHA-256 of the source picture; empty where that cannot be read."""
    status: Status = Status.OK
    """Not OK where there is no caption."""
    reason: str = ""
    """Why there is none."""
    cut: bool = False
    """The caption hit the response limit without ending."""
    tokens: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is a caption."""
        return self.status is Status.OK

    def lost(self) -> RewardRecord:
        """The record of a sample that has no caption."""
        return RewardRecord.failed(self.status, self.reason or "no caption")

    @classmethod
    def failed(cls, digest: str, reason: str, status: Status = Status.ERROR) -> Caption:
        """What there is where none was written."""
        return cls("", digest, status, reason)


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture with its caption: what is redrawn and scored."""

    image: Image.Image
    """Source picture, any size and mode."""
    caption: Caption
    row: Mapping[str, Any] = field(default_factory=dict)
    """What custom rewards see of the dataset row, see :func:`dataset_row`."""

    @classmethod
    def of_row(cls, fields: Mapping[str, Any], caption: Caption) -> Sample:
        """The sample of a row of verl's batch.

        Args:
            fields: :data:`SAMPLE_FIELDS` by name.
            caption: of its picture.

        Raises:
            DataError: the prompt has no picture.
        """
        return cls(source_image(fields["raw_prompt"]), caption, dataset_row(fields))


def samples_of(columns: Mapping[str, Sequence[Any]], captions: Sequence[Caption]) -> list[Sample]:
    """The samples of all rows of a batch, given as columns; see :meth:`Sample.of_row`."""
    known = {name: columns[name] for name in SAMPLE_FIELDS if name in columns}
    return [
        Sample.of_row({name: column[position] for name, column in known.items()}, caption)
        for position, caption in enumerate(captions)
    ]


@dataclass(frozen=True, slots=True)
class Draw:
    """One picture to draw of a sample."""

    sample: Sample
    noise: Name
    """Of the initial noise."""
    step_noise: Name = ()
    """Of the noise of stochastic steps, whose numbers are added to it; empty where there are none."""
    want_picture: bool = False
    """Return it encoded, for panels."""
    want_reconstruction: bool = False
    """Return it as PNG bytes."""

    @property
    def origin(self) -> Name:
        """Two pictures of one origin are the same latent until their first stochastic step."""
        return (*self.noise, self.sample.caption.text if self.sample.caption.ok else "")

    @classmethod
    def for_caption(cls, sample: Sample, *, seed: int, step: int, **wanted: bool) -> Draw:
        """Drawn to reward the caption: all captions of a picture share their noise at a step, so only they differ.

        Args:
            sample: picture with caption.
            seed: of the run.
            step: training step.
            wanted: ``want_picture``, ``want_reconstruction``.
        """
        return cls(sample, (seed, "decoder noise", step, sample.caption.digest), (), **wanted)

    @classmethod
    def for_decoder(
        cls, sample: Sample, *, seed: int, step: int, member: int, share_noise: bool, **wanted: bool
    ) -> Draw:
        """Drawn to train or evaluate the decoder: members of a group share their caption, so their noise differs.

        Args:
            sample: picture with caption.
            seed: of the run.
            step: training step; 0 is the noise of validation, the same over the whole run.
            member: number within the group.
            share_noise: whether the initial noise is the group's, so that only stochastic steps differ.
            wanted: ``want_picture``, ``want_reconstruction``.
        """
        digest = sample.caption.digest
        noise: Name = (seed, "u4g noise", step, digest)
        step_noise = (seed, "u4g step noise", step, digest, member)
        return cls(sample, noise if share_noise else (*noise, member), step_noise, **wanted)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a draw."""

    record: RewardRecord
    """Its reward."""
    truncated: bool = False
    """The caption did not fit into the condition and was cut."""
    picture: bytes | None = None
    """The reconstruction for panels, as `verl_uae.data.images.encode_shown` has it."""
    reconstruction: bytes | None = None
    """PNG of the same, for groupwise rewards."""

    @classmethod
    def failed(cls, status: Status, reason: str) -> Outcome:
        """The outcome of what was not drawn."""
        return cls(RewardRecord.failed(status, reason))

    @classmethod
    def of_caption(cls, drawn: Sequence[Outcome]) -> Outcome:
        """The outcome of a caption that was drawn several times: the mean reward of its pictures that could be scored,
        the first failure where none could, and the first picture that could be drawn."""
        shown = next((outcome for outcome in drawn if outcome.picture or outcome.reconstruction), drawn[0])
        return replace(shown, record=mean_record([outcome.record for outcome in drawn]))


def prompt_name(
    messages: Sequence[Mapping[str, Any]], extra_info: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Digests of a prompt's pictures, the source first, and its text: equal where a captioner is asked the same.

    Raises:
        DataError: it has no picture, or a damaged one.
    """
    others = list(prompt_images(messages))[1:]
    digests = (source_digest(messages, extra_info), *(image_digest(rgb(image)) for image in others))
    return digests, prompt_text(messages)


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Roles and texts of a prompt, without its pictures."""
    turns = []
    for message in messages:
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [str(item.get("text", item.get("type"))) for item in content]
        turns.append((str(message.get("role")), "\x1f".join(parts)))
    return tuple(turns)


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
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
