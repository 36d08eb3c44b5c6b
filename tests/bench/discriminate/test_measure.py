# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import alexnet

from verl_uae.bench import discriminate as measure
from verl_uae.bench.damage import scene_world
from verl_uae.bench.discriminate import batch_of, build_scorers, not_measured, score_world, term_specs
from verl_uae.errors import ConfigError

NAN_FILE = '''
def compute_score(data_source, solution_str, ground_truth, extra_info):
    """NaN for a picture that is the same."""
    same = extra_info["source_image"].tobytes() == extra_info["reconstruction"].tobytes()
    return float("nan") if same else 0.5
'''


def test_specs() -> None:
    labels = [spec.label for spec in term_specs([])]
    assert {"pixel", "psnr", "ssim", "efficientnet_lite0, maps"} <= set(labels)
    assert [spec.label for spec in term_specs(["pixel", "[psnr, {name: ssim, held_out: true}]"], defaults=False)] == [
        "pixel", "psnr", "ssim",
    ]  # fmt: skip
    (spec,) = term_specs(["{name: pixel, label: mine, params: {k: 30}}"], defaults=False)
    assert (spec.name, spec.label, spec.params) == ("pixel", "mine", {"k": 30})
    for given in ("{label: x}", "{name: psnr, wieght: 2}", "{name: [", "pixel"):
        with pytest.raises(ConfigError, match="--term"):
            term_specs([given])
    with pytest.raises(ConfigError, match="--term"):
        term_specs([], defaults=False)


def test_what_is_not_measured_is_named() -> None:
    missing = not_measured(term_specs([]))
    assert {"clip", "dinov2", "dreamsim", "lpips"} <= set(missing)
    assert not {"pixel", "custom", "caption_length", "image_text_clip"} & set(missing)


def test_values_are_those_of_the_terms(tmp_path: Path) -> None:
    """PSNR in closed form; a distance is negated; a value that fails is missing."""
    torch.manual_seed(0)
    save_file(alexnet().features.state_dict(), tmp_path / "alexnet.safetensors")
    (tmp_path / "nan.py").write_text(NAN_FILE)
    specs = term_specs(
        [
            "{name: psnr}",
            f"{{name: lpips, params: {{backbone: {tmp_path / 'alexnet.safetensors'}}}}}",
            f"{{name: custom, label: sometimes, params: {{path: {tmp_path / 'nan.py'}}}}}",
        ],
        defaults=False,
    )
    world = scene_world(20, 0)
    seen: list[int] = []
    small = type(world)(
        world.name,
        world.side,
        world.kinds,
        world.pictures[:2],
        world.digests[:2],
        lambda place: world.versions(place)[:6],
    )
    values = score_world(small, build_scorers(specs), lambda what, done, count: seen.append(done))
    assert seen == [1, 2] and {found.shape for found in values.values()} == {(2, 6)}
    versions = world.versions(1)[:6].double().numpy()
    mse = ((versions - versions[0]) ** 2).mean(axis=(1, 2, 3))[1:]
    assert np.allclose(values["psnr"][1, 1:], np.minimum(-10.0 * np.log10(mse), 50.0) / 50.0, atol=1e-5)
    assert values["lpips"][0, 0] == pytest.approx(0.0, abs=1e-6) and (values["lpips"][:, 1:] < 0.0).all()
    assert np.isnan(values["sometimes"][:, 0]).all() and (values["sometimes"][:, 1:] == 0.5).all()


def test_every_version_is_compared_with_the_first() -> None:
    versions = scene_world(20, 0).versions(0)
    batch = batch_of(versions)
    assert len(batch) == len(versions) and torch.equal(batch.reconstruction_B3HW, versions)
    assert all(torch.equal(source, versions[0]) for source in batch.source_B3HW)


def test_pairs_come_round_without_repeating_a_source() -> None:
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [measure.pairs_of(images, repetition, 3) for repetition in range(3)]
    sources = [source for batch in batches for source in batch.source_B3HW]
    assert all(torch.equal(source, images[index % 5]) for index, source in enumerate(sources))
    assert all(not torch.equal(batch.source_B3HW, batch.reconstruction_B3HW) for batch in batches)


def test_terms_take_turns_and_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by one that counts its readings: every call takes one second."""
    ticks = itertools.count()
    monkeypatch.setattr(measure.time, "process_time", lambda: float(next(ticks)))
    scorers = build_scorers(term_specs(["{name: pixel}", "{name: psnr}", "{name: ssim}"], defaults=False), chunk_size=2)
    calls: list[str] = []
    for label, scorer in scorers.items():
        monkeypatch.setattr(
            scorer, "score", lambda batch, label=label, real=scorer.score: calls.append(label) or real(batch)
        )
    done: list[int] = []
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = measure.milliseconds_per_pair(
        scorers, images, batch_size=2, repetitions=4, on_progress=lambda what, n, count: done.append(n)
    )
    assert found == {
        label: {"median": 500.0, "quartiles": [500.0, 500.0], "repetitions": 4} for label in ("pixel", "psnr", "ssim")
    }
    assert done == [1, 2, 3, 4, 5, 6]
    rounds = [calls[start : start + 3] for start in range(0, 18, 3)]
    assert all(sorted(turn) == ["pixel", "psnr", "ssim"] for turn in rounds)
    assert {turn[0] for turn in rounds} == {"pixel", "psnr", "ssim"}
