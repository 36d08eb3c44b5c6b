# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardBatch, RewardScorer, Status
from verl_uae.reward.remote.protocol import RawSample, encode_picture, to_levels
from verl_uae.reward.remote.service import TooLargeError

FAILING = """
    import time
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        if ground_truth == "hang":
            time.sleep(3)
        if ground_truth == "raise":
            raise KeyError("no such thing")
        return float(ground_truth) if ground_truth == "nan" else None
"""


def samples_of(batch: RewardBatch, **changes: object) -> list[RawSample]:
    source, drawn = to_levels(batch.source_B3HW), to_levels(batch.reconstruction_B3HW)
    return [
        RawSample(
            f"id {index}",
            index,
            {
                "source": encode_picture(source[index]),
                "reconstruction": encode_picture(drawn[index]),
                "caption": batch.captions[index],
                "row": batch.rows[index],
                **changes,
            },
        )
        for index in range(len(batch))
    ]


def without(sample: RawSample, *names: str, **changes: object) -> RawSample:
    members = {name: value for name, value in sample.members.items() if name not in names}
    return RawSample(sample.id, sample.place, {**members, **changes})


def test_a_bad_sample_costs_itself_and_the_others_keep_their_bits(make_levels, make_service, tiny_clip: Path) -> None:
    service = make_service(["pixel", {"name": "clip", "params": {"model": str(tiny_clip), "mode": "maps"}}])
    batch = make_levels(6)
    samples = samples_of(batch)
    clean = service.score(samples)
    local = RewardScorer([("pixel", 1.0, {}), ("clip", 1.0, {"model": str(tiny_clip), "mode": "maps"})]).score(batch)
    assert [clean[f"id {i}"].value for i in range(6)] == [record.value for record in local]
    samples[0] = without(samples[0], source="no base64!")
    samples[2] = without(samples[2], "reconstruction")
    samples[5] = without(samples[5], reconstruction=encode_picture(np.zeros((8, 9, 3), np.uint8)))
    found = service.score(samples)
    assert {name: found[name].reason for name in ("id 0", "id 2", "id 5")} == {
        "id 0": "source: not base64: Only base64 data is allowed",
        "id 2": "reconstruction is missing",
        "id 5": "source and reconstruction have 16 x 16 and 9 x 8 pixels, not one size",
    }
    assert all(found[name].status == Status.INVALID for name in ("id 0", "id 2", "id 5"))
    assert all(found[f"id {i}"].value == clean[f"id {i}"].value for i in (1, 3, 4))
    assert list(found) == [sample.id for sample in samples]


def test_pictures_of_several_sizes_in_one_request(make_levels, make_service) -> None:
    service = make_service("pixel")
    small, large = make_levels(2, size=16), make_levels(2, size=24, seed=1)
    mixed = [samples_of(small)[0], samples_of(large)[1]]
    expected = [RewardScorer([("pixel", 1.0, {})]).score(batch)[i].value for batch, i in ((small, 0), (large, 1))]
    assert [record.value for record in service.score(mixed).values()] == expected


def test_a_decompression_bomb_is_refused_before_it_is_decoded(make_levels, make_service) -> None:
    service = make_service("pixel", max_pixels=32 * 32)
    picture = encode_picture(np.zeros((33, 32, 3), np.uint8))
    (sample,) = samples_of(make_levels(1))
    found = service.score([without(sample, source=picture, reconstruction=picture)])["id 0"]
    assert found.status == Status.INVALID and found.reason == "source: 32 x 33 pixels, limit 1024"


def test_a_request_of_too_many_pixels_is_refused_before_any_is_decoded(
    make_levels, make_service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty places cost memory too: a few kilobytes could ask for many gigabytes."""
    service = make_service("pixel", max_pixels=16 * 16, max_request_pixels=4 * 16 * 16)
    four = samples_of(make_levels(4))
    assert all(record.ok for record in service.score(four).values())
    # One that is larger than any picture may be is not decoded, and costs itself alone.
    larger = without(four[1], source=encode_picture(np.zeros((17, 16, 3), np.uint8)))
    assert [record.ok for record in service.score([four[0], larger]).values()] == [True, False]
    decoded: list[object] = []
    monkeypatch.setattr("verl_uae.reward.remote.service.decode_picture", lambda *args: decoded.append(args))
    tiny = encode_picture(np.zeros((1, 1, 3), np.uint8))
    for samples in (
        samples_of(make_levels(5)),
        [RawSample("far", 4, four[0].members)],
        [*four, without(RawSample("other size", 0, four[0].members), source=tiny)],
    ):
        with pytest.raises(TooLargeError, match=r"1280 pixels in a request take 0 MiB, limit 1024|1025 pixels"):
            service.score(samples)
    assert decoded == []


def test_terms_of_captions_need_no_pictures(make_levels, make_service) -> None:
    service = make_service({"name": "repetition", "params": {"n": 1}})
    assert service.needs == {"caption"}
    first, second = samples_of(make_levels(2))
    pictures = ("source", "reconstruction", "row")
    found = service.score([without(first, *pictures, caption="a a a b"), without(second, *pictures, "caption")])
    assert found["id 0"].terms == {"repetition": 0.5} and found["id 1"].reason == "caption is missing"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"caption": 5}, "caption must be text, got int"),
        ({"caption": "a " * 2**19 + "a"}, "caption of 1048577 characters, limit 1048576"),
        ({"row": []}, "row must be an object, got list"),
        ({"row": {"extra_info": [1]}}, "row.extra_info must be an object"),
        ({"row": {"reward_model": "x"}}, "row.reward_model must be an object"),
        ({"source": {}}, "source: must be base64 text, got dict"),
        ({"source": None}, "source: must be base64 text, got NoneType"),
    ],
)
def test_members_of_a_wrong_type(make_levels, make_service, changes: dict[str, object], reason: str) -> None:
    assert make_service("pixel").score(samples_of(make_levels(1), **changes))["id 0"].reason == reason


def test_every_failure_of_a_term_is_its_record(make_levels, make_service, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(textwrap.dedent(FAILING))
    service = make_service({"name": "custom", "params": {"path": str(file)}}, timeout_s=2.0)
    batch = make_levels(4)
    for row, answer in zip(batch.rows, ("nan", "none", "raise", "hang"), strict=True):
        row["ground_truth"] = answer
    found = list(service.score(samples_of(batch)).values())
    assert [record.status for record in found] == ["invalid", "invalid", "error", "timeout"]


def test_a_file_that_changes_while_it_is_loaded(make_service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl_uae.reward.remote import service as module

    file = tmp_path / "reward.py"
    body = "def compute_score(data_source, solution_str, ground_truth, extra_info): return 1.0\n"
    file.write_text(body)
    scorer = module.RewardScorer

    def build(*args: object, **kwargs: object) -> RewardScorer:
        file.write_text(body + "# changed\n")
        return scorer(*args, **kwargs)

    monkeypatch.setattr(module, "RewardScorer", build)
    with pytest.raises(ConfigError, match="has changed while it was loaded"):
        make_service({"name": "custom", "params": {"path": str(file)}})


def test_samples_stand_at_their_places(make_levels, make_service) -> None:
    service = make_service("pixel")
    batch = make_levels(2)
    first, second = samples_of(batch)
    placed = [RawSample(first.id, 3, first.members), RawSample(second.id, 1, second.members)]
    built = service._batch([service._read(sample, {}) for sample in placed])
    assert torch.equal(built.source_B3HW[[3, 1]], batch.source_B3HW) and sorted(built.failed) == [0, 2]
    expected = [record.value for record in RewardScorer([("pixel", 1.0, {})]).score(batch)]
    assert [record.value for record in service.score(placed).values()] == expected


def test_pixels_are_divided_as_a_runs_pictures_are(make_service) -> None:
    from PIL import Image

    from verl_uae.data.images import to_tensor

    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    service = make_service("pixel")
    text = encode_picture(levels)
    sample = service._read(RawSample("a", 0, {"source": text, "reconstruction": text}), {})
    assert torch.equal(service._batch([sample]).source_B3HW, to_tensor([Image.fromarray(levels)], 16))
