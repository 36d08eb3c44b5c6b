# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Writes ``docs/verl_surface.md`` and the record of `verl-uae doctor`: `python docs/generate_verl_surface.py`.

Read from the sources of this package and of the installed verl; nothing is imported from either but the reader.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import verl_uae
from verl_uae import verl_surface

PACKAGE = Path(verl_uae.__file__).parent
TARGET = Path(__file__).with_name("verl_surface.md")

HEAD = """\
# What this package takes from verl

<!-- Written by docs/generate_verl_surface.py; edit the docstrings in the sources, then run it. -->

Everything of verl {version} that this package imports, subclasses, overrides, calls on itself or patches, with its
signature. The reasons are the first paragraphs of the docstrings of what uses it. `verl-uae doctor` compares the
installed verl with this record and names every symbol that is gone or has another signature. What is reached through
objects that verl hands over, and keys of verl's configuration, are not listed.

"""

SHIMS = """\
## Shims

These functions stand where verl, or what it stands on, has no hook. Each has a test that fails when it is no longer
needed.

| symbol | function | why |
|---|---|---|
"""

SUBCLASSES = """
## Subclasses

Each class of verl that is subclassed, with what the subclasses override, set or use of it.
"""

MEMBERS = """
What they take from it:

| member | signature | how | where, and why |
|---|---|---|---|
"""

OTHERS = """
## Everything else

Modules, functions, classes and values that are imported, or reached through an imported name.

| symbol | signature | how | where, and why |
|---|---|---|---|
"""

DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
#: Characters of a signature, and users of a symbol, that the page shows.
MOST_CODE, MOST_USERS = 160, 3


@dataclass(slots=True)
class Use:
    """What a symbol of verl is used for."""

    ways: set[str] = field(default_factory=set)
    users: dict[str, str] = field(default_factory=dict)
    """Our module and definition -> its reason."""


class Uses(dict[str, Use]):
    """Full name of a symbol -> its use; only what verl's source has is taken."""

    def __init__(self, source: verl_surface.Source) -> None:
        super().__init__()
        self.source = source

    def add(self, symbol: str, way: str, user: str, why: str) -> bool:
        """Note a use; whether verl has the symbol."""
        if symbol not in self and self.source.signature(symbol) is None:
            return False
        use = self.setdefault(symbol, Use())
        use.ways.add(way)
        use.users[user] = why
        return True


@dataclass(frozen=True, slots=True)
class Class:
    """A class of this package."""

    name: str
    node: ast.ClassDef
    bases: tuple[str, ...]
    """Full names, of verl and of this package."""


def plain(base: ast.expr) -> ast.expr:
    """The class in a base: without its parameters, and of an actor of Ray the class that it was made of."""
    wrapped = isinstance(base, ast.Subscript) or (
        isinstance(base, ast.Attribute) and base.attr == "__ray_actor_class__"
    )
    return base.value if wrapped else base


class Reader(ast.NodeVisitor):
    """Collects from one file the uses of imported names, and its classes."""

    def __init__(self, module: str, uses: Uses, classes: dict[str, Class]) -> None:
        self.module, self.uses, self.classes = module, uses, classes
        self.scopes: list[ast.AST] = []
        self.names: list[dict[str, str]] = [{}]

    def visit_Module(self, node: ast.Module) -> None:
        self._enter(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        bases = (self._symbol(plain(base)) for base in node.bases)
        name = ".".join([*self._place(), node.name])
        self.classes[name] = Class(name, node, tuple(base for base in bases if base))
        self.names[-1][node.name] = name
        self._enter(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._enter(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def _enter(self, node: ast.AST) -> None:
        self.scopes.append(node)
        self.names.append({})
        self.generic_visit(node)
        self.names.pop()
        self.scopes.pop()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            symbol = f"{node.module}.{alias.name}"
            self.names[-1][alias.asname or alias.name] = symbol
            if symbol.startswith("verl.") and self.uses.source.signature(symbol) is None:
                raise ValueError(f"{self.module} imports {symbol}, which verl does not have")

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            self.names[-1][alias.asname or name] = name
            self._note(alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) == "setattr" and isinstance(node.args[1], ast.Constant):
            owner = self._symbol(node.args[0])
            self._note(f"{owner}.{node.args[1].value}" if owner else None, "patched")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            if isinstance(target, ast.Attribute | ast.Subscript):
                inner = target.value if isinstance(target, ast.Subscript) else target
                self._note(self._symbol(inner), "patched" if inner is target else "entered")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not self._note(self._symbol(node)):
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self._note(self._symbol(node))

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and re.fullmatch(r"verl(\.\w+)+", node.value):
            self._note(node.value)

    def _note(self, symbol: str | None, way: str = "imported") -> bool:
        if symbol is None or not symbol.startswith("verl."):
            return False
        reasons = [text for scope in self.scopes if (text := first_line(scope))]
        return self.uses.add(symbol, way, ".".join(self._place()[:3]), reasons[-1] if reasons else "")

    def _place(self) -> list[str]:
        """The module, and the classes and functions that the walk is in."""
        return [self.module, *(scope.name for scope in self.scopes if isinstance(scope, DEFINITIONS))]

    def _symbol(self, node: ast.expr) -> str | None:
        """Full name of what an expression names: an import, a chain of attributes, a module imported by its name."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.names) if node.id in scope), None)
        if isinstance(node, ast.Attribute):
            owner = self._symbol(node.value)
            return f"{owner}.{node.attr}" if owner else None
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            return node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        return None


def first_line(node: ast.AST) -> str:
    """First paragraph of a docstring, on one line; empty where there is none."""
    documented = isinstance(node, (ast.Module, *DEFINITIONS))
    return " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split()) if documented else ""


def family(name: str, classes: Mapping[str, Class]) -> Iterator[Class]:
    """A class of ours and those of ours that it inherits from."""
    if name in classes:
        yield classes[name]
        for base in classes[name].bases:
            yield from family(base, classes)


def add_members(uses: Uses, classes: Mapping[str, Class]) -> None:
    """Note what the subclasses of verl's classes override, set and call of them."""
    for name in classes:
        ours = list(family(name, classes))
        theirs = {base for each in ours for base in each.bases if base.startswith("verl.")}
        defined = {member for each in ours for member, _ in members(each)}
        for base in theirs:
            uses.add(base, "subclassed", name, first_line(classes[name].node))
            for each in ours:
                for member, node in members(each):
                    uses.add(f"{base}.{member}", "overridden", each.name, first_line(node))
                for member, way, method in reached(each):
                    if member not in defined or way == "set":
                        uses.add(f"{base}.{member}", way, each.name, first_line(method))


def members(owner: Class) -> Iterator[tuple[str, ast.stmt]]:
    """Names that the body of a class defines."""
    for node in owner.node.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))


def reached(owner: Class) -> Iterator[tuple[str, str, ast.AST]]:
    """Names that the methods of a class use or set on themselves, with the method."""
    for method in owner.node.body:
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls", "super()"):
                yield node.attr, "set" if isinstance(node.ctx, ast.Store) else "used", method


def collect() -> tuple[Uses, dict[str, Class], list[tuple[str, str, str]]]:
    """Uses of verl by this package, its classes, and its shims: symbol, function of ours, reason."""
    uses, classes, shims = Uses(verl_surface.Source(verl_surface.installed())), dict[str, Class](), []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        Reader(module, uses, classes).visit(tree)
        for node in tree.body:
            text = " ".join((ast.get_docstring(node) or "").split()) if isinstance(node, ast.FunctionDef) else ""
            for symbol, why in re.findall(r"Symbol: ``(.+?)``\. (.+?)(?: Raises:|$)", text):
                shims.append((symbol, f"{module}.{node.name}", why))  # type: ignore[union-attr]
    add_members(uses, classes)
    return uses, classes, shims


def cell(text: str) -> str:
    """Text that may stand in a table cell; reStructuredText becomes Markdown."""
    return re.sub(r":\w+:`(.+?)`", r"`\1`", text.replace("``", "`")).replace("|", "\\|")


def code(text: str) -> str:
    """Code that may stand in a table cell, cut where it is long: the record has all of it."""
    return f"`{cell(text if len(text) <= MOST_CODE else text[: MOST_CODE - 3] + '...')}`"


def by(use: Use) -> str:
    """Who uses a symbol and why, one below the other."""
    shown = [
        f"`{user.partition('.')[2]}`: {cell(why)}".rstrip(": ") for user, why in list(use.users.items())[:MOST_USERS]
    ]
    more = len(use.users) - MOST_USERS
    return "<br>".join([*shown, *([f"and {more} more"] if more > 0 else [])])


def render(uses: Uses, classes: Mapping[str, Class], shims: list[tuple[str, str, str]]) -> str:
    """The whole page."""
    parts = [HEAD.format(version=importlib.metadata.version("verl")), SHIMS]
    parts += [f"| `{symbol}` | `{user.partition('.')[2]}` | {cell(why)} |\n" for symbol, user, why in shims]
    parts.append(SUBCLASSES)
    owners = sorted(symbol for symbol, use in uses.items() if "subclassed" in use.ways)
    for owner in owners:
        named = [
            f"* `{name}`: {cell(first_line(classes[name].node))}\n" for name in uses[owner].users if name in classes
        ]
        parts.append(f"\n### `{owner}`\n\nIts subclasses here:\n\n{''.join(named)}")
        inside = [symbol for symbol in sorted(uses) if symbol.rpartition(".")[0] == owner]
        if inside:
            parts.append(MEMBERS)
        for symbol in inside:
            use, name = uses[symbol], symbol.rpartition(".")[2]
            ways = ", ".join(sorted(use.ways))
            parts.append(f"| `{name}` | {code(uses.source.signature(symbol) or '')} | {ways} | {by(use)} |\n")
    parts.append(OTHERS)
    for symbol in sorted(uses):
        if symbol not in owners and symbol.rpartition(".")[0] not in owners:
            ways = ", ".join(sorted(uses[symbol].ways))
            parts.append(
                f"| `{symbol}` | {code(uses.source.signature(symbol) or '')} | {ways} | {by(uses[symbol])} |\n"
            )
    return "".join(parts)


def record(uses: Uses) -> str:
    """What `verl-uae doctor` compares."""
    symbols = {symbol: uses.source.signature(symbol) for symbol in sorted(uses)}
    return json.dumps({"verl": importlib.metadata.version("verl"), "symbols": symbols}, indent=1) + "\n"


if __name__ == "__main__":
    found = collect()
    TARGET.write_text(render(*found), encoding="utf-8")
    verl_surface.RECORD.write_text(record(found[0]), encoding="utf-8")
