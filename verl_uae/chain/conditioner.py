# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Caption -> condition: text-only states of the language model.

Shape legend: B captions, L fixed text length, E language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from jinja2 import TemplateError
from torch import Tensor, nn

from verl_uae.checkpoints.load import load_model, load_tokenizer
from verl_uae.compat import ensure_torchvision
from verl_uae.devices import FittingBatch, is_out_of_memory, one_by_one
from verl_uae.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Condition:
    """What the decoder is conditioned on."""

    states_BLE: Tensor
    """Last-layer states, zero at pad positions, shape (B, L, E)."""

    mask_BL: Tensor
    """True at real tokens, shape (B, L)."""

    truncated_B: Tensor
    """True where the caption did not fit and was cut at a token boundary, shape (B,)."""


def around_caption(tokenizer: Any, *, length: int, role: str) -> tuple[list[int], list[int]]:
    """Token ids before and behind the caption, found by rendering the chat template with a marker.

    Args:
        tokenizer, length, role: see `Conditioner`.

    Raises:
        ConfigError: naming the setting of a model folder: the template does not take the role, or leaves no room.
    """
    marker = "\ue000"
    turns = [{"role": role, "content": marker}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError) as error:
        raise ConfigError("condition_role", f"the chat template refuses the role {role!r}: {error}") from error
    before, found, after = text.partition(marker)
    if not found:
        raise ConfigError("condition_role", f"the chat template drops the content of role {role!r}")
    prefix, suffix = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    needed = len(prefix) + len(suffix)
    if length <= needed:
        reason = f"{length} leaves no room for a caption: the chat template alone takes {needed} tokens"
        raise ConfigError("condition_length", reason)
    return prefix, suffix


class Conditioner(nn.Module):
    """Re-encodes a caption text-only with a frozen language model (uae_paper: role ``generate``).

    The states come from the caption alone: the image is not in the context, so the text is a true bottleneck
    and training sees what deployment sees. SD3 has no text mask, therefore every caption is right-padded to one
    fixed length and the states at pads are set to zero: the number of pads would otherwise change the picture.

    Args:
        language_model: a decoder-only stack that takes ``input_ids`` and returns ``last_hidden_state``.
        tokenizer: a transformers tokenizer with a chat template.
        length: L, fixed number of text positions, template included.
        role: chat role of the caption turn.
    """

    def __init__(self, language_model: nn.Module, tokenizer: Any, *, length: int, role: str = "generate") -> None:
        super().__init__()
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.length = length
        self.role = role
        self._prefix, self._suffix = around_caption(tokenizer, length=length, role=role)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        length: int,
        role: str = "generate",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Conditioner:
        """Load the language half of a vision-language model.

        Args:
            path: transformers folder or hub id of a Qwen2.5-VL type model.
            length: see the class.
            role: see the class.
            dtype: dtype of the weights.
            device: where the weights live.

        Raises:
            CheckpointError: there is no such model, or it does not load as a whole.
        """
        ensure_torchvision()
        from transformers import AutoModelForImageTextToText

        tokenizer = load_tokenizer(path)
        model = load_model(AutoModelForImageTextToText, path, dtype=dtype)
        conditioner = cls(language_stack(model), tokenizer, length=length, role=role)
        return conditioner.to(device).eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """E, hidden size of the language model."""
        config: Any = self.language_model.config
        return int(config.hidden_size)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Template, cut and pad captions.

        Special tokens written inside a caption are read as text where the tokenizer allows it, so a caption
        cannot close its own turn.

        Returns:
            ids (B, L), mask (B, L) and truncated (B,), on the CPU.
        """
        room = self.length - len(self._prefix) - len(self._suffix)
        pad = self.tokenizer.pad_token_id
        ids_BL = torch.full((len(captions), self.length), pad, dtype=torch.long)
        mask_BL = torch.zeros(ids_BL.shape, dtype=torch.bool)
        truncated_B = torch.zeros(len(captions), dtype=torch.bool)
        if not captions:
            return ids_BL, mask_BL, truncated_B
        bodies = self.tokenizer(list(captions), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for row, body in enumerate(bodies):
            truncated_B[row] = len(body) > room
            ids = self._prefix + body[:room] + self._suffix
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            mask_BL[row, : len(ids)] = True
        return ids_BL, mask_BL, truncated_B

    def states(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Last-layer states of templated ids, zero at pads, shape (B, L, E); differentiable."""
        return text_states(self.language_model, ids_BL, mask_BL)

    @torch.no_grad()
    def encode(self, captions: Sequence[str], device: str | torch.device | None = None) -> Condition:
        """Encode captions; any text is accepted, an empty caption is the bare template.

        Args:
            captions: B captions.
            device: where the inputs go; default: where the weights are, which for offloaded weights is not where they
                compute.
        """
        device = next(self.language_model.parameters()).device if device is None else device
        ids_BL, mask_BL, truncated_B = (tensor.to(device, non_blocking=True) for tensor in self.tokenize(captions))
        return Condition(self.states(ids_BL, mask_BL), mask_BL, truncated_B)


def text_states(language_model: nn.Module, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Last-layer states of a text, zero at pads, shape (B, L, E); differentiable."""
    hidden_BLE = language_model(input_ids=ids_BL, attention_mask=mask_BL.long(), use_cache=False).last_hidden_state
    return hidden_BLE * mask_BL.unsqueeze(-1).to(hidden_BLE.dtype)


def language_stack(model: nn.Module) -> nn.Module:
    """The decoder-only stack of a vision-language model, without vision tower and head.

    Raises:
        TypeError: if the model has none.
    """
    inner = getattr(model, "model", model)
    stack = getattr(inner, "language_model", None)
    if stack is None:
        raise TypeError(f"{type(model).__name__} has no language_model: a Qwen2.5-VL type model is needed")
    return stack


#: Captions encoded together, fewer where memory does not hold them. Always as many, filled up where there are fewer:
#: kernels choose their order of summation by the shape of the work, so a condition would otherwise depend on its
#: neighbours in the last bits.
BATCH = 8


class Conditions(NamedTuple):
    """What captions are drawn from, in their order."""

    states: list[Tensor]
    """(L, E) each, in host memory, dtype of the conditioner."""
    truncated: list[bool]
    """Whether the caption was cut to fit."""
    failures: list[str]
    """Why a caption cannot be encoded; its states are those of the empty caption. Empty where it can."""


class ConditionCache:
    """States of captions; the least recently used go first.

    Args:
        conditioner: computes them.
        max_conditions: how many are kept.
    """

    def __init__(self, conditioner: Conditioner, max_conditions: int) -> None:
        self.conditioner = conditioner
        self._batch = FittingBatch(BATCH, "captions of the conditioner")
        self._kept: LRUCache[str, tuple[Tensor, bool]] = LRUCache(max_conditions)

    def get(self, captions: Sequence[str]) -> Conditions:
        """Conditions of captions; one that cannot be encoded costs only itself."""
        found = {caption: self._kept[caption] for caption in captions if caption in self._kept}
        missing = [caption for caption in dict.fromkeys(captions) if caption not in found]
        failures: dict[str, str] = {}
        self._encode(missing, found, failures)
        if failures:
            self._encode([""], found, {})
        self._kept.update(found)
        used = [found["" if caption in failures else caption] for caption in captions]
        reasons = [failures.get(caption, "") for caption in captions]
        return Conditions([states for states, _ in used], [cut for _, cut in used], reasons)

    def forget(self) -> None:
        """Drop everything kept, after the conditioner's weights have changed."""
        self._kept.clear()

    def _encode(self, captions: list[str], found: dict[str, tuple[Tensor, bool]], failures: dict[str, str]) -> None:
        def encode(rows: slice) -> None:
            some = captions[rows]
            condition = self.conditioner.encode(some + [""] * (self._batch.size - len(some)))
            states_BLE = condition.states_BLE.to("cpu")
            for caption, states_LE, cut in zip(some, states_BLE, condition.truncated_B.tolist(), strict=False):
                found[caption] = (states_LE.clone(), bool(cut))

        def lose(row: int, error: Exception) -> None:
            # Without the empty caption nothing works, and where memory runs out over one, filled up to a batch, smaller
            # batches may help.
            if captions[row] == "" or (self._batch.size > 1 and is_out_of_memory(error)):
                raise error
            failures[captions[row]] = f"condition: {type(error).__name__}: {error}"

        # Where memory runs out batches get smaller: one by one does not help, since all are filled up.
        self._batch.map(len(captions), lambda rows: one_by_one(rows, encode, lose), filled=True)


def stack_states(states: Sequence[Tensor], device: str | torch.device) -> Tensor:
    """Conditions of a micro-batch, shape (B, L, E), on the device."""
    return torch.stack(list(states)).to(device, non_blocking=True)
