# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Layers point one way: flow <- decoder, reward <- rollout, engine, trainer <- cli."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.source import imports, modules, relative

#: Layer of every folder and file at the top of the package; a module may import its own layer and lower ones.
LAYERS = {
    "errors": 0,
    "text": 0,
    "compat": 0,
    "seeding": 0,
    "paths": 0,
    "waiting": 0,
    "memory": 0,
    "hub": 0,
    "devices": 0,
    "surroundings": 0,
    "runstate": 0,
    "unread": 0,
    "__init__": 0,
    "flow": 1,
    "data": 1,
    "reward": 2,
    "decoder": 2,
    "formats": 2,
    "pipeline": 2,
    "config": 3,
    "searchpath": 3,
    "scenes": 3,
    "bench": 3,
    "demo": 3,
    "rollout": 4,
    "engine": 4,
    "trainer": 5,
    "register": 6,
    "plugin": 7,
    "driver": 7,
    "estimate": 7,
    "doctor": 7,
    "cli": 8,
}

#: Files of lower folders that may import verl at their top, with the reason.
VERL_ALLOWED = {"data/dataset.py": "verl's dataset class with our checks"}
VERL_FREE = ("flow", "decoder", "formats", "pipeline", "reward", "data", "scenes", "bench", "config", "demo")


def part(path: Path) -> str:
    return relative(path).split("/")[0].removesuffix(".py")


def top(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", modules(), ids=relative)
def test_a_module_imports_no_higher_layer(path: Path) -> None:
    assert part(path) in LAYERS, f"{part(path)}: give it a layer"
    for name in imports(path):
        if top(name) == "verl_uae" and "." in name:
            other = name.split(".")[1]
            # "from verl_uae import __version__" is the package itself.
            layer = LAYERS.get(other, 0)
            assert layer <= LAYERS[part(path)], f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", [path for path in modules() if part(path) == "flow"], ids=relative)
def test_flow_imports_torch_our_errors_and_paths_and_nothing_else(path: Path) -> None:
    foreign = {top(name) for name in imports(path)} - set(sys.stdlib_module_names) - {"torch", "verl_uae"}
    assert not foreign
    ours = [name for name in imports(path) if top(name) == "verl_uae"]
    assert all(name.startswith(("verl_uae.flow", "verl_uae.errors", "verl_uae.paths")) for name in ours)


@pytest.mark.parametrize("path", [path for path in modules() if part(path) in VERL_FREE], ids=relative)
def test_lower_layers_know_neither_verl_nor_ray(path: Path) -> None:
    if relative(path) in VERL_ALLOWED:
        pytest.skip(VERL_ALLOWED[relative(path)])
    assert not {"verl", "ray", "transfer_queue"} & {top(name) for name in imports(path)}


@pytest.mark.parametrize("path", [path for path in modules() if part(path) in LAYERS and "/" not in relative(path)])
def test_files_at_the_top_import_verl_and_torch_lazily(path: Path) -> None:
    if path.stem == "register":
        pytest.skip("verl imports it where the heavy classes are needed")
    heavy = {"verl", "ray", "torch", "transformers", "diffusers", "hydra", "omegaconf"}
    if path.stem in ("searchpath", "driver"):
        heavy -= {"hydra"}
    assert not heavy & {top(name) for name in imports(path, lazy=False)}


def test_the_checks_above_see_something() -> None:
    """The tree really has the imports that the rules are about."""
    by_name = {relative(path): set(imports(path)) for path in modules()}
    assert "verl.utils.dataset.rl_dataset" in by_name["data/dataset.py"]
    assert "verl_uae.flow.ode" in by_name["decoder/decoder.py"]
    assert any(name.startswith("verl.") for name in by_name["trainer/g4u.py"])
    assert "torch" in by_name["doctor.py"] and "torch" not in set(
        imports(next(path for path in modules() if relative(path) == "doctor.py"), lazy=False)
    )
