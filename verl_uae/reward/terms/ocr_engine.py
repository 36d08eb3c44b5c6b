# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Engines that read the text in a picture.

An engine is anything with ``read(image) -> list of (text, confidence)``. The built-in one is RapidOCR
(https://github.com/RapidAI/RapidOCR, Apache-2.0), whose package brings PaddleOCR's PP-OCR models (Apache-2.0): nothing
is downloaded.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from verl_uae.errors import ConfigError
from verl_uae.user_code import load_source

BUILT_IN = "rapidocr"

#: Longer side over shorter side of what RapidOCR is given. It enlarges the shorter side to a fixed length, so that a
#: strip of 1 x 200 pixels would become 100 million; it pads wide pictures to this itself, and tall ones not at all.
MAX_ASPECT = 8


@runtime_checkable
class TextReader(Protocol):
    """What is asked of an engine."""

    def read(self, image: Image.Image) -> list[tuple[str, float]]:
        """Lines of text in reading order, each with a confidence in [0, 1]; empty where there is none."""
        ...


class RapidReader:
    """RapidOCR on the CPU: detection of lines and recognition, Latin letters and Chinese; no upside-down text.

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
    width, height = max(image.width, least), max(image.height, least)
    if (width, height) == image.size:
        return image
    padded = Image.new("RGB", (width, height))
    padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def check_engine(engine: str, key: str) -> None:
    """Refuse an engine that cannot be there, without loading a model.

    Raises:
        ConfigError: the package is not installed, or the reference is none.
    """
    if engine == BUILT_IN:
        missing = [name for name in ("rapidocr", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                key, f"{engine!r} needs {' and '.join(missing)}: pip install 'rapidocr>=3.10,<4' 'onnxruntime>=1.20'"
            )
        return
    _factory(engine, key)


def load_engine(engine: str = BUILT_IN, params: Mapping[str, Any] | None = None, key: str = "engine") -> TextReader:
    """An engine by name.

    Args:
        engine: ``rapidocr``, or ``FILE.py:name`` or ``package.module:name`` of a class or function that makes one; what
            the part before the colon may be says :func:`verl_uae.user_code.load_source`.
        params: its keyword arguments.
        key: configuration key of ``engine``, for errors.

    Raises:
        ConfigError: it is missing, takes other parameters, or has no ``read``.
    """
    check_engine(engine, key)
    make: Any = RapidReader if engine == BUILT_IN else _factory(engine, key)
    try:
        reader = make(**(params or {}))
    except TypeError as error:
        raise ConfigError(key, f"{engine!r} cannot be made with {dict(params or {})}: {error}") from error
    if not isinstance(reader, TextReader):
        raise ConfigError(key, f"{engine!r} makes a {type(reader).__name__}, which has no read(image)")
    return reader


def _factory(engine: str, key: str) -> Any:
    reference, _, name = engine.rpartition(":")
    if not reference or not name.isidentifier():
        raise ConfigError(key, f"must be {BUILT_IN!r}, FILE.py:name or package.module:name, got {engine!r}")
    source = load_source(reference, key)
    found = getattr(source.module, name, None)
    if not callable(found):
        raise ConfigError(key, f"{source.path} has no class or function {name!r}")
    return found
