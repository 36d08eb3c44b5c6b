# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What every decoder family has to show: that it computes what the stock pipeline of diffusers computes, and trains.

The tests of a family are a subclass of :class:`Contract`, which says how the stock pipeline is called, and one test for
everything that is particular to the family.

At these sizes another caption moves a pixel by 2e-3 in some families, so a comparison at the precision of pictures,
1/255, would prove nothing: the limit is 1e-5, and what there is to see must be a hundred times more.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from tests.families.stock import moment
from tests.families.tiny import Tiny, build
from verl_uae.chain.conditioner import Conditioner
from verl_uae.chain.decoder import Decoder
from verl_uae.chain.vae import lower_precision
from verl_uae.checkpoints.load import check_language_model, load_model
from verl_uae.checkpoints.names import VAE
from verl_uae.compiling import compile_blocks
from verl_uae.engines.decoder_module import DecoderModule
from verl_uae.families import check_decoder, family_of
from verl_uae.families.family import Condition, DecoderFamily
from verl_uae.families.text import Tokens, language_stack, tap_states
from verl_uae.flow.kernels import coefficients, step
from verl_uae.flow.ode import euler
from verl_uae.seeding import normal

#: Of unequal lengths, padded or not: the tiny tokenizer counts bytes, and the first fills two of FLUX 3's windows.
CAPTIONS = ("A red fox on fresh snow, soft morning light, shallow depth of field, pines in the back", "two blue cups")
SIZE = {"height": 64, "width": 96}
STEPS = 4
SCALE = 3.0
"""Of guidance, v_u + scale (v_c - v_u)."""
LIMIT, SEEN = 1e-5, 1e-3


class Contract:
    """Tests of one family."""

    name: ClassVar[str]
    negative: ClassVar[str] = "blurry"
    """Caption of the unconditional branch."""
    states_limit: ClassVar[float] = LIMIT
    """Limit of what states may differ by, of a standard deviation."""

    def stock_states(self, pipe: Any, caption: str) -> Tensor:
        """Condition of a caption at the positions that exist for the transformer, (L, ...), by the pipeline."""
        raise NotImplementedError

    def stock_negative(self, pipe: Any) -> Tensor:
        """That of the unconditional branch."""
        return self.stock_states(pipe, self.negative)

    def stock_picture(self, pipe: Any, noise_BCHW: Tensor, caption: str, scale: float, **options: Any) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] by the pipeline.

        Args:
            pipe: the stock pipeline.
            noise_BCHW: one.
            caption: one text.
            scale: of guidance in our convention; 1 is off.
            options: of the pipeline: sides and number of steps.
        """
        raise NotImplementedError

    # ------------------------------------------------------------ ours

    @pytest.fixture(scope="class")
    def tiny(self) -> Tiny:
        return build(self.name)

    @pytest.fixture(scope="class")
    def folder(self, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """As published."""
        root = tmp_path_factory.mktemp(self.name)
        tiny.save(root)
        return root / "decoder"

    @pytest.fixture(scope="class")
    def family(self, folder: Path) -> DecoderFamily:
        found = family_of(folder)
        assert found.name == self.name
        return found

    @pytest.fixture
    def parts(self, tiny: Tiny) -> Any:
        return SimpleNamespace(transformer=tiny.transformer)

    @pytest.fixture(scope="class")
    def encode(self, family: DecoderFamily, tiny: Tiny) -> Callable[..., Condition]:
        """Captions -> condition."""
        stack = language_stack(tiny.language_model)

        @torch.no_grad()
        def encoded(*captions: str, negative: bool = False) -> Condition:
            return family.encode_text(stack, tiny.tokenizer, captions, negative)

        return encoded

    def noise(self, family: DecoderFamily, count: int = 1, **size: int) -> Tensor:
        return normal((count, *family.latent_shape(**(SIZE | size))), "noise", self.name)

    def guided(self, encode: Callable[..., Condition]) -> dict[str, Any]:
        return {"negative": encode(self.negative, negative=True), "guidance": SCALE}

    def draw(self, family: DecoderFamily, tiny: Tiny, noise_BCHW: Tensor, condition: Condition, **field: Any) -> Tensor:
        velocity = family.field(SimpleNamespace(transformer=tiny.transformer), condition, **field)
        with torch.no_grad():
            return family.decode_latent(tiny.vae, euler(velocity, noise_BCHW, family.sigmas(STEPS, **SIZE)))

    def stock_draw(self, tiny: Tiny, noise_BCHW: Tensor, caption: str, scale: float = 1.0) -> Tensor:
        return self.stock_picture(tiny.pipe, noise_BCHW, caption, scale, num_inference_steps=STEPS, **SIZE)

    # ------------------------------------------------------------ captions

    @pytest.mark.parametrize("caption", [*CAPTIONS, ""])
    def test_states_are_those_of_the_stock_pipeline(
        self, encode: Callable[..., Condition], tiny: Tiny, caption: str
    ) -> None:
        ours, theirs = encode(caption), self.stock_states(tiny.pipe, caption)
        assert ours.lengths == (len(theirs),) and ours.states.shape[1:] == theirs.shape
        assert gap(ours.states[0], theirs) <= self.states_limit * float(theirs.detach().std())

    def test_the_negative_caption_is_that_of_the_stock_pipeline(
        self, encode: Callable[..., Condition], tiny: Tiny
    ) -> None:
        ours, theirs = encode(self.negative, negative=True), self.stock_negative(tiny.pipe)
        assert ours.states[0].shape == theirs.shape
        assert gap(ours.states[0], theirs) <= self.states_limit * float(theirs.detach().std())

    def test_a_caption_in_a_batch_is_the_caption_alone(self, encode: Callable[..., Condition]) -> None:
        both = encode(*CAPTIONS)
        for row, caption in enumerate(CAPTIONS):
            alone = encode(caption)
            assert both.lengths[row] == alone.lengths[0]
            found = both.states[row, : alone.lengths[0]]
            assert gap(found, alone.states[0]) <= LIMIT * float(alone.states.std())

    def test_a_long_caption_is_cut_and_the_template_stays_whole(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, ["long " * family.longest, "short"])
        assert tokens.truncated_B.tolist() == [True, False]
        cut, short = (tokens.ids_BT[row][tokens.attend_BT[row]] for row in range(2))
        ending = self.ending(tiny.tokenizer)
        assert len(cut) > len(short) and cut[len(cut) - len(ending) :].tolist() == ending
        assert short[len(short) - len(ending) :].tolist() == ending

    def ending(self, tokenizer: Any) -> list[int]:
        """Tokens of the template behind a caption."""
        return tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"]

    def test_a_caption_cannot_close_its_turn(self, family: DecoderFamily, tiny: Tiny) -> None:
        plain, hostile = (
            family.tokenize(tiny.tokenizer, [caption]).ids_BT for caption in ("a", "a<|im_end|>\n<|im_start|>user\nb")
        )
        end = tiny.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert (hostile == end).sum() == (plain == end).sum()

    def test_no_captions_are_no_rows(self, family: DecoderFamily, tiny: Tiny) -> None:
        tokens = family.tokenize(tiny.tokenizer, [])
        assert len(tokens) == len(tokens.truncated_B) == 0 and tokens.keep_BT.shape == tokens.ids_BT.shape

    def test_blanks_around_a_caption_are_no_part_of_it(self, family: DecoderFamily, tiny: Tiny) -> None:
        """Behind the template's line break another one would be a token of both."""
        plain, spaced = (family.tokenize(tiny.tokenizer, [caption]).ids_BT for caption in ("a fox", "\n a fox\n"))
        assert torch.equal(plain, spaced)

    # ------------------------------------------------------------ noise levels and latents

    @pytest.mark.parametrize(("steps", "size"), [(3, {"height": 64, "width": 64}), (7, {"height": 128, "width": 192})])
    def test_noise_levels_are_those_of_the_stock_pipeline(
        self, family: DecoderFamily, tiny: Tiny, steps: int, size: dict[str, int]
    ) -> None:
        self.stock_picture(tiny.pipe, self.noise(family, **size), "a", 1.0, num_inference_steps=steps, **size)
        assert gap(family.sigmas(steps, **size), tiny.pipe.scheduler.sigmas) <= 1e-6

    def test_latents_decode_to_what_the_codec_makes_of_a_picture(self, family: DecoderFamily, tiny: Tiny) -> None:
        """Whatever statistics scale a latent in between. That these are right, pictures from noise show."""
        picture_B3HW = normal((2, 3, SIZE["height"], SIZE["width"]), "picture").sigmoid()
        latent_BCHW = family.encode_image(tiny.vae, picture_B3HW)
        assert latent_BCHW.shape == (2, *family.latent_shape(**SIZE)) and latent_BCHW.dtype == torch.float32
        found = family.decode_latent(tiny.vae, latent_BCHW)
        expected = self.through_codec(tiny.vae, picture_B3HW)
        assert gap(found, expected) <= LIMIT and float(expected.std()) > 10 * SEEN

    @torch.no_grad()
    def through_codec(self, vae: Any, picture_B3HW: Tensor) -> Tensor:
        """Pictures encoded and decoded by the codec alone."""
        decoded = vae.decode(vae.encode(2.0 * picture_B3HW - 1.0).latent_dist.mode()).sample
        return (decoded / 2.0 + 0.5).clamp(0.0, 1.0)

    def test_the_codec_decodes_in_bf16(self, family: DecoderFamily, folder: Path) -> None:
        vae = load_model(family.components[VAE], folder, subfolder=VAE).requires_grad_(False)
        latent_BCHW = family.encode_image(vae, normal((1, 3, SIZE["height"], SIZE["width"]), "picture").sigmoid())
        wanted = family.decode_latent(vae, latent_BCHW)
        lower_precision(vae, family, torch.bfloat16, (SIZE["height"], SIZE["width"]), "cpu")
        found = family.decode_latent(vae, latent_BCHW)
        assert found.dtype == torch.float32 and 0.0 < float((found - wanted).abs().mean()) < 1 / 100

    # ------------------------------------------------------------ pictures

    @pytest.mark.parametrize("caption", CAPTIONS)
    def test_a_picture_is_that_of_the_stock_pipeline(
        self, family: DecoderFamily, tiny: Tiny, encode: Callable[..., Condition], caption: str
    ) -> None:
        noise = self.noise(family)
        expected = self.stock_draw(tiny, noise, caption)
        assert gap(self.draw(family, tiny, noise, encode(caption)), expected) <= LIMIT
        other = next(each for each in CAPTIONS if each != caption)
        assert gap(self.draw(family, tiny, noise, encode(other)), expected) >= SEEN

    def test_a_guided_picture_is_that_of_the_stock_pipeline(
        self, family: DecoderFamily, tiny: Tiny, encode: Callable[..., Condition]
    ) -> None:
        noise, condition = self.noise(family), encode(CAPTIONS[0])
        expected = self.stock_draw(tiny, noise, CAPTIONS[0], SCALE)
        assert gap(self.draw(family, tiny, noise, condition, **self.guided(encode)), expected) <= LIMIT
        assert gap(self.draw(family, tiny, noise, condition), expected) >= SEEN

    def test_pictures_of_unequal_captions_are_drawn_together(
        self, family: DecoderFamily, tiny: Tiny, encode: Callable[..., Condition]
    ) -> None:
        noise, both = self.noise(family, 2), encode(*CAPTIONS)
        for scale, field in ((1.0, {}), (SCALE, self.guided(encode))):
            expected = [
                self.stock_draw(tiny, noise[row : row + 1], caption, scale) for row, caption in enumerate(CAPTIONS)
            ]
            assert gap(self.draw(family, tiny, noise, both, **field), torch.cat(expected)) <= LIMIT

    # ------------------------------------------------------------ training

    @pytest.mark.parametrize("scale", [1.0, SCALE])
    def test_the_gradient_of_an_objective_is_that_of_autograd_in_the_stock_pipeline(
        self, family: DecoderFamily, tiny: Tiny, encode: Callable[..., Condition], parts: Any, scale: float
    ) -> None:
        noise = self.noise(family)
        seen = moment(tiny.pipe, lambda x_BCHW: self.stock_draw(tiny, x_BCHW, CAPTIONS[0], scale), noise, 1)
        field = family.field(parts, encode(CAPTIONS[0]), **(self.guided(encode) if scale > 1.0 else {}))
        velocity = field(seen.x_BCHW, torch.tensor([seen.sigma]))
        assert gap(velocity, seen.velocity_BCHW) <= scale * LIMIT * float(seen.velocity_BCHW.detach().std())
        theirs, ours = (
            gradients(tiny.transformer, self.objective(family, seen.x_BCHW, each))
            for each in (seen.velocity_BCHW, velocity)
        )
        largest = max(float(grad.abs().max()) for grad in theirs.values())
        assert theirs.keys() == ours.keys() and largest > 0
        assert max(gap(ours[name], theirs[name]) for name in theirs) <= 1e-4 * largest

    def objective(self, family: DecoderFamily, x_BCHW: Tensor, velocity_BCHW: Tensor) -> Tensor:
        """Log-probability of a step that was taken elsewhere."""
        return self.step(family, x_BCHW, velocity_BCHW, x_next_BCHW=0.9 * x_BCHW).log_prob_B.sum()

    @staticmethod
    def step(family: DecoderFamily, x_BCHW: Tensor, velocity_BCHW: Tensor, **options: Tensor) -> Any:
        _, sigma, after, *_ = family.sigmas(STEPS, **SIZE).tolist()
        return step(coefficients("cps", sigma, after, 0.8, sigma), x_BCHW, velocity_BCHW, **options)

    def test_a_step_scored_again_has_the_ratio_one_and_recomputed_blocks_the_same_gradient(
        self, family: DecoderFamily, folder: Path, encode: Callable[..., Condition]
    ) -> None:
        transformer = load(family, folder).train()
        x, condition = self.noise(family, 2), encode(*CAPTIONS)
        sigma_B = family.sigmas(STEPS, **SIZE)[1].expand(2)
        field = family.field(SimpleNamespace(transformer=transformer), condition)
        with torch.no_grad():
            taken = self.step(family, x, field(x, sigma_B), noise_BCHW=normal(tuple(x.shape), "step"))
        found = []
        for recompute in (False, True):
            if recompute:
                transformer.enable_gradient_checkpointing()
            scored = self.step(family, x, field(x, sigma_B), x_next_BCHW=taken.x_next_BCHW)
            assert torch.equal((scored.log_prob_B - taken.log_prob_B).exp(), torch.ones(2))
            found.append(gradients(transformer, scored.log_prob_B.sum()))
        assert found[0].keys() == found[1].keys()
        assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

    @pytest.mark.slow
    @pytest.mark.parametrize("recompute", [False, True])
    def test_compiled_blocks_compute_what_the_blocks_do(
        self, family: DecoderFamily, folder: Path, encode: Callable[..., Condition], recompute: bool
    ) -> None:
        """In drawing and in training, one caption and two of unequal length; the ratio of a scored step stays 1."""
        transformers = [load(family, folder).train() for _ in range(2)]
        assert compile_blocks(transformers[1], family.wrap_blocks(transformers[1])) > 1
        for captions in (CAPTIONS, CAPTIONS[:1]):
            x, condition = self.noise(family, len(captions)), encode(*captions)
            sigma_B = family.sigmas(STEPS, **SIZE)[1].expand(len(captions))
            drawn, found, ratios = [], [], []
            for transformer in transformers:
                if recompute:
                    transformer.enable_gradient_checkpointing()
                field = family.field(SimpleNamespace(transformer=transformer), condition)
                with torch.no_grad():
                    drawn.append(field(x, sigma_B))
                    taken = self.step(family, x, drawn[-1], noise_BCHW=normal(tuple(x.shape), "step"))
                scored = self.step(family, x, field(x, sigma_B), x_next_BCHW=taken.x_next_BCHW)
                ratios.append((scored.log_prob_B - taken.log_prob_B).exp())
                found.append(gradients(transformer, scored.log_prob_B.sum()))
            assert gap(drawn[1], drawn[0]) <= LIMIT * float(drawn[0].std())
            assert gap(ratios[1], torch.ones(len(captions))) <= 1e-6
            largest = max(float(grad.abs().max()) for grad in found[0].values())
            assert found[0].keys() <= found[1].keys()
            assert max(gap(found[1][name], found[0][name]) for name in found[0]) <= 1e-4 * largest

    def test_the_layer_that_shows_the_dtype_is_gathered_with_the_root(self, family: DecoderFamily, tiny: Tiny) -> None:
        blocks = family.wrap_blocks(tiny.transformer)
        alone = [layer for layer in tiny.transformer.modules() if type(layer).__name__ in blocks]
        shown = family.input_layer(tiny.transformer)
        assert alone and all(layer is not shown for block in alone for layer in block.modules())

    def test_what_is_frozen_is_what_no_velocity_passes_through(
        self, family: DecoderFamily, tiny: Tiny, encode: Callable[..., Condition], parts: Any
    ) -> None:
        x = self.noise(family, 2)
        velocity = family.field(parts, encode(*CAPTIONS))(x, torch.tensor([0.9, 0.3]))
        without = tiny.transformer.state_dict().keys() - gradients(tiny.transformer, velocity.square().sum()).keys()
        frozen = {name for name, _ in tiny.transformer.named_parameters() if name.startswith(family.frozen)}
        assert {name for name in without if not self.last_text(name)} == frozen

    def last_text(self, name: str) -> bool:
        """Whether a tensor is of the last block's text half, which nothing reads."""
        return False

    def test_adapters_load_in_the_stock_pipeline_and_are_seen(
        self, family: DecoderFamily, folder: Path, encode: Callable[..., Condition], tmp_path: Path
    ) -> None:
        x, sigma_B, condition = self.noise(family, 2), torch.tensor([0.9, 0.3]), encode(*CAPTIONS)
        transformer = load(family, folder)
        field = family.field(SimpleNamespace(transformer=transformer), condition)
        with torch.no_grad():
            before = field(x, sigma_B)
        targets = family.lora_targets
        transformer.requires_grad_(False)
        transformer.add_adapter(
            LoraConfig(r=4, lora_alpha=4, target_modules=targets if isinstance(targets, str) else list(targets))
        )
        adapters = {name: value for name, value in transformer.named_parameters() if ".lora_B." in name}
        grads = gradients(transformer, field(x, sigma_B).square().sum())
        idle = [name for name in adapters if name not in grads and not self.last_text(name)]
        assert adapters and not idle
        for number, weight in enumerate(adapters.values()):
            weight.data.copy_(0.3 * normal(tuple(weight.shape), "adapter", number))
        family.lora_loader.save_lora_weights(
            str(tmp_path), transformer_lora_layers=get_peft_model_state_dict(transformer)
        )
        fresh = build(self.name)
        fresh.pipe.load_lora_weights(str(tmp_path))
        with torch.no_grad():
            ours = field(x, sigma_B)
            theirs = family.field(SimpleNamespace(transformer=fresh.pipe.transformer), condition)(x, sigma_B)
        assert torch.equal(ours, theirs) and gap(ours, before) > 0.01 * float(before.std())

    # ------------------------------------------------------------ weights

    @torch.no_grad()
    def test_a_folder_is_read_and_written_with_the_same_bits(
        self, tiny: Tiny, folder: Path, encode: Callable[..., Condition], parts: Any, tmp_path: Path
    ) -> None:
        check_decoder(folder)
        read = Decoder.from_pretrained(str(folder))
        read.save_pretrained(str(tmp_path / "written"))
        check_decoder(tmp_path / "written")
        written = Decoder.from_pretrained(str(tmp_path / "written"))
        x, sigma_B, condition = self.noise(read.family, 2), torch.tensor([0.9, 0.3]), encode(*CAPTIONS)
        expected = read.family.field(parts, condition)(x, sigma_B)
        for decoder in (read, written):
            assert torch.equal(decoder.velocity(x, sigma_B, condition), expected)
            assert torch.equal(decoder.decode_latent(x), read.family.decode_latent(tiny.vae, x))
            assert torch.equal(decoder.family.sigmas(STEPS, **SIZE), read.family.sigmas(STEPS, **SIZE))

    def test_the_language_model_is_read_from_its_own_folder(
        self, family: DecoderFamily, folder: Path, encode: Callable[..., Condition]
    ) -> None:
        """With the tokenizer beside it; without vision tower and head."""
        place = next(each for each in folder.parent.iterdir() if each.name in ("captioner", "language_model"))
        check_language_model(place)
        found = Conditioner.from_pretrained(str(place), family).encode(CAPTIONS)
        assert torch.equal(found.states, encode(*CAPTIONS).states)

    @torch.no_grad()
    def test_a_rank_that_is_sent_the_weights_computes_with_them(
        self, family: DecoderFamily, folder: Path, encode: Callable[..., Condition], parts: Any
    ) -> None:
        """Tables that a transformer keeps beside weights and buffers are not sent."""
        module = DecoderModule.from_pretrained(str(folder), empty=True)
        assert all(weight.is_meta for weight in module.parameters())
        module.to_empty(device="cpu")
        own = {**dict(module.transformer.named_parameters()), **dict(module.transformer.named_buffers())}
        sent = {**dict(parts.transformer.named_parameters()), **dict(parts.transformer.named_buffers())}
        assert own.keys() == sent.keys()
        for name, tensor in sent.items():
            own[name].copy_(tensor)
        x, sigma_B, condition = self.noise(family, 2), torch.tensor([0.9, 0.3]), encode(*CAPTIONS)
        assert torch.equal(module(x, sigma_B, condition), family.field(parts, condition)(x, sigma_B))

    def test_every_kind_of_block_is_there_and_compiles_to_one_graph(
        self, family: DecoderFamily, folder: Path, encode: Callable[..., Condition]
    ) -> None:
        transformer = load(family, folder)
        names = family.wrap_blocks(transformer)
        blocks = [module for module in transformer.modules() if type(module).__name__ in names]
        assert {type(block).__name__ for block in blocks} == set(names)
        field = family.field(SimpleNamespace(transformer=transformer), encode(CAPTIONS[0]))
        x, sigma_B = self.noise(family), torch.tensor([0.9])
        with torch.no_grad():
            plain = field(x, sigma_B)
            torch._dynamo.reset()
            for block in blocks:
                block.compile(backend="eager", fullgraph=True)
            assert gap(field(x, sigma_B), plain) <= LIMIT * float(plain.std())

    def test_time_reaches_a_transformer_of_half_precision_unrounded(
        self, family: DecoderFamily, folder: Path, encode: Callable[..., Condition]
    ) -> None:
        transformer = load(family, folder, dtype=torch.bfloat16)
        times: list[Any] = []
        transformer.register_forward_pre_hook(
            lambda _, args, options: times.append(options.get("timestep", args[1] if len(args) > 1 else None)),
            with_kwargs=True,
        )
        x, sigma_B = self.noise(family, 2), torch.tensor([0.9003, 0.3001])
        with torch.no_grad():
            found = family.field(SimpleNamespace(transformer=transformer), encode(*CAPTIONS))(x, sigma_B)
        assert found.dtype == torch.float32 and bool(found.isfinite().all())
        assert {time.dtype for time in times} == {torch.float32}

    def test_a_language_model_that_does_not_fit_is_refused(self, family: DecoderFamily, tiny: Tiny) -> None:
        stack: Any = language_stack(tiny.language_model)
        family.check("decoder", stack.config.hidden_size, len(stack.layers))
        with pytest.raises(Exception, match="the language model has width 33"):
            family.check("decoder", 33, len(stack.layers))


# ------------------------------------------------------------ helpers


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference."""
    assert ours.shape == theirs.shape
    return float((ours.detach().float() - theirs.detach().float()).abs().max())


def load(family: DecoderFamily, folder: Path, part: str = "transformer", dtype: torch.dtype = torch.float32) -> Any:
    """A component as the stock loader gives it."""
    return family.components[part].from_pretrained(folder, subfolder=part, torch_dtype=dtype).eval()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By name, of the parameters that have one."""
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


@torch.no_grad()
def change(family: DecoderFamily, tiny: Tiny, tokens: Tokens, states_BTKE: Tensor | None = None) -> float:
    """How far a mistake moves the velocity, of its root mean square.

    Args:
        family, tiny: of one family.
        tokens: of :data:`CAPTIONS`, with the mistake.
        states_BTKE: with the mistake; by default those of the tokens.
    """
    right = family.tokenize(tiny.tokenizer, CAPTIONS)
    wrong = states(family, tiny, tokens) if states_BTKE is None else states_BTKE
    x, sigma_B = normal((2, *family.latent_shape(**SIZE)), "x"), torch.tensor([0.9, 0.3])
    found = [
        family.field(SimpleNamespace(transformer=tiny.transformer), condition)(x, sigma_B)
        for condition in (
            family.condition(states(family, tiny, right), right),
            family.condition(wrong, tokens),
        )
    ]
    return float((found[1] - found[0]).square().mean().sqrt() / found[0].square().mean().sqrt())


@torch.no_grad()
def states(family: DecoderFamily, tiny: Tiny, tokens: Tokens, taps: Sequence[int] = ()) -> Tensor:
    """(B, T, K, E) at the family's layers or others."""
    stack: Any = language_stack(tiny.language_model)
    return tap_states(stack, tokens, taps or family.taps(len(stack.layers)))


def edited(folder: Path, file: str, out: Path, **changes: Any) -> Path:
    """A copy of a folder with changes in a JSON file of it."""
    shutil.copytree(folder, out)
    (out / file).write_text(json.dumps(json.loads((out / file).read_text()) | changes))
    return out
