# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""One interface over flow-matching decoders of pictures that read the states of a language model.

Outside of a family there is one language: latents (B, C, H, W) in fp32, noise levels sigma in [0, 1], velocities
v = eps - x_0, pictures (B, 3, H, W) in [0, 1]. Packing, position ids, conventions of time, sign and guidance, masks
and statistics of latents stay inside. A family holds no weights: it is made of configurations, and modules are handed
to its methods, so one that has the transformer in shards and one that has the VAE alone use the same object.

Shape legend: B samples, T text positions as the language model reads them, L text positions that the decoder reads,
K tapped layers or places at once, E width of the language model, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from verl_uae.checkpoints.load import load_scheduler
from verl_uae.checkpoints.names import FAMILY_OPTIONS, MODEL_INDEX, SCHEDULER, TRANSFORMER, VAE
from verl_uae.errors import CheckpointError
from verl_uae.families.text import Tokens, tap_states
from verl_uae.flow.config import Table
from verl_uae.flow.ode import Velocity
from verl_uae.flow.schedule import sigma_schedule
from verl_uae.text import is_number

#: Statistics of latents in place of which ``scaling_factor`` and ``shift_factor`` are used.
_, _STD = _STATISTICS = ("latents_mean", "latents_std")
#: Widths of the parts of a head that turn with each coordinate.
_AXES = ("axes_dims_rope", "axes_dims")


@dataclass(frozen=True, slots=True)
class Condition:
    """What pictures are conditioned on."""

    states: Tensor
    """(B, L, ...), zero behind the end of each row."""

    lengths: tuple[int, ...]
    """Positions of each row that exist for the decoder; numbers of the host, since rows are sorted by them."""

    @property
    def mask_BL(self) -> Tensor:
        """True at the positions that exist for the decoder."""
        end_B = torch.tensor(self.lengths).to(self.states.device, non_blocking=True)
        return torch.arange(self.states.shape[1], device=self.states.device) < end_B[:, None]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: slice | Sequence[int]) -> Condition:
        """Some of the rows, as long as the longest of them."""
        if isinstance(rows, slice):
            return Condition(self.states[rows], self.lengths[rows]).trimmed()
        index = torch.tensor(rows).to(self.states.device, non_blocking=True)
        return Condition(self.states.index_select(0, index), tuple(self.lengths[row] for row in rows)).trimmed()

    def trimmed(self) -> Condition:
        """Without positions that exist in no row."""
        longest = max(self.lengths, default=0)
        return self if longest == self.states.shape[1] else Condition(self.states[:, :longest], self.lengths)

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """The states on another device or in another dtype, as of ``Tensor.to``."""
        return Condition(self.states.to(*args, **kwargs), self.lengths)

    def expand(self, count: int) -> Condition:
        """One row as ``count`` rows, or as many as there are."""
        if len(self) == count:
            return self
        return Condition(self.states.expand(count, *self.states.shape[1:]), self.lengths * count)

    def tiled(self, count: int) -> Condition:
        """All rows, and that ``count`` times, one copy behind the other."""
        if count == 1:
            return self
        return Condition(self.states.repeat(count, *[1] * (self.states.ndim - 1)), self.lengths * count)

    @staticmethod
    def whole(states: Tensor) -> Condition:
        """Rows of which every position exists."""
        return Condition(states, (states.shape[1],) * len(states))

    @staticmethod
    def stack(parts: Sequence[Condition]) -> Condition:
        """One batch; shorter rows are filled up with positions that do not exist."""
        longest = max(part.states.shape[1] for part in parts)
        padded = []
        for part in parts:
            short = longest - part.states.shape[1]
            zeros = part.states.new_zeros(len(part), short, *part.states.shape[2:])
            padded.append(torch.cat([part.states, zeros], 1) if short else part.states)
        return Condition(torch.cat(padded), tuple(length for part in parts for length in part.lengths))


class DecoderFamily:
    """What most families share. A family overrides constants and what is marked *family*.

    Args:
        configs: configuration of every component by its folder's name: attributes, as its class completes them.
        scheduler: settings of diffusers' ``FlowMatchEulerDiscreteScheduler``; empty where the folder has none.
        index: ``model_index.json``.
        length: most text positions of the condition, template included; None is what the family allows.
        role: chat role of the caption, for families whose template is ours to choose.
        shift: timestep shift in place of the scheduler's rule.

    Raises:
        ValueError: the components are of a kind that the family cannot train, with the reason.
    """

    name: ClassVar[str]
    components: ClassVar[Mapping[str, Any]]
    """Folder of a component -> its class; the transformer first."""
    trained: ClassVar[Mapping[str, str]] = {"transformer": TRANSFORMER}
    """Part of what is trained, as modules and checkpoints name it -> its folder."""
    lora_targets: ClassVar[tuple[str, ...] | str] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers of the transformer that get an adapter: endings of their names, or one pattern of whole names."""
    lora_loader: ClassVar[Any] = None
    """The mixin of diffusers by which a stock pipeline saves and loads adapters."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names in the transformer that no velocity passes through; they are never trained."""
    steps: ClassVar[int] = 50
    """Denoising steps that the model is published with."""
    guidance: ClassVar[float] = 4.0
    """Scale that the model is published with, in this convention: v_u + scale (v_c - v_u); 1 is off."""
    mixes_lengths: ClassVar[bool] = True
    """Whether a row with positions that do not exist is, by a mask, the row alone, or all rows have one length. If
    not, rows run by length."""
    needs_projector: ClassVar[bool] = False
    """Whether it reads no language model before a projector of ours has been pre-trained."""
    reads: ClassVar[tuple[str, ...]] = ()
    """``model_type`` of the language models whose states it was trained on; empty: of any."""
    longest: ClassVar[int] = 512
    """Most text positions."""
    default_role: ClassVar[str] = "user"
    """Chat role of the caption."""
    index_options: ClassVar[tuple[str, ...]] = ()
    """Entries of ``model_index.json`` that the family reads, as its stock pipeline has them."""
    licence: ClassVar[str]
    default_scheduler: ClassVar[Mapping[str, Any]] = {}
    """Settings of the scheduler that a folder without one was trained with."""

    has_statistics: ClassVar[bool] = False
    """Whether the configuration of the VAE gives a mean and a standard deviation per channel."""
    positive: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Component -> settings of its configuration that must be numbers above 0."""

    latent_factor: ClassVar[int] = 8
    """Pixels to a side of a latent."""
    patch: ClassVar[int] = 2
    """Latents to a side of an image token."""
    default_side: ClassVar[int] = 1024
    """Side of a picture where nothing else is asked for, pixels."""

    def __init__(
        self,
        configs: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        index: Mapping[str, Any] | None = None,
        *,
        length: int | None = None,
        role: str | None = None,
        shift: float | None = None,
    ) -> None:
        self.configs = configs
        self.scheduler = dict(scheduler)
        # At the top as stock pipelines write them, together as we do.
        ours = (index or {}).get(FAMILY_OPTIONS) or {}
        if not isinstance(ours, Mapping):
            raise ValueError(f"{FAMILY_OPTIONS} of {MODEL_INDEX} must be an object, got {ours!r}")
        known = {**(index or {}), **ours}
        self.options = {name: known.get(name) for name in self.index_options}
        self.length = self.longest if length is None else min(length, self.longest)
        self.role = role or self.default_role
        self.given_shift = shift

    # ------------------------------------------------------------ components

    @classmethod
    def read_scheduler(cls, root: Path) -> Mapping[str, Any]:
        """Settings of the scheduler of a decoder folder, or those of the family where the folder may lack one.

        Raises:
            CheckpointError: there is none, or it asks for what is neither drawn nor trained with.
        """
        if cls.default_scheduler and not (root / SCHEDULER).is_dir():
            from diffusers import FlowMatchEulerDiscreteScheduler

            return FlowMatchEulerDiscreteScheduler(**cls.default_scheduler).config
        return load_scheduler(root).config

    def save_scheduler(self, root: Path) -> None:
        """Write ``scheduler/`` of a decoder folder, with the given shift in place of the rule."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        settings = dict(self.scheduler)
        if self.given_shift is not None:
            settings |= {"shift": self.given_shift, "use_dynamic_shifting": False, "shift_terminal": None}
        FlowMatchEulerDiscreteScheduler.from_config(settings).save_pretrained(root / SCHEDULER)

    @classmethod
    def index_entries(cls) -> dict[str, Any]:
        """What ``model_index.json`` of a decoder folder says of the family: library and class of every component as
        diffusers writes them."""
        parts = {name: [_library(kind), kind.__name__] for name, kind in cls.components.items()}
        entries: dict[str, Any] = {TRANSFORMER: parts.pop(TRANSFORMER), VAE: parts.pop(VAE)}
        return entries | {SCHEDULER: ["diffusers", "FlowMatchEulerDiscreteScheduler"], **parts}

    @property
    def transformer_config(self) -> Any:
        """Configuration of the transformer."""
        return self.configs[TRANSFORMER]

    @property
    def vae_config(self) -> Any:
        """Configuration of the VAE."""
        return self.configs[VAE]

    @property
    def state_width(self) -> int | None:
        """*family*: E, width of the language model that the components take; None where they do not say."""
        return None

    def check(
        self, where: str | Path, width: int | None = None, layers: int | None = None, kind: str | None = None
    ) -> None:
        """Refuse components that were not made for each other, before one meets what another computes.

        Args:
            where: their folder or hub id, for the error.
            width: E, of the language model that the condition comes from, if it is known.
            layers: its number of layers, if it is known.
            kind: its ``model_type`` or that of the whole model, if it is known.

        Raises:
            CheckpointError: naming both sizes, or kinds.
        """
        if type(self).encode is DecoderFamily.encode:
            for name in _STATISTICS:
                if getattr(self.vae_config, name, None) is not None:
                    text = f"{name} is set; latents are scaled by scaling_factor and shift_factor alone"
                    raise CheckpointError(f"{where}/{VAE}", text)
        if self.vae_channels != self.latent_channels:
            text = f"gives latents of {self.vae_channels} channels, the transformer takes {self.latent_channels}"
            raise CheckpointError(f"{where}/{VAE}", text)
        for part, names in self.positive.items():
            for name in names:
                value: Any = getattr(self.configs[part], name, None)
                if not (is_number(value) and value > 0):
                    raise CheckpointError(f"{where}/{part}", f"{name} must be a number above 0, got {value!r}")
        self._check_statistics(f"{where}/{VAE}")
        self._check_positions(f"{where}/{TRANSFORMER}")
        if kind is not None and self.reads and kind.removesuffix("_text") not in self.reads:
            text = f"takes states of {' or '.join(self.reads)}, the language model is a {kind}"
            raise CheckpointError(f"{where}/{TRANSFORMER}", text)
        if width is not None and self.state_width not in (None, width):
            text = f"takes states of width {self.state_width}, the language model has width {width}"
            raise CheckpointError(f"{where}/{TRANSFORMER}", text)
        if layers is not None and max(self.taps(layers)) > layers:
            text = f"takes the state of layer {max(self.taps(layers))}, the language model has {layers} layers"
            raise CheckpointError(f"{where}/{TRANSFORMER}", text)

    def _check_statistics(self, where: str) -> None:
        for name in _STATISTICS:
            numbers = getattr(self.vae_config, name, None)
            if numbers is None and not self.has_statistics:
                continue
            if not (isinstance(numbers, list | tuple) and all(is_number(number) for number in numbers)):
                raise CheckpointError(where, f"{name} must be a list of numbers, got {numbers!r}")
            if len(numbers) != self.latent_channels:
                text = f"{name} has {len(numbers)} numbers, latents have {self.latent_channels} channels"
                raise CheckpointError(where, text)
            if name == _STD and min(numbers) <= 0:
                raise CheckpointError(where, f"{name} must be above 0 in every channel, got {min(numbers)!r}")

    def _check_positions(self, where: str) -> None:
        """Rotary positions have no weight whose shape would tell."""
        config = self.transformer_config
        theta: Any = getattr(config, "rope_theta", 1.0)
        if not (is_number(theta) and theta > 0):
            raise CheckpointError(where, f"rope_theta must be a number above 0, got {theta!r}")
        head = getattr(config, "attention_head_dim", None) or config.dim // config.n_heads
        for name in _AXES:
            if not hasattr(config, name):
                continue
            axes = getattr(config, name)
            whole = isinstance(axes, list | tuple) and all(type(each) is int and each > 0 for each in axes)
            if not whole or any(each % 2 for each in axes) or sum(axes) != head:
                text = f"{name} must be even numbers above 0, together the {head} of a head, got {axes!r}"
                raise CheckpointError(where, text)

    def input_layer(self, transformer: Any) -> Any:
        """*family*: the layer by which latents enter, which shows the dtype that is computed in. The transformer does
        not: under FSDP its blocks are still in shards then."""
        raise NotImplementedError

    def wrap_blocks(self, transformer: Any) -> list[str]:
        """Names of the classes of blocks that are sharded, recomputed and compiled one by one."""
        return list(transformer._no_split_modules)

    # ------------------------------------------------------------ text

    def taps(self, num_layers: int) -> tuple[int, ...]:
        """*family*: layers of the language model whose states are wanted, as :mod:`verl_uae.families.text` counts."""
        raise NotImplementedError

    def tokenize(self, tokenizer: Any, captions: Sequence[str], negative: bool = False) -> Tokens:
        """*family*: template, cut and pad captions.

        Args:
            tokenizer: of the language model, with a chat template.
            captions: B texts.
            negative: they are of the unconditional branch, which may have another template.

        Raises:
            ConfigError: ``condition_length`` or ``condition_role`` is impossible.
        """
        raise NotImplementedError

    def condition(self, states_BTKE: Tensor, tokens: Tokens) -> Condition:
        """States at the tapped layers to a condition: kept positions, moved to the front; differentiable."""
        rows = []
        for states_TKE, keep_T in zip(states_BTKE, tokens.keep_BT, strict=True):
            index = keep_T.nonzero()[:, 0].to(states_TKE.device, non_blocking=True)
            row = self.fuse(states_TKE.index_select(0, index))
            rows.append(Condition(row[None], (len(row),)))
        return Condition.stack(rows)

    def fuse(self, states_LKE: Tensor) -> Tensor:
        """*family*: states of several layers to one per position; by default side by side, (L, K * E)."""
        return states_LKE.flatten(1)

    def encode_text(
        self, stack: nn.Module, tokenizer: Any, captions: Sequence[str], negative: bool = False, device: Any = None
    ) -> Condition:
        """Captions to a condition by the language model alone: no picture, no head. Arguments as of :meth:`tokenize`
        and :func:`~verl_uae.families.text.tap_states`."""
        tokens = self.tokenize(tokenizer, captions, negative)
        layers: Any = stack.layers
        return self.condition(tap_states(stack, tokens, self.taps(len(layers)), device), tokens)

    # ------------------------------------------------------------ velocity

    def embed(self, parts: Any, condition: Condition) -> Condition:
        """*family*: what the decoder makes of a condition at every noise level alike; by default nothing."""
        return condition

    def forward(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """*family*: one call of the transformer; v = eps - x_0, shape of x.

        Args:
            parts: has the modules of :attr:`trained` as attributes, whole or sharded by FSDP.
            x_BCHW: latents, in the dtype that is computed in.
            sigma_B: noise levels, fp32.
            condition: of :meth:`embed`, in the dtype that is computed in.
        """
        raise NotImplementedError

    def velocity(self, parts: Any, x_BCHW: Tensor, sigma_B: Tensor, condition: Condition, calls: int = 1) -> Tensor:
        """v = eps - x_0, shape of ``x_BCHW``, fp32; differentiable.

        Args:
            parts: see :meth:`forward`.
            x_BCHW: latents.
            sigma_B: noise levels in [0, 1], fp32.
            condition: of :meth:`embed`.
            calls: the transformer is called at least that often; what is more than :meth:`calls` has no effect.
        """
        dtype = self.input_layer(parts.transformer).weight.dtype
        x_BCHW, condition = x_BCHW.to(dtype), condition.to(dtype)
        groups = self._groups(condition)
        if len(groups) == 1 and calls <= 1:
            return self.forward(parts, x_BCHW, sigma_B, self._alone(condition)).float()
        index = [torch.tensor(rows).to(x_BCHW.device, non_blocking=True) for rows in groups]
        found = [
            self.forward(parts, x_BCHW[some], sigma_B[some], condition[rows]).float()
            for rows, some in zip(groups, index, strict=True)
        ]
        for _ in range(len(groups), calls):
            # In the graph, so that its backward pass gathers weights as often too.
            idle = self.forward(parts, x_BCHW[index[0]], sigma_B[index[0]], condition[groups[0]])
            found[0] = found[0] + 0.0 * idle.float()
        return torch.cat(found).index_select(0, torch.cat(index).argsort())

    def calls(self, *conditions: Condition | None) -> int:
        """Calls of the transformer that one velocity of these conditions together takes."""
        if self.mixes_lengths:
            return 1
        return len({length for condition in conditions if condition is not None for length in condition.lengths})

    def field(
        self,
        parts: Any,
        condition: Condition,
        negative: Condition | None = None,
        guidance: float = 1.0,
        calls: int = 1,
    ) -> Velocity:
        """The velocity model with its condition filled in, embedded once; with guidance both branches are one batch of
        2B rows, and a gradient goes through both.

        It also takes the B pictures at several places at once: K * B rows, all pictures at one place, then all at the
        next, which go through the transformer together.

        Args:
            parts: see :meth:`forward`.
            condition: of B pictures.
            negative: of the unconditional branch, 1 or B rows; needed if guidance != 1.
            guidance: scale of classifier-free guidance; 1 switches it off and halves the cost.
            calls: see :meth:`velocity`.

        Raises:
            ValueError: guidance without a negative condition; from the velocity, rows that are no multiple of B.
        """
        rows = len(condition)
        if guidance == 1.0:
            alone = self.embed(parts, condition)

            def plain(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
                return self.velocity(parts, x_BCHW, sigma_B, alone.tiled(_places(x_BCHW, rows)), calls)

            return plain
        if negative is None:
            raise ValueError(f"guidance {guidance} needs a negative condition")
        other = negative.to(condition.states.dtype).expand(rows)
        both = self.embed(parts, Condition.stack([condition, other]))

        def guided(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            places = _places(x_BCHW, rows)

            def twice(part: Tensor) -> Tensor:
                # At every place both branches beside each other, as their conditions are.
                return torch.cat([part.unflatten(0, (places, rows))] * 2, 1).flatten(0, 1)

            found = self.velocity(parts, twice(x_BCHW), twice(sigma_B), both.tiled(places), calls)
            conditional_KBCHW, unconditional_KBCHW = found.unflatten(0, (places, 2, rows)).unbind(1)
            return self.guide(conditional_KBCHW.flatten(0, 1), unconditional_KBCHW.flatten(0, 1), guidance)

        return guided

    def guide(self, conditional_BCHW: Tensor, unconditional_BCHW: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance, v_u + scale (v_c - v_u) (Ho & Salimans 2022, eq. 6 in velocity form)."""
        return unconditional_BCHW + scale * (conditional_BCHW - unconditional_BCHW)

    def _groups(self, condition: Condition) -> list[list[int]]:
        """Rows that go through the transformer together, in the order of their length."""
        if self.mixes_lengths:
            return [list(range(len(condition)))]
        lengths = condition.lengths
        return [[row for row, own in enumerate(lengths) if own == length] for length in sorted(set(lengths))]

    def _alone(self, condition: Condition) -> Condition:
        return condition if self.mixes_lengths else condition.trimmed()

    # ------------------------------------------------------------ noise levels

    def shift(self, steps: int, height: int, width: int) -> float:
        """Factor of sigma = shift * t / (1 + (shift - 1) * t): the given one, else what the scheduler says of a picture
        of that size in pixels and that number of steps."""
        if self.given_shift is not None:
            return self.given_shift
        if not self.scheduler["use_dynamic_shifting"]:
            return float(self.scheduler["shift"])
        mu = self.mu(steps, self.image_tokens(height, width))
        return math.exp(mu) if self.scheduler["time_shift_type"] == "exponential" else mu

    def mu(self, steps: int, tokens: int) -> float:
        """Dynamic shift before the exponential: linear in the number of image tokens."""
        c = self.scheduler
        slope = (c["max_shift"] - c["base_shift"]) / (c["max_image_seq_len"] - c["base_image_seq_len"])
        return c["base_shift"] + slope * (tokens - c["base_image_seq_len"])

    def sigmas(self, steps: int, height: int, width: int, table: Table = "even") -> Tensor:
        """Noise levels (S + 1,) from 1 to 0, fp32, see :func:`~verl_uae.flow.schedule.sigma_schedule`.

        Args:
            steps: S.
            height, width: of the picture, pixels.
            table: one of :data:`~verl_uae.flow.config.TABLES`.
        """
        sigma = sigma_schedule(steps, self.shift(steps, height, width), table)
        last = self.scheduler.get("shift_terminal")
        # A single step has no level but the first.
        if not last or self.given_shift is not None or steps == 1:
            return sigma
        # Stretched so that the last level before 0 is that one.
        gap = 1.0 - sigma[:-1].double()
        return torch.cat([(1.0 - gap * ((1.0 - last) / gap[-1])).float(), sigma[-1:]])

    # ------------------------------------------------------------ latents

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of a picture of the given size in pixels.

        Raises:
            ValueError: a side is no multiple of an image token's, or longer than there are positions.
        """
        multiple = self.latent_factor * self.patch
        if height % multiple or width % multiple:
            raise ValueError(f"height and width must be multiples of {multiple}, got {height}x{width}")
        if self.largest is not None and max(height, width) > self.largest:
            raise ValueError(f"height and width may be {self.largest} at most, got {height}x{width}")
        return self.latent_channels, height // self.latent_factor, width // self.latent_factor

    def image_tokens(self, height: int, width: int) -> int:
        """Image tokens of a picture of the given size in pixels, as the scheduler counts them."""
        side = self.latent_factor * self.patch
        return (height // side) * (width // side)

    @property
    def latent_channels(self) -> int:
        """C."""
        return int(self.transformer_config.in_channels)

    @property
    def vae_channels(self) -> int:
        """Channels of the latents that :meth:`encode` gives, by the configuration of the VAE."""
        return int(self.vae_config.latent_channels)

    @property
    def largest(self) -> int | None:
        """Longest side of a picture, pixels; None where positions are computed for any number of tokens."""
        return None

    def encode(self, vae: Any, image_B3HW: Tensor) -> Tensor:
        """*family*: pictures in [-1, 1] to latents, mode of the posterior. Here: one scale and one shift."""
        return (vae.encode(image_B3HW).latent_dist.mean.float() - self._shift_factor(vae)) * vae.config.scaling_factor

    def decode(self, vae: Any, latent_BCHW: Tensor) -> Tensor:
        """*family*: latents to pictures in about [-1, 1]; differentiable."""
        latent = latent_BCHW.to(vae.dtype) / vae.config.scaling_factor + self._shift_factor(vae)
        return vae.decode(latent, return_dict=False)[0]

    @torch.no_grad()
    def encode_image(self, vae: Any, image_B3HW: Tensor) -> Tensor:
        """Pictures in [0, 1] to latents (mode of the posterior), shape (B, C, H, W), fp32; no gradient."""
        return self.encode(vae, image_B3HW.to(vae.dtype) * 2.0 - 1.0).float()

    @torch.no_grad()
    def decode_latent(self, vae: Any, latent_BCHW: Tensor) -> Tensor:
        """Latents to pictures in [0, 1], shape (B, 3, H, W), fp32; no gradient."""
        return self.decode_with_gradient(vae, latent_BCHW)

    def decode_with_gradient(self, vae: Any, latent_BCHW: Tensor) -> Tensor:
        """As :meth:`decode_latent`, with the gradient to the latents; none where the picture is cut to [0, 1]."""
        return (self.decode(vae, latent_BCHW).float() * 0.5 + 0.5).clamp(0.0, 1.0)

    @staticmethod
    def _shift_factor(vae: Any) -> float:
        return vae.config.shift_factor or 0.0


def _places(x_BCHW: Tensor, rows: int) -> int:
    """At how many places the pictures of a condition are asked for."""
    if not rows or len(x_BCHW) % rows:
        raise ValueError(f"latents of {len(x_BCHW)} rows for a condition of {rows}: must be a multiple")
    return len(x_BCHW) // rows


def _library(kind: Any) -> str:
    """What ``model_index.json`` names the place of a class: a library of the known ones, else its module."""
    library = kind.__module__.partition(".")[0]
    return library if library in ("diffusers", "transformers") else kind.__module__
