# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Learned perceptual distances: LPIPS and DISTS, for pictures at the decoder's own size.

Their small learned weights come with torchmetrics, their backbones, AlexNet and VGG16 trained on ImageNet, do not: give
a safetensors file with torchvision's names, written once where torchvision can download them (or see docs/rewards.md):

    from safetensors.torch import save_file
    from torchvision.models import alexnet
    save_file(alexnet(weights="DEFAULT").features.state_dict(), "alexnet.safetensors")

Shape legend: B samples, 3 colour channels, H W pixels, C channels of a layer.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verl_uae.errors import ConfigError
from verl_uae.paths import existing_file
from verl_uae.reward.sample import RewardBatch
from verl_uae.reward.term import RewardTerm, TermContext
from verl_uae.reward.terms.pretrained import check_choice

#: Learned weights inside torchmetrics, with the SHA-256 of the known files (LPIPS v0.1, DISTS 0.1).
WEIGHTS = {
    "alex": ("lpips_models/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    "vgg": ("lpips_models/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    "dists": ("dists_models/weights.pt", "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"),
}

#: Layers whose outputs LPIPS and DISTS compare, numbered as in torchvision's ``features``.
ALEX_TAPS = (1, 4, 7, 9, 11)
VGG_TAPS = (3, 8, 15, 22, 29)

#: Added to squared lengths and to both fractions, as published.
LPIPS_EPS, DISTS_EPS = 1e-8, 1e-6

MIN_SIDE = 32


def alexnet_features() -> nn.Sequential:
    """The convolutions of AlexNet (Krizhevsky 2014), as in torchvision; weights not set."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True),
    )  # fmt: skip


def vgg16_features(pool: type[nn.Module] = nn.Identity) -> nn.Sequential:
    """The convolutions of VGG16 (Simonyan & Zisserman 2015), as in torchvision; weights not set.

    Args:
        pool: what stands in the places of its max pooling.
    """
    layers: list[nn.Module] = []
    channels = 3
    for block, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if block:
            layers.append(pool())
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


class MaxPool(nn.MaxPool2d):
    """VGG16's own pooling."""

    def __init__(self) -> None:
        super().__init__(2, 2)


class HannPool(nn.Module):
    """Root of the Hann-weighted mean of squares, stride 2: DISTS's pooling without aliasing."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        side = x_BCHW.new_tensor([0.5, 1.0, 0.5])
        kernel = torch.outer(side, side) / side.sum() ** 2
        kernel = kernel.expand(x_BCHW.shape[1], 1, 3, 3)
        squares = F.conv2d(x_BCHW.square(), kernel, stride=2, padding=1, groups=x_BCHW.shape[1])
        return (squares + 1e-12).sqrt()


def taps(network: nn.Sequential, x_BCHW: Tensor, places: Sequence[int]) -> list[Tensor]:
    """Outputs of the named layers."""
    found = []
    for place, layer in enumerate(network):
        x_BCHW = layer(x_BCHW)
        if place in places:
            found.append(x_BCHW)
    return found


def by_picture(
    features: Callable[[Tensor], list[Tensor]],
    distance: Callable[[list[Tensor], list[Tensor]], Tensor],
    source_B3HW: Tensor,
    reconstruction_B3HW: Tensor,
) -> Tensor:
    """Distances of pictures whose neighbours often have one source, as the members of a group do.

    Pictures are looked at one after the other: what that takes grows with the size of one picture, not with their
    number, and no picture moves the last bits of another. The source of neighbours is encoded once.

    Args:
        features: network, pictures to one tensor (B, ...) per layer.
        distance: of features, shape (B,).
        source_B3HW: pictures, B at least 1.
        reconstruction_B3HW: pictures to compare, same shape.

    Returns:
        Distance, shape (B,). Differentiable.
    """
    flat = source_B3HW.flatten(1)
    again = [False, *(flat[1:] == flat[:-1]).all(dim=1).tolist()]
    found: list[Tensor] = []
    known: list[Tensor] = []
    for same, source, drawn in zip(again, source_B3HW.split(1), reconstruction_B3HW.split(1), strict=True):
        if not same:
            known = []  # Let go of before the next ones are made.
            known = features(source)
        found.append(distance(known, features(drawn)))
    return torch.cat(found)


def lpips(a: Sequence[Tensor], b: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """LPIPS of features (Zhang et al. 2018, eq. 1).

    Args:
        a: features (B, C, H, W) of one picture per sample, one tensor per layer.
        b: features to compare, same shapes.
        weights: one tensor (C) of weights at least 0 per layer.

    Returns:
        Distance, shape (B,), at least 0; 0 for equal features. Differentiable.
    """
    layers = []
    for x_BCHW, y_BCHW, weight_C in zip(a, b, weights, strict=True):
        x_BCHW, y_BCHW = (z / (z.square().sum(dim=1, keepdim=True) + LPIPS_EPS).sqrt() for z in (x_BCHW, y_BCHW))
        layers.append(((x_BCHW - y_BCHW).square() * weight_C.view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(layers).sum(dim=0)


def dists(a: Sequence[Tensor], b: Sequence[Tensor], alpha: Sequence[Tensor], beta: Sequence[Tensor]) -> Tensor:
    """DISTS of features (Ding et al. 2020, eq. 5-7).

    Args:
        a: the picture and its features (B, C, H, W), one tensor per layer, in fp32.
        b: what to compare, same shapes.
        alpha: weights (C) of texture (means) per layer, at least 0.
        beta: weights (C) of structure (covariance) per layer, at least 0.

    Returns:
        Distance, shape (B,), in [0, 2]; 0 for equal pictures. Differentiable.
    """
    total = torch.cat([*alpha, *beta]).sum()
    similarity_B = a[0].new_zeros(len(a[0]))
    for x, y, alpha_C, beta_C in zip(a, b, alpha, beta, strict=True):
        x_mean, y_mean = x.mean(dim=(2, 3), keepdim=True), y.mean(dim=(2, 3), keepdim=True)
        x, y = x - x_mean, y - y_mean
        x_mean_BC, y_mean_BC = x_mean.flatten(1), y_mean.flatten(1)
        texture = (2 * x_mean_BC * y_mean_BC + DISTS_EPS) / (x_mean_BC**2 + y_mean_BC**2 + DISTS_EPS)
        spread = x.square().mean(dim=(2, 3)) + y.square().mean(dim=(2, 3))
        structure = (2 * (x * y).mean(dim=(2, 3)) + DISTS_EPS) / (spread + DISTS_EPS)
        similarity_B = similarity_B + (alpha_C * texture + beta_C * structure).sum(dim=1)
    return 1.0 - similarity_B / total


class LPIPS(RewardTerm):
    """:func:`lpips` with the published weights, v0.1; lower is better, so a positive weight is a penalty.

    Args:
        backbone: safetensors file with the convolutions of the network, see above.
        net: ``alex`` (the authors' choice for measuring) or ``vgg`` (closer to what they optimise with).

    Raises:
        ConfigError: an unusable file, or weights in torchmetrics other than the known ones.
    """

    bounds = (0.0, math.inf)
    higher_is_better = False
    file_params = ("backbone",)

    def __init__(self, backbone: str, net: Literal["alex", "vgg"] = "alex") -> None:
        key = "uae.reward.terms.lpips"
        check_choice(f"{key}.net", net, ("alex", "vgg"))
        self.places = ALEX_TAPS if net == "alex" else VGG_TAPS
        empty = alexnet_features if net == "alex" else _vgg_with_max_pooling
        self.model = load_backbone(empty, backbone, f"{key}.backbone")
        state = learned_weights(net, key)
        self.weights = [state[f"lin{layer}.model.1.weight"].flatten() for layer in range(len(self.places))]
        # The published centre and scale, of pictures in [-1, 1].
        self.shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        self.scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def setup(self, context: TermContext) -> None:
        """Move the network and the weights."""
        self.to(context.device)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.weights = [weight_C.to(device) for weight_C in self.weights]

    def features(self, images_B3HW: Tensor) -> list[Tensor]:
        """Of pictures in [0, 1]."""
        return taps(self.model, ((2 * images_B3HW - 1) - self.shift) / self.scale, self.places)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), at least 0.

        Raises:
            ValueError: a picture side below :data:`MIN_SIDE`.
        """
        _check_side(batch)
        distance = functools.partial(lpips, weights=self.weights)
        return by_picture(self.features, distance, batch.source_B3HW, batch.reconstruction_B3HW)


class DISTS(RewardTerm):
    """:func:`dists` with the published weights; lower is better, so a positive weight is a penalty.

    The authors first scale pictures to a shorter side of 256 pixels; here they have the decoder's size.

    Args:
        backbone: safetensors file with the convolutions of VGG16, see above.

    Raises:
        ConfigError: an unusable file, or weights in torchmetrics other than the known ones.
    """

    bounds = (0.0, 2.0)
    higher_is_better = False
    file_params = ("backbone",)

    def __init__(self, backbone: str) -> None:
        key = "uae.reward.terms.dists"
        self.model = load_backbone(_vgg_with_hann_pooling, backbone, f"{key}.backbone")
        state = learned_weights("dists", key)
        channels = (3, 64, 128, 256, 512, 512)
        self.alpha, self.beta = (list(state[name].flatten().split(channels)) for name in ("alpha", "beta"))
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    def setup(self, context: TermContext) -> None:
        """Move the network and the weights."""
        self.to(context.device)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.alpha, self.beta = ([weight_C.to(device) for weight_C in part] for part in (self.alpha, self.beta))

    def features(self, images_B3HW: Tensor) -> list[Tensor]:
        """The pictures in [0, 1] themselves, and the layers."""
        return [images_B3HW, *taps(self.model, (images_B3HW - self.mean) / self.std, VGG_TAPS)]

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,), in [0, 2].

        Raises:
            ValueError: a picture side below :data:`MIN_SIDE`.
        """
        _check_side(batch)
        distance = functools.partial(dists, alpha=self.alpha, beta=self.beta)
        return by_picture(self.features, distance, batch.source_B3HW, batch.reconstruction_B3HW)


def load_backbone(empty: Callable[[], nn.Sequential], path: str, key: str) -> nn.Sequential:
    """A network with the weights of a safetensors file, frozen, in evaluation mode, on the CPU, in fp32.

    Args:
        empty: builds the network.
        path: the file; names as in torchvision, with or without ``features.`` before them. Others are ignored.
        key: configuration key of ``path``, for errors.

    Raises:
        ConfigError: no such file, no safetensors, or weights that are missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(existing_file(path, key))
    except (OSError, SafetensorError) as error:
        raise ConfigError(key, f"{path!r} cannot be read as safetensors: {error}") from error
    state = {name.removeprefix("features."): weight.float() for name, weight in state.items()}
    # On the meta device nothing is initialised, so the global random generator is left alone.
    with torch.device("meta"):
        network: nn.Sequential = empty()
    wanted = network.state_dict()
    bad = [name for name, weight in wanted.items() if name not in state or state[name].shape != weight.shape]
    if bad:
        raise ConfigError(key, f"{path!r} lacks {len(bad)} of {len(wanted)} weights, such as {bad[0]}, or their shapes")
    network.load_state_dict({name: state[name] for name in wanted}, assign=True)
    network.eval().requires_grad_(False)
    return network


def learned_weights(name: str, key: str) -> dict[str, Tensor]:
    """The learned weights of a distance, from torchmetrics.

    Raises:
        ConfigError: where torchmetrics lacks them or has others.
    """
    file, digest = WEIGHTS[name]
    spec = importlib.util.find_spec("torchmetrics")
    folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else Path()
    path = folder / "functional" / "image" / file
    # torchmetrics ships a pickle, no safetensors: only the known bytes are read, and only as tensors.
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ConfigError(key, f"{path} is missing or not the known weights file (SHA-256 {digest[:12]}...)")
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return {weight: value.detach() for weight, value in state.items()}


def _vgg_with_max_pooling() -> nn.Sequential:
    return vgg16_features(MaxPool)


def _vgg_with_hann_pooling() -> nn.Sequential:
    return vgg16_features(HannPool)


def _check_side(batch: RewardBatch) -> None:
    side = min(batch.source_B3HW.shape[-2:])
    if side < MIN_SIDE:
        raise ValueError(f"pictures need at least {MIN_SIDE} pixels a side, these have {side}")
