# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The trained decoder in a training checkpoint, and the base that it started from, by path and content: checkpoints
hold what trains, the rest is the base's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from verl_uae.checkpoints.lora import Adapters, adapter_alpha, merge, split_adapters
from verl_uae.checkpoints.manifest import digests
from verl_uae.checkpoints.names import BASE_FILE, HUGGINGFACE, POLICY_FOLDER, SCHEDULER
from verl_uae.checkpoints.shards import LIVE, read_shards, weight_copies
from verl_uae.checkpoints.source import local_folder, read_tensors, weight_files
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import family_in
from verl_uae.files import write_json

EMA = "ema"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Base:
    """A model folder."""

    path: str
    """Folder or hub id, as the run was given it."""
    sha256: str
    """Of the names and SHA-256 of the weight files."""

    @classmethod
    def of(cls, path: str, parts: Sequence[str]) -> Base:
        """Read all weights of a model once: of a folder or hub id the ``parts`` with weights, ``.`` being the folder
        itself. Raises `CheckpointError`: there is no such model."""
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
        """What a checkpoint says of its base; None where it says nothing. Raises `CheckpointError`: what it says cannot
        be read."""
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
        """Refuse another base than this one. Raises `CheckpointError`: the content differs; the path may."""
        if given.sha256 != self.sha256:
            raise CheckpointError(
                shards / BASE_FILE,
                f"trained from {self.path} (SHA-256 {self.sha256[:12]}...), which is not what {given.path} holds now "
                f"({given.sha256[:12]}...): its weights fit that base alone, give the run (or --decoder) that one",
            )


def base_tensors(path: str, names: set[str] | None = None) -> dict[str, Tensor]:
    """Weights of a decoder folder or hub id as they are stored, named as in the policy (``transformer.``,
    ``projector.``), by some names or all. Raises `CheckpointError`: there is no such decoder, or one is missing."""
    parts = trained_parts(path)
    root = local_folder(path, parts=tuple(parts.values()))
    found: dict[str, Tensor] = {}
    for part, component in parts.items():
        wanted = None if names is None else _of(part, dict.fromkeys(names))
        found |= {f"{part}.{name}": tensor for name, tensor in read_tensors(root / component, wanted)}
    if missing := sorted((names or set()) - set(found)):
        raise CheckpointError(root, f"{len(missing)} weights are missing: {missing[:4]}")
    return found


def trained_parts(path: str | Path) -> Mapping[str, str]:
    """Part of the policy -> its folder, of a decoder folder or hub id. Raises `CheckpointError`: it is none."""
    # Of the hub the configurations alone are fetched.
    return family_in(local_folder(path, parts=(SCHEDULER,))).trained


def chosen_weights(checkpoint: Path, wanted: str | None) -> str:
    """Which weights to export: those asked for, else the averaged ones if there are any, else the live ones."""
    if wanted is not None:
        return wanted
    return EMA if EMA in weight_copies(checkpoint / POLICY_FOLDER) else LIVE


def decoder_modules(checkpoint: Path, weights: str, base: str | Path | None, alpha: float | None) -> dict[str, Any]:
    """What a policy trains of a decoder, by the folder of the component, adapters multiplied out.

    Args:
        checkpoint: step folder with ``decoder_policy/``.
        weights: ``live`` or ``ema``.
        base: decoder folder or hub id that the run started from, for the weights that it did not train; None is the one
            that the checkpoint names.
        alpha: of the adapters, if the checkpoint does not say.

    Raises `CheckpointError`: shards, adapters or configurations do not fit together; `ConfigError`: alpha is needed, or
    is another than the checkpoint's.
    """
    folder = checkpoint / POLICY_FOLDER
    state, layers = split_adapters(read_shards(folder, weights), folder)
    parts = family_in(folder / HUGGINGFACE).trained
    modules = {part: _empty(component, folder) for part, component in parts.items()}
    if any(f"{part}.{name}" not in state for part, module in modules.items() for name in module.state_dict()):
        state = {**_base_state(base, folder), **state}
    if layers:
        adapters = Adapters(layers, adapter_alpha(folder, layers, alpha))
        state = merge(state, layers, adapters.scaling, folder)
    for part, module in modules.items():
        try:
            module.load_state_dict(_of(part, state), assign=True)
        except RuntimeError as error:
            raise CheckpointError(folder, f"the {part} does not fit its configuration: {error}") from error
        module.requires_grad_(False)
    if unknown := sorted(name for name in state if name.partition(".")[0] not in parts):
        raise CheckpointError(folder, f"{len(unknown)} tensors belong to no part of the decoder: {unknown[:4]}")
    return {component: modules[part] for part, component in parts.items()}


def decoder_adapters(checkpoint: Path, weights: str, base: str | Path | None, alpha: float | None) -> Adapters:
    """The adapters alone, of a run that trained nothing else. Raises `CheckpointError`: the run trained no adapters, or
    the projector too, which adapter formats cannot hold; `ConfigError`: see :func:`decoder_modules`."""
    folder = checkpoint / POLICY_FOLDER
    state, layers = split_adapters(read_shards(folder, weights), folder)
    if not layers:
        raise CheckpointError(folder, "the run trained full weights, not adapters")
    projector = _of("projector", state)
    if projector and (base is not None or Base.read(folder) is not None):
        before = _of("projector", _base_state(base, folder))
        if any(not torch.equal(tensor, before[name].to(tensor.dtype)) for name, tensor in projector.items()):
            reason = "the projector was trained too, which an adapter cannot hold: export a folder"
            raise CheckpointError(folder, reason)
    named = _of("transformer", layers)
    if len(named) != len(layers):
        raise CheckpointError(folder, "there are adapters outside the transformer")
    return Adapters(named, adapter_alpha(folder, layers, alpha))


def _base_state(base: str | Path | None, folder: Path) -> dict[str, Tensor]:
    """Weights of the base: the one that is given, else the one that the checkpoint names; the same by content."""
    recorded = Base.read(folder)
    path = str(base) if base is not None else recorded.path if recorded else None
    if path is None:
        raise ConfigError(
            "--decoder", f"needed: {folder} holds adapters alone, or other trained weights without the frozen ones"
        )
    if recorded is not None:
        recorded.check(Base.of(path, tuple(trained_parts(path).values())), folder)
    return base_tensors(path)


def _empty(component: str, folder: Path) -> Any:
    """A component of the policy without weights, of the configuration in the checkpoint."""
    path = folder / HUGGINGFACE / component
    kind = family_in(folder / HUGGINGFACE).components[component]
    try:
        config = kind.load_config(path)
    except OSError as error:
        raise CheckpointError(path, f"has no configuration: {error}") from error
    with torch.device("meta"):
        return kind.from_config(config)


def _of(part: str, named: Mapping[str, T]) -> dict[str, T]:
    """What is named of a part, by its names there."""
    return {name.removeprefix(f"{part}."): value for name, value in named.items() if name.startswith(f"{part}.")}
