# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from PIL import Image

from verl_uae.chain.reconstruct import ChainResult
from verl_uae.chain.records import CaptionState, chain_request, failed_outcome, is_probe, outcome, prompt_text
from verl_uae.reward import RewardRecord, Status

IMAGE = Image.new("RGB", (16, 16), "red")
OTHER = Image.new("RGB", (16, 16), "blue")
MESSAGES = [
    {"role": "system", "content": "You see."},
    {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "Say."}]},
    {"role": "user", "content": [{"type": "image", "image": OTHER}]},
]
STATE = CaptionState(caption="a red square", digest="d1", status="ok", reason="", cut=False, tokens=3)


def test_the_group_of_an_image_shares_its_noise_at_a_step() -> None:
    def key(step: int = 1, seed: int = 42, **changes):
        return chain_request(MESSAGES, {**STATE, **changes}, {}, seed=seed, step=step).noise_key

    assert key() == key(caption="something else") == (42, "decoder noise", 1, "d1")
    assert len({key(), key(step=2), key(seed=43), key(digest="d2")}) == 4


def test_a_request_copies_the_row() -> None:
    row = {"data_source": "s"}
    request = chain_request(MESSAGES, STATE, row, seed=1, step=1, want_picture=True)
    request.row["data_source"] = "changed"
    assert row == {"data_source": "s"} and request.want_picture and request.caption == "a red square"


def test_outcomes() -> None:
    record = RewardRecord(0.5, Status.OK, {"pixel": 0.5}, 2.0)
    assert outcome(ChainResult(record, True, b"jpeg", b"png")) == {
        "value": 0.5,
        "status": "ok",
        "reason": "",
        "terms": {"pixel": 0.5},
        "seconds": 2.0,
        "truncated": True,
        "picture": b"jpeg",
        "reconstruction": b"png",
    }
    failed = outcome(ChainResult(RewardRecord.failed(Status.TIMEOUT, "late")))
    assert failed == failed_outcome("timeout", "late") and failed["value"] is None
    assert type(failed["status"]) is str


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
        ({}, False),
    ],
)
def test_probes_are_the_first_rows_whatever_their_numbers_are(info: dict, probe: bool) -> None:
    assert is_probe(info, 2) is probe
