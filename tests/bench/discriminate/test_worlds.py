# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.pipeline.conftest import picture
from verl_uae.bench.discriminate.result import MILD, across_pairs
from verl_uae.bench.discriminate.worlds import (
    SCENE_SEMANTICS,
    damaged_scenes,
    draw_scenes,
    photograph_world,
    scene_world,
)
from verl_uae.data.images import decode_image, to_tensor
from verl_uae.errors import ConfigError
from verl_uae.scenes.render import Scene, render_float


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
