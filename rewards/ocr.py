# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Does the reconstruction show the text of the source picture? For decoders that are to learn to render text.

Needs the extra ``ocr``. For the caption's side of it see the built-in term ``ocr_guard``.
"""

from __future__ import annotations

import functools

from PIL import Image
from rapidfuzz.distance import Levenshtein

from verl_uae.reward import reward_function
from verl_uae.reward.terms.caption import TextReader, load_engine, text_words


# One thread: reading keeps a core busy, and all ranks of a machine share its cores.
@reward_function(bounds=(0, 1), num_threads=1)
def text_similarity(
    source: Image.Image,
    reconstruction: Image.Image,
    min_confidence: float = 0.8,
    without_text: float = 1.0,
    engine: str = "rapidocr",
) -> dict[str, float]:
    """1 - NED: one minus the edit distance of the two texts, by the length of the longer one.

    Case, punctuation and line breaks do not count. In a source without text none can be missing, so text that is
    drawn there is not punished: every reconstruction of it gets ``without_text``.

    Args:
        source: the source picture.
        reconstruction: what was drawn from its caption.
        min_confidence: of a line of the source; fainter ones are not legible. Of a reconstruction all lines count.
        without_text: score where the source has no legible text, in [0, 1].
        engine: ``rapidocr``, or ``FILE.py:name`` of a class with ``read(image)``.

    Returns:
        ``score`` in [0, 1]; ``letters``, the length of the source's text, is logged.
    """
    wanted = read_source(source.tobytes(), source.size, engine, min_confidence)
    if not wanted:
        return {"score": without_text, "letters": 0.0}
    drawn = read_text(reconstruction.tobytes(), reconstruction.size, engine, 0.0)
    return {"score": Levenshtein.normalized_similarity(wanted, drawn), "letters": float(len(wanted))}


def read_text(pixels: bytes, size: tuple[int, int], engine: str, min_confidence: float) -> str:
    """Text of a picture, in reading order, in small letters with single spaces."""
    lines = reader(engine).read(Image.frombytes("RGB", size, pixels))
    return " ".join(word for text, confidence in lines if confidence >= min_confidence for word in text_words(text))


# A source picture comes back once for every member of its group. Pixels are kept as well: 64 pictures, not thousands.
read_source = functools.lru_cache(maxsize=64)(read_text)


@functools.lru_cache(maxsize=1)
def reader(engine: str) -> TextReader:
    """The engine, loaded once in each process."""
    return load_engine(engine)
