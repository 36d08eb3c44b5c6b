# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import colorsys
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tests.chain.conftest import picture
from verl_uae.bench.damage import (
    BLUR,
    HUE,
    JPEG,
    NOISE,
    PHOTOGRAPH_NUISANCES,
    PHOTOGRAPH_SEMANTICS,
    REMOVED,
    REPLACED,
    SCENE_NUISANCES,
    SCENE_SEMANTICS,
    SHIFT,
    SWAPPED,
    Damage,
    Draw,
    damaged_scenes,
    draw_scenes,
    photograph_world,
    scene_world,
)
from verl_uae.bench.discriminate import MILD, across_pairs
from verl_uae.data.images import decode_image, to_tensor
from verl_uae.errors import ConfigError
from verl_uae.scenes.render import Scene, render_float
from verl_uae.seeding import normal


def test_scene_world() -> None:
    world = scene_world(20, 3)
    versions = world.versions(4)
    assert versions.shape == (44, 3, 32, 32)
    assert torch.equal(versions[0], render_float([draw_scenes(20, 3)[4]])[0])
    columns = world.columns()
    assert [column for found in columns.values() for column in found] == list(range(1, 44))
    assert len(columns["swapped"]) == 3 and all(len(columns[name]) == 4 for name in columns if name != "swapped")
    assert torch.equal(versions, world.versions(4)) and not torch.equal(versions, world.versions(5))
    # The heaviest replacement is another scene, different in every quarter and in its background.
    other = versions[columns["replaced"][-1]]
    quarters = [(other - versions[0])[:, y : y + 16, x : x + 16].abs().amax() for y in (0, 16) for x in (0, 16)]
    assert min(quarters) > 0.1 and (other[:, 0, 0] != versions[0][:, 0, 0]).all()
    # With every object gone, one colour is left: the background of the corner.
    removed = versions[columns["removed"][-1]]
    assert torch.equal(removed, versions[0][:, :1, :1].expand(3, 32, 32))


def test_photograph_world(tmp_path: Path) -> None:
    for index in range(3):
        picture(index).save(tmp_path / f"{index}.png")
    world = photograph_world(tmp_path, 48, 0)
    assert world.pictures == ("0.png", "1.png", "2.png") and len(set(world.digests)) == 3
    versions = world.versions(1)
    assert versions.shape == (33, 3, 48, 48)
    images = to_tensor([decode_image(tmp_path / f"{index}.png") for index in range(3)], 48)
    assert torch.equal(versions[0], images[1])
    assert torch.equal(versions[world.columns()["replaced"][-1]], images[2])
    assert [kind.name for kind in world.kinds if kind.semantic] == ["removed", "swapped", "replaced"]
    # The lightest level may hide nothing but sky, and is not compared with blur.
    columns = world.columns()
    mild = [columns[name][0] for name in MILD]
    assert across_pairs(world, "removed") == [(column, worse) for column in mild for worse in columns["removed"][1:]]


def test_worlds_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--scenes"):
        scene_world(5, 0)
    with pytest.raises(ConfigError, match="--size"):
        photograph_world(tmp_path, 16, 0)
    picture(0).save(tmp_path / "0.png")
    with pytest.raises(ConfigError, match="at least two"):
        photograph_world(tmp_path, 48, 0)


SCENES = draw_scenes(30, 0)


def differing(a: Scene, b: Scene) -> set[int]:
    return {place for place in range(4) if a.cells[place] != b.cells[place]}


def test_scenes_are_different_and_full() -> None:
    assert len({scene.digest for scene in SCENES}) == 30
    assert all(len(set(scene.cells)) == 4 and None not in scene.cells for scene in SCENES)
    assert draw_scenes(30, 0) == SCENES and draw_scenes(30, 1) != SCENES


@pytest.mark.parametrize("scene", SCENES[:10], ids=lambda scene: scene.digest[:6])
def test_levels_count_objects_and_include_the_lighter_ones(scene: Scene) -> None:
    damaged = damaged_scenes(scene, SCENES[11], 0)
    assert tuple(damaged) == SCENE_SEMANTICS
    for kind in ("removed", "recoloured", "resized", "reshaped"):
        places = [differing(scene, found) for found in damaged[kind]]
        assert [len(found) for found in places] == [1, 2, 3, 4]
        assert all(lighter < heavier for lighter, heavier in itertools.pairwise(places))
        assert all(found.background == scene.background for found in damaged[kind])
        heaviest = damaged[kind][-1]
        for ours, theirs in zip(scene.cells, heaviest.cells, strict=True):
            assert ours is not None
            if kind == "removed":
                assert theirs is None
                continue
            assert theirs is not None
            changed = {name for name in ("shape", "colour", "size") if getattr(ours, name) != getattr(theirs, name)}
            assert changed == {{"recoloured": "colour", "resized": "size", "reshaped": "shape"}[kind]}


def test_swapping_moves_and_replacing_ends_with_the_other_scene() -> None:
    scene, other = SCENES[0], SCENES[1]
    damaged = damaged_scenes(scene, other, 0)
    assert [len(differing(scene, found)) for found in damaged["swapped"]] == [2, 3, 4]
    assert all(set(found.cells) == set(scene.cells) for found in damaged["swapped"])
    *parts, whole = damaged["replaced"]
    assert whole == other
    for count, found in enumerate(parts, start=1):
        taken = [place for place in range(4) if found.cells[place] == other.cells[place]]
        kept = [place for place in range(4) if found.cells[place] == scene.cells[place]]
        assert len(taken) >= count and len(kept) >= 4 - count and found.background == scene.background


SIDE = 64
ALL = [*PHOTOGRAPH_SEMANTICS, *PHOTOGRAPH_NUISANCES, *SCENE_NUISANCES]


def smooth(name: str) -> Tensor:
    """A picture in 8-bit levels with large and small structure."""
    coarse = torch.nn.functional.interpolate(normal((1, 3, 6, 6), 1, name), size=(SIDE, SIDE), mode="bicubic")[0]
    grain = normal((3, SIDE, SIDE), 1, name, "grain")
    return (0.5 + 0.2 * coarse + 0.02 * grain).clamp(0.0, 1.0).mul(255.0).round() / 255.0


IMAGE, OTHER = smooth("image"), smooth("other")
DRAW = Draw(0, "picture", OTHER)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_heavier_levels_are_farther_away_and_the_draw_has_a_name(kind: Damage) -> None:
    damaged = [kind.apply(IMAGE, level, DRAW) for level in kind.levels]
    for image in damaged:
        assert image.shape == IMAGE.shape and image.dtype == torch.float32
        assert image.amin() >= 0.0 and image.amax() <= 1.0
    errors = [float((image - IMAGE).square().mean()) for image in damaged]
    assert errors[0] > 0.0 and errors == sorted(errors) and len(set(errors)) == 4
    assert all(
        torch.equal(kind.apply(IMAGE, level, DRAW), image) for level, image in zip(kind.levels, damaged, strict=True)
    )


def test_blur_is_a_gaussian() -> None:
    sigma = BLUR.levels[3] * SIDE
    expected = np.stack([gaussian_filter(channel, sigma, mode="mirror", truncate=3.0) for channel in IMAGE.double()])
    assert np.allclose(BLUR.apply(IMAGE, BLUR.levels[3], DRAW).numpy(), expected, atol=1e-5)


def test_noise_has_its_deviation() -> None:
    gray = torch.full((3, SIDE, SIDE), 0.5)
    grain = NOISE.apply(gray, 0.05, DRAW) - gray
    assert float(grain.std()) == pytest.approx(0.05, rel=0.03) and abs(float(grain.mean())) < 0.002
    assert not torch.equal(grain, NOISE.apply(gray, 0.05, Draw(0, "another", OTHER)) - gray)


def test_jpeg_is_pillows() -> None:
    buffer = io.BytesIO()
    pixels = (IMAGE * 255.0).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=15, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer), dtype=np.float32).transpose(2, 0, 1) / 255.0
    assert np.array_equal(JPEG.apply(IMAGE, 85, DRAW).numpy(), expected)


def test_hue_turns_the_colour_circle() -> None:
    turn = 0.12 * DRAW.sign("hue")
    found = HUE.apply(IMAGE, 0.12, DRAW)
    for y, x in ((0, 0), (10, 50), (63, 31)):
        hue, saturation, value = colorsys.rgb_to_hsv(*IMAGE[:, y, x].tolist())
        assert found[:, y, x].tolist() == pytest.approx(
            colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value), abs=1e-5
        )


def test_shift_moves_and_mirrors() -> None:
    pixels = round(SHIFT.levels[2] * SIDE)
    assert pixels == 5
    moved = {sign: SHIFT.apply(IMAGE, SHIFT.levels[2], _with_sign(sign)) for sign in (1.0, -1.0)}
    assert torch.equal(moved[1.0][:, :, :-pixels], IMAGE[:, :, pixels:])
    assert torch.equal(moved[-1.0][:, :, pixels:], IMAGE[:, :, :-pixels])
    assert torch.equal(moved[-1.0][:, :, :pixels], IMAGE[:, :, 1 : pixels + 1].flip(-1))


def _with_sign(sign: float) -> Draw:
    return next(draw for n in range(50) if (draw := Draw(0, f"picture {n}", OTHER)).sign("shift") == sign)


def test_removed_fills_a_square_with_the_mean_around_it() -> None:
    found = REMOVED.apply(IMAGE, 0.25, DRAW)
    changed = (found != IMAGE).any(dim=0).numpy()
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert (bottom - top, right - left) == (16, 16) and changed.sum() >= 250
    around = [
        IMAGE[:, y, x].tolist()
        for y in range(top - 2, bottom + 2)
        for x in range(left - 2, right + 2)
        if not (top <= y < bottom and left <= x < right)
    ]
    expected = np.mean(around, axis=0)
    assert np.allclose(found[:, top:bottom, left:right].numpy(), expected[:, None, None], atol=1e-6)
    # The squares of the levels have one centre.
    larger = (REMOVED.apply(IMAGE, 0.375, DRAW) != IMAGE).any(dim=0).numpy()
    assert larger[top:bottom, left:right].mean() > 0.95


def test_swapped_twice_is_the_picture_and_keeps_every_colour() -> None:
    for level in SWAPPED.levels:
        found = SWAPPED.apply(IMAGE, level, DRAW)
        assert torch.equal(SWAPPED.apply(found, level, DRAW), IMAGE)
        assert torch.equal(found.flatten(1).sort(dim=1).values, IMAGE.flatten(1).sort(dim=1).values)
        assert (found != IMAGE).any(dim=0).sum() >= 1.9 * (level * SIDE) ** 2


def test_replaced_ends_with_the_other_picture() -> None:
    assert torch.equal(REPLACED.apply(IMAGE, 1.0, DRAW), OTHER)
    found = REPLACED.apply(IMAGE, 0.5, DRAW)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[16:48, 16:48] = True
    assert torch.equal(found[:, inside], OTHER[:, inside]) and torch.equal(found[:, ~inside], IMAGE[:, ~inside])
