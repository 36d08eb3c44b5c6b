# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The diffusion decoder: all components of a decoder folder, in the hands of their family.

Shape legend: B samples, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verl_uae.checkpoints.inference import write_index
from verl_uae.checkpoints.load import load_model
from verl_uae.checkpoints.names import TRANSFORMER, VAE
from verl_uae.families import family_of, family_of_modules
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.flow.ode import StepHook, Velocity, euler
from verl_uae.visits import arrive


class Decoder(nn.Module):
    """Draws pictures from conditions.

    Args:
        family: what the components are.
        modules: every component by its folder's name.
    """

    transformer: Any
    vae: Any

    def __init__(self, family: DecoderFamily, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.family = family
        self.transformer = modules[TRANSFORMER]
        self.vae = modules[VAE]
        # Under the names that whoever trains them has too.
        for part, name in family.trained.items():
            setattr(self, part, modules[name])

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module], scheduler: Mapping[str, Any], **options: Any) -> Decoder:
        """A decoder of components at hand.

        Args:
            modules: every component by its folder's name.
            scheduler: settings of the scheduler that the transformer was trained with, such as ``shift``.
            options: of :func:`~verl_uae.families.family_of_modules`.
        """
        return cls(family_of_modules(modules, scheduler, **options), modules).eval()

    @classmethod
    def from_pretrained(
        cls, folder: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", **options: Any
    ) -> Decoder:
        """Load the components of a decoder folder.

        The VAE is in fp32: decoding in fp16 overflows with the SD3 VAE, and bf16 shows banding that rewards may see
        (:mod:`verl_uae.chain.vae`). safetensors only.

        Args:
            folder: decoder folder or hub id.
            dtype: of the weights.
            device: of the weights.
            options: of :func:`~verl_uae.families.family_of`.

        Raises:
            CheckpointError: naming the component that is missing or fits no other, or its tensor.
        """
        family = family_of(folder, **options)
        family.check(folder)
        modules = {
            name: load_model(kind, folder, subfolder=name, dtype=torch.float32 if name == VAE else dtype)
            for name, kind in family.components.items()
        }
        return cls(family, modules).to(device).eval()

    def save_pretrained(self, folder: str, entries: Mapping[str, Any] | None = None) -> None:
        """Write a diffusers folder whose transformer, vae and scheduler load in stock diffusers.

        Args:
            folder: made if missing.
            entries: what is known of the :class:`~verl_uae.checkpoints.inference.InferenceSettings` that the decoder
                was trained with, by name.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        for name, module in self.modules_by_folder().items():
            module.save_pretrained(root / name, safe_serialization=True)
        self.family.save_scheduler(root)
        write_index(root, self.family, entries or {})

    def modules_by_folder(self) -> dict[str, Any]:
        """Every component by its folder's name."""
        parts = {name: part for part, name in self.family.trained.items()}
        return {name: getattr(self, parts.get(name, name)) for name in self.family.components}

    @property
    def velocity_parts(self) -> list[nn.Module]:
        """What computes velocities: all but the VAE."""
        return [part for part in self.children() if part is not self.vae]

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of a picture of the given size in pixels.

        Raises:
            ValueError: see :meth:`~verl_uae.families.family.DecoderFamily.latent_shape`.
        """
        return self.family.latent_shape(height, width)

    def velocity(self, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """Velocity v = eps - x_0 at noise level sigma in [0, 1], shape of ``x_BCHW``, fp32; differentiable."""
        return self.field(condition)(x_BCHW, sigma_B)

    def field(self, condition: Condition, negative: Condition | None = None, guidance: float = 1.0) -> Velocity:
        """See :meth:`~verl_uae.families.family.DecoderFamily.field`."""
        arrive(*self.velocity_parts)
        return self.family.field(self, condition, negative, guidance)

    def encode_image(self, image_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] to latents (mode of the posterior), shape (B, C, H, W), fp32."""
        return self.family.encode_image(self.vae, image_B3HW)

    def decode_latent(self, latent_BCHW: Tensor) -> Tensor:
        """Latents to pictures in [0, 1], shape (B, 3, H, W), fp32."""
        return self.family.decode_latent(self.vae, latent_BCHW)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        noise_BCHW: Tensor,
        sigmas: Tensor,
        *,
        guidance: float = 1.0,
        negative: Condition | None = None,
    ) -> Tensor:
        """Draw pictures: :meth:`denoise`, then :meth:`decode_latent`.

        Returns:
            Pictures in [0, 1], shape (B, 3, H, W), fp32.
        """
        noise_BCHW = noise_BCHW.to(self.device)
        return self.decode_latent(self.denoise(condition, noise_BCHW, sigmas, guidance=guidance, negative=negative))

    @torch.no_grad()
    def denoise(
        self,
        condition: Condition,
        noise_BCHW: Tensor,
        sigmas: Tensor,
        *,
        guidance: float = 1.0,
        negative: Condition | None = None,
        on_step: StepHook | None = None,
    ) -> Tensor:
        """Draw latents with the Euler ODE sampler, on the device of the noise.

        Training-time evaluation and :class:`~verl_uae.UAEPipeline` both sample here.

        Args:
            condition: of B pictures.
            noise_BCHW: initial noise, shape (B, C, H, W).
            sigmas: noise levels, shape (S + 1,).
            guidance: classifier-free guidance scale; 1 switches guidance off and halves the cost.
            negative: condition of the unconditional branch, 1 or B rows; needed if guidance != 1.
            on_step: see :func:`~verl_uae.flow.ode.euler`.

        Returns:
            Latents, shape (B, C, H, W), fp32.

        Raises:
            ValueError: if guidance is asked for without a negative condition.
        """
        return euler(self.field(condition, negative, guidance), noise_BCHW, sigmas, on_step)
