# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Names of tensors in the official UAE release, and what becomes of each.

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
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from verl_uae.checkpoints.lora import split_adapters
from verl_uae.errors import CheckpointError

_PEFT = "model.base_model.model."
_PROJECTOR = "projector."
_HEAD = "lm_head.weight"
_PROJECTOR_NAMES = {f"projector.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")}


@dataclass(frozen=True, slots=True)
class LanguageState:
    """Weights of a language model of the release, under the names of a captioner's folder."""

    model: dict[str, Tensor]
    projector: dict[str, Tensor]
    """Under the names of :class:`~verl_uae.chain.projector.Projector`, without the pooled vector; may be empty."""
    adapters: dict[str, tuple[Tensor, Tensor]]
    """Layer -> A (R, I) and B (O, R)."""


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
