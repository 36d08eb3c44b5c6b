# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from verl_uae.errors import ConfigError
from verl_uae.reward import RewardBatch, RewardScorer
from verl_uae.reward.terms import perceptual
from verl_uae.reward.terms.perceptual import DISTS, LPIPS


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """torchvision's own networks with random weights, saved under torchvision's names."""
    from torchvision.models import vgg
    from torchvision.models.alexnet import alexnet

    folder = tmp_path_factory.mktemp("backbones")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {"alex": alexnet(num_classes=2).features, "vgg": vgg.make_layers(vgg.cfgs["D"])}
    for network in networks.values():
        with torch.no_grad():
            # He's scale, so that deep layers still tell pictures apart.
            for name, parameter in network.named_parameters():
                if name.endswith("weight"):
                    parameter.mul_(math.sqrt(2.0 / parameter[0].numel()) / parameter.std())
    found = {name: folder / f"{name}.safetensors" for name in networks}
    save_file({f"features.{k}": v for k, v in networks["alex"].state_dict().items()}, found["alex"])
    save_file(networks["vgg"].state_dict(), found["vgg"])
    return found


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return {name.removeprefix("features."): weight for name, weight in load_file(path).items()}


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_against_torchmetrics(make_batch, backbones, net: str) -> None:
    from torchmetrics.functional.image.lpips import _LPIPS

    with torch.random.fork_rng(devices=[]):
        reference = _LPIPS(pretrained=True, net=net, pnet_rand=True, pnet_tune=False, eval_mode=True)
    weights = _weights(backbones[net])
    for name, parameter in reference.net.named_parameters():
        parameter.data.copy_(weights[name.split(".", 1)[1]])
    batch = make_batch(3, size=(40, 64))
    found = LPIPS(str(backbones[net]), net).score(batch)
    with torch.no_grad():
        expected = reference(batch.source_B3HW, batch.reconstruction_B3HW, normalize=True).flatten()
    assert expected.min() > 1e-3 and torch.allclose(found, expected, rtol=0.0, atol=1e-5)


def test_dists_against_torchmetrics(make_batch, backbones, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.image import dists as theirs
    from torchvision.models import vgg

    network = vgg.make_layers(vgg.cfgs["D"])
    network.load_state_dict(_weights(backbones["vgg"]))
    monkeypatch.setattr(theirs, "vgg16", lambda weights: SimpleNamespace(features=network))
    batch = make_batch(3, size=(40, 64))
    with torch.no_grad():
        expected = theirs.DISTSNetwork()(batch.source_B3HW, batch.reconstruction_B3HW)
    found = DISTS(str(backbones["vgg"])).score(batch)
    assert expected.min() > 1e-3 and torch.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_the_source_of_a_group_is_encoded_once_and_alone(make_batch, backbones, name: str) -> None:
    term = LPIPS(str(backbones["alex"])) if name == "lpips" else DISTS(str(backbones["vgg"]))
    batch = make_batch(5, size=32)
    # Groups of two, two and one; the first source comes again, but not beside its own kind.
    for copy, of in ((1, 0), (3, 2), (4, 0)):
        batch.source_B3HW[copy] = batch.source_B3HW[of]
    counts: list[int] = []
    encode = term.features
    term.features = lambda images: counts.append(len(images)) or encode(images)
    found = term.score(batch)
    assert counts == [1] * (3 + 5), "pictures one after the other: memory does not grow with their number"
    alone = torch.cat([term.score(batch.take([index])) for index in range(5)])
    assert len(set(found.tolist())) == 5 and torch.equal(found, alone)


def test_pictures_that_differ_in_one_pixel_are_two_pictures() -> None:
    images = torch.zeros(4, 3, 32, 32)
    images[1:, 1, 2, 3], images[3, 0, 0, 0] = 0.5, 1.0
    encoded = []

    class Sum(perceptual.PerceptualDistance):
        bounds = (-math.inf, math.inf)

        def features(self, images_B3HW: torch.Tensor) -> list[torch.Tensor]:
            encoded.append(float(images_B3HW.sum()))
            return [images_B3HW.flatten(1).sum(dim=1)]

        def distance(self, a, b) -> torch.Tensor:
            return a[0] - b[0]

    found = Sum().score(RewardBatch(images, torch.ones_like(images)))
    assert found.tolist() == [-3072.0, -3071.5, -3071.5, -3070.5]
    assert encoded == [0.0, 3072.0, 0.5, 3072.0, 3072.0, 1.5, 3072.0], "the second and third have one source"


def test_dists_where_a_picture_is_flat(make_batch, backbones) -> None:
    """The covariance of a flat picture's features is 0 but for rounding, which must not count; nor must the root of the
    pooling of nothing, whose gradient is infinite."""
    term = DISTS(str(backbones["vgg"]))
    flat = torch.full((1, 3, 64, 64), 0.3)
    other = make_batch(1, size=64).source_B3HW
    double = [[x.double() for x in term.features(images)] for images in (flat, other)]
    expected = perceptual.dists(*double, term.alpha_C.double(), term.beta_C.double())
    assert term.score(RewardBatch(flat, other)).item() == pytest.approx(expected.item(), abs=1e-6)
    assert term.score(RewardBatch(flat, flat)).item() == pytest.approx(0.0, abs=1e-6)
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    term.score(RewardBatch(torch.zeros(1, 3, 32, 32), black)).sum().backward()
    assert black.grad is not None and torch.isfinite(black.grad).all()


def test_in_the_scorer_and_differentiable(make_batch, backbones) -> None:
    batch = make_batch(3, size=32)
    batch.reconstruction_B3HW[0] = batch.source_B3HW[0]
    batch.reconstruction_B3HW[1] = 1.0 - batch.source_B3HW[1]
    params = {"lpips": {"backbone": str(backbones["alex"])}, "dists": {"backbone": str(backbones["vgg"])}}
    scorer = RewardScorer([(name, 1.0, given) for name, given in params.items()])
    same, inverted, noisy = scorer.score(batch)
    for name in params:
        assert same.terms[name] == pytest.approx(0.0, abs=1e-6)
        assert inverted.terms[name] > noisy.terms[name] > 0.0
    assert noisy.value == pytest.approx(-noisy.terms["lpips"] - noisy.terms["dists"])
    for term in (entry.term for entry in scorer._summed):
        images = batch.reconstruction_B3HW[1:].clone().requires_grad_()
        term.score(type(batch)(batch.source_B3HW[1:], images)).sum().backward()
        assert images.grad is not None and torch.isfinite(images.grad).all() and images.grad.abs().sum() > 0.0
    scorer.to("meta")
    lpips, dists = (entry.term for entry in scorer._summed)
    moved = [lpips.model.scaling_layer.shift, lpips.model.lins[0].model[1].weight, dists.alpha_C, dists.beta_C]
    moved += [*lpips.model.parameters(), *dists.model.parameters(), *dists.model.buffers(), dists.mean]
    assert {tensor.device.type for tensor in moved} == {"meta"}


def test_a_picture_too_small_is_an_error_of_the_sample(make_batch, backbones) -> None:
    records = RewardScorer([("lpips", 1.0, {"backbone": str(backbones["alex"])})]).score(make_batch(2, size=31))
    assert all(record.status == "error" and "at least 32 pixels" in record.reason for record in records)


def test_unusable_files_are_refused_by_key(backbones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"x" * 100)
    torch.save({}, tmp_path / "pickle.pth")
    with pytest.raises(ConfigError, match=r"uae.reward.terms.dists.backbone: .*absent: there is no such file"):
        DISTS(str(tmp_path / "absent"))
    for path in (garbage, tmp_path / "pickle.pth"):
        with pytest.raises(ConfigError, match=r"uae.reward.terms.dists.backbone: .* cannot be read as safetensors"):
            DISTS(str(path))
    with pytest.raises(ConfigError, match=r"uae.reward.terms.lpips.backbone: .* lacks \d+ of 26 weights"):
        LPIPS(str(backbones["alex"]), "vgg")
    with pytest.raises(ConfigError, match=r"here.net"):
        LPIPS.check_params({"backbone": str(backbones["alex"]), "net": "squeeze"}, "here")
    monkeypatch.setitem(perceptual.WEIGHTS, "alex", (perceptual.WEIGHTS["alex"][0], "0" * 64))
    with pytest.raises(ConfigError, match="not the known weights"):
        LPIPS(str(backbones["alex"]))
