# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A typed key of the ``uae:`` section: what it may hold, and which stages read it. One walk over the schema checks all.

Every section is a dataclass in the ``config.py`` of the folder whose code reads it. Those files import nothing heavy:
Hydra's processes pay for no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args

from omegaconf import MISSING, DictConfig, OmegaConf

from verl_uae.config import STAGES
from verl_uae.errors import ConfigError
from verl_uae.text import is_number

#: Stages whose captioner learns from rewards.
CAPTIONING = ("g4u", "unified")
#: Stages that train the decoder from rewards.
EXPLORING = ("u4g", "unified")
#: Stages that learn from pairs of picture and caption.
SUPERVISED = ("pretrain", "cold_start")
#: Stages with rewards of groups.
REWARDED = ("g4u", "u4g", "unified")
#: Stages in which the decoder learns.
DECODING = ("pretrain", "cold_start", "u4g", "unified")

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(Dtype)

#: Former name of a key -> its name; a section stands for all that is in it.
RENAMED = {
    "uae.policy.captions.condition_cache_size": "uae.conditioner.cache_size",
    **{
        f"uae.policy.{name}": f"uae.train.{name}"
        for name in (
            "micro_batch_size",
            "lora",
            "train_projector",
            "gradient_checkpointing",
            "ema",
            "fsdp_config",
            "optim",
            "save_contents",
        )
    },
    "uae.policy": "uae.u4g",
    "uae.cold_start.encoder": "uae.cold_start.captioner",
    "uae.reward.max_invalid_fraction": "uae.supervision.max_invalid_fraction",
}

_RULE = "verl_uae"
#: What a field is declared as -> types that are taken, and what they are called.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "text"),
    "None": ((NoneType,), "null"),
}
_OVERRIDE = re.compile(r"(?:\+{1,2}|~)?(uae(?:\.\w+)+)(?:=|$)")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a key may hold; null passes where the type of the key allows it."""

    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    number: bool = False
    """Any number, but not an infinite one."""
    why: str = ""
    """Why a value outside is impossible, for its message."""
    stages: tuple[str, ...] = ()
    """Stages that read the key or the section; none named: those that read the section it is in."""
    entries: type | None = None
    """Schema of the entries of a list."""

    @property
    def limits(self) -> bool:
        """Whether there is a value that would be refused."""
        bounds = (self.at_least, self.above, self.at_most, self.below)
        return bool(self.choices) or self.number or any(bound is not None for bound in bounds)

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, None if nothing is. Whether null is possible, the type of the key says."""
        if value is None:
            return None
        if self.choices:
            return None if value in self.choices else f"must be one of {', '.join(self.choices)}, got {value!r}"
        bounds: tuple[tuple[str, float | None, Callable[[float, float], bool]], ...] = (
            ("at least", self.at_least, lambda number, bound: number >= bound),
            ("above", self.above, lambda number, bound: number > bound),
            ("at most", self.at_most, lambda number, bound: number <= bound),
            ("below", self.below, lambda number, bound: number < bound),
        )
        for words, bound, holds in bounds:
            if bound is not None and not (is_number(value) and holds(value, bound)):
                return f"must be {words} {_shown(bound)}, got {value!r}" + (f": {self.why}" if self.why else "")
        return f"must be a number, got {value!r}" if self.number and not is_number(value) else None


def key(default: Any = MISSING, *, factory: Callable[[], Any] | None = None, **rule: Any) -> Any:
    """A field of a section.

    Args:
        default: of the key; by default it must be set.
        factory: makes the default of a list, a dictionary or a section.
        **rule: of :class:`Rule`.
    """
    metadata = {_RULE: Rule(**rule)}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def rules(
    schema: type, path: str = "uae", stages: Sequence[str] = STAGES
) -> Iterator[tuple[str, Rule, tuple[str, ...]]]:
    """Every section and key below a section: full name, rule, and the stages that read it."""
    for field in dataclasses.fields(schema):
        rule, name = field.metadata.get(_RULE, Rule()), f"{path}.{field.name}"
        readers = rule.stages or tuple(stages)
        yield name, rule, readers
        if (inner := inner_schema(field)) is not None:
            yield from rules(inner, name, readers)


def check_values(
    section: DictConfig, schema: type, stage: str, path: str = "uae", stages: Sequence[str] = STAGES
) -> None:
    """Check every value that the stage reads against its rule.

    Args:
        section: composed.
        schema: of the section.
        stage: of ``uae.stage``.
        path: full name of the section.
        stages: those that read the section.

    Raises:
        ConfigError: naming the first key whose value is impossible.
    """
    for field in dataclasses.fields(schema):
        rule, name = field.metadata.get(_RULE, Rule()), f"{path}.{field.name}"
        readers = rule.stages or stages
        if (inner := inner_schema(field)) is not None:
            check_values(section[field.name], inner, stage, name, readers)
        elif rule.entries is not None:
            for index, entry in enumerate(section[field.name]):
                check_values(entry, rule.entries, stage, f"{name}[{index}]", readers)
        elif rule.limits and _reads(stage, readers) and (problem := rule.problem(section[field.name])):
            raise ConfigError(name, problem)


def check_fields(section: Any, prefix: str) -> None:
    """Check types and values of the fields of a section that was not composed by Hydra.

    Args:
        section: of a dataclass; fields of other types than text, numbers, truth and null are not looked at.
        prefix: what the name of a field follows in its key.

    Raises:
        ConfigError: naming the first one whose value is impossible.
    """
    for field in dataclasses.fields(section):
        value, kinds = getattr(section, field.name), str(field.type).split(" | ")
        types = tuple(kind for name in kinds if name in _KINDS for kind in _KINDS[name][0])
        fits = isinstance(value, types) and (type(value) is not bool or bool in types)
        if set(kinds) <= _KINDS.keys() and not fits:
            words = " or ".join(_KINDS[kind][1] for kind in kinds)
            raise ConfigError(f"{prefix}{field.name}", f"must be {words}, got {value!r}")
        if problem := field.metadata.get(_RULE, Rule()).problem(value):
            raise ConfigError(f"{prefix}{field.name}", problem)


def check_keys(section: DictConfig, schema: type, path: str = "uae") -> None:
    """Refuse keys of a composed section that the schema does not have: ``+uae.x=1`` gets past Hydra's own check.

    Raises:
        ConfigError: naming the first one, with its new name or the closest that there is.
    """
    for name in map(str, section):
        inner = _inner(schema, path, name)
        if inner is not None:
            check_keys(section[name], inner, f"{path}.{name}")


def check_overrides(words: Iterable[str], schema: type) -> None:
    """The same for the words of a command line, before Hydra sees them: its advice is to add the unknown key.

    Raises:
        ConfigError: naming the first one.
    """
    for word in words:
        if not (override := _OVERRIDE.match(word)):
            continue
        if (new := renamed(override[1])) != override[1]:
            raise ConfigError(override[1], f"is called {new} now")
        path, section = "uae", schema
        for name in override[1].split(".")[1:]:
            if (inner := _inner(section, path, name)) is None:
                # A value, a list, or a section whose keys are the user's.
                break
            section, path = inner, f"{path}.{name}"


def renamed(name: str) -> str:
    """What a key is called now."""
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def unread_overrides(schema: type, stage: str, overrides: Iterable[str]) -> list[str]:
    """Keys that a command sets although its stage does not read them.

    Args:
        schema: of the section ``uae``.
        stage: of ``uae.stage``.
        overrides: as on the command line, ``key=value``.
    """
    return [name for name in set_keys(overrides) if not is_read(schema, stage, name)]


def set_keys(overrides: Iterable[str]) -> list[str]:
    """Keys that a command sets, as on the command line, ``key=value``."""
    return [override.partition("=")[0].lstrip("+~") for override in overrides]


def is_read(schema: type, stage: str, name: str) -> bool:
    """Whether something in the stage reads a key, by the innermost section or key of the schema that it lies in."""
    readers: tuple[str, ...] = STAGES
    for known, _, stages in rules(schema):
        if name == known or name.startswith(f"{known}."):
            readers = stages
    return _reads(stage, readers)


def _reads(stage: str, readers: Sequence[str]) -> bool:
    """A stage that there is not is taken to read everything: nothing is known of it."""
    return stage in readers or stage not in STAGES


def _shown(bound: float) -> str:
    return str(bound) if bound == int(bound) else f"{bound:.4f}".rstrip("0")


def inner_schema(field: dataclasses.Field[Any]) -> type | None:
    """The schema of a field that is a section; None for a key."""
    kind = field.default_factory
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _inner(schema: type, path: str, name: str) -> type | None:
    """The schema of a section within another; None for what is no section."""
    fields = {field.name: field for field in dataclasses.fields(schema)}
    if name not in fields:
        if (new := renamed(f"{path}.{name}")) != f"{path}.{name}":
            raise ConfigError(f"{path}.{name}", f"is called {new} now")
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f", did you mean {path}.{close[0]}?" if close else f"; known keys: {', '.join(fields)}"
        raise ConfigError(f"{path}.{name}", f"unknown key{hint}")
    return inner_schema(fields[name])


def check_choices(config: DictConfig, choices: Mapping[str, Sequence[str]]) -> None:
    """Raise `ConfigError` for the first key whose value is none of its choices."""
    for key, allowed in choices.items():
        value = OmegaConf.select(config, key)
        if value not in allowed:
            raise ConfigError(key, f"must be one of {', '.join(allowed)}, got {value!r}")


def check_minimum(config: DictConfig, minimum: Mapping[str, tuple[float, bool]]) -> None:
    """Raise `ConfigError` for the first key that is no number, or below its smallest value, or at it where that is not
    allowed."""
    for key, (smallest, inclusive) in minimum.items():
        value = OmegaConf.select(config, key)
        possible = is_number(value)
        if not (possible and (value > smallest or (inclusive and value == smallest))):
            raise ConfigError(key, f"must be {'at least' if inclusive else 'above'} {smallest}, got {value!r}")


def check_whole(config: DictConfig, smallest: Mapping[str, int], hint: str = "") -> None:
    """Raise `ConfigError`, with the hint, for the first key that is no whole number, or below its smallest value."""
    for key, least in smallest.items():
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(key, f"must be a whole number, at least {least}{hint}, got {value!r}")
