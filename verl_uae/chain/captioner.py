# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures to captions with transformers' own ``generate``, from the prompts that training uses.

Shape legend: B captions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from verl_uae.captioners import prompt_pictures
from verl_uae.data.schema import IMAGE_MARK, make_prompt
from verl_uae.errors import CheckpointError

Messages = list[dict[str, Any]]


def caption_messages(image: Image.Image, user: str, system: str | None) -> Messages:
    """The turns that ask for the caption of a picture, as verl's dataset builds them from a row.

    Args:
        image: RGB picture.
        user: text of the user turn; without ``<image>`` the picture comes first.
        system: text of the system turn; None or "" leaves the turn out.

    Raises:
        ValueError: ``user`` has more than one ``<image>``.
    """
    turns: Messages = list(make_prompt(user, system or None))  # type: ignore[arg-type]
    before, _, after = turns[-1]["content"].partition(IMAGE_MARK)
    if IMAGE_MARK in after:
        raise ValueError(f"the prompt has more than one {IMAGE_MARK}")
    pieces = [{"type": "text", "text": before}, {"type": "image", "image": image}, {"type": "text", "text": after}]
    turns[-1]["content"] = [piece for piece in pieces if piece.get("text") != ""]
    return turns


def prompt_inputs(processor: Any, prompts: Sequence[Messages]) -> Mapping[str, Tensor]:
    """Model inputs of a batch of prompts, left-padded, with pictures resized as in training."""
    images: list[Image.Image] = []
    for messages in prompts:
        images.extend(prompt_pictures(processor, messages)[0])
    texts = [processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in prompts]
    return processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")


def eos_token_ids(generation: GenerationConfig, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence tokens of the tokenizer and of the generation config, as vLLM takes them."""
    configured = generation.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*listed, tokenizer.eos_token_id] if token is not None)


def banned_tokens(config: Any, generation: GenerationConfig, tokenizer: Any) -> Tensor:
    """(V,) bool: tokens that a caption may not contain.

    These are special tokens other than eos, the vision tokens (a sampled image placeholder has no image behind it, and
    no positions can be found for the response), rows of the output layer beyond the tokenizer, and the
    ``suppress_tokens`` of the checkpoint's generation config.

    Args:
        config: of the captioner.
        generation: its generation config.
        tokenizer: its tokenizer.
    """
    vocab_size = config.get_text_config().vocab_size
    banned_V = torch.zeros(vocab_size, dtype=torch.bool)
    banned_V[min(len(tokenizer), vocab_size) :] = True
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special |= set(generation.suppress_tokens or ())
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        special.add(getattr(config, name, None))
    banned_V[[token for token in special if token is not None and token < vocab_size]] = True
    banned_V[sorted(eos_token_ids(generation, tokenizer))] = False
    return banned_V


class TokenChoice(LogitsProcessor):
    """Bans tokens and, above temperature 0, turns greedy search into sampling.

    The largest of scores / temperature + Gumbel noise is a draw from softmax(scores / temperature) (Gumbel 1954). This
    way the noise comes from named generators; transformers' own sampling knows the global one only.

    Args:
        banned_V: tokens never chosen.
        temperature: of the softmax; 0 is greedy.
        generators: one for each row, or one for all of them.
    """

    def __init__(self, banned_V: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> None:
        self.banned_V, self.temperature, self.generators = banned_V, temperature, generators
        self.broken: Tensor | None = None
        """Whether a score was NaN, on the model's device: asked once at the end, not at every token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_BV = scores.float()
        nan = scores_BV.isnan().any()
        self.broken = nan if self.broken is None else self.broken | nan
        if self.temperature > 0:
            scores_BV = scores_BV.double() / self.temperature + self._gumbel(scores.shape).to(scores.device)
        return scores_BV.masked_fill(self.banned_V.to(scores.device), -math.inf)

    def _gumbel(self, shape: torch.Size) -> Tensor:
        sizes = [shape] if len(self.generators) == 1 else [(1, shape[1])] * shape[0]
        uniform_BV = torch.cat(
            [
                torch.rand(size, generator=source, dtype=torch.float64, device=source.device).cpu()
                for size, source in zip(sizes, self.generators, strict=True)
            ]
        )
        # torch.rand may return 0, whose logarithm would forbid the token.
        return -torch.log(-torch.log(uniform_BV.clamp_min(torch.finfo(torch.float64).tiny)))


@torch.no_grad()
def write_captions(
    model: Any,
    processor: Any,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float,
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> list[str]:
    """One caption per prompt.

    Nothing but the temperature shapes the distribution: sampling defaults and penalties of the checkpoint's generation
    config are not applied, as in training.

    Args:
        model: vision-language model with head, see :mod:`verl_uae.captioners`.
        processor: its processor.
        prompts: one for each caption, see :func:`caption_messages`; a batch is padded on the left.
        max_new_tokens: longest caption, end of turn included.
        temperature: of the softmax; 0 is greedy.
        generators: one for each prompt, or one for all of them; read above temperature 0 only.
        device: where the model computes.

    Raises:
        CheckpointError: the logits are NaN, of which the largest would be any token.
    """
    tokenizer = processor.tokenizer
    inputs = prompt_inputs(processor, prompts)
    banned_V = banned_tokens(model.config, model.generation_config, tokenizer)
    choice = TokenChoice(banned_V, temperature, generators)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(eos_token_ids(model.generation_config, tokenizer)),
        pad_token_id=tokenizer.pad_token_id,
    )
    with _no_defaults(model):
        ids = model.generate(
            **{name: value.to(device) for name, value in inputs.items()},
            generation_config=config,
            logits_processor=LogitsProcessorList([choice]),
        )
    if choice.broken is not None and bool(choice.broken):
        raise CheckpointError(
            model.name_or_path or type(model).__name__,
            f"its logits are NaN in {model.dtype}: use float32 or bfloat16, or check its weights",
        )
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@contextlib.contextmanager
def _no_defaults(model: Any) -> Iterator[None]:
    """Generation without what the checkpoint's generation config adds to the one that is given."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
