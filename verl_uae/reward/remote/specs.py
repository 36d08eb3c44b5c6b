# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Terms that a command is given: entries as in ``uae.reward.terms``, from YAML or the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, ValidationError

from verl_uae.errors import ConfigError
from verl_uae.reward.remote.protocol import dumps, first_problem, plain
from verl_uae.reward.scorer import TermSpec
from verl_uae.user_code import load_source


class Entry(BaseModel):
    """One term, by the keys of ``uae.reward.terms``."""

    model_config = ConfigDict(strict=True, frozen=True)

    name: str
    weight: FiniteFloat = 1.0
    params: Annotated[dict[str, Any], BeforeValidator(lambda raw: plain(raw or {}, "params"))] = {}
    label: Annotated[str, BeforeValidator(lambda raw: raw or "")] = ""
    held_out: bool = False
    floor: float | None = None
    normalize: Any = None
    """Of a run alone, as ``tie``."""
    tie: Any = None


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

        Not in it: weights that a hub id without a revision stands for, and versions of packages.

        Args:
            files: of :meth:`files`; their place on the disk does not count.
        """
        entries = []
        for spec in (*self.summed, *self.held_out):
            params = dict(spec.params)
            if spec.name == "custom":
                params["path"] = files[spec.label]["sha256"]
            entries.append([spec.name, spec.label, spec.weight, spec.floor, spec in self.held_out, params])
        return hashlib.sha256(dumps(plain(entries, "terms"))).hexdigest()


def parse_terms(entries: object, key: str) -> Terms:
    """Read a list of entries, or one; a bare name is ``{name: NAME}``.

    Args:
        entries: what YAML gave.
        key: what to call it in errors.

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
    entries = [] if file is None else _entries(_yaml(_text(file), str(file)), str(file))
    for text in texts:
        given = _yaml(text, "--term")
        entries += given if isinstance(given, list) else [given]
    if not entries:
        raise ConfigError("--term", "give at least one term, here or in --config")
    return parse_terms(entries, "terms" if file is not None else "--term")


def _text(file: str | Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError("--config", f"cannot read {file}: {error}") from error


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
    spec = TermSpec(
        name=found.name,
        weight=0.0 if found.held_out else found.weight,
        params=found.params,
        label=found.label,
        floor=found.floor,
        key=key,
    )
    return spec, found.held_out
