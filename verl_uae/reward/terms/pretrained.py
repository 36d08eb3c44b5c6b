# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Loading a frozen network of transformers for a reward: safetensors only, complete, evaluated."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from verl_uae.checkpoints.load import load_model
from verl_uae.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is not one of ``known``.

    Raises:
        ConfigError: naming the key.
    """
    if value not in known:
        listed = ", ".join(repr(name) for name in known[:-1])
        raise ConfigError(key, f"must be {listed} or {known[-1]!r}, got {value!r}")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' list of weights that a part of a model does not use."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_frozen(
    network_class: Any, model: str, revision: str | None, dtype: torch.dtype, key: str, name: str
) -> nn.Module:
    """A network, frozen, in evaluation mode, on the CPU; the global random generator is left alone.

    Args:
        network_class: class of transformers.
        model: folder or hub id; a whole model or the part wanted. safetensors only, no remote code.
        revision: commit of the hub repository.
        dtype: of the weights.
        key: configuration key of ``model``, for errors.
        name: what it should be, for errors.

    Raises:
        ConfigError: where something is missing, of the model or of its weights, or the model has registers of its own.
    """
    # What a network does not know is left out, as the text tower of a whole CLIP; registers take part in every layer.
    options: dict[str, Any] = {"revision": revision, "may_ignore": lambda weight: "register_tokens" not in weight}
    try:
        network = load_model(network_class, model, dtype=dtype, **options)
    except CheckpointError as error:
        raise ConfigError(key, f"{model!r} cannot be loaded as a {name} model: {error.message}") from error
    # A part's own configuration, as CLIP's text tower's, does not know the commit.
    commit = network_class.config_class.get_config_dict(model, revision=revision)[0].get("_commit_hash")
    if commit is not None and commit != revision:
        logger.info("%s: %s at commit %s; give it as revision to load the same weights later", key, model, commit)
    frozen: nn.Module = network.requires_grad_(False)
    return frozen


def processor_settings(model: str, revision: str | None) -> Mapping[str, Any] | None:
    """Contents of the model's ``preprocessor_config.json``; None where there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(model, revision=revision)
    except OSError:
        return None
    found: Mapping[str, Any] = settings
    return found
