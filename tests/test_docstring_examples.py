# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings are run, and print what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import verl_uae

PACKAGE = Path(verl_uae.__file__).parent

_RUN = """
import doctest, importlib, sys
results = [doctest.testmod(importlib.import_module(name)) for name in sys.argv[1:]]
sys.exit(any(found.failed or not found.attempted for found in results))
"""


def test_examples_print_what_they_say() -> None:
    """In a process of their own: some register a name."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    assert len(names) >= 10
    found = subprocess.run([sys.executable, "-c", _RUN, *names], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
