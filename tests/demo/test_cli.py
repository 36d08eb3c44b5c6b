# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from verl_uae.cli import build_parser, main
from verl_uae.demo.cli import default_terms
from verl_uae.reward import reward_names


def test_listens_on_this_machine_only_unless_told_otherwise() -> None:
    args = build_parser().parse_args(["demo", "model"])
    assert args.host == "127.0.0.1" and args.terms is None and callable(args.run)


def test_default_terms_need_no_download() -> None:
    assert set(default_terms()) <= set(reward_names())
    assert "clip" not in default_terms() and default_terms()[:2] == ["pixel", "ssim"]


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    empty = "has no transformer/" if importlib.util.find_spec("gradio") else "pip install"
    for model, expected in ((tmp_path / "none", "there is no such folder"), (tmp_path, empty)):
        assert main(["demo", str(model)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("verl-uae: ") and expected in error
