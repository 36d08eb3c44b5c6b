# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Which symbols of verl this package depends on, and whether an installed verl still has them as they were.

Signatures are read from verl's source: nothing of it is imported, so a verl that cannot be imported, and the parts that
need vLLM, are examined too. ``docs/generate_verl_surface.py`` finds the symbols and writes :data:`RECORD`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_uae.errors import ConfigError

#: The release that was read, and its signature of every symbol.
RECORD = Path(__file__).with_name("verl_surface.json")

_BLOCKS = (ast.If, ast.Try, ast.ExceptHandler, ast.With, ast.For)


def installed() -> Path:
    """Folder of the installed verl.

    Raises:
        ConfigError: where there is none.
    """
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("verl", "not installed")
    return Path(spec.submodule_search_locations[0])


def record() -> dict[str, Any]:
    """What is recorded: ``verl``, the release, and ``symbols``, full name -> signature."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True, slots=True)
class Difference:
    """One symbol that is not as recorded."""

    symbol: str
    was: str
    now: str | None
    """Its signature; None where it is gone."""

    def __str__(self) -> str:
        return f"{self.symbol} is gone" if self.now is None else f"{self.symbol} was {self.was}, is {self.now}"


def differences(recorded: dict[str, str], root: Path) -> list[Difference]:
    """What differs between recorded signatures and the verl in ``root``, in the order of the record."""
    source = Source(root)
    found = ((symbol, was, source.signature(symbol)) for symbol, was in recorded.items())
    return [Difference(*each) for each in found if each[1] != each[2]]


@dataclass(frozen=True, slots=True)
class _Place:
    """A definition, or the part of one, and the module whose names it uses."""

    module: str
    node: ast.AST


class Source:
    """Definitions of a package, read from the files in its folder ``root``, whose name is the package's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._file = functools.cache(self._find_file)
        self._tree = functools.cache(self._parse)
        self._names = functools.cache(self._index)
        self._inside = functools.cache(_index_class)
        self._registered = functools.cache(self._registrations)
        self._followed: set[tuple[str, str]] = set()

    def signature(self, symbol: str) -> str | None:
        """How a symbol is called, or what it is: ``module``, ``value``, ``attribute``; None where it is not there.

        Args:
            symbol: full name of a module, of a definition in one, or of a member of a class, also an inherited one.
        """
        parts = symbol.split(".")
        depth = next((n for n in range(len(parts), 0, -1) if self._file(".".join(parts[:n]))), 0)
        place = _Place(".".join(parts[:depth]), self._tree(".".join(parts[:depth]))) if depth else None
        for name in parts[depth:]:
            place = self._member(place, name) if place else None
        return self._text(place) if place else None

    def _find_file(self, module: str) -> Path | None:
        head, *tail = module.split(".")
        path = self.root.joinpath(*tail)
        candidates = (path / "__init__.py", path.with_suffix(".py"))
        return next((file for file in candidates if head == self.root.name and file.is_file()), None)

    def _parse(self, module: str) -> ast.Module:
        file = self._file(module)
        return ast.parse(file.read_text(encoding="utf-8")) if file else ast.Module([], [])

    def _index(self, module: str) -> dict[str, ast.stmt | str]:
        """Names of a module: the statement that defines one, or the full name that it is imported by.

        What ``import *`` brings stands under ``*`` and a number.
        """
        found: dict[str, ast.stmt | str] = {}
        for node in _statements(self._tree(module)):
            if isinstance(node, ast.ImportFrom):
                origin = self._origin(module, node)
                ours = origin.split(".")[0] == self.root.name
                for alias in node.names:
                    name = f"*{len(found)}" if alias.name == "*" else alias.asname or alias.name
                    found.setdefault(name, f"{origin}.{alias.name}".removesuffix(".*") if ours else node)
            else:
                for name in _bound(node):
                    found.setdefault(name, node)
        return found

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        file = self._file(module)
        up = node.level - (file is not None and file.name == "__init__.py")
        base = module.split(".")[: len(module.split(".")) - up]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _definition(self, module: str, name: str) -> _Place | None:
        """Where a name of a module is defined, through the imports that bring it there."""
        if self._file(f"{module}.{name}"):
            return _Place(f"{module}.{name}", self._tree(f"{module}.{name}"))
        if (module, name) in self._followed:
            # Two modules that import everything from each other.
            return None
        names = self._names(module)
        found = names.get(name)
        if isinstance(found, ast.stmt):
            return _Place(module, found)
        stars = [f"{each}.{name}" for label, each in names.items() if label.startswith("*") and isinstance(each, str)]
        self._followed.add((module, name))
        places = (self._definition(*origin.rsplit(".", 1)) for origin in ([found] if found else stars))
        place = next((place for place in places if place), None)
        self._followed.remove((module, name))
        return place

    def _member(self, owner: _Place, name: str) -> _Place | None:
        """A member of a module, or of a class: in its body, set on ``self``, registered by name, or inherited."""
        if isinstance(owner.node, ast.Module):
            return self._definition(owner.module, name)
        if not isinstance(owner.node, ast.ClassDef):
            return None
        node = self._inside(owner.node).get(name) or self._registered(owner.module).get(f"{owner.node.name}.{name}")
        if node:
            return _Place(owner.module, node)
        found = (self._member(base, name) for base in self._bases(owner))
        return next((place for place in found if place), None)

    def _registrations(self, module: str) -> dict[str, ast.AST]:
        """Members that verl's DynamicEnum gets by ``Class.register("NAME")``."""
        found: dict[str, ast.AST] = {}
        for node in ast.walk(self._tree(module)):
            if isinstance(node, ast.Call) and [type(word) for word in node.args] == [ast.Constant]:
                owner, _, function = ast.unparse(node.func).rpartition(".")
                if function == "register":
                    found[f"{owner}.{ast.literal_eval(node.args[0])}"] = node
        return found

    def _bases(self, owner: _Place) -> Iterator[_Place]:
        assert isinstance(owner.node, ast.ClassDef)
        for base in owner.node.bases:
            name = ast.unparse(base).partition("[")[0]
            place = self._definition(owner.module, name) if "." not in name else None
            if place and isinstance(place.node, ast.ClassDef):
                yield place

    def _text(self, place: _Place) -> str:
        node = place.node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            if "property" in marks:
                return "property"
            words = [mark for mark in marks if mark in ("staticmethod", "classmethod")]
            words += ["async"] if isinstance(node, ast.AsyncFunctionDef) else []
            result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            return " ".join([*words, f"({ast.unparse(node.args)}){result}"])
        if isinstance(node, ast.ClassDef):
            start = self._member(place, "__init__")
            return f"class {self._text(start) if start else '(' + ', '.join(self._fields(place)) + ')'}"
        return {ast.Module: "module", ast.Attribute: "attribute"}.get(type(node), "value")

    def _fields(self, owner: _Place) -> list[str]:
        """Fields of a class that gets its ``__init__`` from them, those of its bases first."""
        assert isinstance(owner.node, ast.ClassDef)
        if not owner.node.bases and not any("dataclass" in ast.unparse(mark) for mark in owner.node.decorator_list):
            return []
        fields = {field.partition(":")[0]: field for base in self._bases(owner) for field in self._fields(base)}
        for node in owner.node.body:
            if isinstance(node, ast.AnnAssign):
                fields[ast.unparse(node.target)] = ast.unparse(node)
        return list(fields.values())


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Statements of a body, those in its conditions and other blocks included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _BLOCKS):
            yield from _statements(child)
        elif isinstance(child, ast.stmt):
            yield child


def _index_class(node: ast.ClassDef) -> dict[str, ast.AST]:
    """Members of a class: what its body defines, and what its methods set on ``self``."""
    found: dict[str, ast.AST] = {name: each for each in _statements(node) for name in _bound(each)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            found.setdefault(each.attr, each)
    return found


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement gives a value."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return set()
