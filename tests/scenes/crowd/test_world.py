# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import pytest
import torch

from verl_uae.scenes.crowd import world as w
from verl_uae.scenes.render import COLOURS, OBJECTS, SceneObject, cell_templates

RED = SceneObject("circle", "red", "small")
BLUE = SceneObject("square", "blue", "large")


def crowd(**objects: SceneObject) -> w.Crowd:
    """A crowd from objects by row and column: r1c2."""
    cells: list[SceneObject | None] = [None] * 16
    for name, obj in objects.items():
        cells[4 * (int(name[1]) - 1) + int(name[3]) - 1] = obj
    return w.Crowd(tuple(cells))


def test_a_caption_has_one_sentence_of_ten_words_per_object():
    assert w.caption(crowd(r2c3=RED), random.Random(0)) == "row two column three holds a small red circle ."
    both = {w.caption(crowd(r2c3=RED, r4c1=BLUE), random.Random(seed)) for seed in range(20)}
    first, second = "row two column three holds a small red circle .", "row four column one holds a large blue square ."
    assert both == {f"{first} {second}", f"{second} {first}"}


def test_what_is_mentioned_is_what_was_written_up_to_the_cut():
    rng = random.Random(3)
    for count in (1, 5, 16):
        drawn = w.sample_crowd(rng, count)
        text = w.caption(drawn, rng)
        assert w.mentioned(text) == drawn.objects and len(text.split(" ")) == 10 * count
        for tokens in (0, 9, 10, 77):
            part = w.mentioned(w.cut(text, tokens))
            assert len(part) == min(count, tokens // 10)
            assert list(part) == list(w.mentioned(text))[: len(part)]
    assert w.cut("a b c", 2) == "a b" and w.cut("a b c", 9) == "a b c"


@pytest.mark.parametrize(
    "text",
    [
        "row two column three holds a small red red .",
        "row two column five holds a small red circle .",
        "row two column three has a small red circle .",
        "row one column one holds a small red circle . row one column one holds a large red circle .",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"not a caption|not one of"):
        w.mentioned(text)


def test_cells_are_half_the_scale_of_the_scenes_cells_on_white():
    picture = w.render([crowd(r1c2=BLUE)])
    assert picture.shape == (1, 3, 32, 32)
    full = cell_templates()[0, 1 + OBJECTS.index(BLUE)].float() / 255
    expected = sum(full[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    torch.testing.assert_close(picture[0, :, :8, 8:16], expected)
    # The square has radius 7 of 16 pixels: all inner 6x6 pixels of the cell are blue.
    blue = torch.tensor(COLOURS["blue"]) / 255
    torch.testing.assert_close(picture[0, :, 1:7, 9:15], blue.view(3, 1, 1).expand(3, 6, 6))
    picture[0, :, :8, 8:16] = 245 / 255
    torch.testing.assert_close(picture, torch.full((1, 3, 32, 32), 245 / 255))


def test_samples_have_their_number_of_objects_and_their_split():
    rng = random.Random(1)
    drawn = [w.sample_crowd(rng, count, split) for count in (1, 7, 16) for split in ("train", "val") for _ in range(5)]
    assert [len(c.objects) for c in drawn] == [1] * 10 + [7] * 10 + [16] * 10
    assert [c.split for c in drawn] == (["train"] * 5 + ["val"] * 5) * 3
    shares = [w.sample_crowd(rng, 1).cells for _ in range(300)]
    assert {next(i for i, o in enumerate(cells) if o) for cells in shares} == set(range(16))


@pytest.mark.parametrize(("count", "split"), [(0, "val"), (17, "val"), (3, "test")])
def test_impossible_samples_are_refused(count, split):
    with pytest.raises(ValueError, match=r"count must be|split is"):
        w.sample_crowd(random.Random(0), count, split)


def test_a_crowd_has_sixteen_cells_and_an_object():
    with pytest.raises(ValueError, match="expected 16"):
        w.Crowd((RED,))
    with pytest.raises(ValueError, match="without objects"):
        w.Crowd((None,) * 16)
