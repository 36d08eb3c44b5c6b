# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of the real classes of every decoder family, in the stock pipeline of diffusers. Nothing is
downloaded.

Language models have width 32; where a family reads states from several layers they have as many layers as the published
one, so that the layers read are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

WIDTH = 32
"""Of the language models."""

SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    *("<|video_pad|>", "<think>", "</think>"),
)

#: What matters of Qwen's: roles as they come, parts of text and pictures, an empty thought where thinking is off.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A stock pipeline and what is in it."""

    pipe: Any
    language_model: nn.Module
    """As the family's text encoder is published: with vision tower and head where it has them."""
    tokenizer: Any
    transformer: Any
    vae: Any

    def save(self, folder: Path) -> None:
        """Write ``decoder/``, a folder as published, and ``captioner/``, the language model with its processor, or
        ``language_model/`` where it does not see."""
        self.pipe.save_pretrained(str(folder / "decoder"))
        sees = hasattr(self.language_model.config, "vision_config")
        place = folder / ("captioner" if sees else "language_model")
        self.language_model.save_pretrained(place)
        (build_processor(self.tokenizer) if sees else self.tokenizer).save_pretrained(place)


def build(name: str) -> Tiny:
    """A new tiny pipeline of a family by its name, with the same weights at every call and in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny = BUILDERS[name]()
    tiny.pipe.set_progress_bar_config(disable=True)
    return tiny


# ------------------------------------------------------------ text


def build_tokenizer() -> Any:
    """Qwen's tokenizer without merges: any text, 256 bytes and the special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_processor(tokenizer: Any) -> Any:
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes, min_pixels=256, max_pixels=4096),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(**sizes),
        chat_template=TEMPLATE,
    )


def text_settings(tokenizer: Any, layers: int, **more: Any) -> dict[str, Any]:
    """Of a language model's configuration."""
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 16384}
    ids = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": end, "pad_token_id": pad}
    return {**sizes, **heads, **ids, "initializer_range": 0.2, "tie_word_embeddings": False, **more}


def _picture_settings(tokenizer: Any, **vision: Any) -> dict[str, Any]:
    tower = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": WIDTH,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.2,
        **vision,
    }
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(list(marks)), strict=True))
    return {"vision_config": tower, "tie_word_embeddings": False, **ids}


def build_qwen3_vl(tokenizer: Any, layers: int) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = transformers.Qwen3VLConfig(
        text_config=text_settings(tokenizer, layers, rope_parameters=rope),
        **_picture_settings(tokenizer, deepstack_visual_indexes=[0, 1], num_position_embeddings=64),
    )
    return stir(transformers.Qwen3VLForConditionalGeneration(config))


def build_qwen2_5_vl(tokenizer: Any, layers: int) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_settings(tokenizer, layers, rope_parameters=rope, max_window_layers=layers),
        **_picture_settings(tokenizer, window_size=32, fullatt_block_indexes=[2]),
    )
    return stir(transformers.Qwen2_5_VLForConditionalGeneration(config))


def build_qwen3(tokenizer: Any, layers: int) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = transformers.Qwen3Config(**text_settings(tokenizer, layers, rope_parameters=rope))
    return stir(transformers.Qwen3ForCausalLM(config))


def build_gemma2(tokenizer: Any, layers: int) -> Any:
    settings = text_settings(tokenizer, layers, attention_dropout=0.0, query_pre_attn_scalar=8)
    return stir(transformers.Gemma2Model(transformers.Gemma2Config(**settings)))


@torch.no_grad()
def stir(model: Any) -> Any:
    """Move what starts at exactly 0 or 1, such as gates, norms and pad tokens, or what passes them would be unseen."""
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


# ------------------------------------------------------------ pictures


def build_kl_vae() -> Any:
    """`AutoencoderKL` with the statistics of FLUX.1's, 16 x 1/8."""
    stages = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 16, "norm_num_groups": 4}
    statistics = {
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return stir(diffusers.AutoencoderKL(**stages, **sizes, **statistics, sample_size=64))


def build_flux2_vae() -> Any:
    sizes = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    vae = diffusers.AutoencoderKLFlux2(**sizes, sample_size=64)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return stir(vae)


def build_deep_vae() -> Any:
    """`AutoencoderDC`, 4 x 1/32."""
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock",) * 6,
            "block_out_channels": (4, 4, 4, 4, 8, 8),
            "layers_per_block": (1,) * 6,
            "qkv_multiscales": ((),) * 6,
        }.items()
    }
    sampling = {"downsample_block_type": "conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407}
    norms = {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}
    return stir(diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=2, **sides, **sampling, **norms))


# ------------------------------------------------------------ families


def _sd3() -> Tiny:
    tokenizer = build_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=16,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=16,
        qk_norm="rms_norm",
    )
    absent = dict.fromkeys(f"{kind}{n}" for kind in ("tokenizer", "text_encoder") for n in ("", "_2", "_3"))
    pipe = diffusers.StableDiffusion3Pipeline(
        stir(transformer), FlowMatchEulerDiscreteScheduler(shift=3.0), build_kl_vae(), **absent
    )
    return Tiny(pipe, build_qwen2_5_vl(tokenizer, 4), tokenizer, pipe.transformer, pipe.vae)


def _flux3() -> Tiny:
    from diffusers.modular_pipelines import Flux3AutoBlocks

    tokenizer = build_tokenizer()
    language_model = build_qwen3_vl(tokenizer, 36)
    transformer = diffusers.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 4, 4, 4),
        joint_attention_dim=8 * WIDTH,
    )
    blocks = Flux3AutoBlocks()
    # It writes longer prompts with the language model, which random weights cannot.
    blocks.sub_blocks.pop("prompt_upsampler")
    pipe = blocks.init_pipeline()
    components = {"transformer": stir(transformer), "vae": build_flux2_vae()}
    pipe.update_components(text_encoder=language_model, tokenizer=build_processor(tokenizer), **components)
    return Tiny(pipe, language_model, tokenizer, **components)


def _flux2_klein() -> Tiny:
    tokenizer = build_tokenizer()
    language_model = build_qwen3(tokenizer, 36)
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        guidance_embeds=False,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 4, 4, 4),
        joint_attention_dim=3 * WIDTH,
    )
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=_dynamic(shift=3.0),
        vae=build_flux2_vae(),
        transformer=stir(transformer),
        text_encoder=language_model,
        tokenizer=tokenizer,
        is_distilled=False,
    )
    return Tiny(pipe, language_model, tokenizer, pipe.transformer, pipe.vae)


def _qwen_image() -> Tiny:
    tokenizer = build_tokenizer()
    language_model = build_qwen2_5_vl(tokenizer, 4)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        axes_dims_rope=(4, 6, 6),
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
    )
    pipe = diffusers.QwenImagePipeline(
        _dynamic(max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02),
        vae=_build_qwen_vae(),
        transformer=stir(transformer),
        text_encoder=language_model,
        tokenizer=tokenizer,
    )
    # The pipeline's 34 is the length with Qwen's vocabulary.
    pipe.prompt_template_encode_start_idx = _count(tokenizer, pipe.prompt_template_encode.split("{}")[0])
    return Tiny(pipe, language_model, tokenizer, pipe.transformer, pipe.vae)


def _krea2() -> Tiny:
    tokenizer = build_tokenizer()
    language_model = build_qwen3_vl(tokenizer, 36)
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        timestep_embed_dim=32,
        axes_dims_rope=(4, 6, 6),
        text_hidden_dim=WIDTH,
        text_num_attention_heads=4,
        text_num_key_value_heads=4,
        text_intermediate_size=64,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
    )
    pipe = diffusers.Krea2Pipeline(
        scheduler=_dynamic(max_image_seq_len=6400),
        vae=_build_qwen_vae(),
        transformer=stir(transformer),
        text_encoder=language_model.model,
        tokenizer=tokenizer,
    )
    # The pipeline's 34 and 5 are lengths with Qwen's vocabulary.
    pipe.prompt_template_encode_start_idx = _count(tokenizer, pipe.prompt_template_encode_prefix)
    pipe.prompt_template_encode_num_suffix_tokens = _count(tokenizer, pipe.prompt_template_encode_suffix)
    return Tiny(pipe, language_model, tokenizer, pipe.transformer, pipe.vae)


def _qwen_image21() -> Tiny:
    tokenizer = build_tokenizer()
    language_model = build_qwen3_vl(tokenizer, 4)
    transformer = diffusers.QwenImage21Transformer2DModel(
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        axes_dims_rope=(4, 6, 6),
        context_in_dim=WIDTH,
    )
    vae = stir(diffusers.AutoencoderKLQwenImage21(base_dim=8, decoder_base_dim=8, num_res_blocks=1))
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=_dynamic(),
        vae=vae,
        transformer=stir(transformer),
        text_encoder=language_model,
        processor=build_processor(tokenizer),
    )
    return Tiny(pipe, language_model, tokenizer, pipe.transformer, pipe.vae)


def _z_image() -> Tiny:
    tokenizer = build_tokenizer()
    language_model = build_qwen3(tokenizer, 4)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16,
        dim=64,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 12, 12],
    )
    pipe = diffusers.ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=build_kl_vae(),
        transformer=stir(transformer),
        text_encoder=language_model,
        tokenizer=tokenizer,
    )
    return Tiny(pipe, language_model, tokenizer, pipe.transformer, pipe.vae)


def _sana() -> Tiny:
    tokenizer = build_tokenizer()
    language_model = build_gemma2(tokenizer, 4)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        caption_channels=WIDTH,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        timestep_scale=0.7,
    )
    # As published; a test replaces it by Euler, since the solver is no part of the model.
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=language_model,
        vae=build_deep_vae(),
        transformer=stir(transformer),
        scheduler=scheduler,
    )
    return Tiny(pipe, language_model, tokenizer, pipe.transformer, pipe.vae)


BUILDERS: dict[str, Callable[[], Tiny]] = {
    "sd3": _sd3,
    "flux3": _flux3,
    "flux2_klein": _flux2_klein,
    "qwen_image": _qwen_image,
    "krea2": _krea2,
    "qwen_image21": _qwen_image21,
    "z_image": _z_image,
    "sana": _sana,
}


def _build_qwen_vae() -> Any:
    return stir(diffusers.AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1))


def _dynamic(**more: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **more)


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text)["input_ids"])
