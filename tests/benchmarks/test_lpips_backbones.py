# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from torchvision.models import alexnet, vgg16

from benchmarks.lpips_backbones import NETWORKS, convert, read_arrays


@pytest.mark.parametrize(("network", "build"), [("alexnet", alexnet), ("vgg16", vgg16)])
def test_places_are_the_convolutions(network: str, build) -> None:
    with torch.device("meta"):
        layers = build().features
    assert NETWORKS[network][2] == tuple(n for n, layer in enumerate(layers) if isinstance(layer, torch.nn.Conv2d))


def test_kernels_change_their_layout() -> None:
    """A convolution with the converted kernel, against the sum over channels of plain correlations."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 3, 2, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    arrays = {"Net_0": {"Conv_0": {"kernel": kernel, "bias": bias}}, "NetLinLayer_0": {}}
    state = convert(arrays, (5,))
    picture = rng.normal(size=(2, 9, 9)).astype(np.float32)
    found = torch.nn.functional.conv2d(torch.from_numpy(picture)[None], state["5.weight"], state["5.bias"])[0]
    for out in range(4):
        expected = sum(correlate(picture[c], kernel[:, :, c, out], mode="valid") for c in range(2)) + bias[out]
        assert np.allclose(found[out].numpy(), expected, atol=1e-5)


def test_only_known_bytes_and_arrays_are_read(tmp_path: Path) -> None:
    data = pickle.dumps({"a": OrderedDict()})
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(pickle.UnpicklingError, match="OrderedDict is not an array"):
        read_arrays(tmp_path / "file", hashlib.sha256(data).hexdigest())
    with pytest.raises(SystemExit, match="not the known file"):
        read_arrays(tmp_path / "file", "0" * 64)
