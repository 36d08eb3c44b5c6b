# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests.source import modules, relative, tree
from verl_uae.checkpoints import names


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("global_step_7", 7),
        ("a/b/global_step_12", 12),
        ("global_step_07", None),
        ("global_step_", None),
        ("global_step_²", None),
        ("step_7", None),
    ],
)
def test_a_step_folder_is_known_by_its_name(name: str, step: int | None) -> None:
    assert names.step_of(name) == step
    if step == 7:
        assert names.step_name(step) == name


#: Who writes a name again: what lies below this package, and another manifest.
AGAIN = {
    ("paths.py", names.CONFIG): "asks the hub for any file that a repository of a model has",
    ("data/cache.py", names.MANIFEST): "tells contents of model folders apart, whoever wrote them",
    ("bench/external/cli.py", names.MANIFEST): "of drawn pictures, no model",
    ("bench/external/prompts.py", names.MANIFEST): "of drawn pictures, no model",
}

#: Those that are also plain words: of a part of a model, a section or a role.
WORDS = {"actor", "captioner", "decoder", "huggingface", "transformer", "vae", "scheduler", "conditioner"} | {
    "language_model",
    names.CARD,
}


def known_names() -> set[str]:
    values = [value for name, value in vars(names).items() if name.isupper() and not name.startswith("_")]
    return {text for value in values for text in ([value] if isinstance(value, str) else value)} - WORDS


def test_names_are_written_once() -> None:
    known = known_names()
    assert {names.MARKER, names.DATA_STATE, names.ADAPTER_WEIGHTS, *names.PROCESSOR_FILES} <= known
    found = set()
    for path in modules():
        if relative(path) == "checkpoints/names.py":
            continue
        docstrings = {id(node.value) for node in ast.walk(tree(path)) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                # A path or an f-string has it as a part.
                words = re.split(r"[\s/:,;'()<>*]", node.value)
                found |= {(relative(path), name) for name in known if name in words}
    assert found == AGAIN.keys()


def test_importing_them_loads_nothing_heavy() -> None:
    heavy = ("torch", "verl", "ray", "transformers", "diffusers", "omegaconf", "pyarrow")
    code = f"import sys, verl_uae.checkpoints.names; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
