# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The model card of a model folder: where it comes from, what it was trained on and with, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from verl_uae.checkpoints.manifest import PACKAGES
from verl_uae.files import sha256_of
from verl_uae.versions import versions

LICENCE_NOTE = (
    "Every weight here derives from the base models named above and stays under their licences; this folder grants no "
    "rights of its own. Read them before use: those of Stable Diffusion 3.5 and of Qwen2.5-VL-3B, for one, limit "
    "commercial use."
)


#: A text that begins with one of these is a place on a machine.
_FOLDER_STARTS = ("/", "./", "../", "~", "file://")

#: What the model hub reads.
FRONT_MATTER = """---
library_name: diffusers
pipeline_tag: any-to-any
license: other
tags:
- verl-uae
---"""

#: MODEL is the folder of the card, or its hub id.
USE = """The captioner describes a picture, and the decoder redraws it from the caption, with the settings in
`model_index.json`:

```python
from verl_uae import UAEPipeline

pipe = UAEPipeline.from_pretrained("MODEL").to("cuda")
output = pipe.reconstruct(["photo.jpg"])
print(output.captions[0])
output.images[0].save("reconstruction.png")
```"""


@dataclass(frozen=True, slots=True)
class Card:
    """What a model card says."""

    title: str
    origin: str
    """One sentence: imported from what, or trained how."""
    base_models: Mapping[str, str]
    """Part of the folder -> hub id or folder it comes from; of a folder the card names the last part only."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Data file -> its SHA-256."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Configuration key -> value; of a path the card names the last part only."""
    rewards: Sequence[Mapping[str, Any]] = ()
    """Reward terms as configured: name, weight, params."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Measured figures by name."""

    def render(self) -> str:
        """Markdown with the front matter that the model hub reads."""
        sections = [
            FRONT_MATTER,
            f"# {_text(self.title)}",
            _text(self.origin),
            f"## Use\n\n{USE}",
            _table("Base models", ("part", "from"), {part: _nameable(name) for part, name in self.base_models.items()}),
            _table("Training data", ("file", "SHA-256"), self.data),
            _table("Reward terms", ("term", "weight and parameters"), dict(_terms(self.rewards))),
            _table("Constants", ("key", "value"), {key: _nameable(value) for key, value in self.constants.items()}),
            _table(
                "Evaluation", ("figure", "value"), {name: f"{value:.6g}" for name, value in self.evaluation.items()}
            ),
            _table("Versions", ("package", "version"), versions(PACKAGES)),
            f"## Licence\n\n{LICENCE_NOTE}",
        ]
        return "\n\n".join(section for section in sections if section) + "\n"


def data_digests(files: Sequence[str | Path]) -> dict[str, str]:
    """SHA-256 of data files by their name; ``not found`` for those that are no longer there."""
    return {Path(name).name: sha256_of(name) if Path(name).is_file() else "not found" for name in files}


def flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested settings with their full keys."""
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _terms(rewards: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for number, term in enumerate(rewards):
        rest = {key: value for key, value in term.items() if key not in ("name", "label") and value not in (None, {})}
        label = term.get("label") or term.get("name") or "term"
        yield f"{number}: {label}", ", ".join(f"{key}={value}" for key, value in rest.items())


def _nameable(value: Any) -> Any:
    """A value without the folders of the machine it was set on."""
    if isinstance(value, list | tuple):
        return [_nameable(entry) for entry in value]
    return PurePath(value).name if isinstance(value, str) and value.startswith(_FOLDER_STARTS) else value


def _table(title: str, head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {_text(name)} | {_text(value)} |" for name, value in rows.items()]
    return f"## {title}\n\n" + "\n".join(lines)


def _text(value: Any) -> str:
    """One line that cannot break out of a table cell or open a tag."""
    words = " ".join(str(value).split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
