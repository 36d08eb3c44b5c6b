# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardScorer, TermSpec
from verl_uae.reward.terms.features import Preprocess
from verl_uae.reward.terms.vision import CLIP_MEAN, CLIP_STD, ClipSimilarity

SIZES = [28, 32, 30, 9, 1, (50, 40), (31, 77), (100, 35)]


def _by_pillow(image: np.ndarray, resize: int, crop: int) -> np.ndarray:
    """CLIP's preprocessing of (3, H, W) in [0, 1], by Pillow on float channels and NumPy."""
    height, width = image.shape[1:]
    short, long = min(height, width), max(height, width)
    new_h, new_w = (int(resize * long / short), resize) if width <= height else (resize, int(resize * long / short))
    channels = [
        np.asarray(Image.fromarray(channel).resize((new_w, new_h), Image.Resampling.BICUBIC)) for channel in image
    ]
    top, left = (new_h - crop) // 2, (new_w - crop) // 2
    cut = np.clip(np.stack(channels), 0.0, 1.0)[:, top : top + crop, left : left + crop]
    return (cut - np.array(CLIP_MEAN)[:, None, None]) / np.array(CLIP_STD)[:, None, None]


@pytest.mark.parametrize("size", SIZES)
def test_preprocess_against_pillow(make_batch, size) -> None:
    images = make_batch(2, size=size).source_B3HW
    found = Preprocess(resize=30, crop=(28, 28), mean=CLIP_MEAN, std=CLIP_STD)(images)
    expected = np.stack([_by_pillow(image, 30, 28) for image in images.numpy()])
    assert np.allclose(found.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_preprocess_against_the_stock_processor(make_batch, tiny_clip: Path, size) -> None:
    """Away from black and white the stock processor differs by its 8-bit rounding alone: one level, divided by std.

    Near them it also cuts the cubic's overshoot after the first of two passes, which is seen in single pixels.
    """
    from transformers import CLIPImageProcessor

    stock = CLIPImageProcessor.from_pretrained(tiny_clip)
    ours = ClipSimilarity(str(tiny_clip)).preprocess
    level = 1.01 / 255.0 / min(CLIP_STD)
    noise = make_batch(2, size=size).source_B3HW
    for images, statistic in ((0.3 + 0.4 * noise, torch.max), (noise, torch.median)):
        levels = (images * 255.0).round()
        expected = stock(images=[image.byte() for image in levels], return_tensors="pt")["pixel_values"]
        found = ours(levels / 255.0)
        assert found.shape == expected.shape == (2, 3, 28, 28)
        assert statistic((found - expected).abs()).item() < level


def _tokens(folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image embeddings and patch tokens from the whole CLIP model, not the vision-only class the term uses."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        output = model.vision_model(pixel_values=torch.from_numpy(pixels).float())
        embeddings = model.visual_projection(output.pooler_output)
    return embeddings.double().numpy(), output.last_hidden_state[:, 1:].flatten(1).double().numpy()


@pytest.mark.parametrize("size", [28, (40, 52)])
def test_score_against_the_whole_model(make_batch, tiny_clip: Path, size) -> None:
    batch = make_batch(4, size=size)
    sides = [
        _tokens(tiny_clip, np.stack([_by_pillow(image, 30, 28) for image in images.numpy()]))
        for images in (batch.source_B3HW, batch.reconstruction_B3HW)
    ]
    for mode, (a, b) in zip(("pooled", "maps"), zip(*sides, strict=True), strict=True):
        expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        with torch.no_grad():
            found = ClipSimilarity(str(tiny_clip), mode=mode).score(batch).numpy()
        assert np.allclose(found, expected, atol=1e-5)
        assert np.ptp(expected) > 1e-4  # The tiny model does tell these pictures apart.


def test_extremes_stay_in_bounds(make_batch, tiny_clip: Path) -> None:
    batch = make_batch(3, size=1)
    batch.reconstruction_B3HW[0] = batch.source_B3HW[0]
    batch.reconstruction_B3HW[1], batch.source_B3HW[1] = 0.0, 1.0
    records = RewardScorer([("clip", 1.0, {"model": str(tiny_clip)})]).score(batch)
    assert all(record.ok and -1.0 <= record.value <= 1.0 for record in records)
    assert records[0].value == pytest.approx(1.0, abs=1e-6)


def test_half_precision_network(make_batch, tiny_clip: Path) -> None:
    batch = make_batch(2, size=28)
    with torch.no_grad():
        full, half = (ClipSimilarity(str(tiny_clip), dtype=dtype).score(batch) for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32 and torch.allclose(full, half, atol=0.05)


def test_without_processor_settings_clips_own_are_used(tiny_clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_clip / name, tmp_path / name)
    own = Preprocess(resize=28, crop=(28, 28), mean=CLIP_MEAN, std=CLIP_STD)
    assert ClipSimilarity(str(tmp_path)).preprocess == own
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 30, "width": 40}, "resample": 2}')
    squeezed = dataclasses.replace(own, resize=(30, 40), interpolation="bilinear")
    assert ClipSimilarity(str(tmp_path)).preprocess == squeezed
    for config in ('{"do_normalize": false}', '{"do_center_crop": false}', '{"resample": 1}'):
        (tmp_path / "preprocessor_config.json").write_text(config)
        with pytest.raises(ConfigError, match="not that of clip"):
            ClipSimilarity(str(tmp_path))


def test_an_incomplete_model_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_clip / "model.safetensors")
    del weights["visual_projection.weight"]
    shutil.copytree(tiny_clip, tmp_path / "model")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError,
        match=r"as a CLIPVisionModelWithProjection model: is not a whole .* it lacks visual_projection\.weight$",
    ):
        ClipSimilarity(str(tmp_path / "model"))


def test_unsafe_or_absent_models_are_refused(tiny_clip: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps(json.loads((tiny_clip / "config.json").read_text())))
    torch.save({}, pickled / "pytorch_model.bin")
    for model in (str(pickled), str(tmp_path / "absent")):
        with pytest.raises(ConfigError, match=r"uae.reward.terms.clip.model"):
            ClipSimilarity(model)
    for params in ({"mode": "cls"}, {"dtype": "int8"}):
        with pytest.raises(ConfigError, match=rf"here.{next(iter(params))}"):
            ClipSimilarity.check_params({"model": str(tiny_clip), **params}, "here")


def test_two_models_in_one_scorer_are_not_mixed_up(make_batch, tiny_clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: weight.flip(0) for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    params = [{"model": str(folder)} for folder in (tiny_clip, other)]
    batch = make_batch(3)
    alone = [[record.value for record in RewardScorer([("clip", 1.0, given)]).score(batch)] for given in params]
    both = [TermSpec(name="clip", params=given, label=label) for given, label in zip(params, "ab", strict=True)]
    found = RewardScorer(both).score(batch)
    assert [[record.terms[label] for record in found] for label in "ab"] == alone and alone[0] != alone[1]


def test_a_network_is_shared_for_one_revision_and_dtype_alone(tiny_clip: Path) -> None:
    # A folder has no revisions; what is shared must not depend on that.
    variants = [{}, {"revision": "a"}, {"revision": "b"}, {"dtype": "bfloat16"}]
    assert len({ClipSimilarity(str(tiny_clip), **given).settings for given in variants}) == 4
    assert ClipSimilarity(str(tiny_clip), mode="maps").settings == ClipSimilarity(str(tiny_clip)).settings


def test_outputs_nobody_asked_for_are_not_kept(make_batch, tiny_clip: Path) -> None:
    """Patch tokens are some hundred times as large as what is pooled, and would fill the cache."""
    term, images = ClipSimilarity(str(tiny_clip)), make_batch(1).source_B3HW
    for modes in ({"pooled"}, {"maps"}, {"pooled", "maps"}):
        assert set(term.outputs(images, modes)) == modes
