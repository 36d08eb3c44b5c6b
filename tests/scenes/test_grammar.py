# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from verl_uae.scenes import grammar as g
from verl_uae.scenes.render import Scene, SceneObject, all_scenes, sample_scene

RED = SceneObject("circle", "red", "small")
BLUE = SceneObject("square", "blue", "large")
ONE = Scene("white", (RED, None, None, None))
TWO = Scene("gray", (RED, None, None, BLUE))
SUBSETS = [frozenset(c) for n in range(5) for c in itertools.combinations(g.ATTRIBUTES, n)]


def test_the_words_are_the_documented_ones():
    assert g.caption(ONE) == "a topleft small red circle on white background"
    assert g.caption(TWO) == "a topleft small red circle and a bottomright large blue square on gray background"
    assert g.caption(TWO, g.BARE) == "a circle and a square"
    assert g.caption(TWO, {"colour", "background"}) == "a red circle and a blue square on gray background"
    assert len(g.WORDS) == len(set(g.WORDS)) == 20


def test_parsing_inverts_writing_for_every_level_and_number_of_objects():
    rng = random.Random(0)
    scenes = [sample_scene(rng, object_counts=(n,)) for n in (1, 2, 3, 4) for _ in range(25)]
    for scene, levels in itertools.product(scenes, SUBSETS):
        text = g.caption(scene, levels)
        facts = g.caption_facts(scene, text)
        assert facts.grammatical and facts.true
        assert {name for name, stated in facts.mentions.items() if stated} == levels
        assert facts.full_detail == (levels == g.FULL)
        assert facts.words == len(text.split())


def test_the_full_caption_of_one_scene_is_false_of_every_other():
    scenes = list(all_scenes((1,)))
    for scene in scenes[::11]:
        text = g.caption(scene)
        assert [other for other in scenes if g.caption_facts(other, text).true] == [scene]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "circle",
        "a",
        "a red",
        "a circle ",
        " a circle",
        "a  circle",
        "A circle",
        "a circle and",
        "and a circle",
        "a circle and and a square",
        "a circle a square",
        "a red small circle",
        "a small topleft circle",
        "a red red circle",
        "a circle on white",
        "a circle on background",
        "a circle on pink background",
        "on white background",
        "a circle on white background on white background",
        "a circle on white background and a square",
        "a circle <|im_end|>",
    ],
)
def test_what_is_not_in_the_language_is_refused(text):
    assert g.parse(text) is None
    facts = g.caption_facts(ONE, text)
    assert not (facts.grammatical or facts.true or facts.full_detail or any(facts.mentions.values()))


@pytest.mark.parametrize(
    ("text", "true", "full"),
    [
        ("a bottomright large blue square and a topleft small red circle on gray background", True, True),
        ("a red circle", True, False),
        ("a square", True, False),
        ("a circle and a circle", False, False),
        ("a topleft small red circle on gray background", True, False),
        ("a topleft small red circle and a bottomright large blue square", True, False),
        ("a topleft small red circle and a bottomright large red square on gray background", False, True),
        ("a topleft small red circle and a bottomright large blue square on white background", False, True),
        ("a topleft small red circle and a square on gray background", True, False),
        ("a circle and a square and a square", False, False),
    ],
)
def test_truth_and_detail(text, true, full):
    facts = g.caption_facts(TWO, text)
    assert (facts.true, facts.full_detail) == (true, full)


def test_an_attribute_of_only_one_object_is_not_mentioned():
    facts = g.caption_facts(TWO, "a red circle and a square")
    assert facts.true and not facts.mentions["colour"]


def test_caption_mixes_have_the_documented_shares():
    rng = random.Random(0)
    for mix in (g.CAPTIONER_MIX, g.DECODER_MIX):
        n = 20_000
        levels = Counter(mix.levels(rng) for _ in range(n))
        rest = 1 - mix.bare - mix.full
        for subset in SUBSETS:
            expected = rest / 16 + mix.bare * (subset == g.BARE) + mix.full * (subset == g.FULL)
            assert levels[subset] / n == pytest.approx(expected, abs=0.012)


def test_an_attribute_of_its_own_is_mentioned_whatever_the_others_are():
    rng, n = random.Random(0), 20_000
    mix = g.CaptionMix(bare=0.1, full=0.6, own={"size": 0.3})
    drawn = [mix.levels(rng) for _ in range(n)]
    shared = Counter(levels - {"size"} for levels in drawn)
    others = [subset for subset in SUBSETS if "size" not in subset]
    for subset in others:
        expected = 0.3 / 8 + 0.1 * (subset == g.BARE) + 0.6 * (subset == g.FULL - {"size"})
        assert shared[subset] / n == pytest.approx(expected, abs=0.012)
        said = [("size" in levels) for levels in drawn if levels - {"size"} == subset]
        assert sum(said) / len(said) == pytest.approx(0.3, abs=5 * (0.21 / len(said)) ** 0.5)
    # Two of their own are independent of each other too.
    both = g.CaptionMix(bare=0, full=0, partial=0.9, own={"size": 0.3, "colour": 0.5})
    together = sum({"size", "colour"} <= both.levels(rng) for _ in range(n))
    assert together / n == pytest.approx(0.15, abs=0.012)


def test_a_mix_without_attributes_of_their_own_draws_what_it_always_drew():
    """To the draw, or the tiny models of the quickstart would be others."""

    def before(mix: g.CaptionMix, rng: random.Random) -> frozenset[str]:
        u = rng.random()
        if u < mix.bare:
            return g.BARE
        return g.FULL if u < mix.bare + mix.full else frozenset(a for a in g.ATTRIBUTES if rng.random() < mix.partial)

    for mix in (g.CAPTIONER_MIX, g.DECODER_MIX):
        ours, theirs = random.Random(7), random.Random(7)
        assert [mix.levels(ours) for _ in range(1000)] == [before(mix, theirs) for _ in range(1000)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"own": {"shape": 0.5}}, "shape.*known are"),
        ({"own": {"size": 1.5}}, "probabilities"),
        ({"bare": 0.6, "full": 0.6}, "bare \\+ full"),
        ({"partial": -0.1}, "probabilities"),
    ],
)
def test_impossible_mixes_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        g.CaptionMix(**{"bare": 0.1, "full": 0.1, **given})


def test_impossible_captions_are_refused():
    with pytest.raises(ValueError, match="without objects"):
        g.caption(Scene("white", (None,) * 4))
    with pytest.raises(ValueError, match="shade"):
        g.caption(ONE, {"shade"})
