# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Names by which a configuration chooses what is pluggable: rewards, and objectives of the decoder's policy.

A name is claimed once, by one of three: this package (a table, imported on first use), an installed package (an entry
point, imported on first use), or code that has run a decorator. A second claim raises, wherever it comes from.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from verl_uae.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Claim(Generic[Item]):
    place: str
    """``module:name`` of the code."""
    item: Item | None
    """None until somebody asks for it."""


class Registry(Generic[Item]):
    """Name to item.

    Args:
        what: what a name stands for, for errors.
        key: configuration key of the names, for errors.
        group: entry point group of other packages' names; looked up once, at the first question.
        make: the item of an imported object that has not claimed the name itself, given the object and the name. May
            raise anything.
        built_in: the package's own names, each with its ``module:name``.
    """

    def __init__(
        self, what: str, key: str, group: str, make: Callable[[Any, str], Item], built_in: Mapping[str, str]
    ) -> None:
        self.what, self.key = what, key
        self._make = make
        self._claims: dict[str, _Claim[Item]] = {name: _Claim(place, None) for name, place in built_in.items()}
        self._group: str | None = group

    def claim(self, name: str, item: Item, code: Any) -> None:
        """Give a name to an item.

        Args:
            name: the name.
            item: what it stands for from now on.
            code: the class or function it is made of.

        Raises:
            ConfigError: the name is taken by other code.
        """
        self._discover()
        self._claim(name, _Claim(f"{code.__module__}:{getattr(code, '__qualname__', code)}", item))

    def get(self, name: str, key: str | None = None) -> Item:
        """The item of a name, imported if need be.

        Args:
            name: a claimed name.
            key: configuration key the name came from, for errors; by default the registry's.

        Raises:
            ConfigError: the name is unknown (lists the known and the closest), or does not import.
        """
        self._discover()
        if name not in self._claims:
            raise ConfigError(key or self.key, f"unknown {self.what} {name!r}.{known(name, self._claims)}")
        if self._claims[name].item is None:
            self._import(name, self._claims[name].place, key or self.key)
        item = self._claims[name].item
        assert item is not None
        return item

    def names(self, module: str | None = None) -> list[str]:
        """All names, or those that a module and what is inside it have claimed; sorted."""
        self._discover()
        inside = (f"{module}:", f"{module}.")
        return sorted(name for name, claim in self._claims.items() if module is None or claim.place.startswith(inside))

    def _discover(self) -> None:
        if self._group is not None:
            group, self._group = self._group, None
            for point in importlib.metadata.entry_points(group=group):
                self._claim(point.name, _Claim(point.value, None))

    def _claim(self, name: str, claim: _Claim[Item]) -> None:
        holder = self._claims.get(name)
        # The code that a table or an entry point names may run the decorator while it is imported.
        if holder is not None and not (holder.item is None and holder.place == claim.place):
            message = f"{self.what} {name!r} is already registered by {holder.place}; {claim.place} needs another name"
            raise ConfigError(self.key, message)
        self._claims[name] = claim

    def _import(self, name: str, place: str, key: str) -> None:
        module, _, attribute = place.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
            if self._claims[name].item is None:
                self._claims[name] = _Claim(place, self._make(found, name))
        # A fault boundary: another package's import may raise anything.
        except Exception as error:
            message = f"{self.what} {name!r} ({place}) cannot be loaded: {type(error).__name__}: {error}"
            raise ConfigError(key, message) from error


def known(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest of the known ones, and all of them."""
    choices = sorted(names)
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(choices) or 'none'}"
