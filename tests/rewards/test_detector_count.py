# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""With a real YOLOS that knows four pictures: 250 steps of its own loss, some two seconds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from tests.rewards.conftest import ROOT
from verl_uae.reward import RewardScorer

LABELS = ("square", "disc")
Scene = list[tuple[str, int, int]]
TWO_SQUARES: Scene = [("square", 2, 2), ("square", 20, 20)]
ONE_DISC: Scene = [("disc", 2, 20)]
MIXED: Scene = [("square", 20, 2), ("disc", 2, 2), ("disc", 20, 20)]
SCENES = [TWO_SQUARES, ONE_DISC, MIXED, []]


def draw_scene(scene: Scene) -> Image.Image:
    image = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(image)
    for label, x, y in scene:
        box = (x, y, x + 9, y + 9)
        draw.rectangle(box, fill="red") if label == "square" else draw.ellipse(box, fill="blue")
    return image


def _target(scene: Scene) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[(x + 5) / 32, (y + 5) / 32, 10 / 32, 10 / 32] for _, x, y in scene]).reshape(-1, 4)
    return {
        "class_labels": torch.tensor([LABELS.index(label) for label, _, _ in scene], dtype=torch.long),
        "boxes": boxes,
    }


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a YOLOS fitted to SCENES, with its image processor."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    picture = {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 4}
    config = YolosConfig(**width, **picture, use_mid_position_embeddings=False, id2label=dict(enumerate(LABELS)))
    processor = YolosImageProcessor(size={"height": 32, "width": 32}, do_pad=False)
    pixels = processor(images=[draw_scene(scene) for scene in SCENES], return_tensors="pt")["pixel_values"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = YolosForObjectDetection(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # They start at 0, where all detection tokens are the same and stay so.
                if "detection_tokens" in name or "position_embeddings" in name:
                    parameter.normal_(0.0, 0.5)
                elif parameter.ndim > 1:
                    parameter.mul_(4.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(250):
            loss = model(pixel_values=pixels, labels=[_target(scene) for scene in SCENES]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("detector")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _params(detector: Path, **params: object) -> dict:
    return {"path": str(ROOT / "rewards/detector_count.py"), "reward_kwargs": {"model": str(detector), **params}}


def test_the_detector_counts_rightly(example, detector: Path) -> None:
    module = example("detector_count")
    detect = module.load_detector(str(detector), None, "cpu")
    found = detect([draw_scene(scene) for scene in SCENES], threshold=0.5)
    expected = [Counter(label for label, _, _ in scene) for scene in SCENES]
    assert [module.count(detections, 0.5) for detections in found] == expected


def test_scores_of_true_counts(detector: Path, to_batch) -> None:
    pairs = [
        (TWO_SQUARES, TWO_SQUARES, 1.0),
        (MIXED, TWO_SQUARES, 1 / 4),  # One square of at most two, none of two discs.
        (MIXED, ONE_DISC, 1 / 3),
        (ONE_DISC, TWO_SQUARES, 0.0),
        (ONE_DISC, [], 0.0),
        ([], ONE_DISC, 0.0),
        ([], [], 1.0),
    ]
    batch = to_batch([draw_scene(pair[0]) for pair in pairs], [draw_scene(pair[1]) for pair in pairs])
    records = RewardScorer([("custom", 1.0, _params(detector))]).score(batch)
    assert [record.value for record in records] == pytest.approx([value for _, _, value in pairs])
    assert [record.terms["custom/objects"] for record in records] == [len(pair[0]) for pair in pairs]


def test_arithmetic(example) -> None:
    module = example("detector_count")
    assert module.similarity(Counter(cat=3, dog=1), Counter(cat=1, dog=2, car=1)) == (1 + 1) / (3 + 2 + 1)
    assert module.similarity(Counter(), Counter()) == 1.0
    assert module.count([{"label": "cat", "score": 0.5}, {"label": "cat", "score": 0.4}], 0.5) == Counter(cat=1)


def test_faces_counted_by_a_detector_from_a_package(example, to_batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The LBP cascade of scikit-image on a photograph: one face, and two where it stands twice."""
    from skimage import data
    from skimage.feature import Cascade

    module = example("detector_count")
    cascade = Cascade(data.lbp_frontal_face_cascade_filename())
    sizes = {"min_size": (60, 60), "max_size": (160, 160)}

    def detect(images, threshold):
        arrays = [np.asarray(image) for image in images]
        found = [cascade.detect_multi_scale(img=array, scale_factor=1.2, step_ratio=1, **sizes) for array in arrays]
        return [[{"label": "face", "score": 1.0}] * len(faces) for faces in found]

    monkeypatch.setattr(module, "load_detector", lambda model, revision, device: detect)
    face = Image.fromarray(data.astronaut()).crop((110, 0, 366, 256))
    one, two, none = (Image.new("RGB", (512, 256), "gray") for _ in range(3))
    one.paste(face, (0, 0))
    two.paste(face, (0, 0))
    two.paste(face, (256, 0))
    scores = module.count_similarity([two, two, one], [two, one, none], model="")
    assert scores == [{"score": 1.0, "objects": 2.0}, {"score": 0.5, "objects": 2.0}, {"score": 0.0, "objects": 1.0}]


def test_a_model_that_is_missing_costs_the_samples_and_names_itself(to_batch) -> None:
    batch = to_batch([draw_scene([])], [draw_scene([])])
    (record,) = RewardScorer([("custom", 1.0, _params(Path("/no/such/folder")))]).score(batch)
    assert record.status == "error" and "/no/such/folder" in record.reason
