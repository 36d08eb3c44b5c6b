# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.judge.conftest import write_captions
from tests.bench.results import make_result, same_columns
from tests.chain.conftest import picture
from verl_uae.bench.judge.contest import CAPTION, RECONSTRUCTION, read_contest
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import ConfigError, DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("images/0.png", "images/below/1.png", "images/2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(int(path.stem)).save(path)
    return tmp_path / "images"


def lines(path: Path, entries: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_captions_by_path_or_by_file_name(images: Path, tmp_path: Path) -> None:
    entries = [{"file": "0.png", "caption": "zero"}, {"file": "below/1.png", "caption": "one"}]
    lines(tmp_path / "run a" / "captions.jsonl", [*entries, {"file": "9.png", "caption": "of nothing"}])
    other = lines(tmp_path / "b.jsonl", [{"file": "1.png", "caption": "uno"}, {"file": "0.png", "caption": "nulla"}])
    contest = read_contest(images, str(tmp_path / "run a"), f"second={other}", CAPTION)
    assert contest.names == ("run a", "second") and contest.pictures == 3
    assert [(item.key, item.first, item.second) for item in contest.comparisons] == [
        ("0.png", "zero", "nulla"),
        ("below/1.png", "one", "uno"),
    ]
    assert contest.comparisons[0].source.digest == image_digest(picture(0))
    assert [(failure.what, failure.reason) for failure in contest.failures] == [
        ("run a: 2.png", "no caption"),
        ("second: 2.png", "no caption"),
    ]


def test_a_caption_of_another_picture_of_that_name_is_refused(images: Path, tmp_path: Path) -> None:
    good, bad = image_digest(picture(0)), image_digest(picture(5))
    entries = [{"file": "0.png", "caption": "zero", "sha256": good}, {"file": "2.png", "caption": "two", "sha256": bad}]
    first = lines(tmp_path / "a" / "captions.jsonl", entries)
    second = lines(tmp_path / "b" / "captions.jsonl", [{"file": f"{n}.png", "caption": "x"} for n in range(3)])
    contest = read_contest(images, str(first), str(second), CAPTION)
    assert [item.key for item in contest.comparisons] == ["0.png"] and contest.names == ("a", "b")
    reasons = {failure.what: failure.reason for failure in contest.failures}
    assert reasons == {
        "a: below/1.png": "no caption",
        "a: 2.png": "its caption was made for another picture of that name",
    }


def test_captions_of_a_result(images: Path, tmp_path: Path) -> None:
    content = make_result(
        same_columns([0.5] * 3), ["zero", None, "two"], digests=[image_digest(picture(0)), "", "stale"]
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps(content))
    other = write_captions(tmp_path / "b.jsonl", ["a", "b", "c"])
    contest = read_contest(images, str(tmp_path / "run" / "result.json"), f"b={other}", CAPTION)
    assert contest.names == ("run", "b") and [(item.first, item.second) for item in contest.comparisons] == [
        ("zero", "a")
    ]
    assert {failure.what for failure in contest.failures} == {"run: below/1.png", "run: 2.png"}


def test_pictures_of_a_run_or_of_a_folder(images: Path, tmp_path: Path) -> None:
    for index, path in enumerate(
        ("run/pictures/recon_0.png", "run/pictures/recon_1.png", "b/0.png", "b/1.jpg", "b/x.png")
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        picture(10 + index).save(tmp_path / path)
    (tmp_path / "run" / "result.json").write_text("{}")
    expected = [("0.png", "recon_0.png", "0.png"), ("below/1.png", "recon_1.png", "1.jpg")]
    for first in ("run", "run/pictures", "run/result.json"):
        contest = read_contest(images, str(tmp_path / first), str(tmp_path / "b"), RECONSTRUCTION)
        found = [(item.key, item.first.path.name, item.second.path.name) for item in contest.comparisons]  # type: ignore[union-attr]
        assert sorted(found) == expected
        item = contest.comparisons[0]
        assert item.second.digest == image_digest(decode_image(item.second.path))  # type: ignore[union-attr]
    reasons = [failure.reason for failure in contest.failures]
    assert reasons == ["nothing was generated for it", "no reference of that name", "nothing was generated for it"]
    with pytest.raises(ConfigError, match=r"no folder .*pass the folder of its pictures"):
        read_contest(images, str(tmp_path / "run" / "pictures" / "result.json"), str(tmp_path / "b"), RECONSTRUCTION)


def test_a_broken_source_is_told_once_and_a_broken_candidate_by_its_name(images: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            picture(20 + index).save(tmp_path / name / f"{index}.png")
    (images / "0.png").write_bytes(b"no picture")
    (tmp_path / "b" / "2.png").write_bytes(b"no picture")
    contest = read_contest(images, str(tmp_path / "a"), str(tmp_path / "b"), RECONSTRUCTION)
    assert [item.key for item in contest.comparisons] == ["below/1.png"]
    assert [failure.what for failure in contest.failures] == [str(images / "0.png"), f"b: {tmp_path / 'b' / '2.png'}"]


def test_identical_candidates_are_known(images: Path, tmp_path: Path) -> None:
    first = write_captions(tmp_path / "a.jsonl", ["same", "one", "two"])
    second = write_captions(tmp_path / "b.jsonl", ["same", "uno", "two "])
    contest = read_contest(images, str(first), str(second), CAPTION)
    assert contest.names == ("a", "b")
    assert {item.key: item.identical for item in contest.comparisons} == {
        "0.png": True,
        "below/1.png": False,
        "2.png": False,
    }


def test_what_cannot_be_compared(images: Path, tmp_path: Path) -> None:
    captions = write_captions(tmp_path / "a.jsonl", ["x"] * 3)
    empty, other = (write_captions(tmp_path / name, []) for name in ("none.jsonl", "other.jsonl"))
    other.write_text('{"file": "elsewhere.png", "caption": "x"}\n')
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="two are named"):
        read_contest(images, str(captions), str(captions), CAPTION)
    with pytest.raises(ConfigError, match=r"no picture of .* has both, for example b: 0.png: no caption"):
        read_contest(images, f"a={captions}", f"b={other}", CAPTION)
    with pytest.raises(DataError, match=r"none\.jsonl: holds no caption"):
        read_contest(images, f"a={captions}", f"b={empty}", CAPTION)
    with pytest.raises(ConfigError, match="no pictures in"):
        read_contest(tmp_path / "empty", f"a={captions}", f"b={captions}", CAPTION)
    with pytest.raises(DataError, match="cannot read captions"):
        read_contest(images, f"a={captions}", f"b={tmp_path / 'empty'}", CAPTION)
    with pytest.raises(DataError, match="row 0"):
        (tmp_path / "bad.jsonl").write_text("[]\n")
        read_contest(images, f"a={captions}", f"b={tmp_path / 'bad.jsonl'}", CAPTION)
