# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The semantic reconstruction loss of the cold start: caption states -> sampler -> picture -> features, with gradient.

L = w_s (1 - cos(f(x~), f(x))) + w_c * mean over caption tokens of -log p(token | image, tokens before)

(UAE, arXiv 2509.09666v1, stage 1; the caption term is ours.) A caption is discrete, so the first term teaches nothing
about which words to write: its gradient reaches the language model through the states of a given caption. The second
term teaches to write it.

Shape legend: B pairs, L text positions, T tokens of prompt and caption, E language-model width, C H W latents, 3 H W
pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from verl_uae.engines.decoder import DecoderEngine
from verl_uae.engines.decoder_batch import read_condition
from verl_uae.engines.supervised import SupervisedOutput
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import Tokens
from verl_uae.flow.ode import Velocity, euler_adjoint, euler_path
from verl_uae.reward.terms.features import FeatureTerm, feature_similarity


@dataclass(frozen=True, slots=True)
class CaptionInputs:
    """Prompt with picture and caption of a micro-batch, for the cold start's
    :class:`~verl_uae.stages.cold_start.captioner.CaptionerModule`."""

    ids_BT: Tensor
    mask_BT: Tensor
    answer_BT: Tensor
    """True at tokens of the caption."""
    pictures: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ReconstructionSettings:
    """``uae.cold_start`` as far as the loss needs it."""

    sigmas: Tensor
    guidance: float
    gradient_steps: int | None
    kept_steps: int
    semantic_weight: float
    caption_weight: float
    in_context: bool
    vae_batch_size: int
    """Pictures whose activations in VAE and feature network are held at a time."""


def recompute(vae: Any, wanted: bool = True) -> None:
    """Have a VAE compute its activations again in the backward pass, or hold them.

    Classes that cannot (those of Qwen-Image, Qwen-Image-2.1 and SANA) hold them, of ``vae_batch_size`` pictures.
    """
    if vae._supports_gradient_checkpointing:
        (vae.enable_gradient_checkpointing if wanted else vae.disable_gradient_checkpointing)()


class ReconstructionLoss:
    """Loss and gradient of a micro-batch.

    It reads noise_BCHW, source_B3HW, row_B (numbers for ``captions_of``) and the tokens of the captions or, where the
    language model has no engine, their condition.

    Args:
        settings: see there.
        family: of the decoder.
        vae: frozen.
        features: frozen feature term.
        captioner: module of the captioner's engine; None conditions on the condition of the micro-batch.
        captions_of: rows of a micro-batch to their caption inputs.
        negative: condition of the unconditional branch, one row, without gradient; asked for if guidance != 1.
    """

    def __init__(
        self,
        settings: ReconstructionSettings,
        family: DecoderFamily,
        vae: Any,
        features: FeatureTerm,
        captioner: nn.Module | None,
        captions_of: Callable[[Sequence[int]], CaptionInputs],
        negative: Callable[[], Condition],
    ) -> None:
        self.settings = settings
        self.family = family
        self.vae = vae
        self.features = features
        self.captioner = captioner
        self.captions_of = captions_of
        self.negative = negative

    def __call__(self, engine: DecoderEngine, micro: TensorDict) -> SupervisedOutput:
        """See the module; the backward pass walks the sampler back step by step. Activations of the last steps wait
        for it where there is one."""
        settings = self.settings
        condition, negative_log_prob_B = self._condition(micro)
        leaf = condition.states.detach().requires_grad_()
        field = self._field(engine, Condition(leaf, condition.lengths))
        keep = settings.kept_steps if torch.is_grad_enabled() else 0
        path = euler_path(field, micro["noise_BCHW"], settings.sigmas, keep=keep)
        latent_BCHW = path.states[-1].requires_grad_()
        cosine_B = self._cosine(latent_BCHW, micro["source_B3HW"])
        distance_B = 1.0 - cosine_B
        loss_B = settings.semantic_weight * distance_B.detach()
        metrics = {"cosine": cosine_B.detach()}
        if negative_log_prob_B is not None:
            loss_B = loss_B + settings.caption_weight * negative_log_prob_B.detach()
            metrics["caption_negative_log_prob"] = negative_log_prob_B.detach()

        def backward(scale_B: Tensor) -> None:
            weighted = (settings.semantic_weight * scale_B * distance_B).sum()
            (gradient_BCHW,) = torch.autograd.grad(weighted, latent_BCHW)
            euler_adjoint(
                field,
                path,
                settings.sigmas,
                gradient_BCHW,
                steps=settings.gradient_steps,
                on_backward=engine.announce_backward,
            )
            roots: list[tuple[Tensor, Tensor]] = []
            if condition.states.requires_grad:
                assert leaf.grad is not None
                roots.append((condition.states, leaf.grad))
            if negative_log_prob_B is not None and negative_log_prob_B.requires_grad:
                roots.append((negative_log_prob_B, settings.caption_weight * scale_B))
            if roots:
                torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])

        return SupervisedOutput(loss_B, metrics, backward)

    def _condition(self, micro: TensorDict) -> tuple[Condition, Tensor | None]:
        """The condition, and the caption term where it has a weight or gives the states."""
        if self.captioner is None:
            return read_condition(micro), None
        negative_log_prob_B = hidden_BTE = captions = None
        if self.settings.caption_weight > 0 or self.settings.in_context:
            captions = self.captions_of(micro["row_B"].tolist())
            negative_log_prob_B, hidden_BTE = self.captioner(
                captions.ids_BT, captions.mask_BT, captions.answer_BT, **captions.pictures
            )
        if self.settings.in_context:
            assert captions is not None and hidden_BTE is not None
            states_BLE = answer_states(hidden_BTE, captions.answer_BT, self.family.length)
            return Condition.whole(states_BLE), negative_log_prob_B
        return read_text(self.captioner, self.family, Tokens.read(micro)), negative_log_prob_B

    def _field(self, engine: DecoderEngine, condition: Condition) -> Velocity:
        guidance = self.settings.guidance
        return engine.field(condition, None if guidance == 1.0 else self.negative(), guidance)

    def _cosine(self, latent_BCHW: Tensor, source_B3HW: Tensor) -> Tensor:
        size = self.settings.vae_batch_size
        if len(latent_BCHW) <= size:
            return self._cosine_of(latent_BCHW, source_B3HW)
        parts = zip(latent_BCHW.split(size), source_B3HW.split(size), strict=True)
        # Recomputed one part at a time in the backward pass.
        return torch.cat([checkpoint(self._cosine_of, *part, use_reentrant=False) for part in parts])

    def _cosine_of(self, latent_BCHW: Tensor, source_B3HW: Tensor) -> Tensor:
        drawn_B3HW = self.family.decode_with_gradient(self.vae, latent_BCHW)
        with torch.no_grad():
            wanted = self.features.embed(source_B3HW)
        return feature_similarity(wanted, self.features.embed(drawn_B3HW))


def read_text(captioner: nn.Module, family: DecoderFamily, tokens: Tokens) -> Condition:
    """Condition of captions by the module of the captioner's engine."""
    taps = family.taps(int(captioner.config.get_text_config().num_hidden_layers))  # type: ignore[union-attr, operator]
    return family.condition(captioner(tokens, taps=taps), tokens)


def answer_states(hidden_BTE: Tensor, answer_BT: Tensor, length: int) -> Tensor:
    """States at caption tokens moved to the front, zero after them and cut at ``length``, shape (B, L, E)."""
    rows = []
    for hidden_TE, answer_T in zip(hidden_BTE, answer_BT, strict=True):
        states_AE = hidden_TE[answer_T][:length]
        rows.append(nn.functional.pad(states_AE, (0, 0, 0, length - len(states_AE))))
    return torch.stack(rows)
