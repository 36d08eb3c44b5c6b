# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The published package's distances on small random networks: makes ``golden_dreamsim.json``.

    python -m venv --system-site-packages GOLDEN
    GOLDEN/bin/pip install --no-deps dreamsim==0.2.1 open-clip-torch timm ftfy wcwidth
    GOLDEN/bin/python -m tests.reward.terms.golden_dreamsim

The package's own code runs: its loaders, its networks, its adapters by peft, its normalisation and its preprocessing.
Replaced are the width of the networks (128 instead of 768), the download, and torch.hub, whose DINO is the class that
the package carries. Weights have names, so the test builds the same ones.
The script of docs/rewards.md is run unchanged.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verl_uae.seeding import normal

FILE = Path(__file__).with_name("golden_dreamsim.json")
ROOT = Path(__file__).resolve().parents[3]

WIDTH, HEADS, DEPTH, PROJECTION = 128, 2, 12, 48
RANK, ALPHA = 4, 2.0
VARIANTS = {
    "ensemble": (("dino_vitb16", "clip_vitb16", "open_clip_vitb16"), ("cls", "embedding", "embedding")),
    "dino_vitb16": (("dino_vitb16",), ("cls",)),
    "clip_vitb32": (("clip_vitb32",), ("embedding",)),
    "open_clip_vitb32": (("open_clip_vitb32",), ("embedding",)),
}


def named(name: str, *shape: int, scale: float) -> Tensor:
    """Normal numbers of a given name."""
    return scale * normal(shape, 0, "golden dreamsim", name)


def vit_state(model: str) -> dict[str, Tensor]:
    """Random weights by the published names; large enough that pictures differ."""
    patch = int(model[-2:])
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, (224 // patch) ** 2 + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for index in range(DEPTH):
        for part, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes[f"blocks.{index}.{part}.weight"] = (rows, columns)
            shapes[f"blocks.{index}.{part}.bias"] = (rows,)
    state = {name: named(f"{model} {name}", *shape, scale=0.06) for name, shape in shapes.items()}
    norms = ["norm", *(f"blocks.{index}.norm{part}" for index in range(DEPTH) for part in (1, 2))]
    for norm in norms if model.startswith("dino") else [*norms, "pos_drop"]:
        state[f"{norm}.weight"] = 1.0 + named(f"{model} {norm} weight", WIDTH, scale=0.1)
        state[f"{norm}.bias"] = named(f"{model} {norm} bias", WIDTH, scale=0.1)
    if not model.startswith("dino"):
        state["proj"] = named(f"{model} proj", WIDTH, PROJECTION, scale=0.1)
    return state


def adapter(variant: str, place: int, block: int) -> tuple[Tensor, Tensor]:
    """A and B of a block's adapter."""
    name = f"{variant} {place} {block}"
    return named(f"{name} A", RANK, WIDTH, scale=0.2), named(f"{name} B", 3 * WIDTH, RANK, scale=0.2)


def merged_state(variant: str) -> dict[str, Tensor]:
    """What the script of docs/rewards.md writes: adapters multiplied out, W + alpha / rank * B A."""
    state = {}
    for place, model in enumerate(VARIANTS[variant][0]):
        for name, weight in vit_state(model).items():
            if name.endswith("attn.qkv.weight"):
                a, b = adapter(variant, place, int(name.split(".")[1]))
                weight = weight + ALPHA / RANK * b @ a
            state[f"{place}.{name}"] = weight
    return state


def metadata(variant: str) -> dict[str, str]:
    """Of the same file."""
    return dict(zip(("model_type", "feat_type"), map(",".join, VARIANTS[variant]), strict=True))


def pictures() -> tuple[Tensor, Tensor]:
    """Three pairs (3, 3, 224, 224) of smooth random pictures in 8-bit levels, more and more alike."""
    drawn = [normal((3, 3, 8, 8), 0, "golden dreamsim picture", side) for side in ("a", "b")]
    a, b = (torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic") for x in drawn)
    b = a + torch.tensor([1.0, 0.3, 0.05]).view(3, 1, 1, 1) * (b - a)
    a, b = ((0.5 + 0.25 * x).clamp(0.0, 1.0).mul(255.0).round() / 255.0 for x in (a, b))
    return a, b


def oblong(images_B3HW: Tensor) -> list[Image.Image]:
    """Pictures of 90 x 60 pixels, which the package resizes."""
    return [
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255.0).round().astype(np.uint8)).crop((0, 0, 90, 60))
        for image in images_B3HW
    ]


def _prepare(variant: str, cache: Path) -> None:
    """The files the package looks for."""
    models, _ = VARIANTS[variant]
    tag = "ensemble" if variant == "ensemble" else f"{models[0]}_single"
    (cache / f"{tag}_lora").mkdir()
    keys = {}
    for place, model in enumerate(models):
        if model.startswith("dino"):
            head = {f"mlp.{n}.{part}": torch.zeros(1) for n in (0, 2, 4) for part in ("weight", "bias")}
            head["last_layer.weight"] = torch.zeros(1)
            student = {f"module.head.{name}": weight for name, weight in head.items()}
            torch.save({"student": student}, cache / f"{model}_pretrain.pth")
        else:
            torch.save({"state_dict": vit_state(model)}, cache / f"{model}_pretrain.pth.tar")
        for block in range(DEPTH):
            prefix = f"base_model.model.extractor_list.{place}.model.blocks.{block}.attn.qkv"
            a, b = adapter(variant, place, block)
            keys |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    from safetensors.torch import save_file

    save_file(keys, cache / f"{tag}_lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.3, "bias": "none"}
    config["target_modules"] = ["qkv"]
    (cache / f"{tag}_lora" / "adapter_config.json").write_text(json.dumps(config))


def _small_networks() -> None:
    """Give the package's loaders networks of our width."""
    from functools import partial

    from dreamsim.feature_extraction import load_clip_as_dino, load_open_clip_as_dino, vision_transformer

    def vit_base(patch_size: int) -> Any:
        norm = partial(torch.nn.LayerNorm, eps=1e-6)
        return vision_transformer.VisionTransformer(
            patch_size=patch_size, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, qkv_bias=True, norm_layer=norm
        )

    def hub_load(repository: str, model: str) -> Any:
        network = vit_base(int(model[-2:]))
        network.load_state_dict(vit_state(model))
        return network

    load_clip_as_dino.vit_base = load_open_clip_as_dino.vit_base = vit_base
    torch.hub.load = hub_load


def _published(variant: str, folder: Path) -> dict[str, Any]:
    """Distances of the package, after its script in the documentation has been checked against ``merged_state``."""
    import dreamsim
    from safetensors.torch import load_file

    cache = folder / variant
    cache.mkdir()
    _prepare(variant, cache)
    model, preprocess = dreamsim.dreamsim(dreamsim_type=variant, device="cpu", cache_dir=str(cache))
    a, b = pictures()
    found = {"distances": model(a, b).tolist()}
    pairs = [(preprocess(x), preprocess(y)) for x, y in zip(oblong(a), oblong(b), strict=True)]
    found["resized"] = [float(model(x, y)) for x, y in pairs]
    found["embedding"] = model.embed(a)[0, :4].tolist()
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    script = re.search(r"```python\n(from dreamsim import dreamsim\n.*?)```", text, re.DOTALL)
    assert script is not None
    code = script.group(1).replace('"ensemble"', repr(variant)).replace('cache_dir="."', f"cache_dir={str(cache)!r}")
    code = code.replace('"dreamsim.safetensors"', repr(str(folder / f"{variant}.safetensors")))
    exec(code, {})
    written, expected = load_file(folder / f"{variant}.safetensors"), merged_state(variant)
    assert written.keys() == expected.keys(), written.keys() ^ expected.keys()
    assert all(torch.allclose(written[name], expected[name], atol=1e-6) for name in expected)
    return found


def main() -> None:
    """Write the golden file."""
    torch.set_num_threads(1)
    _small_networks()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        content = {variant: _published(variant, Path(folder)) for variant in VARIANTS}
    FILE.write_text(json.dumps({"dreamsim": "0.2.1", **content}, indent=1) + "\n")
    sys.stdout.write(FILE.read_text())


if __name__ == "__main__":
    main()
