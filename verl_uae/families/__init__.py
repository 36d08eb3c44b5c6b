# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Families of decoders: everything that differs from one kind of image model to the next, one file each.

A family is found by the class of transformer that a decoder folder names. Another package publishes its own under the
entry point group ``verl_uae.families``, the name of the entry point being that class; see :mod:`verl_uae.registry`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from verl_uae.checkpoints.names import CONFIG, MODEL_INDEX, SCHEDULER, TRANSFORMER
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.registry import Registry

if TYPE_CHECKING:
    from verl_uae.families.family import DecoderFamily

ENTRY_POINT_GROUP = "verl_uae.families"

#: Class of transformer -> "module:class". A family of ours is registered by its line here and by nothing else.
BUILT_IN: Mapping[str, str] = {
    "SD3Transformer2DModel": "verl_uae.families.sd3:SD3",
    "Flux3Transformer2DModel": "verl_uae.families.flux3:Flux3",
    "Flux2Transformer2DModel": "verl_uae.families.flux2_klein:Flux2Klein",
    "QwenImageTransformer2DModel": "verl_uae.families.qwen_image:QwenImage",
    "Krea2Transformer2DModel": "verl_uae.families.krea2:Krea2",
    "QwenImage21Transformer2DModel": "verl_uae.families.qwen_image21:QwenImage21",
    "ZImageTransformer2DModel": "verl_uae.families.z_image:ZImage",
    "SanaTransformer2DModel": "verl_uae.families.sana:Sana",
}


def family_class(name: str, key: str = "transformer") -> type[DecoderFamily]:
    """The family of a class of transformer, imported if need be; ``key`` is where the name came from, for errors.

    Raises:
        ConfigError: there is none (lists the known and the closest), or it does not import, as where diffusers is older
            than the class.
    """
    if name in BUILT_IN:
        _check_diffusers(name, key)
    return FAMILIES.get(name, key)


def _check_diffusers(name: str, key: str) -> None:
    import diffusers

    try:
        there = hasattr(diffusers, name)
    except RuntimeError:
        # It is there and does not import, of which the import of the family tells.
        return
    if not there:
        python = " (0.42 needs Python 3.11)" if sys.version_info < (3, 11) else ""
        raise ConfigError(key, f"diffusers {diffusers.__version__} has no {name}: install a newer one{python}")


def family_of(source: str | Path, *, settings: Path | None = None, **options: Any) -> DecoderFamily:
    """The family of a decoder, from its configurations alone.

    Args:
        source: decoder folder or hub id.
        settings: local folder with scheduler and index; None is the same one.
        options: ``length``, ``role`` and ``shift`` of :class:`~verl_uae.families.family.DecoderFamily`.

    Raises:
        CheckpointError: a component is missing, its family is not known, or its kind is one that cannot be trained.
    """
    # Imported here: who asks for a class by name needs no torch.
    from verl_uae.checkpoints.source import local_folder, read_object

    # Of the hub the configurations alone are fetched.
    root = local_folder(source, parts=(SCHEDULER,))
    kind = check_decoder_folder(root)
    settings = root if settings is None else settings
    index = read_object(settings / MODEL_INDEX) if (settings / MODEL_INDEX).is_file() else {}
    configs = {name: _completed(component, root / name) for name, component in kind.components.items()}
    try:
        return kind(configs, kind.read_scheduler(settings), index, **options)
    except ValueError as error:
        raise CheckpointError(root / TRANSFORMER, str(error)) from error


def family_of_modules(
    modules: Mapping[str, Any], scheduler: Any, index: Mapping[str, Any] | None = None, **options: Any
) -> DecoderFamily:
    """The family of components at hand.

    Args:
        modules: components by their folders' names, as far as what is asked of the family needs them.
        scheduler: settings of its scheduler, those that are not given by diffusers' defaults.
        index, options: as of :class:`~verl_uae.families.family.DecoderFamily`.

    Raises:
        ConfigError: there is no such family.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    # Where it has been compiled, that is wrapped around it.
    transformer = getattr(modules[TRANSFORMER], "_orig_mod", modules[TRANSFORMER])
    kind = family_class(type(transformer).__name__)
    configs = {name: modules[name].config for name in kind.components if name in modules}
    settings = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler)).config
    return kind(configs, settings, index, **options)


def family_in(root: Path) -> type[DecoderFamily]:
    """The class of the family of a local folder, by ``transformer/`` in it.

    Raises:
        CheckpointError: there is none, or its class of transformer is not known.
    """
    from verl_uae.checkpoints.source import read_object

    if not (root / TRANSFORMER).is_dir():
        raise CheckpointError(root, _incomplete(TRANSFORMER))
    config = root / TRANSFORMER / CONFIG
    if not config.is_file():
        raise CheckpointError(config, "missing: it names the class of the transformer")
    try:
        return family_class(str(read_object(config).get("_class_name")))
    except ConfigError as error:
        raise CheckpointError(config, error.message) from error


def check_decoder_folder(root: Path) -> type[DecoderFamily]:
    """:func:`family_in` a local decoder folder, which has a folder of each of its components.

    Raises:
        CheckpointError: naming the component that is missing, or the class of transformer that is not known.
    """
    kind = family_in(root)
    for name in kind.components:
        if not (root / name).is_dir():
            raise CheckpointError(root, _incomplete(name))
    return kind


def check_components(folder: str | Path) -> DecoderFamily:
    """Names and shapes of every component of a local decoder folder, and whether they fit; no weight is read.

    Raises:
        CheckpointError: naming the component or its tensor.
    """
    from verl_uae.checkpoints.load import check_weights

    for name, kind in check_decoder_folder(Path(folder)).components.items():
        check_weights(kind, Path(folder, name))
    family = family_of(folder)
    family.check(folder)
    return family


def check_decoder(folder: str | Path) -> None:
    """:func:`check_decoder_folder`, files of every component, and :func:`check_components`.

    Raises:
        CheckpointError: naming the component, its file or its tensor.
    """
    from verl_uae.checkpoints.load import check_files

    for name in check_decoder_folder(Path(folder)).components:
        check_files(Path(folder, name))
    check_components(folder)


def _incomplete(part: str) -> str:
    return f"is no model and no decoder folder: it has no {part}/; verl-uae import and export write such"


def default_config(kind: Any) -> dict[str, Any]:
    """Settings of a class of components that no configuration changes."""
    parameters = inspect.signature(kind.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _completed(kind: Any, folder: Path) -> SimpleNamespace:
    """A component's configuration as its class completes it, without building one."""
    try:
        return SimpleNamespace(**{**default_config(kind), **kind.load_config(folder)})
    except OSError as error:
        raise CheckpointError(folder, f"has no configuration: {error}") from error


def _checked(item: Any, name: str) -> type[DecoderFamily]:
    from verl_uae.families.family import DecoderFamily

    if not (isinstance(item, type) and issubclass(item, DecoderFamily)):
        raise TypeError(f"the family of {name} must be a subclass of DecoderFamily")
    return item


FAMILIES: Registry[type[DecoderFamily]] = Registry(
    "class of transformer", "transformer", ENTRY_POINT_GROUP, _checked, BUILT_IN
)
