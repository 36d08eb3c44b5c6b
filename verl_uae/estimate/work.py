# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What the pieces of a step cost, by running each once on ``meta``; and what a sharded model holds, by counting.

Shape legend: B pictures or captions, T tokens, V vocabulary, C H W latents, 3 H W pictures.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from verl_uae.captioners import positions, typed_inputs
from verl_uae.chain.conditioner import ConditionCache, Conditioner
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.estimate.meter import Meter
from verl_uae.estimate.models import Models, Network, trained_parameters
from verl_uae.families.family import Condition
from verl_uae.families.text import language_stack
from verl_uae.stages.cold_start.loss import read_text, recompute

#: Tokens of a caption; most recipes allow 512.
ASSUMED_CAPTION_TOKENS = 320


@dataclass(frozen=True, slots=True)
class Asking:
    """What the captioner is asked with, and how long its answer is; what is not said is assumed."""

    caption_tokens: int = ASSUMED_CAPTION_TOKENS
    """Of a mean caption."""
    picture_side: int = 256
    """Of a picture as it reaches the captioner, pixels."""
    prompt_tokens: int = 77
    """Around the picture's own."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a piece of work on one GPU."""

    flops: Mapping[str, float] = field(default_factory=dict)
    """Operations by the dtype that is computed in."""
    peak: float = 0.0
    """Most bytes held at a time beside what was there before."""
    operators: float = 0.0
    """Calls of operators."""
    touched: float = 0.0
    """Bytes that operators read and write whose operations are not counted."""

    def __add__(self, other: Cost) -> Cost:
        """One after the other."""
        return Cost(
            Counter(self.flops) + Counter(other.flops),
            max(self.peak, other.peak),
            self.operators + other.operators,
            self.touched + other.touched,
        )

    def times(self, count: float) -> Cost:
        """That often, one after the other."""
        flops = {name: count * number for name, number in self.flops.items()}
        return Cost(flops, self.peak if count else 0.0, count * self.operators, count * self.touched)

    def beside(self, held: float) -> Cost:
        """With so many bytes that are held all the while."""
        return dataclasses.replace(self, peak=self.peak + held)

    @property
    def total(self) -> float:
        """Operations of every dtype."""
        return sum(self.flops.values())


@dataclass(frozen=True, slots=True)
class Learning:
    """A forward pass whose activations may wait, and its backward pass."""

    forward: Cost
    backward: Cost
    """Its peak is with the activations."""
    held: float
    """Bytes of them, what the backward pass waits with."""

    @property
    def whole(self) -> Cost:
        """One pass right after the other."""
        return self.forward + self.backward


def measure(call: Callable[[], object], *modules: nn.Module, device: str = "meta") -> Cost:
    """The cost of a call; gradients of the modules go as soon as they are whole, as where they are reduced to shards.

    Args:
        call: makes its inputs itself.
        modules: what takes gradients.
        device: type of the device.
    """
    meter = Meter(device)
    with _gradients_leave(*modules), meter:
        call()
    return _read(meter)


def _read(meter: Meter, before: Cost | None = None) -> Cost:
    """What a meter has counted since it read so; the peak is of all."""
    before = before or Cost()
    flops = dict(meter.flops - Counter(before.flops))
    return Cost(flops, meter.peak_bytes, meter.operators - before.operators, meter.touched - before.touched)


@contextmanager
def _gradients_leave(*modules: nn.Module) -> Iterator[None]:
    def leave(parameter: Tensor) -> None:
        parameter.grad = None

    trained = [parameter for module in modules for parameter in trained_parameters(module)]
    handles = [parameter.register_post_accumulate_grad_hook(leave) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Work:
    """Pieces of the steps of a run; each is executed once for every size that is asked for.

    Args:
        models: of the run.
        asking: of the captioner.
    """

    def __init__(self, models: Models, asking: Asking) -> None:
        self.models = models
        self.config = models.config
        self.asking = asking
        self.caption_tokens = min(asking.caption_tokens, int(self.config.data.max_response_length))
        self.size = (int(self.config.uae.decoder.height), int(self.config.uae.decoder.width))
        self._known: dict[Any, Any] = {}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    # ------------------------------------------------------------ conditions

    @property
    def caption(self) -> str:
        """A caption of as many tokens as assumed, for whatever tokenizer there is."""
        words = self.caption_tokens
        counted = len(self.models.tokenizer(" a" * words)["input_ids"])
        return " a" * max(1, words * words // max(1, counted))

    def condition(self) -> Cost:
        """Conditions of a batch of captions, as many as are always made together."""
        conditioner = Conditioner(self.models.conditioner, self.models.tokenizer, self.models.family)

        def make() -> Cost:
            cache = ConditionCache(conditioner, 1)
            return measure(lambda: cache.get([self.caption]))

        found: Cost = self._once("condition", make)
        return found

    def _conditions(self, rows: int, guided: bool) -> tuple[Condition, Condition | None]:
        """Of as many pictures, and of the unconditional branch."""
        prompt = str(self.config.uae.decoder.negative_prompt)

        def encoded(caption: str, negative: bool) -> Condition:
            family, stack, tokenizer = self.models.family, self.models.conditioner, self.models.tokenizer
            with Meter(), torch.no_grad():
                return family.encode_text(stack, tokenizer, [caption], negative, "meta")

        def make() -> tuple[Condition, Condition | None]:
            one, negative = encoded(self.caption, False), encoded(prompt, True) if guided else None
            states = torch.empty(rows, *one.states.shape[1:], dtype=one.states.dtype, device="meta")
            return Condition(states, one.lengths * rows), negative

        found: tuple[Condition, Condition | None] = self._once(("states", rows, guided), make)
        return found

    def condition_bytes(self) -> float:
        """Of one picture."""
        return float(self._conditions(1, False)[0].states.nbytes)

    def latent_bytes(self) -> float:
        """Of one picture, fp32."""
        return 4.0 * math.prod(self.models.family.latent_shape(*self.size))

    # ------------------------------------------------------------ velocities

    def _call(
        self, module: DecoderModule, rows: int, guidance: float, places: int = 1, through: bool = False
    ) -> tuple[Callable[[], Tensor], float]:
        """One call of a decoder for pictures at so many places each, and bytes of the conditions that it is given; with
        a gradient through pictures and their conditions, or to the weights alone."""
        condition, negative = self._conditions(rows, guidance != 1.0)
        if through:
            condition = Condition(condition.states.detach().requires_grad_(), condition.lengths)
        given = float(sum(each.states.nbytes for each in (condition, negative) if each is not None))

        def call() -> Tensor:
            x_BCHW = torch.empty(rows * places, *self.models.family.latent_shape(*self.size), device="meta")
            x_BCHW.requires_grad_(through)
            sigma_B = torch.full((rows * places,), 0.5, dtype=torch.float32, device="meta")
            velocity: Tensor = module(x_BCHW, sigma_B, condition, negative, guidance)
            return velocity

        return call, given

    def velocity(self, rows: int, guidance: float, *, policy: bool, places: int = 1) -> Cost:
        """One call without gradient, of the policy or of the frozen decoder, for pictures at so many places each."""

        def make() -> Cost:
            module = (self.models.policy if policy else self.models.frozen_decoder).eval()
            call, given = self._call(module, rows, guidance, places)
            with torch.no_grad():
                return measure(call).beside(given)

        found: Cost = self._once(("velocity", rows, guidance, policy, places), make)
        return found

    def learning(
        self, rows: int, guidance: float, *, checkpointing: bool, places: int = 1, through: bool = False
    ) -> Learning:
        """One call of the policy for pictures at so many places each, and its backward pass, which may go on through
        pictures and conditions."""

        def make() -> Learning:
            module = self.models.policy.train()
            switch = "enable" if checkpointing else "disable"
            getattr(module.transformer, f"{switch}_gradient_checkpointing")()
            call, given = self._call(module, rows, guidance, places, through)
            meter = Meter()
            with _gradients_leave(module), meter:
                velocity_BCHW = call()
                forward, held = _read(meter), meter.live_bytes
                # Guidance gives the gradient of both branches; the loss itself is a few operations on latents.
                velocity_BCHW.square().mean().backward()
            return Learning(forward.beside(given), _read(meter, forward).beside(given), held)

        found: Learning = self._once(("learning", rows, guidance, checkpointing, places, through), make)
        return found

    # ------------------------------------------------------------ pictures

    def decode(self, pictures: int, *, gradient: bool = False, recomputed: bool = False) -> Cost:
        """Latents to pictures by the VAE, together; with gradient activations are held, or computed again."""
        return self._of_vae("decode", pictures, gradient, recomputed)

    def encode(self, pictures: int) -> Cost:
        """Pictures to latents by the VAE, together."""
        return self._of_vae("encode", pictures, False)

    def _of_vae(self, way: str, pictures: int, gradient: bool, recomputed: bool = False) -> Cost:
        family, vae = self.models.family, self.models.vae
        shape = family.latent_shape(*self.size) if way == "decode" else (3, *self.size)

        def run() -> None:
            given = torch.empty(pictures, *shape, device="meta", requires_grad=gradient)
            if gradient:
                recompute(vae, recomputed)
                family.decode_with_gradient(vae, given).square().mean().backward()
            else:
                (family.decode_latent if way == "decode" else family.encode_image)(vae, given)

        found: Cost = self._once((way, pictures, gradient, recomputed), lambda: measure(run))
        return found

    def features(self, network: Network, pictures: int, *, gradient: bool = False) -> Cost:
        """Pictures through a network of a reward."""

        def run() -> None:
            pixels_B3HW = torch.empty(pictures, 3, network.side, network.side, device="meta", requires_grad=gradient)
            with torch.set_grad_enabled(gradient):
                output: Any = network.module(pixel_values=pixels_B3HW)[0]
            if gradient:
                output.square().mean().backward()

        found: Cost = self._once((network.name, pictures, gradient), lambda: measure(run))
        return found

    # ------------------------------------------------------------ captioner

    def prompt(self) -> tuple[int, int]:
        """Tokens of a prompt, and those of its picture among them."""
        _, tokens = self._picture()
        return tokens + self.asking.prompt_tokens, tokens

    def _picture(self) -> tuple[dict[str, Tensor], int]:
        """Inputs of one picture, on the host where they are numbers, and its tokens."""
        config = self.models.captioner_config
        vision = config.vision_config
        if not hasattr(vision, "spatial_merge_size"):
            size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
            return {"pixel_values": torch.empty(1, 3, size, size, device="meta")}, int(config.image_seq_length)
        merge = int(vision.spatial_merge_size)
        side = max(1, round(self.asking.picture_side / (vision.patch_size * merge))) * merge
        channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
        width = int(channels * vision.temporal_patch_size * vision.patch_size**2)
        pixels = torch.empty(side * side, width, device="meta")
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}, (side // merge) ** 2

    def _inputs(self, model: Any, rows: int, answer: int) -> dict[str, Tensor]:
        """Prompts with their pictures, and as many tokens of an answer; numbers have values on ``meta``."""
        config = self.models.captioner_config
        picture, image_tokens = self._picture()
        ids_T = torch.full((image_tokens + self.asking.prompt_tokens + answer,), 1)
        ids_T[4 : 4 + image_tokens] = config.image_token_id
        ids_BT = ids_T.repeat(rows, 1)
        mask_BT = torch.ones_like(ids_BT)
        inputs = {name: tensor.repeat(rows, *[1] * (tensor.dim() - 1)) for name, tensor in picture.items()}
        inputs = typed_inputs(config, ids_BT, mask_BT, inputs)
        position_ABT = positions(model, ids_BT, mask_BT, inputs)
        given = {"input_ids": ids_BT, **inputs}
        given["position_ids"] = position_ABT[0] if len(position_ABT) == 1 else position_ABT
        return {name: tensor.to("meta") for name, tensor in given.items()}

    def prefill(self, rows: int) -> Cost:
        """Prompts with their pictures through the captioner, with the head at the last position."""
        model = self.models.frozen_captioner

        def run() -> None:
            with torch.no_grad():
                model(**self._inputs(model, rows, 0), logits_to_keep=1, use_cache=False)

        found: Cost = self._once(("prefill", rows), lambda: measure(run))
        return found

    def token(self) -> Cost:
        """One more token of one caption, with the attention to those before it, half a caption on average."""
        model = self.models.frozen_captioner

        def make() -> Cost:
            def run() -> None:
                with torch.no_grad():
                    ids_BT = torch.ones(1, 1, dtype=torch.long, device="meta")
                    states = language_stack(model)(input_ids=ids_BT, use_cache=False).last_hidden_state
                    model.get_output_embeddings()(states)

            text = self.models.captioner_config.get_text_config()
            before = self.prompt()[0] + self.caption_tokens / 2
            heads = int(text.num_attention_heads) * head_width(text)
            attention = 4.0 * heads * before * attention_layers(text)
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            return measure(run) + Cost({dtype: attention})

        found: Cost = self._once("token", make)
        return found

    def captioner(self, rows: int, *, gradient: bool, checkpointing: bool = False, entropy: bool = False) -> Cost:
        """Log-probabilities of captions by the captioner that trains, and its backward pass.

        Args:
            rows: captions together.
            gradient: with the backward pass.
            checkpointing: activations of blocks are computed again.
            entropy: of every distribution too, as verl asks for where old log-probabilities are computed.
        """
        model = self.models.actor

        def run() -> None:
            inputs = self._inputs(without_adapters(model), rows, self.caption_tokens)
            with torch.set_grad_enabled(gradient):
                logits_BTV = model(**inputs, use_cache=False).logits
                if entropy:
                    probability_BTV = torch.softmax(logits_BTV, -1)
                    torch.logsumexp(logits_BTV, -1) - (probability_BTV * logits_BTV).sum(-1)
                log_prob_BT = _FusedLogProb.apply(logits_BTV)
            if gradient:
                log_prob_BT.mean().backward()

        def make() -> Cost:
            model.train(gradient)
            _checkpoint(model, gradient and checkpointing)
            return measure(run, model)

        found: Cost = self._once(("captioner", rows, gradient, checkpointing, entropy), make)
        return found

    def conditioning(self, rows: int, *, checkpointing: bool) -> Cost:
        """Conditions of captions by the language model that trains, and their backward pass: the cold start's."""
        module, family = self.models.supervised_captioner, self.models.family

        def run() -> None:
            tokens = family.tokenize(self.models.tokenizer, [self.caption] * rows).to("meta")
            found = read_text(module, family, tokens).states
            if found.requires_grad:
                found.square().mean().backward()

        return self._supervised(("conditioning", rows, checkpointing), run, checkpointing)

    def captioning(self, rows: int, *, checkpointing: bool) -> Cost:
        """Cross-entropy of captions after their pictures, and its backward pass: the cold start's."""
        module = self.models.supervised_captioner

        def run() -> None:
            inputs = self._inputs(module.model, rows, self.caption_tokens)
            ids_BT = inputs.pop("input_ids")
            inputs.pop("position_ids")
            answer_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
            answer_BT[:, -self.caption_tokens :] = True
            mask_BT = torch.ones(ids_BT.shape, dtype=torch.bool)
            loss_B, _ = module(ids_BT, mask_BT.to("meta"), answer_BT.to("meta"), **inputs)
            loss_B.mean().backward()

        return self._supervised(("captioning", rows, checkpointing), run, checkpointing)

    def _supervised(self, key: Any, run: Callable[[], None], checkpointing: bool) -> Cost:
        module = self.models.supervised_captioner

        def make() -> Cost:
            module.train()
            _checkpoint(module.model, checkpointing)
            return measure(run, module)

        found: Cost = self._once(key, make)
        return found


def head_width(text: Any) -> int:
    """Numbers of a head of a language model."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def attention_layers(text: Any) -> int:
    """Layers of a language model that look at the tokens before; the others carry a state."""
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * int(text.num_hidden_layers)
    return sum(kind != "linear_attention" for kind in kinds)


def without_adapters(model: Any) -> Any:
    """A model without what peft puts around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _checkpoint(model: Any, on: bool) -> None:
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if hasattr(without_adapters(model), "enable_input_require_grads") and without_adapters(model) is not model:
            model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()


class _FusedLogProb(torch.autograd.Function):
    """The memory of flash-attn's cross-entropy: no probabilities are kept, and the gradient is written over the
    logits."""

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor) -> Tensor:
        ctx.save_for_backward(logits_BTV)
        return logits_BTV.new_empty(logits_BTV.shape[:-1], dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradient: Any) -> Any:
        return ctx.saved_tensors[0]


# ------------------------------------------------------------ what is held


def nbytes(*modules: Any) -> float:
    """Of parameters and buffers as they are, each tensor once."""
    tensors = {id(each): each for module in modules for each in (*module.parameters(), *module.buffers())}
    return float(sum(tensor.nbytes for tensor in tensors.values()))


@dataclass(frozen=True, slots=True)
class Shards:
    """A model that FSDP2 spreads over ranks, in numbers: every parameter is cut along its first dimension, so what a
    rank holds can be counted. Rank 0 is meant, which has no smaller part than any other."""

    ranks: int
    all: float
    """Numbers of all parameters of the model."""
    trained: float
    """Of those that take a gradient."""
    own: float
    """On this rank."""
    own_trained: float
    root: float
    """Outside of the blocks: these stay gathered from the forward pass on."""
    largest: float
    """Of the largest block."""
    largest_trained: float
    buffers: float
    """Bytes, which every rank has whole."""
    units: int
    """Parts that are gathered one after the other: blocks, and what is outside of them."""

    @staticmethod
    def of(module: Any, blocks: list[str], ranks: int) -> Shards:
        """Count.

        Args:
            module: whole.
            blocks: names of the classes of blocks that are sharded one by one.
            ranks: that share it.
        """
        units: dict[int, int] = {}
        for number, unit in enumerate(each for each in module.modules() if type(each).__name__ in blocks):
            units.update({id(parameter): number for parameter in unit.parameters()})
        sizes: Counter[int] = Counter()
        trained: Counter[int] = Counter()
        own = own_trained = root = 0.0
        for parameter in module.parameters():
            cut = math.ceil(parameter.shape[0] / ranks) * parameter[0].numel() if parameter.dim() else 1
            own += cut
            own_trained += cut if parameter.requires_grad else 0
            if id(parameter) not in units:
                root += parameter.numel()
                continue
            sizes[units[id(parameter)]] += parameter.numel()
            trained[units[id(parameter)]] += parameter.numel() if parameter.requires_grad else 0
        return Shards(
            ranks=ranks,
            all=float(sum(parameter.numel() for parameter in module.parameters())),
            trained=float(sum(parameter.numel() for parameter in trained_parameters(module))),
            own=own,
            own_trained=own_trained,
            root=root,
            largest=float(max(sizes.values(), default=0)),
            largest_trained=float(max(trained.values(), default=0)),
            buffers=float(sum(buffer.nbytes for buffer in module.buffers())),
            units=len(sizes) + 1,
        )

    def gathered(self, width: int, *, reshard: bool, backward: bool) -> float:
        """Bytes of whole weights beside the shards while it computes.

        Args:
            width: bytes of a number that is computed with.
            reshard: a block's weights go after its forward pass. Then there are that of the block, that of the next,
                and the buffer which the next one arrives in.
            backward: with gradients of a block, as they are and in the fp32 in which they are summed.
        """
        held = width * (self.root + 3 * self.largest if reshard else self.all + self.largest)
        return held + ((width + 4) * self.largest_trained if backward else 0.0)

    def received(self, width: int) -> float:
        """Bytes that a rank receives when all weights are gathered once."""
        return width * self.all * (self.ranks - 1) / self.ranks

    def reduced(self) -> float:
        """Bytes that a rank receives when gradients are summed once, in fp32."""
        return 4 * self.trained * (self.ranks - 1) / self.ranks

    def packed(self) -> float:
        """Bytes that a rank copies when gradients are summed once, in fp32: into the buffer in which they leave, and,
        where it is alone, from there to where its sums arrive."""
        return 4 * self.trained * (1 if self.ranks > 1 else 2)


def cache_bytes(config: Any) -> float:
    """Bytes of bf16 that a caption server keeps of a token."""
    text = config.get_text_config()
    return 4.0 * attention_layers(text) * int(text.num_key_value_heads) * head_width(text)
