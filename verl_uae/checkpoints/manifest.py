# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What a model folder says of itself: the manifest, its verification, and the model card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from verl_uae.checkpoints.names import CARD, CARD_PICTURES, MANIFEST
from verl_uae.checkpoints.source import check_safetensors, files_below, indexed_files, pickles, refuse_code, walk
from verl_uae.errors import CheckpointError
from verl_uae.files import open_regular, sha256_of
from verl_uae.paths import is_hub_id
from verl_uae.versions import versions

#: Number of the manifest's own layout.
FORMAT = 1

#: Files read at a time for their digests.
_READERS = 8

#: Packages whose formats are written.
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "verl")


def write_manifest(folder: Path) -> dict[str, Any]:
    """Write ``manifest.json``: size and SHA-256 of every other file, package versions, and a digest of itself. Returns
    what was written. Raises `CheckpointError`: the folder holds a pickle."""
    _refuse_pickles(folder)
    files = {
        name: {"sha256": sha256_of(path), "size": path.stat().st_size}
        for path in files_below(folder)
        if (name := _name(path, folder)) != MANIFEST
    }
    content = {"format": FORMAT, "versions": versions(PACKAGES), "files": files}
    (folder / MANIFEST).write_text(_render(content), encoding="utf-8")
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises `CheckpointError`: it is missing, altered or of another format."""
    path = folder / MANIFEST
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8")
        content = json.loads(text)
        content.pop("digest")
        files = {str(name): (str(facts["sha256"]), int(facts["size"])) for name, facts in content["files"].items()}
    except FileNotFoundError as error:
        written = "every model folder that `verl-uae import` or `export` wrote has one"
        raise CheckpointError(path, f"there is no such file; {written}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(path, f"cannot be read: {error!r}") from error
    if text != _render(content):
        raise CheckpointError(path, "altered: its own digest is another")
    if content["format"] != FORMAT:
        raise CheckpointError(path, f"has format {content['format']!r}, known is {FORMAT}")
    if outside := [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise CheckpointError(path, f"names files outside the folder: {outside[:4]}")
    return content


def verify_folder(path: str | Path, *, code: bool = False) -> dict[str, Any]:
    """Check a model folder: its manifest, every file's size and SHA-256, nothing too many, no pickle, no link out of
    the folder, no code that a library would run, and weights whose headers and indices are sound.

    Hidden files and folders (``.git``, ``.cache``) are not looked at. With ``code`` Python code of the model is
    accepted, as a folder imported with ``--trust-remote-code`` has it. Returns the manifest. Raises `CheckpointError`:
    naming the first file that is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(folder, "is not a folder")
    content = read_manifest(folder)
    _verify(folder, "", content["files"])
    if not code:
        refuse_code(folder)
    return content


def verify_part(folder: Path) -> bool:
    """As `verify_folder`, of a folder that is about to be loaded, against the manifest in it or in the model folder
    around it; no manifest is no error. Returns whether there was one."""
    absolute = folder.absolute()
    for root in (absolute, absolute.parent):
        if os.path.lexists(root / MANIFEST):
            files = read_manifest(root)["files"]
            part = "" if root == absolute else f"{absolute.name}/"
            if part and not any(name.startswith(part) for name in files):
                # A folder that happens to lie beside somebody's manifest.
                return False
            _verify(root, part, files)
            return True
    return False


def _verify(root: Path, part: str, files: dict[str, Any]) -> None:
    """Compare the files below a part of a model folder with what its manifest says of them."""
    _refuse_pickles(root / part)
    for file in _irregular(root / part):
        raise CheckpointError(file, "is no plain file of the folder: a link out of it, a pipe, a socket or a device")
    for name, facts in files.items():
        if not name.startswith(part):
            continue
        file = root / name
        if not file.is_file():
            raise CheckpointError(file, f"missing, though {MANIFEST} names it")
        if file.stat().st_size != facts["size"]:
            raise CheckpointError(file, f"has {file.stat().st_size} bytes, {MANIFEST} says {facts['size']}")
        if sha256_of(file) != facts["sha256"]:
            raise CheckpointError(file, f"altered: its SHA-256 is not the one in {MANIFEST}")
        if file.suffix == ".safetensors":
            check_safetensors(file)
        elif file.name.endswith(".safetensors.index.json"):
            indexed_files(file)
    for file in files_below(root / part):
        if _name(file, root) not in files and _name(file, root) != MANIFEST:
            kind = "weight file" if file.suffix == ".safetensors" else "file"
            raise CheckpointError(file, f"a {kind} that {MANIFEST} does not name")


def _irregular(folder: Path) -> Iterator[Path]:
    """What below a folder is neither a file nor a folder of it. The hub's cache keeps files as links to its blobs."""
    root = folder.resolve()
    cache = next((place.parent / "blobs" for place in root.parents if place.name == "snapshots"), None)
    for path in walk(folder):
        target = path.resolve()
        inside = target.is_relative_to(root) or (cache is not None and target.parent == cache)
        if not (path.is_file() or (path.is_dir() and not path.is_symlink())) or not inside:
            yield path


def _refuse_pickles(folder: Path) -> None:
    if found := pickles(folder):
        raise CheckpointError(found[0], "pickles are refused in a model folder; weights are safetensors")


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of files by name, :data:`_READERS` at a time; large ones first, so that none runs alone at the end."""
    ordered = sorted(names, key=lambda name: (folder / name).stat().st_size, reverse=True)
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(ordered, readers.map(lambda name: sha256_of(folder / name), ordered), strict=True))


def _render(content: dict[str, Any]) -> str:
    """The manifest's text: canonical, with the digest of everything but the digest."""

    def text(value: dict[str, Any]) -> str:
        return json.dumps(value, indent=1, sort_keys=True) + "\n"

    return text({"digest": hashlib.sha256(text(content).encode("utf-8")).hexdigest(), **content})


# ------------------------------------------------------------ the card

LICENCE_NOTE = (
    "Every weight here derives from the base models named above and stays under their licences; this folder grants no "
    "rights of its own. Read them before use: those of Stable Diffusion 3.5 and of Qwen2.5-VL-3B, for one, limit "
    "commercial use."
)


#: A text that begins with one of these is a place on a machine.
_FOLDER_STARTS = ("/", "./", "../", "~", "file://")

#: What the model hub reads of every card.
_FRONT_MATTER = """---
library_name: diffusers
pipeline_tag: any-to-any
license: other
tags:
- verl-uae
"""

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
    pictures: Path | None = None
    """A picture to show, such as the strip of a panel."""

    def write(self, folder: Path) -> None:
        """Write the card and what it shows into a model folder."""
        if self.pictures is not None:
            # Here, since it brings torch, and commands that draw nothing verify folders.
            from verl_uae.data.images import decode_image

            # Decoded and encoded: what a file says besides its pixels is nobody else's business.
            decode_image(self.pictures).save(folder / CARD_PICTURES)
        (folder / CARD).write_text(self.render(), encoding="utf-8")

    def render(self) -> str:
        """Markdown with the front matter that the model hub reads."""
        sections = [
            self._front_matter(),
            f"# {_text(self.title)}",
            _text(self.origin),
            f"![pictures and what the model makes of them]({CARD_PICTURES})" if self.pictures else "",
            f"## Use\n\n{USE}",
            _table("Base models", ("part", "from"), {part: _nameable(name) for part, name in self.base_models.items()}),
            _table("Training data", ("file", "SHA-256"), self.data),
            _table("Reward terms", ("term", "weight and parameters"), dict(map(_term, count(), self.rewards))),
            _table("Constants", ("key", "value"), {key: _nameable(value) for key, value in self.constants.items()}),
            _table(
                "Evaluation", ("figure", "value"), {name: f"{value:.6g}" for name, value in self.evaluation.items()}
            ),
            _table("Versions", ("package", "version"), versions(PACKAGES)),
            f"## Licence\n\n{LICENCE_NOTE}",
        ]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _front_matter(self) -> str:
        """With the base models that are on the hub, by which it shows what a model was made of."""
        sources = dict.fromkeys(name.split()[0] for name in self.base_models.values() if name.strip())
        ids = [f"- {name}" for name in sources if is_hub_id(name)]
        return _FRONT_MATTER + "".join(f"{line}\n" for line in (["base_model:", *ids] if ids else [])) + "---"


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


def _term(number: int, term: Mapping[str, Any]) -> tuple[str, str]:
    rest = {key: value for key, value in term.items() if key not in ("name", "label") and value not in (None, {})}
    label = term.get("label") or term.get("name") or "term"
    return f"{number}: {label}", ", ".join(f"{key}={value}" for key, value in rest.items())


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
