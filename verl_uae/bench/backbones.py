# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The four image encoders of Unified-Bench, each as picture -> feature vector.

Pictures are PIL and go through the checkpoint's own image processor, as in the official scorer: Pillow's arithmetic
where transformers has it (CLIP, DINOv2), torchvision's for DINOv3, which never had another.

Shape legend: B pictures, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from verl_uae.checkpoints.load import load_config, load_model, load_processor
from verl_uae.checkpoints.names import CONFIG
from verl_uae.compat import ensure_torchvision
from verl_uae.errors import CheckpointError, ConfigError
from verl_uae.paths import expand, hub_problem, is_hub_id, model_source

Feature = Literal["image embedding", "class token"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """What is loaded under a name."""

    name: str
    """As in the official scorer's results."""
    title: str
    """As in the paper's tables."""
    source: str | None
    """Folder or hub id of a transformers checkpoint; None where there is no official one in that format."""
    feature: Feature
    """``image embedding``: after CLIP's projection. ``class token``: of the last layer, after its norm."""
    architecture: str
    """Class of transformers."""
    model_types: tuple[str, ...]
    """``model_type`` that the checkpoint's configuration may have."""
    revision: str | None = None
    """Commit, tag or branch of a hub repository."""


_CLIP = Backbone(
    "clip",
    "CLIP",
    "openai/clip-vit-large-patch14",
    "image embedding",
    "CLIPVisionModelWithProjection",
    ("clip", "clip_vision_model"),
)
_DINOV3 = "facebook/dinov3-vitl16-pretrain-lvd1689m"

#: The encoders of the benchmark, in the order of the paper's tables.
PROTOCOL: Mapping[str, Backbone] = {
    "clip": _CLIP,
    # Published as a pickle for a package of its own; its image tower converted to transformers is a CLIP.
    "longclip": replace(_CLIP, name="longclip", title="LongCLIP", source=None),
    "dinov2": Backbone("dinov2", "DINOv2", "facebook/dinov2-large", "class token", "Dinov2Model", ("dinov2",)),
    "dinov3": Backbone("dinov3", "DINOv3", _DINOV3, "class token", "DINOv3ViTModel", ("dinov3_vit",)),
}


def choose(given: Sequence[str] = (), only: Sequence[str] | None = None) -> list[Backbone]:
    """The encoders of a run.

    Args:
        given: ``NAME=SOURCE`` or ``NAME=SOURCE@REVISION`` in place of the defaults.
        only: names to use; default: all four.

    Raises:
        ConfigError: an unknown name, or a text of another form.
    """
    chosen = dict(PROTOCOL)
    for text in given:
        name, _, source = text.partition("=")
        if not source:
            raise ConfigError("--backbone", f"expected NAME=FOLDER or NAME=HUB_ID@REVISION, got {text!r}")
        _check_name("--backbone", name)
        revision = None
        if not expand(source).exists() and "@" in source:
            source, _, revision = source.rpartition("@")
        chosen[name] = replace(chosen[name], source=model_source(source, f"--backbone {name}"), revision=revision)
    for name in only or ():
        _check_name("--only", name)
    return [backbone for backbone in chosen.values() if only is None or backbone.name in only]


def _check_name(key: str, name: str) -> None:
    if name not in PROTOCOL:
        raise ConfigError(key, f"must be one of {', '.join(PROTOCOL)}, got {name!r}")


def check_available(backbones: Sequence[Backbone]) -> None:
    """Refuse encoders that could not be loaded, before hours of drawing; loads and downloads none.

    Raises:
        ConfigError: naming the first one that has no checkpoint, is of another kind, or cannot be had from the hub.
    """
    for backbone in backbones:
        source, reason = backbone.source, None
        if source is None:
            reason = "has no published checkpoint in this format"
        elif is_hub_id(source):
            problem = hub_problem(source, revision=backbone.revision)
            reason = problem and f"{source} {problem}"
        else:
            try:
                kind = json.loads((Path(source) / CONFIG).read_text(encoding="utf-8")).get("model_type")
                if kind not in backbone.model_types:
                    reason = f"{source} is a {kind!r} checkpoint, and must be {backbone.model_types[0]!r}"
            except (OSError, ValueError, AttributeError) as error:
                reason = f"{source} holds no {CONFIG} that can be read ({error})"
        if reason is not None:
            others = " ".join(other.name for other in backbones if other is not backbone) or "NAME"
            remedy = (
                f"pass --backbone {backbone.name}=FOLDER, or do without it, --only {others}, for an incomplete result"
            )
            raise ConfigError(f"--backbone {backbone.name}", f"{reason}; {remedy}")


class ImageEncoder:
    """A loaded backbone, frozen, in fp32; safetensors only, no code of the repository.

    Raises:
        CheckpointError: there is no checkpoint, it is of another kind, incomplete, or without an image processor.
    """

    def __init__(self, backbone: Backbone, device: str | torch.device = "cpu") -> None:
        if backbone.source is None:
            raise CheckpointError(backbone.name, f"no checkpoint given: pass --backbone {backbone.name}=FOLDER")
        self.backbone, self.device = backbone, torch.device(device)
        self.network, self.processor = _load(backbone, backbone.source)
        self.network.to(self.device)

    def describe(self) -> dict[str, str | None]:
        """What was loaded, for the record of a run."""
        return {
            "source": self.backbone.source,
            "revision": self.backbone.revision,
            "commit": getattr(self.network.config, "_commit_hash", None),
            "feature": self.backbone.feature,
            "architecture": type(self.network).__name__,
            "processor": type(self.processor).__name__,
        }

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Features of RGB pictures of any sizes: (B, D), fp32, on the device."""
        # One by one: a processor may refuse a list of different sizes, and none mixes pictures.
        pixels = [self.processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        output = self.network(pixel_values=torch.cat(pixels).to(self.device, torch.float32))
        if self.backbone.feature == "image embedding":
            return output.image_embeds.float()
        return output.last_hidden_state[:, 0].float()


def _load(backbone: Backbone, source: str) -> tuple[Any, Any]:
    ensure_torchvision()
    import transformers

    options: dict[str, Any] = {} if backbone.revision is None else {"revision": backbone.revision}
    config = load_config(source, **options)
    kind = config.model_type
    if kind not in backbone.model_types:
        raise CheckpointError(source, f"is a {kind!r} checkpoint; {backbone.name} is {backbone.model_types[0]!r}")
    if kind == "clip":
        # The width of the projection is a setting of the whole model; the copy in the image part may be stale.
        config.vision_config.projection_dim = config.projection_dim
        config.vision_config._commit_hash = getattr(config, "_commit_hash", None)
        config = config.vision_config
    network_class: Any = getattr(transformers, backbone.architecture)
    # The text tower of a whole CLIP is not wanted.
    network = load_model(network_class, source, config=config, may_ignore=lambda name: True, **options)
    processor = load_processor(source, transformers.AutoImageProcessor, backend="pil", **options)
    return network.requires_grad_(False), processor
