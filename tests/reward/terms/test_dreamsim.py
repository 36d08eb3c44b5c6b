# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reward.terms.golden_dreamsim import FILE, VARIANTS, merged_state, metadata, oblong, pictures
from verl_uae.errors import ConfigError
from verl_uae.reward import RewardBatch, RewardScorer, TermSpec, get_reward
from verl_uae.reward.terms.dreamsim import Dreamsim, dreamsim_distance

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small random networks as the script of docs/rewards.md writes them."""
    folder = tmp_path_factory.mktemp("dreamsim")
    for variant in VARIANTS:
        save_file(merged_state(variant), folder / f"{variant}.safetensors", metadata(variant))
    return {variant: folder / f"{variant}.safetensors" for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_against_the_published_package(files: dict[str, Path], variant: str) -> None:
    """Its own loaders, adapters and networks gave the golden numbers: tests/reward/terms/golden_dreamsim.py."""
    term = Dreamsim(str(files[variant]))
    a_B3HW, b_B3HW = pictures()
    with torch.no_grad():
        found = term.score(RewardBatch(a_B3HW, b_B3HW)).numpy()
        embedding = term.embed(a_B3HW)[0][0]
    assert np.allclose(found, GOLDEN[variant]["distances"], rtol=2e-3, atol=2e-6)
    centred = embedding - embedding.mean()
    assert np.allclose((centred / centred.norm())[:4].numpy(), GOLDEN[variant]["embedding"], atol=2e-5)
    # The three distances differ by far more than the tolerance.
    assert min(GOLDEN[variant]["distances"]) > 1e-5 and np.ptp(GOLDEN[variant]["distances"]) > 1e-3


def test_resizing_is_that_of_the_published_package(files: dict[str, Path]) -> None:
    """Up to the 8-bit rounding of Pillow's result."""
    term = Dreamsim(str(files["open_clip_vitb32"]))
    a_B3HW, b_B3HW = (
        torch.stack([torch.from_numpy(np.array(img)).permute(2, 0, 1) / 255.0 for img in oblong(images)])
        for images in pictures()
    )
    assert a_B3HW.shape == (3, 3, 60, 90)
    with torch.no_grad():
        found = term.score(RewardBatch(a_B3HW, b_B3HW)).numpy()
    assert np.allclose(found, GOLDEN["open_clip_vitb32"]["resized"], rtol=0.02, atol=1e-4)


def test_in_the_scorer_it_is_a_penalty_and_its_sources_are_kept(make_batch, files: dict[str, Path]) -> None:
    batch = make_batch(2, size=40)
    batch.reconstruction_B3HW[0] = batch.source_B3HW[0]
    spec = ("dreamsim", 2.0, {"weights": str(files["clip_vitb32"])})
    scorer = RewardScorer([spec], source_cache_bytes=2**20, chunk_size=2)
    same, other = scorer.score(batch)
    assert same.ok and same.value == pytest.approx(0.0, abs=1e-5)
    assert other.value is not None and other.value == pytest.approx(-2.0 * other.terms["dreamsim"]) and other.value < 0
    assert scorer.score(batch)[1].value == other.value
    assert scorer.counters.source_hits == scorer.counters.source_misses == 2


def test_differentiable_and_in_another_dtype(make_batch, files: dict[str, Path]) -> None:
    batch = make_batch(2, size=(30, 44))
    images = batch.reconstruction_B3HW.clone().requires_grad_()
    term = Dreamsim(str(files["clip_vitb32"]))
    distance = term.score(RewardBatch(batch.source_B3HW, images))
    distance.sum().backward()
    assert images.grad is not None and torch.isfinite(images.grad).all()
    assert (images.grad.abs().amax(dim=(1, 2, 3)) > 0.0).all()
    with torch.no_grad():
        half = Dreamsim(str(files["clip_vitb32"]), dtype="bfloat16").score(batch)
    assert half.dtype == torch.float32 and torch.allclose(half, distance.detach(), rtol=0.2, atol=2e-3)


def test_distance_is_one_minus_the_correlation_of_the_features() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(3.0, 1.0, (4, 50)), rng.normal(-1.0, 2.0, (4, 50))
    expected = [1.0 - np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    assert np.allclose(dreamsim_distance(torch.tensor(a), torch.tensor(b)).numpy(), expected, atol=1e-6)
    flat = dreamsim_distance(torch.zeros(1, 5), torch.rand(1, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.isnan(flat).all()


def test_what_is_not_the_published_weights_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    pickled = tmp_path / "weights.safetensors"
    torch.save(merged_state("dino_vitb16"), pickled)
    with pytest.raises(ConfigError, match=r"uae\.reward\.terms\.dreamsim\.weights.*safetensors"):
        get_reward("dreamsim")(weights=str(pickled))
    with pytest.raises(ConfigError, match="there is no such file"):
        Dreamsim(str(tmp_path / "absent.safetensors"))
    with pytest.raises(ConfigError, match=r"here\.dtype"):
        Dreamsim.check_params({"weights": str(files["dino_vitb16"]), "dtype": "int8"}, "here")
    state = load_file(files["dino_vitb16"])
    cases = {
        "known are": (state, {"model_type": "dinov2_vitb14", "feat_type": "cls"}),
        "lacks weights of dino": ({k: v for k, v in state.items() if k != "0.norm.bias"}, metadata("dino_vitb16")),
        "unknown": ({**state, "0.head.weight": torch.zeros(1)}, metadata("dino_vitb16")),
        "other shapes": ({**state, "0.blocks.3.mlp.fc2.bias": torch.zeros(5)}, metadata("dino_vitb16")),
        "belongs to no network": ({**state, "1.norm.bias": torch.zeros(1)}, metadata("dino_vitb16")),
    }
    for message, (weights, said) in cases.items():
        save_file(weights, tmp_path / "other.safetensors", said)
        with pytest.raises(ConfigError, match=message):
            Dreamsim(str(tmp_path / "other.safetensors"))
    save_file(state, tmp_path / "plain.safetensors")
    with pytest.raises(ConfigError, match="known are"):
        Dreamsim(str(tmp_path / "plain.safetensors"))


def test_two_files_are_two_networks(files: dict[str, Path]) -> None:
    one, other = ({"weights": str(files[name])} for name in ("dino_vitb16", "open_clip_vitb32"))
    scorer = RewardScorer([("dreamsim", 1.0, one), TermSpec(name="dreamsim", params=other, label="other")])
    assert scorer._summed[0].term.model is not scorer._summed[1].term.model
