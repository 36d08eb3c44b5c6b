# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest

from verl_uae.bench.discriminate.scenes import KINDS, damaged_scenes, draw_scenes
from verl_uae.scenes.render import Scene

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
    assert tuple(damaged) == KINDS
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
