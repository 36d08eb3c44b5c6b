# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The model that a run started from, by path and content: checkpoints hold what trains, the rest is the base's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from verl_uae.checkpoints.manifest import digests
from verl_uae.checkpoints.names import BASE_FILE, CONDITIONER, TRANSFORMER
from verl_uae.checkpoints.source import local_folder
from verl_uae.checkpoints.weights import read_tensors, weight_files
from verl_uae.errors import CheckpointError
from verl_uae.files import write_json

#: Parts of the policy and their components in a decoder folder.
COMPONENTS = {"transformer": TRANSFORMER, "projector": CONDITIONER}


@dataclass(frozen=True, slots=True)
class Base:
    """A model folder."""

    path: str
    """Folder or hub id, as the run was given it."""
    sha256: str
    """Of the names and SHA-256 of the weight files."""

    @classmethod
    def of(cls, path: str, parts: Sequence[str]) -> Base:
        """Read all weights of a model once.

        Args:
            path: folder or hub id.
            parts: subfolders with weights; ``.`` is the folder itself.

        Raises:
            CheckpointError: there is no such model.
        """
        root = local_folder(path, parts=[part for part in parts if part != "."])
        names = [file.relative_to(root).as_posix() for part in parts for file in weight_files(root / part)]
        try:
            found = digests(root, names)
        except OSError as error:
            raise CheckpointError(root, f"cannot be read: {error}") from error
        lines = "".join(f"{found[name]}  {name}\n" for name in sorted(names))
        return cls(path, hashlib.sha256(lines.encode("utf-8")).hexdigest())

    @classmethod
    def read(cls, shards: Path) -> Base | None:
        """What a checkpoint says of its base; None where it says nothing.

        Raises:
            CheckpointError: what it says cannot be read.
        """
        path = shards / BASE_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(content["path"]), str(content["sha256"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(path, f"cannot be read: {error!r}") from error

    def write(self, shards: Path) -> None:
        """Beside the shards of a checkpoint."""
        write_json(shards / BASE_FILE, asdict(self), sync=True)

    def check(self, given: Base, shards: Path) -> None:
        """Refuse another base than this one.

        Raises:
            CheckpointError: the content differs; the path may.
        """
        if given.sha256 != self.sha256:
            raise CheckpointError(
                shards / BASE_FILE,
                f"trained from {self.path} (SHA-256 {self.sha256[:12]}...), which is not what {given.path} holds now "
                f"({given.sha256[:12]}...): its weights fit that base alone, give the run (or --decoder) that one",
            )


def base_tensors(path: str, names: set[str] | None = None) -> dict[str, Tensor]:
    """Weights of a decoder as they are stored, named as in the policy (``transformer.``, ``projector.``).

    Args:
        path: decoder folder or hub id.
        names: which; None for all.

    Raises:
        CheckpointError: there is no such decoder, or it lacks one of the names.
    """
    root, found = local_folder(path, parts=tuple(COMPONENTS.values())), {}
    for part, component in COMPONENTS.items():
        for name, tensor in read_tensors(root / component, None if names is None else _of(part, names)):
            found[f"{part}.{name}"] = tensor
    missing = sorted((names or set()) - set(found))
    if missing:
        raise CheckpointError(root, f"{len(missing)} weights are missing: {missing[:4]}")
    return found


def filled(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights of the policy: those of a checkpoint, and the base's where it holds none."""
    return {**base, **state}


def _of(part: str, names: set[str]) -> set[str]:
    return {name.removeprefix(f"{part}.") for name in names if name.startswith(f"{part}.")}
