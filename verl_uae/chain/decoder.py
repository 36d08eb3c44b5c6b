# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The diffusion decoder: projector + SD3 MM-DiT + VAE, loaded from a diffusers folder.

Shape legend: B samples, L text positions, E language-model width, F text width of the MM-DiT, P pooled width, C H W
latents, 3 H W pictures.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import Tensor, nn

from verl_uae.checkpoints.inference import write_index
from verl_uae.checkpoints.load import check_files, check_weights, load_model, load_scheduler
from verl_uae.checkpoints.names import CONDITIONER, SCHEDULER, TRANSFORMER, VAE
from verl_uae.errors import CheckpointError
from verl_uae.families.sd3 import Projector
from verl_uae.flow.ode import StepHook, Velocity, euler, guided

#: Folders of a decoder's components and their classes.
COMPONENTS: dict[str, Any] = {TRANSFORMER: SD3Transformer2DModel, VAE: AutoencoderKL, CONDITIONER: Projector}

#: Component, its size -> that of the transformer which is the same number.
_FITS = {
    (VAE, "latent_channels"): "in_channels",
    (CONDITIONER, "out_dim"): "joint_attention_dim",
    (CONDITIONER, "pooled_dim"): "pooled_projection_dim",
}


class Decoder(nn.Module):
    """Draws pictures from conditions.

    Args:
        transformer: velocity model v(x, sigma, condition), v = eps - x_0.
        vae: latent codec with ``scaling_factor`` and ``shift_factor`` in its config.
        projector: condition states -> text stream of the transformer.
        shift: timestep shift of the scheduler the transformer was trained with.
    """

    def __init__(
        self, transformer: SD3Transformer2DModel, vae: AutoencoderKL, projector: Projector, *, shift: float = 1.0
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.vae = vae
        self.projector = projector
        self.shift = shift

    @classmethod
    def from_pretrained(
        cls, folder: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Decoder:
        """Load ``transformer/``, ``vae/``, ``conditioner/`` and ``scheduler/`` of a diffusers folder.

        The VAE stays in fp32: decoding in fp16 overflows with the SD3 VAE and bf16 shows banding that the
        rewards see. safetensors only.

        Raises:
            CheckpointError: naming the component that is missing or fits no other, or its tensor.
        """
        check_decoder_folder(folder)
        parts = {
            name: load_model(kind, folder, subfolder=name, dtype=torch.float32 if name == VAE else dtype)
            for name, kind in COMPONENTS.items()
        }
        check_fit(folder, {name: part.config for name, part in parts.items()})
        shift = float(load_scheduler(folder).config.shift)
        return cls(parts[TRANSFORMER], parts[VAE], parts[CONDITIONER], shift=shift).to(device).eval()

    def save_pretrained(self, folder: str, entries: Mapping[str, Any] | None = None) -> None:
        """Write a diffusers folder whose transformer, vae and scheduler load in stock diffusers.

        Args:
            folder: made if missing.
            entries: what is known of the :class:`~verl_uae.checkpoints.inference.InferenceSettings` that the decoder
                was trained with, by name.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        self.transformer.save_pretrained(root / TRANSFORMER, safe_serialization=True)
        self.vae.save_pretrained(root / VAE, safe_serialization=True)
        self.projector.save_pretrained(root / CONDITIONER, safe_serialization=True)
        FlowMatchEulerDiscreteScheduler(shift=self.shift).save_pretrained(root / SCHEDULER)
        write_index(root, entries or {})

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of a picture of the given size in pixels.

        Raises:
            ValueError: see :func:`latent_shape`.
        """
        return latent_shape(self.vae.config, self.transformer.config, height, width)

    def velocity(self, x_BCHW: Tensor, sigma_B: Tensor, states_BLE: Tensor) -> Tensor:
        """Velocity v = eps - x_0 at noise level sigma in [0, 1], shape of ``x_BCHW``, fp32; differentiable."""
        return self.field(states_BLE)(x_BCHW, sigma_B)

    def field(self, states_BLE: Tensor, negative_BLE: Tensor | None = None, guidance: float = 1.0) -> Velocity:
        """The velocity model with its condition filled in, projected once.

        Args:
            states_BLE: condition.
            negative_BLE: condition of the unconditional branch, shape (1 or B, L, E); needed if guidance != 1.
            guidance: scale of classifier-free guidance; 1 switches it off and halves the cost.

        Raises:
            ValueError: guidance without a negative condition.
        """
        both = with_negative(states_BLE, negative_BLE, guidance)
        text_BLF = self.projector(both.to(self.projector.dtype))
        return guided(
            lambda x_BCHW, sigma_B: velocity(self.transformer, self.projector.pooled, x_BCHW, sigma_B, text_BLF),
            guidance,
        )

    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] to scaled latents (mean of the posterior), shape (B, C, H, W), fp32."""
        return encode_image(self.vae, image_B3HW)

    def decode_latent(self, latent_BCHW: Tensor) -> Tensor:
        """Scaled latents to pictures in [0, 1], shape (B, 3, H, W), fp32."""
        return decode_latent(self.vae, latent_BCHW)

    @torch.no_grad()
    def sample(
        self,
        states_BLE: Tensor,
        noise_BCHW: Tensor,
        sigmas: Tensor,
        *,
        guidance: float = 1.0,
        negative_BLE: Tensor | None = None,
    ) -> Tensor:
        """Draw pictures: :meth:`denoise`, then :meth:`decode_latent`.

        Returns:
            Pictures in [0, 1], shape (B, 3, H, W), fp32.
        """
        noise_BCHW = noise_BCHW.to(self.device)
        return self.decode_latent(
            self.denoise(states_BLE, noise_BCHW, sigmas, guidance=guidance, negative_BLE=negative_BLE)
        )

    @torch.no_grad()
    def denoise(
        self,
        states_BLE: Tensor,
        noise_BCHW: Tensor,
        sigmas: Tensor,
        *,
        guidance: float = 1.0,
        negative_BLE: Tensor | None = None,
        on_step: StepHook | None = None,
    ) -> Tensor:
        """Draw latents with the Euler ODE sampler, on the device of the noise.

        Training-time evaluation and :class:`~verl_uae.UAEPipeline` both sample here.

        Args:
            states_BLE: condition.
            noise_BCHW: initial noise, shape (B, C, H, W).
            sigmas: noise levels, shape (S + 1,).
            guidance: classifier-free guidance scale; 1 switches guidance off and halves the cost.
            negative_BLE: condition of the unconditional branch, shape (1 or B, L, E); needed if guidance != 1.
            on_step: see :func:`~verl_uae.flow.ode.euler`.

        Returns:
            Scaled latents, shape (B, C, H, W), fp32.

        Raises:
            ValueError: if guidance is asked for without a negative condition.
        """
        return euler(self.field(states_BLE, negative_BLE, guidance), noise_BCHW, sigmas, on_step)


def velocity(
    transformer: SD3Transformer2DModel, pooled_P: Tensor, x_BCHW: Tensor, sigma_B: Tensor, text_BLF: Tensor
) -> Tensor:
    """One call of the MM-DiT: velocity v = eps - x_0, shape of ``x_BCHW``, fp32; differentiable.

    Args:
        transformer: whole or sharded by FSDP.
        pooled_P: constant pooled vector.
        x_BCHW: latents.
        sigma_B: noise levels in [0, 1], fp32.
        text_BLF: text stream.
    """
    # Not transformer.dtype: under FSDP the blocks are still sharded here, and only top layers show the dtype that is
    # computed in.
    dtype = transformer.pos_embed.proj.weight.dtype
    # Named device: an offloaded projector is back on the host by now.
    pooled_BP = pooled_P.to(x_BCHW.device, dtype).expand(x_BCHW.shape[0], -1)
    return transformer(
        hidden_states=x_BCHW.to(dtype),
        timestep=sigma_B * 1000.0,
        encoder_hidden_states=text_BLF,
        pooled_projections=pooled_BP,
        return_dict=False,
    )[0].float()


def with_negative(states_BLE: Tensor, negative_BLE: Tensor | None, guidance: float) -> Tensor:
    """Conditions of what :func:`~verl_uae.flow.ode.guided` draws with: the B given ones, with guidance B negative ones
    behind them.

    Raises:
        ValueError: guidance without a negative condition.
    """
    if guidance == 1.0:
        return states_BLE
    if negative_BLE is None:
        raise ValueError(f"guidance {guidance} needs a negative condition")
    return torch.cat([states_BLE, negative_BLE.to(states_BLE.dtype).expand_as(states_BLE)])


def check_decoder_folder(folder: str | Path) -> None:
    """Refuse a folder that lacks a part of a decoder; a hub id passes.

    Raises:
        CheckpointError: naming the component that is missing.
    """
    root = Path(folder)
    if not root.is_dir():
        return
    for name in COMPONENTS:
        if not (root / name).is_dir():
            reason = f"is no model and no decoder folder: it has no {name}/; verl-uae import and export write such"
            raise CheckpointError(root, reason)


def component_configs(folder: str | Path) -> dict[str, Any]:
    """Configurations of all components by name, as their classes complete them, without building one."""
    configs = {}
    for name, kind in COMPONENTS.items():
        defaults = {key: parameter.default for key, parameter in inspect.signature(kind.__init__).parameters.items()}
        configs[name] = SimpleNamespace(**{**defaults, **kind.load_config(Path(folder, name))})
    return configs


def check_decoder(folder: str | Path) -> None:
    """:func:`check_decoder_folder`, files of every component, and :func:`check_components`.

    Raises:
        CheckpointError: naming the component, its file or its tensor.
    """
    check_decoder_folder(folder)
    for name in COMPONENTS:
        check_files(Path(folder, name))
    check_components(folder)


def check_components(folder: str | Path) -> None:
    """Names and shapes of every component of a decoder folder, and whether they fit; no weight is read.

    Raises:
        CheckpointError: naming the component or its tensor.
    """
    for name, kind in COMPONENTS.items():
        check_weights(kind, Path(folder, name))
    load_scheduler(folder)
    check_fit(folder, component_configs(folder))


def check_fit(where: str | Path, configs: Mapping[str, Any], width: int | None = None) -> None:
    """Refuse components that were not made for each other, before one meets what another computes.

    Args:
        where: their folder or hub id, for the error.
        configs: of every component, by its name.
        width: E, of the language model that the condition comes from, if it is known.

    Raises:
        CheckpointError: naming both sizes.
    """
    transformer = configs[TRANSFORMER]
    for (name, ours), theirs in _FITS.items():
        own, wanted = getattr(configs[name], ours), getattr(transformer, theirs)
        if own != wanted:
            raise CheckpointError(f"{where}/{name}", f"{ours} {own} is not the transformer's {theirs} {wanted}")
    if transformer.out_channels not in (None, transformer.in_channels):
        raise CheckpointError(
            f"{where}/{TRANSFORMER}",
            f"out_channels {transformer.out_channels} is not its in_channels {transformer.in_channels}",
        )
    if width not in (None, configs[CONDITIONER].in_dim):
        raise CheckpointError(
            f"{where}/{CONDITIONER}",
            f"takes states of width {configs[CONDITIONER].in_dim}, the language model has width {width}",
        )


@torch.no_grad()
def encode_image(vae: Any, image_B3HW: Tensor) -> Tensor:
    """Pictures in [0, 1] to scaled latents (mean of the posterior), shape (B, C, H, W), fp32."""
    posterior = vae.encode(image_B3HW.to(vae.dtype) * 2.0 - 1.0).latent_dist
    return (posterior.mean.float() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.no_grad()
def decode_latent(vae: Any, latent_BCHW: Tensor) -> Tensor:
    """Scaled latents to pictures in [0, 1], shape (B, 3, H, W), fp32; no gradient."""
    return differentiable_decode(vae, latent_BCHW)


def differentiable_decode(vae: Any, latent_BCHW: Tensor) -> Tensor:
    """As :func:`decode_latent`, with the gradient to the latents; none where the picture is cut to [0, 1]."""
    latent = latent_BCHW.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return (vae.decode(latent, return_dict=False)[0].float() * 0.5 + 0.5).clamp(0.0, 1.0)


def latent_shape(vae_config: Any, transformer_config: Any, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of a picture of the given size in pixels.

    Raises:
        ValueError: if a side is not a multiple of the VAE factor times the patch size, or the decoder has no position
            for all of its patches.
    """
    factor = 2 ** (len(vae_config.block_out_channels) - 1)
    multiple = factor * transformer_config.patch_size
    if height % multiple or width % multiple:
        raise ValueError(f"height and width must be multiples of {multiple}, got {height}x{width}")
    # Without a table of positions they are computed, for any number of patches.
    positions = transformer_config.pos_embed_max_size
    if positions and max(height, width) > positions * multiple:
        raise ValueError(f"height and width may be {positions * multiple} at most, got {height}x{width}")
    return transformer_config.in_channels, height // factor, width // factor
