# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""A complete model folder from its parts: written beside its place, checked as a stock loader sees it, published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from verl_uae.checkpoints.inference import InferenceSettings, write_index
from verl_uae.checkpoints.load import language_class, language_sizes, load_model, load_tokenizer
from verl_uae.checkpoints.manifest import Card, verify_folder, write_manifest
from verl_uae.checkpoints.names import (
    CAPTIONER,
    CARD,
    CONFIG,
    LANGUAGE_MODEL,
    MANIFEST,
    MODEL_INDEX,
    SCHEDULER_CONFIG,
)
from verl_uae.checkpoints.source import read_tensors, same_tensors, weight_files
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError
from verl_uae.families import check_components, family_in, family_of
from verl_uae.files import publish_folder

Writer = Callable[[Path], None]
"""Fills the folder it is given."""

#: Files of a transformers folder that are copied, besides its weights.
_COPIED = (".json", ".txt", ".jinja", ".model")


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What a model folder is put together from."""

    decoder: Writer
    """Writes the components of the decoder and scheduler/."""
    card: Card
    captioner: Writer | None = None
    """Writes the captioner; None leaves it out."""
    language_model: Writer | None = None
    """Writes the model whose text-only states are the condition, where it is not the captioner."""
    entries: Mapping[str, Any] = field(default_factory=lambda: asdict(InferenceSettings()))
    """What is known of the :class:`~verl_uae.checkpoints.inference.InferenceSettings`, by name."""
    shift: float | None = None
    """Timestep shift of the sampler; None leaves that of the scheduler."""
    code: bool = False
    """The captioner may bring Python code, which is not run here."""


def publish_model(parts: ModelParts, out: str | Path) -> dict[str, Any]:
    """Write a model folder; it appears under ``out`` complete and verified, or not at all. Returns its manifest. Raises
    `CheckpointError`: ``out`` exists, a part cannot be written, or what was written does not load."""

    def build(folder: Path) -> None:
        parts.decoder(folder)
        if parts.shift is not None:
            set_shift(folder, parts.shift)
        write_index(folder, family_of(folder), parts.entries)
        for name, writer in ((CAPTIONER, parts.captioner), (LANGUAGE_MODEL, parts.language_model)):
            if writer is not None:
                writer(folder / name)
        for path in folder.glob(f"*/*{CONFIG}"):
            # Where parts were loaded from is nobody else's business, and would give one model several digests.
            settings = json.loads(path.read_text(encoding="utf-8"))
            if settings.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        check_model(folder, code=parts.code)
        parts.card.write(folder)
        write_manifest(folder)
        verify_folder(folder, code=parts.code)

    publish_folder(build, out)
    return verify_folder(out, code=parts.code)


def set_shift(folder: Path, shift: float) -> None:
    """Give the scheduler of a decoder folder the timestep shift that the decoder was used with."""
    family_of(folder, shift=shift).save_scheduler(folder)


def write_decoder(folder: Path, parts: Mapping[str, nn.Module | Path], source: Path) -> None:
    """Write the decoder's part of a model folder.

    Args:
        folder: where to.
        parts: components by name, modules or folders to be copied.
        source: decoder folder that the others and the settings of the scheduler are taken from.
    """
    for name, part in parts.items():
        if isinstance(part, Path):
            copy_component(part, folder / name)
        else:
            save_component(part, folder / name)
    for name in (name for name in family_in(folder).components if name not in parts):
        copy_component(source / name, folder / name)
    # Also where a published folder has another solver, or none.
    family = family_of(folder, settings=source)
    family.save_scheduler(folder)
    write_index(folder, family, {})


def save_component(module: Any, folder: Path) -> None:
    """Save a diffusers model and compare what its own class loads from there, tensor by tensor. Raises
    `CheckpointError`: something came back other than written."""
    module.save_pretrained(folder, safe_serialization=True)
    loaded = load_model(type(module), folder, dtype=module.dtype)
    same_tensors(loaded.state_dict(), module.state_dict(), folder)


def copy_component(source: Path, target: Path) -> None:
    """Copy configuration and safetensors of a diffusers component, other variants and pickles left behind. Raises
    `CheckpointError`: the component is missing or has no safetensors."""
    configs = [source / name for name in (CONFIG, SCHEDULER_CONFIG) if (source / name).is_file()]
    if not configs:
        raise CheckpointError(source, "missing: not a component of a diffusers folder")
    weights = [] if configs[0].name == SCHEDULER_CONFIG else weight_files(source)
    index = source.glob("*.safetensors.index.json") if len(weights) > 1 else []
    _copy([*configs, *weights, *index], target)


def copy_transformers(source: Path, target: Path, *, code: bool = False) -> None:
    """Copy a transformers folder with its processor, and with ``code`` the Python files that it needs; pickles and what
    is not part of a model are left behind. Raises `CheckpointError`: there are no safetensors, or they came back other
    than they are in the source."""
    copy_transformers_files(source, target, code=code)
    same_tensors(tensors_of(target), tensors_of(source), target)


def copy_transformers_files(source: Path, target: Path, *, weights: bool = True, code: bool = False) -> None:
    """Copy configuration, processor and tokenizer files and, if asked for, the weights; nothing is overwritten."""
    endings = (*_COPIED, ".py") if code else _COPIED
    files = weight_files(source) if weights else []
    for path in sorted(source.iterdir()):
        hidden = path.name.startswith(".") or path.name in (CARD, MANIFEST, MODEL_INDEX)
        wanted = path.suffix in endings or path.name.upper().startswith(("LICENSE", "NOTICE"))
        if path.is_file() and wanted and not hidden:
            files.append(path)
    _copy([path for path in files if not (target / path.name).exists()], target)


def check_model(folder: Path, *, code: bool = False) -> None:
    """Check that every part of a model folder loads in its stock class, nothing missing and nothing too many, and that
    they fit; with ``code`` the captioner may bring Python code, which is not run. Raises `CheckpointError`: naming the
    part."""
    family = check_components(folder)
    for name in (LANGUAGE_MODEL, CAPTIONER):
        if (folder / name).is_dir():
            kind = language_class(folder / name) if name == LANGUAGE_MODEL else None
            sizes = check_transformers(folder / name, kind, code=code)
            if name == LANGUAGE_MODEL or not (folder / LANGUAGE_MODEL).is_dir():
                family.check(folder, *sizes)


def check_transformers(folder: Path, kind: Any = None, *, code: bool = False) -> tuple[int, int, str]:
    """Load a model with its tokenizer as a user would, by default a vision-language model; returns what
    :func:`~verl_uae.checkpoints.load.language_sizes` says of it. Raises `CheckpointError`: tensors are missing, unknown
    or of another shape, or it does not load at all."""
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    load_tokenizer(folder, code=code)
    model = load_model(kind or AutoModelForImageTextToText, folder, dtype="auto", code=code)
    return language_sizes(model.config)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a component."""
    return dict(read_tensors(folder))


def _copy(files: list[Path], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        # Contents only: files of the hub's cache are links, and modes are the source's business.
        shutil.copyfile(path, target / path.name)
