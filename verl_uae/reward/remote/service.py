# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a server scores, from entries as in ``uae.reward.terms``, and how: from a request to records.

Pictures are decoded, grouped by their size, and the scorer is asked.

Shape legend: B samples, 3 colour channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, ValidationError
from torch import Tensor

from verl_uae.data.limits import MAX_TEXT_BYTES, ImageLimits
from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch, RewardRecord, Status
from verl_uae.reward.remote.protocol import (
    MEMBERS,
    ProtocolError,
    RawSample,
    claimed_size,
    decode_picture,
    dumps,
    first_problem,
    plain,
)
from verl_uae.reward.scorer import RewardScorer, TermSpec, spec_of
from verl_uae.reward.term import PICTURES
from verl_uae.user_code import load_source
from verl_uae.versions import versions

#: Bytes that a pixel of a source takes, with its reconstruction: decoded, while the request waits; and while it is
#: scored as fp32 batch, one term's copy of it, and what changing the one into the other takes. One request is scored at
#: a time. A term's own work comes on top; it has its own bound (:data:`~verl_uae.reward.isolate.CALL_PIXELS`).
WAITING_BYTES, SCORING_BYTES = 6, 64

#: What a request being scored may take, bytes, by default, and the pixels that makes: 16 samples of 1024 x 1024.
MAX_REQUEST_BYTES = 2**30
MAX_REQUEST_PIXELS = MAX_REQUEST_BYTES // SCORING_BYTES

#: Picture of a sample whose terms look at none.
_BLANK_HW3 = np.zeros((1, 1, 3), dtype=np.uint8)
_NOT_SENT = RewardRecord.failed(Status.INVALID, "no sample at this place")


# ---------------------------------------------------------------- terms


class Entry(BaseModel):
    """One term, by the keys of ``uae.reward.terms``."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    weight: FiniteFloat = 1.0
    params: Annotated[dict[str, Any], BeforeValidator(lambda raw: plain(raw or {}, "params"))] = {}
    label: Annotated[str, BeforeValidator(lambda raw: raw or "")] = ""
    held_out: bool = False
    floor: float | None = None
    normalize: Any = "none"
    """Of a run alone, as ``tie``."""
    tie: Any = 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What is summed and what is only recorded."""

    summed: tuple[TermSpec, ...]
    held_out: tuple[TermSpec, ...]

    def files(self) -> dict[str, dict[str, str]]:
        """Path and SHA-256 of the files of ``custom`` terms, by label."""
        found = {}
        for spec in (*self.summed, *self.held_out):
            if spec.name == "custom":
                source = load_source(str(spec.params["path"]), f"{spec.key}.params.path")
                found[spec.label] = {"path": source.path, "sha256": source.sha256}
        return found

    def describe(self) -> list[dict[str, object]]:
        """The entries for people: everything but arguments of custom functions, which may be private."""
        return [
            {
                "name": spec.name,
                "label": spec.label,
                "weight": spec.weight,
                "held_out": spec in self.held_out,
                "floor": spec.floor,
                "params": {name: value for name, value in spec.params.items() if name != "reward_kwargs"},
            }
            for spec in (*self.summed, *self.held_out)
        ]

    def fingerprint(self, files: Mapping[str, Mapping[str, str]]) -> str:
        """SHA-256 of all that makes the reward this function, as far as the configuration says it.

        Not in it: weights that a hub id without a revision stands for, versions of packages, and where the ``files``
        (of :meth:`files`) lie.
        """
        entries = []
        for spec in (*self.summed, *self.held_out):
            params = dict(spec.params)
            if spec.name == "custom":
                params["path"] = files[spec.label]["sha256"]
            entries.append([spec.name, spec.label, spec.weight, spec.floor, spec in self.held_out, params])
        return hashlib.sha256(dumps(plain(entries, "terms"))).hexdigest()


def parse_terms(entries: object, key: str) -> Terms:
    """Read a list of entries from YAML, or one; a bare name is ``{name: NAME}``.

    Raises:
        ConfigError: naming the first entry that does not fit.
    """
    listed = entries if isinstance(entries, list) else [entries]
    summed: list[TermSpec] = []
    held_out: list[TermSpec] = []
    for index, entry in enumerate(listed):
        spec, watched = _spec(entry, f"{key}[{index}]")
        if spec.groupwise:
            raise ConfigError(f"{spec.key}.name", f"{spec.name} compares the members of a group; no request names them")
        (held_out if watched else summed).append(spec)
    return Terms(tuple(summed), tuple(held_out))


def read_terms(texts: Sequence[str], file: str | Path | None) -> Terms:
    """Entries of a YAML file, then those of command-line texts, each YAML too.

    The file holds a list, or a mapping with ``terms``, or a run's configuration with ``uae.reward.terms``.

    Raises:
        ConfigError: no entry, a file that cannot be read, or an entry that does not fit.
    """
    entries: list[object] = []
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError("--config", f"cannot read {file}: {error}") from error
        entries = _entries(_yaml(text, str(file)), str(file))
    for text in texts:
        given = _yaml(text, "--term")
        entries += given if isinstance(given, list) else [given]
    if not entries:
        raise ConfigError("--term", "give at least one term, here or in --config")
    return parse_terms(entries, "terms" if file is not None else "--term")


def _yaml(text: str, key: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(key, f"not YAML: {' '.join(str(error).split())}") from error


def _entries(content: object, key: str) -> list[object]:
    for name in ("uae", "reward", "terms"):
        if isinstance(content, Mapping) and name in content:
            content = content[name]
    if not isinstance(content, list):
        raise ConfigError(key, "must hold a list of terms, terms: or uae.reward.terms:")
    return content


def _spec(entry: object, key: str) -> tuple[TermSpec, bool]:
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ConfigError(key, f"must be a name or a mapping with a name, got {entry!r}")
    unknown = sorted(set(map(str, entry)) - Entry.model_fields.keys())
    if unknown:
        raise ConfigError(key, f"has unknown {', '.join(unknown)}; known: {', '.join(Entry.model_fields)}")
    if entry.get("normalize", "none") != "none" or entry.get("tie"):
        raise ConfigError(f"{key}.normalize", "needs the values of the whole run; set it on the run's remote term")
    try:
        found = Entry.model_validate(entry)
    except ValidationError as error:
        place, problem = first_problem(error)
        raise ConfigError(f"{key}.{place}", problem) from error
    return spec_of(found.model_dump(), key), found.held_out


# ---------------------------------------------------------------- requests


class TooLargeError(ProtocolError):
    """A request that would take more memory than the server gives it."""


@dataclass(frozen=True, slots=True)
class _Sample:
    place: int
    levels: tuple[np.ndarray, np.ndarray]
    """Source and reconstruction, (H, W, 3) each, of one shape."""
    caption: str
    row: Mapping[str, object]


class ScoringService:
    """The scorer behind a server. Building it loads the models.

    Args:
        terms: what is scored.
        device: where models run.
        timeout_s: seconds per term and request.
        source_cache_bytes: host memory for features of source pictures.
        limits: what pictures are decoded.
        max_request_pixels: most pixels of the sources of a request, the places before a sample included; as many
            again are those of the reconstructions.

    Raises:
        ConfigError: a term that cannot be built, or a file that changes meanwhile.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        device: str,
        timeout_s: float,
        source_cache_bytes: int,
        limits: ImageLimits,
        max_request_pixels: int = MAX_REQUEST_PIXELS,
    ) -> None:
        files = terms.files()
        self.scorer = RewardScorer(
            terms.summed,
            held_out=terms.held_out,
            device=device,
            timeout_s=timeout_s,
            source_cache_bytes=source_cache_bytes,
            key="terms",
        )
        self.files = terms.files()
        if files != self.files:
            raise ConfigError("terms", "a custom file has changed while it was loaded; start again")
        self.terms = terms
        self.needs = self.scorer.needs
        if not self.needs <= set(MEMBERS):
            raise ConfigError("terms", f"need {', '.join(sorted(self.needs - set(MEMBERS)))}, which no request has")
        self.fingerprint = terms.fingerprint(self.files)
        self._limits = limits
        self._max_request_pixels = max_request_pixels
        # The scorer shares features between the terms of one batch at a time.
        self._lock = threading.Lock()

    def score(self, samples: Sequence[RawSample]) -> dict[str, RewardRecord]:
        """Score a request; a sample that cannot be read is INVALID, the others keep their bits.

        Raises:
            RewardError: a term cannot go on.
            TooLargeError: the pictures are too many and too large; nothing has been decoded.
        """
        self._check_size(samples)
        records: dict[str, RewardRecord] = {}
        groups: dict[tuple[int, ...], dict[str, _Sample]] = {}
        decoded: dict[object, np.ndarray] = {}
        for raw in samples:
            try:
                sample = self._read(raw, decoded)
            except ProtocolError as error:
                records[raw.id] = RewardRecord.failed(Status.INVALID, str(error))
                continue
            groups.setdefault(sample.levels[0].shape, {})[raw.id] = sample
        for group in groups.values():
            # The batch too: waiting requests hold what they decoded and no more.
            with self._lock:
                scored = self.scorer.score(self._batch(list(group.values())))
            records.update((identifier, scored[sample.place]) for identifier, sample in group.items())
        return {raw.id: records[raw.id] for raw in samples}

    def _check_size(self, samples: Sequence[RawSample]) -> None:
        """Pictures of one size are a batch, which has a picture at every place up to its last."""
        places: dict[tuple[int, int], int] = {}
        for sample in samples:
            for name in PICTURES:
                size = claimed_size(sample.members.get(name))
                # A larger one is never decoded and costs its sample only.
                if size[0] * size[1] <= self._limits.max_pixels:
                    places[size] = max(places.get(size, 0), sample.place + 1)
        total = sum(width * height * count for (width, height), count in places.items())
        if total > self._max_request_pixels:
            mebibytes = total * SCORING_BYTES // 2**20
            raise TooLargeError(
                f"{total} pixels in a request take {mebibytes} MiB, limit {self._max_request_pixels} pixels "
                "(--max-request-pixels): send fewer samples"
            )

    def versions(self) -> dict[str, str]:
        """Of what decides the last bits."""
        return {**versions(("torch", "transformers", "numpy", "pillow")), "python": platform.python_version()}

    def _read(self, raw: RawSample, decoded: dict[object, np.ndarray]) -> _Sample:
        """Decode a sample; ``decoded`` keeps pictures by their text, since the members of a group share a source."""
        for name in sorted(self.needs):
            if name not in raw.members:
                raise ProtocolError(f"{name} is missing")
        levels = []
        for name in PICTURES:
            text = raw.members.get(name)
            if name not in raw.members:
                continue
            try:
                if not isinstance(text, str) or text not in decoded:
                    decoded[text] = decode_picture(text, self._limits)
            except ProtocolError as error:
                raise ProtocolError(f"{name}: {error}") from error
            levels.append(decoded[text])
        source, reconstruction = (levels[0], levels[-1]) if levels else (_BLANK_HW3, _BLANK_HW3)
        if source.shape != reconstruction.shape:
            sizes = " and ".join(f"{found.shape[1]} x {found.shape[0]}" for found in levels)
            raise ProtocolError(f"source and reconstruction have {sizes} pixels, not one size")
        caption, row = raw.members.get("caption", ""), raw.members.get("row", {})
        if not isinstance(caption, str):
            raise ProtocolError(f"caption must be text, got {type(caption).__name__}")
        if len(caption) > MAX_TEXT_BYTES:
            raise ProtocolError(f"caption of {len(caption)} characters, limit {MAX_TEXT_BYTES}")
        if not isinstance(row, dict):
            raise ProtocolError(f"row must be an object, got {type(row).__name__}")
        for name in ("extra_info", "reward_model"):
            if not isinstance(row.get(name) or {}, dict):
                raise ProtocolError(f"row.{name} must be an object")
        return _Sample(raw.place, (source, reconstruction), caption, row)

    def _batch(self, samples: Sequence[_Sample]) -> RewardBatch:
        """Samples of one size at their places; places between them are marked as failed."""
        by_place = {sample.place: sample for sample in samples}
        blank_HW3 = np.zeros_like(samples[0].levels[0])
        absent = _Sample(-1, (blank_HW3, blank_HW3), "", {})
        placed = [by_place.get(place, absent) for place in range(max(by_place) + 1)]
        return RewardBatch(
            source_B3HW=self._pixels([sample.levels[0] for sample in placed]),
            reconstruction_B3HW=self._pixels([sample.levels[1] for sample in placed]),
            captions=[sample.caption for sample in placed],
            rows=[sample.row for sample in placed],
            failed={place: _NOT_SENT for place, sample in enumerate(placed) if sample is absent},
        )

    def _pixels(self, levels: Sequence[np.ndarray]) -> Tensor:
        # Divided on the CPU, as a run's source pictures are: a GPU multiplies by 1/255, which is other bits.
        pixels_B3HW = torch.from_numpy(np.stack(levels)).permute(0, 3, 1, 2).contiguous().float().div_(255.0)
        return pixels_B3HW.to(self.scorer.device)
