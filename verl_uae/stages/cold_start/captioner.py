# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Training engine of the captioner's language model in the cold start: states with gradient, and caption likelihood.

Shape legend: B captions, T tokens of prompt and caption, M trained tokens, E language-model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from verl.utils.device import get_device_name
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.base import EngineRegistry

from verl_uae.captioners import read_pictures, typed_inputs
from verl_uae.checkpoints.load import load_config, load_model, load_processor
from verl_uae.compat import ensure_torchvision
from verl_uae.data.schema import IMAGE_MARK, make_prompt
from verl_uae.engines.captioner import freeze_vision_tower
from verl_uae.engines.export import gather_merged, publish_on_first_rank
from verl_uae.engines.lora import add_lora
from verl_uae.engines.together import together
from verl_uae.engines.trained import TrainedModelConfig, TrainedWeightsEngine
from verl_uae.errors import CheckpointError
from verl_uae.families.text import Tokens, language_stack, tap_states
from verl_uae.stages.cold_start.loss import CaptionInputs
from verl_uae.stages.common.captions import Messages, PromptTokens
from verl_uae.text import encodable

#: Value of ``model_type`` that selects this engine.
SUPERVISED_CAPTIONER = "uae_captioner_supervised"

#: What trains, by its name in the module.
LANGUAGE_MODEL = "model.model.language_model"

_PREFIX = "model."


@dataclass
class CaptionerModelConfig(TrainedModelConfig):
    """Model section of the engine; adapters are those of the language model."""

    model_type: str = SUPERVISED_CAPTIONER


class CaptionerModule(nn.Module):
    """A vision-language model behind one forward, for FSDP.

    Args:
        model: vision-language model with head.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        # The units FSDP shards and gathers one by one.
        self._no_split_modules = list(model._no_split_modules)

    def can_generate(self) -> bool:
        """Asked by verl's checkpoint manager; generation settings are saved when the engine exports."""
        return False

    def forward(
        self,
        ids: Tensor | Tokens,
        mask_BT: Tensor | None = None,
        answer_BT: Tensor | None = None,
        taps: Sequence[int] = (),
        **pictures: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """States of a text alone, or what the model makes of a caption after its picture.

        Args:
            ids: captions as a decoder's family wants them read, or (B, T) of prompt and caption.
            mask_BT: True at real tokens of prompt and caption.
            answer_BT: True at tokens of the caption, end of turn included.
            taps: layers whose states are wanted of the text alone.
            pictures: what the model takes of pictures.

        Returns:
            Of the text alone :func:`~verl_uae.families.text.tap_states`. Else the mean over caption tokens of their
            negative log-probability, (B,), fp32, and the states at all positions, (B, T, E).
        """
        if isinstance(ids, Tokens):
            return tap_states(language_stack(self.model), ids, taps, ids.ids_BT.device)
        assert mask_BT is not None and answer_BT is not None
        hidden_BTE = self.model.model(
            input_ids=ids, attention_mask=mask_BT.long(), use_cache=False, **pictures
        ).last_hidden_state
        # The state before a token predicts it.
        predicts_BT = F.pad(answer_BT[:, 1:], (0, 1))
        logits_MV = self.model.lm_head(hidden_BTE[predicts_BT]).float()
        loss_M = F.cross_entropy(logits_MV, ids[answer_BT], reduction="none")
        row_M = answer_BT.nonzero()[:, 0]
        total_B = loss_M.new_zeros(len(ids)).index_add(0, row_M, loss_M)
        return total_B / answer_BT.sum(1).clamp_min(1), hidden_BTE


@EngineRegistry.register(model_type=SUPERVISED_CAPTIONER, backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class SupervisedCaptionerEngine(TrainedWeightsEngine):
    """Sharding, optimiser, offload, clipping and checkpoints are verl's; whoever computes a loss calls the module."""

    engine_config: Any
    model_config: Any

    def _build_module(self) -> CaptionerModule:
        ensure_torchvision()
        from transformers import AutoModelForImageTextToText

        dtype = PrecisionType.to_dtype(self.engine_config.model_dtype or "fp32")
        path = self.model_config.path
        with together(lambda text: CheckpointError(path, text)):
            if self.device_mesh.get_coordinate()[-1] != 0:
                # The others are sent the weights when the module is sharded.
                with torch.device("meta"):
                    model = AutoModelForImageTextToText.from_config(load_config(path), dtype=dtype)
            else:
                model = load_model(AutoModelForImageTextToText, path, dtype=dtype)
        if self.model_config.enable_gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.engine_config.forward_only:
            model.requires_grad_(False)
        # UAE, Fig. 9: training the vision tower makes reconstructions collapse.
        freeze_vision_tower(model)
        return CaptionerModule(model)

    def _build_lora_module(self, module: CaptionerModule) -> CaptionerModule:
        config = self.model_config
        add_lora(
            module,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            target_modules=config.lora_target_modules,
            seed=config.lora_seed,
            part=LANGUAGE_MODEL,
            key="uae.cold_start.captioner.lora",
        )
        return module

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        config = self.engine_config
        # verl offloads a forward-only engine to pinned memory, which a machine without accelerator lacks.
        forward_only = config.forward_only and get_device_name() != "cpu"
        self.engine_config = dataclasses.replace(config, use_orig_params=True, forward_only=forward_only)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config

    def full_state_dict(self) -> dict[str, Tensor]:
        """Full weights under transformers' names with adapters multiplied out, on rank 0; every rank must call it."""
        return {name.removeprefix(_PREFIX): tensor for name, tensor in gather_merged(self).items()}

    def export(self, out: str | Path) -> None:
        """Write a transformers folder with the processor of the source; every rank must call it.

        Raises:
            CheckpointError: on every rank, if rank 0 could not write.
        """
        state = self.full_state_dict()
        publish_on_first_rank(lambda folder: write_captioner(state, self.model_config.path, folder), out)


def write_captioner(state: dict[str, Tensor], source: str, folder: Path) -> None:
    """Write a transformers folder.

    Args:
        state: full weights under transformers' names.
        source: folder or hub id of the model before training: configuration, generation settings and processor.
        folder: where to.

    Raises:
        RuntimeError: weights are missing or have no place.
    """
    from transformers import AutoModelForImageTextToText, GenerationConfig

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(load_config(source))
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig.from_pretrained(source)
    model.save_pretrained(folder, safe_serialization=True)
    load_processor(source).save_pretrained(folder)


class CaptionBatcher:
    """Builds model inputs of pictures with captions.

    Args:
        prompt_tokens: messages to ids and resized pictures, as in captioning stages.
        processor: of the captioner.
        config: of the captioner.
        response_length: longest caption with its end of turn, tokens; longer ones are cut.
        device: of the inputs.
    """

    def __init__(
        self, prompt_tokens: PromptTokens, processor: Any, config: Any, response_length: int, device: str | torch.device
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.processor = processor
        self.config = config
        self.response_length = response_length
        self.device = torch.device(device)

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str], prompts: Sequence[Messages | None]
    ) -> CaptionInputs:
        """Right-padded inputs; causal attention never looks at the pads."""
        ids: list[Tensor] = []
        answers: list[Tensor] = []
        shown: list[Image.Image] = []
        for image, caption, prompt in zip(images, captions, prompts, strict=True):
            prompt_ids, pictures = self.prompt_tokens(messages_with(image, prompt))
            answer_ids = self._answer(caption)
            ids.append(torch.tensor(prompt_ids + answer_ids))
            answers.append(torch.tensor([False] * len(prompt_ids) + [True] * len(answer_ids)))
            shown += pictures
        pad = nn.utils.rnn.pad_sequence
        ids_BT = pad(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)
        mask_BT = pad([torch.ones(len(row), dtype=torch.bool) for row in ids], batch_first=True)
        options = self.prompt_tokens.processor_kwargs
        found = read_pictures(self.processor.image_processor, self.config, shown, options)
        inputs = typed_inputs(self.config, ids_BT, mask_BT, found.inputs)
        on_device = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        answer_BT = pad(answers, batch_first=True).to(self.device)
        return CaptionInputs(ids_BT.to(self.device), mask_BT.to(self.device), answer_BT, on_device)

    def _answer(self, caption: str) -> list[int]:
        """Tokens of a caption and the end of its turn; special tokens in it are read as text."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(encodable(caption), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids[: self.response_length - 1], tokenizer.eos_token_id]


def messages_with(image: Image.Image, prompt: Messages | None = None) -> list[dict[str, Any]]:
    """A prompt with its picture in place of ``<image>``, as verl's dataset builds it.

    Args:
        image: RGB.
        prompt: messages with plain text and one ``<image>``; None is :func:`~verl_uae.data.schema.make_prompt`.
    """
    return [
        {"role": message["role"], "content": _parts(message, image)} for message in (prompt or tuple(make_prompt()))
    ]


def _parts(message: Mapping[str, Any], image: Image.Image) -> str | list[dict[str, Any]]:
    before, mark, after = message["content"].partition(IMAGE_MARK)
    if not mark:
        return message["content"]
    texts = [{"type": "text", "text": text} if text else None for text in (before, after)]
    parts = [texts[0], {"type": "image", "image": image}, texts[1]]
    return [part for part in parts if part is not None]
