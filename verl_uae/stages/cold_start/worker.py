# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The worker of the cold start: captioner and decoder with one optimiser each, trained through the sampler.

Shape legend: B pairs of this rank, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensordict import TensorDict
from torch import nn
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry

from verl_uae.checkpoints.load import load_config, load_processor
from verl_uae.checkpoints.shards import plain_name
from verl_uae.data.buckets import HeightWidth, fit
from verl_uae.data.pairs import Pair
from verl_uae.data.rows import CheckSettings
from verl_uae.engines.decoder_batch import stored
from verl_uae.engines.export import full_tensor
from verl_uae.engines.lora import lora_scalings, merged_state
from verl_uae.engines.shadow import reshard
from verl_uae.engines.supervised import SUPERVISED_TYPE
from verl_uae.errors import ConfigError, DataError
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import language_stack
from verl_uae.reward.registry import get_reward
from verl_uae.reward.terms.features import FeatureTerm
from verl_uae.seeding import normal
from verl_uae.stages.cold_start.captioner import (
    SUPERVISED_CAPTIONER,
    CaptionBatcher,
    CaptionerModelConfig,
    SupervisedCaptionerEngine,
)
from verl_uae.stages.cold_start.loss import (
    CaptionInputs,
    ReconstructionLoss,
    ReconstructionSettings,
    read_text,
    recompute,
)
from verl_uae.stages.common.build import EMA, build_training_painter, decoder_family, training_worker_config
from verl_uae.stages.common.captions import PromptSettings, PromptTokens
from verl_uae.stages.common.worker import DecoderTrainingWorker

logger = logging.getLogger(__name__)
logger.setLevel(os.getenv("VERL_LOGGING_LEVEL", "INFO"))


def decoder_worker_config(config: DictConfig, total_steps: int) -> TrainingWorkerConfig:
    """What verl's training worker needs for the decoder's part."""
    trained = config.uae.cold_start.train_decoder
    shadows = [EMA] if config.uae.train.ema.decay > 0 and (trained or config.uae.train.train_projector) else []
    return training_worker_config(config, total_steps, SUPERVISED_TYPE, shadows=shadows, train_transformer=trained)


def build_captioner_engine(config: DictConfig, total_steps: int) -> SupervisedCaptionerEngine | None:
    """The captioner's engine, not initialised; None where frozen text-only states are all that is asked of it."""
    cold_start = config.uae.cold_start
    captioner = cold_start.captioner
    if not captioner.train and cold_start.states == "text_only":
        return None
    optim = OmegaConf.merge(captioner.optim, {"total_training_steps": total_steps})
    model = CaptionerModelConfig(
        path=config.actor_rollout_ref.model.path,
        lora_rank=captioner.lora.rank if captioner.train else 0,
        lora_alpha=captioner.lora.alpha,
        lora_target_modules=list(captioner.lora.target_modules),
        lora_seed=config.uae.seed,
        enable_gradient_checkpointing=captioner.gradient_checkpointing,
    )
    engine_config = omega_conf_to_dataclass(captioner.fsdp_config)
    contents = [name for name in config.uae.train.save_contents if name != "diffusers"]
    return EngineRegistry.new(
        model_type=SUPERVISED_CAPTIONER,
        backend=engine_config.strategy,
        model_config=model,
        engine_config=dataclasses.replace(engine_config, forward_only=not captioner.train),
        optimizer_config=omega_conf_to_dataclass(optim),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )


def build_features(config: DictConfig, device: str) -> FeatureTerm:
    """The frozen feature network of the semantic term."""
    cold_start = config.uae.cold_start
    params: Any = OmegaConf.to_container(cold_start.backbone_params, resolve=True)
    term_class = get_reward(cold_start.backbone, "uae.cold_start.backbone")
    term_class.check_params(params, "uae.cold_start.backbone_params")
    term = term_class(**params)
    if not isinstance(term, FeatureTerm):
        raise ConfigError("uae.cold_start.backbone", f"{cold_start.backbone} has no features to compare")
    term.to(torch.device(device))
    return term


def build_caption_batcher(config: DictConfig, device: str) -> CaptionBatcher:
    """Prompts as the captioning stages build them."""
    path = config.actor_rollout_ref.model.path
    processor, model = load_processor(path), load_config(path)
    settings = PromptSettings(
        config.actor_rollout_ref.model.get("custom_chat_template"),
        dict(config.data.get("apply_chat_template_kwargs") or {}),
        dict(config.data.get("mm_processor_kwargs") or {}),
    )
    tokens = PromptTokens(processor, model.model_type, settings)
    return CaptionBatcher(tokens, processor, model, config.data.max_response_length, device)


def reconstruction_settings(config: DictConfig, family: DecoderFamily) -> ReconstructionSettings:
    """``uae.cold_start`` as the loss takes it."""
    cold_start, decoder = config.uae.cold_start, config.uae.decoder
    return ReconstructionSettings(
        sigmas=family.sigmas(cold_start.num_steps, decoder.height, decoder.width),
        guidance=cold_start.guidance,
        gradient_steps=cold_start.gradient_steps,
        kept_steps=cold_start.kept_steps,
        semantic_weight=cold_start.semantic_weight,
        caption_weight=cold_start.caption_weight if cold_start.captioner.train else 0.0,
        in_context=cold_start.states == "in_context",
        vae_batch_size=decoder.vae_batch_size,
    )


class ColdStartWorker(DecoderTrainingWorker):
    """Trains what ``uae.cold_start`` and ``uae.train`` switch on.

    The painter's conditioner is a whole copy of the language model; before validation it gets the trained weights.

    Args:
        config: the whole composed configuration.
        total_steps: optimiser updates of the run.
    """

    def __init__(self, config: DictConfig, total_steps: int) -> None:
        super().__init__(config, decoder_worker_config(config, total_steps))
        self.captioner = build_captioner_engine(config, total_steps)
        self._images: list[Image.Image] = []
        self._pairs: list[Pair] = []

    @property
    def _captioner_trains(self) -> bool:
        return bool(self.run.uae.cold_start.captioner.train)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Load all models."""
        self.reset()
        device = get_device_name()
        if self.captioner is not None:
            self.captioner.initialize()
        self.family = decoder_family(self.run)
        self.painter = build_training_painter(self.run, None, self.family, device)
        recompute(self.painter.vae)
        self.features = build_features(self.run, device)
        self.batcher = build_caption_batcher(self.run, device)
        self.limits = CheckSettings.from_config(self.run.data).image_limits
        settings = reconstruction_settings(self.run, self.family)
        if settings.in_context:
            logger.warning(
                "uae.cold_start.states=in_context: the decoder is trained on states that have seen the image, and is "
                "used on states that have not"
            )
        self.set_loss_fn(
            ReconstructionLoss(
                settings,
                self.family,
                self.painter.vae,
                self.features,
                None if self.captioner is None else self.captioner.module,
                self._caption_inputs,
                self._negative,
            )
        )
        self._put_away()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def learn(self, pairs: Sequence[Pair], size: HeightWidth, step: int) -> tuple[dict[str, Any], list[str]]:
        """One update of captioner and decoder on a batch of pictures of one size.

        Noise is named by step and place in the batch, so it does not depend on the ranks.

        Args:
            pairs: of all ranks.
            size: (H, W) to draw.
            step: number of the update, from 1.

        Returns:
            verl's metrics, and why pairs of this rank could not be used.
        """
        numbers = list(range(self.rank, len(pairs), self.world_size))
        self._pairs = [pairs[number] for number in numbers]
        with self._frozen_on_device():
            data, problems = self._mini_batch(numbers, size, step)
            metrics = self._update(data)
        self._average(step, metrics)
        return metrics, [problem for problem in problems if problem]

    def _update(self, data: TensorDict) -> dict[str, Any]:
        if self.captioner is None or not self._captioner_trains:
            return dict(tu.get(self.train_batch(data), "metrics"))
        with self.captioner.train_mode():
            self.captioner.optimizer_zero_grad()
            metrics = dict(tu.get(self.train_batch(data), "metrics"))
            if tu.get_non_tensor_data(data, "total_weight", 0.0) > 0:
                metrics["captioner_grad_norm"] = self.captioner.optimizer_step()
            metrics["captioner_lr"] = self.captioner.lr_scheduler_step()
        return metrics

    def _frozen_modules(self) -> list[nn.Module]:
        """Without the conditioner where it follows the captioner, whose weights every validation writes into it."""
        own = self.painter.conditions.conditioner if self._captioner_trains else None
        return [module for module in super()._frozen_modules() if module is not own]

    @torch.no_grad()
    def prepare_evaluation(self) -> None:
        """Give the conditioner the trained language model: pictures are drawn of text alone, as in RL and in use."""
        if self.captioner is None or not self._captioner_trains:
            return
        module = self.captioner.module
        reshard(module)
        gathered = {plain_name(name): full_tensor(tensor).cpu() for name, tensor in module.state_dict().items()}
        merged = merged_state(gathered, lora_scalings(module))
        prefix = next(name for name, part in module.named_modules() if part is language_stack(module.model)) + "."
        state = {name.removeprefix(prefix): tensor for name, tensor in merged.items() if name.startswith(prefix)}
        self.painter.conditions.conditioner.language_model.load_state_dict(state, strict=True)
        self.painter.conditions.forget()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_captioner(self, folder: str, step: int) -> None:
        """verl's sharded checkpoint of a trained captioner; nothing where it is frozen."""
        if self.captioner is not None and self._captioner_trains:
            self.captioner.save_checkpoint(folder, None, step, None)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_captioner(self, folder: str) -> None:
        """Inverse of :meth:`save_captioner`."""
        if self.captioner is not None and self._captioner_trains:
            self.captioner.load_checkpoint(folder, None, False)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def export_captioner(self, folder: str) -> None:
        """Write the trained captioner as a transformers folder; nothing where it is frozen."""
        if self.captioner is not None and self._captioner_trains:
            self.captioner.export(folder)

    def _mini_batch(self, numbers: Sequence[int], size: HeightWidth, step: int) -> tuple[TensorDict, list[str]]:
        self._images, problems = self._decoded()
        conditioner = self.painter.conditions.conditioner
        captions = [pair.caption for pair in self._pairs]
        shape = self.family.latent_shape(*size)
        noise = [normal(shape, self.run.uae.seed, "cold start noise", step, number) for number in numbers]
        fields = {
            **conditioner.tokenize(captions).stored(),
            "noise_BCHW": torch.stack(noise),
            "source_B3HW": torch.stack([fit(image, size) for image in self._images]),
            "row_B": torch.arange(len(numbers)),
            "weight_B": torch.tensor([0.0 if problem else 1.0 for problem in problems]),
        }
        if self.captioner is None:
            fields |= stored(Condition.stack(self.painter.conditions.get(captions).conditions))
        data = TensorDict(fields, batch_size=len(numbers))
        tu.assign_non_tensor(
            data,
            micro_batch_size_per_gpu=self.run.uae.train.micro_batch_size,
            total_weight=self.total_weight(fields["weight_B"]),
            update_lr_scheduler=True,
        )
        return data, problems

    def _decoded(self) -> tuple[list[Image.Image], list[str]]:
        """Pictures, grey where one does not decode, and why."""
        images, problems = [], []
        for pair in self._pairs:
            try:
                images.append(pair.decode(self.limits))
                problems.append("")
            except DataError as error:
                images.append(Image.new("RGB", (max(1, pair.width), max(1, pair.height)), (128, 128, 128)))
                problems.append(str(error))
        return images, problems

    def _caption_inputs(self, rows: Sequence[int]) -> CaptionInputs:
        pairs = [self._pairs[row] for row in rows]
        return self.batcher(
            [self._images[row] for row in rows], [pair.caption for pair in pairs], [pair.prompt for pair in pairs]
        )

    @torch.no_grad()
    def _negative(self) -> Condition:
        """Condition of the unconditional branch with the current language model, one row."""
        conditions = self.painter.conditions
        prompt = self.run.uae.decoder.negative_prompt
        if self.captioner is None:
            return conditions.negative(prompt).to(get_device_name())
        tokens = conditions.conditioner.tokenize([prompt], negative=True)
        return read_text(self.captioner.module, self.family, tokens.to(get_device_name()))
