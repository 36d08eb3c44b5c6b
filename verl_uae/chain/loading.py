# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the pipeline is given: arguments, and of a model folder what diffusers cannot load by itself.

That is the captioner, its processor, and the precision rule. Wrong arguments raise ``ValueError``, as diffusers' own
checks do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verl_uae.checkpoints import load
from verl_uae.checkpoints.names import CAPTIONER, CONFIG, GENERATION_CONFIG, LANGUAGE_MODEL, PROCESSOR_FILES, VAE
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError
from verl_uae.paths import expand, is_hub_id, model_source
from verl_uae.waiting import saying

Dtype = torch.dtype | dict[str, torch.dtype]

#: What is downloaded of a hub repository; pickles are not.
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.md")
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def local_folder(source: str | os.PathLike[str], kwargs: dict[str, Any]) -> Path:
    """The folder itself, or a download of a hub repository.

    Args:
        source: folder or hub id.
        kwargs: arguments of ``from_pretrained``; those of the hub are taken out.

    Raises:
        CheckpointError: it is neither, or it cannot be downloaded.
    """
    hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}
    source = model_source(source)
    if not is_hub_id(source):
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Not diffusers' own download, which leaves out the tokenizer files beside a model's weights.
        with saying(f"{source} from the hub"):
            return Path(snapshot_download(str(source), allow_patterns=list(_DOWNLOADED), **hub))
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(str(source), f"neither a folder nor a repository that can be read: {reason}") from error


def keep_vae_fp32(dtype: Dtype | None) -> dict[str, torch.dtype]:
    """A dtype per component: as asked for, but fp32 for the VAE (see :meth:`Decoder.from_pretrained`)."""
    table = dict(dtype) if isinstance(dtype, dict) else {"default": dtype or torch.float32}
    return {**table, VAE: torch.float32}


def dtype_of(name: str, dtype: Mapping[str, torch.dtype]) -> torch.dtype:
    """What :func:`keep_vae_fp32` says of one component."""
    return dtype.get(name, dtype.get("default", torch.float32))


def load_language_model(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The model of a transformers folder whose states are conditions, or None where there is none; arguments and error
    as of :func:`load_model`."""
    kind = load.language_class(folder) if (folder / CONFIG).is_file() else None
    return load_model(folder, dtype, kind, **options)


def load_tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a transformers folder, or None where it has none.

    Raises:
        CheckpointError: it does not load.
    """
    return load.load_tokenizer(folder) if any((folder / file).is_file() for file in PROCESSOR_FILES) else None


def load_model(folder: str | Path, dtype: torch.dtype, kind: Any = None, **options: Any) -> Any:
    """The vision-language model of a transformers folder, or None where there is none.

    Args:
        folder: local folder.
        dtype: of the weights.
        kind: class of transformers in place of that of vision-language models.
        options: more arguments of :func:`~verl_uae.checkpoints.load.load_model`.

    Raises:
        CheckpointError: it does not load, or not as a whole.
    """
    if not (expand(folder) / CONFIG).is_file():
        return None
    ensure_torchvision()
    from transformers import AutoModelForImageTextToText

    model = load.load_model(kind or AutoModelForImageTextToText, folder, dtype=dtype, **options)
    if kind is None:
        _check_tokens(model, expand(folder))
    return model


def _check_tokens(model: Any, folder: Path) -> None:
    """Tokens that end a caption or may not be in one are tokens of the model."""
    count = model.config.get_text_config().vocab_size
    for name in ("eos_token_id", "suppress_tokens"):
        value = getattr(model.generation_config, name, None)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (type(token) is int and 0 <= token < count):
                raise CheckpointError(
                    folder / GENERATION_CONFIG, f"{name} {token!r} is none of the {count} tokens of the model"
                )


def load_processor(root: Path) -> Any:
    """The processor from the first of captioner/ and language_model/ of a model folder that has one, or None.

    Raises:
        CheckpointError: it does not load.
    """
    found = (load_processor_of(root / name) for name in (CAPTIONER, LANGUAGE_MODEL))
    return next((processor for processor in found if processor is not None), None)


def load_processor_of(folder: str | Path) -> Any:
    """The processor of a transformers folder, or None where it has none.

    Raises:
        CheckpointError: it does not load, or its chat template cannot be used.
    """
    if not any((expand(folder) / file).is_file() for file in PROCESSOR_FILES):
        return None
    processor = load.load_processor(folder)
    load.check_template(processor, folder)
    return processor


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def generator_list(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> Sequence[torch.Generator]:
    """One generator for all, or one for each of ``count``; torch's default one for None."""
    if generator is None:
        return [torch.default_generator]
    generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) not in (1, count):
        raise ValueError(f"{len(generators)} generators for {count} pictures")
    return generators


def sigma_table(sigmas: Sequence[float] | Tensor) -> Tensor:
    """Noise levels given by hand, fp32."""
    table = torch.as_tensor(sigmas, dtype=torch.float32)
    falling = table.ndim == 1 and len(table) > 1 and bool((table.diff() < 0).all())
    if not falling or not 0.0 <= float(table.min()) <= float(table.max()) <= 1.0:
        raise ValueError(f"sigmas must be at least two falling noise levels in [0, 1], got {table.tolist()}")
    return table


def check_drawing(prompts: Sequence[str], images_per_prompt: int, output_type: str) -> None:
    """Texts, how many pictures of each, and how they are returned."""
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompt must be a string or a list of strings, got {prompts!r}")
    if not isinstance(images_per_prompt, int) or isinstance(images_per_prompt, bool) or images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt must be a whole number of at least 1, got {images_per_prompt!r}")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")


def check_callback(names: Sequence[str], known: Sequence[str]) -> None:
    """Tensors that a callback asks for."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"callback_on_step_end_tensor_inputs must be among {list(known)}, got {unknown}")
