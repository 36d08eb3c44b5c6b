# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions of the pictures of a folder, in one file or in texts beside them, and what counts as a caption."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from verl_uae.data.images import encoded_bytes
from verl_uae.data.limits import MAX_TEXT_BYTES, ImageLimits
from verl_uae.errors import DataError
from verl_uae.text import decode_text, encodable, parse_json, printable, read_text, text_problem

SIDECAR = ".txt"
"""Ending of a caption in a file of its own, beside the picture."""
_PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp"})
_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode categories of controls, marks of format such as the zero-width space, and white space."""


def caption_problem(caption: object) -> str | None:
    """Why something is no caption, or None: one verdict for packing, checking and training."""
    if caption is None or caption == "":
        return "caption is missing"
    if not isinstance(caption, str):
        return f"caption must be text, got {type(caption).__name__}"
    if not caption.strip():
        return "caption is missing: white space alone"
    if all(unicodedata.category(char) in _UNSEEN for char in caption):
        return "caption is missing: no character of it shows"
    problem = text_problem(caption)
    return None if problem is None else f"caption holds {problem}"


def read_captions(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a JSON-lines file of ``{"file": path in the folder, "caption": text}``.

    A byte order mark and blank lines are no content. A caption may be empty; it then counts as none. Raises
    `DataError`: naming the line, for anything else, text that cannot be encoded, or a file named twice; or the file
    holds none.
    """
    path = Path(path)
    captions: dict[str, str] = {}
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(path, None, f"cannot read captions: {error}") from error
    # Line ends of every system; ``str.splitlines`` also cuts at separators that JSON allows within text.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n")):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise DataError(path, number, f"not JSON: {error}") from error
        file, caption = (entry.get("file"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not isinstance(file, str) or not isinstance(caption, str):
            raise DataError(path, number, 'expected {"file": text, "caption": text}')
        if file in captions:
            raise DataError(path, number, f"file {encodable(file)!r} has a caption already")
        if (problem := text_problem(caption)) is not None:
            raise DataError(path, number, f"the caption of {encodable(file)!r} holds {problem}")
        captions[file] = caption
    if not captions:
        raise DataError(path, None, "holds no caption")
    return captions


def is_apple_double(name: str) -> bool:
    """Whether a path names the attributes that macOS keeps beside a file of another file system, ``._x.png``."""
    return name.rpartition("/")[2].startswith("._")


def find_sidecars(files: Sequence[str]) -> dict[str, str]:
    """Text file -> the picture of the same name beside it; a text beside several pictures belongs to the first.

    A text that has no such picture belongs to one whose name differs in the Unicode form of accents alone.
    """
    pictures: dict[str, str] = {}
    similar: dict[str, str] = {}
    texts: dict[str, str] = {}
    for file in files:
        path = PurePosixPath(file)
        stem, ending = str(path.with_suffix("")), path.suffix.lower()
        if is_apple_double(file):
            continue
        if ending in _PICTURE_ENDINGS:
            pictures.setdefault(stem, file)
            similar.setdefault(_composed(stem), file)
        elif ending == SIDECAR:
            texts[file] = stem
    beside = {text: pictures.get(stem) or similar.get(_composed(stem)) for text, stem in texts.items()}
    return {text: picture for text, picture in beside.items() if picture is not None}


def read_sidecars(folder: Path, sidecars: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read the texts that `find_sidecars` found: picture -> caption, and the texts that hold none, or a second one ->
    why."""
    captions: dict[str, str] = {}
    unread: dict[str, str] = {}
    limits = ImageLimits(max_bytes=MAX_TEXT_BYTES)
    for text, picture in sidecars.items():
        if picture in captions:
            unread[text] = f"a second caption for {printable(picture)}"
            continue
        try:
            caption = decode_text(encoded_bytes(text, limits=limits, root=folder)).strip()
            problem = caption_problem(caption)
        except (DataError, ValueError) as error:
            problem = error.message if isinstance(error, DataError) else str(error)
        if problem is None:
            captions[picture] = caption
        else:
            unread[text] = problem
    return captions, unread


def match_captions(captions: Mapping[str, str], files: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Give captions by name to files, whose paths are as the system gives them, with forward slashes.

    A caption belongs to the file of exactly its name. Else it belongs to the one file that has the same name apart from
    ``./``, the kind of slash, the Unicode form of accents (macOS decomposes them) or bytes written as escapes
    (`printable`), if no other caption does. Returns file -> caption, and the names of captions that were not used ->
    why.
    """
    names = set(files)
    matched = {name: caption for name, caption in captions.items() if name in names}
    similar: dict[str, list[str]] = {}
    for name in names:
        for form in {_form(name), _form(printable(name))}:
            similar.setdefault(form, []).append(name)
    unused: dict[str, str] = {}
    for name, caption in captions.items():
        if name in names:
            continue
        fitting = similar.get(_form(name), [])
        if not fitting:
            unused[name] = "a caption for a picture that is not there"
        elif len(fitting) > 1:
            unused[name] = f"a caption that fits {len(fitting)} pictures: {', '.join(sorted(map(printable, fitting)))}"
        elif fitting[0] in matched:
            unused[name] = f"a second caption for {printable(fitting[0])}"
        else:
            matched[fitting[0]] = caption
    return matched, unused


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _form(name: str) -> str:
    return str(PurePosixPath(_composed(name).replace("\\", "/").lstrip("/")))
