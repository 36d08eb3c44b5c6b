# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
"""The documentation as pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_a_page_for_every_module(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-c",
        "docs",
        "-b",
        "html",
        ".",
        str(tmp_path),
    ]
    environment = {**os.environ, "VERL_PLATFORM": "cpu"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    api = tmp_path / "docs" / "api"
    index = (api / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "verl_uae").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert not path.read_text(encoding="utf-8").strip() or name in index, name
    page = (api / "verl_uae.flow.kernels.html").read_text(encoding="utf-8")
    assert 'id="verl_uae.flow.kernels.step"' in page
    assert "searchindex.js" in {path.name for path in tmp_path.iterdir()}
