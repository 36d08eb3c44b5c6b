# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Writes ``docs/configuration.md`` from the sources of the options: `python docs/generate_configuration.py`.

Texts are the docstrings under the fields of the dataclasses, read with :mod:`ast`; sections, and the stages that read
them, are those of the schema, and the values that our configs change are from the yaml files.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import omegaconf
import yaml

from verl_uae.caption_server.types import SECTION, HFOptions
from verl_uae.config import STAGES, yaml_files
from verl_uae.config.schema import UAEConfig
from verl_uae.data.limits import ImageLimits
from verl_uae.data.rows import CheckSettings
from verl_uae.reward.config import TermConfig
from verl_uae.settings import inner_schema, rules

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "verl_uae"
TARGET = ROOT / "docs" / "configuration.md"

#: Config files that change defaults, and the section that their keys belong to.
GROUPS = (
    ("uae_pretrain", ""),
    ("uae_cold_start", ""),
    ("uae_g4u", ""),
    ("uae_u4g", ""),
    ("uae_unified", ""),
    ("learn", ""),
    ("captioner/training", ""),
    ("decoder/objective", ""),
    ("uae/decoder", "uae.decoder"),
    ("uae/reward", "uae.reward"),
    ("hardware", ""),
    ("preset", ""),
)

HEAD = """\
# Configuration

<!-- Written by docs/generate_configuration.py; edit the docstrings in the sources, then run it. -->

Our keys lie under `uae:`, and under `data:` with the prefix `uae_`. Everything else is verl's own configuration. See
what a command would run, without running it, by adding `--cfg job`. An unknown or impossible key of ours stops the
command before Ray starts; one that the chosen stage does not read is named in a warning.

Keys under `uae.` are set as `key=value`. Keys under `data.uae_*` and `actor_rollout_ref.rollout.engine_kwargs.hf` are
optional; set them as `++key=value`, which adds a key that is not there.

Under the meaning of a key stands the value that one of our files gives it where that differs from the default.

"""

FILES_TEXT = """\
Choose a config with `--config-name NAME`, a group with `GROUP=NAME` (for example `hardware=cpu`). What stages share is
in `config/`, the rest in the folder of its stage; for Hydra these folders are one.

"""


def about(node: ast.ClassDef) -> str:
    """First sentence of a section's docstring, without the name of the section."""
    text = " ".join((ast.get_docstring(node) or "").split()).partition(". ")[0].rstrip(".")
    text = re.sub(r"^``uae\.[\w.]+``: ", "", text)
    return f"{text[:1].upper()}{text[1:]}."


@dataclass(frozen=True)
class Section:
    """Options that belong together, under one sentence."""

    text: str
    rows: list[Option]


@dataclass(frozen=True)
class Option:
    """One key: full name, type, default and text."""

    key: str
    kind: str
    default: str
    text: str


def fields(node: ast.ClassDef) -> Iterator[tuple[ast.AnnAssign, str]]:
    """Annotated fields of a class, each with the docstring under it (empty where there is none)."""
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        yield statement, text


def yaml_text(value: Any) -> str:
    """A scalar as yaml writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def schema_sections() -> dict[str, Section]:
    """Sections of ``uae:`` by name, in the order of the schema."""
    read_by = {name: stages for name, _, stages in rules(UAEConfig) if set(stages) != set(STAGES)}
    sections: dict[str, Section] = {}
    _add_section(sections, "uae", UAEConfig)
    sections["uae.reward.terms[i]"] = _own(TermConfig, "uae.reward.terms[i].")
    return {
        name: replace(section, text=f"{section.text} Read by {' and '.join(f'`{stage}`' for stage in read_by[name])}.")
        if name in read_by
        else section
        for name, section in sections.items()
        if section.rows
    }


def _add_section(sections: dict[str, Section], path: str, schema: type) -> None:
    """Add the options of a dataclass of the schema, and of the dataclasses in it, each as a section of its own."""
    sections[path] = _own(schema, f"{path}.")
    for field in dataclasses.fields(schema):
        if (inner := inner_schema(field)) is not None:
            _add_section(sections, f"{path}.{field.name}", inner)


def _own(schema: type, prefix: str) -> Section:
    """Options of a section that are no section; what the names of their fields follow is part of their keys."""
    node = ast.parse(inspect.getsource(schema)).body[0]
    assert isinstance(node, ast.ClassDef)
    texts = {statement.target.id: text for statement, text in fields(node)}  # type: ignore[union-attr]
    rows = [
        Option(f"{prefix}{field.name}", str(field.type), _default(field), texts[field.name])
        for field in dataclasses.fields(schema)
        if inner_schema(field) is None
    ]
    return Section(about(node), rows)


def _default(field: dataclasses.Field[Any]) -> str:
    """The default as a user would write it."""
    if dataclasses.is_dataclass(field.default):
        return "its own"
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return "its own" if dataclasses.is_dataclass(made) else json.dumps(made)
    return "required" if field.default == omegaconf.MISSING else yaml_text(field.default) or '""'


def changed_by_configs() -> dict[str, dict[str, str]]:
    """Key -> (config or ``group=name`` -> value) for every yaml file of ours that sets it."""
    found: dict[str, dict[str, str]] = {}
    files = yaml_files()
    for chosen, package in GROUPS:
        for name in sorted(name for name in files if chosen in (name, name.rpartition("/")[0])):
            label = name if name == chosen else f"{chosen}={files[name].stem}"
            for key, value in flatten(yaml.safe_load(files[name].read_text(encoding="utf-8")) or {}, package):
                shown = "see the file" if isinstance(value, list | dict) else yaml_text(value)
                found.setdefault(key, {})[label] = shown
    return found


def flatten(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Leaves of a mapping under full names; a list is a leaf."""
    if not isinstance(tree, dict):
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))


FIRST_TEXT = """
## What people set first

Most runs are described by these keys, and by `data.*` and `trainer.*` of verl.

"""

#: Keys of the first table of the page.
FIRST = (
    "uae.decoder.path",
    "uae.decoder.height",
    "uae.decoder.width",
    "uae.decoder.num_steps",
    "uae.decoder.guidance",
    "uae.decoder.batch_size",
    "uae.decoder.schedule",
    "uae.conditioner.length",
    "uae.reward.terms",
    "uae.reward.timeout_s",
    "uae.train.lora.rank",
    "uae.train.micro_batch_size",
    "uae.u4g.samples_per_caption",
    "uae.u4g.objective.name",
    "uae.seed",
)


def table(rows: list[Option], changed: dict[str, dict[str, str]]) -> str:
    """A Markdown table of options."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        default = f"`{row.default}`" if row.default not in ("required", "its own") else row.default
        same = (row.default, "???")
        others = {label: value for label, value in changed.get(row.key, {}).items() if value not in same}
        text = cell(row.text) + "".join(f"<br>`{label}`: `{value}`" for label, value in others.items())
        lines.append(f"| `{row.key}` | `{cell(row.kind)}` | {cell(default)} | {text} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text that may stand in a table cell; reStructuredText literals become Markdown's."""
    return text.replace("``", "`").replace("|", "\\|")


def config_files() -> str:
    """Every yaml file with the first line of its leading comment, and what ends the sentence at its end."""
    lines = ["| file | what it is |", "|---|---|"]
    for path in yaml_files().values():
        head = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        comments = [line.lstrip("# ") for line in head if "@package" not in line]
        words = f"{' '.join(comments)} "
        text = words[: words.find(". ", len(comments[0]) - 1) + 1]
        place = path.relative_to(PACKAGE).as_posix()
        lines.append(f"| [`{place}`](../{PACKAGE.name}/{place}) | {text} |")
    return "\n".join(lines) + "\n"


def render() -> str:
    """The whole page."""
    changed = changed_by_configs()
    parts = [HEAD, "## Files\n\n", FILES_TEXT, config_files()]
    sections = {
        **schema_sections(),
        "data.uae_*": _own(CheckSettings, "data.uae_"),
        "data.uae_image_limits": _own(ImageLimits, "data.uae_image_limits."),
        SECTION: _own(HFOptions, f"{SECTION}."),
    }
    every = {row.key: row for each in sections.values() for row in each.rows}
    parts += [FIRST_TEXT, table([every[key] for key in FIRST], changed)]
    parts += [f"\n## `{name}`\n\n{cell(each.text)}\n\n{table(each.rows, changed)}" for name, each in sections.items()]
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
