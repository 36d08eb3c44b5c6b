# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""What this package takes from verl is written down, and verl still has it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from verl_uae import compat, doctor, verl_surface

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_verl_surface", DOCS / "generate_verl_surface.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["generate_verl_surface"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_and_record_say_what_is_used_of_the_installed_verl(generator: ModuleType) -> None:
    uses, classes, shims = generator.collect()
    assert generator.record(uses) == verl_surface.RECORD.read_text(encoding="utf-8"), generator.__doc__
    assert generator.render(uses, classes, shims) == generator.TARGET.read_text(encoding="utf-8"), generator.__doc__
    patching = {user for use in uses.values() if "patched" in use.ways for user in use.users}
    assert patching and all(user.startswith(compat.__name__) for user in patching), "patches of verl stand in one file"


def parameters(signature: str) -> list[str]:
    """Names of the parameters of a recorded signature that a caller gives."""
    text = signature[signature.index("(") :]
    if signature.startswith("class ") and not text.startswith("(self") and text != "()":
        # Fields: pydantic has those without default after others.
        text = text.replace("(", "(*, ", 1)
    definition = ast.parse(f"def f{text}: pass").body[0]
    assert isinstance(definition, ast.FunctionDef)
    names = [each.arg for each in (*definition.args.posonlyargs, *definition.args.args, *definition.args.kwonlyargs)]
    return names[signature.startswith(("class (self", "classmethod")) :]


def test_signatures_are_those_of_the_imported_verl() -> None:
    """What the reader finds in the source, against `inspect` of what verl is at run time."""
    source, compared = verl_surface.Source(verl_surface.installed()), 0
    for symbol, text in verl_surface.record()["symbols"].items():
        parts = symbol.split(".")
        depth = next(n for n in range(len(parts), 0, -1) if source.signature(".".join(parts[:n])) == "module")
        # That folder cannot be imported without vLLM.
        if "(" not in text or "vllm_rollout" in parts:
            continue
        found: object = importlib.import_module(".".join(parts[:depth]))
        for name in parts[depth:]:
            found = getattr(found, name)
            # A class that verl makes an actor's: the class itself.
            found = getattr(found, "__ray_actor_class__", found)
        assert callable(found)
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        real = [name for name, each in inspect.signature(found).parameters.items() if each.kind not in kinds]
        # Ray adds one to the methods of a class that is made an actor's, here by whatever test ran before.
        assert parameters(text) == [name for name in real if name != "_ray_trace_ctx"], symbol
        is_async = inspect.iscoroutinefunction(found) or inspect.isasyncgenfunction(found)
        assert is_async == text.startswith("async"), symbol
        compared += 1
    assert compared > 100


def surface() -> doctor.Finding:
    return doctor._guarded("verl's symbols", doctor._check_surface)


@pytest.fixture
def other_verl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installed verl's sources at another place, to be changed."""
    root = tmp_path / "verl"
    shutil.copytree(verl_surface.installed(), root, copy_function=os.symlink)
    monkeypatch.setattr(verl_surface, "installed", lambda: root)
    return root


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.unlink()
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_the_doctor_names_exactly_the_symbols_that_differ(other_verl: Path) -> None:
    sound = surface()
    assert sound.ok and verl_surface.record()["verl"] in sound.detail
    trainer = other_verl / "trainer" / "ppo" / "v1" / "trainer_base.py"
    change(
        trainer,
        "def _balance_batch(self, batch: KVBatchMeta,",
        "def _balance_batch(self, batch: KVBatchMeta, step: int,",
    )
    changed = surface()
    assert not changed.ok and not changed.fatal, "a run may still work"
    assert changed.detail.count(" was ") == 1 and "is gone" not in changed.detail
    assert "verl.trainer.ppo.v1.PPOTrainerSync._balance_batch was (self, batch: KVBatchMeta, metrics" in changed.detail
    assert "is (self, batch: KVBatchMeta, step: int, metrics" in changed.detail
    change(other_verl / "utils" / "device.py", "def get_device_id(", "def device_index(")
    gone = surface()
    assert not gone.ok and gone.fatal and "pip install" in gone.remedy
    assert gone.detail.count(" is gone") == 1 and gone.detail.count(" was ") == 1
    assert "verl.utils.device.get_device_id is gone" in gone.detail
    change(other_verl / "base_config.py", "class BaseConfig", "klass BaseConfig")
    broken = surface()
    assert not broken.ok and broken.fatal and broken.detail.startswith("SyntaxError")


def test_without_verl_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = surface()
    assert not finding.ok and finding.fatal and finding.detail == "verl: not installed"


SOURCES = {
    "verl/__init__.py": "",
    "verl/api/__init__.py": "from .impl import *\nfrom .impl import Thing as Renamed\nfrom torch import Tensor\n",
    "verl/api/impl.py": """
import enum
from verl.api import *
from os.path import *
from verl.api.base import Base
if enum:
    def conditional(a, *, b: int = 2) -> str: ...
class Thing(Base[int]):
    limit = 3
    def __init__(self, size): self.size = size
    @property
    def area(self): ...
    @staticmethod
    async def load(path): ...
class Modes: ...
Modes.register("FAST")
""",
    "verl/api/base.py": """
from dataclasses import dataclass
class Base:
    _table: dict = {}
    @classmethod
    def make(cls, n=1): self.not_an_instance = n
@dataclass
class Parent:
    a: int
@dataclass
class Child(Parent):
    b: str = ""
""",
}


@pytest.mark.parametrize(
    ("symbol", "signature"),
    [
        ("verl.api.base", "module"),
        ("verl.api.conditional", "(a, *, b: int=2) -> str"),
        ("verl.api.Renamed", "class (self, size)"),
        ("verl.api.Thing.area", "property"),
        ("verl.api.Thing.load", "staticmethod async (path)"),
        ("verl.api.Thing.make", "classmethod (cls, n=1)"),
        ("verl.api.Thing.size", "attribute"),
        ("verl.api.Thing.limit", "value"),
        ("verl.api.impl.Modes.FAST", "value"),
        ("verl.api.base.Base", "class ()"),
        ("verl.api.base.Child", "class (a: int, b: str = '')"),
        ("verl.api.Tensor", "value"),
        ("verl.api.Thing.gone", None),
        ("verl.api.gone", None),
        ("verl.gone.Thing", None),
        ("other.Thing", None),
    ],
)
def test_reading_follows_what_python_would(tmp_path: Path, symbol: str, signature: str | None) -> None:
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert verl_surface.Source(tmp_path / "verl").signature(symbol) == signature


OURS = """
import importlib
import verl.utils.device as device
from verl.trainer.ppo.v1 import trainer_base as base
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.workers.rollout.base import _ROLLOUT_REGISTRY

async def late():
    "What it is for."
    base.Tracking = None
    setattr(base, "KVBatchMeta", None)
    _ROLLOUT_REGISTRY["mine"] = importlib.import_module("verl.utils.fs").copy_to_local
    return device.get_device_id()

class Mixin:
    def _validate(self):
        "Ours."
        return self._dump_generations

class Trainer(Mixin, PPOTrainer):
    def step(self, batch):
        self.trainer_mode = "sync"
        return super().fit
"""


def test_every_kind_of_use_is_found(generator: ModuleType) -> None:
    uses, classes = generator.Uses(verl_surface.Source(verl_surface.installed())), {}
    generator.Reader("ours", uses, classes).visit(ast.parse(OURS))
    generator.add_members(uses, classes)
    trainer = "verl.trainer.ppo.v1.trainer_base"
    found = {symbol: (use.ways - {"imported"}, list(use.users)[-1]) for symbol, use in uses.items()}
    assert found == {
        "verl.utils.device": (set(), "ours"),
        "verl.utils.device.get_device_id": (set(), "ours.late"),
        "verl.utils.fs.copy_to_local": (set(), "ours.late"),
        f"{trainer}.Tracking": ({"patched"}, "ours.late"),
        f"{trainer}.KVBatchMeta": ({"patched"}, "ours.late"),
        f"{trainer}": (set(), "ours.late"),
        "verl.workers.rollout.base._ROLLOUT_REGISTRY": ({"entered"}, "ours.late"),
        f"{trainer}.PPOTrainer": ({"subclassed"}, "ours.Trainer"),
        f"{trainer}.PPOTrainer._validate": ({"overridden"}, "ours.Mixin"),
        f"{trainer}.PPOTrainer._dump_generations": ({"used"}, "ours.Mixin"),
        f"{trainer}.PPOTrainer.step": ({"overridden"}, "ours.Trainer"),
        f"{trainer}.PPOTrainer.trainer_mode": ({"set"}, "ours.Trainer"),
        f"{trainer}.PPOTrainer.fit": ({"used"}, "ours.Trainer"),
    }
    assert uses[f"{trainer}.Tracking"].users == {"ours.late": "What it is for."}


def test_an_import_of_what_verl_does_not_have_stops_the_generator(generator: ModuleType) -> None:
    reader = generator.Reader("ours", generator.Uses(verl_surface.Source(verl_surface.installed())), {})
    with pytest.raises(ValueError, match=r"ours imports verl\.utils\.device\.no_such"):
        reader.visit(ast.parse("def late():\n    from verl.utils.device import no_such"))
