# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Caption -> condition: text-only states of the language model, as the family of the decoder wants them.

Shape legend: B captions, T text positions of the language model, L text positions of the condition, E language-model
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import nn

from verl_uae.checkpoints.load import language_class, load_model, load_tokenizer
from verl_uae.devices import FittingBatch, is_out_of_memory, one_by_one
from verl_uae.errors import ConfigError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import Tokens, language_stack, tap_states
from verl_uae.visits import arrive


class Conditioner(nn.Module):
    """Re-encodes a caption text-only with a language model.

    The states come from the caption alone: the image is not in the context, so the text is a true bottleneck
    and training sees what deployment sees.

    Args:
        language_model: a decoder-only stack, see :func:`~verl_uae.families.text.language_stack`.
        tokenizer: a transformers tokenizer with a chat template.
        family: of the decoder; says which states, template, length and role.

    Raises:
        ConfigError: naming the setting of a model folder that the template does not allow.
    """

    def __init__(self, language_model: nn.Module, tokenizer: Any, family: DecoderFamily) -> None:
        super().__init__()
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.family = family
        family.tokenize(tokenizer, [""])

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        family: DecoderFamily,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Conditioner:
        """Load the language half of a vision-language model, or a language model.

        Args:
            path: transformers folder or hub id.
            family: see the class.
            dtype: dtype of the weights.
            device: where the weights live.

        Raises:
            CheckpointError: there is no such model, or it does not load as a whole, or the decoder wants states of
                another one.
        """
        tokenizer = load_tokenizer(path)
        stack = language_stack(load_model(language_class(path), path, dtype=dtype))
        conditioner = cls(stack, tokenizer, family)
        return conditioner.to(device).eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """E, hidden size of the language model."""
        config: Any = self.language_model.config
        return int(config.hidden_size)

    @property
    def layers(self) -> int:
        """Layers of the language model."""
        stack: Any = self.language_model
        return len(stack.layers)

    @property
    def kind(self) -> str:
        """``model_type`` of the language model."""
        config: Any = self.language_model.config
        return str(config.model_type)

    def tokenize(self, captions: Sequence[str], *, negative: bool = False) -> Tokens:
        """Template, cut and pad captions, on the CPU; ``negative`` are those of the unconditional branch."""
        return self.family.tokenize(self.tokenizer, captions, negative)

    def condition(self, tokens: Tokens, device: str | torch.device | None = None) -> Condition:
        """Condition of templated captions; differentiable.

        Args:
            tokens: B captions.
            device: where the inputs go; default: where the weights are, which for offloaded weights is not where they
                compute.
        """
        arrive(self)
        stack: Any = self.language_model
        taps = self.family.taps(len(stack.layers))
        return self.family.condition(tap_states(stack, tokens, taps, device), tokens)

    @torch.no_grad()
    def encode(
        self, captions: Sequence[str], device: str | torch.device | None = None, *, negative: bool = False
    ) -> Condition:
        """Encode captions; any text is accepted, an empty caption is the bare template. Arguments as of
        :meth:`tokenize` and :meth:`condition`."""
        return self.condition(self.tokenize(captions, negative=negative), device)


#: Captions encoded together, fewer where memory does not hold them. Always as many, filled up where there are fewer:
#: kernels choose their order of summation by the shape of the work, so a condition would otherwise depend on its
#: neighbours in the last bits.
BATCH = 8

#: Text positions of what is encoded together are a multiple of it, for the same reason.
_LENGTHS = 64


class Conditions(NamedTuple):
    """What captions are drawn from, in their order."""

    conditions: list[Condition]
    """One row each, in host memory, dtype of the conditioner."""
    truncated: list[bool]
    """Whether the caption was cut to fit."""
    failures: list[str]
    """Why a caption cannot be encoded; its condition is that of the empty caption. Empty where it can."""


class ConditionCache:
    """Conditions of captions; the least recently used go first.

    Args:
        conditioner: computes them.
        max_conditions: how many are kept.
    """

    def __init__(self, conditioner: Conditioner, max_conditions: int) -> None:
        self.conditioner = conditioner
        self._batch = FittingBatch(BATCH, "captions of the conditioner")
        self._kept: LRUCache[tuple[str, bool], tuple[Condition, bool]] = LRUCache(max_conditions)

    def get(self, captions: Sequence[str], *, negative: bool = False) -> Conditions:
        """Conditions of captions, or of those of the unconditional branch; one that cannot be encoded costs only
        itself."""
        names = {caption: (caption, negative) for caption in captions}
        found = {caption: self._kept[name] for caption, name in names.items() if name in self._kept}
        missing = [caption for caption in names if caption not in found]
        failures: dict[str, str] = {}
        self._encode(missing, negative, found, failures)
        if failures:
            self._encode([""], negative, found, {})
        self._kept.update({(caption, negative): entry for caption, entry in found.items()})
        used = [found["" if caption in failures else caption] for caption in captions]
        reasons = [failures.get(caption, "") for caption in captions]
        return Conditions([condition for condition, _ in used], [cut for _, cut in used], reasons)

    def negative(self, prompt: str) -> Condition:
        """Condition of the unconditional branch, one row.

        Raises:
            ConfigError: the prompt cannot be encoded.
        """
        found = self.get([prompt], negative=True)
        if found.failures[0]:
            raise ConfigError("uae.decoder.negative_prompt", found.failures[0])
        return found.conditions[0]

    def forget(self) -> None:
        """Drop everything kept, after the conditioner's weights have changed."""
        self._kept.clear()

    def _encode(
        self, captions: list[str], negative: bool, found: dict[str, tuple[Condition, bool]], failures: dict[str, str]
    ) -> None:
        if not captions:
            return
        empty = self.conditioner.tokenize([""], negative=negative)
        tokens: dict[str, Tokens] = {}

        def read(rows: slice) -> None:
            # Alone: of several captions the tokens of one would depend on the longest.
            tokens.update({text: self.conditioner.tokenize([text], negative=negative) for text in captions[rows]})

        one_by_one(slice(0, len(captions)), read, self._losing(captions, failures))
        groups: dict[int, list[str]] = {}
        for caption, own in tokens.items():
            length = own.ids_BT.shape[1]
            if length != empty.ids_BT.shape[1]:
                length = -(-length // _LENGTHS) * _LENGTHS
            groups.setdefault(length, []).append(caption)
        for length, group in sorted(groups.items()):
            self._encode_alike(group, [tokens[caption] for caption in group], empty, length, found, failures)

    def _encode_alike(
        self,
        captions: list[str],
        tokens: list[Tokens],
        empty: Tokens,
        length: int,
        found: dict[str, tuple[Condition, bool]],
        failures: dict[str, str],
    ) -> None:
        """Captions that are filled up to one number of tokens."""

        @torch.no_grad()
        def encode(rows: slice) -> None:
            some = tokens[rows]
            batch = Tokens.stack(some + [empty] * (self._batch.size - len(some)), length)
            condition = self.conditioner.condition(batch).to("cpu")
            for number, caption in enumerate(captions[rows]):
                own = condition[number : number + 1]
                found[caption] = (Condition(own.states.clone(), own.lengths), bool(batch.truncated_B[number]))

        # Where memory runs out batches get smaller: one by one does not help, since all are filled up.
        lose = self._losing(captions, failures)
        self._batch.map(len(captions), lambda rows: one_by_one(rows, encode, lose), filled=True)

    def _losing(self, captions: list[str], failures: dict[str, str]) -> Callable[[int, Exception], None]:
        """What notes the failure of a caption."""

        def lose(row: int, error: Exception) -> None:
            # Without the empty caption nothing works, and where memory runs out over one, filled up to a batch, smaller
            # batches may help.
            if captions[row] == "" or (self._batch.size > 1 and is_out_of_memory(error)):
                raise error
            failures[captions[row]] = f"condition: {type(error).__name__}: {error}"

        return lose
