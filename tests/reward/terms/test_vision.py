# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardScorer, get_reward
from verl_uae.reward.terms.features import Preprocess

NAMES = ("dinov2", "dinov3", "siglip2")
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = [28, 9, (50, 40), (31, 77)]


def _build(name: str) -> tuple[Any, Any]:
    """A random network of the real class, and the stock image processor with small sizes."""
    import transformers as t

    square = {"height": 28, "width": 28}
    if name == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**TOWER, mlp_ratio=2, image_size=28, patch_size=7))
        cut = {"size": {"shortest_edge": 32}, "crop_size": square}
        return model, t.BitImageProcessor(
            **cut, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3
        )
    if name == "dinov3":
        config = t.DINOv3ViTConfig(**TOWER, image_size=28, patch_size=7, num_register_tokens=3)
        return t.DINOv3ViTModel(config), t.DINOv3ViTImageProcessor(size=square)
    text = {**TOWER, "vocab_size": 50, "max_position_embeddings": 8}
    config = t.SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": 28, "patch_size": 7})
    return t.SiglipModel(config), t.SiglipImageProcessor(size=square, resample=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in NAMES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, processor = _build(name)
            # Random weights are so small that all pictures look alike; larger ones tell them apart.
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(3.0)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        processor.save_pretrained(found[name])
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_preprocess_against_the_stock_processor(make_batch, folders, name: str, size) -> None:
    """DINOv3's resizes floats: equal up to rounding. The others resize 8-bit pictures: 1.25 levels, by std.

    Near black and white a stock processor also cuts the cubic's overshoot early, which is seen in single pixels.
    """
    from transformers import AutoImageProcessor

    stock = AutoImageProcessor.from_pretrained(folders[name])
    ours = get_reward(name)(model=str(folders[name])).preprocess
    level = 1e-5 if name == "dinov3" else 1.25 / 255.0 / min(ours.std)
    noise = make_batch(2, size=size).source_B3HW
    for images, statistic in ((0.3 + 0.4 * noise, torch.max), (noise, torch.median)):
        levels = (images * 255.0).round()
        expected = stock(images=[image.byte() for image in levels], return_tensors="pt")["pixel_values"]
        found = ours(levels / 255.0)
        assert found.shape == expected.shape == (2, 3, 28, 28)
        assert statistic((found - expected).abs()).item() < level


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_holds_no_more_memory_than_it_counts(make_batch, folders, name: str) -> None:
    """DINO's class token is a view of all tokens."""
    scorer = RewardScorer([(name, 1.0, {"model": str(folders[name])})], source_cache_bytes=2**20)
    scorer.score(make_batch(2))
    cache = scorer._encodings._cache
    stages = [stage for entry in cache.values() for stages in entry.values() for stage in stages]
    assert len(stages) == 2 and sum(stage.untyped_storage().nbytes() for stage in stages) == cache.currsize


def _tokens(name: str, folder: Path, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pooled vector and patch tokens from the whole model as transformers' AutoModel loads it."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    leading = {"dinov2": 1, "dinov3": 4, "siglip2": 0}[name]
    with torch.no_grad():
        if name == "siglip2":
            output = model.vision_model(pixel_values=pixels)
            pooled = output.pooler_output
        else:
            output = model(pixel_values=pixels)
            pooled = output.last_hidden_state[:, 0]
    patches = output.last_hidden_state[:, leading:]
    assert patches.shape[1] == 16
    return pooled.double().numpy(), patches.flatten(1).double().numpy()


@pytest.mark.parametrize("name", NAMES)
def test_score_against_the_whole_model(make_batch, folders, name: str) -> None:
    batch = make_batch(4, size=(40, 52))
    preprocess = get_reward(name)(model=str(folders[name])).preprocess
    sides = [
        _tokens(name, folders[name], preprocess(images)) for images in (batch.source_B3HW, batch.reconstruction_B3HW)
    ]
    for mode, (a, b) in zip(("pooled", "maps"), zip(*sides, strict=True), strict=True):
        expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        with torch.no_grad():
            found = get_reward(name)(model=str(folders[name]), mode=mode).score(batch).numpy()
        assert np.allclose(found, expected, atol=1e-5)
        assert np.ptp(expected) > 1e-5  # The tiny model does tell these pictures apart.


@pytest.mark.parametrize("name", NAMES)
def test_in_the_scorer_and_differentiable(make_batch, folders, name: str) -> None:
    batch = make_batch(3, size=20)
    batch.reconstruction_B3HW[0] = batch.source_B3HW[0]
    params = {"model": str(folders[name]), "dtype": "bfloat16"}
    records = RewardScorer([(name, 1.0, params)]).score(batch)
    assert all(record.ok for record in records)
    assert records[0].terms[name] == pytest.approx(1.0, abs=1e-6)
    images = batch.reconstruction_B3HW[1:].clone().requires_grad_()
    term = get_reward(name)(model=str(folders[name]))
    term.score(type(batch)(batch.source_B3HW[1:], images)).sum().backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0.0).all()


@pytest.mark.parametrize("name", NAMES)
def test_without_processor_settings_the_stock_ones_are_used(folders, tmp_path: Path, name: str) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folders[name] / file, tmp_path / file)
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    expected = {
        "dinov2": Preprocess(resize=256, crop=(224, 224), **imagenet),
        "dinov3": Preprocess(resize=(28, 28), interpolation="bilinear", **imagenet),
        "siglip2": Preprocess(resize=(28, 28), **half),
    }[name]
    assert get_reward(name)(model=str(tmp_path)).preprocess == expected


@pytest.mark.parametrize("name", NAMES)
def test_other_or_absent_models_are_refused(folders, tmp_path: Path, name: str) -> None:
    other = folders[NAMES[(NAMES.index(name) + 1) % 3]]
    for model in (str(other), str(tmp_path / "absent")):
        with pytest.raises(ConfigError, match=rf"uae.reward.terms.{name}.model"):
            get_reward(name)(model=model)
    for params in ({"mode": "cls"}, {"dtype": "int8"}):
        with pytest.raises(ConfigError, match=rf"here.{next(iter(params))}"):
            get_reward(name).check_params({"model": str(folders[name]), **params}, "here")


def test_relatives_of_another_architecture_are_refused(tmp_path: Path) -> None:
    """Registers would be dropped without a word."""
    import transformers as t

    naflex = {**TOWER, "patch_size": 7, "num_patches": 16}
    models = {
        "dinov2": t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**TOWER, image_size=28, patch_size=7)),
        "siglip2": t.Siglip2VisionModel(t.Siglip2VisionConfig(**naflex)),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match=rf"uae.reward.terms.{name}.model"):
            get_reward(name)(model=str(tmp_path / name))


def test_pooled_needs_the_pooling_head(folders, tmp_path: Path) -> None:
    shutil.copytree(folders["siglip2"], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["vision_use_head"] = False
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no pooling head"):
        get_reward("siglip2")(model=str(tmp_path / "model"))
    get_reward("siglip2")(model=str(tmp_path / "model"), mode="maps")
