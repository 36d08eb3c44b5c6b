# Copyright 2026 The verl_uae authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch

from tests.flow.objective.cases import Transitions
from verl_uae.errors import ConfigError
from verl_uae.flow.objective import bind_objective, load_objective

SOURCE = """
from verl_uae.flow.objective import ObjectiveOutput, register_objective

@register_objective("{name}")
def unclipped(log_prob_B, old_log_prob_B, advantage_B, *, scale=1.0):
    ratio_B = (log_prob_B - old_log_prob_B).exp()
    return ObjectiveOutput(-scale * advantage_B * ratio_B, {{"ratio": ratio_B.detach()}})
"""


pytestmark = pytest.mark.usefixtures("own_objectives")


def _write(folder: Path, text: str) -> Path:
    path = folder / "objectives.py"
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_an_objective_from_a_file_runs_and_is_announced(tmp_path, caplog) -> None:
    path = _write(tmp_path, SOURCE.format(name="unclipped"))
    case = Transitions()
    inputs = case(case.nearby(0.1))
    with caplog.at_level(logging.INFO):
        output = bind_objective("unclipped", {"scale": 3.0}, str(path))(inputs)
    ratio = (inputs.log_prob_B - inputs.old_log_prob_B).exp()
    assert torch.equal(output.loss_B, -3.0 * inputs.advantage_B * ratio)
    assert str(path) in caplog.text and hashlib.sha256(path.read_bytes()).hexdigest() in caplog.text
    # A second use of the same file runs it no second time.
    assert bind_objective("unclipped", None, str(path)).params == {"scale": 1.0}
    with pytest.raises(ConfigError, match=r"Did you mean 'scale'"):
        bind_objective("unclipped", {"scales": 3.0}, str(path))


@pytest.mark.parametrize(
    ("text", "name", "key", "message"),
    [
        (SOURCE.format(name="theirs"), "other", "name", r"does not register 'other'; it registers \['theirs'\]"),
        ("x = 1", "dppo", "name", "does not register 'dppo'; it registers nothing"),
        (SOURCE.format(name="dppo"), "dppo", "path", "ConfigError.*'dppo' is already registered"),
        ("import sys; sys.exit(3)", "mine", "path", "failed to import: SystemExit: 3"),
        ("def broken(", "mine", "path", "failed to import: SyntaxError"),
        (SOURCE.format(name="mine").replace("=1.0", ""), "mine", "path", "a parameter has a default value"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(tmp_path, text, name, key, message) -> None:
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_objective(str(path), name)
    assert caught.value.key == f"uae.u4g.objective.{key}" and str(path) in caught.value.message


def test_missing_and_world_writable_files_are_refused(tmp_path) -> None:
    path = _write(tmp_path, SOURCE.format(name="mine"))
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="writable by everyone"):
        load_objective(str(path), "mine")
    for missing in (str(tmp_path / "none.py"), "https://example.org/x.py", "a\0b.py", "pkg://no_such_module"):
        with pytest.raises(ConfigError, match=r"objective\.path: (cannot read|.* is a URL|.* failed to import)"):
            load_objective(missing, "mine")
