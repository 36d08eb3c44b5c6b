# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from transfer_queue.utils.serial_utils import MsgpackDecoder, MsgpackEncoder

from verl_uae.chain.records import Caption, Draw, Envelope, Outcome, Sample, is_probe, prompt_text, samples_of
from verl_uae.errors import DataError
from verl_uae.reward.record import Status

IMAGE = Image.new("RGB", (16, 16), "red")
OTHER = Image.new("RGB", (16, 16), "blue")
MESSAGES = [
    {"role": "system", "content": "You see."},
    {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "Say."}]},
    {"role": "user", "content": [{"type": "image", "image": OTHER}]},
]
FIELDS = {
    "raw_prompt": MESSAGES,
    "data_source": "scenes",
    "reward_model": {"ground_truth": "g", "style": "rule"},
    "extra_info": {"index": 3},
    "uid": "u",
}
CAPTION = Caption("a red square", "d1", tokens=3)


def test_a_sample_of_a_row() -> None:
    sample = Sample.of_row(FIELDS, CAPTION)
    assert sample.image is IMAGE and sample.caption is CAPTION
    assert sample.row == {"data_source": "scenes", "ground_truth": "g", "extra_info": {"index": 3}}
    sample.row["extra_info"]["index"] = 4
    assert FIELDS["extra_info"] == {"index": 3}, "a reward that changes its row changes a copy"
    assert Sample.of_row({"raw_prompt": MESSAGES}, CAPTION).row["data_source"] == "unknown"
    with pytest.raises(DataError, match="no image"):
        Sample.of_row({"raw_prompt": MESSAGES[:1]}, CAPTION)


def test_samples_of_columns_leave_other_columns_alone() -> None:
    columns = {name: [value] * 2 for name, value in FIELDS.items()} | {"ids": [1]}
    first, second = samples_of(columns, [CAPTION, Caption.failed("d2", "gone")])
    assert first.caption is CAPTION and second.caption.reason == "gone" and first.row == second.row


def test_captions_of_a_picture_share_their_noise_at_a_step() -> None:
    def noise(step: int = 1, seed: int = 42, **changes):
        return Draw.for_caption(Sample(IMAGE, replace(CAPTION, **changes)), seed=seed, step=step).noise

    assert noise() == noise(text="something else") == (42, "decoder noise", 1, "d1")
    assert len({noise(), noise(step=2), noise(seed=43), noise(digest="d2")}) == 4


def test_members_of_a_group_differ_by_noise() -> None:
    def draw(member: int, share_noise: bool) -> Draw:
        return Draw.for_decoder(Sample(IMAGE, CAPTION), seed=42, step=1, member=member, share_noise=share_noise)

    assert draw(2, False).noise == (42, "u4g noise", 1, "d1", 2)
    assert draw(2, True).noise == draw(0, True).noise == (42, "u4g noise", 1, "d1")
    for shared in (False, True):
        assert draw(2, shared).step_noise == (42, "u4g step noise", 1, "d1", 2)


def test_records_travel_and_stay_what_they_are() -> None:
    """Through the serialiser of the TransferQueue, which turns a bare dataclass into a dictionary."""
    caption, outcome = Caption.failed("d", "late", Status.TIMEOUT), Outcome.failed(Status.ERROR, "gone")
    coder = MsgpackEncoder(), MsgpackDecoder()
    again, failed = (coder[1].decode(coder[0].encode({"x": Envelope(one)}))["x"].content for one in (caption, outcome))
    assert (again, failed) == (caption, outcome)
    assert not again.ok and again.status is Status.TIMEOUT and failed.record.status is Status.ERROR
    assert isinstance(coder[1].decode(coder[0].encode({"x": caption}))["x"], dict), "envelopes are not needed any more"


def test_prompt_text_knows_roles_and_texts_only() -> None:
    assert prompt_text(MESSAGES) == (("system", "You see."), ("user", "image\x1fSay."), ("user", "image"))
    assert prompt_text(MESSAGES) != prompt_text(MESSAGES[:2])


@pytest.mark.parametrize(
    ("info", "probe"),
    [
        ({"index": 1}, True),
        ({"index": 2}, False),
        ({"index": "1"}, True),
        ({"index": "img_1"}, False),
        ({"index": None}, False),
        ({"index": float("inf")}, False),
        ({}, False),
    ],
)
def test_probes_are_the_first_rows_whatever_their_numbers_are(info: dict, probe: bool) -> None:
    assert is_probe(info, 2) is probe
