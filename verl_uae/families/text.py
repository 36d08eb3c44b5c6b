# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Captions as a language model reads them, and its states at the layers that a decoder is conditioned on.

Shape legend: B captions, T text positions as the language model reads them, L text positions that a decoder reads,
K tapped layers, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn import functional as F

from verl_uae.errors import ConfigError

#: Tap of the last state behind the final norm. Every other tap k is what layer k - 1 returns, 0 being the embeddings:
#: the tap "number of layers" is the last state in front of the norm.
NORMED = -1


@dataclass(frozen=True, slots=True)
class Tokens:
    """Captions as one family wants a language model to read them, on the host unless they are moved."""

    ids_BT: Tensor
    attend_BT: Tensor
    """True where the language model attends."""
    keep_BT: Tensor
    """True where the state becomes part of the condition: a family may drop its prefix and keep its pads."""
    truncated_B: Tensor
    """True where the caption did not fit and was cut at a token boundary."""
    position_BT: Tensor | None = None
    """Position ids; None are those that the language model implies."""

    def __len__(self) -> int:
        return len(self.ids_BT)

    def to(self, device: Any) -> Tokens:
        """On another device."""
        return Tokens.read({name: tensor.to(device, non_blocking=True) for name, tensor in self.stored().items()})

    def stored(self) -> dict[str, Tensor]:
        """As tensors of a mini-batch, by the names of the fields; those that are None left out."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @staticmethod
    def read(tensors: Mapping[str, Tensor]) -> Tokens:
        """Inverse of :meth:`stored`."""
        names = [field.name for field in fields(Tokens) if field.name in tensors.keys()]
        return Tokens(**{name: tensors[name] for name in names})

    def __getitem__(self, rows: slice | list[int]) -> Tokens:
        """Some of the captions."""
        return Tokens.read({name: tensor[rows] for name, tensor in self.stored().items()})

    @staticmethod
    def stack(parts: Sequence[Tokens], length: int | None = None) -> Tokens:
        """One batch of that many positions, by default those of the longest; rows are filled up behind their end with
        what is neither attended nor kept."""
        length = length or max(part.ids_BT.shape[1] for part in parts)

        def joined(name: str) -> Any:
            found = [getattr(part, name) for part in parts]
            if found[0] is None:
                return None
            if found[0].ndim == 2:
                found = [F.pad(tensor, (0, length - tensor.shape[1])) for tensor in found]
            return torch.cat(found)

        return Tokens(*(joined(field.name) for field in fields(Tokens)))


def around_caption(tokenizer: Any, role: str = "user", **options: Any) -> tuple[str, str]:
    """Text before and behind a caption, found by rendering the tokenizer's own chat template with a marker.

    Args:
        tokenizer: with a chat template.
        role: of the caption's turn.
        options: more arguments of the template, such as ``enable_thinking``.

    Raises:
        ConfigError: naming the setting of a model folder, the template does not take the role.
    """
    marker = "\ue000"
    turns = [{"role": role, "content": marker}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options)
    except (TemplateError, ValueError, TypeError) as error:
        raise ConfigError("condition_role", f"the chat template refuses the role {role!r}: {error}") from error
    before, found, after = text.partition(marker)
    if not found:
        raise ConfigError("condition_role", f"the chat template drops the content of role {role!r}")
    return before, after


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text of a template, special ones read as such."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def template_tokens(
    tokenizer: Any,
    before: str,
    captions: Sequence[str],
    after: str,
    *,
    room: int,
    drop: int = 0,
    pad_to: Callable[[int], int] = lambda length: length,
    keep_pads: bool = False,
    positions: bool = True,
    pad_position: int | None = None,
    behind_pads: int = 0,
) -> Tokens:
    """Captions in a template, padded on the right.

    Special tokens written inside a caption are read as text where the tokenizer allows it, so a caption cannot close
    its own turn.

    Args:
        tokenizer: of the language model.
        before, after: text of the template.
        captions: B texts; an empty one is the bare template.
        room: most tokens of the whole text. A caption is cut, so the template stays whole.
        drop: tokens at the front that are no part of the condition.
        pad_to: number of tokens of the longest row to that of the batch.
        keep_pads: pads are part of the condition, with the states that the language model has there.
        positions: give position ids.
        pad_position: the one of pads; None counts on.
        behind_pads: that many of the last tokens stand behind the pads, where positions count real tokens alone.

    Raises:
        ConfigError: naming the setting of a model folder, the template leaves no room for a caption.
    """
    head, tail = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    needed = len(head) + len(tail)
    if room <= needed:
        reason = f"{room} leaves no room for a caption: the chat template alone takes {needed} tokens"
        raise ConfigError("condition_length", reason)
    bodies: list[list[int]] = []
    if captions:
        bodies = tokenizer(list(captions), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    front, back = tail[: len(tail) - behind_pads], tail[len(tail) - behind_pads :]
    rows = [head + body[: room - needed] + front for body in bodies]
    length = pad_to(max((len(row) for row in rows), default=0) + len(back))
    ids_BT = torch.full((len(rows), length), tokenizer.pad_token_id, dtype=torch.long)
    attend_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids_BT[number, : len(row)], attend_BT[number, : len(row)] = torch.tensor(row), True
        if back:
            ids_BT[number, -len(back) :], attend_BT[number, -len(back) :] = torch.tensor(back), True
    position_BT = torch.arange(length).repeat(len(rows), 1)
    if back:
        position_BT = (attend_BT.long().cumsum(1) - 1).clamp(min=0)
    if pad_position is not None:
        position_BT = position_BT.masked_fill(~attend_BT, pad_position)
    keep_BT = torch.ones_like(attend_BT) if keep_pads else attend_BT.clone()
    keep_BT[:, :drop] = False
    truncated_B = torch.tensor([len(body) > room - needed for body in bodies], dtype=torch.bool)
    return Tokens(ids_BT, attend_BT, keep_BT, truncated_B, position_BT if positions else None)


def language_stack(model: nn.Module) -> nn.Module:
    """The decoder-only stack of a vision-language model or of a causal language model, without vision tower and head.

    Raises:
        TypeError: if the model has none.
    """
    inner = getattr(model, "model", model)
    stack = getattr(inner, "language_model", inner)
    if not (hasattr(stack, "layers") and hasattr(stack, "norm")):
        raise TypeError(f"{type(model).__name__} has no language_model: a stack of layers with a norm is needed")
    return stack


def tap_states(stack: nn.Module, tokens: Tokens, taps: Sequence[int], device: Any = None) -> Tensor:
    """States (B, T, K, E) at layers of a language model, differentiable.

    They are read by forward hooks: the last entry of ``output_hidden_states`` is normed or not by model and release.

    Args:
        stack: of :func:`language_stack`.
        tokens: B captions.
        taps: layers, see :data:`NORMED`.
        device: where the inputs go; default: where the weights are, which for offloaded weights is not where they
            compute.
    """
    found: dict[int, Tensor] = {}

    def keep(tap: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[tap] = output[0] if isinstance(output, tuple) else output

        return hook

    device = next(stack.parameters()).device if device is None else device
    inputs = {
        "input_ids": tokens.ids_BT.to(device, non_blocking=True),
        "attention_mask": tokens.attend_BT.long().to(device, non_blocking=True),
    }
    if tokens.position_BT is not None:
        inputs["position_ids"] = tokens.position_BT.to(device, non_blocking=True)
    handles = [_tapped(stack, tap).register_forward_hook(keep(tap)) for tap in taps]
    try:
        stack(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([found[tap] for tap in taps], dim=2)


def _tapped(stack: Any, tap: int) -> nn.Module:
    if tap == NORMED:
        return stack.norm
    return stack.embed_tokens if tap == 0 else stack.layers[tap - 1]
