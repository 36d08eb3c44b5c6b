# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.bench import reference
from tests.bench.results import make_result, same_columns
from verl_uae.bench.backbones import Backbone, ImageEncoder, choose
from verl_uae.bench.pairs import PicturePair, find_pairs
from verl_uae.bench.results import Failure, interval, resampled_means
from verl_uae.bench.unified import SECTION, rank, read_unified, score, unified_result, write_report
from verl_uae.data.images import decode_image, image_digest
from verl_uae.errors import DataError
from verl_uae.files import write_json

Folders = tuple[Path, Path]
NAMES = ["clip", "longclip", "dinov2", "dinov3"]


def measure(folders: Folders, backbones: list[Backbone], **options: Any) -> dict[str, Any]:
    return unified_result(score(find_pairs(*folders), backbones, batch_size=3), resamples=200, **options)


def test_scores_are_those_of_an_independent_computation(
    folders: Folders, backbones: list[Backbone], backbone_folders: dict[str, Path]
) -> None:
    content = measure(folders, backbones, seed=3)
    generated, originals = folders
    expected = {
        name: {
            f"recon_{index}.png": reference.cosine(
                *(
                    reference.feature(name, backbone_folders[name], Image.open(path).convert("RGB"))
                    for path in (originals / f"{index}.png", generated / f"recon_{index}.png")
                )
            )
            for index in range(5)
        }
        for name in NAMES
    }
    means = {}
    for name in NAMES:
        close = 2e-3 if name == "dinov3" else 1e-5
        found, wanted = content["similarities_by_model"][name], expected[name]
        assert found.keys() == wanted.keys()
        assert max(abs(found[key] - wanted[key]) for key in wanted) < close
        assert max(wanted.values()) - min(wanted.values()) > 5 * close, "too alike to test anything"
        values = np.array(list(found.values()))
        assert content["statistics_by_model"][name] == {
            "total_images": 5,
            "valid_pairs": 5,
            "average_similarity": pytest.approx(values.mean()),
            "min_similarity": values.min(),
            "max_similarity": values.max(),
        }
        means[name] = values.mean()
    assert list(content) == ["model_types", "similarities_by_model", "statistics_by_model", "summary", SECTION]
    assert content["model_types"] == NAMES
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    assert content["summary"] == {
        "models_used": NAMES,
        "average_scores_by_model": pytest.approx(means),
        "overall_average": pytest.approx(np.mean(list(means.values()))),
        "best_model": [best, pytest.approx(means[best])],
        "worst_model": [worst, pytest.approx(means[worst])],
    }
    section = content[SECTION]
    assert section["complete"] and section["failures"] == [] and section["partial_overall"] is None
    assert section["overall"] == pytest.approx(100 * sum(means.values()) / 4)
    assert section["held_out"] == pytest.approx(100 * sum(means[name] for name in NAMES[1:]) / 3)
    _check_intervals(content)


def _check_intervals(content: dict[str, Any]) -> None:
    table_NK = np.array([list(content["similarities_by_model"][name].values()) for name in NAMES]).T
    means_RK = 100 * resampled_means(table_NK, 3, 200)
    found = content[SECTION]["confidence_intervals"]
    assert (found["level"], found["resamples"]) == (0.95, 200)
    assert found["overall"] == pytest.approx(interval(means_RK.mean(axis=1)))
    assert found["held_out"] == pytest.approx(interval(means_RK[:, 1:].mean(axis=1)))
    for index, name in enumerate(NAMES):
        assert found["by_model"][name] == pytest.approx(interval(means_RK[:, index]))
    assert content[SECTION]["seeds"]["bootstrap"] == 3


def test_equal_pictures_score_100(folders: Folders, backbones: list[Backbone], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "same")
    section = measure((tmp_path / "same", folders[1]), backbones)[SECTION]
    assert section["complete"] and section["overall"] == pytest.approx(100.0, abs=1e-4)


def test_captions_are_counted_and_kept(folders: Folders, backbones: list[Backbone]) -> None:
    clip = backbones[:1]
    captions = {f"{index}.png": "red " * (index + 1) for index in range(5)}
    section = measure(folders, clip, captions=captions, drawing={"steps": 2})[SECTION]
    assert section["mean_words"] == 3.0 and section["drawing"] == {"steps": 2}
    digests = [image_digest(decode_image(folders[1] / f"{index}.png")) for index in range(5)]
    assert section["pairs"][1] == {
        "name": "recon_1.png",
        "reference": "1.png",
        "sha256": digests[1],
        "caption": "red red ",
        "words": 2,
    }
    assert section["references"] == hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()
    del captions["4.png"]
    # A mean over fewer captions would be another number under the same name.
    assert measure(folders, clip, captions=captions)[SECTION]["mean_words"] is None


def test_a_failed_pair_makes_the_result_incomplete(folders: Folders, backbones: list[Backbone]) -> None:
    whole = measure(folders, backbones)
    (folders[0] / "recon_2.png").write_bytes(b"no picture")
    content = measure(folders, backbones)
    section = content[SECTION]
    assert not section["complete"] and section["overall"] is None and section["held_out"] is None
    assert section["confidence_intervals"]["overall"] is None
    (failure,) = section["failures"]
    assert failure["what"] == str(folders[0] / "recon_2.png") and "not an image" in failure["reason"]
    for name in NAMES:
        left = {**whole["similarities_by_model"][name], "recon_2.png": None}
        assert content["similarities_by_model"][name] == pytest.approx(left, abs=1e-6)
        assert content["statistics_by_model"][name]["total_images"] == 5
        assert content["statistics_by_model"][name]["valid_pairs"] == 4
    means = [np.mean([value for value in content["similarities_by_model"][n].values() if value]) for n in NAMES]
    assert section["partial_overall"] == pytest.approx(100 * np.mean(means))


def test_an_original_without_reconstruction_makes_the_result_incomplete(
    folders: Folders, backbones: list[Backbone]
) -> None:
    (folders[0] / "recon_2.png").unlink()
    content = measure(folders, backbones)
    assert content["statistics_by_model"]["clip"]["total_images"] == 4  # the official scorer does not notice
    assert not content[SECTION]["complete"] and content[SECTION]["overall"] is None
    assert content[SECTION]["failures"][0]["reason"] == "nothing was generated for it"


def test_a_failed_backbone_makes_the_result_incomplete(
    folders: Folders, backbones: list[Backbone], tmp_path: Path
) -> None:
    lost = [
        dataclasses.replace(entry, source=str(tmp_path / "none")) if entry.name == "dinov2" else entry
        for entry in backbones
    ]
    content = measure(folders, lost)
    assert content["model_types"] == NAMES and content["summary"]["models_used"] == ["clip", "longclip", "dinov3"]
    assert "dinov2" not in content["similarities_by_model"]
    section = content[SECTION]
    assert not section["complete"] and section["overall"] is None
    assert [failure["what"] for failure in section["failures"]] == ["dinov2"]
    assert section["partial_overall"] == pytest.approx(100 * content["summary"]["overall_average"])


def test_a_backbone_that_breaks_while_it_runs_costs_only_its_own_values(
    folders: Folders, backbones: list[Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises: here the network runs out of host memory at the third pair."""
    calls = 0
    encode = ImageEncoder.encode

    def breaks(self: ImageEncoder, images: Any) -> torch.Tensor:
        nonlocal calls
        calls += self.backbone.name == "dinov2"
        if self.backbone.name == "dinov2" and calls > 4:
            raise MemoryError
        return encode(self, images)

    monkeypatch.setattr(ImageEncoder, "encode", breaks)
    content = unified_result(score(find_pairs(*folders), backbones, batch_size=1))
    assert content["summary"]["models_used"] == ["clip", "longclip", "dinov3"]
    (failure,) = content[SECTION]["failures"]
    assert failure["what"] == "dinov2" and failure["reason"].startswith("raised MemoryError")


def test_backbones_not_asked_for_or_without_checkpoint_are_failures(
    folders: Folders, backbone_folders: dict[str, Path]
) -> None:
    words = [f"{name}={path}" for name, path in backbone_folders.items() if name != "longclip"]
    section = measure(folders, choose(words, ["clip", "longclip", "dinov2"]))[SECTION]
    assert {failure["what"]: failure["reason"] for failure in section["failures"]} == {
        "longclip": "longclip: no checkpoint given: pass --backbone longclip=FOLDER",
        "dinov3": "not asked for",
    }
    assert section["overall"] is None and set(section["means"]) == {"clip", "dinov2"}


def test_a_backbone_without_direction_is_a_failure_and_not_a_zero(
    folders: Folders, backbones: list[Backbone], tmp_path: Path
) -> None:
    shutil.copytree(str(backbones[1].source), tmp_path / "zero")
    weights = load_file(tmp_path / "zero" / "model.safetensors")
    weights["visual_projection.weight"].zero_()
    save_file(weights, tmp_path / "zero" / "model.safetensors", metadata={"format": "pt"})
    backbones[1] = dataclasses.replace(backbones[1], source=str(tmp_path / "zero"))
    content = measure(folders, backbones)
    assert set(content["similarities_by_model"]["longclip"].values()) == {None}
    assert "longclip" not in content["statistics_by_model"]
    section = content[SECTION]
    assert len(section["failures"]) == 5 and "zero or not finite" in section["failures"][0]["reason"]
    assert section["overall"] is None and "longclip" not in section["means"]


def test_no_pair_at_all(folders: Folders, backbones: list[Backbone]) -> None:
    for path in folders[0].iterdir():
        path.write_bytes(b"no picture")
    content = measure(folders, backbones)
    assert content["summary"] == {} and content["statistics_by_model"] == {}
    assert not content[SECTION]["complete"] and content[SECTION]["partial_overall"] is None


def test_results_survive_the_file_and_others_are_refused(
    folders: Folders, backbones: list[Backbone], tmp_path: Path
) -> None:
    content = measure(folders, backbones[:1], captions={"0.png": "größer\u2028\udc80"})
    write_json(tmp_path / "r.json", content)
    assert read_unified(tmp_path / "r.json") == content
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["r.json"]
    del content[SECTION]
    for text in (json.dumps(content), "[]", "{", json.dumps({SECTION: {"format": 0}})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad\.json"):
            read_unified(tmp_path / "bad.json")


CAPTION = '<script>alert("1")</script> & <img src=x onerror=y>'


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def write(root: Path, content: dict[str, Any], count: int = 8) -> Page:
    pairs = [
        PicturePair(root / pair["name"], root / pair["reference"], pair["reference"], pair["sha256"])
        for pair in content["verl_uae"]["pairs"]
    ]
    write_report(root / "report.html", content, pairs, count)
    return Page(root / "report.html")


@pytest.fixture
def root(tmp_path: Path, save: Callable[..., Path]) -> Path:
    for index in range(5):
        save(tmp_path / f"{index}.png", index)
        save(tmp_path / f"recon_{index}.png", index + 10)
    return tmp_path


def test_worst_and_best_pairs_in_order(root: Path) -> None:
    content = make_result(same_columns([0.5, 0.1, 0.9, 0.3, 0.7]), [CAPTION] * 5)
    assert [name for name, _ in rank(content)] == [f"recon_{index}.png" for index in (1, 3, 0, 4, 2)]
    page = write(root, content, count=2)
    shown = re.findall(r"<b>([\d.]+)</b> (\d).png", page.source)
    assert shown == [("10.00", "1"), ("30.00", "3"), ("90.00", "2"), ("70.00", "4")]
    # With room for all, no pair is shown twice.
    assert re.findall(r"</b> (\d).png", write(root, content).source) == ["1", "3", "0", "2", "4"]
    assert "50.00" in page.text and "Overall" in page.text and "Incomplete" not in page.text


def test_captions_are_escaped_and_nothing_is_loaded(root: Path) -> None:
    page = write(root, make_result(same_columns([0.5] * 5), [CAPTION] * 5))
    assert CAPTION in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 10 and all(entry["src"].startswith("data:image/png;base64,") for entry in images)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(entry["content"] for tag, entry in page.tags if "http-equiv" in entry)
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "http://" not in page.source and "https://" not in page.source


def test_names_of_files_are_escaped(root: Path, save: Callable[..., Path]) -> None:
    content = make_result(same_columns([0.5] * 5))
    content["verl_uae"]["pairs"][0]["reference"] = save(root / "<i>&amp;.png").name
    page = write(root, content)
    assert "<i>&amp;.png" in page.text and "i" not in {tag for tag, _ in page.tags}


def test_failures_are_listed_and_pairs_without_value_are_not_shown(root: Path) -> None:
    content = make_result(
        {"clip": [0.5, None, 0.9, 0.3, 0.7], "dinov2": [0.5] * 5}, failures=[Failure("<b.png>", "no & no")]
    )
    page = write(root, content)
    assert "<b.png>: no & no" in page.text and "there is no overall score" in page.text
    assert "</b> 1.png" not in page.source and "4 of 5" in page.text and "Overall" not in page.text
