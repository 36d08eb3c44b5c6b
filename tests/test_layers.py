# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Layers point one way: flow, data <- reward, chain, checkpoints <- engines <- stages <- launch, plugin <- cli."""

from __future__ import annotations

import graphlib
import sys
from pathlib import Path

from tests.source import PACKAGE, imports, modules, relative
from verl_uae.config import STAGES, yaml_files

#: Layer of every folder and file at the top of the package; a module may import its own layer and lower ones.
LAYERS = {
    "errors": 0,
    "text": 0,
    "compat": 0,
    "captioners": 0,
    "seeding": 0,
    "settings": 0,
    "paths": 0,
    "registry": 0,
    "user_code": 0,
    "files": 0,
    "beside": 0,
    "curves": 0,
    "compiling": 0,
    "devices": 0,
    "masters": 0,
    "pages": 0,
    "waiting": 0,
    "web": 0,
    "runstate": 0,
    "visits": 0,
    "verl_surface": 0,
    "versions": 0,
    "flow": 1,
    "data": 1,
    "reward": 2,
    "families": 2,
    "chain": 2,
    "checkpoints": 2,
    "config": 3,
    "scenes": 3,
    "bench": 3,
    "caption_server": 4,
    "engines": 4,
    "stages": 5,
    "launch": 6,
    "plugin": 7,
    "estimate": 7,
    "plan": 8,
    "commands": 8,
    "doctor": 7,
    "cli": 9,
    # Of what users name, on first use.
    "__init__": 9,
}

#: Files of lower folders that may import verl at their top, with the reason.
VERL_ALLOWED = {"data/dataset.py": "verl's dataset class with our checks"}
VERL_FREE = ("flow", "families", "chain", "checkpoints", "reward", "data", "scenes", "bench", "config")
#: Stages that are made of others.
STAGES_OF = {"unified": ("g4u", "u4g")}


def target(name: str) -> int:
    """Layer of what is imported; a section of the configuration is data, and may be named from anywhere."""
    parts = name.split(".")
    data = name in ("verl_uae.config", "verl_uae.config.STAGES") or name.startswith("verl_uae.config.schema")
    return 0 if data or "config" in parts[2:] else LAYERS.get(parts[1], 0)


def part(path: Path) -> str:
    return relative(path).split("/")[0].removesuffix(".py")


def top(name: str) -> str:
    return name.split(".")[0]


def by_dotted_name() -> dict[str, Path]:
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in modules()}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def test_every_folder_of_stages_is_a_stage() -> None:
    folders = {path.parent.name for path in (PACKAGE / "stages").glob("*/trainer.py")}
    assert folders == set(STAGES)
    # What Hydra has of a stage lies beside its code.
    assert all(yaml_files()[f"uae_{stage}"].parent == PACKAGE / "stages" / stage for stage in STAGES)


def test_no_module_imports_a_higher_layer() -> None:
    without = {part(path) for path in modules()} - LAYERS.keys()
    assert not without, "give it a layer"
    assert not [
        f"{relative(path)} imports {name}"
        for path in modules()
        for name in imports(path)
        if name.startswith("verl_uae.") and target(name) > (3 if path.name == "config.py" else LAYERS[part(path)])
    ]


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not lazily and not for a type either."""
    files = by_dotted_name()
    graph = {name: {other for other in imports(path) if other in files} - {name} for name, path in files.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_flow_imports_torch_and_a_few_files_at_the_top() -> None:
    known = set(sys.stdlib_module_names) | {"torch"}
    # The last two hold the one way to plug a user's code in.
    allowed = tuple(f"verl_uae.{part}" for part in ("flow", "errors", "settings", "paths", "registry", "user_code"))
    assert not [
        f"{relative(path)} imports {name}"
        for path in modules()
        if part(path) == "flow"
        for name in imports(path)
        if top(name) not in known and not name.startswith(allowed)
    ]


def test_lower_layers_know_neither_verl_nor_ray() -> None:
    assert not [
        f"{relative(path)} imports {name}"
        for path in modules()
        if part(path) in VERL_FREE and relative(path) not in VERL_ALLOWED
        for name in imports(path)
        if top(name) in ("verl", "ray", "transfer_queue")
    ]


def test_families_are_below_the_chain() -> None:
    assert not [
        f"{relative(path)} imports {name}"
        for path in modules()
        if part(path) == "families"
        for name in imports(path)
        if name.startswith(("verl_uae.chain", "verl_uae.reward", "verl_uae.data"))
    ]


def test_what_every_process_of_the_captioner_imports_is_not_diffusers() -> None:
    """Its agent loops, servers and trainers, on every GPU, would each take seconds longer to start."""
    files = by_dotted_name()
    found, todo = set[str](), ["verl_uae.plugin.register"]
    while todo:
        name = todo.pop()
        if name in files and name not in found:
            found.add(name)
            todo += [name.rpartition(".")[0], *imports(files[name], lazy=False)]
    assert "verl_uae.engines.captioner" in found
    assert not [
        f"{name} imports {other}"
        for name in sorted(found)
        for other in imports(files[name], lazy=False)
        if top(other) in ("diffusers", "scipy")
    ]


def test_a_stage_imports_no_other_stage() -> None:
    def stage(name: str) -> str:
        return name.removeprefix("verl_uae.stages.").split(".")[0]

    assert not [
        f"{relative(path)} imports {name}"
        for path in modules()
        if part(path) == "stages" and relative(path).count("/") > 1
        for name in imports(path)
        if name.startswith("verl_uae.stages.")
        and stage(name) not in ("common", own := relative(path).split("/")[1], *STAGES_OF.get(own, ()))
    ]


def test_files_at_the_top_import_verl_and_torch_lazily() -> None:
    heavy = {"verl", "ray", "torch", "transformers", "diffusers", "hydra", "omegaconf"}
    assert not [
        f"{relative(path)} imports {name}"
        for path in modules()
        if "/" not in relative(path) or relative(path) == "plugin/__init__.py"
        for name in imports(path, lazy=False)
        # Its walks are over sections of omegaconf.
        if top(name) in heavy and not (top(name) == "omegaconf" and path.stem == "settings")
    ]


def test_the_checks_above_see_something() -> None:
    """The tree really has the imports that the rules are about."""
    by_name = {relative(path): set(imports(path)) for path in modules()}
    assert "verl.utils.dataset.rl_dataset" in by_name["data/dataset.py"]
    assert "verl_uae.flow.ode" in by_name["chain/decoder.py"]
    assert any(name.startswith("verl.") for name in by_name["stages/g4u/trainer.py"])
    assert "torch" in by_name["doctor.py"] and "torch" not in set(
        imports(next(path for path in modules() if relative(path) == "doctor.py"), lazy=False)
    )
