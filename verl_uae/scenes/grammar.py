# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The exact caption language of the built-in world.

    caption    := object ("and" object)* ["on" background "background"]
    object     := "a" [position] [size] [colour] shape

Every attribute word but the shape is optional, so a caption can be under-descriptive and still right. Position is one
word, and attributes stand before the noun: the causal text state at the noun has then seen all of them, which is what
lets a small text encoder condition a decoder. The parser is exact, hence "grammatical", "mentions X" and "everything
stated is true" are decidable for any string.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from verl_uae.scenes.render import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Scene, SceneObject

ATTRIBUTES: tuple[str, ...] = ("position", "size", "colour", "background")
"""The optional facts; the shape is always stated."""
FULL: frozenset[str] = frozenset(ATTRIBUTES)
BARE: frozenset[str] = frozenset()

_OBJECT_WORDS: dict[str, tuple[str, ...]] = {"position": POSITIONS, "size": tuple(SIZES), "colour": tuple(COLOURS)}
WORDS: tuple[str, ...] = (
    "a",
    "and",
    "on",
    "background",
    *itertools.chain.from_iterable(_OBJECT_WORDS.values()),
    *SHAPES,
    *BACKGROUNDS,
)
"""All 20 words a caption can hold."""


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """One stated object; None where the caption is silent."""

    shape: str
    position: str | None = None
    size: str | None = None
    colour: str | None = None

    def agrees(self, position: str, obj: SceneObject) -> bool:
        """Whether every stated attribute is right for an object at a position."""
        truth = {"shape": obj.shape, "position": position, "size": obj.size, "colour": obj.colour}
        return all(getattr(self, name) in (None, value) for name, value in truth.items())


@dataclass(frozen=True, slots=True)
class ParsedCaption:
    """The facts a grammatical caption states."""

    objects: tuple[ParsedObject, ...]
    background: str | None = None

    def mentions(self, attribute: str) -> bool:
        """Whether an attribute of `ATTRIBUTES` is stated; one of objects counts only if all of them have it."""
        if attribute == "background":
            return self.background is not None
        return all(getattr(obj, attribute) is not None for obj in self.objects)

    def true_of(self, scene: Scene) -> bool:
        """Whether every stated fact holds: the stated objects are *distinct* objects of the scene.

        Silence is not falsehood, so leaving an object out is true (though not full detail).
        """
        if self.background not in (None, scene.background):
            return False
        return any(
            all(stated.agrees(position, obj) for stated, (position, obj) in zip(self.objects, chosen, strict=True))
            for chosen in itertools.permutations(scene.objects, len(self.objects))
        )


@dataclass(frozen=True, slots=True)
class CaptionFacts:
    """What a caption is worth for a scene; for an ungrammatical one every flag is False."""

    words: int
    grammatical: bool
    mentions: dict[str, bool]
    full_detail: bool
    true: bool


@dataclass(frozen=True, slots=True)
class CaptionMix:
    """A distribution of captions of a scene, by the set of attributes they mention.

    With probability `bare` none, with probability `full` all, otherwise each independently with probability `partial`.
    An attribute of `own` is left out of that: it is mentioned with its own probability, whatever the others are.

    Raises:
        ValueError: an unknown attribute, or what is no probability.
    """

    bare: float
    full: float
    partial: float = 0.5
    own: Mapping[str, float] = field(default_factory=dict)
    """Attribute -> probability."""

    def __post_init__(self) -> None:
        if not set(self.own) <= FULL:
            raise ValueError(f"own holds {sorted(set(self.own) - FULL)}, known are {list(ATTRIBUTES)}")
        shares = (self.bare, self.full, self.bare + self.full, self.partial, *self.own.values())
        if not all(0.0 <= share <= 1.0 for share in shares):
            raise ValueError(f"probabilities must be in [0, 1], and bare + full too: {self}")

    def levels(self, rng: random.Random) -> frozenset[str]:
        """Draw the attributes one caption mentions."""
        shared = self._shared(rng)
        if not self.own:
            return shared
        return frozenset(a for a in shared if a not in self.own) | {a for a in self.own if rng.random() < self.own[a]}

    def _shared(self, rng: random.Random) -> frozenset[str]:
        u = rng.random()
        if u < self.bare:
            return BARE
        if u < self.bare + self.full:
            return FULL
        return frozenset(a for a in ATTRIBUTES if rng.random() < self.partial)

    def sample(self, scene: Scene, rng: random.Random) -> str:
        """Draw one caption of a scene."""
        return caption(scene, self.levels(rng))


CAPTIONER_MIX = CaptionMix(bare=0.4, full=0.2)
"""What the captioner imitates before RL: mostly under-descriptive, so that RL has room."""
DECODER_MIX = CaptionMix(bare=0.25, full=0.5)
"""What the decoder is conditioned on before RL: mostly detailed, so that detail is rewarded when it is stated."""


def caption(scene: Scene, levels: Collection[str] = FULL) -> str:
    """Write a scene in words, objects in reading order.

    Args:
        scene: with at least one object (the grammar has no word for an empty picture).
        levels: attributes to mention, a subset of `ATTRIBUTES`.

    Raises:
        ValueError: an unknown attribute, or a scene without objects.

    Example:
        >>> import random
        >>> from verl_uae.scenes.render import sample_scene
        >>> caption(sample_scene(random.Random(0)))
        'a topleft small blue triangle and a bottomright small green square on gray background'
    """
    if not set(levels) <= FULL:
        raise ValueError(f"levels holds {sorted(set(levels) - FULL)}, known are {list(ATTRIBUTES)}")
    if not scene.objects:
        raise ValueError("a scene without objects has no caption")
    text = " and ".join(_object_words(position, obj, levels) for position, obj in scene.objects)
    return f"{text} on {scene.background} background" if "background" in levels else text


def _object_words(position: str, obj: SceneObject, levels: Collection[str]) -> str:
    stated = {"position": position, "size": obj.size, "colour": obj.colour}
    return " ".join(["a", *(word for name, word in stated.items() if name in levels), obj.shape])


def parse(text: str) -> ParsedCaption | None:
    """Read a caption; None when it is not exactly in the language (words are separated by single spaces)."""
    words = text.split(" ")
    background: str | None = None
    if len(words) > 3 and words[-1] == "background" and words[-3] == "on":
        background = words[-2]
        if background not in BACKGROUNDS:
            return None
        words = words[:-3]
    clauses = [list(group) for is_and, group in itertools.groupby(words, lambda w: w == "and") if not is_and]
    if len(clauses) - 1 != words.count("and"):
        return None
    objects = [_parse_object(clause) for clause in clauses]
    known = tuple(obj for obj in objects if obj is not None)
    return ParsedCaption(known, background) if len(known) == len(objects) else None


def _parse_object(words: list[str]) -> ParsedObject | None:
    if len(words) < 2 or words[0] != "a" or words[-1] not in SHAPES:
        return None
    rest, found = words[1:-1], {}
    for name, known in _OBJECT_WORDS.items():
        if rest and rest[0] in known:
            found[name] = rest.pop(0)
    return None if rest else ParsedObject(shape=words[-1], **found)


def caption_facts(scene: Scene, text: str) -> CaptionFacts:
    """Judge a caption of a scene: its grammar, what it mentions, whether that is all, and whether all of it is true."""
    words = len(text.split())
    parsed = parse(text)
    if parsed is None:
        return CaptionFacts(words, False, dict.fromkeys(ATTRIBUTES, False), False, False)
    mentions = {name: parsed.mentions(name) for name in ATTRIBUTES}
    full = all(mentions.values()) and len(parsed.objects) == len(scene.objects)
    return CaptionFacts(words, True, mentions, full, parsed.true_of(scene))
