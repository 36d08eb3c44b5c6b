# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The chain as a diffusers pipeline: caption a picture, draw a text, or both in turn.

Shape legend: B prompts, K pictures per prompt, N = B * K pictures, S denoising steps, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from verl_uae.chain.captioner import caption_messages, write_captions
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.loading import (
    check_callback,
    check_drawing,
    dtype_of,
    generator_list,
    keep_vae_fp32,
    load_language_model,
    load_processor,
    load_tokenizer_of,
    local_folder,
    sigma_table,
)
from verl_uae.chain.loading import load_model as load_captioner
from verl_uae.checkpoints.inference import ENTRIES, InferenceSettings, read_index
from verl_uae.checkpoints.load import language_sizes, load_model, load_scheduler, wants_digests
from verl_uae.checkpoints.manifest import verify_folder
from verl_uae.checkpoints.names import (
    CAPTIONER,
    CONDITIONER,
    FAMILY_OPTIONS,
    LANGUAGE_MODEL,
    MANIFEST,
    TRANSFORMER,
    VAE,
)
from verl_uae.checkpoints.source import refuse_code, refuse_renamed, refuse_special
from verl_uae.data.images import ImageSource, decode_image
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.families import check_decoder_folder, family_of_modules
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import language_stack

logger = logging.getLogger(__name__)

_DEFAULTS = InferenceSettings()

#: Arguments of ``DiffusionPipeline.from_pretrained`` that would let it load parts by itself.
_UNSUPPORTED = {"custom_pipeline", "device_map", "max_memory", "quantization_config", "variant"}

Generator = torch.Generator | list[torch.Generator] | None
StepCallback = Callable[["UAEPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class UAEPipelineOutput(BaseOutput):
    """What was drawn."""

    images: Any
    """N pictures, those of one caption next to each other: a list of PIL pictures, an array (N, H, W, 3) or a tensor
    (N, 3, H, W) in [0, 1], or scaled latents (N, C, H, W)."""

    captions: list[str]
    """The B texts that they were drawn from."""

    truncated: list[bool]
    """Which of the B texts did not fit into the condition and were cut."""


class UAEPipeline(DiffusionPipeline):
    """Captions pictures, draws texts, and reconstructs pictures from their captions.

    The sampler is :meth:`Decoder.denoise`, the one of training-time evaluation: same caption, noise and noise levels,
    same picture. The VAE stays in fp32 whatever the dtype.

    Args:
        transformer: velocity model.
        vae: latent codec.
        scheduler: only its shift is used; see :meth:`~verl_uae.families.family.DecoderFamily.sigmas`.
        conditioner: projector in front of the transformer, for families that need one.
        captioner: vision-language model; None where nothing is captioned and there is a ``language_model``.
        processor: of the captioner.
        language_model: model whose text-only states are the condition; None is the captioner's own language model.
        tokenizer: of the ``language_model``; None is the processor's.
        condition_length: text positions of the condition, chat template included; as in training.
        condition_role: chat role of the caption in the condition.
        caption_prompt: user turn that asks for a caption, ``<image>`` where the picture goes.
        caption_system: system turn before it; "" leaves it out.
        max_new_tokens: of :meth:`caption`, as the next; what its argument None stands for.
        temperature: likewise.
        num_inference_steps: of :meth:`generate`, as the rest; what its argument None stands for.
        guidance_scale: likewise.
        negative_prompt: likewise.
        height: likewise; None is the size that the transformer was made for.
        width: likewise.
        family_options: what the family of the decoder reads besides.

    Raises:
        ConfigError: naming the setting that is impossible.
    """

    model_cpu_offload_seq = "captioner->language_model->conditioner->transformer->vae"
    _optional_components = [CONDITIONER, CAPTIONER, "processor", LANGUAGE_MODEL, "tokenizer"]  # noqa: RUF012 - as in diffusers
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012 - as in diffusers

    def __init__(
        self,
        transformer: ModelMixin,
        vae: ModelMixin,
        scheduler: FlowMatchEulerDiscreteScheduler,
        conditioner: ModelMixin | None = None,
        captioner: PreTrainedModel | None = None,
        processor: Any = None,
        language_model: PreTrainedModel | None = None,
        tokenizer: Any = None,
        condition_length: int = _DEFAULTS.condition_length,
        condition_role: str = _DEFAULTS.condition_role,
        caption_prompt: str = _DEFAULTS.caption_prompt,
        caption_system: str = _DEFAULTS.caption_system,
        max_new_tokens: int = _DEFAULTS.max_new_tokens,
        temperature: float = _DEFAULTS.temperature,
        num_inference_steps: int = _DEFAULTS.num_inference_steps,
        guidance_scale: float = _DEFAULTS.guidance_scale,
        negative_prompt: str = _DEFAULTS.negative_prompt,
        height: int | None = _DEFAULTS.height,
        width: int | None = _DEFAULTS.width,
        family_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            conditioner=conditioner,
            captioner=captioner,
            processor=processor,
            language_model=language_model,
            tokenizer=tokenizer,
        )
        settings = InferenceSettings(
            condition_length=condition_length,
            condition_role=condition_role,
            caption_prompt=caption_prompt,
            caption_system=caption_system,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
        )
        self.register_to_config(**asdict(settings), family_options=family_options)
        self._interrupt = False
        self._guidance_scale = 1.0
        self._num_timesteps = 0

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> UAEPipeline:
        """Load a model folder; a folder with only the decoder part takes the rest as arguments.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            kwargs: as of ``DiffusionPipeline.from_pretrained``: ``torch_dtype``, components (``captioner=...``,
                ``processor=...``) and settings (``condition_length=...``) in place of the folder's. Besides these
                ``verify``: whether the files are compared with the folder's manifest, if it has one; by default they
                are, unless ``VERL_UAE_VERIFY=0``. Code that a folder brings is refused, whatever is asked for.

        Raises:
            CheckpointError: naming the folder and the part that is missing, does not load or fits no other, or the
                entry of ``model_index.json`` that is unknown or damaged.
            ConfigError: naming the setting that is impossible.
        """
        root = local_folder(pretrained_model_name_or_path, kwargs)
        refuse_renamed(root)
        components = check_decoder_folder(root).components
        known = {**read_index(root), **{name: kwargs[name] for name in ENTRIES if name in kwargs}}
        missing = [name for name in ENTRIES if name not in known]
        if missing:
            logger.warning("%s does not say %s: the defaults are used", root, ", ".join(missing))
        dtype = keep_vae_fp32(kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None))
        if odd := sorted(name for name in _UNSUPPORTED & kwargs.keys() if kwargs[name] is not None):
            raise ValueError(
                f"{odd[0]} is not supported; load the pipeline, then .to(device) or enable_model_cpu_offload()"
            )
        verify = kwargs.pop("verify", None)
        refuse_special(root)
        refuse_code(root)
        if (wants_digests() if verify is None else verify) and (root / MANIFEST).exists():
            verify_folder(root)
        # The manifest of the folder speaks for all of its parts.
        options: dict[str, Any] = {"verify": False}
        for name, kind in components.items():
            if name not in kwargs:
                kwargs[name] = load_model(kind, root, subfolder=name, dtype=dtype_of(name, dtype), **options)
        for name, load in ((CAPTIONER, load_captioner), (LANGUAGE_MODEL, load_language_model)):
            if name not in kwargs:
                kwargs[name] = load(root / name, dtype_of(name, dtype), **options)
        if "scheduler" not in kwargs:
            kwargs["scheduler"] = load_scheduler(root)
        if "processor" not in kwargs:
            kwargs["processor"] = load_processor(root)
        if "tokenizer" not in kwargs:
            kwargs["tokenizer"] = load_tokenizer_of(root / LANGUAGE_MODEL)
        kwargs |= {"use_safetensors": True, "trust_remote_code": False}
        owner = kwargs[CAPTIONER] if kwargs[LANGUAGE_MODEL] is None else kwargs[LANGUAGE_MODEL]
        if all(kwargs[name] is not None for name in components):
            family = family_of_modules({name: kwargs[name] for name in components}, kwargs["scheduler"].config)
            family.check(root, *(() if owner is None else language_sizes(owner.config)))
        try:
            return super().from_pretrained(str(root), **kwargs)
        except OSError as error:
            raise CheckpointError(root, str(error)) from error

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a model folder: every component in its own, the processor beside the model it belongs to.

        Raises:
            ValueError: for ``safe_serialization=False``; only safetensors are written.
        """
        if not kwargs.pop("safe_serialization", True):
            raise ValueError("only safetensors are written")
        processor, tokenizer = self.processor, self.tokenizer
        if tokenizer is not None and self.language_model is not None:
            tokenizer.save_pretrained(Path(save_directory) / LANGUAGE_MODEL)
        if processor is not None:
            name = CAPTIONER if self.captioner is not None or self.language_model is None else LANGUAGE_MODEL
            processor.save_pretrained(Path(save_directory) / name)
        # diffusers would give it a folder of its own; the transformers folder must be complete by itself.
        self.register_modules(processor=None, tokenizer=None)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.register_modules(processor=processor, tokenizer=tokenizer)

    def to(self, *args: Any, **kwargs: Any) -> UAEPipeline:
        """Move and convert as ``DiffusionPipeline.to`` does, the VAE in fp32 at any rate."""
        vae = self.vae
        self.register_modules(vae=None)
        try:
            super().to(*args, **kwargs)
        finally:
            self.register_modules(vae=vae)
        if vae is not None and self.transformer.device.type != "meta":
            vae.to(self.transformer.device)
        return self

    @property
    def decoder(self) -> Decoder:
        """The components as training has them; they are shared, not copied."""
        family = self.family
        return Decoder(family, {name: getattr(self, name) for name in family.components}).eval()

    @property
    def family(self) -> DecoderFamily:
        """What kind of decoder the components are."""
        return family_of_modules(
            {TRANSFORMER: self.transformer, VAE: self.vae, CONDITIONER: self.conditioner},
            self.scheduler.config,
            {FAMILY_OPTIONS: self.config.family_options},
            length=self.config.condition_length,
            role=self.config.condition_role,
        )

    @property
    def inference(self) -> InferenceSettings:
        """How the pipeline captions and draws where nothing else is asked for."""
        return InferenceSettings(**{name: self.config[name] for name in ENTRIES})

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) of a drawing where nothing else is asked for, pixels."""
        side = self.family.default_side
        return self.config.height or side, self.config.width or side

    @property
    def interrupt(self) -> bool:
        """Set ``_interrupt`` from a callback or another thread to end the drawing after the step being taken."""
        return self._interrupt

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    def encode_prompt(self, prompts: Sequence[str], *, negative: bool = False) -> tuple[Condition, list[bool]]:
        """The condition of texts, text-only states of the language model, and which of them were cut.

        Args:
            prompts: B texts.
            negative: they are of the unconditional branch.

        Raises:
            ValueError: there is no language model or no tokenizer.
        """
        owner = self.captioner if self.language_model is None else self.language_model
        reader = self.processor if self.language_model is None or self.tokenizer is None else self.tokenizer
        if owner is None or reader is None:
            raise ValueError("drawing a text takes a captioner or a language_model, and a processor")
        _onload(owner)
        tokenizer = getattr(reader, "tokenizer", reader)
        conditioner = Conditioner(language_stack(owner), tokenizer, self.family)
        tokens = conditioner.tokenize(prompts, negative=negative)
        with torch.no_grad():
            return conditioner.condition(tokens, self._execution_device), tokens.truncated_B.tolist()

    @torch.no_grad()
    def caption(
        self,
        images: ImageSource | Sequence[ImageSource],
        prompt: str | None = None,
        system: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        generator: Generator = None,
        batch_size: int = 8,
    ) -> list[str]:
        """Describe pictures.

        Args:
            images: one or several pictures: PIL, path or encoded bytes; see :func:`~verl_uae.data.images.decode_image`.
            prompt: user turn, ``<image>`` where the picture goes; None is ``caption_prompt`` of the pipeline.
            system: system turn, "" for none; None is ``caption_system`` of the pipeline.
            max_new_tokens: longest caption, tokens; None is that of the pipeline.
            temperature: 0 is greedy; None is that of the pipeline.
            generator: source of randomness above temperature 0: one for all pictures or one for each.
            batch_size: pictures described together. Padding changes logits in the last bits.

        Returns:
            One caption per picture.

        Raises:
            DecodeError: a picture cannot be decoded.
            CheckpointError: the captioner's logits are no numbers, or its processor takes no pictures.
            ValueError: there is no captioner or no processor, or a setting is impossible.
        """
        if self.captioner is None or self.processor is None:
            raise ValueError("captions take a captioner and a processor; this folder has only the decoder part")
        if not hasattr(self.processor, "image_processor"):
            where = self.captioner.name_or_path or type(self.captioner).__name__
            raise CheckpointError(where, f"its processor, {type(self.processor).__name__}, takes no pictures")
        settings = self._with(
            caption_prompt=prompt, caption_system=system, max_new_tokens=max_new_tokens, temperature=temperature
        )
        pictures = [decode_image(image) for image in _listed(images)]
        generators = generator_list(generator, len(pictures))
        user, turn = settings.caption_prompt, settings.caption_system
        prompts = [caption_messages(picture, user, turn) for picture in pictures]
        captions: list[str] = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            _onload(self.captioner)
            captions += write_captions(
                self.captioner,
                self.processor,
                prompts[rows],
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                generators=generators if len(generators) == 1 else generators[rows],
                device=self._execution_device,
            )
        self.maybe_free_model_hooks()
        return captions

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        generator: Generator = None,
        latents: Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> Any:
        """Draw texts.

        Args:
            prompt: B texts.
            height: H, pixels; None, as in the next four, is the pipeline's own setting.
            width: W, likewise.
            num_inference_steps: S.
            guidance_scale: classifier-free guidance; 1 switches it off and halves the cost.
            negative_prompt: text of the unconditional branch.
            num_images_per_prompt: K.
            generator: of the initial noise: one, or one for each of the N pictures; None is torch's global one.
            latents: initial noise (N, C, H, W) instead.
            sigmas: S + 1 falling noise levels in place of the scheduler's.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": x}) after each step; what it returns
                under ``latents`` is gone on with.
            callback_on_step_end_tensor_inputs: names of the tensors passed to it.
            return_dict: False returns the output's fields as a tuple, pictures first.

        Returns:
            :class:`UAEPipelineOutput`, or its fields.

        Raises:
            ValueError: for impossible arguments.
            CheckpointError: what the model draws is not finite.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        settings = self._with(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
        )
        decoder, guidance = self.decoder, settings.guidance_scale
        check_drawing(prompts, num_images_per_prompt, output_type)
        check_callback(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        own_height, own_width = self.picture_size
        size = settings.height or own_height, settings.width or own_width
        steps = settings.num_inference_steps
        table = decoder.family.sigmas(steps, *size) if sigmas is None else sigma_table(sigmas)
        shape = decoder.latent_shape(*size)
        noise_NCHW = self._noise((len(prompts) * num_images_per_prompt, *shape), generator, latents)
        condition, truncated = self.encode_prompt(prompts)
        negative = None if guidance == 1.0 else self.encode_prompt([settings.negative_prompt], negative=True)[0]
        self._interrupt, self._guidance_scale, self._num_timesteps = False, guidance, len(table) - 1
        with self.progress_bar(total=len(table) - 1) as bar:
            x_NCHW = decoder.denoise(
                condition[[row for row in range(len(prompts)) for _ in range(num_images_per_prompt)]],
                noise_NCHW,
                table,
                guidance=guidance,
                negative=negative,
                on_step=self._step_hook(bar, table, callback_on_step_end, callback_on_step_end_tensor_inputs),
            )
        self._check_finite(x_NCHW, "draws", self.transformer.dtype)
        images = x_NCHW
        if output_type != "latent":
            image_N3HW = decoder.decode_latent(x_NCHW)
            self._check_finite(image_N3HW, "decodes to", self.vae.dtype)
            images = _converted(image_N3HW, output_type)
        self.maybe_free_model_hooks()
        output = UAEPipelineOutput(images=images, captions=prompts, truncated=truncated)
        return output if return_dict else output.to_tuple()

    __call__ = generate

    @staticmethod
    def to_pil(image_N3HW: Tensor) -> list[Image.Image]:
        """Pictures in [0, 1] as PIL pictures."""
        return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(image_N3HW))

    def reconstruct(
        self,
        images: ImageSource | Sequence[ImageSource],
        caption_prompt: str | None = None,
        caption_system: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        caption_generator: Generator = None,
        **drawing: Any,
    ) -> Any:
        """Describe pictures and draw the descriptions.

        Args:
            images: see :meth:`caption`, as the next five.
            caption_prompt: user turn.
            caption_system: system turn.
            max_new_tokens: longest caption, tokens.
            temperature: of the captions.
            caption_generator: of the captions.
            drawing: arguments of :meth:`generate`.

        Returns:
            As of :meth:`generate`.
        """
        captions = self.caption(
            images, caption_prompt, caption_system, max_new_tokens, temperature, generator=caption_generator
        )
        return self.generate(captions, **drawing)

    def _with(self, **given: Any) -> InferenceSettings:
        """The pipeline's settings with those that were given in their place."""
        try:
            return replace(self.inference, **{name: value for name, value in given.items() if value is not None})
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def _check_finite(self, drawn: Tensor, what: str, dtype: torch.dtype) -> None:
        if not bool(drawn.isfinite().all()):
            raise CheckpointError(
                self.name_or_path or type(self).__name__,
                f"{what} no finite numbers in {dtype}: use float32 or bfloat16, or check its weights",
            )

    def _noise(self, shape: tuple[int, ...], generator: Generator, latents: Tensor | None) -> Tensor:
        if latents is None:
            generators = generator_list(generator, shape[0]) if generator is not None else None
            source = generators[0] if generators is not None and len(generators) == 1 else generators
            return randn_tensor(shape, generator=source, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must have the shape {shape}, got {tuple(latents.shape)}")
        return latents.to(self._execution_device, torch.float32)

    def _step_hook(
        self, bar: Any, sigmas: Tensor, callback: StepCallback | None, names: Sequence[str]
    ) -> Callable[[int, Tensor], tuple[Tensor, bool]]:
        def hook(index: int, x_NCHW: Tensor) -> tuple[Tensor, bool]:
            if callback is not None:
                tensors = {"latents": x_NCHW}
                found = callback(self, index, sigmas[index] * 1000.0, {name: tensors[name] for name in names})
                x_NCHW = found.pop("latents", x_NCHW).to(x_NCHW)
            bar.update()
            return x_NCHW, not self._interrupt

        return hook


def _onload(module: Any) -> None:
    """Bring an offloaded model to its device: hooks act on its ``forward``, and not every use goes through that."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)


def _listed(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    return list(images) if isinstance(images, list | tuple) else [images]  # type: ignore[list-item]


def _converted(image_N3HW: Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return image_N3HW
    return VaeImageProcessor.pt_to_numpy(image_N3HW) if output_type == "np" else UAEPipeline.to_pil(image_N3HW)
