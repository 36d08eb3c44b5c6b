# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Likelihood and sampling of captions of scene pictures with the tiny captioner.

Every prompt is the same "<image>describe" with one 32x32 picture, so token ids and rotary positions are computed once
and batches need neither padding nor PIL. The model's own forward pass does the rest.

Shapes: B pictures, P prompt tokens (12), T caption tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from verl_uae.scenes.render import IMAGE_SIZE
from verl_uae.scenes.tokenizer import pixel_values, prompt_ids, unsayable_ids

MAX_CAPTION_TOKENS = 20
"""Longest caption of two objects (14 words) and its end of turn, with some slack for ungrammatical ones."""

_IGNORED = -100


class Captioner:
    """A tiny captioner, Qwen2.5-VL or Qwen3-VL, asked to describe 32x32 pictures.

    Args:
        model: the captioner; its weights are not copied.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._prompt_1P = torch.tensor([prompt_ids(tokenizer)])
        _, grid = pixel_values(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE))
        self._positions_31P, _ = model.model.get_rope_index(
            self._prompt_1P,
            image_grid_thw=grid,
            mm_token_type_ids=(self._prompt_1P == model.config.image_token_id).int(),
        )
        self._unsayable = torch.tensor(unsayable_ids(tokenizer))

    def loss(self, image_B3HW: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """Mean cross-entropy per caption token, end of turn included; differentiable.

        Args:
            image_B3HW: pictures in [0, 1].
            captions: one text for each.
        """
        ids_BT, labels_BT = self._caption_ids(captions)
        logits_BTV = self.logits(image_B3HW, ids_BT)
        return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=_IGNORED)

    def logits(self, image_B3HW: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
        """Logits that predict each caption id from the picture and the ids before it, fp32 (B, T, V).

        Right padding needs no mask: causal attention never looks at it.
        """
        t = ids_BT.shape[1]
        output = self._forward(image_B3HW, ids_BT, self._positions(0, self._prompt_1P.shape[1] + t), use_cache=False)
        return output.logits[:, -t - 1 : -1].float()

    @torch.no_grad()
    def sample(
        self,
        image_B3HW: torch.Tensor,
        generator: torch.Generator | None = None,
        *,
        max_tokens: int = MAX_CAPTION_TOKENS,
        temperature: float = 1.0,
    ) -> list[str]:
        """One caption per picture.

        Args:
            image_B3HW: pictures in [0, 1].
            generator: source of randomness; None decodes greedily.
            max_tokens: longest caption, end of turn included.
            temperature: of the softmax, > 0.
        """
        b = len(image_B3HW)
        length = self._prompt_1P.shape[1]
        nothing = self._prompt_1P.new_empty(b, 0)
        output = self._forward(image_B3HW, nothing, self._positions(0, length), use_cache=True)
        ids: list[torch.Tensor] = []
        done_B = torch.zeros(b, dtype=torch.bool)
        for step in range(max_tokens):
            next_B = self._choose(output.logits[:, -1].float() / temperature, generator)
            next_B = torch.where(done_B, self.tokenizer.pad_token_id, next_B)
            ids.append(next_B)
            done_B = done_B | (next_B == self.tokenizer.eos_token_id)
            if bool(done_B.all()) or step == max_tokens - 1:
                break
            output = self.model(
                input_ids=next_B[:, None],
                position_ids=self._positions(length + step, 1).expand(3, b, 1),
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        return self.tokenizer.batch_decode(torch.stack(ids, dim=1), skip_special_tokens=True)

    def _forward(
        self, image_B3HW: torch.Tensor, ids_BT: torch.Tensor, positions: torch.Tensor, *, use_cache: bool
    ) -> Any:
        b = len(image_B3HW)
        pixels, grid = pixel_values(image_B3HW)
        return self.model(
            input_ids=torch.cat([self._prompt_1P.expand(b, -1), ids_BT], dim=1),
            position_ids=positions.expand(3, b, -1),
            pixel_values=pixels,
            image_grid_thw=grid,
            use_cache=use_cache,
        )

    def _positions(self, start: int, count: int) -> torch.Tensor:
        """Rotary positions (3, 1, count) from a token on; text after the prompt counts on from its largest."""
        prompt = self._positions_31P.shape[2]
        after = self._positions_31P.max() + 1 + torch.arange(max(0, start + count - prompt))
        return torch.cat([self._positions_31P, after.expand(3, 1, -1)], dim=2)[:, :, start : start + count]

    def _choose(self, logits_BV: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        logits_BV = logits_BV.index_fill(1, self._unsayable, float("-inf"))
        if generator is None:
            return logits_BV.argmax(-1)
        return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator).squeeze(1)

    def _caption_ids(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded ids and labels, each (B, T)."""
        ids = self.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
        rows = [torch.tensor([*row, self.tokenizer.eos_token_id]) for row in ids]
        padded_BT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        return padded_BT, nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_IGNORED)
