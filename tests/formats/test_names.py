# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

from tests.source import modules, relative
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


def test_names_are_written_once() -> None:
    distinct = (names.MARKER, names.TRACKER, names.RUN_CONFIG, names.RUN_INFERENCE, names.POLICY_FOLDER)
    for path in modules():
        text = path.read_text(encoding="utf-8")
        found = [name for name in (*distinct, names.STEP_PREFIX) if f'"{name}"' in text]
        assert not found or relative(path) == "checkpoints/names.py", f"{relative(path)}: {found}"


def test_importing_them_loads_nothing_heavy() -> None:
    heavy = ("torch", "verl", "ray", "transformers", "diffusers", "omegaconf", "pyarrow")
    code = f"import sys, verl_uae.checkpoints.names; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
