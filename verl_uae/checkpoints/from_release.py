# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Import of the official UAE release (September 2025): a language model and a MM-DiT, each with adapters, made one.

======================================  ============================================================================
folder of the release (either name)     content
======================================  ============================================================================
``SD3``, ``SD3_model``                  SD3.5-Large as published: vae/, scheduler/, both CLIP text encoders
``llm``, ``llm_model``                  Qwen2.5-VL-3B with the projector
``llm_lora``                            shards of the same with adapters of rank 32, alpha 64 on every linear layer
``dit``                                 SD3Transformer2DModel
``dit_lora``                            peft adapter of it
``llm_processor``,                      processor and tokenizer
``llm_model_preprocessor``
======================================  ============================================================================

The release loads ``llm_lora`` leniently; here every tensor has a place or is an error. As in the release, one language
model writes captions and makes conditions.

The release was written with transformers 4.50, where ``Qwen2_5_VLForConditionalGeneration`` is ``visual`` (tower),
``model`` (language model) and ``lm_head``, with ``projector`` added by the release's subclass. peft was wrapped around
``model`` alone. Since 4.52 the class in memory is ``model.visual``, ``model.language_model`` and ``lm_head``, but 5.x
still reads and writes the older names on disk, so a captioner's folder has them today too, and only these remain:

==============================================================  ====================================================
name in the shards of ``llm_lora``                              becomes
==============================================================  ====================================================
``visual.<rest>``, ``lm_head.weight``                           the same
``model.base_model.model.<rest>``                               ``model.<rest>``
``model.base_model.model.<layer>.base_layer.{weight,bias}``     ``model.<layer>.{weight,bias}``
``model.base_model.model.<layer>.lora_{A,B}.default.weight``    multiplied into ``model.<layer>.weight``
``projector.0.{weight,bias}``, ``projector.2.{weight,bias}``    ``layers.0...``, ``layers.2...`` of the projector
==============================================================  ====================================================

``llm`` holds the same without ``base_model.model.``, ``base_layer`` and adapters. Source: demo.py and
modeling_longcontext.py of the official inference code.

Shape legend: R rank.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from safetensors import safe_open
from torch import Tensor

from verl_uae.chain.projector import Projector
from verl_uae.checkpoints.assemble import ModelParts, copy_transformers_files, publish_model, tensors_of, write_decoder
from verl_uae.checkpoints.card import Card
from verl_uae.checkpoints.from_sd3 import empty_prompt_pooled
from verl_uae.checkpoints.inference import InferenceSettings
from verl_uae.checkpoints.load import load_config, load_model
from verl_uae.checkpoints.lora import merge, split_adapters
from verl_uae.checkpoints.names import ADAPTER_WEIGHTS, GENERATION_CONFIG
from verl_uae.checkpoints.source import check_safetensors, local_folder, pickles, same_tensors
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError

_NAMES = {
    "sd3": ("SD3", "SD3_model"),
    "llm": ("llm", "llm_model"),
    "llm_lora": ("llm_lora",),
    "dit": ("dit",),
    "dit_lora": ("dit_lora",),
    "processor": ("llm_processor", "llm_model_preprocessor"),
}

_PEFT = "model.base_model.model."
_PROJECTOR = "projector."
_PROJECTOR_NAMES = {f"projector.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class LanguageState:
    """Weights of a language model of the release, under the names of a captioner's folder."""

    model: dict[str, Tensor]
    projector: dict[str, Tensor]
    """Under the names of :class:`~verl_uae.chain.projector.Projector`, without the pooled vector; may be empty."""
    adapters: dict[str, tuple[Tensor, Tensor]]
    """Layer -> A (R, I) and B (O, R)."""


@dataclass(frozen=True, slots=True)
class ReleaseImport:
    """What to import."""

    release: str
    """Folder of the release or hub id."""
    revision: str | None = None
    lora_rank: int = 32
    """R of the language model's adapters."""
    lora_alpha: int = 64
    condition_length: int = 640
    condition_role: str = "generate"


def import_release(settings: ReleaseImport, out: str | Path) -> dict[str, Any]:
    """Write the release as a model folder, adapters multiplied out.

    Args:
        settings: see the class.
        out: must not exist.

    Returns:
        The manifest of the folder.

    Raises:
        CheckpointError: a folder of the release is missing, or a tensor of it has no place or none for its place.
    """
    root = local_folder(settings.release, revision=settings.revision)
    folders = {part: _folder(root, names) for part, names in _NAMES.items()}
    model, language = _language_model(folders, settings)
    transformer = _transformer(folders["dit"], folders["dit_lora"])
    projector = _projector(language.projector, empty_prompt_pooled(folders["sd3"]), folders["llm"])

    def write_encoder(folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)
        copy_transformers_files(folders["processor"], folder, weights=False)
        generation = folders["llm"] / GENERATION_CONFIG
        if generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        same_tensors(tensors_of(folder), language.model, folder)

    parts = ModelParts(
        decoder=lambda folder: write_decoder(folder, transformer, projector, folders["sd3"]),
        encoder=write_encoder,
        card=_card(settings),
        entries=asdict(
            InferenceSettings(condition_length=settings.condition_length, condition_role=settings.condition_role)
        ),
    )
    return publish_model(parts, out)


def _folder(root: Path, names: tuple[str, ...]) -> Path:
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) != 1:
        raise CheckpointError(root, f"not a UAE release: {len(found)} folders are called {' or '.join(names)}")
    return found[0]


def _language_model(folders: dict[str, Path], settings: ReleaseImport) -> tuple[Any, LanguageState]:
    """The captioner with adapters multiplied out, and its weights under the names of a captioner's folder."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLForConditionalGeneration

    where = folders["llm_lora"]
    config = load_config(folders["llm"])
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    names = _names_on_disk(model)
    before = sort_llm(tensors_of(folders["llm"]), names, folders["llm"])
    after = sort_llm_lora(_shards(where), names, where, rank=settings.lora_rank)
    scaling = settings.lora_alpha / settings.lora_rank
    merged = merge(after.model, after.adapters, scaling, where)
    if _HEAD in merged and _HEAD not in names and not torch.equal(merged[_HEAD], merged[_EMBEDDING]):
        raise CheckpointError(where, f"{_HEAD} differs from {_EMBEDDING}, though the configuration ties them")
    tensors = {name: tensor for name, tensor in merged.items() if name in names}
    for name, tensor in tensors.items():
        if tensor.shape != before.model[name].shape:
            raise CheckpointError(where, f"{name} has shape {tuple(tensor.shape)}, in {folders['llm'].name} another")
    _fill(model, names, tensors)
    projector = after.projector or before.projector
    return model, LanguageState(tensors, projector, after.adapters)


def _names_on_disk(model: Any) -> dict[str, str]:
    """Names of a captioner's folder -> names in the module."""
    tied = bool(model.config.tie_word_embeddings)
    names = {}
    for name in model.state_dict():
        if tied and name == "lm_head.weight":
            continue
        names[name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)] = name
    return names


def _fill(model: Any, names: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Give a module on the device ``meta`` its weights."""
    model.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, left


def _shards(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``llm_lora``, whose shards need no index."""
    if found := pickles(folder):
        raise CheckpointError(found[0], "pickles are refused; the release's adapters are safetensors")
    files = sorted(folder.glob("*.safetensors"))
    state: dict[str, Tensor] = {}
    for path in files:
        check_safetensors(path)
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():
                if name in state:
                    raise CheckpointError(path, f"{name} is in another shard too")
                state[name] = opened.get_tensor(name)
    if not state:
        raise CheckpointError(folder, "has no safetensors")
    return state


def _transformer(dit: Path, adapter: Path) -> Any:
    """The MM-DiT with its adapter multiplied out, in the dtype it is stored in."""
    from peft import PeftModel, get_peft_model_state_dict

    stored = tensors_of(dit)
    dtype = next(tensor.dtype for tensor in stored.values() if tensor.is_floating_point())
    base = load_model(SD3Transformer2DModel, dit)
    file = adapter / ADAPTER_WEIGHTS
    written = set(check_safetensors(file))
    try:
        adapted = PeftModel.from_pretrained(base, str(adapter))
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(adapter, f"no peft adapter of the transformer: {error}") from error
    odd = sorted(written ^ set(get_peft_model_state_dict(adapted)))
    if odd:
        raise CheckpointError(file, f"{len(odd)} tensors have no place in the transformer or are missing: {odd[:4]}")
    return _cast(adapted.merge_and_unload(safe_merge=True), dtype)


def _projector(state: dict[str, Tensor], pooled: Tensor, where: Path) -> Projector:
    if not state:
        raise CheckpointError(where, "has no projector.* tensors")
    hidden, width = state["layers.0.weight"].shape
    projector = Projector(width, hidden, state["layers.2.weight"].shape[0], pooled.numel())
    dtype = state["layers.0.weight"].dtype
    try:
        projector.load_state_dict({**state, "pooled": pooled})
    except RuntimeError as error:
        raise CheckpointError(where, f"the projector's layers do not fit: {error}") from error
    return _cast(projector, dtype)


def _cast(module: Any, dtype: torch.dtype) -> Any:
    return module if module.dtype == dtype else module.to(dtype)


def sort_llm(state: Mapping[str, Tensor], known: Iterable[str], where: Path) -> LanguageState:
    """Sort the tensors of ``llm``.

    Args:
        state: by name as in the file.
        known: names that a captioner's folder of this configuration has.
        where: what errors name.

    Raises:
        CheckpointError: naming the tensors that are missing or unknown.
    """
    model, projector = _split_projector(state)
    _account(model, projector, set(known), where)
    return LanguageState(model, projector, {})


def sort_llm_lora(state: Mapping[str, Tensor], known: Iterable[str], where: Path, *, rank: int) -> LanguageState:
    """Sort the tensors of ``llm_lora``: the whole language model again, with an adapter on every linear layer of it.

    Args:
        state: by name as in the shards.
        known: names that a captioner's folder of this configuration has.
        where: what errors name.
        rank: R of the adapters.

    Raises:
        CheckpointError: naming the tensors that are missing or unknown, layers without adapter, or another rank.
    """
    rest, projector = _split_projector(state)
    unwrapped = sorted(name for name in rest if name.startswith("model.") and not name.startswith(_PEFT))
    if unwrapped:
        raise CheckpointError(where, f"{len(unwrapped)} tensors are not below {_PEFT}: {unwrapped[:4]}")
    adapted = {name.partition(".base_layer.")[0] for name in rest if ".base_layer." in name}
    base, layers = split_adapters(rest, where)
    odd = sorted(adapted ^ set(layers))
    if odd:
        raise CheckpointError(where, f"{len(odd)} layers have an adapter without base layer or the reverse: {odd[:4]}")
    model = {_plain(name): tensor for name, tensor in base.items()}
    adapters = {_plain(name): halves for name, halves in layers.items()}
    _account(model, projector, set(known), where)
    bare = sorted(name for name in _linear(model) - set(adapters))
    if bare:
        raise CheckpointError(where, f"{len(bare)} linear layers of the language model have no adapter: {bare[:4]}")
    ranks = {a_RI.shape[0] for a_RI, _ in adapters.values()}
    if ranks != {rank}:
        raise CheckpointError(where, f"adapters of rank {sorted(ranks)}, expected {rank}")
    return LanguageState(model, projector, adapters)


def _linear(model: Mapping[str, Tensor]) -> set[str]:
    """Linear layers of the language model: its matrices but the embedding (``all-linear``)."""
    return {
        name.removesuffix(".weight")
        for name, tensor in model.items()
        if name.startswith("model.") and name.endswith(".weight") and tensor.ndim == 2 and "embed_tokens" not in name
    }


def _split_projector(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = {name: tensor for name, tensor in state.items() if not name.startswith(_PROJECTOR)}
    return model, {name: tensor for name, tensor in state.items() if name.startswith(_PROJECTOR)}


def _account(model: Mapping[str, Tensor], projector: dict[str, Tensor], known: set[str], where: Path) -> None:
    """Every tensor has a place and every place a tensor; then give the projector its names here."""
    unknown = sorted(set(model) - known) + sorted(set(projector) - _PROJECTOR_NAMES)
    # Written too where it is the embedding itself, which a captioner's folder leaves out.
    tied = {_HEAD} if _HEAD not in known else set()
    unknown = [name for name in unknown if name not in tied]
    missing = sorted(known - set(model))
    if projector:
        missing += sorted(_PROJECTOR_NAMES - set(projector))
    if unknown or missing:
        raise CheckpointError(
            where, f"{len(unknown)} tensors have no place: {unknown[:4]}; {len(missing)} are missing: {missing[:4]}"
        )
    for name in list(projector):
        projector[name.replace(_PROJECTOR, "layers.")] = projector.pop(name)


def _plain(name: str) -> str:
    return "model." + name[len(_PEFT) :] if name.startswith(_PEFT) else name


def _card(settings: ReleaseImport) -> Card:
    at = f" at {settings.revision}" if settings.revision else ""
    return Card(
        title="UAE, official weights of September 2025",
        origin="Imported from the official release (arXiv 2509.09666), adapters of both models multiplied out.",
        base_models={
            "all": settings.release + at,
            "encoder": "Qwen2.5-VL-3B-Instruct, by way of the release",
            "transformer, vae, scheduler": "Stable Diffusion 3.5 Large, by way of the release",
        },
        constants={
            "lora_rank": settings.lora_rank,
            "lora_alpha": settings.lora_alpha,
            "condition_length": settings.condition_length,
            "condition_role": settings.condition_role,
        },
    )
