# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Terms of the caption: its length, its repetitions, and the text of the source picture that it must state.

Words are runs of letters with their combining marks, digits and apostrophes; a language without spaces between words
needs terms of its own.

The OCR guard asks: does the caption still state the text that is legible in the source picture? Trained against a
decoder that cannot draw letters, a captioner unlearns to report them: the paper's captioner lost 6.2 points of OCR and
11.6 of document understanding (arXiv 2509.09666 v5, table 11). It looks at caption and source picture alone, so what
the decoder can draw does not matter.
"""

from __future__ import annotations

import importlib.util
import math
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import torch
from cachetools import LRUCache
from PIL import Image, ImageOps
from torch import Tensor

from verl_uae.data.images import to_pil
from verl_uae.errors import ConfigError
from verl_uae.reward.encodings import picture_digest
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.term import RewardTerm
from verl_uae.settings import Rule
from verl_uae.user_code import load_source

#: What stands for every combining mark while words are looked for.
MARK = "\u0300"
#: Joiners belong to the word they are in, as in Persian.
_JOINERS = "\u200c\u200d"

_LETTERS = rf"(?:[^\W_]{MARK}*)+"
_WORD = re.compile(rf"{_LETTERS}(?:['\u2019]{_LETTERS})*")


def words_of(caption: str) -> list[str]:
    """Words of a caption in lower case, in order."""
    return find_words(_WORD, caption.lower())


def find_words(pattern: re.Pattern[str], text: str) -> list[str]:
    """Parts of a text that match a pattern in which :data:`MARK` is any combining mark.

    The vowel signs of Hindi and Arabic are marks, and to ``re`` a mark is no part of a word.
    """
    if text.isascii():
        return pattern.findall(text)
    alike = "".join(MARK if c in _JOINERS or unicodedata.category(c).startswith("M") else c for c in text)
    return [text[found.start() : found.end()] for found in pattern.finditer(alike)]


def length_band(count: int, low: int, high: int, fall: float) -> float:
    """1 for a count of words in [low, high], falling linearly to 0 at ``fall`` words (above 0) outside, in [0, 1]."""
    outside = max(low - count, count - high, 0)
    return max(0.0, 1.0 - outside / fall)


def repeated_share(words: list[str], n: int) -> float:
    """Share of the n-grams that repeat an earlier one: 1 - distinct / all, in [0, 1); 0 with fewer than n + 1 words.

    It is 1 minus the measure distinct-n (Li et al. 2016) of one text.
    """
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


class CaptionLength(RewardTerm):
    """:func:`length_band` of the caption's words.

    Args:
        low: smallest number of words that gives 1, at least 0.
        high: largest number of words that gives 1, at least ``low``.
        fall: number of words outside the band at which the value is 0, above 0.

    Raises:
        ConfigError: ``high`` below ``low``.
    """

    needs = frozenset({"caption"})
    bounds = (0.0, 1.0)
    model_free = True

    def __init__(
        self,
        low: Annotated[int, Rule(at_least=0)],
        high: int,
        fall: Annotated[float, Rule(above=0)] = 50.0,
    ) -> None:
        if high < low:
            raise ConfigError("uae.reward.terms.caption_length.high", f"must be at least low = {low} words, got {high}")
        self.low, self.high, self.fall = low, high, float(fall)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 1]."""
        assert batch.captions is not None
        return torch.tensor(
            [length_band(len(words_of(text)), self.low, self.high, self.fall) for text in batch.captions]
        )


class Repetition(RewardTerm):
    """:func:`repeated_share` of the caption; lower is better, so a positive weight is a penalty.

    Args:
        n: words of an n-gram, at least 1. Our choice: 3, which leaves ordinary function words alone.
    """

    needs = frozenset({"caption"})
    bounds = (0.0, 1.0)
    higher_is_better = False
    model_free = True

    def __init__(self, n: Annotated[int, Rule(at_least=1)] = 3) -> None:
        self.n = n

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 1]."""
        assert batch.captions is not None
        return torch.tensor([repeated_share(words_of(text), self.n) for text in batch.captions])


# ---------------------------------------------------------------- text in pictures

BUILT_IN = "rapidocr"

#: Longer side over shorter side of what RapidOCR is given. It enlarges the shorter side to a fixed length, so that a
#: strip of 1 x 200 pixels would become 100 million; it pads wide pictures to this itself, and tall ones not at all.
MAX_ASPECT = 8


@runtime_checkable
class TextReader(Protocol):
    """What is asked of an engine that reads the text in a picture."""

    def read(self, image: Image.Image) -> list[tuple[str, float]]:
        """Lines of text in reading order, each with a confidence in [0, 1]; empty where there is none."""
        ...


class RapidReader:
    """RapidOCR on the CPU: detection of lines and recognition, Latin letters and Chinese; no upside-down text.

    Its package (https://github.com/RapidAI/RapidOCR, Apache-2.0) brings PaddleOCR's PP-OCR models (Apache-2.0): nothing
    is downloaded.

    Args:
        num_threads: of each network, at least 1. Every rank has an engine of its own.
        short_side: pixels that the shorter side is enlarged to before lines are looked for; smaller is faster and
            misses small print. RapidOCR's default is 736.
    """

    def __init__(self, num_threads: int = 1, short_side: int = 736) -> None:
        from rapidocr import RapidOCR

        params = {
            "Global.use_cls": False,
            "Global.text_score": 0.0,  # Who asks decides what is legible.
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": num_threads,
            "Det.limit_side_len": short_side,
        }
        self._engine = RapidOCR(params=params)

    def read(self, image: Image.Image) -> list[tuple[str, float]]:
        """See :class:`TextReader`."""
        bgr_HW3 = np.ascontiguousarray(np.asarray(_padded(image.convert("RGB")))[:, :, ::-1])
        answer: Any = self._engine(bgr_HW3)
        if answer.txts is None:
            return []
        return [(str(text), float(score)) for text, score in zip(answer.txts, answer.scores, strict=True)]


def _padded(image: Image.Image) -> Image.Image:
    """In the middle of a black picture of at most :data:`MAX_ASPECT`; what is less narrow is left as it is."""
    least = math.ceil(max(image.size) / MAX_ASPECT)
    wide, high = max(0, least - image.width), max(0, least - image.height)
    return ImageOps.expand(image, (wide // 2, high // 2, wide - wide // 2, high - high // 2))


def check_engine(engine: str, key: str) -> Callable[..., Any]:
    """What makes an engine; loads no model.

    Raises:
        ConfigError: the package is not installed, or the reference is none.
    """
    if engine == BUILT_IN:
        missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                key, f"{engine!r} needs {' and '.join(missing)}: pip install 'rapidocr>=3.10,<4' 'onnxruntime>=1.20'"
            )
        return RapidReader
    reference, _, name = engine.rpartition(":")
    if not reference or not name.isidentifier():
        raise ConfigError(key, f"must be {BUILT_IN!r}, FILE.py:name or package.module:name, got {engine!r}")
    source = load_source(reference, key)
    found = getattr(source.module, name, None)
    if not callable(found):
        raise ConfigError(key, f"{source.path} has no class or function {name!r}")
    return found


def load_engine(engine: str = BUILT_IN, params: Mapping[str, Any] | None = None, key: str = "engine") -> TextReader:
    """An engine: ``rapidocr``, or what ``FILE.py:name`` or ``package.module:name`` makes of ``params``.

    What may be before the colon says :func:`verl_uae.user_code.load_source`; ``key`` names the engine in errors.

    Raises:
        ConfigError: it is missing, takes other parameters, or has no ``read``.
    """
    make = check_engine(engine, key)
    try:
        reader = make(**(params or {}))
    except TypeError as error:
        raise ConfigError(key, f"{engine!r} cannot be made with {dict(params or {})}: {error}") from error
    if not isinstance(reader, TextReader):
        raise ConfigError(key, f"{engine!r} makes a {type(reader).__name__}, which has no read(image)")
    return reader


#: An ideograph or kana stands for itself: such text has no spaces, so it has no words to compare.
_TOKEN = re.compile(rf"[\u3040-\u30ff\u3400-\u9fff]|(?:[^\W_\u3040-\u30ff\u3400-\u9fff]{MARK}*)+")

#: Pictures whose text is remembered by each rank. Our choice: some hundred bytes each.
CACHED_PICTURES = 65536


def text_words(text: str) -> list[str]:
    """Words of a text: compatibility forms and case folded (NFKC), punctuation dropped, CJK one character each."""
    return find_words(_TOKEN, unicodedata.normalize("NFKC", text).casefold())


def legible_words(lines: Iterable[tuple[str, float]], min_confidence: float, min_length: int) -> list[str]:
    """Distinct words, in order, of the lines (text and confidence in [0, 1]) that an engine is sure of.

    They have ``min_length`` characters; digits and CJK characters count at any length.
    """
    words = [word for text, confidence in lines if confidence >= min_confidence for word in text_words(text)]
    kept = (word for word in words if len(word) >= min_length or word.isdigit() or word > "\u3040")
    return list(dict.fromkeys(kept))


def word_recall(words: Sequence[str], caption: str, min_similarity: float) -> float:
    """Mean over ``words``, at least one by :func:`text_words`, of how well the caption states each, in [0, 1].

    A word is compared with the words of the caption and with neighbours written as one, since engines lose spaces.
    Its value is the best similarity, 1 - Levenshtein distance / length of the longer one; 0 below ``min_similarity``,
    which is in (0, 1]. A word with a digit must be there exactly: 2018 is not 2019.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    longest = math.ceil(max(map(len, words)) / min_similarity)
    stated = _joined_runs(text_words(caption), longest)
    if not stated:
        return 0.0
    similarity = cdist(words, stated, scorer=Levenshtein.normalized_similarity, score_cutoff=min_similarity)
    best = similarity.max(axis=1).tolist()
    exact = set(stated)
    values = [
        float(word in exact) if any(map(str.isdigit, word)) else value for word, value in zip(words, best, strict=True)
    ]
    return math.fsum(values) / len(values)


class OcrGuard(RewardTerm):
    """:func:`word_recall` of the text in the source picture by the caption.

    A picture is read once by each rank and remembered by the digest of its pixels. Logs ``words``, how many there are,
    and ``recall``, the value where there are any.

    Args:
        without_text: value of a sample whose source has no legible word, in [0, 1]. It is the same for all captions of
            a picture, so such a group gains no advantage by it, whatever it is.
        min_confidence: lines the engine is less sure of are not legible, in [0, 1]. Our choice: 0.8.
        min_similarity: below it a word is not stated at all, in (0, 1]. Our choice: 0.75, one letter of four.
        min_length: shorter words of letters are ignored, at least 1. Our choice: 2.
        engine: see :func:`~verl_uae.reward.terms.caption.load_engine`.
        engine_params: of the engine; for ``rapidocr`` see :class:`~verl_uae.reward.terms.caption.RapidReader`.

    Raises:
        ConfigError: an engine that is missing.
    """

    needs = frozenset({"source", "caption"})
    bounds = (0.0, 1.0)

    def __init__(
        self,
        without_text: Annotated[float, Rule(at_least=0, at_most=1)] = 1.0,
        min_confidence: Annotated[float, Rule(at_least=0, at_most=1)] = 0.8,
        min_similarity: Annotated[float, Rule(above=0, at_most=1)] = 0.75,
        min_length: Annotated[int, Rule(at_least=1)] = 2,
        engine: str = BUILT_IN,
        engine_params: Mapping[str, Any] | None = None,
    ) -> None:
        self.without_text = float(without_text)
        self.min_confidence, self.min_similarity, self.min_length = min_confidence, min_similarity, min_length
        self.reader: TextReader = load_engine(engine, engine_params, "uae.reward.terms.ocr_guard.engine")
        self._words: LRUCache[bytes, list[str]] = LRUCache(CACHED_PICTURES)

    @classmethod
    def check_params(cls, params: Mapping[str, Any], key: str) -> None:
        """Check numbers and that the engine is there; loads no model."""
        super().check_params(params, key)
        check_engine(str(params.get("engine", BUILT_IN)), f"{key}.engine")
        if importlib.util.find_spec("rapidfuzz") is None:
            raise ConfigError(key, "needs rapidfuzz: pip install 'rapidfuzz>=3'")

    def score(self, batch: RewardBatch) -> list[RewardRecord]:
        """One record per sample, with values in [0, 1]."""
        assert batch.captions is not None
        return [self._score(batch, index, caption) for index, caption in enumerate(batch.captions)]

    def _score(self, batch: RewardBatch, index: int, caption: str) -> RewardRecord:
        start = time.monotonic()
        words = self._read(batch, index)
        value, terms = self.without_text, {"words": float(len(words))}
        if words:
            value = terms["recall"] = word_recall(words, caption, self.min_similarity)
        return RewardRecord(value, Status.OK, terms, time.monotonic() - start)

    def _read(self, batch: RewardBatch, index: int) -> list[str]:
        digest = picture_digest(batch.source_B3HW[index])
        words: list[str] | None = self._words.get(digest)
        if words is None:
            lines = self.reader.read(to_pil(batch.source_B3HW[index]))
            words = self._words[digest] = legible_words(lines, self.min_confidence, self.min_length)
        return words


def _joined_runs(words: Sequence[str], longest: int) -> list[str]:
    """Every run of consecutive words written as one, of at most ``longest`` characters; every single word."""
    runs: dict[str, None] = {}
    for start, word in enumerate(words):
        joined = word
        runs[joined] = None
        for following in words[start + 1 :]:
            joined += following
            if len(joined) > longest:
                break
            runs[joined] = None
    return list(runs)
