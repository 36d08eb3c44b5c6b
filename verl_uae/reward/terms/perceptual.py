# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Learned perceptual distances: LPIPS and DISTS, for pictures at the decoder's own size.

Their networks and small learned weights are those of torchmetrics. The weights of the backbones, AlexNet and VGG16
trained on ImageNet, do not come with it: give a safetensors file with torchvision's names, written once where
torchvision can download them (or see docs/rewards.md):

    from safetensors.torch import save_file
    from torchvision.models import alexnet
    save_file(alexnet(weights="DEFAULT").features.state_dict(), "alexnet.safetensors")

Shape legend: B samples, 3 colour channels, H W pixels, C channels of a layer.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verl_uae.errors import ConfigError
from verl_uae.reward.record import RewardBatch
from verl_uae.reward.term import RewardTerm, TermContext
from verl_uae.reward.terms.features import packaged_weights, read_weights
from verl_uae.reward.terms.vision import IMAGENET_MEAN, IMAGENET_STD

#: Learned weights inside torchmetrics, with the SHA-256 of the known files (LPIPS v0.1, DISTS 0.1).
WEIGHTS = {
    "alex": ("lpips_models/alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    "vgg": ("lpips_models/vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    "dists": ("dists_models/weights.pt", "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"),
}

#: Layers whose outputs DISTS compares, numbered as in torchvision's ``features``.
DISTS_TAPS = (3, 8, 15, 22, 29)

#: Added to both fractions of DISTS, as published.
DISTS_EPS = 1e-6

MIN_SIDE = 32


def dists(a: Sequence[Tensor], b: Sequence[Tensor], alpha_C: Tensor, beta_C: Tensor) -> Tensor:
    """DISTS of features (Ding et al. 2020, eq. 5-7): shape (B,), in [0, 2]; 0 for equal pictures. Differentiable.

    Not torchmetrics' own: its covariance is a difference of two products, which in fp32 moves the distance of a flat
    picture by 0.015.

    Args:
        a: the picture and its features (B, C, H, W), one tensor per layer, in fp32.
        b: what to compare, same shapes.
        alpha_C: weights of texture (means), at least 0, of the channels of all layers.
        beta_C: weights of structure (covariance), likewise.
    """
    channels = [x.shape[1] for x in a]
    similarity_B = a[0].new_zeros(len(a[0]))
    for x, y, alpha, beta in zip(a, b, alpha_C.split(channels), beta_C.split(channels), strict=True):
        x_mean, y_mean = x.mean(dim=(2, 3), keepdim=True), y.mean(dim=(2, 3), keepdim=True)
        x, y = x - x_mean, y - y_mean
        x_mean_BC, y_mean_BC = x_mean.flatten(1), y_mean.flatten(1)
        texture = (2 * x_mean_BC * y_mean_BC + DISTS_EPS) / (x_mean_BC**2 + y_mean_BC**2 + DISTS_EPS)
        spread = x.square().mean(dim=(2, 3)) + y.square().mean(dim=(2, 3))
        structure = (2 * (x * y).mean(dim=(2, 3)) + DISTS_EPS) / (spread + DISTS_EPS)
        similarity_B = similarity_B + (alpha * texture + beta * structure).sum(dim=1)
    return 1.0 - similarity_B / torch.cat([alpha_C, beta_C]).sum()


class PerceptualDistance(RewardTerm):
    """A distance of the features of a frozen network; lower is better, so a positive weight is a penalty.

    Subclasses set ``model`` and give :meth:`features` and :meth:`distance`.
    """

    higher_is_better = False
    file_params = ("backbone",)
    model: Any

    @abstractmethod
    def features(self, images_B3HW: Tensor) -> Sequence[Tensor]:
        """Of pictures in [0, 1], one tensor (B, C, H, W) per layer."""

    @abstractmethod
    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Of features, shape (B,). Differentiable."""

    def setup(self, context: TermContext) -> None:
        """Move the network and the weights."""
        self.to(context.device)

    def score(self, batch: RewardBatch) -> Tensor:
        """Shape (B,). Differentiable.

        Pictures are looked at one after the other: what that takes grows with the size of one picture, not with their
        number, and no picture moves the last bits of another. The source of neighbours, as of the members of a group,
        is encoded once.

        Raises:
            ValueError: a picture side below :data:`MIN_SIDE`.
        """
        side = min(batch.source_B3HW.shape[-2:])
        if side < MIN_SIDE:
            raise ValueError(f"pictures need at least {MIN_SIDE} pixels a side, these have {side}")
        flat = batch.source_B3HW.flatten(1)
        again = [False, *(flat[1:] == flat[:-1]).all(dim=1).tolist()]
        found: list[Tensor] = []
        known: Sequence[Tensor] = []
        pictures = zip(again, batch.source_B3HW.split(1), batch.reconstruction_B3HW.split(1), strict=True)
        for same, source, drawn in pictures:
            if not same:
                known = []  # Let go of before the next ones are made.
                known = self.features(source)
            found.append(self.distance(known, self.features(drawn)))
        return torch.cat(found)


class LPIPS(PerceptualDistance):
    """LPIPS (Zhang et al. 2018, eq. 1) with the published weights, v0.1.

    Args:
        backbone: safetensors file with the convolutions of the network, see above.
        net: ``alex`` (the authors' choice for measuring) or ``vgg`` (closer to what they optimise with).

    Raises:
        ConfigError: an unusable file, or weights in torchmetrics other than the known ones.
    """

    bounds = (0.0, math.inf)

    def __init__(self, backbone: str, net: Literal["alex", "vgg"] = "alex") -> None:
        from torchmetrics.functional.image.lpips import _LPIPS

        key = "uae.reward.terms.lpips"
        # On the meta device nothing is initialised, so the global random generator is left alone.
        with torch.device("meta"):
            self.model = _LPIPS(pretrained=False, net=net, pnet_rand=True)
        load_backbone(self.model.net, backbone, f"{key}.backbone")
        self.model.load_state_dict(learned_weights(net, key), strict=False, assign=True)
        self.model.eval().requires_grad_(False)

    def features(self, images_B3HW: Tensor) -> Sequence[Tensor]:
        """See :class:`PerceptualDistance`."""
        layers: Sequence[Tensor] = self.model.net(self.model.scaling_layer(2 * images_B3HW - 1))
        return layers

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Shape (B,), at least 0; 0 for equal features."""
        from torchmetrics.functional.image.lpips import _normalize_tensor

        layers = [
            weigh((_normalize_tensor(x) - _normalize_tensor(y)).square()).mean(dim=(1, 2, 3))
            for weigh, x, y in zip(self.model.lins, a, b, strict=True)
        ]
        return torch.stack(layers).sum(dim=0)


class DISTS(PerceptualDistance):
    """:func:`dists` with the published weights.

    The authors first scale pictures to a shorter side of 256 pixels; here they have the decoder's size.

    Args:
        backbone: safetensors file with the convolutions of VGG16, see above.

    Raises:
        ConfigError: an unusable file, or weights in torchmetrics other than the known ones.
    """

    bounds = (0.0, 2.0)

    def __init__(self, backbone: str) -> None:
        key = "uae.reward.terms.dists"
        learned = learned_weights("dists", key)
        self.alpha_C, self.beta_C = learned["alpha"].flatten(), learned["beta"].flatten()
        with torch.device("meta"):
            self.model = _vgg16_with_hann_pooling()
        load_backbone(self.model, backbone, f"{key}.backbone")
        self.model.eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def features(self, images_B3HW: Tensor) -> Sequence[Tensor]:
        """The pictures themselves, and the layers."""
        found, x_BCHW = [images_B3HW], (images_B3HW - self.mean) / self.std
        for place, layer in enumerate(self.model):
            x_BCHW = layer(x_BCHW)
            if place in DISTS_TAPS:
                found.append(x_BCHW)
        return found

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Shape (B,), in [0, 2]."""
        return dists(a, b, self.alpha_C, self.beta_C)


def _vgg16_with_hann_pooling() -> nn.Sequential:
    """The convolutions of VGG16 (Simonyan & Zisserman 2015) with DISTS's pooling without aliasing.

    torchmetrics' own network of the two downloads its weights while it is built.
    """
    from torchmetrics.functional.image.dists import L2pooling
    from torchvision.models import vgg16

    layers: Any = vgg16(weights=None).features[: DISTS_TAPS[-1] + 1]
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.MaxPool2d):
            layers[place] = L2pooling(channels=layers[place + 1].in_channels)
    network: nn.Sequential = layers
    return network


def load_backbone(network: nn.Module, path: str, key: str) -> None:
    """Give a network the weights of a safetensors file, in fp32.

    Its parameters end in torchvision's names, such as ``slice1.0.weight``; those of the file are the same, with or
    without ``features.`` before them. Others are ignored.

    Raises:
        ConfigError: no such file, no safetensors, or weights that are missing or of another shape.
    """
    tensors, _ = read_weights(path, key)
    state = {name.removeprefix("features."): weight.float() for name, weight in tensors.items()}
    found, bad = {}, []
    for name, parameter in network.named_parameters():
        theirs = ".".join(name.split(".")[-2:])
        if theirs in state and state[theirs].shape == parameter.shape:
            found[name] = state[theirs]
        else:
            bad.append(theirs)
    if bad:
        total = len(bad) + len(found)
        raise ConfigError(key, f"{path!r} lacks {len(bad)} of {total} weights, such as {bad[0]}, or their shapes")
    network.load_state_dict(found, strict=False, assign=True)


def learned_weights(name: str, key: str) -> dict[str, Tensor]:
    """The learned weights of a distance, from torchmetrics.

    Raises:
        ConfigError: where torchmetrics lacks them or has others.
    """
    import torchmetrics

    file, digest = WEIGHTS[name]
    state = packaged_weights(Path(torchmetrics.__file__).parent / "functional" / "image" / file, digest, key)
    return {weight: value.detach() for weight, value in state.items()}
