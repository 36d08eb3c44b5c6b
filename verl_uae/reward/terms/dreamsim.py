# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""DreamSim (Fu et al. 2023): a distance of vision transformers that people's judgements of similarity have adapted.

The published ensemble concatenates the class token of DINO ViT-B/16 after its last block, before the final
normalisation, and the projected image embeddings of CLIP and OpenCLIP ViT-B/16; the distance is 1 minus the cosine of
the two vectors, each minus its own mean. Pictures are squeezed to 224 x 224, bicubic. Source: the package dreamsim
0.2.1, https://github.com/ssundaram21/dreamsim. Single networks (``dino_vitb16``, ``clip_vitb32``,
``open_clip_vitb32``) are the ensemble with one member.

The weights are published as pickles and adapters for that package. Write them once where it can download them, adapters
multiplied out; docs/rewards.md has the script. Here they run in transformers' classes.

Shape legend: B samples, 3 colour channels, H W pixels, D features, C width of a network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.terms.features import EncoderTerm, Features, Preprocess, cosine, read_weights, resized
from verl_uae.reward.terms.vision import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from verl_uae.settings import Dtype

KEY = "uae.reward.terms.dreamsim"

SIZE = (224, 224)
#: Of every published network: 12 heads for a width of 768.
HEAD_WIDTH = 64
#: Published name without its size, and the feature that goes with it.
KINDS: Mapping[str, str] = {"dino": "cls", "clip": "embedding", "open_clip": "embedding"}

#: Published name of a layer, its ``qkv`` taken apart, and its name in a checkpoint of transformers; # is a block's.
VIT: Mapping[str, str] = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "#norm1": "encoder.layer.#.layernorm_before",
    "#norm2": "encoder.layer.#.layernorm_after",
    "#attn.q": "encoder.layer.#.attention.attention.query",
    "#attn.k": "encoder.layer.#.attention.attention.key",
    "#attn.v": "encoder.layer.#.attention.attention.value",
    "#attn.proj": "encoder.layer.#.attention.output.dense",
    "#mlp.fc1": "encoder.layer.#.intermediate.dense",
    "#mlp.fc2": "encoder.layer.#.output.dense",
}
CLIP: Mapping[str, str] = {
    "cls_token": "vision_model.embeddings.class_embedding",
    "pos_embed": "vision_model.embeddings.position_embedding",
    "patch_embed.proj": "vision_model.embeddings.patch_embedding",
    "pos_drop": "vision_model.pre_layrnorm",
    "norm": "vision_model.post_layernorm",
    "proj": "visual_projection",
    "#norm1": "vision_model.encoder.layers.#.layer_norm1",
    "#norm2": "vision_model.encoder.layers.#.layer_norm2",
    "#attn.q": "vision_model.encoder.layers.#.self_attn.q_proj",
    "#attn.k": "vision_model.encoder.layers.#.self_attn.k_proj",
    "#attn.v": "vision_model.encoder.layers.#.self_attn.v_proj",
    "#attn.proj": "vision_model.encoder.layers.#.self_attn.out_proj",
    "#mlp.fc1": "vision_model.encoder.layers.#.mlp.fc1",
    "#mlp.fc2": "vision_model.encoder.layers.#.mlp.fc2",
}


class Dreamsim(EncoderTerm):
    """Distance of DreamSim embeddings; lower is better, so a positive weight is a penalty.

    Args:
        weights: safetensors file of the ensemble or of a single network, see above.
        dtype: what the networks compute in. The cosine is always fp32.

    Raises:
        ConfigError: no such file, no safetensors, another network, weights missing or left over.
    """

    bounds = (0.0, 2.0)
    higher_is_better = False
    mode = "pooled"
    file_params = ("weights",)

    def __init__(self, weights: str, dtype: Dtype = "float32") -> None:
        self.settings = ("dreamsim", weights, dtype)
        self.model = load_dreamsim(weights, getattr(torch, dtype))

    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Mapping[str, Features]:
        """One stage: the embedding (B, D), in fp32."""
        return {"pooled": (self.model(images_B3HW),)}

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 2]."""
        return dreamsim_distance(self.source_features(batch)[0], self.reconstruction_features(batch)[0])


def dreamsim_distance(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """1 minus the cosine of embeddings, each minus its own mean: shape (B,), in [0, 2]. Differentiable.

    NaN where an embedding is constant: it has no direction to compare.
    """
    a_BD, b_BD = (x_BD.float() - x_BD.float().mean(dim=1, keepdim=True) for x_BD in (a_BD, b_BD))
    return 1.0 - cosine(a_BD, b_BD)


class Ensemble(nn.Module):
    """Pictures in [0, 1] of any size to the concatenated features of the members.

    Args:
        members: networks, each with the preprocessing of its pictures.
    """

    def __init__(self, members: list[tuple[nn.Module, Preprocess]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(network for network, _ in members)
        self.preprocess = [preprocess for _, preprocess in members]

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Shape (B, D), fp32."""
        # Once for all members.
        images_B3HW = resized(images_B3HW, SIZE)
        found = []
        for network, preprocess in zip(self.members, self.preprocess, strict=True):
            pixels = preprocess(images_B3HW).to(next(network.parameters()).dtype)
            output: Any = network(pixel_values=pixels)
            embeds = getattr(output, "image_embeds", None)
            found.append((output.last_hidden_state[:, 0] if embeds is None else embeds).float())
        return torch.cat(found, dim=1)


def load_dreamsim(path: str, dtype: torch.dtype) -> Ensemble:
    """The networks of a file, in order, frozen, in evaluation mode, on the CPU.

    Raises:
        ConfigError: see :class:`Dreamsim`.
    """
    key = f"{KEY}.weights"
    state, metadata = read_weights(path, key)
    models, features = (metadata.get(name, "").split(",") for name in ("model_type", "feat_type"))
    kinds = [model.rpartition("_")[0] for model in models]
    if [KINDS.get(kind) for kind in kinds] != features:
        raise ConfigError(key, f"{path!r} has {models} with {features}; known are {dict(KINDS)}")
    published: list[dict[str, Tensor]] = [{} for _ in kinds]
    for name, weight in state.items():
        place, _, rest = name.partition(".")
        if not place.isdigit() or int(place) >= len(kinds) or not rest:
            raise ConfigError(key, f"{path!r}: {name!r} belongs to no network")
        published[int(place)][rest] = weight
    members = []
    for kind, weights in zip(kinds, published, strict=True):
        try:
            members.append(_dino(weights, dtype) if kind == "dino" else _clip(weights, dtype, kind))
        except (KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(key, f"{path!r} lacks weights of {kind}: {error}") from error
    ensemble = Ensemble(members)
    ensemble.eval().requires_grad_(False)
    return ensemble


def _size(published: Mapping[str, Tensor]) -> dict[str, int]:
    """Numbers of transformers' configuration that the weights of a network tell."""
    width, _, patch, _ = published["patch_embed.proj.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": published["blocks.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in published if name.startswith("blocks.")),
        "num_attention_heads": width // HEAD_WIDTH,
        "patch_size": patch,
        "image_size": SIZE[0],
    }


def _dino(published: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[nn.Module, Preprocess]:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(**_size(published), hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True)
    network: Any = _build(ViTModel, config, _renamed(published, VIT), dtype, add_pooling_layer=False)
    # The feature is taken after the last block.
    network.layernorm = nn.Identity()
    return network, Preprocess(resize=SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _clip(published: dict[str, Tensor], dtype: torch.dtype, kind: str) -> tuple[nn.Module, Preprocess]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    position_TC = published.pop("pos_embed")[0].clone()
    # CLIP has no bias here; the published class has, and what it adds to every patch a position can add.
    position_TC[1:] += published.pop("patch_embed.proj.bias")
    projection = published.pop("proj").T.contiguous()
    published |= {"pos_embed.weight": position_TC, "proj.weight": projection}
    published["cls_token"] = published["cls_token"].flatten()
    config = CLIPVisionConfig(
        **_size(published),
        projection_dim=projection.shape[0],
        hidden_act="quick_gelu" if kind == "clip" else "gelu",
        layer_norm_eps=1e-5,
    )
    network = _build(CLIPVisionModelWithProjection, config, _renamed(published, CLIP), dtype)
    return network, Preprocess(resize=SIZE, mean=CLIP_MEAN, std=CLIP_STD)


def _renamed(published: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights by their names in a checkpoint of transformers; what is not known keeps its name."""
    found = {}
    for name, weight in published.items():
        layer, kind = re.sub(r"\.(weight|bias)$", "", name), name.rpartition(".")[2]
        block = re.match(r"blocks\.(\d+)\.", layer)
        place, index = ("#" + layer[block.end() :], block[1]) if block else (layer, "")
        pieces = {place: weight}
        if place == "#attn.qkv":
            pieces = {f"#attn.{letter}": third.clone() for letter, third in zip("qkv", weight.chunk(3), strict=True)}
        for part, piece in pieces.items():
            new = names[part].replace("#", index) if part in names else layer
            found[new if layer == name else f"{new}.{kind}"] = piece
    return found


def _build(network_class: Any, config: Any, state: dict[str, Tensor], dtype: torch.dtype, **settings: Any) -> nn.Module:
    """A network of transformers with the weights given, by the names of the hub's checkpoints.

    Raises:
        ValueError: a weight is missing, left over or of another shape.
    """
    # Mismatches too are listed below, with what else is wrong.
    settings["ignore_mismatched_sizes"] = True
    with torch.random.fork_rng(devices=[]):
        network, info = network_class.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, **settings
        )
    wrong = [sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    if any(wrong):
        raise ValueError(f"missing {wrong[0][:3]}, unknown {wrong[1][:3]}, other shapes {wrong[2][:3]}")
    built: nn.Module = network
    return built
